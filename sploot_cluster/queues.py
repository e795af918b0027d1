"""The protocol of operator actions on queues, and the types of its values.

Every change to a queue needs a plan. A plan lists exactly the entries that it will touch, and applying it touches no
others. Only the standard library is used here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Generic, Literal, Protocol, TypeVar

from sploot_cluster.answer_fields import described
from sploot_cluster.errors import InvalidInput

Record = TypeVar("Record")

# The longest accepted duration: a hundred years. Longer durations are typing errors, and would overflow in date
# arithmetic and in Redis.
LONGEST_S: Final = 100 * 366 * 86_400

Action = Literal["rescue", "retire-consumer", "pause", "resume", "requeue", "purge", "cancel", "set-shards"]


@dataclass(frozen=True, slots=True)
class ConsumerStatus:
    """A consumer of a queue."""

    name: str
    pending: int = dataclasses.field(metadata=described("Number of entries in its pending list."))
    heartbeat_age_s: float | None = dataclasses.field(
        metadata=described("null if the consumer never sent a heartbeat, e.g. because it was created manually.")
    )
    is_alive: bool


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """The state of a queue at one moment."""

    queue: str
    stream: str
    group: str
    reason: str = dataclasses.field(metadata=described("One sentence: why jobs of the queue wait, or that none does."))
    is_paused: bool
    undelivered: int = dataclasses.field(metadata=described("Jobs that no worker has taken yet."))
    in_flight: int = dataclasses.field(metadata=described("Jobs in pending lists, as XPENDING counts them."))
    delayed: int = dataclasses.field(metadata=described("Jobs that are not due yet, including retries."))
    orphaned: int = dataclasses.field(metadata=described("Delivered jobs that are in no pending list."))
    dead: int = dataclasses.field(metadata=described("Dead letters."))
    overdue: int = dataclasses.field(metadata=described("Jobs that live workers hold beyond their time limits."))
    stale_locks: int = dataclasses.field(
        metadata=described("Unique keys whose waiting job was removed by hand; the next job with the key takes it.")
    )
    oldest_age_s: float | None = dataclasses.field(metadata=described("Age of the oldest job; null if there is none."))
    oldest_pending_s: float | None = dataclasses.field(
        metadata=described("Idle time of the oldest pending job; null if there is none.")
    )
    last_entry_id: str = dataclasses.field(
        metadata=described("Id of the entry that was added last, whether or not it still exists; 0-0 if none was.")
    )
    consumers: Sequence[ConsumerStatus]


@dataclass(frozen=True, slots=True)
class PlannedEntry:
    """An entry, dead letter or job that a plan touches, as it was when the plan was made.

    A dead letter has no holder. A job to cancel has its job id as ``id``.
    """

    id: str
    holder: str = dataclasses.field(default="", metadata=described("The consumer that held it; empty for none."))
    deliveries: int = dataclasses.field(default=0, metadata=described("Its delivery count."))
    entry_id: str = dataclasses.field(
        default="", metadata=described("The entry of a job to cancel; empty for a delayed job.")
    )
    shard: str = dataclasses.field(
        default="", metadata=described("The shard that holds it; empty if the queue is not divided.")
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan: an action and exactly the entries that it will touch."""

    plan_id: str = dataclasses.field(metadata=described("The id with which to apply the plan."))
    action: Action
    queue: str
    effect: str = dataclasses.field(metadata=described("One sentence on what the plan will do."))
    commands: Sequence[str] = dataclasses.field(
        metadata=described(
            "The equivalent Redis commands; long lists of ids are abbreviated here, but not in `entries`."
        )
    )
    made_at: datetime
    entries: Sequence[PlannedEntry] = dataclasses.field(default=(), metadata=described("The fixed set of entries."))
    warnings: Sequence[str] = dataclasses.field(default=(), metadata=described("What to know before confirming."))
    consumer: str | None = dataclasses.field(
        default=None, metadata=described("The consumer to remove, for `retire-consumer`.")
    )
    is_forced: bool = dataclasses.field(
        default=False, metadata=described("Whether the plan may take jobs from live consumers.")
    )
    n_shards: int = dataclasses.field(
        default=0, metadata=described("The number of shards, for `set-shards`; otherwise 0.")
    )

    @property
    def is_empty(self) -> bool:
        """Whether the plan would do nothing."""
        return not self.entries and self.action in ("rescue", "requeue", "purge", "cancel")


