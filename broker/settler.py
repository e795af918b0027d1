"""The settler: writes acknowledgements in batches, many per script call (AMQP: settlement).

A worker thread queues the acknowledgement of its finished message and continues. One thread per process writes the
queued acknowledgements, usually within a few milliseconds. Those that could not be written are kept and tried again
until a Redis outage ends. If the process crashes before the write, the message is delivered again and the job runs
twice, as it could without batches.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import redis
from dramatiq.errors import BrokerConnectionError
from dramatiq.logging import get_logger

from .deliveries import Deliveries, Delivery
from .keys import QueueKeys
from .net.connections import Argument, Connections
from .options import unique_key_of
from .scripts import SETTLE

# Maximum number of entries per script call: 500 take the server about a millisecond. Lua's unpack() is limited to about
# 8,000 values.
ENTRIES_PER_CALL = 500
# Batch window after a write: acknowledgements that arrive within it share the next write.
GATHER_S = 0.002
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0


@dataclass
class _Failed:
    """A queue's acknowledgements that could not be written and wait for the next attempt.

    Attributes:
        pause_s: the length of the current pause.
        until: when the pause ends, on the monotonic clock.
    """

    keys: QueueKeys
    waiting: list[Delivery]
    pause_s: float
    until: float


class Settler:
    """A thread that writes acknowledgements in batches. ``start`` and ``stop`` are idempotent."""

    def __init__(self, connections: Connections, *, group: str, consumer_name: str) -> None:
        self._connections = connections
        self._group = group
        self._consumer_name = consumer_name
        self._logger: logging.Logger = get_logger(__name__, type(self))
        self._lock = threading.Lock()
        # Worker threads append on the right, and the writing thread takes from the left. A deque needs no lock for
        # that.
        self._waiting: deque[tuple[QueueKeys, Deliveries, Delivery]] = deque()
        # The acknowledgements of queues that pause after a failure. Acknowledgements of other queues do not wait.
        self._failed: dict[Deliveries, _Failed] = {}
        self._writing = threading.Lock()
        self._has_work = threading.Event()
        self._is_urgent = threading.Event()
        self._is_stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        with self._lock:
            if self._thread is None and not self._is_stopping.is_set():
                self._thread = threading.Thread(target=self._loop, name="broker-settler", daemon=True)
                self._thread.start()

    def settle(self, keys: QueueKeys, deliveries: Deliveries, delivery: Delivery) -> None:
        """Queue a delivery's acknowledgement for the next batch, without waiting for the write."""
        deliveries.begin_settling(delivery)
        self._waiting.append((keys, deliveries, delivery))
        if delivery.uncommon is not None and (delivery.limits is not None or delivery.charges):
            # another message waits for this one: the next message of its key, or the next suspect
            self._is_urgent.set()
        if not self._has_work.is_set():
            self._has_work.set()
        if self._is_stopping.is_set():
            # this worker thread outlived the shutdown, and the writing thread has ended, so this thread writes
            self._try_once()

    def settle_all(self, keys: QueueKeys, deliveries: Deliveries, batch: Sequence[Delivery]) -> None:
        """Queue a batch's acknowledgements for one write, without waiting for it. Batched messages have no keys."""
        deliveries.begin_settling_all(batch)
        self._waiting.extend([(keys, deliveries, delivery) for delivery in batch])
        self._has_work.set()
        if self._is_stopping.is_set():
            self._try_once()

    def run_once(self) -> int:
        """Write the waiting acknowledgements, except those of pausing queues; return how many were written.

        Raises:
            BrokerConnectionError: Redis did not accept all of them; the rest are still waiting.
        """
        with self._writing:  # a worker thread that outlived the shutdown may be writing, too
            return self._write_all(self._taken_by_queue())

    def _taken_by_queue(self) -> dict[Deliveries, tuple[QueueKeys, list[Delivery]]]:
        """Return the acknowledgements to write now. Those of pausing queues stay in ``_failed``."""
        now = time.monotonic()
        by_queue = {
            deliveries: (failed.keys, failed.waiting)
            for deliveries, failed in self._failed.items()
            if failed.until <= now or self._is_stopping.is_set()
        }
        for keys, deliveries, delivery in self._taken():
            failed = self._failed.get(deliveries)
            waiting = failed.waiting if failed else by_queue.setdefault(deliveries, (keys, []))[1]
            waiting.append(delivery)
        return by_queue

    def _write_all(self, by_queue: dict[Deliveries, tuple[QueueKeys, list[Delivery]]]) -> int:
        n_written, failure = 0, None
        try:
            for deliveries, (keys, of_queue) in by_queue.items():
                # skip a server that has not answered for another queue, so as not to wait once per queue
                if failure is not None and self._connections.is_silent(keys.stream):
                    continue
                try:
                    n_written += self._write(keys, deliveries, of_queue)
                except (BrokerConnectionError, redis.RedisError) as error:
                    # continue, because the failure may concern only one node or one queue
                    failure = failure or error
        finally:
            for deliveries, (keys, of_queue) in by_queue.items():
                self._note(deliveries, keys, of_queue)
        if failure is not None:
            raise failure
        return n_written

    def _note(self, deliveries: Deliveries, keys: QueueKeys, unwritten: list[Delivery]) -> None:
        """Pause a queue if some of its acknowledgements were not written. The pause doubles with each failure."""
        failed = self._failed.pop(deliveries, None)
        if unwritten:
            pause_s = min(2 * failed.pause_s, LONGEST_PAUSE_S) if failed else FIRST_PAUSE_S
            self._failed[deliveries] = _Failed(keys, unwritten, pause_s, time.monotonic() + pause_s)

    @property
    def _n_waiting(self) -> int:
        return len(self._waiting) + sum(len(failed.waiting) for failed in list(self._failed.values()))

    def _write(self, keys: QueueKeys, deliveries: Deliveries, of_queue: list[Delivery]) -> int:
        """Write one queue's acknowledgements, and remove them from ``of_queue``; return how many were written."""
        n_written = 0
        while of_queue:
            chunk = of_queue[:ENTRIES_PER_CALL]
            script_keys, args, elsewhere = self._call(keys, chunk)
            n_held, *_ = self._connections.run_script(SETTLE, script_keys, args)
            del of_queue[: len(chunk)]
            deliveries.forget(chunk)
            n_written += len(chunk)
            # keep the keys if another consumer holds one of these messages, because it may enqueue the same follow-up
            # messages
            if elsewhere and n_held == len(chunk):
                self._delete(elsewhere)
        return n_written

    def _call(self, keys: QueueKeys, chunk: list[Delivery]) -> tuple[list[str], list[Argument], list[str]]:
        """Return the KEYS and ARGV of settle.lua, and the follow-up messages' keys in other slots of a cluster."""
        script_keys = [*keys.work, keys.suspects, keys.counters]
        uncommon = [(place, one) for place, one in enumerate(chunk, start=1) if one.uncommon is not None]
        limited = [(delivery.entry_id, delivery.limits.name) for _, delivery in uncommon if delivery.limits is not None]
        noted = [
            (delivery, unique_key)
            for _, delivery in uncommon
            if delivery.is_noted and (unique_key := unique_key_of(delivery.options)) is not None
        ]
        args: list[Argument] = [self._group, self._consumer_name, len(chunk), len(limited), len(noted)]
        for delivery in chunk:
            args += (delivery.entry_id, delivery.deliveries)
        for entry_id_and_key in limited:
            args += entry_id_and_key
        for delivery, unique_key in noted:
            script_keys.append(keys.unique(unique_key))
            args += (delivery.message_id, delivery.entry_id)
        elsewhere: list[str] = []
        for place, delivery in uncommon:
            for key in delivery.follower_keys:
                if self._connections.share_slot(keys.stream, key):
                    script_keys.append(key)
                    args.append(place)
                else:
                    elsewhere.append(key)
        return script_keys, args, elsewhere

    def _delete(self, keys: list[str]) -> None:
        """Delete keys that are in other slots of a cluster, so that settle.lua must not use them."""
        if not keys:
            return
        try:
            self._connections.delete(keys)
        except (BrokerConnectionError, redis.RedisError) as error:
            self._logger.info("keys of follow-up messages were not deleted; they expire", extra={"error": str(error)})

    def stop(self, *, timeout_s: float = 5.0) -> int:
        """Try to write the waiting acknowledgements for at most ``timeout_s``; return how many were not written.

        Jobs whose acknowledgement was not written run again.
        """
        self._is_stopping.set()
        self._is_urgent.set()
        self._has_work.set()
        deadline = time.monotonic() + timeout_s
        if self._thread is not None:
            self._thread.join(timeout_s)
        pause_s = FIRST_PAUSE_S
        while self._n_waiting and not self._is_in_vain():
            if self._try_once() or time.monotonic() + pause_s >= deadline:
                break
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        return self._n_waiting

    def _is_in_vain(self) -> bool:
        """Return whether none of the servers for which acknowledgements are waiting answers."""
        streams = {keys.stream for keys, _, _ in list(self._waiting)}
        streams |= {failed.keys.stream for failed in list(self._failed.values())}
        return all(self._connections.is_silent(stream) for stream in streams)

    def _taken(self) -> Iterator[tuple[QueueKeys, Deliveries, Delivery]]:
        """Take and yield the acknowledgements that are waiting now. Later ones are left for the next batch."""
        for _ in range(len(self._waiting)):
            try:
                yield self._waiting.popleft()
            except IndexError:  # a worker thread that outlived the shutdown has taken the last one
                return

    def _loop(self) -> None:
        while not self._is_stopping.is_set():
            next_try_at = min((failed.until for failed in list(self._failed.values())), default=None)
            self._has_work.wait(None if next_try_at is None else max(0.0, next_try_at - time.monotonic()))
            self._has_work.clear()
            self._is_urgent.clear()
            self._try_once()
            # sleep during the batch window, so that acknowledgements within it do not wake this thread
            self._is_urgent.wait(GATHER_S)

    def _try_once(self) -> bool:
        try:
            self.run_once()
        except (BrokerConnectionError, redis.RedisError) as error:
            self._logger.warning(
                "could not write acknowledgements; trying again", extra={"n": self._n_waiting, "error": str(error)}
            )
            return False
        except Exception:
            # continue after any error, because this is the only thread that writes
            self._logger.exception("could not write acknowledgements; trying again", extra={"n": self._n_waiting})
            return False
        return True
