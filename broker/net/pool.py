"""A pool of connections to one server, which limits their number and closes idle ones.

A thread borrows a connection for one command. A blocking read owns a connection. The pool never opens more than the
client's ``max_connections`` connections: a thread waits until one is free. Idle connections are closed after a minute,
because servers, proxies and firewalls eventually forget them, and because small servers allow few.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakSet

import redis
from dramatiq.errors import ConnectionFailed
from dramatiq.logging import get_logger

# Idle time after which a connection may have been closed by the server or forgotten by the network.
PROBE_AFTER_IDLE_S: Final = 1.0
CLOSE_AFTER_IDLE_S: Final = 60.0
UNLIMITED: Final = 1 << 31  # redis-py's value for an unlimited pool
# If at least this many connections are open, a thread waits briefly for a free one before it opens another. The wait
# grows with each further connection. Commands are short, so a burst of threads needs few connections.
ENOUGH: Final = 3
MOMENT_S: Final = 0.01
# How long no connection is opened after the server has refused one because it has too many clients.
REFUSED_FOR_S: Final = 5.0
# Interval at which a waiting thread checks whether a connection was lost without being returned.
LOOK_AGAIN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Limit:
    """The limit on a pool's connections.

    Attributes:
        most: the maximum number of connections.
        wait_s: the maximum time in seconds for which a thread waits for a free connection.
    """

    most: int
    wait_s: float

    @classmethod
    def of(cls, pool: Any, timeout_s: float) -> Limit:
        """Return the limit of redis-py's pool. If the pool defines no maximum waiting time, it is ``timeout_s``."""
        wait_s = getattr(pool, "timeout", None) if isinstance(pool, redis.BlockingConnectionPool) else timeout_s
        return cls(
            int(getattr(pool, "max_connections", None) or UNLIMITED),
            threading.TIMEOUT_MAX if wait_s is None else float(wait_s),
        )