@dataclass(frozen=True, slots=True)
class Done:
    """The result of applying a plan."""

    plan_id: str
    action: Action
    queue: str
    n_planned: int = dataclasses.field(
        metadata=described("Number of entries in the plan; 0 for a plan about a whole queue.")
    )
    n_done: int = dataclasses.field(
        metadata=described("Number of entries that were acted on. The others had changed since the plan was made.")
    )
    is_complete: bool = dataclasses.field(metadata=described("Whether the planned effect was achieved in full."))
    reason: str = dataclasses.field(metadata=described("One sentence."))


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """A record in the audit log: an action on a queue, with its operator and time."""

    plan_id: str
    at: datetime
    by: str
    via: str
    action: Action
    queue: str
    state: Literal["begun", "done", "failed"] = dataclasses.field(
        metadata=described("If it stays `begun`, the action was interrupted and may be partly done.")
    )
    n_planned: int
    n_done: int | None
    note: str = dataclasses.field(metadata=described("The reason that the operator gave."))
    ids: Sequence[str] = dataclasses.field(metadata=described("Ids of the first 100 entries."))
    result: str = dataclasses.field(metadata=described("One sentence on what was done, or the error."))


@dataclass(frozen=True, slots=True)
class DeadLetterView:
    """A dead letter in a form safe to show: embeddings are replaced by their size."""

    dead_letter_id: str
    queue: str
    died_at: datetime
    reason: str
    actor: str | None
    pet_id: int | None = dataclasses.field(metadata=described("null if it cannot be read from the entry."))
    message_id: str | None = dataclasses.field(metadata=described("null if it cannot be read from the entry."))
    deliveries: int = dataclasses.field(metadata=described("The delivery count of the entry."))
    field: str | None = dataclasses.field(metadata=described("The invalid field, if known."))
    error: str
    hint: str | None = dataclasses.field(metadata=described("How its producer can fix it, if known."))
    traceback: str | None = None
    fields: Mapping[str, object] = dataclasses.field(
        default_factory=dict, metadata=described("The fields of the entry; empty in a listing.")
    )


@dataclass(frozen=True, slots=True)
class Page(Generic[Record]):
    """A page of a list, newest first.

    Attributes:
        cursor: the cursor of the next page, or None on the last page.
    """

    records: Sequence[Record]
    cursor: str | None = None


# The states of unfinished jobs, by which they are listed.
JobsState = Literal["waiting", "running", "delayed"]


@dataclass(frozen=True, slots=True)
class JobProgress:
    """The last progress report of a running job."""

    done: float = dataclasses.field(metadata=described("Amount of work done, in a unit that the job chooses."))
    total: float | None = dataclasses.field(metadata=described("Total amount of work; null if unknown."))
    note: str | None
    age_s: float = dataclasses.field(metadata=described("Time since the report."))


