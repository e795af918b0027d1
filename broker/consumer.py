"""The consumer of one queue in one process: reads messages, gives them to the Worker, settles them, hands them back.

The Worker never holds more messages than its prefetch. A read requests as many messages as the Worker has room for. If
jobs are short, a read requests more, and the consumer buffers the surplus until the Worker has room; see places.py.
After an error, Dramatiq creates a new consumer. The new consumer first reads the entries that are pending for this
process but were never received because a reply was lost.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import dramatiq
import redis
from dramatiq.broker import Consumer, MessageProxy
from dramatiq.errors import BrokerConnectionError, ConnectionClosed
from dramatiq.logging import get_logger
from dramatiq.threading import Interrupt

from .cancellation import Interrupts
from .deliveries import Deliveries, Delivery, Follower, Unhandled
from .entries import MESSAGE_FIELD, EntryDecoder, MessageCheck, Oversize, decode, fields_of, has_run, size_of
from .errors import UndecodableEntry
from .janitor import LOST_AFTER_MS, Janitor, Round
from .keeper import Keeper
from .keys import HANDED_BACK, QueueKeys
from .net.bounded_read import MOST_PARTS, Bounds, CutFields
from .net.connections import Argument, Connections
from .net.shared_reads import GroupReads, OwnRead, SharedRead, Timers
from .options import EXPIRES_AT
from .outcomes import Emit, Outcomes
from .places import Durations, Places, ReadAhead
from .running.batches import Batch, Batcher, BatchSize
from .running.isolation import Isolation
from .scripts import HAND_BACK, RESYNC, TAKE
from .settings import BrokerSettings
from .settler import Settler
from .sharding.moves import Stray, move
from .sharding.shards import Shards

NO_LIMIT = 1 << 20

# Delay of a retry that Dramatiq's Retries counted but did not enqueue. It is the shortest back-off of Retries.
LOST_RETRY_DELAY_MS = 15_000

# Polling interval while the consumer yields to a higher-priority queue, or has no room for entries that it could take.
LOOK_AGAIN_S = 0.02

# Maximum time to wait until a shared read no longer reads a queue.
STOP_READING_S = 0.5
# Maximum number of unwritten acknowledgements. With more, nothing is read, because the server accepts no writes.
MOST_SETTLING = 1_000

# Error text with which Redis 7.0 and later ends a blocking read when FLUSHALL or DEL removes the stream.
STREAM_GONE = "UNBLOCKED the stream key no longer exists"


class Process(Protocol):
    """The interface of ``Session`` that the consumers of a process use."""

    settings: BrokerSettings
    consumer_name: str
    pid: int
    connections: Connections
    timers: Timers
    settler: Settler
    keeper: Keeper
    outcomes: Outcomes
    isolation: Isolation
    places: Places
    batcher: Batcher
    emit: Emit
    enqueue_followers: Callable[[Delivery], None]
    interrupts: Interrupts
    moved_at: dict[str, float]
    is_draining: bool
    is_orphaned: bool
    moves: threading.Event

    def group_reads(self, *, is_bounded: bool) -> GroupReads | None: ...

    def consumer_of(self, queue_name: str) -> StreamsConsumer: ...

    def has_more_important_work(self, queue_name: str) -> bool: ...


class ConsumedQueue:
    """The state of a queue that this process consumes: its deliveries, and its janitor's latest findings.

    Args:
        shards: the queue's shards, or None if it cannot have any.
    """

    def __init__(
        self,
        process: Process,
        keys: QueueKeys,
        decoder: EntryDecoder | None,
        check: MessageCheck | None,
        shards: Shards | None = None,
    ) -> None:
        self.process = process
        self.keys = keys
        self.shards = shards
        self.is_reader = True  # whether this process reads this shard; see sharding/readers.py
        self._chosen = threading.Event()
        self.decoder = decoder
        self.check = check
        self.logger: logging.Logger = get_logger(__name__, f"Consumer({keys.queue_name})")
        self.deliveries = Deliveries()
        self.durations = Durations((process.settings.long_job_ms or 0) / 1000)
        self.batch_size = BatchSize()
        self.served_at = float("-inf")
        self.is_paused = False
        self.is_takeable = True  # take handed-back entries first, because they are older than undelivered ones
        self.has_lost_entries = False
        self.has_backlog = False  # whether the last read returned as many entries as it requested
        self.cancelled: Mapping[str, str] = {}  # entry ids of cancelled messages; see ``Round.cancelled``
        self._resumed = threading.Event()
        self._consumer: StreamsConsumer | None = None
        self.last_consumer: StreamsConsumer | None = None
        self._shared_read: SharedRead | None = None
        self.janitor = Janitor(
            process.connections,
            process.settings,
            keys,
            process.timers,
            consumer_name=process.consumer_name,
            on_round=self._after_round,
            on_takeable=self._take_over,
            n_held=self.deliveries.__len__,
        )

    @property
    def bounds(self) -> Bounds:
        """The size limits for one reply that contains entries."""
        return Bounds(2 * self.process.settings.max_message_bytes, self.process.settings.max_read_bytes)

    @property
    def is_bounded(self) -> bool:
        """Whether reads of this queue are bounded, because other programs may write entries of any size to it."""
        return self.decoder is not None or self.check is not None

    @property
    def head(self) -> tuple[Argument, ...]:
        """The first arguments of the command that reads new entries."""
        return ("XREADGROUP", "GROUP", self.process.settings.group, self.process.consumer_name, "COUNT")

    @property
    def group_reads(self) -> GroupReads | None:
        return self.process.group_reads(is_bounded=self.is_bounded)

    def own_read(self) -> OwnRead:
        """Return a reader that reads this queue on its own connection."""
        return OwnRead(
            self.process.connections,
            self.keys.stream,
            head=self.head,
            block_ms=self.process.settings.idle_read_ms,
            bounds=self.bounds if self.is_bounded else None,
        )

    def shared_read(self, reads: GroupReads) -> SharedRead:
        """Return an open reader that reads this queue on a connection shared with other queues."""
        if self._shared_read is None:
            self._shared_read = SharedRead(
                reads, self.keys.stream, wanted=self._wanted, look=self._look, hand_back=self.hand_back_entries
            )
        self._shared_read.open()
        return self._shared_read

    def _wanted(self) -> int:
        consumer = self._consumer
        return 0 if consumer is None or self.must_rest or self.must_yield() else consumer.wanted()

    def _look(self, n: int) -> Sequence[Any]:
        """Return at most ``n`` new entries without blocking."""
        bounds = self.bounds if self.is_bounded else None
        answer = self.process.connections.read(
            *self.head, n, "STREAMS", self.keys.stream, ">", key=self.keys.stream, bounds=bounds
        )
        return answer[0][1] if answer else ()

    def hand_back_entries(self, entries: Sequence[Any]) -> None:
        """Hand back entries that were read but not accepted."""
        self.hand_back([part for entry_id, _ in entries for part in (entry_id, 1)])
        self.is_takeable = True

    def hand_back(self, args: Sequence[Argument], *, counts: bool = False) -> None:
        """Hand back entries.

        Args:
            args: the id and the delivery count of each entry, flattened.
            counts: whether the delivery count still includes the current delivery.
        """
        fixed = (self.process.settings.group, self.process.consumer_name, HANDED_BACK, int(counts))
        for start in range(0, len(args), 1_000):
            self.process.connections.run_script(
                HAND_BACK,
                (self.keys.stream, self.keys.timer, self.keys.counters),
                (*fixed, *args[start : start + 1_000]),
            )

    @property
    def homes(self) -> Shards | None:
        """The shards to which messages of this queue are moved, or None if the queue is not shard 0 of several."""
        return self.shards if self.shards is not None and self.shards.moves_strays(self.keys.queue_name) else None

    def be_reader(self, is_reader: bool) -> None:
        """Start or stop reading this shard. The process keeps the messages that it holds."""
        if is_reader != self.is_reader:
            self.is_reader = is_reader
            if is_reader:
                self._chosen.set()
            else:
                self._chosen.clear()
            self.wake()

    def attach(self, consumer: StreamsConsumer) -> None:
        self._consumer = self.last_consumer = consumer

    def detach(self, consumer: StreamsConsumer) -> None:
        if self._consumer is consumer:
            self._consumer = None
            self.has_backlog = False

    @property
    def is_waiting(self) -> bool:
        """Whether messages of this queue are known to wait in Redis or have been read ahead."""
        return self.has_backlog or (self._consumer is not None and self._consumer.is_ahead)

    @property
    def are_jobs_long(self) -> bool:
        return self.durations.are_long

    @property
    def is_eager(self) -> bool:
        """Whether messages are known to wait in Redis, and no higher-priority queue has waiting messages."""
        return (self.is_takeable or self.has_backlog) and not self.must_yield()

    @property
    def n_at_worker(self) -> int:
        """The number of messages that the Worker holds, including running ones. A batch counts as one."""
        consumer = self._consumer
        return self.deliveries.n_places - (0 if consumer is None else consumer.n_buffered)

    def must_yield(self) -> bool:
        """Return whether a higher-priority queue of this process has messages waiting in Redis."""
        return self.process.has_more_important_work(self.keys.queue_name)

    @property
    def must_rest(self) -> bool:
        """Whether this process must not read this queue.

        True while the queue is paused, the process is stuck, its master has ended, or other processes read this shard.
        """
        is_stopped = self.is_paused or not self.is_reader or self.process.is_orphaned
        return is_stopped or not self.process.moves.is_set()

    def rest(self, timeout_s: float) -> None:
        """Wait up to ``timeout_s`` until reading is allowed again."""
        if self.process.is_orphaned:
            time.sleep(timeout_s)
            return
        unchosen = self.process.moves if self.is_reader else self._chosen
        (self._resumed if self.is_paused else unchosen).wait(timeout_s)

    def wake(self) -> None:
        """Wake the consumer so that it checks its state again."""
        consumer = self._consumer
        if consumer is not None:
            consumer.wake()

    def _after_round(self, done: Round) -> bool:
        """Pass the janitor's findings to the consumer; return whether another round should follow soon."""
        has_news = False
        if done.is_takeable:
            self.is_takeable = has_news = True
        if done.owned and not set(self.deliveries.ids()).issuperset(done.owned):
            # this consumer owns entries that it never received: a reply was lost on a live connection
            self.has_lost_entries = has_news = True
        if done.is_paused != self.is_paused:
            self.is_paused = done.is_paused
            has_news = True
            if done.is_paused:
                self._resumed.clear()
            else:
                self._resumed.set()
        self.cancelled = done.cancelled
        is_cancelling = self.cancel_held()
        if done.n_orphans:
            self.logger.warning("requeued orphaned entries", extra={"n": done.n_orphans})
            self.process.emit("after_orphans", self.keys.queue_name, done.n_orphans)
        if has_news:
            self.wake()
        return is_cancelling

    def _take_over(self) -> None:
        """Make the consumer check for entries to take over, without waiting for the next round."""
        self.is_takeable = True
        self.wake()

    def cancel_held(self) -> bool:
        """Mark held messages that were cancelled, and interrupt their jobs.

        Returns:
            Whether some jobs could not be interrupted yet.
        """
        marks, is_cancelling = self.cancelled, False
        for delivery in self.deliveries.held(marks) if marks else ():
            delivery.dropped = marks[delivery.entry_id]
            is_cancelling = not self.process.interrupts.cancel(delivery) or is_cancelling
        return is_cancelling


