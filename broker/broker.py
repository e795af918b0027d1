"""A Dramatiq broker on Redis Streams.

Messages are delivered at least once, even if a worker, a connection or Redis itself fails, unless Redis loses data. So
actors must be idempotent. README.md lists the guarantees and their limits; ``keys.py`` lists the Redis keys.
"""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from threading import get_ident
from typing import Any, NoReturn

import redis
from dramatiq import Actor, Broker, Message, Middleware
from dramatiq.errors import BrokerConnectionError, QueueJoinTimeout, QueueNotFound
from dramatiq.middleware import (
    Callbacks,
    CurrentMessage,
    GroupCallbacks,
    MiddlewareError,
    Pipelines,
    Retries,
    ShutdownNotifications,
    SkipMessage,
    TimeLimit,
)
from dramatiq.threading import Interrupt

from . import master
from .cancellation import Cancellation, Canceller, CancelOutcome, together
from .consumer import StreamsConsumer
from .coroutines import Coroutines
from .dead_letters import DeadLetters
from .deliveries import Delivery, not_followed, unhandled_failure
from .entries import EntryDecoder, MessageCheck
from .errors import Cancelled, DeliveryLimitReached, InvalidOption, LeaseLost, MessageCancelled, MessageExpired
from .group_callbacks import Groups
from .inspector import Inspector, Selection
from .keys import KeysByQueue
from .middleware import Listeners, Method
from .options import check_options
from .producer import Producer
from .running.batches import Batch, Batcher, NotDoneInBatch
from .running.judgement import limits_of
from .running.progress import Progress
from .scripts import FLUSH, PAUSE, SIZE, STATS
from .session import Session
from .settings import DAY_MS, BrokerSettings
from .sharding.shards import BucketOf, Shards, base_name
from .stats import QueueStats, stats_from, total_of

DEFAULT_URL = "redis://127.0.0.1:6379/0"

# Middleware classes that enqueue follow-up messages. If one of them raises, the message must not be acknowledged,
# because its follow-up message would be lost.
FOLLOWING = (Callbacks, Pipelines, GroupCallbacks)

# Middleware classes that act on the thread that runs a message. They are called once per batch.
OF_THREAD = (TimeLimit, ShutdownNotifications)
# Middleware classes that handle failures. They are not called for messages that a batch did not mark as done.
DECIDING = (Retries, Callbacks)

_brokers: weakref.WeakSet[RedisStreamsBroker] = weakref.WeakSet()