@dataclass(frozen=True, slots=True)
class QueueJob:
    """An unfinished job as its queue holds it. Facts that its entry does not show are null."""

    queue: str
    state: Literal["waiting", "running", "delayed", "retrying"]
    job_id: str | None
    entry_id: str | None = dataclasses.field(metadata=described("null for a delayed job, which has no entry yet."))
    actor: str | None
    pet_id: int | None
    media_id: str | None
    added_at: datetime | None = dataclasses.field(
        metadata=described("When its entry was added; for a retried job, when its last attempt was due.")
    )
    started_at: datetime | None = dataclasses.field(
        default=None, metadata=described("When a worker received it; the worker may still hold it in its buffer.")
    )
    due_at: datetime | None = dataclasses.field(default=None, metadata=described("When a delayed job is due."))
    worker: str | None = dataclasses.field(default=None, metadata=described("The consumer that holds it."))
    is_worker_alive: bool | None = None
    deliveries: int = dataclasses.field(default=0, metadata=described("Its delivery count."))
    attempts: int = dataclasses.field(default=0, metadata=described("Failed attempts of a retrying job."))
    error: str | None = dataclasses.field(
        default=None, metadata=described("The error of the last attempt of a retrying job.")
    )


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker process, with the jobs that it holds in all queues."""

    name: str = dataclasses.field(metadata=described("Its consumer name, which begins with host and process id."))
    is_alive: bool
    heartbeat_age_s: float | None = dataclasses.field(metadata=described("null if it never sent a heartbeat."))
    queues: Sequence[str] = dataclasses.field(metadata=described("The queues that it takes jobs from."))
    n_jobs: int = dataclasses.field(
        metadata=described("Number of jobs that the worker holds, including those in its buffer.")
    )
    jobs: Sequence[HeldJob] = dataclasses.field(
        metadata=described("The oldest of these jobs; empty for an idle worker.")
    )


@dataclass(frozen=True, slots=True)
class HeldJob:
    """A job that a worker holds."""

    job: QueueJob
    progress: JobProgress | None = dataclasses.field(
        default=None, metadata=described("null if the job has run for less than five seconds or reports no progress.")
    )


@dataclass(frozen=True, slots=True)
class PeriodicJob:
    """A job that the scheduler sends periodically, with its last run."""

    actor: str
    queue: str
    every_s: int = dataclasses.field(metadata=described("Time between two runs."))
    last_sent_at: datetime | None = dataclasses.field(
        metadata=described("When the scheduler last sent the job; null if it never did.")
    )
    next_at: datetime | None = dataclasses.field(
        metadata=described("When the job is due next; null if the scheduler was silent for more than two minutes.")
    )
    last_run_at: datetime | None = dataclasses.field(metadata=described("When a worker began its last run."))
    outcome: Literal["succeeded", "failed"] | None = dataclasses.field(metadata=described("Outcome of the last run."))
    duration_s: float | None = dataclasses.field(metadata=described("Duration of the last run."))
    error: str | None = dataclasses.field(metadata=described("The error of the last run, if it failed."))


@dataclass(frozen=True, slots=True)
class DeadLetterGroup:
    """Dead letters of a queue with the same reason, actor, kind of error and field."""

    queue: str
    n: int
    reason: str
    actor: str | None
    error: str = dataclasses.field(metadata=described("The class of the exception, or the reason if there was none."))
    field: str | None
    newest: datetime
    oldest: datetime
    sample_id: str = dataclasses.field(metadata=described("The id of one of these dead letters."))


@dataclass(frozen=True, slots=True)
class QueueHistory:
    """The activity of a queue. Each list has one value per step of the history."""

    queue: str
    done: Sequence[int] = dataclasses.field(metadata=described("Attempts that succeeded."))
    failed: Sequence[int] = dataclasses.field(metadata=described("Attempts that failed, retried or not."))
    dead: Sequence[int] = dataclasses.field(metadata=described("New dead letters."))
    waiting: Sequence[int | None] = dataclasses.field(
        metadata=described("The largest number of jobs that no worker had taken; null if it was not sampled.")
    )
    oldest_s: Sequence[float | None] = dataclasses.field(
        metadata=described("The highest age of the oldest job; null if it was not sampled.")
    )
    p50_s: Sequence[float | None] = dataclasses.field(
        metadata=described("Median duration of attempts, from a histogram; null without attempts.")
    )
    p95_s: Sequence[float | None] = dataclasses.field(metadata=described("The duration that 95 % did not exceed."))


@dataclass(frozen=True, slots=True)
class History:
    """The activity of the queues in the last 24 hours."""

    step_s: int = dataclasses.field(metadata=described("Length of a step, in seconds."))
    times: Sequence[int] = dataclasses.field(
        metadata=described("Beginning of each step, in seconds since the epoch; the last step is not over.")
    )
    starts: Sequence[int] = dataclasses.field(metadata=described("Worker processes that started."))
    queues: Sequence[QueueHistory]


@dataclass(frozen=True, slots=True)
class Found:
    """The results of a search: unfinished jobs, and dead letters, newest first."""

    jobs: Sequence[QueueJob] = ()
    dead_letters: Sequence[DeadLetterView] = ()
    is_complete: bool = dataclasses.field(
        default=True, metadata=described("Whether everything was searched, and not only as much as a search may read.")
    )


@dataclass(frozen=True, slots=True)
class CarefulRequeue:
    """The rate and limits of a canary, which requeues one dead letter first and, if it succeeds, the rest.

    Attributes:
        per_s: number of the remaining dead letters to requeue per second.
        wait_s: maximum time to wait for the first job to end.
        stop_after: number of jobs that fail again before the canary stops.
    """

    per_s: float = 10.0
    wait_s: float = 60.0
    stop_after: int = 3


@dataclass(frozen=True, slots=True)
class CanaryRun:
    """A canary that a server runs: a careful requeue of the dead letters of a plan."""

    plan_id: str
    queue: str
    state: Literal["running", "succeeded", "stopped", "interrupted"] = dataclasses.field(
        metadata=described(
            "`stopped`: some failed again, or an operator stopped it. `interrupted`: its server ended; what it did not "
            "requeue is still a dead letter."
        )
    )
    by: str
    per_s: float = dataclasses.field(metadata=described("Number of dead letters requeued per second, after the first."))
    n_planned: int
    n_requeued: int
    n_died: int = dataclasses.field(metadata=described("Number of requeued jobs that failed again."))
    reason: str = dataclasses.field(metadata=described("One sentence on the canary's result; empty while it runs."))
    started_at: datetime
    changed_at: datetime


class UnknownConsumer(InvalidInput):
    """Raised when a queue has no consumer of this name."""

    def __init__(self, queue: str, consumer: str, hint: str) -> None:
        super().__init__("consumer", f"{consumer} is not a consumer of {queue}", hint)
        self.queue, self.consumer = queue, consumer


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """A filter for dead letters. Attributes that are None match all.

    Attributes:
        error: text that the error contains.
        since_s: matches messages that became dead letters at most this many seconds ago.
    """

    reason: str | None = None
    actor: str | None = None
    pet_id: int | None = None
    error: str | None = None
    since_s: float | None = None

    def facts(self) -> Mapping[str, object]:
        """Return the attributes that are set, by name."""
        attributes = {
            "reason": self.reason,
            "actor": self.actor,
            "pet_id": self.pet_id,
            "error": self.error,
            "since_s": self.since_s,
        }
        return {name: value for name, value in attributes.items() if value is not None}


class QueueOperations(Protocol):
    """Operator actions on queues, as the HTTP API calls them.

    Every method raises ``errors.InvalidInput`` for an invalid field and ``jobs.QueueUnavailable`` if Redis fails.
    Making a plan changes nothing.
    """

    def queues(self) -> Sequence[QueueStatus]: ...

    @property
    def names(self) -> Sequence[str]:
        """The names of all queues."""
        ...

    def dead_letters(
        self, queue: str, wanted: DeadLetterFilter, *, limit: int, cursor: str | None = ...
    ) -> Page[DeadLetterView]:
        """Return dead letters that match, without their fields and tracebacks.

        A call examines a limited number of dead letters, so a page may have fewer than ``limit`` although more follow.
        """
        ...

    def jobs(self, queue: str, state: JobsState, *, limit: int, cursor: str | None = ...) -> Page[QueueJob]:
        """Return unfinished jobs: waiting ones in delivery order, running ones oldest first, delayed ones by time."""
        ...

    def workers(self) -> Sequence[Worker]:
        """Return the living worker processes, then the dead ones that still hold jobs."""
        ...

    def periodic_jobs(self) -> Sequence[PeriodicJob]:
        """Return the jobs that the scheduler sends, with their last and next runs."""
        ...

    def dead_letter_groups(self, queue: str, wanted: DeadLetterFilter) -> Sequence[DeadLetterGroup]:
        """Group the dead letters that match by kind of failure, largest group first."""
        ...

    def history(self) -> History:
        """Return the activity of the queues in the last 24 hours."""
        ...

    def search(self, text: str, *, limit: int) -> Found:
        """Search for jobs and dead letters by a pet, an item, an actor, an id, or part of an error."""
        ...

    def dead_letter(self, queue: str, dead_letter_id: str) -> DeadLetterView | None: ...

    def plan_rescue(
        self,
        queue: str,
        *,
        entry_ids: Sequence[str] = ...,
        consumer: str | None = ...,
        unowned: bool = ...,
        idle_s: float | None = ...,
        even_if_alive: bool = ...,
    ) -> Plan: ...

    def plan_retire(self, queue: str, consumer: str, *, even_if_alive: bool = ...) -> Plan: ...

    def plan_requeue(
        self, queue: str, *, dead_letter_ids: Sequence[str] = ..., matching: DeadLetterFilter | None = ...
    ) -> Plan:
        """Return a plan to requeue either ``dead_letter_ids`` or all dead letters that match ``matching``."""
        ...

    def plan_purge(
        self, queue: str, *, dead_letter_ids: Sequence[str] = ..., matching: DeadLetterFilter | None = ...
    ) -> Plan:
        """Return a plan to delete dead letters permanently. Takes the arguments of :meth:`plan_requeue`."""
        ...

    def plan_cancel(
        self, queue: str, *, job_ids: Sequence[str] = ..., actor: str | None = ..., pet_id: int | None = ...
    ) -> Plan:
        """Return a plan to cancel unfinished jobs: ``job_ids``, or all jobs of an actor, of a pet, or of both."""
        ...

    def plan_pause(self, queue: str) -> Plan: ...

    def plan_resume(self, queue: str) -> Plan: ...

    def keep(self, plan: Plan) -> None:
        """Store a plan for an hour, so that :meth:`take` can return it."""
        ...

    def take(self, plan_id: str) -> Plan:
        """Remove a stored plan and return it, so that only one caller can apply it.

        Raises:
            PlanUnknown: the plan does not exist, or was already taken.
        """
        ...

    def act(self, plan: Plan, *, by: str, via: str, note: str = ...) -> Done:
        """Apply the plan to the entries that have not changed since it was made, and write the audit record."""
        ...

    def start_canary(self, plan: Plan, how: CarefulRequeue, *, by: str, via: str, note: str = ...) -> CanaryRun:
        """Start to requeue the dead letters of a plan carefully, in the background; see :meth:`canaries`."""
        ...

    def canaries(self) -> Sequence[CanaryRun]:
        """Return the canaries that any server started in the last day, newest first."""
        ...

    def stop_canary(self, plan_id: str) -> CanaryRun | None:
        """Ask a canary to stop before its next step. Return the canary, or None if it is unknown."""
        ...

    def audit(self, limit: int = ..., *, cursor: str | None = ...) -> Page[AuditRecord]:
        """Return audit records, one per action."""
        ...
