"""A Dramatiq broker on Redis Streams.

Messages are delivered at least once, whatever dies: a worker, a connection, Redis itself as far as it persists. Who
uses it needs idempotent actors and nothing else. README.md tells what is guaranteed and what is not; ``keys.py`` what
lies where in Redis.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from secrets import token_hex
from typing import Any, NoReturn, TypeVar

import redis
from dramatiq import Actor, Broker, Message, Middleware
from dramatiq.broker import MessageProxy
from dramatiq.errors import BrokerConnectionError, ConnectionClosed, QueueJoinTimeout, QueueNotFound
from dramatiq.middleware import Callbacks, GroupCallbacks, MiddlewareError, Pipelines, TimeLimit
from dramatiq.threading import Interrupt

from . import master
from .connections import Argument
from .consumer import StreamsConsumer
from .dead_letters import DeadLetters
from .deliveries import Delivery, Follower, not_followed, unhandled_failure
from .entries import EntryDecoder, MessageCheck, check_text, with_types
from .errors import (
    DeliveryLimitReached,
    EnqueueUncertain,
    InvalidMessage,
    InvalidOption,
    LeaseLost,
    MessageTooLarge,
    QueueFull,
    UndecodableEntry,
)
from .inspector import Inspector
from .keys import QueueKeys
from .listeners import Listeners, Method
from .options import check_options, delay_ms_of, is_part_of_composition, name_in_delayed, ordering_key_of, unique_key_of
from .progress import FOREVER, Limits
from .scripts import ENQUEUE, ENQUEUE_PLAIN, FLUSH, PAUSE, SIZE, STATS
from .session import REMEMBER_FOLLOWERS_MS, Session
from .settings import DAY_MS, BrokerSettings
from .stats import QueueStats, stats_from

T = TypeVar("T")

DEFAULT_URL = "redis://127.0.0.1:6379/0"

# A client that lost a reply repeats itself within enqueue_timeout_ms; twice that and some is remembered.
REMEMBER_EXTRA_MS = 10_000
MESSAGES_PER_CALL = 200
# How soon a full queue is asked again at first.
FIRST_PAUSE_S = 0.01

# What enqueues the message that follows a finished one: when it raises, that is lost.
FOLLOWING = (Callbacks, Pipelines, GroupCallbacks)

_brokers: weakref.WeakSet[RedisStreamsBroker] = weakref.WeakSet()


class RedisStreamsBroker(Broker):
    """Dramatiq's broker contract on Redis Streams, Redis 6.2 or later.

    Making one and declaring actors opens no connection. Threads start with the first ``consume``.

    Args:
        url: of the Redis server; ``redis://127.0.0.1:6379/0`` when neither this nor ``client`` is given.
        client: to take the connection settings from, as for TLS, Sentinel or Cluster; its ``decode_responses`` must be
            False.
        middleware: as for every broker: None for Dramatiq's defaults; a producer may pass ``[]``.
        decoders: per queue, for entries that are not one field ``message``.
        checks: per queue, called with each Dramatiq message that was read; raises ``UndecodableEntry`` to refuse it.
            For a queue whose writers are trusted with less than Dramatiq's options can do.
        namespace, group, lease_ms, …: see :class:`~broker.settings.BrokerSettings`.

    Raises:
        SettingsError: a setting cannot be used.
    """

    queues: set[str]

    def __init__(
        self,
        url: str | None = None,
        *,
        client: redis.Redis | redis.RedisCluster | None = None,
        namespace: str = "streams",
        group: str = "cluster-workers",
        middleware: list[Middleware] | None = None,
        lease_ms: int = 30_000,
        max_deliveries: int = 5,
        max_message_bytes: int = 1 << 20,
        max_read_bytes: int = 16 << 20,
        max_queue_length: int | None = None,
        wait_when_full_ms: int = 0,
        queue_priorities: Mapping[str, int] | None = None,
        decoders: Mapping[str, EntryDecoder] | None = None,
        checks: Mapping[str, MessageCheck] | None = None,
        dead_letter_ttl_ms: int = 7 * DAY_MS,
        dead_letter_max: int = 100_000,
        unique_for_ms: int = DAY_MS,
        enqueue_timeout_ms: int = 5_000,
        keeper_process: bool = True,
        master_grace_ms: int | None = 30_000,
        overrun_ms: int | None = 60_000,
        read_ahead_ms: int = 15,
    ) -> None:
        if client is not None and url is not None:
            raise TypeError("give a url or a client, not both")
        self.settings = BrokerSettings(
            namespace=namespace,
            group=group,
            lease_ms=lease_ms,
            max_deliveries=max_deliveries,
            max_message_bytes=max_message_bytes,
            max_read_bytes=max_read_bytes,
            max_queue_length=max_queue_length,
            wait_when_full_ms=wait_when_full_ms,
            queue_priorities=dict(queue_priorities or {}),
            dead_letter_ttl_ms=dead_letter_ttl_ms,
            dead_letter_max=dead_letter_max,
            unique_for_ms=unique_for_ms,
            enqueue_timeout_ms=enqueue_timeout_ms,
            keeper_process=keeper_process,
            master_grace_ms=master_grace_ms,
            overrun_ms=overrun_ms,
            read_ahead_ms=read_ahead_ms,
        )
        self._client: redis.Redis | redis.RedisCluster = (
            client if client is not None else redis.Redis.from_url(url or DEFAULT_URL)
        )
        self._decoders = dict(decoders or {})
        self._checks = dict(checks or {})
        self._following = threading.local()
        self._producer = _Producer()
        self._keys_by_queue: dict[str, QueueKeys] = {}
        self._listeners = Listeners()
        super().__init__(middleware=middleware)
        self.queues = set()
        self._session = self._new_session()
        _brokers.add(self)

    def declare_actor(self, actor: Actor[Any, Any]) -> None:
        """Declare an actor, and its queue.

        Raises:
            InvalidOption: an option of it would raise in the middleware that decides how its messages end.
        """
        check_options(actor.options)
        super().declare_actor(actor)

    def declare_queue(self, queue_name: str) -> None:
        """Declare a queue; nothing is asked of Redis. Declaring it twice does nothing."""
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues.add(queue_name)
            self.emit_after("declare_queue", queue_name)

    def get_declared_queues(self) -> set[str]:
        return self.queues.copy()

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Add a message to its queue; neither queue nor actor need be declared here. Thread-safe.

        Args:
            delay: ms from now, on the server's clock.

        Returns:
            The message; or, where its option ``unique_key`` is that of a waiting message, one with that one's
            ``message_id``: nothing was added then. The option ``unique_for_ms`` bounds how long the key is locked. A
            message of a pipeline or of a group with callbacks is added in any case: these would never end otherwise.
            Messages with the same option ``ordering_key`` run one at a time, in the order in which they were enqueued:
            a failed one that is tried again holds up those behind it, and so does a delayed one.

        Raises:
            ConnectionFailed: nothing was sent.
            EnqueueUncertain: it was sent, and no answer came within ``enqueue_timeout_ms``.
            QueueFull: the queue holds ``max_queue_length`` messages, and did so for ``wait_when_full_ms``.
            MessageTooLarge: it has more than ``max_message_bytes``.
            InvalidMessage: it could not be run: a field or an option has the wrong type.
        """
        if isinstance(message, Delivery) and message.is_being_retried:
            return self._retry(message, delay)
        finished: Delivery | None = getattr(self._following, "delivery", None)
        if finished is not None:
            return self._follow(finished, message, delay)
        return self._enqueue([(message, delay)])[0]

    def enqueue_many(self, messages: Iterable[Message[Any]]) -> list[Message[Any]]:
        """Add messages, in one round trip; what comes back is as from ``enqueue``, in the same order.

        All messages of one queue are added or none, up to 200 of them, or ``max_queue_length`` if that is less. More go
        in several steps: of the same round trip, or one after the other where ``max_queue_length`` bounds a queue.
        A message's option ``delay`` delays it.

        Raises:
            As ``enqueue`` does. Messages of other queues, or of earlier steps, may have been added then: a QueueFull
                names those that were not.
        """
        return self._enqueue([(message, message.options.get("delay")) for message in messages])

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30_000) -> StreamsConsumer:
        """A consumer of a declared queue.

        Args:
            prefetch: how many messages it gives out at most, those that run included. What it reads ahead of that is
                bounded by ``read_ahead_ms``.
            timeout: ms after which its ``__next__`` returns None.

        Raises:
            QueueNotFound: the queue was not declared.
            BrokerConnectionError: Redis did not answer.
        """
        if queue_name not in self.queues:
            raise QueueNotFound(queue_name)
        return self._session.consume(
            self._keys(queue_name),
            self._decoders.get(queue_name),
            self._checks.get(queue_name),
            prefetch=prefetch,
            timeout_ms=timeout,
        )

    @property
    def consumer_name(self) -> str:
        """The name under which this process consumes; another after a fork or a ``close``."""
        return self._session.consumer_name

    def consumers_moved_at(self) -> Mapping[str, float]:
        """When the consumer of each queue of this process was last asked for a message, or for itself.

        On the clock of ``time.monotonic``. A Worker asks again within its ``worker_timeout``, or the timeouts of its
        connections where Redis does not answer: who is silent for a minute hangs.
        """
        return dict(self._session.moved_at)

    def stats(self, queue_name: str) -> QueueStats:
        """What the queue holds, read in one step and one round trip."""
        keys = self._keys(queue_name)
        answer = self._session.connections.run_script(
            STATS,
            (keys.stream, keys.delayed, keys.dead, keys.consumers, keys.paused, keys.counters, keys.line),
            (self.settings.group, self.settings.lease_ms, 1_000),
        )
        return stats_from(answer, queue_name=queue_name, lease_ms=self.settings.lease_ms)

    def counters(self, queue_name: str) -> Mapping[str, int]:
        """What happened in the queue since it exists; what never happened is missing from the mapping and reads as 0.

        enqueued, coalesced (of a unique key), stale_locks (of a unique key whose message was removed by hand), acked,
        late (acknowledged after another had taken it), retried, promoted (delayed ones that fell due), dead, removed
        (entries that this broker took out of the stream, however they ended), requeued (dead letters), recovered (of
        dead consumers), handed_back, redelivered (reply was lost), rescued (by hand), orphaned, ghosts (pending without
        entry), fenced (refused to who lost the entry).
        """
        flat = self._session.connections.run("HGETALL", self._keys(queue_name).counters)
        return _Counters({name.decode(): int(value) for name, value in zip(flat[::2], flat[1::2], strict=True)})

    def dead_letters(self, queue_name: str) -> DeadLetters:
        """The dead letters of the queue: list, get, requeue, purge."""
        return DeadLetters(self._session.connections, self._keys(queue_name), self.settings)

    def inspector(self, queue_name: str) -> Inspector:
        """The entries of the queue for people: look, rescue, retire a consumer."""
        keys = self._keys(queue_name)
        decoder, check = self._decoders.get(queue_name), self._checks.get(queue_name)
        return Inspector(self._session.connections, self.settings, keys, decoder, check)

    def pause(self, queue_name: str) -> None:
        """Deliver nothing more of the queue, in any process, until ``resume``; restarts do not end it.

        Works within a second or so, also on a server that is full. What is running goes on; what waits in a process's
        Worker already is run.
        """
        keys = self._keys(queue_name)
        self._session.connections.run_script(PAUSE, (keys.paused, keys.timer), (1,))

    def resume(self, queue_name: str) -> None:
        """End a pause, also on a server that is full."""
        keys = self._keys(queue_name)
        self._session.connections.run_script(PAUSE, (keys.paused, keys.timer), (0,))

    def flush(self, queue_name: str) -> None:
        """Drop what the queue holds: waiting, in flight, delayed. Dead letters stay. Running jobs run to their end."""
        keys = self._keys(queue_name)
        self._session.connections.run_script(
            FLUSH,
            (
                keys.stream,
                keys.counters,
                keys.delayed,
                keys.line,
                keys.delayed_messages,
                keys.messages_in_line,
                keys.ordered,
                keys.holders,
                keys.suspects,
            ),
            (self.settings.group,),
        )
        cursor: Any = 0
        while True:
            # the locks of what was dropped; their names are known to nobody
            cursor, names = self._session.connections.run(
                "SCAN", cursor, "MATCH", _literally(keys.unique("")) + "*", "COUNT", 1_000, key=keys.stream
            )
            if names:
                self._session.connections.run("DEL", *names)
            if int(cursor) == 0:
                return

    def flush_all(self) -> None:
        """Flush every declared queue."""
        for queue_name in self.get_declared_queues():
            self.flush(queue_name)

    def join(self, queue_name: str, *, interval: int = 20, timeout: int | None = None) -> None:
        """Wait until the queue holds nothing: waiting, in flight and delayed, counted in one step. For tests.

        Args:
            interval: ms between two looks.
            timeout: ms to wait at most.

        Raises:
            QueueJoinTimeout: it still held something after ``timeout``.
        """
        keys = self._keys(queue_name)
        deadline = None if timeout is None else time.monotonic() + timeout / 1000
        while self._session.connections.run_script(SIZE, (keys.stream, keys.delayed, keys.line), ()):
            if deadline is not None and time.monotonic() >= deadline:
                raise QueueJoinTimeout(queue_name)
            time.sleep(interval / 1000)

    def close(self) -> None:
        """Write what is to be written and stop every thread. Closing twice does nothing."""
        self._session.stop()
        # what is used after that, as by the next Worker of a test, begins under a new name
        self._session = self._new_session()

    # Dramatiq offers no place in the middleware list that is certain to be the first before and the last after
    # whatever users add later; the broker's own part in a message's life therefore stands here. To call every
    # middleware at every signal, as Dramatiq does, would be a third of what a short message costs; see listeners.py.

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        if signal == "process_message" and isinstance(args[0], Delivery):
            self._before_run(args[0])
        elif signal == "worker_shutdown":
            self._session.is_draining = True
            self._session.isolation.release()
            if (ours := master.of_this_process()) is not None:
                ours.is_draining = True
        # How a delivery ends was decided before: refused here, it would be neither acknowledged nor rejected.
        is_refusable = signal not in ("ack", "nack") or not isinstance(args[0], Delivery)
        name = f"before_{signal}"
        for method in self._listeners.of(self.middleware, name):
            try:
                method(self, *args, **kwargs)
            except MiddlewareError:
                if is_refusable:
                    raise
                self._log_failure_of(name, method)
            except Exception:
                self._log_failure_of(name, method)

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        if signal == "process_boot":  # which only Dramatiq's command emits, in its worker processes
            master.begin_watch(self.settings.master_grace_ms)
        delivery = args[0] if signal in ("process_message", "skip_message") else None
        if not isinstance(delivery, Delivery):
            self._tell(f"after_{signal}", *args, **kwargs)
            return
        if delivery.pid != os.getpid():
            _end_child_of_job(kwargs.get("exception"))
        if delivery.is_lost:
            # It was neither run nor skipped: it is another's. Results would store an answer for it.
            return
        self._following.delivery = delivery
        try:
            failures = self._tell(f"after_{signal}", *args, **kwargs)
            if delivery.is_doomed:
                self._call_back_of_failure(delivery)
            if signal == "skip_message":
                self._follow_with_coalesced(delivery)
            elif kwargs.get("exception") is not None:
                self._check_failure(delivery, failures)
            else:
                self._check_success(delivery, failures)
        finally:
            self._following.delivery = None

    def _check_failure(self, delivery: Delivery, failures: Sequence[tuple[Method, BaseException]]) -> None:
        """Reject a message that failed, and that no middleware failed or tried again."""
        if delivery.is_handled or delivery._exception is None:  # a middleware may take the exception away
            return
        if delivery.is_being_retried and any(isinstance(error, Interrupt) for _, error in failures):
            return  # between counting and enqueueing it: ``Consumer.ack`` does the rest
        delivery.unhandled = unhandled_failure(*(_named(method, error) for method, error in failures))
        delivery.fail()

    def _check_success(self, delivery: Delivery, failures: Sequence[tuple[Method, BaseException]]) -> None:
        """Keep a message from being acknowledged where the middleware raised that enqueues what follows it."""
        for method, error in failures:
            if isinstance(getattr(method, "__self__", None), FOLLOWING):
                delivery.unhandled = not_followed(_named(method, error))

    def _follow_with_coalesced(self, skipped: Delivery) -> None:
        """Enqueue what was coalesced onto a message that a middleware skipped: it was cancelled, or is too old."""
        if skipped.coalesced is None:
            return
        try:
            self._follow(skipped, Message.decode(skipped.coalesced), None)
        except Exception as error:
            self.logger.exception("what was coalesced onto a skipped message cannot be enqueued")
            skipped.unhandled = not_followed(f"{type(error).__name__}: {error}")

    def _call_back_of_failure(self, delivery: Delivery) -> None:
        """Have Dramatiq's callbacks told of a message that is not run any more: they hear only of those that ran."""
        for callbacks in self.middleware:
            if isinstance(callbacks, Callbacks):
                try:
                    callbacks.after_process_message(self, delivery, exception=delivery._exception)
                except Exception:
                    self.logger.critical("Unexpected failure in %r.", callbacks, exc_info=True)

    def _before_run(self, delivery: Delivery) -> None:
        """Raises SkipMessage when the message must not run here."""
        if delivery.is_doomed:
            delivery.fail()
            raise DeliveryLimitReached(message_id=delivery.message_id, deliveries=delivery.deliveries)
        disturbed = self._session.isolation.enter(delivery)  # left by Consumer.ack and nack
        if disturbed is not None:
            self._session.note_company(disturbed)
        if delivery.is_alone:
            self.logger.info("it ran when its process died; it runs alone now", extra={"entry": delivery.entry_id})
        gives_up_at: float | None = None
        while True:
            try:
                may_run = self._session.may_run(delivery)
                break
            except (BrokerConnectionError, redis.RedisError) as error:
                # It cannot be known whose it is. Left alone, it is delivered again by lease or by resync.
                gives_up_at = gives_up_at or time.monotonic() + self.settings.lease_ms / 1000
                if time.monotonic() > gives_up_at:
                    may_run = False
                    break
                self.logger.warning("cannot ask Redis whether a message may run: %s", error)
                time.sleep(0.5)
        if not may_run:
            delivery.is_lost = True
            raise LeaseLost(message_id=delivery.message_id, entry_id=delivery.entry_id)
        delivery.begun_at = time.monotonic()

    def _retry(self, delivery: Delivery, delay: int | None) -> Message[Any]:
        message: Message[Any] = delivery.copy()
        # from here on it is tried again, also where a middleware or Redis refuses it now: see ``Consumer.ack``
        delivery.retry_asked, delivery.retry_delay = True, delay
        self.emit_before("enqueue", message, delay)
        if self._session.begin_retry(delivery, message, delay):
            self.emit_after("enqueue", message, delay)
        return message

    def _follow(self, finished: Delivery, message: Message[Any], delay: int | None) -> Message[Any]:
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
            self.logger.warning("what follows a finished message waits for Redis: %s", error)
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
            self._session.condemn(finished, message, error)
        except (BrokerConnectionError, redis.RedisError) as unreachable:
            self.logger.warning("what follows a finished message waits for Redis: %s", unreachable)
            finished.pending_followers.append(Follower(message, delay))
        return message

    def _condemn_at_last(self, finished: Delivery, message: Message[Any], error: Exception) -> None:
        """Make it a dead letter, or the finished message where it cannot be encoded."""
        try:
            self._session.condemn(finished, message, error)
        except (BrokerConnectionError, redis.RedisError):
            raise
        except Exception:
            finished.unhandled = not_followed(f"{type(error).__name__}: {error}")

    def _enqueue_followers(self, finished: Delivery) -> None:
        """Enqueue what could not be when the message finished.

        Raises:
            BrokerConnectionError: it still cannot be; the finished message must not be acknowledged.
        """
        self._following.delivery = finished
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
            self._following.delivery = None

    def _enqueue(self, messages: Sequence[tuple[Message[Any], int | None]]) -> list[Message[Any]]:
        all_outgoing = [self._outgoing(place, message, delay) for place, (message, delay) in enumerate(messages)]
        if len(all_outgoing) == 1 and self._is_plain(all_outgoing[0]):
            return [self._enqueue_plain(all_outgoing[0])]
        by_queue: dict[str, list[_Outgoing]] = {}
        for outgoing in all_outgoing:
            by_queue.setdefault(outgoing.message.queue_name, []).append(outgoing)
        n_at_once = min(MESSAGES_PER_CALL, self.settings.max_queue_length or MESSAGES_PER_CALL)
        chunks = [
            (self._keys(queue_name), of_queue[start : start + n_at_once])
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
                    self.emit_after("enqueue", outgoing.message, outgoing.delay)
                else:
                    waiting = dataclasses.replace(outgoing.message, message_id=holder.decode())
                    returned[outgoing.place] = waiting
        if refused:
            queue_name, (length, _) = next(iter(refused.items()))
            raise QueueFull(
                queue_name=queue_name,
                length=length,
                limit=self.settings.max_queue_length or 0,
                message_ids=tuple(message_id for _, message_ids in refused.values() for message_id in message_ids),
            )
        return returned

    def _is_plain(self, outgoing: _Outgoing) -> bool:
        """Whether enqueue_plain.lua does for it."""
        options = outgoing.message.options
        return (
            not outgoing.delay
            and self.settings.max_queue_length is None
            and unique_key_of(options) is None
            and ordering_key_of(options) is None
        )

    def _enqueue_plain(self, outgoing: _Outgoing) -> Message[Any]:
        keys = self._keys(outgoing.message.queue_name)
        recent, enqueue_id, remember_ms = self._name_of_call(0, keys, [outgoing])
        script_keys, args = (keys.stream, recent, keys.counters), (enqueue_id, remember_ms, outgoing.payload)
        self._until_answered(lambda: self._session.connections.run_script(ENQUEUE_PLAIN, script_keys, args), [outgoing])
        self.emit_after("enqueue", outgoing.message, outgoing.delay)
        return outgoing.message

    def _outgoing(self, place: int, message: Message[Any], delay: int | None) -> _Outgoing:
        if isinstance(message, MessageProxy):
            message = message.copy()
        try:
            message = with_types(message)
            self.emit_before("enqueue", message, delay)
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
        if len(payload) > self.settings.max_message_bytes:
            raise MessageTooLarge(
                message_id=message.message_id, n_bytes=len(payload), limit=self.settings.max_message_bytes
            )
        return _Outgoing(place, message, payload, delay)

    def _call(self, step: int, keys: QueueKeys, chunk: Sequence[_Outgoing]) -> tuple[list[str], list[Argument]]:
        """KEYS and ARGV of enqueue.lua, as the step of that number of one round trip."""
        following: Delivery | None = getattr(self._following, "delivery", None)
        recent, enqueue_id, remember_ms = self._name_of_call(step, keys, chunk)
        script_keys = [*keys.work, recent, keys.counters]
        # what follows a finished message is never refused: its room was the finished one's
        max_length = 0 if following is not None else self.settings.max_queue_length or 0
        args: list[Argument] = [enqueue_id, remember_ms, max_length]
        for outgoing in chunk:
            delay_ms = delay_ms_of(outgoing.delay)
            unique_key, lock, unique_for_ms = unique_key_of(outgoing.message.options), 0, 0
            if unique_key is not None:
                script_keys.append(keys.unique(unique_key))
                lock = len(script_keys)
                unique_for_ms = self.settings.lock_ms(outgoing.message.options, delay_ms)
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
        following: Delivery | None = getattr(self._following, "delivery", None)
        if following is None or len(chunk) > 1:
            recent, enqueue_id = self._producer.next_call(keys, step)
            return recent, enqueue_id, 2 * self.settings.enqueue_timeout_ms + REMEMBER_EXTRA_MS
        # What follows a finished message, as the next of a pipeline, is enqueued again when the worker dies before the
        # acknowledgement: from the same entry, with the same message id. Another run is another entry.
        enqueue_id = following.name_of_follower(chunk[0].message)
        return keys.recent(enqueue_id), enqueue_id, REMEMBER_FOLLOWERS_MS

    def _send_where_room_is(self, chunks: Sequence[tuple[QueueKeys, Sequence[_Outgoing]]]) -> list[Any]:
        """The answers to enqueue.lua; full queues are asked again for ``wait_when_full_ms``.

        Where a queue may be full, its chunks go one after the other, and none after a refused one, which has the answer
        of that: a later one that found the room which an earlier one missed would overtake it.
        """
        if self.settings.max_queue_length is None:
            return self._send(chunks) if chunks else []
        answers: list[Any] = [None] * len(chunks)
        unsent: dict[str, deque[int]] = {}
        for place, (keys, _) in enumerate(chunks):
            unsent.setdefault(keys.queue_name, deque()).append(place)
        deadline, pause_s = time.monotonic() + self.settings.wait_when_full_ms / 1000, FIRST_PAUSE_S
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
            lambda: self._session.connections.run_scripts(ENQUEUE, calls),
            [outgoing for _, chunk in chunks for outgoing in chunk],
        )

    def _until_answered(self, send: Callable[[], T], sent: Sequence[_Outgoing]) -> T:
        """The answer to a call, which is sent again, under the same enqueue id, while the connection is to blame."""
        deadline = time.monotonic() + self.settings.enqueue_timeout_ms / 1000
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

    def _keys(self, queue_name: str) -> QueueKeys:
        keys = self._keys_by_queue.get(queue_name)
        if keys is None:
            keys = self._keys_by_queue[queue_name] = QueueKeys(self.settings.namespace, queue_name)
        return keys

    def _new_session(self) -> Session:
        limits = Limits(of=self._time_limit_s, longest=self._longest_time_limit_s)
        return Session(self._client, self.settings, self._tell, self._enqueue_followers, limits)

    def _time_limit_s(self, delivery: Delivery) -> float:
        """The time limit of a message, as Dramatiq's middleware reads it; infinite where there is none."""
        actor = self.actors.get(delivery.actor_name)
        for middleware in self.middleware:
            if isinstance(middleware, TimeLimit):
                of_actor = middleware.time_limit if actor is None else actor.options.get("time_limit")
                return _seconds(delivery.options.get("time_limit") or of_actor or middleware.time_limit)
        return FOREVER

    def _longest_time_limit_s(self) -> float:
        for middleware in self.middleware:
            if isinstance(middleware, TimeLimit):
                limits = (actor.options.get("time_limit") for actor in list(self.actors.values()))
                return max(_seconds(limit or middleware.time_limit) for limit in (None, *limits))
        return FOREVER

    def _tell(self, signal: str, *args: Any, **kwargs: Any) -> Sequence[tuple[Method, BaseException]]:
        """Call the method of that name of every middleware that has one, the last first; signals of ours as well.

        Returns:
            the methods that raised, and what they raised.
        """
        failures: list[tuple[Method, BaseException]] = []
        for method in reversed(self._listeners.of(self.middleware, signal)):
            try:
                method(self, *args, **kwargs)
            except (Exception, Interrupt) as error:
                # An interrupt was meant for the job, which has ended. It would keep the others from hearing of that.
                self._log_failure_of(signal, method)
                failures.append((method, error))
        return failures

    def _log_failure_of(self, name: str, method: Method) -> None:
        self.logger.critical(
            "Unexpected failure in %s of %r.", name, getattr(method, "__self__", method), exc_info=True
        )

    def _after_fork(self) -> None:
        """Begin anew in a child process: its parent's locks, sockets and messages are not its own."""
        self._following = threading.local()
        self._producer = _Producer()
        self._session.abandon()
        self._session = self._new_session()


