"""Batches: one call of an actor's batch function handles several waiting messages.

A batch is only a fast path. It consists of plain messages that are already waiting, and no message waits for others.
The batch function marks messages as done. Messages that it does not mark, or all messages if it raises, are handed back
to the queue and run again individually.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import Any, Final, TypeVar

import dramatiq
from dramatiq.asyncio import async_to_sync
from dramatiq.broker import MessageProxy
from dramatiq.errors import Retry

from ..deliveries import Delivery
from ..errors import InvalidOption
from ..options import check_options, is_known

# Maximum size of a batch, which is also the maximum number of messages that one call of settle.lua acknowledges.
MOST_PER_BATCH: Final = 500
OPTION: Final = "batch"

# Size of a process's first batches, and of those after a crash. If one of their messages kills its process, only this
# many messages are in its batch.
FIRST_SIZE: Final = 16
# A batch that takes longer than this is followed by smaller ones, because no message of a batch ends before the whole
# batch.
LONG_BATCH_S: Final = 2.0

F = TypeVar("F", bound=Callable[..., Any])


class NotDoneInBatch(Retry):
    """The exception that middleware receives for a message that its batch did not mark as done and that runs again."""


class BatchedMessage:
    """A message of a batch, as the batch function receives it.

    Attributes:
        message: the Dramatiq message.
        is_done: whether ``done`` was called.
        result: the result that was passed to ``done``.
    """

    __slots__ = ("is_done", "message", "result")

    def __init__(self, message: dramatiq.Message[Any]) -> None:
        self.message = message
        self.is_done = False
        self.result: Any = None

    @property
    def args(self) -> tuple[Any, ...]:
        return self.message.args

    @property
    def kwargs(self) -> dict[str, Any]:
        return self.message.kwargs

    @property
    def message_id(self) -> str:
        return self.message.message_id

    def done(self, result: Any = None) -> None:
        """Mark the message as done. If the batch function raises, this has no effect.

        Args:
            result: the result that the actor would have returned, for middleware such as Results.
        """
        self.is_done, self.result = True, result

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message})"


@dataclass(frozen=True, slots=True)
class Batching:
    """The limits for an actor's batches, as stored in the actor's option ``batch``.

    Attributes:
        max_size: the maximum number of messages in one batch.
        max_bytes: the maximum total size of the encoded messages in one batch.
        time_limit: the time limit for a batch in ms, or None for the actor's time limit.
        max_held: the maximum number of batches that a Worker may hold, or None for its prefetch.
    """

    max_size: int
    max_bytes: int
    time_limit: int | None
    max_held: int | None

    def __post_init__(self) -> None:
        if not 2 <= self.max_size <= MOST_PER_BATCH:
            problem = f"expected 2 to {MOST_PER_BATCH}, got {self.max_size}"
            raise InvalidOption("max_size", problem, "choose another size, or declare no batch function")
        if self.max_bytes < 1:
            raise InvalidOption("max_bytes", f"expected at least 1, got {self.max_bytes}", "set a larger value")
        if self.max_held is not None and self.max_held < 1:
            raise InvalidOption("max_held", f"expected at least 1, got {self.max_held}", "set a larger value")
        check_options({"time_limit": self.time_limit})


def batch(
    actor: dramatiq.Actor[..., Any],
    *,
    max_size: int = 64,
    max_bytes: int = 4 << 20,
    time_limit: int | None = None,
    max_held: int | None = None,
) -> Callable[[F], F]:
    """Declare a function that handles several waiting messages of ``actor`` in one call.

    The function is called with a sequence of :class:`BatchedMessage`, and calls ``done`` on each message that it has
    handled. Every other message runs again individually, as a call of the actor. If the function raises or reaches its
    time limit, all messages do. Other brokers never call the function, but call the actor for each message.

    Args:
        actor: the actor that handles single messages. It must have the same effects as the function.
        max_size: the maximum number of messages in one call, from 2 to 500.
        max_bytes: the maximum total size of the encoded messages in one call.
        time_limit: the time limit for one call in ms, or None for the actor's time limit.
        max_held: the maximum number of batches that a Worker may hold, which limits how many messages it holds, or None
            for its prefetch.

    Raises:
        InvalidOption: a value is invalid, or the actor already has a batch function.
    """
    batching = Batching(max_size, max_bytes, time_limit, max_held)
    if OPTION in actor.options:
        problem = f"actor {actor.actor_name!r} already has a batch function"
        raise InvalidOption(OPTION, problem, "declare one batch function per actor")

    def declare(function: F) -> F:
        single: Callable[..., Any] = actor.fn
        many: Callable[..., Any] = async_to_sync(function) if iscoroutinefunction(function) else function

        def one_or_many(*args: Any, **kwargs: Any) -> Any:
            if args and isinstance(args[0], _Messages):
                if args[0]:
                    many(args[0])
                return None
            return single(*args, **kwargs)

        actor.options[OPTION] = batching
        actor.fn = one_or_many
        return function

    return declare


class BatchSize:
    """The current maximum size of one queue's batches in one process.

    It starts at ``FIRST_SIZE`` and doubles with each full batch that was done within ``LONG_BATCH_S``. After a longer
    batch, it is reduced so that the next one should take that long, but not below ``FIRST_SIZE``. It is reset after a
    batch of which no message was done, and after a crash of a process that consumed the queue. Thread-safe, except that
    two batches that end at once may count as one.
    """

    def __init__(self) -> None:
        self.most = FIRST_SIZE

    def start_small(self) -> None:
        self.most = FIRST_SIZE

    def record(self, n: int, n_done: int, duration_s: float) -> None:
        """Record that a batch of ``n`` messages has ended and that ``n_done`` of them were marked as done."""
        if duration_s > LONG_BATCH_S:
            self.most = max(FIRST_SIZE, min(self.most, int(n * LONG_BATCH_S / duration_s)))
        elif not n_done:
            self.start_small()
        elif n >= self.most:
            self.most = min(2 * self.most, MOST_PER_BATCH)


class _Messages(tuple[BatchedMessage, ...]):
    """The argument with which the Worker calls the actor for a batch."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} messages>"