class RedisStreamsBroker(Broker):
    """A Dramatiq broker that stores messages in Redis Streams. It requires Redis 6.2 or later.

    Creating a broker and declaring actors opens no connection. Threads start with the first call of ``consume``.

    Args:
        url: the Redis server; ``redis://127.0.0.1:6379/0`` when neither this nor ``client`` is given.
        client: a redis-py client whose connection settings are used, for example for TLS, Sentinel or Cluster. It must
            have ``decode_responses=False``.
        middleware: the middleware; None for Dramatiq's defaults. A producer may pass ``[]``.
        sharded: the queues that may be divided into shards, each with a function that returns an integer for a
            message. Messages with the same integer are in the same shard. See ``set_shards``.
        decoders: a decoder for each queue that has entries without a Dramatiq message in the field ``message``.
        checks: a check for each queue whose producers must not be able to use every Dramatiq option. It is called
            with each Dramatiq message that was read, and raises ``UndecodableEntry`` to refuse it.
        namespace, group, lease_ms, …: see :class:`~broker.settings.BrokerSettings`.

    Raises:
        SettingsError: a setting has an invalid value.
    """

    queues: set[str]
    groups: Groups  # ``GroupCallbacks`` reads this attribute

    def __init__(  # noqa: PLR0913  # users of Dramatiq's brokers expect one keyword per setting
        self,
        url: str | None = None,
        *,
        client: redis.Redis | redis.RedisCluster | None = None,
        namespace: str = "streams",
        group: str = "workers",
        middleware: list[Middleware] | None = None,
        lease_ms: int = 30_000,
        max_deliveries: int = 5,
        max_message_bytes: int = 1 << 20,
        max_read_bytes: int = 16 << 20,
        max_queue_length: int | None = None,
        wait_when_full_ms: int = 0,
        queue_priorities: Mapping[str, int] | None = None,
        sharded: Mapping[str, BucketOf] | None = None,
        decoders: Mapping[str, EntryDecoder] | None = None,
        checks: Mapping[str, MessageCheck] | None = None,
        dead_letter_ttl_ms: int = 7 * DAY_MS,
        dead_letter_max: int = 10_000,
        dead_letter_max_bytes: int = 64 << 20,
        unique_for_ms: int = DAY_MS,
        ordering_hold_ms: int | None = DAY_MS,
        enqueue_timeout_ms: int = 5_000,
        keeper_process: bool = True,
        master_grace_ms: int | None = 30_000,
        overrun_ms: int | None = 60_000,
        read_ahead_ms: int = 15,
        long_job_ms: int | None = 50,
    ) -> None:
        if client is not None and url is not None:
            raise TypeError("expected a url or a client, got both; pass one of them")
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
            dead_letter_max_bytes=dead_letter_max_bytes,
            unique_for_ms=unique_for_ms,
            ordering_hold_ms=ordering_hold_ms,
            enqueue_timeout_ms=enqueue_timeout_ms,
            keeper_process=keeper_process,
            master_grace_ms=master_grace_ms,
            overrun_ms=overrun_ms,
            read_ahead_ms=read_ahead_ms,
            long_job_ms=long_job_ms,
        )
        self._client: redis.Redis | redis.RedisCluster = (
            client if client is not None else redis.Redis.from_url(url or DEFAULT_URL)
        )
        self._decoders = dict(decoders or {})
        self._checks = dict(checks or {})
        self._keys = KeysByQueue(namespace, partial(base_name, sharded=dict(sharded or {})))
        self._shards = {
            name: Shards(self._keys[name], bucket_of, self._declare_shard)
            for name, bucket_of in (sharded or {}).items()
        }
        self._producer = Producer(self, self.settings, self._keys, self._shards)
        self._coroutines = Coroutines()
        self._listeners = Listeners()
        self._was_forked = False  # whether this process may have a copy of its parent's messages
        super().__init__(middleware=middleware)
        self.queues = set()
        self._session = self._new_session()
        _brokers.add(self)

    def declare_actor(self, actor: Actor[Any, Any]) -> None:
        """Declare an actor and its queue.

        Raises:
            InvalidOption: an option has a value with which Retries or other middleware would fail on the actor's
                messages.
        """
        check_options(actor.options)
        super().declare_actor(actor)

    def declare_queue(self, queue_name: str) -> None:
        """Declare a queue without contacting Redis. Declaring it twice does nothing."""
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues.add(queue_name)
            self.emit_after("declare_queue", queue_name)

    def get_declared_queues(self) -> set[str]:
        return self.queues.copy()

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Add a message to its queue. Neither the queue nor the actor needs to be declared here. Thread-safe.

        Messages with the same ``ordering_key`` option run one at a time, in the order in which they were enqueued. A
        delayed message, or one that is waiting for its retry, blocks later messages with the key. Retries block them
        for at most ``ordering_hold_ms``, which is a message option and a broker setting.

        Args:
            delay: the delay in ms, measured on the server's clock.

        Returns:
            The message. If another message with the same ``unique_key`` is waiting, nothing is added, and the returned
            message has the ``message_id`` of the waiting one. The option ``unique_for_ms`` limits how long the key is
            locked. Messages in a pipeline, or in a group with callbacks, are always added, because otherwise the
            pipeline or group would never complete.

        Raises:
            ConnectionFailed: no connection could be opened, so nothing was sent.
            EnqueueUncertain: the message was sent, but no reply arrived within ``enqueue_timeout_ms``. If the
                connection had been idle, a new one was tried, too.
            QueueFull: the queue has held ``max_queue_length`` messages for ``wait_when_full_ms``.
            MessageTooLarge: the message is larger than ``max_message_bytes``.
            InvalidMessage: a field or an option has the wrong type, so the message could not run.
        """
        return self._producer.enqueue(message, delay)

    def enqueue_many(self, messages: Iterable[Message[Any]]) -> list[Message[Any]]:
        """Add messages in one round trip. The message option ``delay`` sets a delay in ms.

        The messages for one queue are added in chunks of up to 200 (or ``max_queue_length``, if that is less). Either
        all messages of a chunk are added or none. All chunks share the round trip, unless ``max_queue_length`` is set.
        Then the chunks are sent one after the other.

        Returns:
            The messages in the same order, each as ``enqueue`` returns it.

        Raises:
            The errors of ``enqueue``. Messages of other queues or of earlier chunks may already have been added.
                ``QueueFull`` lists the messages that were not added.
        """
        return self._producer.enqueue_many(messages)

    async def aenqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Call ``enqueue`` in a thread, so that the event loop is not blocked.

        At most eight calls of ``aenqueue`` and ``aenqueue_many`` run at once; further calls wait in order. While Redis
        hangs, each call takes as long as ``enqueue`` would, so limit it with ``asyncio.timeout``.

        If the caller is cancelled, for example by such a timeout, the message may still be enqueued.

        Raises:
            The errors of ``enqueue``.
        """
        return await self._coroutines.run(partial(self.enqueue, delay=delay), message)

    async def aenqueue_many(self, messages: Iterable[Message[Any]]) -> list[Message[Any]]:
        """Call ``enqueue_many`` in a thread, so that the event loop is not blocked.

        ``aenqueue`` describes cancellation and the limit on concurrent calls.
        """
        return await self._coroutines.run(self.enqueue_many, list(messages))

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30_000) -> StreamsConsumer:
        """Return a consumer of a declared queue.

        Args:
            prefetch: the maximum number of messages that the Worker may hold at once, including running ones. If jobs
                are long, it holds fewer; see ``long_job_ms``. The consumer may read further messages ahead; see
                ``read_ahead_ms``.
            timeout: the time in ms after which the consumer's ``__next__`` returns None.

        Raises:
            QueueNotFound: the queue was not declared.
            BrokerConnectionError: Redis did not answer.
        """
        if queue_name not in self.queues:
            raise QueueNotFound(queue_name)
        keys = self._keys[queue_name]
        return self._session.consume(
            keys,
            self._decoders.get(keys.name_of_messages),
            self._checks.get(keys.name_of_messages),
            prefetch=prefetch,
            timeout_ms=timeout,
            shards=self._shards.get(keys.name_of_messages),
        )

    def shards(self, queue_name: str) -> tuple[str, ...]:
        """Return the names of the queue's shards that may hold messages, shard 0 first.

        The result may be five seconds old. Each shard is a queue with its own dead letters, delayed messages and
        inspector. Shard 0 is the queue itself. A queue that is not divided has no other shard.
        """
        shards = self._shards.get(queue_name)
        if shards is None:
            return (queue_name,)
        shards.current()
        return shards.names

    def n_shards(self, queue_name: str) -> int:
        """Return the number of shards to which new messages of the queue are added.

        The result may be five seconds old.
        """
        shards = self._shards.get(queue_name)
        return 1 if shards is None else shards.current().n

    def set_shards(self, queue_name: str, n: int) -> None:
        """Divide a queue into ``n`` shards, where ``n`` is a power of two up to 256. The queue may be in use.

        Every process uses the new number within five seconds. Workers move messages in shard 0 to the shards to which
        they belong, and run messages in other shards where they are. If the number decreases, producers stop adding
        messages to the surplus shards, but workers still run the messages in them.

        Raises:
            InvalidOption: the queue is not in ``sharded``, or ``n`` is not a power of two up to 256.
            BrokerConnectionError: Redis did not answer; the number may have changed.
        """
        shards = self._shards.get(queue_name)
        if shards is None:
            problem = f"queue {queue_name!r} cannot be divided"
            raise InvalidOption("shards", problem, "pass a function for it in the broker's argument sharded")
        shards.change(n)

    def _declare_shard(self, queue_name: str) -> None:
        """Declare a shard as a queue, so that a Worker that consumes the divided queue also consumes the shard."""
        worker = self._session.places.worker
        if worker is not None and worker.consumer_whitelist:
            worker.consumer_whitelist.add(queue_name)
        self.declare_queue(queue_name)

    @property
    def consumer_name(self) -> str:
        """The name under which this process consumes. It changes after a fork and after ``close``."""
        return self._session.consumer_name

    def consumers_moved_at(self) -> Mapping[str, float]:
        """Return the ``time.monotonic`` time at which the Worker last polled each queue, by queue name.

        Creating a consumer counts as a poll. A Worker polls at least once per ``worker_timeout``, or once per
        connection timeout if Redis does not answer. A Worker that has not polled for a minute is stuck.
        """
        return dict(self._session.moved_at)

    def stats(self, queue_name: str) -> QueueStats:
        """Return the queue's statistics, totalled over its shards. Each shard is read atomically."""
        return total_of(self.stats_of_shards(queue_name))

    def stats_of_shards(self, queue_name: str) -> list[QueueStats]:
        """Return the statistics of each of the queue's shards, in one round trip per node.

        Each shard is read atomically.
        """
        names, calls, lease_ms = self.shards(queue_name), [], self.settings.lease_ms
        for name in names:
            keys = self._keys[name]
            script_keys = (keys.stream, keys.delayed, keys.dead, keys.consumers, keys.paused, keys.counters, keys.line)
            calls.append((script_keys, (self.settings.group, lease_ms, 1_000)))
        answers = self._session.connections.run_scripts(STATS, calls)
        return [
            stats_from(answer, queue_name=name, lease_ms=lease_ms) for name, answer in zip(names, answers, strict=True)
        ]

    def counters(self, queue_name: str) -> Mapping[str, int]:
        """Return the event counts of the queue and its shards since the queue was created, by name.

        A missing name reads as 0. The names are:

        - enqueued; coalesced: not added because a message with the same unique key was waiting
        - acked; late: acknowledged after another process had taken the message over
        - cancelled: by ``cancel`` or ``cancel_where``
        - retried; dead: became dead letters; requeued: dead letters returned to the queue
        - dead_bytes: the total size of all messages that became dead letters, with their reasons and tracebacks
        - promoted: delayed messages that fell due
        - removed: entries that this broker removed from the stream, however they ended
        - recovered: taken over from dead consumers; redelivered: read again because the delivery reply was lost
        - handed_back: returned by a worker that had not started them; rescued: requeued by an operator
        - unbatched: not marked as done by their batch, so that they run again individually
        - orphaned: delivered entries that were in no pending list; ghosts: pending ids whose entry no longer exists
        - fenced: retries, rejections and returns that were refused because the process had lost the entry
        - expired: removed because they did not start within ``expires_in_ms``
        - moved: messages moved from shard 0 to their own shard
        - stale_locks: unique-key locks of messages that had been removed by hand
        """
        totals = _Counters()
        for shard in self.shards(queue_name):
            flat = self._session.connections.run("HGETALL", self._keys[shard].counters)
            for name, value in zip(flat[::2], flat[1::2], strict=True):
                totals[name.decode()] += int(value)
        return totals

    def progress(self, queue_name: str, message_id: str) -> Progress | None:
        """Return the last progress that this message's running job reported with ``report_progress``.

        Returns:
            The progress, or None if the job has not started, has reported nothing for an hour, or has ended.

        Raises:
            BrokerConnectionError: Redis did not answer.
        """
        found = (self._session.progress.of(shard, message_id) for shard in self.shards(queue_name))
        return next((one for one in found if one is not None), None)

    def dead_letters(self, queue_name: str) -> DeadLetters:
        """Return the dead letters of a queue or of one shard, to list, get, requeue or purge them.

        The dead letters of a divided queue are in its shards; see ``shards``.
        """
        return DeadLetters(self._session.connections, self._keys[queue_name], self.settings)

    def inspector(self, queue_name: str) -> Inspector:
        """Return the inspector of a queue or of one shard, with which operators inspect and rescue entries.

        Each shard of a divided queue has its own inspector; see ``shards``.
        """
        keys = self._keys[queue_name]
        decoder, check = self._decoders.get(keys.name_of_messages), self._checks.get(keys.name_of_messages)
        return Inspector(self._session.connections, self.settings, keys, decoder, check)

    def cancel(self, message_id: str, queue_name: str | None = None) -> CancelOutcome:
        """Cancel a message. This searches its queue, which takes about three seconds per million small messages.

        A waiting message (undelivered, delayed, in line, or waiting for its retry) is removed. Its unique key and its
        turn become free, and the newest message that was coalesced onto it is enqueued. If a worker is running the
        message, :class:`Cancelled` is raised in its job as soon as the job executes Python code again. If a worker has
        received the message but not started it, the message is skipped. An actor may catch the exception to clean up,
        or poll ``CurrentMessage.get_current_message().is_cancelled``.

        A cancelled message is not retried and does not become a dead letter, and its callbacks are not called. Callers
        that wait for its result get :class:`MessageCancelled`. The pipeline or group to which it belongs does not
        complete. The middleware method ``after_cancel`` is called.

        Args:
            queue_name: the message's queue; None to search every declared queue.

        Returns:
            ``cancelled``: the message was waiting and was removed. ``requested``: a worker has received the message and
            will interrupt or skip it, unless its job ends first. ``not-found``: the message is in none of the queues,
            because it has ended, is a dead letter, or never existed.

        Raises:
            BrokerConnectionError: Redis did not answer; the message may have been cancelled.
        """
        wanted = sorted(self.queues) if queue_name is None else (queue_name,)
        for name in dict.fromkeys(shard for one in wanted for shard in self.shards(one)):
            outcome = self._canceller(name).cancel(message_id)
            if outcome != "not-found":
                return outcome
        return "not-found"

    def cancel_where(
        self,
        queue_name: str,
        *,
        actor: str | None = None,
        message_ids: Collection[str] | None = None,
        where: Callable[[Message[Any]], bool] | None = None,
        entry_ids: Collection[str] | None = None,
    ) -> Cancellation:
        """Cancel every message of a queue that meets all given conditions, as ``cancel`` does.

        A message that was coalesced onto a cancelled one is enqueued in its place. If ``actor`` or ``where`` is given
        and matches the coalesced message, that message is cancelled, too.

        Args:
            actor: the name of the message's actor.
            message_ids: the ids of the messages.
            where: a function that returns whether to cancel a message of this queue.
            entry_ids: the ids of the stream entries to check; None to search the whole stream. Delayed messages and
                messages in line are searched in any case.

        Raises:
            TypeError: no condition was given.
            BrokerConnectionError: Redis did not answer; some messages may have been cancelled.
        """
        wanted = Selection(actor, None if message_ids is None else frozenset(message_ids), where, entry_ids)
        if wanted.is_empty:
            raise TypeError("expected a condition, got none; give actor, message_ids or where")
        done = [self._canceller(shard).cancel_where(wanted) for shard in self.shards(queue_name)]
        return done[0] if len(done) == 1 else together(done)

    def _canceller(self, queue_name: str) -> Canceller:
        keys, inspector = self._keys[queue_name], self.inspector(queue_name)
        return Canceller(self._session.connections, self.settings, keys, inspector, self._call_listeners)

    def pause(self, queue_name: str) -> None:
        """Stop the delivery of the queue's messages in every process until ``resume`` is called.

        The pause takes effect within about a second, even if the server's memory is full, and lasts across restarts.
        Running jobs finish, and messages that already wait in a Worker still run.
        """
        self._pause(queue_name, 1)

    def resume(self, queue_name: str) -> None:
        """Restart the delivery of the queue's messages. This works even if the server's memory is full."""
        self._pause(queue_name, 0)

    def _pause(self, queue_name: str, is_paused: int) -> None:
        of_shards = [self._keys[shard] for shard in self.shards(queue_name)]
        calls = [((keys.paused, keys.timer), (is_paused,)) for keys in of_shards]
        self._session.connections.run_scripts(PAUSE, calls)

    def flush(self, queue_name: str) -> None:
        """Delete the queue's waiting, in-flight and delayed messages. Running jobs finish; dead letters are kept."""
        for shard in self.shards(queue_name):
            self._flush(shard)

    def _flush(self, queue_name: str) -> None:
        keys = self._keys[queue_name]
        self._session.connections.run_script(
            FLUSH,
            (
                keys.stream,
                keys.counters,
                keys.delayed,
                keys.line,
                keys.delayed_messages,
                keys.messages_in_line,
                keys.at_work,
                keys.limits,
                keys.holders,
                keys.suspects,
                keys.cancelled,
            ),
            (self.settings.group,),
        )
        cursor: Any = 0
        while True:
            # delete the unique locks of the dropped messages, found by a scan because no list of their names is kept
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
        """Wait until the queue is empty. For use in tests.

        Waiting, in-flight and delayed messages are counted atomically.

        Args:
            interval: the time between checks in ms.
            timeout: the maximum waiting time in ms, or None for no limit.

        Raises:
            QueueJoinTimeout: the queue still held messages after ``timeout``.
        """
        of_shards = [self._keys[shard] for shard in self.shards(queue_name)]
        calls: Any = [((keys.stream, keys.delayed, keys.line), ()) for keys in of_shards]
        deadline = None if timeout is None else time.monotonic() + timeout / 1000
        while any(self._session.connections.run_scripts(SIZE, calls)):
            if deadline is not None and time.monotonic() >= deadline:
                raise QueueJoinTimeout(queue_name)
            time.sleep(interval / 1000)

    def close(self) -> None:
        """Write the waiting acknowledgements and stop every thread. A second call does nothing."""
        self._coroutines.close()
        self._session.stop()
        # a broker that is used again, for example by the next Worker of a test, gets a new consumer name
        self._session = self._new_session()

    # The broker must act before all middleware when a message starts, and after all middleware when it ends. No
    # position in Dramatiq's middleware list guarantees that, because users may add middleware later. So the broker
    # overrides the methods that emit signals. They call only middleware that handles the signal: calling every
    # middleware at every signal, as Dramatiq does, would take a third of the time of a short message; see
    # ``Listeners``.

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        first: Any = args[0] if args else None
        if isinstance(first, Delivery):
            if signal == "process_message":
                # this process is a fork that still runs the Worker's loop with its parent's messages
                if self._was_forked and first.pid != self._session.pid:
                    _end_child_of_job(None)
                self._before_run(first)
            elif signal in ("ack", "nack"):
                self._before_settling(signal, first)
                return
        elif isinstance(first, Batch):
            if signal == "process_message":
                self._before_batch(first)
            return
        elif signal == "worker_boot":
            self._session.places.worker = args[0]
        elif signal == "worker_shutdown":
            self._begin_to_drain()
        name = f"before_{signal}"
        listening = iter(self._listeners.of(self.middleware, name))
        for method in listening:
            try:
                method(self, *args, **kwargs)
            except (MiddlewareError, Interrupt) as error:
                if signal == "process_message":
                    self._complete_pairs(first, list(listening), error)
                raise
            except Exception:
                self._log_failure_of(name, method)
        if signal == "process_message" and getattr(first, "uncommon", None) is not None and first.is_cancelled:
            raise Cancelled  # the message was cancelled while the middleware ran

    def _begin_to_drain(self) -> None:
        self._session.is_draining = True
        self._session.declare_no_more()
        self._session.isolation.release()
        if (ours := master.of_this_process()) is not None:
            ours.is_draining = True

    def _before_settling(self, signal: str, delivery: Delivery) -> None:
        """Call the middleware before the first attempt to acknowledge or reject a message.

        Exceptions from the middleware are only logged. If they propagated, the message would be neither acknowledged
        nor rejected.
        """
        if self._was_forked and delivery.pid != self._session.pid:
            _end_child_of_job(None)
        name = f"before_{signal}"
        if self._listeners.of(self.middleware, name) and delivery.announced != signal:
            delivery.announced = signal
            self._call_listeners(name, delivery)

    def _complete_pairs(self, message: Any, rest: Sequence[Method], error: BaseException) -> None:
        """Call ``before_process_message`` on the middleware after the one that refused to run a message.

        Dramatiq calls the ``after_`` methods of all middleware. Without this call, for example, a gauge would be
        decremented that was never incremented. Middleware without the matching ``after_`` method is left out.
        """
        after = "after_skip_message" if isinstance(error, SkipMessage) else "after_process_message"
        for method in self._listeners.of_pair(self.middleware, "before_process_message", after):
            if method in rest:
                try:
                    method(self, message)
                except SkipMessage:  # the message is already skipped
                    pass
                except (Exception, Interrupt):
                    self._log_failure_of("before_process_message", method)

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        if signal in ("process_message", "skip_message"):
            message = args[0]
            if isinstance(message, Delivery):
                self._after_run(signal, message, kwargs)
                return
            if isinstance(message, Batch):
                self._after_batch(message, kwargs.get("exception"))
                return
        elif signal == "process_boot":  # emitted only by Dramatiq's command, in its worker processes
            master.begin_watch(self.settings.master_grace_ms, lambda: self._session.drain())
        elif signal == "worker_shutdown":
            self._session.places.worker = None
        name = f"after_{signal}"
        if self._listeners.of(self.middleware, name) and not (args and isinstance(args[0], Batch)):
            self._call_listeners(name, *args, **kwargs)

    def _after_run(self, signal: str, delivery: Delivery, outcome: Mapping[str, Any]) -> None:
        """Call the middleware after a message was run or skipped."""
        delivery.thread_id = None
        if delivery.uncommon is not None and delivery.is_cancelled:
            self._session.interrupts.end(delivery)
        exception = outcome.get("exception")
        if self._was_forked and delivery.pid != self._session.pid:
            _end_child_of_job(exception)
        if delivery.uncommon is not None and delivery.is_lost:
            # Another process holds the message now, and this process neither ran nor skipped it, so the Results
            # middleware must not store a result.
            return
        if exception is not None or signal == "skip_message":
            delivery.has_failed = True
        finished = self._producer.finished
        finished.delivery = delivery
        try:
            if delivery.uncommon is not None:
                self._decide(signal, delivery, exception, outcome)
            elif failures := self._call_listeners("after_process_message", delivery, **outcome):
                delivery.has_failed = True
                self._check_success(delivery, failures)
        finally:
            finished.delivery = None

    def _decide(
        self, signal: str, delivery: Delivery, exception: BaseException | None, outcome: Mapping[str, Any]
    ) -> None:
        """Call the middleware after an uncommon message was run or skipped, and decide the message's outcome.

        A message is uncommon if it was skipped, has failed, or has changed attributes; see ``Uncommon``.
        """
        if delivery.is_cancelled and exception is not None:
            delivery.end_cancelled()
            self._after_interrupted(delivery, exception)
            self._follow_with_coalesced(delivery)
            return
        failures = self._call_listeners(f"after_{signal}", delivery, **outcome)
        if delivery.is_doomed or delivery.is_expired:
            self._call_back_of_failure(delivery)
        if signal == "skip_message" or delivery.was_ended:
            self._follow_with_coalesced(delivery)
        elif exception is not None:
            self._check_failure(delivery, failures)
        elif failures:
            self._check_success(delivery, failures)

    def _after_interrupted(self, delivery: Delivery, error: BaseException) -> None:
        """Call the middleware after a job that was cancelled while it ran.

        The message counts as skipped: it has not failed, it is not retried, and its callbacks are not called. If
        middleware has ``before_process_message`` but not ``after_skip_message``, its ``after_process_message`` is
        called with the exception.
        """
        self._call_listeners("after_skip_message", delivery)
        skipping = {_owner(method) for method in self._listeners.of(self.middleware, "after_skip_message")}
        pairs = self._listeners.of_pair(self.middleware, "after_process_message", "before_process_message")
        for method in reversed([method for method in pairs if _owner(method) not in skipping]):
            try:
                method(self, delivery, exception=error)
            except (Exception, Interrupt):
                self._log_failure_of("after_process_message", method)

    def _check_failure(self, delivery: Delivery, failures: Sequence[tuple[Method, BaseException]]) -> None:
        """Reject a message whose job failed, unless a middleware rejected or retried it."""
        # a middleware that clears the exception has handled the failure
        if delivery.is_handled or delivery._exception is None:
            return
        if delivery.is_being_retried and any(isinstance(error, Interrupt) for _, error in failures):
            return  # Retries was interrupted after it had counted the failure, so ``Consumer.ack`` writes the retry
        delivery.unhandled = unhandled_failure(*(_named(method, error) for method, error in failures))
        delivery.fail()

    def _check_success(self, delivery: Delivery, failures: Sequence[tuple[Method, BaseException]]) -> None:
        """Mark a finished message as unhandled if the middleware that enqueues its follow-up messages raised.

        The message then becomes a dead letter instead of being acknowledged.
        """
        for method, error in failures:
            if isinstance(getattr(method, "__self__", None), FOLLOWING):
                delivery.unhandled = not_followed(_named(method, error))

    def _follow_with_coalesced(self, skipped: Delivery) -> None:
        """Enqueue the message that was coalesced onto a skipped message, such as a cancelled or expired one."""
        replacement = skipped.replacement
        if replacement is None:
            return
        try:
            self._producer.follow(skipped, Message.decode(replacement), None)
        except Exception as error:
            self.logger.exception("the message coalesced onto a skipped one cannot be enqueued")
            skipped.unhandled = not_followed(f"{type(error).__name__}: {error}")

    def _call_back_of_failure(self, delivery: Delivery) -> None:
        """Call Dramatiq's Callbacks for a message that will not run, because Callbacks ignores skipped messages."""
        for callbacks in self.middleware:
            if isinstance(callbacks, Callbacks):
                try:
                    callbacks.after_process_message(self, delivery, exception=delivery._exception)
                except Exception:
                    self.logger.critical("Unexpected failure in %r.", callbacks, exc_info=True)

    def _before_run(self, delivery: Delivery) -> None:
        """Prepare a message to run.

        Raises:
            SkipMessage: the message must not run here.
        """
        session, is_common = self._session, delivery.uncommon is None
        if not is_common:
            self._refuse_doomed(delivery)
        disturbed = session.isolation.enter(delivery)  # Consumer.ack and Consumer.nack call ``leave``
        if disturbed is not None:
            session.outcomes.record_alongside(disturbed)
        if not (is_common and session.keeper.is_sure_of(delivery.queue)):
            self._ask_whether_to_run(delivery)
        delivery.begun_at = time.monotonic()
        delivery.thread_id = get_ident()
        if delivery.uncommon is not None and delivery.is_cancelled:
            delivery.end_cancelled()
            self._refuse(delivery, MessageCancelled(message_id=delivery.message_id))

    def _refuse(self, delivery: Delivery, error: SkipMessage) -> NoReturn:
        """Raise ``error``, with which the Worker skips a message.

        First call ``before_process_message`` on all middleware that will be called after the message.
        """
        self._complete_pairs(delivery, self._listeners.of(self.middleware, "before_process_message"), error)
        raise error

    def _refuse_doomed(self, delivery: Delivery) -> None:
        if not delivery.is_doomed:
            return
        delivery.fail()
        error = DeliveryLimitReached(message_id=delivery.message_id, deliveries=delivery.deliveries)
        self._complete_pairs(delivery, self._listeners.of(self.middleware, "before_process_message"), error)
        # log this only after the calls above, in which error trackers record the current message
        self.logger.error("A message killed its workers; it becomes a dead letter.", exc_info=error)
        raise error

    def _ask_whether_to_run(self, delivery: Delivery) -> None:
        """Check that this process still holds a message that is about to run. This queries Redis if necessary.

        Raises:
            LeaseLost: the process does not hold the message, or could not find out.
            MessageExpired: the message did not start in time.
        """
        if delivery.is_alone:
            self.logger.info(
                "message was running in a process that died; running it in isolation",
                extra={"entry": delivery.entry_id},
            )
        gives_up_at: float | None = None
        while True:
            try:
                may_run = self._session.outcomes.may_run(delivery)
                break
            except (BrokerConnectionError, redis.RedisError) as error:
                # It is unknown whether this process still holds the entry. Giving up is safe, because the entry is then
                # delivered again, after a resync or after the lease.
                gives_up_at = gives_up_at or time.monotonic() + self.settings.lease_ms / 1000
                if time.monotonic() > gives_up_at:
                    may_run = False
                    break
                self.logger.warning("cannot check in Redis whether a message may run; trying again: %s", error)
                time.sleep(0.5)
        if not may_run:
            delivery.is_lost = True
            raise LeaseLost(message_id=delivery.message_id, entry_id=delivery.entry_id)
        if delivery.is_expired:
            delivery.fail()
            self._refuse(delivery, MessageExpired(message_id=delivery.message_id))

    # Middleware that acts on the thread is called once per batch. Other middleware is called for each message of the
    # batch: before the batch, and in reverse order after it, because it may have nested the scopes that it opened.

    def _before_batch(self, batch: Batch) -> None:
        """Prepare a batch to run.

        Raises:
            SkipMessage: it is uncertain whether this process still holds the batch's messages. They run again
                individually, so that each can be checked.
        """
        if self._was_forked and batch.deliveries[0].pid != self._session.pid:
            _end_child_of_job(None)
        if not self._session.keeper.is_sure_of(batch.queue_name):
            raise SkipMessage("it is uncertain whether this process still holds the messages")
        disturbed = self._session.isolation.enter(batch)  # Consumer.ack calls ``leave``
        if disturbed is not None:
            self._session.outcomes.record_alongside(disturbed)
        batch.begun_at = time.monotonic()
        methods = self._listeners.of(self.middleware, "before_process_message")
        for method in _of(OF_THREAD, methods):
            method(self, batch)
        each = _not_of((*OF_THREAD, CurrentMessage), methods)
        for delivery in batch.deliveries:
            batch.open.append(delivery)
            if delivery.is_cancelled:
                delivery.end_cancelled()
                cancelled = MessageCancelled(message_id=delivery.message_id)
                self._complete_pairs(delivery, each, cancelled)
                batch.refusals[delivery.entry_id] = cancelled
                continue
            listening = iter(each)
            for method in listening:
                try:
                    method(self, delivery)
                except MiddlewareError as error:
                    self._complete_pairs(delivery, list(listening), error)
                    batch.refusals[delivery.entry_id] = error
                except Exception:
                    self._log_failure_of("before_process_message", method)
        batch.prepare()

    def _after_batch(self, batch: Batch, exception: BaseException | None) -> None:
        """Call middleware after a batch. ``Consumer.ack`` hands back the messages that are not marked as done."""
        if self._was_forked and batch.deliveries[0].pid != self._session.pid:
            _end_child_of_job(exception)
        methods = self._listeners.of(self.middleware, "after_process_message")
        for method in _of(OF_THREAD, methods):
            method(self, batch)
        undecided = _not_of((*OF_THREAD, *DECIDING), methods)
        while batch.open:
            delivery = batch.open.pop()
            refusal, message = batch.refusals.get(delivery.entry_id), batch.done(delivery)
            if refusal is not None:
                self._after_refusal(delivery, refusal)
            elif exception is None and message is not None:
                self.emit_after("process_message", delivery, result=message.result)
            else:
                for method in reversed(undecided):
                    try:
                        method(self, delivery, exception=NotDoneInBatch())
                    except (Exception, Interrupt):
                        self._log_failure_of("after_process_message", method)
                continue
            batch.ended.append(delivery)

    def _after_refusal(self, delivery: Delivery, refusal: BaseException) -> None:
        """Fail or skip a message of a batch that a middleware refused to run, as Dramatiq's Worker does."""
        if not isinstance(refusal, SkipMessage):
            delivery.stuff_exception(refusal)
            self.emit_after("process_message", delivery, exception=refusal)
            return
        if delivery.failed:
            delivery.stuff_exception(refusal)
        self.logger.warning("Message %s was skipped.", delivery)
        self.emit_after("skip_message", delivery)

    def _new_session(self) -> Session:
        session = Session(
            self._client,
            self.settings,
            self._keys,
            self._call_listeners,
            self._producer.enqueue_followers,
            limits_of(self),
            Batcher(self.actors, self.actor_options),
        )
        self._producer.use(session.connections, session.outcomes)
        for shards in self._shards.values():
            shards.use(session.connections)
        self.groups = Groups(session.connections, self.settings.namespace, self._keys, self._producer.follow)
        return session

    def _call_listeners(self, signal: str, *args: Any, **kwargs: Any) -> Sequence[tuple[Method, BaseException]]:
        """Call the method ``signal`` of every middleware that has it.

        As in Dramatiq, methods whose name begins with ``after_`` are called in reverse order.

        Returns:
            The methods that raised, each with its exception.
        """
        failures: list[tuple[Method, BaseException]] = []
        methods = self._listeners.of(self.middleware, signal)
        for method in methods if signal.startswith("before_") else reversed(methods):
            try:
                method(self, *args, **kwargs)
            except (Exception, Interrupt) as error:
                # An interrupt was meant for the job, which has ended. It must not propagate, because then the remaining
                # middleware would not be called.
                self._log_failure_of(signal, method)
                failures.append((method, error))
        return failures

    def _log_failure_of(self, name: str, method: Method) -> None:
        self.logger.critical(
            "Unexpected failure in %s of %r.", name, getattr(method, "__self__", method), exc_info=True
        )

    def _after_fork(self) -> None:
        """Reset the broker in a forked child, which must not use its parent's locks, sockets or messages."""
        self._producer = Producer(self, self.settings, self._keys, self._shards)
        self._coroutines = Coroutines()
        self._session.abandon()
        self._session = self._new_session()
        self._was_forked = True