class Pool:
    """A pool of connections to one server. Thread-safe."""

    def __init__(self, connect: Callable[[], redis.Connection], limit: Limit) -> None:
        """
        Args:
            connect: a function that opens a connection or raises ``ConnectionFailed``.
        """
        self._connect = connect
        self._limit = limit
        self._logger: logging.Logger = get_logger(__name__, type(self))
        # Threads take connections from the right, so that those on the left stay idle and are closed. A deque needs no
        # lock for that.
        self._idle: deque[tuple[redis.Connection, float]] = deque()
        # Acquire this lock and not the Condition, whose acquire runs Python code. If the time limit of a job that
        # enqueues interrupted that code after it had taken the lock, no thread would ever get a connection again.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        # weak references, so that a connection that an interrupted thread loses is closed and no longer counted
        self._open: WeakSet[redis.Connection] = WeakSet()
        self._owned: WeakSet[redis.Connection] = WeakSet()
        self._n_connecting = 0
        self._n_waiting = 0
        self._refused_until = 0.0

    def take(self) -> tuple[redis.Connection, bool]:
        """Borrow a connection; return it and whether it was idle for so long that it may be dead.

        Raises:
            ConnectionFailed: no connection is free, and none can be opened.
        """
        while True:
            try:
                connection, since = self._idle.pop()
            except IndexError:
                connection, since = self._freed_or_new()
            if time.monotonic() - since <= PROBE_AFTER_IDLE_S:
                return connection, False
            if _is_clean(connection):
                return connection, True
            self._discard(connection)

    def give_back(self, connection: redis.Connection) -> None:
        """Return a borrowed connection to the pool, or remove it from the pool if it is disconnected."""
        if socket_of(connection) is None:
            self._discard(connection)
            return
        self._idle.append((connection, time.monotonic()))
        if self._n_waiting:
            with self._lock:
                self._changed.notify()

    def own(self) -> redis.Connection:
        """Return a new connection for a blocking read, which keeps it until ``disown`` is called.

        Raises:
            ConnectionFailed: the connection cannot be opened, or blocking reads would leave none for commands.
        """
        deadline = time.monotonic() + self._limit.wait_s
        with self._lock:
            n_owned = len(self._owned) + 1
            if n_owned >= self._limit.most:
                raise ConnectionFailed(
                    f"expected max_connections to be more than {n_owned}, got {self._limit.most}; raise it, "
                    "because this process needs more connections for blocking reads"
                )
            while self._n_open >= self._limit.most and not self._close_one():
                self._wait(deadline)
            self._n_connecting += 1
        connection = self._connected()
        self._owned.add(connection)
        return connection

    def disown(self, connection: redis.Connection) -> None:
        """Close a blocking read's connection."""
        self._owned.discard(connection)
        self._discard(connection)

    @property
    def _n_open(self) -> int:
        return len(self._open) + self._n_connecting

    def _connected(self) -> redis.Connection:
        """Open and return a connection. The caller has already counted it in ``_n_connecting``."""
        try:
            connection = self._connect()
            self._open.add(connection)
            return connection
        finally:
            with self._lock:
                self._n_connecting -= 1
                self._changed.notify()

    @property
    def most_owned(self) -> int:
        """The maximum number of connections that blocking reads may own."""
        return self._limit.most - 1

    @property
    def n_lent(self) -> int:
        """The number of connections that threads have borrowed."""
        return len(self._open) - len(self._owned) - len(self._idle)

    def drop_idle(self) -> None:
        """Close the connections that may be dead, because one that was idle for as long was dead."""
        self.close_idle(PROBE_AFTER_IDLE_S)

    def close_idle(self, idle_s: float) -> float | None:
        """Close connections that were idle for longer than ``idle_s`` seconds.

        Returns:
            The time on the monotonic clock at which another connection will have been idle for this long, or None if
            none is idle.
        """
        while True:
            try:
                connection, since = self._idle.popleft()
            except IndexError:
                return None
            if time.monotonic() - since <= idle_s:
                self._idle.appendleft((connection, since))
                if self._n_waiting:
                    with self._lock:
                        self._changed.notify()
                return since + idle_s
            self._discard(connection)

    def close(self) -> None:
        """Close all idle connections."""
        self.close_idle(-1.0)

    def _freed_or_new(self) -> tuple[redis.Connection, float]:
        """Return a connection that another thread gave back, or a new one."""
        start = time.monotonic()
        deadline = start + self._limit.wait_s
        while True:
            with self._lock:
                self._n_waiting += 1
                try:
                    while True:
                        if self._idle:
                            try:
                                return self._idle.pop()
                            except IndexError:  # another thread took the last idle connection, which needs no lock
                                continue
                        n_borrowed = self._n_open - len(self._owned)
                        now = time.monotonic()
                        spared_s = MOMENT_S * max(0, n_borrowed - ENOUGH + 1)
                        if now < start + spared_s and self._n_open < self._limit.most:
                            self._changed.wait(start + spared_s - now)
                        elif self._n_open >= self._limit.most or (n_borrowed and now < self._refused_until):
                            self._wait(deadline)
                        else:
                            self._n_connecting += 1
                            break
                finally:
                    self._n_waiting -= 1
            try:
                return self._connected(), time.monotonic()
            except ConnectionFailed as error:
                if not self._shares(error):
                    raise

    def _shares(self, error: BaseException) -> bool:
        """Return whether the server refused a connection, but threads can share the pool's other connections."""
        if "max number of clients" not in str(error) or len(self._open) == len(self._owned):
            return False
        if time.monotonic() >= self._refused_until:
            self._logger.warning(
                "the server accepts no more clients; threads share the open connections",
                extra={"n": self._n_open, "error": str(error)},
            )
        self._refused_until = time.monotonic() + REFUSED_FOR_S
        return True

    def _wait(self, deadline: float) -> None:
        """Wait until a connection may have become free. The caller holds the lock.

        Raises:
            ConnectionFailed: none became free before the deadline.
        """
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise ConnectionFailed(
                f"expected a free connection within {self._limit.wait_s:g} s, but all {self._n_open} are in use; "
                "raise max_connections of the client, or the server's maxclients"
            )
        self._changed.wait(min(left_s, LOOK_AGAIN_S))

    def _close_one(self) -> bool:
        """Close an idle connection; return whether there was one. The caller holds the lock."""
        try:
            connection, _ = self._idle.popleft()
        except IndexError:
            return False
        connection.disconnect()
        self._open.discard(connection)
        return True

    def _discard(self, connection: redis.Connection) -> None:
        connection.disconnect()
        with self._lock:
            self._open.discard(connection)
            self._changed.notify()


def socket_of(connection: Any) -> socket.socket | None:
    """Return a connection's socket, or None if it is not connected. redis-py has no public way to access it."""
    found: socket.socket | None = connection._sock
    return found


def _is_clean(connection: redis.Connection) -> bool:
    """Return whether a connection is open and has no unread data."""
    try:
        return not connection.can_read(0)
    except (redis.ConnectionError, redis.TimeoutError, OSError):
        return False