class Batch(MessageProxy):
    """A batch as Dramatiq's Worker receives it: one message, whose only argument is a sequence of the batched messages.

    Attributes:
        queue: the name of the queue or shard from which the messages were read.
        deliveries: the batched messages.
        open: the messages for which middleware was called before the batch but not yet after it.
        refusals: the exceptions with which middleware refused to run messages, by entry id.
        ended: the messages whose outcome is known. All others are handed back.
        is_handed_back: whether the messages without an outcome were handed back.
        begun_at, is_ended, is_lost: as in :class:`~..deliveries.Delivery`.
    """

    is_lost = False
    is_handed_back = False

    def __init__(self, deliveries: Sequence[Delivery], batching: Batching) -> None:
        first = deliveries[0]
        super().__init__(first._message)
        self.queue, self.queue_name = first.queue, first.queue_name
        self.actor_name = first.actor_name
        self.message_id = first.message_id
        self.message_timestamp = first.message_timestamp
        self.options = {} if batching.time_limit is None else {"time_limit": batching.time_limit}
        self.args: tuple[Any, ...] = (_Messages(),)
        self.kwargs: dict[str, Any] = {}
        self.deliveries = deliveries
        self.open: list[Delivery] = []
        self.refusals: dict[str, BaseException] = {}
        self.ended: list[Delivery] = []
        self.begun_at: float | None = None
        self.is_ended = False
        self._messages: dict[str, BatchedMessage] = {}

    def prepare(self) -> None:
        """Set the argument of the batch function to the messages that no middleware refused."""
        self._messages = {
            one.entry_id: BatchedMessage(one._message) for one in self.open if one.entry_id not in self.refusals
        }
        self.args = (_Messages(self._messages.values()),)

    def done(self, delivery: Delivery) -> BatchedMessage | None:
        """Return the delivery's batched message if it was marked as done, otherwise None."""
        message = self._messages.get(delivery.entry_id)
        return message if message is not None and message.is_done else None

    @property
    def undone(self) -> list[Delivery]:
        """The messages whose outcome is not known, so that they must run again."""
        known = {one.entry_id for one in self.ended}
        return [one for one in self.deliveries if one.entry_id not in known]

    def __str__(self) -> str:
        return f"{self.actor_name}(<{len(self.deliveries)} messages>)"


class Batcher:
    """Builds batches from the messages that a consumer has read.

    It has no state. Every consumer passes its own buffer, which only its own thread uses.

    Args:
        actors: the broker's actors, by name.
        declared: the names of the options that the broker's middleware reads.
    """

    def __init__(self, actors: Mapping[str, dramatiq.Actor[..., Any]], declared: Collection[str]) -> None:
        self._actors = actors
        self._declared = declared

    def serves(self, queue_name: str) -> bool:
        """Return whether any actor of the queue has a batch function."""
        return any(OPTION in actor.options and actor.queue_name == queue_name for actor in list(self._actors.values()))

    def take(self, buffer: deque[Delivery], size: BatchSize) -> Delivery | Batch:
        """Take the next message from the buffer, together with others in a batch if possible, and return it."""
        first = buffer.popleft()
        if not buffer:
            return first
        batching = self._batching_of(first)
        if batching is None:
            return first
        taken, left, n_bytes = [first], deque[Delivery](), first.n_bytes
        most = min(size.most, batching.max_size)
        while buffer and len(taken) < most:
            one = buffer.popleft()
            if self._batching_of(one) is batching and n_bytes + one.n_bytes <= batching.max_bytes:
                taken.append(one)
                n_bytes += one.n_bytes
            else:
                left.append(one)
        buffer.extendleft(reversed(left))
        return first if len(taken) == 1 else Batch(taken, batching)

    def size_for(self, read: Sequence[Delivery], size: BatchSize) -> tuple[int, int | None] | None:
        """Return how many messages like these a batch can have, and how many batches a Worker may hold.

        The first number is 0 if such messages cannot share a batch. The second is None if there is no limit. Messages
        that were delivered before are ignored, because new messages may differ from them.

        Returns:
            The two numbers, or None if all of these messages were delivered before.
        """
        read = [one for one in read if one.deliveries == 1]
        if not read:
            return None
        batching = self._batching_of(read[0])
        if batching is None or any(self._batching_of(one) is not batching for one in read[1:]):
            return 0, None
        n = min(size.most, batching.max_size, batching.max_bytes // max(1, *(one.n_bytes for one in read)))
        return (n, batching.max_held) if n > 1 else (0, None)

    def _batching_of(self, delivery: Delivery) -> Batching | None:
        """Return the limits for batches that may include the message, or None if it must run individually.

        A message with an option that the broker or its middleware reads must run individually. Other options, such as
        trace headers, are ignored.
        """
        actor = self._actors.get(delivery.actor_name)
        if actor is None:
            return None
        batching: Batching | None = actor.options.get(OPTION)
        if batching is None or not delivery.is_plain:
            return None
        if any(is_known(name) or name in self._declared for name in delivery.options):
            return None
        return batching
