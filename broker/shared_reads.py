"""Shared reads: blocking commands that wait for news of many queues on one connection.

Redis answers a blocked command as soon as any of its streams has an entry. So a process needs one connection to wait
for the timers of all its queues. In a cluster, one command can only name streams of one slot, so there every queue has
a connection of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Final

import redis
from dramatiq.errors import BrokerConnectionError
from dramatiq.logging import get_logger

from .connections import BlockingRead, Connections

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 2.0
# New timers often come together, when a process starts. Each set of timers costs a connection.
GATHER_S: Final = 0.02
LOOK_AGAIN_S: Final = 60.0
# The number of entries that scripts keep in the stream of a timer.
MOST_ENTRIES: Final = 16

# The id of an entry, then names and values.
Entry = tuple[bytes, list[bytes]]


class Timers:
    """The timers of the queues of one process. ``stop`` may be called twice."""

    def __init__(self, connections: Connections, *, block_ms: int) -> None:
        """
        Args:
            block_ms: how long one command waits at the server.
        """
        self._connections = connections
        self._block_ms = block_ms
        self._lock = threading.Lock()
        self._watches: dict[str | None, _Watch] = {}
        self._is_stopping = False

    def timer(self, key: str) -> Timer:
        """Return the timer at this key. Nothing waits for it until ``expect`` is called."""
        return Timer(self, key)

    def add(self, timer: Timer, *, again: bool) -> None:
        """Wait for this timer from now on.

        Args:
            again: whether its last entry is older than before, so that a command that waits must be sent again.
        """
        name = timer.key if self._connections.is_cluster else None
        with self._lock:
            if self._is_stopping:
                return
            watch = self._watches.get(name)
            if watch is None:
                watch = self._watches[name] = _Watch(self._connections, timer.key, self._block_ms)
        watch.add(timer, again=again)

    def remove(self, timer: Timer) -> None:
        """Wait for this timer no longer."""
        for watch in list(self._watches.values()):
            watch.remove(timer)

    def begin_stop(self) -> None:
        """Ask the threads to end, without waiting."""
        with self._lock:
            self._is_stopping = True
        for watch in list(self._watches.values()):
            watch.begin_stop()

    def stop(self, *, timeout_s: float = 5.0) -> None:
        """End the threads, waiting at most ``timeout_s`` for each."""
        self.begin_stop()
        for watch in list(self._watches.values()):
            watch.stop(timeout_s)


class Timer:
    """The stream of one queue whose newest entry announces news to its janitors.

    Attributes:
        key: the key of the stream.
        last_id: the newest entry that is known.
    """

    def __init__(self, timers: Timers, key: str) -> None:
        self._timers = timers
        self.key = key
        self.last_id = b"0-0"
        self._has_news = threading.Event()
        self._entries: list[Entry] = []

    def expect(self, last_id: bytes) -> None:
        """Wait from now on for an entry newer than ``last_id``, which the janitor has just read as the newest one."""
        if self._has_news.is_set():  # an entry that the janitor has not read yet
            return
        is_behind = _place(last_id) < _place(self.last_id)  # the stream was deleted
        self.last_id = last_id
        self._timers.add(self, again=is_behind)

    def wait(self, timeout_s: float) -> bool:
        """Wait until there is news, or a call of ``wake``; return whether it came within ``timeout_s``."""
        has_news = self._has_news.wait(timeout_s)
        self._has_news.clear()
        return has_news

    def entries(self) -> list[Entry] | None:
        """Return the entries that were announced since the last call; None if others may have come before them.

        The stream keeps its newest entries only, and ``wake`` announces none.
        """
        entries, self._entries = self._entries, []
        return entries if 0 < len(entries) < MOST_ENTRIES else None

    def wake(self) -> None:
        """Make ``wait`` return, from any thread."""
        self._has_news.set()

    def announce(self, entries: Sequence[Entry]) -> None:
        """Record entries that were added."""
        if entries[-1][0] != self.last_id:
            self.last_id = entries[-1][0]
            self._entries += entries
            self._has_news.set()

    def close(self) -> None:
        """Stop waiting for this timer."""
        self._timers.remove(self)


class _Watch:
    """A thread with one connection, which waits for news of timers of one server."""

    def __init__(self, connections: Connections, key: str, block_ms: int) -> None:
        self._read = BlockingRead(connections, key, block_ms=block_ms)
        self._block_ms = block_ms
        self._logger: logging.Logger = get_logger(__name__, type(self))
        self._lock = threading.Lock()
        self._timers: dict[str, Timer] = {}
        self._must_ask_again = False
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="broker-timers", daemon=True)
        self._thread.start()

    def add(self, timer: Timer, *, again: bool) -> None:
        with self._lock:
            is_new = self._timers.get(timer.key) is not timer
            self._timers[timer.key] = timer
            if not (is_new or again):
                return
            self._must_ask_again = True
        self._read.wake()

    def remove(self, timer: Timer) -> None:
        with self._lock:
            if self._timers.get(timer.key) is timer:
                del self._timers[timer.key]

    def begin_stop(self) -> None:
        self._is_stopping.set()
        self._read.wake()

    def stop(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _loop(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._is_stopping.is_set():
            try:
                self._round()
                pause_s = FIRST_PAUSE_S
                continue
            except (BrokerConnectionError, redis.RedisError) as error:
                if self._is_stopping.is_set():
                    break
                self._logger.warning("could not wait for news of timers; trying again", extra={"error": str(error)})
            except Exception:
                self._logger.exception("could not wait for news of timers; trying again")
            self._read.drop()
            for timer in self._known():
                timer.wake()
            self._is_stopping.wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        self._read.close()

    def _round(self) -> None:
        """Wait for news once, or until other timers are to be waited for."""
        if not self._read.is_waiting:
            if self._must_ask_again:
                self._is_stopping.wait(GATHER_S)
                self._must_ask_again = False
            timers = self._known()
            if timers:
                ids = [timer.last_id for timer in timers]
                self._read.send("XREAD", "BLOCK", self._block_ms, "STREAMS", *(t.key for t in timers), *ids)
        if self._read.wait(LOOK_AGAIN_S):
            by_key = {timer.key.encode(): timer for timer in self._known()}
            for key, entries in self._read.answer() or ():
                if key in by_key:
                    by_key[key].announce(entries)
        elif self._must_ask_again:
            self._read.drop()

    def _known(self) -> list[Timer]:
        with self._lock:
            return list(self._timers.values())


def _place(entry_id: bytes) -> tuple[int, int]:
    """Return an entry id in a form that can be compared."""
    ms, _, number = entry_id.partition(b"-")
    return int(ms), int(number)
