"""The producer: enqueues new messages, retries and follow-up messages.

A call that got no reply is sent again with the same id, so that its messages are added only once. Follow-up messages,
such as a pipeline's next stage, are enqueued before the finished message is acknowledged.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from secrets import token_hex
from typing import Any, TypeVar

import redis
from dramatiq import Broker, Message
from dramatiq.broker import MessageProxy
from dramatiq.errors import BrokerConnectionError, ConnectionClosed, ConnectionFailed
from dramatiq.logging import get_logger

from .deliveries import Delivery, Follower, not_followed
from .entries import check_text, with_types
from .errors import EnqueueUncertain, InvalidMessage, InvalidOption, MessageTooLarge, QueueFull, UndecodableEntry
from .key_limits import key_limits_of
from .keys import KeysByQueue, QueueKeys
from .net.connections import Argument, Connections
from .options import (
    EXPIRES_AT,
    LARGEST,
    check_options,
    delay_ms_of,
    expires_in_ms_of,
    is_part_of_composition,
    unique_key_of,
)
from .outcomes import REMEMBER_FOLLOWERS_MS, Outcomes
from .scripts import ENQUEUE, ENQUEUE_PLAIN
from .settings import BrokerSettings
from .sharding.shards import Shards

T = TypeVar("T")

# Redis remembers a call for this time plus twice enqueue_timeout_ms. A client that got no reply repeats its call
# sooner.
REMEMBER_EXTRA_MS = 10_000
MESSAGES_PER_CALL = 200
# Length of the first pause before a full queue is tried again.
FIRST_PAUSE_S = 0.01


class Finished(threading.local):
    """The message that the current thread has finished, or None if middleware cannot enqueue follow-up messages now."""

    delivery: Delivery | None = None


class Producer:
    """The part of a broker that enqueues messages. Thread-safe.

    Attributes:
        finished: set by the broker while middleware is called for a finished message. Messages that the thread
            enqueues during these calls are follow-up messages of that message.
    """

    def __init__(
        self, broker: Broker, settings: BrokerSettings, keys: KeysByQueue, shards: Mapping[str, Shards]
    ) -> None:
        self.finished = Finished()
        self._shards = shards
        self._broker = broker
        self._settings = settings
        self._keys = keys
        self._calls = _Calls()
        self._logger: logging.Logger = get_logger(__name__, type(self))
        self._connections: Connections
        self._outcomes: Outcomes

    def use(self, connections: Connections, outcomes: Outcomes) -> None:
        """Use these connections and outcomes from now on, even to send a call in progress again."""
        self._connections = connections
        self._outcomes = outcomes

    def enqueue(self, message: Message[Any], delay: int | None) -> Message[Any]:
        """Enqueue one message; see ``RedisStreamsBroker.enqueue``."""
        # in a process that a job forked, treat the parent's message as a new one, because only the parent may retry it
        if isinstance(message, Delivery) and message.is_being_retried and message.pid == os.getpid():
            return self._retry(message, delay)
        finished = self.finished.delivery
        if finished is not None:
            return self.follow(finished, message, delay)
        outgoing = self._outgoing(0, message, delay)
        if not outgoing.message.options and self._is_plain(outgoing):
            return self._enqueue_plain(outgoing)
        return self._send_out([outgoing])[0]

    def enqueue_many(self, messages: Iterable[Message[Any]]) -> list[Message[Any]]:
        """Enqueue messages in one round trip; see ``RedisStreamsBroker.enqueue_many``."""
        return self._enqueue([(message, message.options.get("delay")) for message in messages])

    def _retry(self, delivery: Delivery, delay: int | None) -> Message[Any]:
        # from here on, the retry will be written: if Redis refuses it now, ``Consumer.ack`` writes it
        delivery.retry_asked, delivery.retry_delay = True, delay
        message = self._outcomes.begin_retry(delivery, delay)
        if delivery.unhandled is not None:
            delivery.fail()
        return message

    def follow(self, finished: Delivery, message: Message[Any], delay: int | None) -> Message[Any]:
        """Enqueue a finished message's follow-up message, such as a pipeline's next stage or a callback.

        If the connection is lost, this method does not raise, because Dramatiq would log the exception and acknowledge
        the finished message, and the follow-up message would be lost. Instead, the follow-up message is kept, and
        ``Consumer.ack`` enqueues it before it acknowledges the finished message. A follow-up message that is refused
        becomes a dead letter.

        Raises:
            Exception: the refused follow-up message cannot become a dead letter, for example because it cannot be
                encoded. The finished message becomes a dead letter instead.
        """
        try:
            followed = self._follow(finished, self._outgoing(0, message, delay))
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

    def _follow(self, finished: Delivery, outgoing: _Outgoing) -> Message[Any]:
        try:
            return self._send_out([outgoing])[0]
        except BrokerConnectionError as error:
            self._logger.warning("follow-up message waits for Redis; it is enqueued before the ack: %s", error)
            finished.keep_follower(Follower(outgoing.message, outgoing.delay))
            return outgoing.message

    def _condemn(self, finished: Delivery, message: Message[Any], delay: int | None, error: Exception) -> Message[Any]:
        """Turn a follow-up message that cannot be enqueued into a dead letter, or keep it if Redis is unavailable."""
        if isinstance(message, MessageProxy):
            message = message.copy()
        try:
            self._outcomes.condemn(finished, message, error)
        except (BrokerConnectionError, redis.RedisError) as unreachable:
            self._logger.warning("a refused follow-up message waits for Redis, to be a dead letter: %s", unreachable)
            finished.keep_follower(Follower(message, delay, refused_by=error))
        return message

    def _condemn_at_last(self, finished: Delivery, message: Message[Any], error: Exception) -> None:
        """Turn a follow-up message into a dead letter. If it cannot be encoded, mark the finished message instead."""
        try:
            self._outcomes.condemn(finished, message, error)
        except (BrokerConnectionError, redis.RedisError):
            raise
        except Exception:
            finished.unhandled = not_followed(f"{type(error).__name__}: {error}")

    def enqueue_followers(self, finished: Delivery) -> None:
        """Enqueue the follow-up messages that could not be enqueued when the message finished.

        Raises:
            BrokerConnectionError: some still cannot be enqueued, so the finished message must not be acknowledged.
        """
        self.finished.delivery = finished
        try:
            if finished.pending_step is not None:
                finished.pending_step()
                finished.pending_step = None
            while finished.pending_followers:
                follower = finished.pending_followers[0]
                try:
                    if follower.refused_by is not None:
                        raise follower.refused_by
                    # use the enqueue id of the first attempt, so that nothing is added if that attempt succeeded
                    self._send_out([self._encoded(0, follower.message, follower.delay)])
                except BrokerConnectionError:
                    raise
                except Exception as error:
                    self._condemn_at_last(finished, follower.message, error)
                finished.pending_followers = finished.pending_followers[1:]
        finally:
            self.finished.delivery = None

    def _enqueue(self, messages: Sequence[tuple[Message[Any], int | None]]) -> list[Message[Any]]:
        return self._send_out([self._outgoing(place, *one) for place, one in enumerate(messages)])

    def _send_out(self, all_outgoing: Sequence[_Outgoing]) -> list[Message[Any]]:
        if any(expires_in_ms_of(outgoing.message.options) is not None for outgoing in all_outgoing):
            all_outgoing = self._with_expiry(all_outgoing)
        if len(all_outgoing) == 1 and self._is_plain(all_outgoing[0]):
            return [self._enqueue_plain(all_outgoing[0])]
        by_queue: dict[str, list[_Outgoing]] = {}
        for outgoing in all_outgoing:
            by_queue.setdefault(outgoing.queue_name, []).append(outgoing)
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

    def _with_expiry(self, all_outgoing: Sequence[_Outgoing]) -> list[_Outgoing]:
        """Return the messages with their expiry times, each on the clock of its queue's server."""
        now_ms: dict[str, int] = {}
        stamped = []
        for outgoing in all_outgoing:
            message, expires_in_ms = outgoing.message, expires_in_ms_of(outgoing.message.options)
            if expires_in_ms is not None:
                queue_name = outgoing.queue_name
                if queue_name not in now_ms:
                    now_ms[queue_name] = self._server_ms(self._keys[queue_name])
                expires_at_ms = now_ms[queue_name] + delay_ms_of(outgoing.delay) + expires_in_ms
                options = {**message.options, EXPIRES_AT: min(expires_at_ms, LARGEST)}
                options.pop("eta", None)
                payload = dataclasses.replace(message, options=options).encode()
                outgoing = dataclasses.replace(outgoing, payload=payload)
            stamped.append(outgoing)
        return stamped

    def _server_ms(self, keys: QueueKeys) -> int:
        """Return the time on the clock of a queue's server, in ms.

        Raises:
            ConnectionFailed: Redis did not answer. Nothing was enqueued.
        """
        try:
            seconds, microseconds = self._until_answered(
                lambda: self._connections.run("TIME", key=keys.stream, is_repeatable=True), ()
            )
        except ConnectionClosed as error:
            raise ConnectionFailed(f"{error}; nothing was enqueued") from error
        return int(seconds) * 1000 + int(microseconds) // 1000

    def _is_plain(self, outgoing: _Outgoing) -> bool:
        """Return whether enqueue_plain.lua can enqueue the message."""
        options = outgoing.message.options
        return (
            not outgoing.delay
            and self._settings.max_queue_length is None
            and unique_key_of(options) is None
            and key_limits_of(outgoing.message) is None
        )

    def _enqueue_plain(self, outgoing: _Outgoing) -> Message[Any]:
        keys = self._keys[outgoing.queue_name]
        recent, enqueue_id, remember_ms = self._name_of_call(0, keys, [outgoing])
        script_keys, args = (keys.stream, recent, keys.counters), (enqueue_id, remember_ms, outgoing.payload)
        self._until_answered(lambda: self._connections.run_script(ENQUEUE_PLAIN, script_keys, args), [outgoing])
        self._broker.emit_after("enqueue", outgoing.message, outgoing.delay)
        return outgoing.message

    def _outgoing(self, place: int, message: Message[Any], delay: int | None) -> _Outgoing:
        """Call the middleware before a message is enqueued, then check and encode the message."""
        if isinstance(message, MessageProxy):
            message = message.copy()
        try:
            message = with_types(message)
            self._broker.emit_before("enqueue", message, delay)
            check_text(message)
            if message.options:
                check_options(message.options)
            if delay is not None:
                check_options({"delay": delay})
        except (UndecodableEntry, InvalidOption) as error:
            raise InvalidMessage(error, message_id=str(message.message_id)) from error
        return self._encoded(place, message, delay)

    def _encoded(self, place: int, message: Message[Any], delay: int | None) -> _Outgoing:
        stored = message
        if "eta" in message.options:
            # convert an eta, which is on the producer's clock, to a delay, which is measured on the server's
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
        shards = self._shards.get(message.queue_name)
        return _Outgoing(place, message, payload, delay, message.queue_name if shards is None else shards.home(message))

    def _call(self, step: int, keys: QueueKeys, chunk: Sequence[_Outgoing]) -> tuple[list[str], list[Argument]]:
        """Return the KEYS and ARGV of enqueue.lua for one chunk of messages."""
        following = self.finished.delivery
        recent, enqueue_id, remember_ms = self._name_of_call(step, keys, chunk)
        script_keys = [*keys.work, recent, keys.counters]
        # a follow-up message is never refused, because it takes the place of the finished message
        max_length = 0 if following is not None else self._settings.max_queue_length or 0
        args: list[Argument] = [enqueue_id, remember_ms, max_length]
        for outgoing in chunk:
            # most messages have no options and no delay
            if following is None and not (outgoing.message.options or outgoing.delay):
                args += (outgoing.payload, "", 0, outgoing.message.message_id, 0, 0, "", "", 1)
                continue
            delay_ms = delay_ms_of(outgoing.delay)
            unique_key, lock, unique_for_ms = unique_key_of(outgoing.message.options), 0, 0
            if unique_key is not None:
                script_keys.append(keys.unique(unique_key))
                lock = len(script_keys)
                unique_for_ms = self._settings.lock_ms(outgoing.message.options, delay_ms)
            limits = key_limits_of(outgoing.message)
            name = "" if limits is None else limits.name_in_delayed()
            if limits is None and delay_ms:
                name = token_hex(8)
            args += (outgoing.payload, name, delay_ms, outgoing.message.message_id, lock, unique_for_ms)
            args += ("", "") if limits is None else (limits.name, limits.stored)
            args.append(int(not self._is_waited_for(outgoing.message, following)))
        return script_keys, args

    def _is_waited_for(self, message: Message[Any], following: Delivery | None) -> bool:
        """Return whether a pipeline or a group could not complete if the message were coalesced."""
        if is_part_of_composition(message.options):
            return True
        target = None if following is None else following.options.get("pipe_target")
        return target is not None and str(target.get("message_id")) == message.message_id

    def _name_of_call(self, step: int, keys: QueueKeys, chunk: Sequence[_Outgoing]) -> tuple[str, str, int]:
        """Return the key under which Redis remembers a call, the enqueue id to store there, and its lifetime in ms."""
        following = self.finished.delivery
        if following is None or len(chunk) > 1:
            recent, enqueue_id = self._calls.next_call(keys, step)
            return recent, enqueue_id, 2 * self._settings.enqueue_timeout_ms + REMEMBER_EXTRA_MS
        # If the worker dies before the acknowledgement, the job runs again and enqueues its follow-up message again,
        # from the same entry and with the same message id. A retry has a new entry, so its follow-up messages are new.
        message = chunk[0].message
        enqueue_id = following.name_of_follower(message)
        recent = keys.recent(enqueue_id)
        if (shared := following.shared_followers.get(message.message_id)) is not None:
            return recent, enqueue_id, shared.remember_ms
        following.remember_follower(recent)
        return recent, enqueue_id, REMEMBER_FOLLOWERS_MS

    def _send_where_room_is(self, chunks: Sequence[tuple[QueueKeys, Sequence[_Outgoing]]]) -> list[Any]:
        """Send the chunks, and return the replies of enqueue.lua. Full queues are retried for ``wait_when_full_ms``.

        If ``max_queue_length`` is set, the chunks for a queue are sent one after the other. If a chunk is refused, the
        later chunks for the queue are not sent and get the same reply. Otherwise a later one could overtake it.
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
        """Send the chunks in one round trip, and return the reply of enqueue.lua for each."""
        calls = [self._call(step, keys, chunk) for step, (keys, chunk) in enumerate(chunks)]
        return self._until_answered(
            lambda: self._connections.run_scripts(ENQUEUE, calls),
            [outgoing for _, chunk in chunks for outgoing in chunk],
        )

    def _until_answered(self, send: Callable[[], T], sent: Sequence[_Outgoing]) -> T:
        """Send a call again after each connection error until there is a reply; return the reply.

        Raises:
            EnqueueUncertain: ``enqueue_timeout_ms`` has passed, and Redis may have executed the call.
            BrokerConnectionError: ``enqueue_timeout_ms`` has passed, and Redis has not executed the call.
        """
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
    queue_name: str  # the name of the shard, if the queue has several


class _Calls(threading.local):
    """The enqueue ids of one thread, which has at most one call in flight."""

    def __init__(self) -> None:
        self._name = token_hex(8)
        self._n_calls = 0

    def next_call(self, keys: QueueKeys, step: int) -> tuple[str, str]:
        """Return the key under which Redis remembers the thread's next call, and the call's enqueue id.

        Each chunk of a call has its own key, because one chunk may fail while others succeed.
        """
        self._n_calls += 1
        return keys.recent(f"{self._name}:{step}"), str(self._n_calls)


def is_refusal(error: BaseException) -> bool:
    """Return whether the server refused the command, for example because of full memory, a full disk or a failover."""
    return isinstance(error.__cause__, redis.ResponseError)
