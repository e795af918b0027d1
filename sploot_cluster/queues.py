"""What people ask of queues: look, plan, act. Values and the protocol; whoever has a queue implements it.

Nothing that changes a queue happens without a plan, and a plan names exactly what it will touch: what was not in it
when it was shown stays as it is. Standard library only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, Protocol

# A hundred years. Longer durations are typing errors, and calendars and Redis overflow on them.
LONGEST_S: Final = 100 * 366 * 86_400

Action = Literal["rescue", "retire-consumer", "pause", "resume", "requeue", "purge"]


@dataclass(frozen=True, slots=True)
class ConsumerStatus:
    """One consumer of a queue.

    Attributes:
        pending: entries in its list.
        heartbeat_age_s: None for one that never sent any, such as one made by hand.
    """

    name: str
    pending: int
    heartbeat_age_s: float | None
    is_alive: bool


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """One queue at one moment.

    Attributes:
        because: one sentence: why its work waits, or that it does not.
        undelivered: jobs that no worker has taken.
        in_flight: jobs in pending lists, as XPENDING counts them.
        in_line: jobs that wait for another one of their ordering key.
        delayed: jobs that are not due, retries included.
        orphaned: delivered jobs in nobody's pending list.
        dead: dead letters.
        overdue: jobs that living workers hold beyond their time limits.
        oldest_age_s: since the oldest job was added; None when there is none.
        oldest_pending_s: idle time of the oldest pending job; None when there is none.
    """

    queue: str
    stream: str
    group: str
    reason: str
    is_paused: bool
    undelivered: int
    in_flight: int
    in_line: int
    delayed: int
    orphaned: int
    dead: int
    overdue: int
    oldest_age_s: float | None
    oldest_pending_s: float | None
    consumers: Sequence[ConsumerStatus]


@dataclass(frozen=True, slots=True)
class PlannedEntry:
    """What a plan touches: an entry as it was seen, or a dead letter, which nobody holds.

    Attributes:
        holder: the consumer that had it; "" for nobody.
        deliveries: how often it had been delivered.
    """

    id: str
    holder: str = ""
    deliveries: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done, and to what exactly.

    Attributes:
        plan_id: what ``apply`` takes.
        effect: one sentence.
        commands: the same in Redis's words; many ids are abbreviated here, never in ``entries``.
        warnings: what whoever says yes should know.
        entries: the frozen set.
        consumer: the one that is retired.
        is_forced: whether it may take work from consumers that live.
    """

    plan_id: str
    action: Action
    queue: str
    effect: str
    commands: Sequence[str]
    made_at: datetime
    entries: Sequence[PlannedEntry] = ()
    warnings: Sequence[str] = ()
    consumer: str | None = None
    is_forced: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.entries and self.action in ("rescue", "requeue", "purge")


@dataclass(frozen=True, slots=True)
class Done:
    """What was done.

    Attributes:
        n_planned: entries in the plan; 0 for a plan about a whole queue.
        n_done: of those, how many were still as they had been seen, and were acted on. The others had moved on.
        is_complete: whether the effect that was planned is there now.
        because: one sentence.
    """

    plan_id: str
    action: Action
    queue: str
    n_planned: int
    n_done: int
    is_complete: bool
    reason: str


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """Who did what to a queue, and when.

    Attributes:
        state: ``begun`` for good: whoever did it died on the way, and nobody knows how far they came.
        note: why, in the operator's words.
        ids: of the entries, the first 100.
        result: of what was done: one sentence, or the error.
    """

    plan_id: str
    at: datetime
    by: str
    via: str
    action: Action
    queue: str
    state: Literal["begun", "done", "failed"]
    n_planned: int
    n_done: int | None
    note: str
    ids: Sequence[str]
    result: str


@dataclass(frozen=True, slots=True)
class DeadLetterView:
    """A dead letter, as it may be shown: embeddings are replaced by their size.

    Attributes:
        field, hint: what is to blame, and what its producer can do, where somebody knew.
        pet_id, message_id: where they can be read.
        deliveries: how often the entry was delivered before it died.
        fields: the entry's own; empty in a listing.
    """

    dead_letter_id: str
    queue: str
    died_at: datetime
    reason: str
    actor: str | None
    pet_id: int | None
    message_id: str | None
    deliveries: int
    field: str | None
    error: str
    hint: str | None
    traceback: str | None = None
    fields: Mapping[str, object] = dataclasses.field(default_factory=dict)


class PlanUnknown(LookupError):
    """Raised when a plan is not kept: it was acted on, is older than an hour, or never was."""

    def __init__(self, plan_id: str) -> None:
        super().__init__(f"there is no plan {plan_id}: it was applied, or is older than an hour; make a new one")
        self.plan_id = plan_id


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Which dead letters are meant; what is None does not matter.

    Attributes:
        error: a part of the error's text.
        since_s: died no longer ago than that.
    """

    reason: str | None = None
    actor: str | None = None
    pet_id: int | None = None
    error: str | None = None
    since_s: float | None = None

    def facts(self) -> Mapping[str, object]:
        """What matters, by name."""
        told = {
            "reason": self.reason,
            "actor": self.actor,
            "pet_id": self.pet_id,
            "error": self.error,
            "since_s": self.since_s,
        }
        return {name: value for name, value in told.items() if value is not None}


class QueueOperations(Protocol):
    """What the HTTP API does with queues.

    Every method raises ``errors.InvalidInput`` for a field that cannot be used and ``jobs.QueueUnavailable`` when Redis
    is away. Plans change nothing.
    """

    def queues(self) -> Sequence[QueueStatus]: ...

    def dead_letters(self, queue: str, wanted: DeadLetterFilter, *, limit: int) -> Sequence[DeadLetterView]:
        """Those that match, newest first, without their fields and tracebacks."""
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
        """``dead_letter_ids``, or with ``matching`` all dead letters that match; not both."""
        ...

    def plan_purge(
        self, queue: str, *, dead_letter_ids: Sequence[str] = ..., matching: DeadLetterFilter | None = ...
    ) -> Plan:
        """As :meth:`plan_requeue`; what it removes is gone for ever."""
        ...

    def plan_pause(self, queue: str) -> Plan: ...

    def plan_resume(self, queue: str) -> Plan: ...

    def keep(self, plan: Plan) -> None:
        """Keep a plan for an hour, for :meth:`take`."""
        ...

    def take(self, plan_id: str) -> Plan:
        """The plan that was kept. Once: whoever takes it is the one to act.

        Raises:
            PlanUnknown: it is not kept, or taken.
        """
        ...

    def act(self, plan: Plan, *, by: str, via: str, note: str = ...) -> Done:
        """Do what the plan says to what is still as it was seen, and write the audit record."""
        ...

    def audit(self, limit: int = ...) -> Sequence[AuditRecord]:
        """The newest first."""
        ...
