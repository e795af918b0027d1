"""What the domain asks of whatever runs its work later. Standard library only: the thin client implements this.

``ClusterService`` needs :class:`ReclusterRequests`; the HTTP API needs :class:`JobQueue`. Both are handed in.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from sploot_cluster.refusals import RedisRefusal

JobState = Literal["queued", "delayed", "running", "retrying", "succeeded", "dead"]


@dataclass(frozen=True, slots=True)
class JobRef:
    """A job that will run.

    Attributes:
        job_id: its id, for ``GET /api/v1/internal/jobs/{job_id}``.
        queue: the queue it waits in.
        coalesced: it was waiting already, and this call added nothing.
        position: jobs that were waiting in its queue when it was enqueued, itself included; None where nobody counted.
        withheld: the rollout has not reached the pet: nothing was enqueued, and no job of this id will run.
    """

    job_id: str
    queue: str
    coalesced: bool = False
    position: int | None = None
    withheld: bool = False


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What is known of a job.

    Attributes:
        because: one sentence: why it waits, what it is doing, or how it ended.
        attempts: how often it was started.
        result: what it answered, for a job that succeeded; JSON values only.
    """

    job_id: str
    state: JobState
    queue: str
    actor: str
    reason: str
    attempts: int
    pet_id: int | None = None
    enqueued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    due_at: datetime | None = None
    result: Mapping[str, object] | None = None


class ReclusterRequests(Protocol):
    """Where the service asks for a recluster of a pet that grew or drifted."""

    def request_recluster(self, pet_id: int, *, reason: str, delay_ms: int) -> None:
        """Have the pet reclustered in about ``delay_ms``; at most one such job waits per pet."""
        ...


class JobQueue(Protocol):
    """What the HTTP API enqueues into.

    Every method raises ``errors.InvalidInput`` for a bad field and :class:`QueueUnavailable` when Redis is away.
    """

    def recluster(self, pet_id: int, *, requested_by: str = ..., reason: str = ...) -> JobRef: ...

    def preview(self, pet_id: int, *, requested_by: str = ...) -> JobRef:
        """Have computed what a recluster would do; the result of the job has its ``token``."""
        ...

    def merge(
        self,
        pet_id: int,
        cluster_ids: Sequence[int],
        into: int | None = ...,
        *,
        requested_by: str = ...,
        expected_revision: int | None = ...,
    ) -> JobRef:
        """Corrections with ``expected_revision`` are refused when they run if media were moved since."""
        ...

    def split(
        self,
        pet_id: int,
        cluster_id: int,
        media_ids: Sequence[str],
        *,
        requested_by: str = ...,
        expected_revision: int | None = ...,
    ) -> JobRef: ...

    def exclude(
        self,
        pet_id: int,
        cluster_id: int,
        media_ids: Sequence[str],
        *,
        requested_by: str = ...,
        expected_revision: int | None = ...,
    ) -> JobRef: ...

    def dismiss(
        self, pet_id: int, media_ids: Sequence[str], *, requested_by: str = ..., expected_revision: int | None = ...
    ) -> JobRef: ...

    def undo(
        self, pet_id: int, revision: int, *, requested_by: str = ..., expected_revision: int | None = ...
    ) -> JobRef: ...

    def restore(
        self, pet_id: int, revision: int, *, requested_by: str = ..., expected_revision: int | None = ...
    ) -> JobRef: ...

    def ingest(
        self,
        *,
        pet_id: int,
        media_id: str,
        model: str,
        embedding: object,
        encoding: str | None = ...,
        event_id: str | None = ...,
        occurred_at: str | None = ...,
    ) -> JobRef:
        """``embedding``: a sequence of numbers, a float32 buffer, or base64 text (``encoding="base64-f32le"``)."""
        ...

    def job(self, job_id: str) -> JobStatus | None:
        """None for an id that nobody enqueued, or that ended more than a day ago."""
        ...


@dataclass(frozen=True, slots=True)
class DeadLetterRef:
    """Where a dead letter is."""

    queue: str
    dead_letter_id: str


@dataclass(frozen=True, slots=True)
class Traces:
    """What travelled about a pet or some of its media, besides the pet itself.

    Attributes:
        n_records: of jobs.
        n_dead_letters: of any queue.
        n_waiting: events and corrections that have not been worked on yet; they would bring media back, or name them.
        records: the ids of these jobs.
        dead_letters: queue and id of each of these.
        unreadable: dead letters of which cannot be read what they are about; they are left alone.
    """

    n_records: int
    n_dead_letters: int
    n_waiting: int
    records: tuple[str, ...] = ()
    dead_letters: tuple[DeadLetterRef, ...] = ()
    unreadable: tuple[DeadLetterRef, ...] = ()


class JobTraces(Protocol):
    """Where the HTTP API finds and removes what queues still say of a pet, or of some of its media."""

    def find(self, pet_id: int, media_ids: Collection[str] | None = ...) -> Traces: ...

    def erase(self, pet_id: int, media_ids: Collection[str] | None = ...) -> Traces:
        """Remove it, but for what waits."""
        ...


class QueueUnavailable(Exception):
    """Raised when a queue could not be used because Redis did not answer, or refused; calling again is safe.

    Attributes:
        refusal: why Redis refused, and how to fix it; None where it did not answer.
    """

    def __init__(self, problem: str, *, refusal: RedisRefusal | None = None) -> None:
        super().__init__(problem)
        self.refusal = refusal
