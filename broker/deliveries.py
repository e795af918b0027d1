"""What this process holds of one queue: from delivery until Redis has confirmed how it ended.

The table belongs to the process and not to a consumer object: the Worker makes a new consumer after every error, while
messages of the old one still run.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import dramatiq
from dramatiq.broker import MessageProxy

from .options import ordering_key_of, unique_key_of

# How long a read is put off to ask for more at once. Less than the round trip it saves, where jobs are short.
GATHER_S = 0.001
NOBODY_WAITS = -1


@dataclass(frozen=True, slots=True)
class PendingRetry:
    """A retry that Redis has not taken yet: the message must not be acknowledged before it has."""

    payload: bytes
    delay_ms: int
    name: str
    lock_ms: int


@dataclass(frozen=True, slots=True)
class Follower:
    """What a finished message enqueues, as the next of a pipeline, and Redis has not taken yet."""

    message: dramatiq.Message[Any]
    delay: int | None


@dataclass(frozen=True, slots=True)
class Unhandled:
    """Why a message that no middleware failed, retried or skipped is not acknowledged, but becomes a dead letter.

    Attributes:
        problem: what happened to it.
        hint: what to do about it.
    """

    problem: str
    hint: str


def unhandled_failure(*raised: str) -> Unhandled:
    """Return why a message is one that failed and that no middleware failed, tried again or skipped.

    Args:
        raised: which middleware raised what, where one did.
    """
    what = "; ".join(("it failed, and no middleware failed it or tried it again", *raised))
    if raised:
        return Unhandled(what, "correct what made the middleware raise, then requeue this dead letter")
    return Unhandled(what, "add dramatiq.middleware.Retries to the broker, then requeue this dead letter")


def not_followed(problem: str) -> Unhandled:
    """Return why a message is one that ended, and that was not followed by what its end asked for."""
    return Unhandled(
        f"it ended, and what was to follow it was not enqueued: {problem}",
        "correct what is to follow it, then requeue this dead letter; the job runs again",
    )


class Delivery(MessageProxy):
    """A message as this process received it.

    Attributes:
        entry_id: of the stream entry.
        queue: the queue it was read from.
        consumer_name: who it was delivered to; together with ``deliveries`` it proves ownership.
        deliveries: how often it was delivered, this time included. Handed-back messages do not count.
        enqueued_at_ms: the earlier of the entry's id and the message's own timestamp: of a message that was delayed or
            retried, when it was first enqueued. A flat event has only the former.
        charges: how often it was running when its process died, the first crash not counted; see take.lua.
        is_doomed: its worker processes died too often; it is not run, but becomes a dead letter.
        ordering_key: None where it has none.
        is_alone: nothing else runs in this process, so that a crash is its doing; see ``Isolation``.
        is_lost: another process holds it now; whatever happens to it here changes nothing.
        retry_asked: whether a middleware asked for another try, with the delay ``retry_delay``.
        is_sent_again: whether a middleware enqueued it again as a message of its own, under the same id.
        unhandled: why it must not be acknowledged, though no middleware failed it; see ``Unhandled``.
        is_noted: whether Redis still has notes of it as the waiting message of its unique key.
        coalesced: the newest message that was coalesced onto it; it follows when this one is skipped.
        pid: of the process that received it; a job may fork.
        begun_at: when it began to run, on the monotonic clock; None before.
        is_ended: it has run, and how it ended is being written.
    """

    def __init__(
        self,
        message: dramatiq.Message[Any],
        *,
        entry_id: str,
        queue: str,
        consumer_name: str,
        deliveries: int,
        charges: int = 0,
        is_doomed: bool = False,
    ) -> None:
        super().__init__(message)
        self.entry_id = entry_id
        self.queue = queue
        self.consumer_name = consumer_name
        self.deliveries = deliveries
        self.charges = charges
        self.is_doomed = is_doomed
        self.is_alone = False
        self.is_lost = False
        self.pid = os.getpid()
        self.begun_at: float | None = None
        self.is_ended = False
        self.is_settled = False
        self.pending_retry: PendingRetry | None = None
        self.pending_followers: list[Follower] = []
        self.retry_asked = False
        self.retry_delay: Any = None
        self.is_sent_again = False
        self.unhandled: Unhandled | None = None
        self.is_noted = unique_key_of(message.options) is not None
        self.coalesced: bytes | None = None
        self._retries_when_delivered = message.options.get("retries", 0)
        self.ordering_key = ordering_key_of(message.options)

    @property
    def enqueued_at_ms(self) -> int:
        return min(int(self.entry_id.partition("-")[0]), self.message_timestamp)

    @property
    def is_being_retried(self) -> bool:
        """Whether the Retries middleware has counted a failure since the delivery."""
        return not self.is_settled and self._message.options.get("retries", 0) != self._retries_when_delivered

    def name_of_follower(self, message: dramatiq.Message[Any]) -> str:
        """Return what is the same when this message, run again, enqueues that one again."""
        return f"{self.entry_id}/{message.message_id}"

    @property
    def is_handled(self) -> bool:
        """Whether its failure was acted upon: it was failed, is tried again, or was enqueued again."""
        return (
            self.failed or self.is_settled or self.is_sent_again or self.retry_asked or self.pending_retry is not None
        )


class Deliveries:
    """The deliveries of one queue. Thread-safe.

    ``held``: given out to the Worker or about to be, read ahead included. ``settling``: done, and not yet written. Both
    are in this consumer's pending list.
    """

    def __init__(self) -> None:
        self._held: dict[str, Delivery] = {}
        self._settling: dict[str, Delivery] = {}
        # entered as such where nobody waits for anything: a Condition is entered through Python
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        # At how many held ones somebody wants to be woken. A wake-up costs more than all else that an ack does.
        self._awaited_held = NOBODY_WAITS
        self._n_await_writing = 0

    def add(self, deliveries: Iterable[Delivery]) -> list[Delivery]:
        """Hold them; those that are. Entries held already are not: a group made again delivers everything again."""
        added = []
        with self._lock:
            for delivery in deliveries:
                entry_id = delivery.entry_id
                if entry_id not in self._held and entry_id not in self._settling:
                    self._held[entry_id] = delivery
                    added.append(delivery)
        return added

    def begin_settling(self, delivery: Delivery) -> None:
        """It is done; its place is free for another."""
        entry_id = delivery.entry_id
        with self._lock:
            if self._held.get(entry_id) is delivery:
                del self._held[entry_id]
            self._settling[entry_id] = delivery
            if len(self._held) <= self._awaited_held:
                self._changed.notify_all()

    def forget(self, deliveries: Iterable[Delivery]) -> None:
        """They are no longer ours: settled, handed back or lost."""
        with self._lock:
            for delivery in deliveries:
                for table in (self._settling, self._held):
                    if table.get(delivery.entry_id) is delivery:
                        del table[delivery.entry_id]
            if len(self._held) <= self._awaited_held or self._n_await_writing:
                self._changed.notify_all()

    def wait_for_room(self, prefetch: int, timeout_s: float, *, n_ahead: int = 0) -> int:
        """How many more the Worker may have; 0 after ``timeout_s`` without room.

        Once there is some, waits a moment for a quarter of the prefetch: else each message costs a round trip, or a
        change of threads.

        Args:
            n_ahead: how many of those that are held the Worker does not have yet.
        """
        limit = prefetch + n_ahead
        enough = max(1, prefetch // 4)
        # what waits to be written is bounded too: with a server that takes no writes nobody should read on
        most_settling = 1_000 + limit

        def room() -> int:
            return 0 if len(self._settling) > most_settling else limit - len(self._held)

        with self._lock:
            try:
                self._awaited_held = limit - 1
                if self._changed.wait_for(lambda: room() >= 1, timeout_s):
                    self._awaited_held = limit - enough
                    self._changed.wait_for(lambda: room() >= enough, GATHER_S)
            finally:
                self._awaited_held = NOBODY_WAITS
            return max(0, room())

    def wait_until_written(self, delivery: Delivery, timeout_s: float) -> None:
        """Wait until Redis has confirmed how it ended, or for ``timeout_s``."""
        with self._lock:
            self._n_await_writing += 1
            try:
                self._changed.wait_for(lambda: self._settling.get(delivery.entry_id) is not delivery, timeout_s)
            finally:
                self._n_await_writing -= 1

    def wake(self) -> None:
        """Have ``wait_for_room`` look again."""
        with self._lock:
            self._changed.notify_all()

    def ids(self) -> list[str]:
        """The entries that are held or settling."""
        with self._lock:
            return [*self._held, *self._settling]

    @property
    def n_held(self) -> int:
        with self._lock:
            return len(self._held)

    def __len__(self) -> int:
        with self._lock:
            return len(self._held) + len(self._settling)
