"""What one process has of a broker: its name, its connections, its threads, what it holds.

A broker makes a new one after a fork: locks, sockets and threads do not survive one, and a child must not answer for
its parent's messages.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import redis
from dramatiq import Message
from dramatiq.broker import MessageProxy
from dramatiq.errors import BrokerConnectionError, ConnectionClosed
from dramatiq.logging import get_logger

from .connections import Connections
from .consumer import Oversize, StreamsConsumer
from .dead_letters import dead_letter_from, facts_of_delivery, facts_of_entry, facts_of_follower, reason_of, stored_from
from .deliveries import Deliveries, Delivery, PendingRetry, unhandled_failure
from .entries import EntryDecoder, MessageCheck, check_text, with_types
from .errors import UndecodableEntry
from .identity import consumer_name
from .isolation import Isolation
from .janitor import Janitor, Round
from .keeper import Keeper
from .keys import QueueKeys
from .options import delay_ms_of, name_in_delayed, ordering_key_of, unique_key_of
from .progress import Judgement, Limits, judge
from .scripts import BURY, CONDEMN, LEAVE, RETRY, START
from .settings import BrokerSettings
from .settler import Settler

# How long the end of a process may wait for Redis, and for threads that may wait for it where it does not answer.
STOP_S: Final = 5.0
SILENT_STOP_S: Final = 1.0


class Emit(Protocol):
    """Tells middleware of a signal, by the name of the method."""

    def __call__(self, signal: str, *args: Any) -> object: ...


# What a message enqueues when it is done is enqueued again when its worker dies before the acknowledgement. Remembered
# for longer than a crash is likely to be noticed.
REMEMBER_FOLLOWERS_MS = 15 * 60 * 1000


class ConsumedQueue:
    """A queue that this process consumes: what is held of it, and what the janitor saw last."""

    def __init__(
        self, session: Session, keys: QueueKeys, decoder: EntryDecoder | None, check: MessageCheck | None
    ) -> None:
        self.session = session
        self.keys = keys
        self.decoder = decoder
        self.check = check
        self.logger: logging.Logger = get_logger(__name__, f"Consumer({keys.queue_name})")
        self.deliveries = Deliveries()
        self.is_paused = False
        self.is_takeable = True  # what was handed back is older than what was never delivered
        self.has_lost_entries = False
        self.has_backlog = False  # the last read brought as much as it asked for
        self._n_unheld_rounds = 0
        self._resumed = threading.Event()
        self._consumer: StreamsConsumer | None = None
        self.janitor = Janitor(
            session.connections,
            session.settings,
            keys,
            consumer_name=session.consumer_name,
            on_round=self._after_round,
        )

    def attach(self, consumer: StreamsConsumer) -> None:
        self._consumer = consumer

    def detach(self, consumer: StreamsConsumer) -> None:
        if self._consumer is consumer:
            self._consumer = None
            self.has_backlog = False

    @property
    def is_waiting(self) -> bool:
        """Whether messages wait in Redis, or were read ahead."""
        return self.has_backlog or (self._consumer is not None and self._consumer.is_ahead)

    def must_yield(self) -> bool:
        """Whether a more important queue of this process has messages waiting in Redis."""
        return self.session.has_more_important_work(self.keys.queue_name)

    @property
    def must_rest(self) -> bool:
        """Whether nothing may be read: the queue is paused, or this process is stuck."""
        return self.is_paused or not self.session.moves.is_set()

    def rest(self, timeout_s: float) -> None:
        """Wait for the end of what keeps the consumer from reading."""
        (self._resumed if self.is_paused else self.session.moves).wait(timeout_s)

    def wake(self) -> None:
        """Have the consumer look around."""
        consumer = self._consumer
        if consumer is not None:
            consumer.wake()

    def _after_round(self, done: Round) -> bool:
        """Tell the consumer what the janitor saw; whether it should look again soon."""
        has_news = False
        if done.is_takeable:
            self.is_takeable = has_news = True
        if done.n_owned > len(self.deliveries):
            # Twice in a row, and none of them young: a reply that was lost while the connection lived.
            self._n_unheld_rounds += 1
            if self._n_unheld_rounds >= 2:
                self._n_unheld_rounds = 0
                self.has_lost_entries = has_news = True
        else:
            self._n_unheld_rounds = 0
        if done.is_paused != self.is_paused:
            self.is_paused = done.is_paused
            has_news = True
            if done.is_paused:
                self._resumed.clear()
            else:
                self._resumed.set()
        if done.n_orphans:
            self.logger.warning("orphaned entries handed back to work", extra={"n": done.n_orphans})
            self.session.emit("after_orphans", self.keys.queue_name, done.n_orphans)
        if has_news:
            self.wake()
        return self._n_unheld_rounds > 0


def _fields_of(delivery: Delivery) -> dict[bytes, bytes]:
    """Return the fields of its entry; none where its actor made its arguments something that cannot be encoded."""
    try:
        return {b"message": delivery._message.encode()}
    except Exception:
        return {}


class Session:
    """One process's part of a broker."""

    def __init__(
        self,
        client: redis.Redis | redis.RedisCluster,
        settings: BrokerSettings,
        emit: Emit,
        enqueue_followers: Callable[[Delivery], None],
        limits: Limits,
    ) -> None:
        self.settings = settings
        self._limits = limits
        self.emit = emit
        self.enqueue_followers = enqueue_followers
        self.logger: logging.Logger = get_logger(__name__, type(self))
        self.consumer_name = consumer_name()
        self.connections = Connections(client)
        self.settler = Settler(self.connections, group=settings.group, consumer_name=self.consumer_name)
        self.keeper = Keeper(
            self.connections,
            settings,
            consumer_name=self.consumer_name,
            judge=self.judge if settings.overrun_ms is not None else None,
            on_judgement=self._be_moving,
        )
        self.isolation = Isolation(patience_s=settings.lease_ms / 1000)
        self._lock = threading.Lock()
        self._queues: dict[str, ConsumedQueue] = {}
        self.moved_at: dict[str, float] = {}
        self.is_draining = False  # the Worker shuts down: it begins no more jobs
        self.moves = threading.Event()  # cleared while this process is stuck
        self.moves.set()

    def consume(
        self,
        keys: QueueKeys,
        decoder: EntryDecoder | None,
        check: MessageCheck | None,
        *,
        prefetch: int,
        timeout_ms: int,
    ) -> StreamsConsumer:
        """A consumer of the queue. The first one of a queue starts its heartbeat and its janitor.

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
                queue = self._queues[keys.queue_name] = ConsumedQueue(self, keys, decoder, check)
                queue.janitor.start()
        return StreamsConsumer(queue, prefetch=prefetch, timeout_ms=timeout_ms)

    def judge(self) -> Judgement:
        """Judge whether this process still finishes what it holds."""
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

    def has_more_important_work(self, queue_name: str) -> bool:
        """Whether a queue of a lower number than this one's has messages waiting in Redis."""
        numbers = self.settings.queue_priorities
        if not numbers:
            return False
        own = numbers.get(queue_name, 0)
        others = list(self._queues.values())
        return any(queue.is_waiting and numbers.get(queue.keys.queue_name, 0) < own for queue in others)

    def may_run(self, delivery: Delivery) -> bool:
        """Whether this process still holds it, asked of Redis only where that can be otherwise.

        Raises:
            BrokerConnectionError: Redis was asked and did not answer.
        """
        if (
            delivery.deliveries == 1
            and self.keeper.is_sure_of(delivery.queue)
            and unique_key_of(delivery._message.options) is None
        ):
            return True
        return self._start(delivery)

    def note_company(self, delivery: Delivery) -> None:
        """Have a crash charged to this one as to one of many: it does not run alone any more."""
        try:
            self._start(delivery, is_running=True)
        except (BrokerConnectionError, redis.RedisError) as error:
            self.logger.warning("cannot note that a suspect is not alone any more: %s", error)

    def _start(self, delivery: Delivery, *, is_running: bool = False) -> bool:
        keys = self._keys(delivery)
        script_keys = (keys.stream, keys.suspects, keys.counters, keys.holders)
        args = (int(delivery.is_alone), int(is_running))
        answer, *coalesced = self._fenced(START, keys, delivery, script_keys, args)
        if answer == b"RUN":
            delivery.coalesced = coalesced[0] if coalesced else None
            delivery.is_noted = bool(coalesced)
        return bool(answer == b"RUN")

    def write_retry(self, delivery: Delivery) -> bool:
        """Write the retry of a message, and remove the entry it came from; whether this process still held it.

        Raises:
            BrokerConnectionError: it is not known to be written. Asked again, it is written once.
        """
        pending, keys = delivery.pending_retry, self._keys(delivery)
        assert pending is not None
        try:
            answer = self._fenced(
                RETRY,
                keys,
                delivery,
                (*keys.work, keys.suspects, keys.counters),
                (
                    pending.payload,
                    pending.name,
                    pending.delay_ms,
                    delivery.ordering_key or "",
                    pending.lock_ms,
                ),
            )
        except redis.RedisError as error:
            raise ConnectionClosed(f"{type(error).__name__}: {error}") from error
        delivery.is_settled = True
        delivery.pending_retry = None
        if answer != b"RETRIED":
            # FENCED: somebody else runs it. GONE: it was flushed, or an earlier try of this very retry was written.
            self.logger.info("a retry was not needed", extra={"entry": delivery.entry_id, "answer": answer.decode()})
        return bool(answer == b"RETRIED")

    def begin_retry(self, delivery: Delivery, message: Any, delay: int | None) -> bool:
        """Write the retry of a message that failed; from now on it cannot be acknowledged before that is written.

        It is written whatever it weighs: the message was accepted, and no producer is left to get an error.

        Raises:
            BrokerConnectionError: Redis did not take it. ``Consumer.ack`` tries again.
            Exception: it cannot be encoded, or its delay is no number.
        """
        delay_ms = delay_ms_of(delay)
        payload = message.encode()
        if len(payload) > self.settings.max_message_bytes:
            # Retries adds the traceback, of any length; a dead letter has its own
            message.options.pop("traceback", None)
            payload = message.encode()
        lock_ms = self.settings.lock_ms(message.options, delay_ms)
        delivery.pending_retry = PendingRetry(payload, delay_ms, name_in_delayed(delivery.ordering_key), lock_ms)
        return self.write_retry(delivery)

    def bury_delivery(self, delivery: Delivery) -> None:
        """Make a message that failed a dead letter, unless another process holds it."""
        keys = self._keys(delivery)
        facts = facts_of_delivery(delivery)
        answer = self._fenced(
            BURY,
            keys,
            delivery,
            (*keys.work, keys.dead, keys.suspects, keys.counters),
            (self.settings.dead_letter_ttl_ms, self.settings.dead_letter_max, delivery.ordering_key or "", *facts),
        )
        if answer[0] == b"BURIED":
            # the entry's own fields stay at the server; the message stands for them here
            stored = stored_from(facts, _fields_of(delivery))
            dead_letter = dead_letter_from(answer[1].decode(), stored, queue_name=keys.queue_name)
            self.emit("after_dead_letter", dead_letter)

    def bury_entry(
        self, keys: QueueKeys, entry_id: str, deliveries: int, fields: Mapping[bytes, bytes], error: UndecodableEntry
    ) -> None:
        """Make an entry that is no message a dead letter."""
        reason = "oversize" if isinstance(error, Oversize) else reason_of(error)
        facts = facts_of_entry(reason, error, entry_id=entry_id, deliveries=deliveries)
        message_id = ordering_key = ""
        script_keys = [*keys.work, keys.dead, keys.suspects, keys.counters]
        if error.message is not None and error.message.queue_name == keys.queue_name:
            # what it held is held by nobody any more
            message_id = error.message.message_id
            ordering_key = ordering_key_of(error.message.options) or ""
            unique_key = unique_key_of(error.message.options)
            if unique_key is not None:
                script_keys.append(keys.unique(unique_key))
        answer = self.connections.run_script(
            BURY,
            script_keys,
            (
                self.settings.group,
                self.consumer_name,
                deliveries,
                entry_id,
                message_id,
                self.settings.dead_letter_ttl_ms,
                self.settings.dead_letter_max,
                ordering_key,
                *facts,
            ),
        )
        self.logger.error(
            "an entry is no message; it is a dead letter now",
            extra={"queue": keys.queue_name, "entry": entry_id, "reason": reason, "error": str(error)},
        )
        if answer[0] == b"BURIED":
            dead_letter = dead_letter_from(answer[1].decode(), stored_from(facts, fields), queue_name=keys.queue_name)
            self.emit("after_dead_letter", dead_letter)
            if error.message is not None:
                self._report_refusal(error.message, error)

    def condemn(self, finished: Delivery, message: Message[Any], error: Exception) -> None:
        """Make a message a dead letter of its queue that was to follow a finished one, and cannot be enqueued.

        Done again, as when the finished one runs again, it does nothing.

        Raises:
            BrokerConnectionError: Redis did not answer.
            redis.RedisError: Redis did not take it.
            Exception: it cannot be encoded.
        """
        message = with_types(message)
        check_text(message)
        fields = {b"message": message.encode()}
        keys = QueueKeys(self.settings.namespace, message.queue_name)
        facts = facts_of_follower(error, message, entry_id=finished.entry_id)
        stored = stored_from(facts, fields)
        follower_id = finished.name_of_follower(message)
        dead_letter_id = self.connections.run_script(
            CONDEMN,
            (keys.dead, keys.recent(follower_id), keys.counters),
            (
                follower_id,
                REMEMBER_FOLLOWERS_MS,
                self.settings.dead_letter_ttl_ms,
                self.settings.dead_letter_max,
                *(part for pair in stored.items() for part in pair),
            ),
        )
        self.logger.error(
            "what follows a finished message cannot be enqueued; it is a dead letter now",
            extra={"queue": keys.queue_name, "message_id": message.message_id, "error": str(error)},
        )
        if dead_letter_id:
            self.emit(
                "after_dead_letter", dead_letter_from(dead_letter_id.decode(), stored, queue_name=keys.queue_name)
            )
            self._report_refusal(message, error)

    def bury_unhandled(self, delivery: Delivery) -> None:
        """Make a dead letter of a message that the Worker acknowledges, and that nothing failed, retried or skipped."""
        if delivery.unhandled is None:
            delivery.unhandled = unhandled_failure()
        self.bury_delivery(delivery)
        if delivery._exception is not None:
            delivery.fail()
            self.emit("after_nack", delivery)

    def _report_refusal(self, message: Message[Any], error: Exception) -> None:
        """Emit ``after_nack`` for a message that the Worker never sees: a caller may wait for its result."""
        refused = MessageProxy(message)
        refused.fail()
        refused.stuff_exception(error)
        self.emit("after_nack", refused)

    def stop(self) -> None:
        """Write what is to be written, stop every thread, say goodbye. May be called twice.

        All of that has one deadline, however many queues there are. Where Redis does not answer, only threads are
        waited for, and shortly: one of them may wait for it, and ends with this process.
        """
        with self._lock:
            queues, self._queues = list(self._queues.values()), {}
        is_silent = any(self.connections.is_silent(queue.keys.stream) for queue in queues)
        deadline = time.monotonic() + (SILENT_STOP_S if is_silent else STOP_S)
        for queue in queues:
            queue.janitor.begin_stop()
        for queue in queues:
            queue.janitor.stop(timeout_s=_left_s(deadline))
        n_unwritten = self.settler.stop(timeout_s=_left_s(deadline))
        if n_unwritten:
            self.logger.error("acknowledgements were not written; these jobs run again", extra={"n": n_unwritten})
        self.keeper.stop(timeout_s=_left_s(deadline))
        # True for worker threads that outlived the shutdown: they will be gone with this process
        is_holding = self._leave(queues)
        self.keeper.close(is_holding=is_holding, timeout_s=_left_s(deadline))
        self.connections.close()

    def abandon(self) -> None:
        """Let go of it in a process that was forked: nothing of it is that one's."""
        self.keeper.abandon()

    def _leave(self, queues: Sequence[ConsumedQueue]) -> bool:
        """Take this consumer out of the queues; whether it still holds entries, or may."""
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
                self.logger.warning("could not say goodbye; the lease will end", extra={"error": str(error)})
                is_holding = is_holding or any(len(by_stream[stream].deliveries) for stream in streams)
        return is_holding

    def _keys(self, delivery: Delivery) -> QueueKeys:
        return QueueKeys(self.settings.namespace, delivery.queue)

    def _fenced(
        self, script: Any, keys: QueueKeys, delivery: Delivery, script_keys: tuple[str, ...], args: Any = ()
    ) -> Any:
        """The answer of a script that does nothing unless this process holds the entry."""
        unique_key = unique_key_of(delivery.options)
        return self.connections.run_script(
            script,
            script_keys if unique_key is None else (*script_keys, keys.unique(unique_key)),
            (
                self.settings.group,
                delivery.consumer_name,
                delivery.deliveries,
                delivery.entry_id,
                delivery.message_id,
                *args,
            ),
        )


def _left_s(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
