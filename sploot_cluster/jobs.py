"""Protocols through which the domain and the HTTP API enqueue jobs.

``ClusterService`` needs :class:`ReclusterRequests`, and the HTTP API needs :class:`JobQueue`; both are passed in. This
module imports only the standard library, because the thin client implements the protocols.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from sploot_cluster.answer_fields import described
from sploot_cluster.event import EmbeddingIngested

if TYPE_CHECKING:
    from sploot_cluster.decide.corrections.base import Request
    from sploot_cluster.pet.models import PreviewBackend
    from sploot_cluster.refusals import RedisRefusal

JobState = Literal["queued", "delayed", "running", "retrying", "succeeded", "dead", "cancelled", "refused"]
# Final states: a job in such a state changes only if its dead letter is requeued.
ENDED: Final[frozenset[JobState]] = frozenset({"succeeded", "dead", "cancelled", "refused"})

# The outcomes of cancelling a job, in order: the job was waiting and was removed; its worker was asked to end it; the
# job is unknown or had ended already.
CancelOutcome = Literal["cancelled", "requested", "not-found"]


@dataclass(frozen=True, slots=True)
class JobRef:
    """A reference to an enqueued job.

    Attributes:
        job_id: its id, for ``GET /api/v1/internal/jobs/{job_id}``.
        queue: the queue in which it waits.
        coalesced: an identical job was already waiting, so this call enqueued nothing.
        position: number of jobs in its queue when it was enqueued, including itself, or None if not counted.
        withheld: nothing was enqueued and the job does not exist, because the rollout has not reached the pet.
    """

    job_id: str
    queue: str
    coalesced: bool = False
    position: int | None = None
    withheld: bool = False


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """An attempt of a job that failed and was retried."""

    attempt: int = field(metadata=described("Number of the attempt, from 1."))
    failed_at: datetime
    error: str


@dataclass(frozen=True, slots=True)
class JobStage:
    """The stage that a long job has reached. Jobs that take under a second or so report none."""

    number: int = field(metadata=described("Number of the stage, from 1."))
    total: int = field(metadata=described("Number of stages of the job."))
    activity: str = field(metadata=described("What the job does in this stage, with the number of items."))


@dataclass(frozen=True, slots=True)
class JobStatus:
    """The status of a job."""

    job_id: str
    state: JobState
    queue: str
    actor: str
    reason: str = field(metadata=described("One sentence: why the job waits, what it is doing, or how it ended."))
    attempts: int = field(metadata=described("Number of times that the job was started."))
    pet_id: int | None
    enqueued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    due_at: datetime | None = field(metadata=described("When a delayed or retrying job is due to run."))
    result: Mapping[str, object] | None = field(metadata=described("The result of a job that succeeded."))
    failures: Sequence[FailedAttempt] = field(
        default=(), metadata=described("The attempts that failed and were retried, oldest first.")
    )
    stage: JobStage | None = field(
        default=None, metadata=described("The stage of a running recluster or preview; null for other and short jobs.")
    )


class ReclusterRequests(Protocol):
    """The port through which the service requests reclusters of pets that grew or drifted."""

    def request_recluster(self, pet_id: int, *, reason: str, delay_ms: int) -> None:
        """Request a recluster of the pet in about ``delay_ms``. At most one such job waits per pet."""
        ...


class JobQueue(Protocol):
    """The port through which the HTTP API enqueues jobs and reads their status.

    Every method raises ``errors.InvalidInput`` for an invalid field, :class:`QueueUnavailable` if Redis fails, and its
    subclass :class:`QueueFull` if the queue is full.
    """

    def recluster(self, pet_id: int, *, requested_by: str = ..., reason: str = ...) -> JobRef: ...

    def preview(self, pet_id: int, *, requested_by: str = ..., backend: PreviewBackend | None = ...) -> JobRef:
        """Enqueue the preview of a recluster. The result of its job contains the ``token``.

        Its job ends as ``refused`` if the workers lack the package of ``backend``, or the pet is too large for it.
        """
        ...

    def delete_items(self, pet_id: int, media_ids: Sequence[str], *, requested_by: str = ...) -> JobRef:
        """Enqueue the permanent deletion of items.

        Its job ends as ``refused`` if other jobs wait that would restore or name the items.
        """
        ...

    def correct(self, request: Request[Any]) -> JobRef:
        """Enqueue a correction. Its job ends as ``refused`` if the correction does not fit the pet when it runs."""
        ...

    def ingest_event(self, event: EmbeddingIngested) -> JobRef:
        """Enqueue an “item was embedded” event."""
        ...

    def unfinished(self, pet_id: int) -> Sequence[JobStatus]:
        """Return the tracked jobs of a pet that have not ended, in the order in which they last changed."""
        ...

    def job(self, job_id: str) -> JobStatus | None:
        """Return the status of a job, or None if it was never enqueued or ended more than a day ago."""
        ...


@dataclass(frozen=True, slots=True)
class DeadLetterRef:
    """The queue and id of a dead letter."""

    queue: str
    dead_letter_id: str


@dataclass(frozen=True, slots=True)
class Traces:
    """The data about a pet, or some of its items, that exists outside the pet.

    Attributes:
        n_records: number of job records.
        n_dead_letters: number of dead letters, in all queues.
        n_waiting: number of waiting events and corrections, which would restore the deleted items or refer to them.
        records: the ids of the jobs with records.
        dead_letters: the queue and the id of each dead letter.
        unreadable: dead letters that cannot be read, so that they may belong to the pet; they are never deleted.
    """

    n_records: int
    n_dead_letters: int
    n_waiting: int
    records: tuple[str, ...] = ()
    dead_letters: tuple[DeadLetterRef, ...] = ()
    unreadable: tuple[DeadLetterRef, ...] = ()


class JobTraces(Protocol):
    """The port through which the HTTP API finds and removes job records and dead letters of a pet or its items."""

    def find(self, pet_id: int, media_ids: Collection[str] | None = ...) -> Traces: ...

    def erase(self, pet_id: int, media_ids: Collection[str] | None = ...) -> Traces:
        """Remove the records and dead letters, but not the waiting jobs."""
        ...


class QueueUnavailable(Exception):
    """Raised when Redis did not reply or refused a command for a queue. Retrying is safe.

    Attributes:
        refusal: why Redis refused, and how to fix it, or None if it did not reply.
    """

    def __init__(self, problem: str, *, refusal: RedisRefusal | None = None) -> None:
        super().__init__(problem)
        self.refusal = refusal


class QueueFull(QueueUnavailable):
    """Raised when a queue holds as many jobs as its limit allows. Repeating the call later is safe.

    Attributes:
        queue: its name.
        length: number of waiting and in-flight jobs that it held.
        limit: the maximum number of waiting and in-flight jobs.
        outcome: what happened to the job of the call, e.g. that it was not enqueued.
    """

    hint = "add workers, or raise SPLOOT_MAX_QUEUE_LENGTH of the workers"

    def __init__(self, *, queue: str, length: int, limit: int, outcome: str) -> None:
        self.problem = f"queue {queue} holds {length} jobs, and its limit is {limit}"
        super().__init__(f"{self.problem}; {outcome}; send again later, {self.hint}")
        self.queue, self.length, self.limit, self.outcome = queue, length, limit, outcome

    def __reduce__(self) -> tuple[object, ...]:
        return (_queue_full, (self.queue, self.length, self.limit, self.outcome))


def _queue_full(queue: str, length: int, limit: int, outcome: str) -> QueueFull:
    return QueueFull(queue=queue, length=length, limit=limit, outcome=outcome)
