"""The messages of one queue that this process holds, from delivery until Redis has confirmed their outcome.

``Deliveries`` belongs to the process and not to a consumer, because the Worker creates a new consumer after every
error, while messages of the old one are still running.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, Self, TypeVar, overload

import dramatiq
from dramatiq.broker import MessageProxy

from .errors import MessageCancelled
from .key_limits import KeyLimits, key_limits_of
from .options import expires_at_ms_of, unique_key_of

T = TypeVar("T")

# How long a read waits for room for more messages, so that fewer reads are needed. This is shorter than a read's round
# trip.
GATHER_S = 0.001
NOBODY_WAITS = -(1 << 30)


@dataclass(frozen=True, slots=True)
class PendingRetry:
    """A retry that has not been written yet. Until it is written, the failed message must not be acknowledged.

    Attributes:
        message, delay: the arguments of the middleware's ``after_enqueue``.
    """

    message: dramatiq.Message[Any]
    delay: int | None
    payload: bytes
    delay_ms: int
    name: str
    lock_ms: int


@dataclass(frozen=True, slots=True)
class Follower:
    """A follow-up message, such as the next stage of a pipeline, that has not been enqueued yet.

    Attributes:
        refused_by: the error with which it was refused, or None if only the connection failed. A refused message
            becomes a dead letter. In both cases, ``before_enqueue`` has been called.
    """

    message: dramatiq.Message[Any]
    delay: int | None
    refused_by: Exception | None = None


@dataclass(frozen=True, slots=True)
class SharedFollower:
    """A follow-up message, such as a group's callback, that several messages may enqueue but that is added only once.

    Attributes:
        name: the enqueue id that all attempts share.
        remember_ms: how long Redis remembers this id.
    """

    name: str
    remember_ms: int


@dataclass(frozen=True, slots=True)
class Unhandled:
    """The reason why a message becomes a dead letter although no middleware rejected it.

    Attributes:
        problem: a description of the failure.
        hint: how to fix it.
        reason: the dead letter's one-word reason.
    """

    problem: str
    hint: str
    reason: str = "unhandled"


def unhandled_failure(*raised: str) -> Unhandled:
    """Return the dead-letter reason of a failed message that no middleware rejected, retried or skipped.

    Args:
        raised: a text for each middleware that raised, with its name and the exception.
    """
    problem = "; ".join(("the job failed, and no middleware rejected or retried it", *raised))
    if raised:
        return Unhandled(problem, "fix the middleware that raised, then requeue this dead letter")
    return Unhandled(problem, "add dramatiq.middleware.Retries to the broker, then requeue this dead letter")


def held_too_long(hold_ms: float) -> Unhandled:
    """Return the dead-letter reason of a failed message whose retries held its ordering key for the maximum time."""
    return Unhandled(
        f"its retries have held its ordering key for {hold_ms / 1000:g} s, while the later messages of the key waited",
        "fix the cause, then requeue this dead letter: it runs after the messages of its key that wait then",
        reason="held-too-long",
    )


def not_followed(problem: str) -> Unhandled:
    """Return the dead-letter reason of a finished message whose follow-up message was not enqueued."""
    return Unhandled(
        f"the job ended, but its follow-up message was not enqueued: {problem}",
        "fix the follow-up message, then requeue this dead letter; the job runs again",
    )


class Uncommon(Generic[T]):
    """A descriptor for a ``Delivery`` attribute that rarely differs from its default. Thread-safe.

    Reading an attribute of a ``MessageProxy`` takes several times as long as reading one of another object, because the
    class defines ``__getattr__``. So all changed attributes are kept in ``Delivery.uncommon``. While it is None, no
    attribute with this descriptor needs to be read.
    """

    __slots__ = ("_default", "_name")

    def __init__(self, default: T) -> None:
        self._default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, delivery: None, owner: type) -> Self: ...
    @overload
    def __get__(self, delivery: Delivery, owner: type) -> T: ...
    def __get__(self, delivery: Delivery | None, owner: type) -> Self | T:
        if delivery is None:
            return self
        changed = delivery.uncommon
        return self._default if changed is None else changed.get(self._name, self._default)

    def __set__(self, delivery: Delivery, value: T) -> None:
        # ``setdefault`` is atomic, and two threads may set attributes at once
        vars(delivery).setdefault("uncommon", {})[self._name] = value


class Delivery(MessageProxy):
    """A message as this process received it.

    Attributes:
        uncommon: the attributes below that differ from their defaults, or None if there are none. If None, this is the
            first delivery, the message needs no check in Redis before it runs, and its job has not failed.
        entry_id: the id of the stream entry.
        queue: the name of the queue or shard from which it was read.
        consumer_name: the consumer to which it was delivered. Together with ``deliveries``, it proves that this
            consumer still holds the entry.
        deliveries: the delivery count, including this delivery. Deliveries that were handed back do not count.
        enqueued_at_ms: when it was first enqueued: the time in the entry id or the message timestamp, whichever is
            earlier. For a delayed or retried message, the timestamp is earlier.
        charges: the number of times its process crashed while it was running, not counting the first; see take.lua.
        is_doomed: whether it has reached the maximum number of crashes, so that it becomes a dead letter instead of
            running.
        limits: its key and the key's limits, or None.
        may_expire: whether it has an expiry time.
        is_alone: whether it runs in isolation, so that a crash can be attributed to it; see ``Isolation``.
        is_lost: whether another process holds it now, so that its outcome here has no effect.
        has_failed: whether its job failed or was skipped, or middleware raised after it.
        retry_asked: whether middleware requested a retry, with the delay ``retry_delay``.
        is_sent_again: whether middleware enqueued it again as a separate message with the same id.
        unhandled: why it must not be acknowledged although no middleware rejected it; see ``Unhandled``.
        is_noted: whether Redis still records it as the waiting message of its unique key.
        payload: the encoded message as it was delivered, if it has options that its dead letter must not have: an
            earlier failure's traceback, or an expiry time.
        is_expired: whether it did not start in time and must not run.
        coalesced: the newest message that was coalesced onto it, which is enqueued if this one is skipped.
        follower_keys: the Redis keys to delete when it ends: its progress key, and the keys that record which
            follow-up messages were enqueued, so that these are added only once even if it runs again.
        shared_followers: the follow-up messages that other messages may enqueue, too, by message id.
        pending_step: a function to call before it is acknowledged, because Redis did not answer the first call.
        reports_again_at: when its progress may next be stored, on the monotonic clock.
        is_complete: whether the last stored progress was complete.
        is_cancelled: whether it was cancelled while this process holds it. A job may poll this, with
            ``CurrentMessage.get_current_message().is_cancelled``.
        was_ended: whether its job was interrupted or not started because it was cancelled.
        dropped: the SHA-1 of the coalesced message that was cancelled together with it, or "".
        thread_id: the id of the thread that is running it, or None.
        is_interrupted: whether ``Cancelled`` was raised in that thread.
        pid: the pid of the process that received it. In a process that its job forks, ``os.getpid()`` differs.
        begun_at: when it started to run, on the monotonic clock; None before that.
        is_ended: whether its job has ended and its outcome is being written.
        announced: ``ack`` or ``nack`` once ``before_ack`` or ``before_nack`` was called on middleware, or None.
        is_returned: whether it is being handed back, because its batch did not mark it as done.
        n_bytes: the size of its entry in bytes.
        is_reread: whether it was read again because a reply was lost, which the delivery count does not show.
    """

    uncommon: Mapping[str, Any] | None = None
    is_alone = Uncommon(False)
    is_lost = Uncommon(False)
    is_expired = Uncommon(False)
    has_failed = Uncommon(False)
    pending_retry: Uncommon[PendingRetry | None] = Uncommon(None)
    retry_asked = Uncommon(False)
    retry_delay: Uncommon[Any] = Uncommon(None)
    is_sent_again = Uncommon(False)
    unhandled: Uncommon[Unhandled | None] = Uncommon(None)
    is_cancelled = Uncommon(False)
    was_ended = Uncommon(False)
    dropped = Uncommon("")
    is_interrupted = Uncommon(False)
    coalesced: Uncommon[bytes | None] = Uncommon(None)
    payload: Uncommon[bytes | None] = Uncommon(None)
    pending_followers: Uncommon[tuple[Follower, ...]] = Uncommon(())
    follower_keys: Uncommon[tuple[str, ...]] = Uncommon(())
    shared_followers: Uncommon[Mapping[str, SharedFollower]] = Uncommon(MappingProxyType({}))
    pending_step: Uncommon[Callable[[], None] | None] = Uncommon(None)
    reports_again_at = Uncommon(float("-inf"))
    is_complete = Uncommon(False)
    is_reread = Uncommon(False)
    is_returned = Uncommon(False)
    is_redelivered = Uncommon(False)
    charges = Uncommon(0)
    is_doomed = Uncommon(False)
    is_noted = Uncommon(False)
    may_expire = Uncommon(False)
    limits: Uncommon[KeyLimits | None] = Uncommon(None)
    _retries_when_delivered = Uncommon(0)
    announced: str | None = None

    def __init__(
        self,
        message: dramatiq.Message[Any],
        *,
        entry_id: str,
        queue: str,
        consumer_name: str,
        deliveries: int,
        pid: int,
        charges: int = 0,
        is_doomed: bool = False,
    ) -> None:
        super().__init__(message)
        # The Worker and middleware read these attributes about 20 times per message. MessageProxy.__getattr__ would
        # take 0.6 µs each time, because Python raises and catches an AttributeError first.
        self.queue_name = message.queue_name
        self.actor_name = message.actor_name
        self.args = message.args
        self.kwargs = message.kwargs
        self.options = message.options
        self.message_id = message.message_id
        self.message_timestamp = message.message_timestamp
        self.entry_id = entry_id
        self.queue = queue
        self.consumer_name = consumer_name
        self.deliveries = deliveries
        self.pid = pid
        self.n_bytes = 0
        self.begun_at: float | None = None
        self.thread_id: int | None = None
        self.is_ended = False
        self.is_settled = False
        # Set the other attributes only if needed. With 30 attributes, instances would not share their keys, and CPython
        # would take twice as long to create one.
        if message.options:
            self._note_options(message)
        if deliveries != 1:
            self.is_redelivered = True
        if charges:
            self.charges = charges
        if is_doomed:
            self.is_doomed = True

    def _note_options(self, message: dramatiq.Message[Any]) -> None:
        options = message.options
        if unique_key_of(options) is not None:
            self.is_noted = True
        if retries := options.get("retries", 0):
            self._retries_when_delivered = retries
        if expires_at_ms_of(options):
            self.may_expire = True
        if (limits := key_limits_of(message)) is not None:
            self.limits = limits

    @property
    def enqueued_at_ms(self) -> int:
        return min(int(self.entry_id.partition("-")[0]), self.message_timestamp)

    @property
    def is_plain(self) -> bool:
        """Whether this is the message's first delivery, and it has no key with limits."""
        return self.uncommon is None or not (
            self.is_redelivered or self.charges or self.is_doomed or self.is_reread or self.limits is not None
        )

    @property
    def is_being_retried(self) -> bool:
        """Whether the Retries middleware has counted a failure of this delivery."""
        return not self.is_settled and self.options.get("retries", 0) != self._retries_when_delivered

    def end_cancelled(self) -> None:
        """Reject the message because it was cancelled. Callers that wait for its result get ``MessageCancelled``."""
        self.is_cancelled = self.was_ended = True
        self.fail()
        self.stuff_exception(MessageCancelled(message_id=self.message_id))

    @property
    def replacement(self) -> bytes | None:
        """The encoded message that was coalesced onto this one and runs if this one is skipped, or None."""
        is_dropped = self.dropped and self.coalesced is not None and sha1_of(self.coalesced) == self.dropped
        return None if is_dropped else self.coalesced

    def name_of_follower(self, message: dramatiq.Message[Any]) -> str:
        """Return an enqueue id for a follow-up message. It is the same if this entry runs again."""
        if (shared := self.shared_followers.get(message.message_id)) is not None:
            return shared.name
        return f"{self.entry_id}/{message.message_id}"

    def keep_follower(self, follower: Follower) -> None:
        """Keep a follow-up message until it can be enqueued."""
        self.pending_followers = (*self.pending_followers, follower)

    def remember_follower(self, key: str) -> None:
        """Add a Redis key to delete when the message ends."""
        if key not in self.follower_keys:
            self.follower_keys = (*self.follower_keys, key)

    @property
    def is_simply_done(self) -> bool:
        """Whether its outcome is an acknowledgement and nothing else."""
        if self.failed or self._exception or self.is_settled or self.is_being_retried:
            return False
        return self.uncommon is None or not (
            self.is_lost or self.unhandled or self.pending_followers or self.pending_step or self.pending_retry
        )

    @property
    def is_handled(self) -> bool:
        """Whether its failure was handled: the message was rejected, is retried, or was enqueued again."""
        return (
            self.failed or self.is_settled or self.is_sent_again or self.retry_asked or self.pending_retry is not None
        )