@dataclasses.dataclass(frozen=True, slots=True)
class _Outgoing:
    place: int
    message: Message[Any]
    payload: bytes
    delay: int | None


class _Producer(threading.local):
    """Names the calls of one thread, which has one of them under way at a time."""

    def __init__(self) -> None:
        self._name = token_hex(8)
        self._n_calls = 0

    def next_call(self, keys: QueueKeys, step: int) -> tuple[str, str]:
        """Where a call is remembered, and as what. Each step of a round trip may fail alone: each has its own place."""
        self._n_calls += 1
        return keys.recent(f"{self._name}:{step}"), str(self._n_calls)


def _named(method: Method, error: BaseException) -> str:
    """Return the name of the middleware whose method raised, and what it raised."""
    return f"{type(getattr(method, '__self__', method)).__name__} raised {type(error).__name__}: {error}"


class _Counters(dict[str, int]):
    """Counters that read 0 where nothing was counted yet."""

    def __missing__(self, name: str) -> int:
        return 0


def _seconds(limit_ms: object) -> float:
    return limit_ms / 1000 if isinstance(limit_ms, int | float) else FOREVER


def is_refusal(error: BaseException) -> bool:
    """Whether the server answered, and did nothing: memory, disk, a failover."""
    return isinstance(error.__cause__, redis.ResponseError)


def _end_child_of_job(error: BaseException | None) -> NoReturn:
    """End a process that a job forked and that has left the job, as by ``sys.exit``.

    It stands in a copy of the worker's loop: what it would write now, and run next, is its parent's.
    """
    code = 0 if error is None else 1
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code & 0xFF)


def _literally(text: str) -> str:
    """A pattern for SCAN that matches this text and no other."""
    return "".join(f"\\{letter}" if letter in "*?[]\\^" else letter for letter in text)


def _after_fork_in_child() -> None:
    for broker in list(_brokers):
        try:
            broker._after_fork()
        except Exception:
            # the others must begin anew all the same: two processes under one name lose messages
            broker.logger.exception("a broker could not begin anew in a forked process")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