def _owner(method: Method) -> int:
    """Return the ``id`` of the middleware object that a method belongs to."""
    return id(getattr(method, "__self__", None))


def _of(kinds: tuple[type, ...], methods: Sequence[Method]) -> Sequence[Method]:
    """Return the methods whose middleware is an instance of one of these classes."""
    return [method for method in methods if isinstance(getattr(method, "__self__", None), kinds)]


def _not_of(kinds: tuple[type, ...], methods: Sequence[Method]) -> Sequence[Method]:
    return [method for method in methods if not isinstance(getattr(method, "__self__", None), kinds)]


def _named(method: Method, error: BaseException) -> str:
    """Return a text that names a middleware and the exception that it raised."""
    return f"{type(getattr(method, '__self__', method)).__name__} raised {type(error).__name__}: {error}"


class _Counters(dict[str, int]):
    """Counters that read 0 before their first event."""

    def __missing__(self, name: str) -> int:
        return 0


def _end_child_of_job(error: BaseException | None) -> NoReturn:
    """End this process, which a job forked and which has left the job's code, for example through ``sys.exit``.

    Otherwise, its copy of the worker loop would acknowledge and run its parent's messages.
    """
    code = 0 if error is None else 1
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code & 0xFF)


def _literally(text: str) -> str:
    """Return a SCAN pattern that matches only this string."""
    return "".join(f"\\{letter}" if letter in "*?[]\\^" else letter for letter in text)


def _after_fork_in_child() -> None:
    for broker in list(_brokers):
        try:
            broker._after_fork()
        except Exception:
            # still reset the other brokers, because two processes with the same consumer name lose messages
            broker.logger.exception("a broker could not be reset in a forked process; do not use it there")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