def sha1_of(payload: bytes) -> str:
    """Return a message's SHA-1 as ``redis.sha1hex`` returns it. It is not used for security."""
    return hashlib.sha1(payload, usedforsecurity=False).hexdigest()


class Deliveries:
    """The deliveries of one queue. Thread-safe.

    *Held* messages are in the Worker or in the consumer's buffer. *Settling* messages are done, but their
    acknowledgement has not been written yet. Both are in this consumer's pending list.
    """

    def __init__(self) -> None:
        self._held: dict[str, Delivery] = {}
        self._settling: dict[str, Delivery] = {}
        # used directly on the hot path, because entering a Condition runs Python code and entering a Lock does not
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        # The number of occupied prefetch slots at which a waiter is woken. An earlier wake-up would cost more than the
        # rest of an acknowledgement.
        self._awaited_held = NOBODY_WAITS
        self._n_await_writing = 0
        # number of held messages that need no prefetch slot of their own because their batch shares one: in total, and
        # per batch
        self._n_sharing = 0
        self._sharing: dict[int, int] = {}

    def add(self, deliveries: Iterable[Delivery]) -> list[Delivery]:
        """Add deliveries to the held ones, skipping entries that are already held or settling; return the added ones.

        Entries are delivered a second time if the consumer group was created again. Entries that are being handed back
        count as new, because this consumer may take them again before the call that hands them back has returned.
        """
        added = []
        with self._lock:
            for delivery in deliveries:
                entry_id = delivery.entry_id
                is_new = entry_id not in self._held or self._held[entry_id].is_returned
                if is_new and entry_id not in self._settling:
                    self._held[entry_id] = delivery
                    added.append(delivery)
        return added

    def held(self, entry_ids: Iterable[str]) -> list[Delivery]:
        """Return the held deliveries of these entries."""
        with self._lock:
            return [self._held[entry_id] for entry_id in entry_ids if entry_id in self._held]

    def begin_settling(self, delivery: Delivery) -> None:
        """Mark a delivery as done, which frees its prefetch slot."""
        entry_id = delivery.entry_id
        with self._lock:
            if self._held.get(entry_id) is delivery:
                del self._held[entry_id]
            self._settling[entry_id] = delivery
            if len(self._held) - self._n_sharing <= self._awaited_held:
                self._changed.notify_all()

    def begin_settling_all(self, deliveries: Iterable[Delivery]) -> None:
        """Mark a batch's deliveries as done, all at once."""
        with self._lock:
            for delivery in deliveries:
                if self._held.get(delivery.entry_id) is delivery:
                    del self._held[delivery.entry_id]
                self._settling[delivery.entry_id] = delivery
            self._changed.notify_all()

    def share_place(self, batch: object, n: int) -> None:
        """Let a batch's ``n`` held messages occupy one prefetch slot."""
        with self._lock:
            self._sharing[id(batch)] = n - 1
            self._n_sharing = sum(self._sharing.values())

    def end_sharing(self, batch: object) -> None:
        """Let each message of a batch occupy a prefetch slot again. A second call does nothing."""
        with self._lock:
            self._sharing.pop(id(batch), None)
            self._n_sharing = sum(self._sharing.values())

    def forget(self, deliveries: Iterable[Delivery]) -> None:
        """Remove deliveries that were settled, handed back or lost."""
        with self._lock:
            for delivery in deliveries:
                for table in (self._settling, self._held):
                    if table.get(delivery.entry_id) is delivery:
                        del table[delivery.entry_id]
            if len(self._held) - self._n_sharing <= self._awaited_held or self._n_await_writing:
                self._changed.notify_all()

    def wait_for_room(
        self, prefetch: int, timeout_s: float, *, n_ahead: int = 0, most: Callable[[], int] | None = None
    ) -> int:
        """Wait up to ``timeout_s`` for free prefetch slots; return how many are free.

        Once one is free, wait briefly until a quarter of the prefetch is free, because otherwise each message would
        cost a round trip or a thread switch.

        Args:
            n_ahead: the number of held messages that the Worker has not received yet.
            most: a function that returns an additional limit, which may depend on other queues. Code that changes the
                limit calls ``wake``.
        """
        limit = prefetch + n_ahead
        enough = 1 if most else max(1, prefetch // 4)
        # limit the unwritten acknowledgements, too, so that reading stops when the server accepts no writes
        most_settling = 1_000 + limit

        def room() -> int:
            if len(self._settling) > most_settling:
                return 0
            free = limit - len(self._held) + self._n_sharing
            return free if most is None else min(free, most())

        with self._lock:
            try:
                self._awaited_held = limit if most else limit - 1
                if self._changed.wait_for(lambda: room() >= 1, timeout_s):
                    self._awaited_held = limit - enough
                    self._changed.wait_for(lambda: room() >= enough, GATHER_S)
            finally:
                self._awaited_held = NOBODY_WAITS
            return max(0, room())

    def wait_until_written(self, delivery: Delivery, timeout_s: float) -> None:
        """Wait up to ``timeout_s`` for Redis to confirm the delivery's outcome."""
        with self._lock:
            self._n_await_writing += 1
            try:
                self._changed.wait_for(lambda: self._settling.get(delivery.entry_id) is not delivery, timeout_s)
            finally:
                self._n_await_writing -= 1

    def wake(self) -> None:
        """Wake ``wait_for_room`` so that it counts the held messages again."""
        with self._lock:
            self._changed.notify_all()

    def ids(self) -> list[str]:
        """Return the ids of the entries that are held or settling."""
        with self._lock:
            return [*self._held, *self._settling]

    @property
    def n_held(self) -> int:
        return len(self._held)  # without the lock, because other queues call this while they hold their own lock

    @property
    def n_places(self) -> int:
        """The number of prefetch slots that the held messages occupy. A batch's messages share one."""
        return len(self._held) - self._n_sharing

    def __len__(self) -> int:
        with self._lock:
            return len(self._held) + len(self._settling)
