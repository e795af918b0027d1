"""The heartbeat of a process: what keeps its messages its own, those that wait in it too.

One member of a sorted set per queue, on the server's clock. Entries are not touched, so that the idle time which
XPENDING shows stays the time since delivery.
"""

from __future__ import annotations

import logging
import threading
import time

import redis
from dramatiq.errors import BrokerConnectionError
from dramatiq.logging import get_logger

from .connections import Connections
from .keys import QueueKeys
from .scripts import BEAT
from .settings import BrokerSettings


class Keeper:
    """Beats for all queues of a process. ``start`` and ``stop`` may be called twice."""

    def __init__(self, connections: Connections, settings: BrokerSettings, *, consumer_name: str) -> None:
        self._connections = connections
        self._settings = settings
        self._consumer_name = consumer_name
        self._logger: logging.Logger = get_logger(__name__, type(self))
        self._lock = threading.Lock()
        self._queues: dict[str, QueueKeys] = {}
        self._confirmed_at: dict[str, float] = {}
        self._late_at = float("-inf")
        self._is_stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, keys: QueueKeys) -> None:
        """Beat for this queue from now on; the first beat is written before this returns.

        Raises:
            BrokerConnectionError: it could not be written.
        """
        self._beat([keys])
        with self._lock:
            self._queues[keys.queue_name] = keys
            if self._thread is None and not self._is_stopping.is_set():
                self._thread = threading.Thread(target=self._loop, name="broker-keeper", daemon=True)
                self._thread.start()

    def run_once(self) -> None:
        """One beat for every queue, in one round trip.

        Raises:
            BrokerConnectionError: it could not be written.
        """
        with self._lock:
            queues = list(self._queues.values())
        if queues:
            self._beat(queues)

    def is_sure_of(self, queue_name: str) -> bool:
        """Whether this process's lease on the queue is certain to run still: nobody has taken what waits here.

        By the local clock from before the last confirmed beat was sent; a stopped process finds out when it wakes.
        """
        confirmed_at = self._confirmed_at.get(queue_name, float("-inf"))
        return time.monotonic() - confirmed_at < self._settings.lease_ms / 1000 * 0.8

    def may_judge(self, queue_name: str) -> bool:
        """Whether the silence of others means that they are dead.

        Not after an outage of Redis: everybody's heartbeat is old then, and the living need a beat to say so.
        """
        since_late_s = time.monotonic() - self._late_at
        return self.is_sure_of(queue_name) and since_late_s > self._settings.beat_ms / 1000 + 1

    def stop(self) -> None:
        self._is_stopping.set()
        if self._thread is not None:
            self._thread.join(5.0)

    def _beat(self, queues: list[QueueKeys]) -> None:
        sent_at = time.monotonic()
        args = (self._settings.group, self._consumer_name, self._settings.lease_ms)
        answers = self._connections.run_scripts(BEAT, [((keys.stream, keys.consumers), args) for keys in queues])
        for keys, was_in_time in zip(queues, answers, strict=True):
            confirmed_at = self._confirmed_at.get(keys.queue_name)
            if confirmed_at is not None:
                if sent_at - confirmed_at > 1.5 * self._settings.beat_ms / 1000:
                    self._late_at = time.monotonic()
                if not was_in_time:
                    self._logger.warning(
                        "the lease had lapsed; messages held here may run elsewhere too",
                        extra={"queue": keys.queue_name},
                    )
            self._confirmed_at[keys.queue_name] = sent_at

    def _loop(self) -> None:
        while not self._is_stopping.wait(self._settings.beat_ms / 1000):
            try:
                self.run_once()
            except (BrokerConnectionError, redis.RedisError) as error:
                self._logger.warning("no heartbeat was written; trying again", extra={"error": str(error)})
                while not self._is_stopping.wait(min(0.5, self._settings.beat_ms / 1000)):
                    try:
                        self.run_once()
                        break
                    except (BrokerConnectionError, redis.RedisError):
                        continue
