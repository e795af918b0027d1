"""A broker's state in one process: its consumer name, connections, threads, and the messages that it holds.

A broker creates a new session after a fork, because the child cannot use its parent's locks, sockets and threads, and
must not settle its parent's messages.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import redis
from dramatiq.errors import BrokerConnectionError, ConnectionClosed
from dramatiq.logging import get_logger

from .cancellation import Interrupts
from .consumer import ConsumedQueue, StreamsConsumer
from .deliveries import Delivery
from .entries import EntryDecoder, MessageCheck
from .identity import consumer_name
from .keeper import Keeper
from .keys import KeysByQueue, QueueKeys
from .net.connections import Connections
from .net.shared_reads import GroupReads, Timers
from .outcomes import Emit, Outcomes
from .places import Places
from .running.batches import Batcher
from .running.isolation import Isolation
from .running.judgement import Judgement, Limits, judge
from .running.progress import ProgressReports
from .scripts import LEAVE
from .settings import BrokerSettings
from .settler import Settler
from .sharding.readers import Readers
from .sharding.shards import Shards

# Maximum duration of a stop. The shorter one applies if Redis does not answer, because a stop then only waits for
# threads.
STOP_S: Final = 5.0
SILENT_STOP_S: Final = 1.0
# Maximum number of queues that are each read on a separate connection, which saves a thread switch for each read.
MOST_OWN_READS: Final = 6


class Session:
    """A broker's state in one process. It is replaced when the broker stops or the process forks."""

    def __init__(
        self,
        client: redis.Redis | redis.RedisCluster,
        settings: BrokerSettings,
        keys: KeysByQueue,
        emit: Emit,
        enqueue_followers: Callable[[Delivery], None],
        limits: Limits,
        batcher: Batcher,
    ) -> None:
        self.settings = settings
        self._limits = limits
        self.batcher = batcher
        self.emit = emit
        self.enqueue_followers = enqueue_followers
        self.logger: logging.Logger = get_logger(__name__, type(self))
        self.consumer_name = consumer_name()
        self.pid = os.getpid()
        self.connections = Connections(client)
        self.timers = Timers(self.connections, block_ms=settings.idle_read_ms)
        self.settler = Settler(self.connections, group=settings.group, consumer_name=self.consumer_name)
        self.keeper = Keeper(
            self.connections,
            settings,
            consumer_name=self.consumer_name,
            judge=self.judge if settings.overrun_ms is not None else None,
            on_judgement=self._be_moving,
        )
        self.outcomes = Outcomes(
            self.connections, settings, keys, consumer_name=self.consumer_name, keeper=self.keeper, emit=emit
        )
        self.interrupts = Interrupts()
        self.isolation = Isolation(patience_s=settings.lease_ms / 1000)
        self.progress = ProgressReports(self.connections, keys, self.isolation.running)
        self._lock = threading.Lock()
        self._queues: dict[str, ConsumedQueue] = {}
        # kept after a stop, because threads may still run these queues' messages
        self._consumed: dict[str, ConsumedQueue] = {}
        self._readers: dict[str, Readers] = {}  # keyed by the name of the queue that has shards
        self._keys = keys
        self.places = Places(settings.long_job_ms, lambda: list(self._queues.values()))
        self.moved_at: dict[str, float] = {}
        self.is_draining = False  # whether the Worker is shutting down and starts no more jobs
        self.is_orphaned = False  # whether the master has ended and the Worker cannot shut down
        # shared readers, keyed by ``is_bounded``; none while there are few queues
        self._group_reads: dict[bool, GroupReads] = {}
        self.moves = threading.Event()  # set unless this process is stuck
        self.moves.set()

    def consume(
        self,
        keys: QueueKeys,
        decoder: EntryDecoder | None,
        check: MessageCheck | None,
        *,
        prefetch: int,
        timeout_ms: int,
        shards: Shards | None = None,
    ) -> StreamsConsumer:
        """Return a consumer of the queue.

        A queue's first consumer starts its heartbeat and its janitor. Shard 0's first consumer also starts the thread
        that decides which shards this process reads.

        Raises:
            BrokerConnectionError: the heartbeat could not be written.
        """
        self.moved_at[keys.queue_name] = time.monotonic()
        try:
            self.keeper.add(keys)
        except redis.RedisError as error:
            raise ConnectionClosed(f"{type(error).__name__}: {error}") from error
        self.settler.start()
        with self._lock:
            queue = self._queues.get(keys.queue_name)
            if queue is None:
                queue = ConsumedQueue(self, keys, decoder, check, shards)
                self._queues[keys.queue_name] = self._consumed[keys.queue_name] = queue
                self._share_reads(queue)
                queue.janitor.start()
                if shards is not None:
                    self._assign(queue, shards)
        return StreamsConsumer(queue, prefetch=prefetch, timeout_ms=timeout_ms)

    def _assign(self, queue: ConsumedQueue, shards: Shards) -> None:
        """Start reading a newly consumed shard if this process is one of its readers."""
        readers = self._readers.get(shards.keys.queue_name)
        if readers is None and queue.keys is shards.keys:
            readers = self._readers[shards.keys.queue_name] = Readers(
                self.connections,
                self.settings,
                self._keys,
                shards,
                consumer_name=self.consumer_name,
                consumed=lambda: dict(self._queues),
            )
            readers.start()
        if readers is not None:
            queue.be_reader(readers.reads(queue.keys.queue_name))

    def consumer_of(self, queue_name: str) -> StreamsConsumer:
        """Return a queue's newest consumer, which may be closed."""
        consumer = self._consumed[queue_name].last_consumer
        assert consumer is not None
        return consumer

    def _share_reads(self, newest: ConsumedQueue) -> None:
        """Read all queues on one connection if there are too many for separate connections.

        Queues whose entries may have any size are read on a second connection, because their replies are bounded.
        """
        connections, stream = self.connections, newest.keys.stream
        if connections.is_cluster:
            return
        # one connection is needed to wait for the timers
        most_own = min(MOST_OWN_READS, connections.most_owned(stream) - 1)
        if not self._group_reads and len(self._queues) <= most_own:
            return
        for queue in self._queues.values():
            if queue.is_bounded not in self._group_reads:
                self._group_reads[queue.is_bounded] = GroupReads(
                    connections,
                    stream,
                    head=newest.head,
                    block_ms=self.settings.idle_read_ms,
                    bounds=queue.bounds if queue.is_bounded else None,
                )
            queue.wake()

    def group_reads(self, *, is_bounded: bool) -> GroupReads | None:
        """Return the shared reader for bounded or unbounded reads, or None while queues have their own connections."""
        return self._group_reads.get(is_bounded)

    def judge(self) -> Judgement:
        """Return whether this process makes progress on the messages that it holds, as a ``Judgement``."""
        holding = [name for name, queue in list(self._queues.items()) if queue.deliveries.n_held]
        return judge(
            self.isolation.running(),
            {name: self.moved_at[name] for name in holding},
            self._limits,
            overrun_s=(self.settings.overrun_ms or 0) / 1000,
            now=time.monotonic(),
        )

    def _be_moving(self, moves: bool) -> None:
        if moves:
            self.moves.set()
        else:
            self.moves.clear()
        for queue in list(self._queues.values()):
            queue.wake()

    def drain(self) -> bool:
        """Stop reading, because the Worker cannot shut down; return whether this process holds no messages."""
        self.is_orphaned = True
        queues = list(self._queues.values())
        for queue in queues:
            queue.wake()
        return not any(len(queue.deliveries) for queue in queues)

    def has_more_important_work(self, queue_name: str) -> bool:
        """Return whether a queue with a lower priority number has messages waiting in Redis."""
        numbers = self.settings.queue_priorities
        if not numbers:
            return False
        own = numbers.get(self._keys[queue_name].name_of_messages, 0)
        others = list(self._queues.values())
        return any(queue.is_waiting and numbers.get(queue.keys.name_of_messages, 0) < own for queue in others)

    def declare_no_more(self) -> None:
        """Declare no more shards, because the Worker is shutting down."""
        for readers in list(self._readers.values()):
            readers.begin_stop()

    def stop(self) -> None:
        """Write the waiting acknowledgements, stop every thread and deregister the consumer. Idempotent.

        All steps share one deadline, regardless of the number of queues. If Redis does not answer, this waits only
        briefly for the threads, because threads that wait for Redis end with the process.
        """
        self.declare_no_more()
        with self._lock:
            queues, self._queues = list(self._queues.values()), {}
            deciding, self._readers = list(self._readers.values()), {}
        is_silent = any(self.connections.is_silent(queue.keys.stream) for queue in queues)
        deadline = time.monotonic() + (SILENT_STOP_S if is_silent else STOP_S)
        for queue in queues:
            queue.janitor.begin_stop()
        self.timers.begin_stop()
        for reads in self._group_reads.values():
            reads.stop(timeout_s=_left_s(deadline))
        for readers in deciding:
            readers.stop(timeout_s=_left_s(deadline))
        for queue in queues:
            queue.janitor.stop(timeout_s=_left_s(deadline))
        self.timers.stop(timeout_s=_left_s(deadline))
        n_unwritten = self.settler.stop(timeout_s=_left_s(deadline))
        if n_unwritten:
            self.logger.error("acknowledgements were not written; these jobs run again", extra={"n": n_unwritten})
        self.keeper.stop(timeout_s=_left_s(deadline))
        # if worker threads outlived the shutdown, this process still holds entries, which are released when it ends
        is_holding = self._leave(queues)
        self.keeper.close(is_holding=is_holding, timeout_s=_left_s(deadline))
        self.connections.close()

    def abandon(self) -> None:
        """Let go of the session, which belongs to the parent. Called in a forked child."""
        self.keeper.abandon()

    def _leave(self, queues: Sequence[ConsumedQueue]) -> bool:
        """Deregister this consumer from the queues; return whether it holds or may hold entries."""
        by_stream = {queue.keys.stream: queue for queue in queues}
        args = (self.settings.group, self.consumer_name, 0)
        is_holding = False
        for streams in self.connections.together(list(by_stream)):
            all_keys = [by_stream[stream].keys for stream in streams]
            calls = [((keys.stream, keys.consumers, keys.timer), args) for keys in all_keys]
            try:
                if self.connections.is_silent(streams[0]):
                    raise ConnectionClosed("Redis does not answer")
                is_holding = any(self.connections.run_scripts(LEAVE, calls)) or is_holding
            except (BrokerConnectionError, redis.RedisError) as error:
                self.logger.warning(
                    "could not deregister the consumer; its lease will expire", extra={"error": str(error)}
                )
                is_holding = is_holding or any(len(by_stream[stream].deliveries) for stream in streams)
        return is_holding


def _left_s(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