class StreamsConsumer(Consumer):
    """A consumer with Dramatiq's interface. Any thread may call ``ack`` and ``nack``, even after ``close``."""

    def __init__(self, queue: ConsumedQueue, *, prefetch: int, timeout_ms: int) -> None:
        self._queue = queue
        self._prefetch = prefetch
        self._timeout_s = timeout_ms / 1000
        self._process = queue.process
        self._settings = queue.process.settings
        self._keys = queue.keys
        # messages that were read but not yet given to the Worker
        self._buffer: deque[Delivery] = deque()
        # number of buffered messages that may be given to the Worker before its free prefetch slots are counted again
        self._n_places = 0
        self._n_given = 0
        self._read_ahead = ReadAhead(self._settings.read_ahead_ms)
        self._bounds = queue.bounds
        reads = queue.group_reads
        self._read: OwnRead | SharedRead = queue.own_read() if reads is None else queue.shared_read(reads)
        # Maximum number of entries that a read requests. After a read that was cut, this restarts at 1 and doubles with
        # each read, so that the server sends less data.
        self._most_asked = NO_LIMIT
        self._is_ahead_allowed = True
        # the value of ``places.ended_at`` when ``_stalls_in_s`` last found that no job had ended recently
        self._seen_ended_at: float | None = None
        # whether any actor of this queue has a batch function
        self._has_batches = False
        # number of messages per batch, estimated from the last read, or 0 if its messages cannot share a batch
        self._n_per_batch = 0
        # current maximum number of messages and batches that the Worker may hold
        self._most_at_worker = self._prefetch
        self._is_resynced = False
        self._is_closed = False
        queue.attach(self)

    def __next__(self) -> MessageProxy | None:
        if self._n_places > 0 and self._buffer:
            return self._give()
        now = self._process.moved_at[self._keys.queue_name] = time.monotonic()
        deadline = now + self._timeout_s
        try:
            while True:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or self._is_closed:
                    return None
                if self._buffer:
                    self._wait_for_place(left_s)
                else:
                    self._fill(left_s)
                if self._n_places > 0 and self._buffer:
                    return self._give()
        except redis.RedisError as error:
            raise ConnectionClosed(f"{type(error).__name__}: {error}") from error

    def _give(self) -> Delivery | Batch:
        self._n_places -= 1
        self._n_given += 1
        if not self._has_batches:
            return self._buffer.popleft()
        given = self._process.batcher.take(self._buffer, self._queue.batch_size)
        if isinstance(given, Batch):
            self._n_given += len(given.deliveries) - 1
            self._queue.deliveries.share_place(given, len(given.deliveries))
        return given

    def ack(self, message: MessageProxy) -> None:
        """Queue the message's acknowledgement for the next write. Pending follow-up messages and retries come first.

        Messages that their batch did not mark as done are handed back, so that they run again individually.

        Raises:
            BrokerConnectionError: a follow-up message or retry could not be written. The Worker tries again.
        """
        if isinstance(message, Delivery):
            owner = self._owner_of(message)
            owner._end(owner._ack, message)
        else:
            self._end_whole(message)

    def _owner_of(self, message: Delivery | Batch) -> StreamsConsumer:
        """Return the consumer of a message's shard. The Worker returns messages of all shards to one consumer."""
        if message.queue == self._keys.queue_name:
            return self
        return self._process.consumer_of(message.queue)

    def _end_whole(self, message: MessageProxy) -> None:
        assert isinstance(message, Batch)
        owner = self._owner_of(message)
        owner._end(owner._end_batch, message)

    def _end(self, write: Callable[[Any], None], message: Delivery | Batch) -> None:
        places, begun_at = self._process.places, message.begun_at
        if begun_at is not None and not message.is_ended:
            now = places.ended_at = time.monotonic()
            self._queue.durations.record(now - begun_at)
            if isinstance(message, Batch):
                self._queue.batch_size.record(len(message.deliveries), len(message.ended), now - begun_at)
        message.is_ended = True
        try:
            try:
                write(message)
            except Interrupt:
                # The interrupt (a time limit or a shutdown) was meant for the job, which has ended. It must not
                # propagate, because it would end the worker thread.
                write(message)
        except BrokerConnectionError as error:
            if not self._process.is_draining or not self._process.connections.is_silent(self._keys.stream):
                raise
            # Do not raise: the Worker would try again until its shutdown times out. The entry stays pending, and
            # another process runs the job again as soon as this one has ended.
            self._queue.logger.warning("a job's outcome was not written; it runs again", extra={"error": str(error)})
        if places.awaiting:
            places.let_others_look(self._queue)

    def _ack(self, message: Delivery) -> None:
        if message.uncommon is not None or message._exception is not None or "retries" in message.options:
            self._finish(message)
        if message.is_settled or (message.uncommon is not None and message.is_lost):
            self._queue.deliveries.forget([message])
            self._process.outcomes.forget_followers(message)
        else:
            self._process.settler.settle(self._keys, self._queue.deliveries, message)
            message.is_settled = True
            if message.uncommon is not None and message.charges:
                # wait, so that a crash caused by another message cannot be counted against this one
                self._queue.deliveries.wait_until_written(message, 1.0)
        self._process.isolation.leave(message)

    def _finish(self, message: Delivery) -> None:
        """Write what must precede or replace an acknowledgement: follow-up messages, a retry or a dead letter."""
        self._enqueue_followers(message)
        if not message.was_ended:
            self._end_unhandled(message)
        if message.was_ended and not (message.is_settled or message.is_lost):
            self._end_cancelled(message)

    def _end_unhandled(self, message: Delivery) -> None:
        """If a message must not be acknowledged, write its retry or dead letter."""
        if message.pending_retry is not None:
            self._process.outcomes.write_retry(message)
            if message.unhandled is not None:
                self._bury_unhandled(message)
        elif message.is_being_retried and not message.is_lost:
            self._write_lost_retry(message)
        elif message.unhandled is not None or (message._exception is not None and not message.is_handled):
            # the Worker called no middleware, because it did not expect the exception at this point
            self._bury_unhandled(message)

    def _end_cancelled(self, message: Delivery) -> None:
        """Remove a cancelled message. Redis refused its retry before this process knew of the cancellation."""
        if message.replacement is not None:
            message.keep_follower(Follower(dramatiq.Message.decode(message.replacement), None))
            self._enqueue_followers(message)
        try:
            self._process.outcomes.cancel_delivery(message)
        except redis.RedisError as error:
            raise ConnectionClosed(f"{type(error).__name__}: {error}") from error
        message.is_settled = True
        if not message.is_lost:
            # the Worker does not emit these signals, because it acknowledges the message
            self._process.emit("before_nack", message)
            self._process.emit("after_nack", message)

    def _end_batch(self, batch: Batch) -> None:
        self._queue.deliveries.end_sharing(batch)
        done = [one for one in batch.ended if one.is_simply_done]
        if done:
            for delivery in done:
                self._announce("ack", delivery)
            # marked as settled afterwards, so that an interrupt in between settles them twice rather than never
            self._process.settler.settle_all(self._keys, self._queue.deliveries, done)
            for delivery in done:
                delivery.is_ended = delivery.is_settled = True
                self._process.emit("after_ack", delivery)
        self._let_run_alone(batch)
        for delivery in batch.ended:
            if not (delivery.is_settled or delivery.is_lost):
                outcome, write = ("nack", self._nack) if delivery.failed else ("ack", self._ack)
                self._announce(outcome, delivery)
                delivery.is_ended = True
                write(delivery)
                self._process.emit(f"after_{outcome}", delivery)
        self._process.isolation.leave(batch)

    def _announce(self, outcome: str, delivery: Delivery) -> None:
        if delivery.announced != outcome:
            delivery.announced = outcome
            self._process.emit(f"before_{outcome}", delivery)

    def _let_run_alone(self, batch: Batch) -> None:
        """Hand back a batch's messages that are not done. This delivery counts, so they do not join another batch."""
        undone = batch.undone
        if not undone or batch.is_handed_back:
            return
        for delivery in undone:
            delivery.is_returned = True
        try:
            self._hand_back_unless_silent(undone, counts=True)
        except (BrokerConnectionError, redis.RedisError) as error:
            self._queue.logger.warning(
                "could not hand back messages of a batch; they run later",
                extra={"n": len(undone), "error": str(error)},
            )
        batch.is_handed_back = True
        self._queue.is_takeable = True
        self._queue.wake()

    def _write_lost_retry(self, message: Delivery) -> None:
        """Write a retry that Retries counted but did not enqueue, for example because a time limit interrupted it.

        Dramatiq ignores the exception and acknowledges the message, which would lose the retry.
        """
        delay = message.retry_delay if message.retry_asked else LOST_RETRY_DELAY_MS
        try:
            self._process.outcomes.begin_retry(message, delay)
            if message.unhandled is not None:
                self._bury_unhandled(message)
        except BrokerConnectionError:
            raise
        except Exception as error:
            message.unhandled = Unhandled(
                f"its retry cannot be written: {type(error).__name__}: {error}",
                "do not modify the message's arguments in the actor, then requeue this dead letter",
            )
            self._bury_unhandled(message)

    def _bury_unhandled(self, message: Delivery) -> None:
        if message.is_settled or message.is_lost:
            return
        try:
            self._process.outcomes.bury_unhandled(message)
            message.is_settled = True
        except redis.RedisError as error:
            raise ConnectionClosed(f"{type(error).__name__}: {error}") from error

    def nack(self, message: MessageProxy) -> None:
        """Turn the message into a dead letter, or remove it if it expired or was cancelled.

        Raises:
            BrokerConnectionError: the outcome could not be written. The Worker tries again.
        """
        if isinstance(message, Delivery):
            owner = self._owner_of(message)
            owner._end(owner._nack, message)
        else:
            self._end_whole(message)

    def _nack(self, message: Delivery) -> None:
        self._enqueue_followers(message)
        try:
            if not (message.is_settled or message.is_lost):
                if message.was_ended:
                    self._process.outcomes.cancel_delivery(message)
                elif message.is_expired and not message.options.get("keep_expired"):
                    self._process.outcomes.expire(message)
                else:
                    self._process.outcomes.bury_delivery(message)
                message.is_settled = True
        except redis.RedisError as error:
            raise ConnectionClosed(f"{type(error).__name__}: {error}") from error
        self._queue.deliveries.forget([message])
        self._process.outcomes.forget_followers(message)
        self._process.isolation.leave(message)

    def _enqueue_followers(self, message: Delivery) -> None:
        try:
            if message.pending_followers or message.pending_step is not None:
                self._process.enqueue_followers(message)
        except redis.RedisError as error:
            raise ConnectionClosed(f"{type(error).__name__}: {error}") from error

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Hand back messages that were not started. They keep their position, and the delivery does not count."""
        by_owner: dict[StreamsConsumer, list[MessageProxy]] = {}
        for message in messages:
            owner = self._owner_of(message) if isinstance(message, Delivery | Batch) else self
            by_owner.setdefault(owner, []).append(message)
        for owner, of_owner in by_owner.items():
            owner._requeue(of_owner)

    def _requeue(self, messages: Iterable[MessageProxy]) -> None:
        self._hand_back_unless_silent(self._each_of(messages))

    def _each_of(self, messages: Iterable[MessageProxy]) -> list[Delivery]:
        """Return the messages, with each batch replaced by the messages in it."""
        found: list[Delivery] = []
        for message in messages:
            if isinstance(message, Batch):
                self._queue.deliveries.end_sharing(message)
                found += message.deliveries
            elif isinstance(message, Delivery):
                found.append(message)
        return found

    def close(self) -> None:
        """Stop reading, and hand back the messages that the Worker has not received."""
        if self._is_closed:
            return
        self._is_closed = True
        self._queue.detach(self)
        is_silent = self._process.connections.is_silent(self._keys.stream)
        unread, are_lost = self._read.close(timeout_s=0.0 if is_silent else STOP_READING_S)
        unstarted = list(self._buffer)
        self._buffer.clear()
        try:
            self._hand_back_unless_silent(unstarted)
            self._give_back_unread(unread, are_lost=are_lost)
        except (BrokerConnectionError, redis.RedisError) as error:
            self._queue.logger.warning("could not hand back entries; they run later", extra={"error": str(error)})

    def wake(self) -> None:
        """Wake ``__next__`` so that it checks for entries to take over and for a pause."""
        self._queue.deliveries.wake()
        self._read.wake()

    @property
    def n_buffered(self) -> int:
        """The number of messages that were read but that the Worker has not received yet."""
        return len(self._buffer)

    @property
    def is_ahead(self) -> bool:
        """Whether the consumer holds more messages than the Worker has room for."""
        return len(self._buffer) > self._n_places

    @property
    def _n_room(self) -> int:
        """The number of further messages that the Worker may hold now."""
        room = self._most_at_worker - self._queue.n_at_worker
        places = self._process.places
        return min(room, places.n_free(self._queue)) if places.are_few(self._queue) else room

    @property
    def _n_finished(self) -> int:
        return self._n_given - (self._queue.deliveries.n_held - len(self._buffer))

    def _wait_for_place(self, timeout_s: float) -> None:
        """Wait until the Worker has room. If this takes too long, hand back the messages that were read ahead."""
        left_s = self._read_ahead.left_s()
        if self._queue.must_rest or self._queue.must_yield():
            self._give_back(len(self._buffer))
        elif left_s <= 0:
            self._read_ahead.stalled()
            self._give_back(len(self._buffer))
        else:
            self._n_places = self._wait_for_room(min(timeout_s, left_s))

    def _fill(self, timeout_s: float) -> None:
        """Read entries into the buffer, or wait."""
        if self._queue.must_rest:
            self._queue.has_backlog = False
            self._stop_reading()
            self._queue.rest(timeout_s)
            return
        if isinstance(self._read, OwnRead) and (reads := self._queue.group_reads) is not None:
            self._share_reads(reads)
        if not self._is_resynced:
            self._resync(min_idle_ms=0)
            self._is_resynced = True
            return
        if self._queue.has_lost_entries:
            self._queue.has_lost_entries = False
            self._resync(min_idle_ms=LOST_AFTER_MS)
            return
        timeout_s = min(timeout_s, self._stalls_in_s())
        # keep polling a read that waits at the server, because it may return entries even if the Worker has no room
        room = self._wait_for_room(0 if self._read.is_waiting else timeout_s)
        must_yield = self._queue.must_yield()
        if room and self._queue.is_takeable and not must_yield:
            try:
                self._take(max(room + self._n_expected(), self._n_per_batch))
            finally:
                self._end_turn()
        elif self._read.is_waiting and not room and self._has_no_thread():
            self._stop_reading()
        elif self._read.is_waiting:
            self._read_new(room, min(timeout_s, LOOK_AGAIN_S) if self._queue.is_takeable else timeout_s)
        elif must_yield:
            time.sleep(min(timeout_s, LOOK_AGAIN_S))
        elif room:
            self._read_new(room, timeout_s)

    def _stalls_in_s(self) -> float:
        """Take back messages that have waited in the Worker for too long; return the seconds until the next check."""
        places = self._process.places
        left_s = places.stalls_in_s(self._queue)
        if left_s is None:
            return float("inf")
        if left_s <= 0:
            # Check twice, because on a busy machine the job threads may have been suspended together with this one.
            is_certain, self._seen_ended_at = self._seen_ended_at == places.ended_at, places.ended_at
            if is_certain and (taken := places.take_back(self._keys.queue_name)):
                self._hand_back(self._each_of(taken))
                self._queue.is_takeable = True
        # do not check again at once, even if left_s is not positive: the waiting messages may belong to another queue,
        # or may have just arrived
        return max(left_s, LOOK_AGAIN_S)

    def _wait_for_room(self, timeout_s: float) -> int:
        """Wait up to ``timeout_s`` for room in the Worker; return the number of messages that it has room for."""
        places, queue = self._process.places, self._queue
        n_ahead = len(self._buffer)
        if not places.are_few(queue):
            return queue.deliveries.wait_for_room(self._most_at_worker, timeout_s, n_ahead=n_ahead)
        places.awaiting.add(queue)
        room = queue.deliveries.wait_for_room(
            self._most_at_worker, timeout_s, n_ahead=n_ahead, most=lambda: places.n_free(queue)
        )
        if not (room and queue.is_takeable and queue.is_eager):
            self._end_turn()
        return room

    def _has_no_thread(self) -> bool:
        """Return whether to wait for a free thread, because messages read now would have to be handed back."""
        places, queue = self._process.places, self._queue
        return (queue.is_takeable and places.are_few(queue)) or places.is_saturated(queue)

    def _end_turn(self) -> None:
        """Let the next queue have the free thread."""
        places = self._process.places
        if self._queue in places.awaiting:
            places.awaiting.discard(self._queue)
            places.let_others_look(self._queue)

    def _n_expected(self) -> int:
        """Return how many messages to read ahead, in addition to those for which the Worker has room."""
        self._is_ahead_allowed = not self._process.places.are_few(self._queue)
        return self._read_ahead.expect(self._n_finished) if self._is_ahead_allowed else 0

    def _read_new(self, room: int, timeout_s: float) -> None:
        try:
            if not self._read.is_waiting:
                n = min(max(room + self._n_expected(), self._n_per_batch), self._most_asked)
                self._most_asked = min(2 * self._most_asked, NO_LIMIT)
                self._read.start(n)
            # With a backlog, wait only briefly, because ``has_backlog`` may be outdated: reads that requested one
            # message each were all full. Lower-priority queues must not yield for long to a queue that is empty.
            if not self._read.wait(min(timeout_s, LOOK_AGAIN_S) if self._queue.has_backlog else timeout_s):
                self._queue.has_backlog = False
                return
            entries, self._queue.has_backlog, are_lost = self._read.take()
        except redis.ResponseError as error:
            # The group no longer exists, after a FLUSHALL, a failover to an empty replica or a manual XGROUP DESTROY.
            # Create it again, so that the whole stream is delivered again.
            if "NOGROUP" not in str(error):
                raise
            self._process.keeper.add(self._keys)
            return
        except BrokerConnectionError as error:
            if STREAM_GONE in str(error):
                self._process.keeper.add(self._keys)
                return
            # entries may have been delivered to the connection that broke
            self._is_resynced = False
            raise
        if are_lost:
            self._is_resynced = False
        if entries:
            n_ahead = self._read_ahead.n_still_expected() if self._is_ahead_allowed else 0
            self._accept((entry_id, 1, flat, 0, False) for entry_id, flat in entries)
            # hand back the surplus; there is one if the read waited for long or other entries were taken over meanwhile
            self._give_back(len(self._buffer) - self._n_places - max(n_ahead, self._n_per_batch))

    def _take(self, room: int) -> None:
        """Take over entries that were handed back or belong to dead consumers."""
        found = self._process.connections.run_script(
            TAKE,
            (self._keys.stream, self._keys.consumers, self._keys.suspects, self._keys.counters),
            (
                self._settings.group,
                self._process.consumer_name,
                HANDED_BACK,
                self._settings.lease_ms,
                room,
                self._settings.max_deliveries,
                int(self._process.keeper.may_judge(self._keys.queue_name)),
                self._bounds.longest,
                self._bounds.budget,
            ),
        )
        # If there was room for more entries, none are left, unless the limit on bytes ended the call.
        if len(found) < room and sum(sum(map(len, flat)) for _, _, flat, *_ in found) < self._bounds.budget:
            self._queue.is_takeable = False
        self._accept(
            (entry_id, deliveries, CutFields(flat, n_bytes) if n_bytes else flat, charges, bool(doomed))
            for entry_id, deliveries, flat, charges, doomed, _, n_bytes in found
        )
        recovered = [entry_id.decode() for entry_id, *_, is_recovered, _ in found if is_recovered]
        if recovered:
            self._queue.logger.info("took over entries of dead consumers", extra={"n": len(recovered)})
            self._queue.batch_size.start_small()
            self._process.emit("after_recover", self._keys.queue_name, recovered)

    def _resync(self, *, min_idle_ms: int) -> None:
        """Read the entries that are in this consumer's pending list but were never received."""
        found = self._lost_entries(min_idle_ms)
        if found:
            self._queue.logger.info("reclaimed entries whose delivery reply was lost", extra={"n": len(found)})
        self._accept(
            (
                (entry_id, deliveries, CutFields(flat, n_bytes) if n_bytes else flat, 0, False)
                for entry_id, deliveries, flat, n_bytes in found
            ),
            are_reread=True,
        )

    def _lost_entries(self, min_idle_ms: int) -> Any:
        return self._process.connections.run_script(
            RESYNC,
            (self._keys.stream, self._keys.counters),
            (
                self._settings.group,
                self._process.consumer_name,
                min_idle_ms,
                self._prefetch + self._read_ahead.most,
                self._bounds.longest,
                self._bounds.budget,
                *self._queue.deliveries.ids(),
            ),
        )

    def _accept(
        self, entries: Iterable[tuple[bytes, int, list[bytes] | None, int, bool]], *, are_reread: bool = False
    ) -> None:
        """Decode entries into the buffer, and turn those that are not messages into dead letters."""
        accepted: list[Delivery] = []
        uncounted: list[Any] = []
        process, queue_name, longest = self._process, self._keys.queue_name, self._settings.max_message_bytes
        decoder, check, name = self._queue.decoder, self._queue.check, self._keys.name_of_messages
        homes = None if are_reread else self._queue.homes
        read: list[Sequence[bytes]] = []
        try:
            for raw_id, deliveries, flat, charges, is_doomed in entries:
                if flat is None:  # the entry was removed before its delivery
                    continue
                entry_id, cut = raw_id.decode(), flat if isinstance(flat, CutFields) else None
                if cut is not None:
                    self._most_asked = 1
                    if self._is_only_short_of_room(cut):
                        uncounted += [entry_id, deliveries]
                        continue
                fields = fields_of(flat)
                try:
                    if cut is not None:
                        raise Oversize(cut.n_bytes, longest, None)
                    message = decode(entry_id, fields, queue_name=name, decoder=decoder, check=check)
                    n_bytes = size_of(flat)
                    if n_bytes > longest and not has_run(message):
                        raise Oversize(n_bytes, longest, message)
                except UndecodableEntry as error:
                    process.outcomes.bury_entry(self._keys, entry_id, deliveries, fields, error)
                    continue
                delivery = Delivery(
                    message,
                    entry_id=entry_id,
                    queue=queue_name,
                    consumer_name=process.consumer_name,
                    deliveries=deliveries,
                    pid=process.pid,
                    charges=charges,
                    is_doomed=is_doomed,
                )
                delivery.n_bytes = n_bytes
                if are_reread:
                    delivery.is_reread = True
                options = message.options
                if options and len(fields) == 1 and ("traceback" in options or EXPIRES_AT in options):
                    delivery.payload = fields.get(MESSAGE_FIELD)
                accepted.append(delivery)
                read.append(flat)
            if homes is not None:
                accepted = self._without_strays(homes, accepted, read)
        finally:
            # even if a dead letter could not be written, the entries before it were accepted
            self._buffer.extend(self._queue.deliveries.add(accepted))
            # messages may have been cancelled before they were accepted, for example if their worker died
            self._queue.cancel_held()
            if uncounted:
                # these entries were cut only because the whole reply was too large; the next take reads them again
                self._queue.hand_back(uncounted)
                self._queue.is_takeable = True
            if accepted:
                self._has_batches = self._process.batcher.serves(name)
                estimate = (
                    self._process.batcher.size_for(accepted, self._queue.batch_size) if self._has_batches else None
                )
                if estimate is not None:
                    self._n_per_batch, most = estimate
                    self._most_at_worker = self._prefetch if most is None else min(most, self._prefetch)
                self._n_places = max(0, self._n_room)
                if self._n_places:
                    self._queue.served_at = time.monotonic()
                self._read_ahead.filled(self._n_finished)

    def _without_strays(
        self, homes: Shards, accepted: list[Delivery], read: Sequence[Sequence[bytes]]
    ) -> list[Delivery]:
        """Move the messages that belong to other shards; return the rest, or all if they could not be moved."""
        own, strays = [], []
        for delivery, flat in zip(accepted, read, strict=True):
            home = homes.home_of_stray(delivery)
            if home == self._keys.queue_name:
                own.append(delivery)
            else:
                strays.append(Stray(delivery, flat, home))
        try:
            if strays:
                move(self._process.connections, self._keys, strays, group=self._settings.group)
        except (BrokerConnectionError, redis.RedisError) as error:
            self._queue.logger.warning("could not move messages to their shards; they run here: %s", error)
            return accepted
        return own

    def _is_only_short_of_room(self, flat: CutFields) -> bool:
        """Return whether an entry was cut only because of the entries before it in the same reply."""
        return flat.n_bytes <= min(self._bounds.longest, self._bounds.budget) and len(flat) < MOST_PARTS

    def _give_back(self, n: int) -> None:
        """Hand back the ``n`` newest messages in the buffer, so that other consumers can take them at once."""
        excess = [self._buffer.pop() for _ in range(min(n, len(self._buffer)))]
        if excess:
            self._hand_back(excess)
            # this consumer takes them next, because they are older than undelivered entries
            self._queue.is_takeable = True

    def wanted(self) -> int:
        """Return the maximum number of entries that a shared read may return for this queue."""
        deliveries = self._queue.deliveries
        if len(deliveries) - deliveries.n_held > MOST_SETTLING + self._prefetch:
            return 0
        return min(self._n_room - len(self._buffer), self._most_asked)

    def _share_reads(self, reads: GroupReads) -> None:
        """Read this queue on the shared connection from now on."""
        unread, are_lost = self._read.close(timeout_s=STOP_READING_S)
        self._read = self._queue.shared_read(reads)
        self._give_back_unread(unread, are_lost=are_lost)

    def _stop_reading(self) -> None:
        if self._read.is_waiting:
            unread, are_lost = self._read.stop(timeout_s=STOP_READING_S)
            self._give_back_unread(unread, are_lost=are_lost)

    def _give_back_unread(self, entries: Sequence[Any], *, are_lost: bool) -> None:
        """Hand back entries that were read but not accepted, and entries that may have been lost with a connection."""
        if entries:
            self._queue.hand_back_entries(entries)
        if are_lost:
            lost = self._lost_entries(0)
            self._queue.hand_back([part for entry_id, deliveries, *_ in lost for part in (entry_id, deliveries)])

    def _hand_back_unless_silent(self, deliveries: list[Delivery], *, counts: bool = False) -> None:
        """Hand back messages, unless the server did not answer the last command.

        So a shutdown waits for only one timeout. Messages that are not handed back stay in this consumer's pending
        list. They run again when a consumer of this process reads them, when the lease lapses, or when the process
        ends.

        Raises:
            ConnectionClosed: the server did not answer the last command.
        """
        if self._process.connections.is_silent(self._keys.stream):
            self._queue.deliveries.forget(deliveries)
            raise ConnectionClosed("Redis does not answer")
        self._hand_back(deliveries, counts=counts)

    def _hand_back(self, deliveries: list[Delivery], *, counts: bool = False) -> None:
        ours = [one for one in deliveries if not (one.is_settled or one.is_lost)]
        try:
            if ours:
                args = [part for one in ours for part in (one.entry_id, one.deliveries)]
                self._queue.hand_back(args, counts=counts)
        finally:
            # If this fails, the entries stay in this consumer's pending list but are no longer held. The next consumer
            # of this process takes them, or other processes do so after the lease.
            self._queue.deliveries.forget(deliveries)
