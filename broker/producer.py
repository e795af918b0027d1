"""What enqueues messages: new ones, retries, and what follows a finished message.

A call that got no answer is repeated under the same id, so that its messages are added once. What follows a finished
message, as the next of a pipeline, is enqueued before that one is acknowledged. README.md states what is guaranteed.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from secrets import token_hex
from typing import Any, TypeVar

import redis
from dramatiq import Broker, Message
from dramatiq.broker import MessageProxy
from dramatiq.errors import BrokerConnectionError, ConnectionClosed
from dramatiq.logging import get_logger

from .connections import Argument, Connections
from .deliveries import Delivery, Follower, not_followed
from .entries import check_text, with_types
from .errors import EnqueueUncertain, InvalidMessage, InvalidOption, MessageTooLarge, QueueFull, UndecodableEntry
from .keys import KeysByQueue, QueueKeys
from .options import check_options, delay_ms_of, is_part_of_composition, name_in_delayed, ordering_key_of, unique_key_of
from .outcomes import REMEMBER_FOLLOWERS_MS, Outcomes
from .scripts import ENQUEUE, ENQUEUE_PLAIN
from .settings import BrokerSettings

T = TypeVar("T")

# A client that lost a reply repeats itself within enqueue_timeout_ms; a call is remembered for twice that and this.
REMEMBER_EXTRA_MS = 10_000
MESSAGES_PER_CALL = 200
# The first pause before a full queue is tried again.
FIRST_PAUSE_S = 0.01


class Finished(threading.local):
    """The message that the current thread has just finished, while middleware enqueues what follows it."""

    delivery: Delivery | None = None


class Producer:
    """The enqueueing half of a broker. Thread-safe.

    Attributes:
        finished: set by the broker while middleware hears of a finished message; what is enqueued then follows it.
    """

    def __init__(self, broker: Broker, settings: BrokerSettings, keys: KeysByQueue) -> None:
        self.finished = Finished()
        self._broker = broker
        self._settings = settings
        self._keys = keys
        self._calls = _Calls()
        self._logger: logging.Logger = get_logger(__name__, type(self))
        self._connections: Connections
        self._outcomes: Outcomes

    def use(self, connections: Connections, outcomes: Outcomes) -> None:
        """Use these connections from now on, also for calls under way that are sent again."""
        self._connections = connections
        self._outcomes = outcomes

    def enqueue(self, message: Message[Any], delay: int | None) -> Message[Any]:
        """Enqueue one message, as ``RedisStreamsBroker.enqueue`` promises."""
        if isinstance(message, Delivery) and message.is_being_retried:
            return self._retry(message, delay)
        finished = self.finished.delivery
        if finished is not None:
            return self.follow(finished, message, delay)
        return self._enqueue([(message, delay)])[0]

    def enqueue_many(self, messages: Iterable[Message[Any]]) -> list[Message[Any]]:
        """Enqueue messages in one round trip, as ``RedisStreamsBroker.enqueue_many`` promises."""
        return self._enqueue([(message, message.options.get("delay")) for message in messages])

    def _retry(self, delivery: Delivery, delay: int | None) -> Message[Any]:
        message: Message[Any] = delivery.copy()
        # from here on it is tried again, also where a middleware or Redis refuses it now: see ``Consumer.ack``
        delivery.retry_asked, delivery.retry_delay = True, delay
        self._broker.emit_before("enqueue", message, delay)
        if self._outcomes.begin_retry(delivery, message, delay):
            self._broker.emit_after("enqueue", message, delay)
        return message

    def follow(self, finished: Delivery, message: Message[Any], delay: int | None) -> Message[Any]:
        """Enqueue what follows a finished message: a pipeline's next, a callback.

        Dramatiq logs what escapes from here and acknowledges the finished message all the same, and what follows would
        be lost. So a lost connection does not raise: the message waits, and ``Consumer.ack`` enqueues it first. What
        cannot be enqueued becomes a dead letter.

        Raises:
            Exception: it can be no dead letter either, as when it cannot be encoded. The finished one becomes one.
        """
        try:
            followed = self._enqueue([(message, delay)])[0]
        except BrokerConnectionError as error:
            self._logger.warning("what follows a finished message waits for Redis: %s", error)
            finished.pending_followers.append(Follower(message, delay))
            followed = message
        except Exception as error:
            try:
                followed = self._condemn(finished, message, delay, error)
            except Exception:
                if finished._exception is None:
                    finished.unhandled = not_followed(f"{type(error).__name__}: {error}")
                raise
        if message.message_id == finished.message_id:
            finished.is_sent_again = True
        return followed

    def _condemn(self, finished: Delivery, message: Message[Any], delay: int | None, error: Exception) -> Message[Any]:
        """Make what was to follow a finished message, and cannot be enqueued, a dead letter."""
        if isinstance(message, MessageProxy):
            message = message.copy()
        try:
            self._outcomes.condemn(finished, message, error)
        except (BrokerConnectionError, redis.RedisError) as unreachable:
            self._logger.warning("what follows a finished message waits for Redis: %s", unreachable)
            finished.pending_followers.append(Follower(message, delay))
        return message

    def _condemn_at_last(self, finished: Delivery, message: Message[Any], error: Exception) -> None:
        """Make it a dead letter, or the finished message where it cannot be encoded."""
        try:
            self._outcomes.condemn(finished, message, error)
        except (BrokerConnectionError, redis.RedisError):
            raise
        except Exception:
            finished.unhandled = not_followed(f"{type(error).__name__}: {error}")

    def enqueue_followers(self, finished: Delivery) -> None:
        """Enqueue what could not be when the message finished.

        Raises:
            BrokerConnectionError: it still cannot be; the finished message must not be acknowledged.
        """
        self.finished.delivery = finished
        try:
            while finished.pending_followers:
                follower = finished.pending_followers[0]
                try:
                    # under the same enqueue id as at first: it is there once, whatever became of the first attempt
                    self._enqueue([(follower.message, follower.delay)])
                except BrokerConnectionError:
                    raise
                except Exception as error:
                    self._condemn_at_last(finished, follower.message, error)
                del finished.pending_followers[0]
        finally:
            self.finished.delivery = None

    def _enqueue(self, messages: Sequence[tuple[Message[Any], int | None]]) -> list[Message[Any]]:
        all_outgoing = [self._outgoing(place, message, delay) for place, (message, delay) in enumerate(messages)]
        if len(all_outgoing) == 1 and self._is_plain(all_outgoing[0]):
            return [self._enqueue_plain(all_outgoing[0])]
        by_queue: dict[str, list[_Outgoing]] = {}
        for outgoing in all_outgoing:
            by_queue.setdefault(outgoing.message.queue_name, []).append(outgoing)
        n_at_once = min(MESSAGES_PER_CALL, self._settings.max_queue_length or MESSAGES_PER_CALL)
        chunks = [
            (self._keys[queue_name], of_queue[start : start + n_at_once])
            for queue_name, of_queue in by_queue.items()
            for start in range(0, len(of_queue), n_at_once)
        ]
        answers = self._send_where_room_is(chunks)
        returned = [outgoing.message for outgoing in all_outgoing]
        refused: dict[str, tuple[int, list[str]]] = {}
        for (keys, chunk), answer in zip(chunks, answers, strict=True):
            if answer[0] == b"FULL":
                _, message_ids = refused.setdefault(keys.queue_name, (int(answer[1]), []))
                message_ids += [outgoing.message.message_id for outgoing in chunk]
                continue
            for outgoing, holder in zip(chunk, answer[1:], strict=True):
                if holder.decode() == outgoing.message.message_id:
                    self._broker.emit_after("enqueue", outgoing.message, outgoing.delay)
                else:
                    waiting = dataclasses.replace(outgoing.message, message_id=holder.decode())
                    returned[outgoing.place] = waiting
        if refused:
            queue_name, (length, _) = next(iter(refused.items()))
            raise QueueFull(
                queue_name=queue_name,
                length=length,
                limit=self._settings.max_queue_length or 0,
                message_ids=tuple(message_id for _, message_ids in refused.values() for message_id in message_ids),
            )
        return returned

    def _is_plain(self, outgoing: _Outgoing) -> bool:
        """Whether enqueue_plain.lua does for it."""
        options = outgoing.message.options
        return (
            not outgoing.delay
            and self._settings.max_queue_length is None
            and unique_key_of(options) is None
            and ordering_key_of(options) is None
        )

    def _enqueue_plain(self, outgoing: _Outgoing) -> Message[Any]:
        keys = self._keys[outgoing.message.queue_name]
        recent, enqueue_id, remember_ms = self._name_of_call(0, keys, [outgoing])
        script_keys, args = (keys.stream, recent, keys.counters), (enqueue_id, remember_ms, outgoing.payload)
        self._until_answered(lambda: self._connections.run_script(ENQUEUE_PLAIN, script_keys, args), [outgoing])
        self._broker.emit_after("enqueue", outgoing.message, outgoing.delay)
        return outgoing.message

    def _outgoing(self, place: int, message: Message[Any], delay: int | None) -> _Outgoing:
        if isinstance(message, MessageProxy):
            message = message.copy()
        try:
            message = with_types(message)
            self._broker.emit_before("enqueue", message, delay)
            check_text(message)
            check_options(message.options)
            if delay is not None:
                check_options({"delay": delay})
        except (UndecodableEntry, InvalidOption) as error:
            raise InvalidMessage(
                message_id=str(message.message_id), field=error.field, problem=error.problem, hint=error.hint
            ) from error
        stored = message
        if "eta" in message.options:
            # a time on some producer's clock; ours is the server's, so what is left of it becomes the delay
            options = {name: value for name, value in message.options.items() if name != "eta"}
            stored = dataclasses.replace(message, options=options)
            eta = message.options["eta"]
            if delay is None and isinstance(eta, int | float):
                delay = max(0, int(eta - time.time() * 1000))
        payload = stored.encode()
        if len(payload) > self._settings.max_message_bytes:
            raise MessageTooLarge(
                message_id=message.message_id, n_bytes=len(payload), limit=self._settings.max_message_bytes
            )
        return _Outgoing(place, message, payload, delay)

    def _call(self, step: int, keys: QueueKeys, chunk: Sequence[_Outgoing]) -> tuple[list[str], list[Argument]]:
        """KEYS and ARGV of enqueue.lua, as the step of that number of one round trip."""
        following = self.finished.delivery
        recent, enqueue_id, remember_ms = self._name_of_call(step, keys, chunk)
        script_keys = [*keys.work, recent, keys.counters]
        # what follows a finished message is never refused: its room was the finished one's
        max_length = 0 if following is not None else self._settings.max_queue_length or 0
        args: list[Argument] = [enqueue_id, remember_ms, max_length]
        for outgoing in chunk:
            delay_ms = delay_ms_of(outgoing.delay)
            unique_key, lock, unique_for_ms = unique_key_of(outgoing.message.options), 0, 0
            if unique_key is not None:
                script_keys.append(keys.unique(unique_key))
                lock = len(script_keys)
                unique_for_ms = self._settings.lock_ms(outgoing.message.options, delay_ms)
            ordering_key = ordering_key_of(outgoing.message.options)
            name = name_in_delayed(ordering_key) if delay_ms else ""
            args += (outgoing.payload, name, delay_ms, outgoing.message.message_id, lock, unique_for_ms)
            args += (ordering_key or "", int(not self._is_waited_for(outgoing.message, following)))
        return script_keys, args

    def _is_waited_for(self, message: Message[Any], following: Delivery | None) -> bool:
        """Return whether a pipeline or a group would never end were it coalesced onto another message."""
        if is_part_of_composition(message.options):
            return True
        target = None if following is None else following.options.get("pipe_target")
        return target is not None and str(target.get("message_id")) == message.message_id

    def _name_of_call(self, step: int, keys: QueueKeys, chunk: Sequence[_Outgoing]) -> tuple[str, str, int]:
        """Where a call is remembered, as what, and for how many ms."""
        following = self.finished.delivery
        if following is None or len(chunk) > 1:
            recent, enqueue_id = self._calls.next_call(keys, step)
            return recent, enqueue_id, 2 * self._settings.enqueue_timeout_ms + REMEMBER_EXTRA_MS
        # What follows a finished message, as the next of a pipeline, is enqueued again when the worker dies before the
        # acknowledgement: from the same entry, with the same message id. Another run is another entry.
        enqueue_id = following.name_of_follower(chunk[0].message)
        return keys.recent(enqueue_id), enqueue_id, REMEMBER_FOLLOWERS_MS

    def _send_where_room_is(self, chunks: Sequence[tuple[QueueKeys, Sequence[_Outgoing]]]) -> list[Any]:
        """The answers to enqueue.lua; full queues are asked again for ``wait_when_full_ms``.

        Where a queue may be full, its chunks go one after the other, and none after a refused one, which has the answer
        of that: a later one that found the room which an earlier one missed would overtake it.
        """
        if self._settings.max_queue_length is None:
            return self._send(chunks) if chunks else []
        answers: list[Any] = [None] * len(chunks)
        unsent: dict[str, deque[int]] = {}
        for place, (keys, _) in enumerate(chunks):
            unsent.setdefault(keys.queue_name, deque()).append(place)
        deadline, pause_s = time.monotonic() + self._settings.wait_when_full_ms / 1000, FIRST_PAUSE_S
        while heads := [places[0] for places in unsent.values() if places]:
            n_added = 0
            for place, answer in zip(heads, self._send([chunks[place] for place in heads]), strict=True):
                answers[place] = answer
                if answer[0] != b"FULL":
                    unsent[chunks[place][0].queue_name].popleft()
                    n_added += 1
            if n_added:
                pause_s = FIRST_PAUSE_S
            elif time.monotonic() + pause_s <= deadline:
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 0.25)
            else:
                break
        for places in unsent.values():
            for place in places:
                answers[place] = answers[places[0]]
        return answers

    def _send(self, chunks: Sequence[tuple[QueueKeys, Sequence[_Outgoing]]]) -> list[Any]:
        """The answers to enqueue.lua."""
        calls = [self._call(step, keys, chunk) for step, (keys, chunk) in enumerate(chunks)]
        return self._until_answered(
            lambda: self._connections.run_scripts(ENQUEUE, calls),
            [outgoing for _, chunk in chunks for outgoing in chunk],
        )

    def _until_answered(self, send: Callable[[], T], sent: Sequence[_Outgoing]) -> T:
        """The answer to a call, which is sent again, under the same enqueue id, while the connection is to blame."""
        deadline = time.monotonic() + self._settings.enqueue_timeout_ms / 1000
        pause_s, was_sent = 0.02, False
        while True:
            try:
                return send()
            except BrokerConnectionError as error:
                was_sent = was_sent or (isinstance(error, ConnectionClosed) and not is_refusal(error))
                if time.monotonic() + pause_s > deadline:
                    if was_sent:
                        ids = tuple(outgoing.message.message_id for outgoing in sent)
                        raise EnqueueUncertain(message_ids=ids, problem=str(error)) from error
                    raise
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 0.5)


@dataclasses.dataclass(frozen=True, slots=True)
class _Outgoing:
    place: int
    message: Message[Any]
    payload: bytes
    delay: int | None


class _Calls(threading.local):
    """Names the calls of one thread, which has one of them under way at a time."""

    def __init__(self) -> None:
        self._name = token_hex(8)
        self._n_calls = 0

    def next_call(self, keys: QueueKeys, step: int) -> tuple[str, str]:
        """Where a call is remembered, and as what. Each step of a round trip may fail alone: each has its own place."""
        self._n_calls += 1
        return keys.recent(f"{self._name}:{step}"), str(self._n_calls)


def is_refusal(error: BaseException) -> bool:
    """Whether the server answered, and did nothing: memory, disk, a failover."""
    return isinstance(error.__cause__, redis.ResponseError)
