"""Connections to Redis: commands that are sent once, and reads that block without blocking their thread.

redis-py repeats a command when its connection broke, which doubles an XADD whose reply was lost. Here nothing is
repeated behind the caller's back: who may repeat what is decided where the command's meaning is known.

redis-py's errors become Dramatiq's here: ``ConnectionFailed`` when nothing was sent, ``ConnectionClosed`` when the
connection broke after that, or the server answered that it cannot do it now. Other answers that are errors stay
``redis.ResponseError``.
"""

from __future__ import annotations

import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import redis
from dramatiq.errors import ConnectionClosed, ConnectionFailed
from redis.backoff import NoBackoff
from redis.retry import Retry

from .errors import SettingsError
from .scripts import Script

Argument = str | bytes | int

# Answers that say "not now": a failover, a start, a full disk or memory, a busy script. By words, because inside
# a script's error they are all that is left of the class.
NOT_NOW: Final = (
    "READONLY",
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MOVED",
    "ASK ",
    "OOM",
    "OUTOFMEMORY",
    "MISCONF",
    "NOREPLICAS",
    "BUSY ",
    "UNBLOCKED",
)
# After these the other end is the wrong one: connect again, which asks Sentinel or the name server.
WRONG_SERVER: Final = ("READONLY", "LOADING", "MASTERDOWN", "MOVED")

# What a pool tells its connections for its own purposes: push notifications, which need the newer protocol.
POOLS_OWN: Final = ("maint", "orig_", "oss_cluster_", "himport_")

# A connection that lay idle longer may have been closed by the server or by something between.
PROBE_AFTER_IDLE_S: Final = 1.0


# A server may answer a blocking command late: it serves others first.
OVERDUE_AFTER_S: Final = 5.0


class Connections:
    """What one process keeps open to Redis. Threads borrow; there are never more connections than threads."""

    def __init__(self, client: redis.Redis) -> None:
        if client.get_encoder().decode_responses:
            raise SettingsError(
                "client", "decodes answers to text", "make it with decode_responses=False: entries may hold any bytes"
            )
        pool = client.connection_pool
        self._connection_class = pool.connection_class
        self._connection_kwargs: dict[str, Any] = {
            **{k: v for k, v in pool.connection_kwargs.items() if not k.startswith(POOLS_OWN)},
            "retry": Retry(NoBackoff(), 0),
            "retry_on_error": [],
            "retry_on_timeout": False,
            # one form of answers for every release of redis-py
            "protocol": 2,
        }
        # A pool of Sentinel is asked for the master's address by the connections; it must outlive them.
        self._pool = pool
        self._idle: deque[tuple[redis.Connection, float]] = deque()

    def connect(self, *, extra_timeout_s: float = 0.0) -> redis.Connection:
        """A new connection, which belongs to the caller.

        Args:
            extra_timeout_s: added to the read timeout, for commands that block at the server.
        """
        connection: redis.Connection = self._connection_class(**self._connection_kwargs)
        if connection.socket_timeout is not None:
            connection.socket_timeout += extra_timeout_s
        with translated(ConnectionFailed):
            connection.connect()
        return connection

    def run(self, *command: Argument) -> Any:
        """The answer to one command."""
        with self._borrowed() as connection, translated(ConnectionClosed):
            connection.send_command(*command)
            return _answer(connection)

    def run_script(self, script: Script, keys: Sequence[str], args: Iterable[Argument]) -> Any:
        """The answer of a script, which is loaded where the server does not know it."""
        rest = (len(keys), *keys, *args)
        try:
            return self.run("EVALSHA", script.sha, *rest)
        except redis.exceptions.NoScriptError:
            return self.run("EVAL", script.text, *rest)

    def run_scripts(self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Argument]]]) -> list[Any]:
        """The answers to many calls of a script, in one round trip."""
        if len(calls) == 1:
            return [self.run_script(script, *calls[0])]
        tails = [(len(keys), *keys, *args) for keys, args in calls]
        with self._borrowed() as connection, translated(ConnectionClosed):
            # EVAL first: it loads the script for the others, whatever the server knows.
            commands = [("EVAL", script.text, *tails[0]), *(("EVALSHA", script.sha, *tail) for tail in tails[1:])]
            connection.send_packed_command(connection.pack_commands(commands))
            answers, first_error = [], None
            for _ in commands:
                # every answer is read, or the next user of the connection would get it
                try:
                    answers.append(_answer(connection))
                except redis.ResponseError as error:
                    first_error = first_error or error
            if first_error is not None:
                raise first_error
            return answers

    def close(self) -> None:
        """Close what is idle. What is borrowed is closed when it comes back to nobody."""
        while self._idle:
            self._idle.pop()[0].disconnect()

    @contextmanager
    def _borrowed(self) -> Iterator[redis.Connection]:
        connection = self._pop()
        try:
            yield connection
        finally:
            # redis-py has disconnected it if the exchange was not finished; it connects again when it is used.
            self._idle.append((connection, time.monotonic()))

    def _pop(self) -> redis.Connection:
        try:
            connection, since = self._idle.pop()
        except IndexError:
            return self.connect()
        with translated(ConnectionFailed):
            if time.monotonic() - since > PROBE_AFTER_IDLE_S and connection.is_connected:
                try:
                    is_dirty = connection.can_read(0)
                except (redis.ConnectionError, redis.TimeoutError, OSError):
                    is_dirty = True
                if is_dirty:
                    connection.disconnect()
            connection.connect()
        return connection


class BlockingRead:
    """One blocking command at a time on a connection of its own.

    The command is sent once and may wait at the server for long; its thread waits in slices, so that it can stop,
    and another thread can wake it. That is what makes an idle queue cheap.
    """

    def __init__(self, connections: Connections, *, block_ms: int) -> None:
        self._connections = connections
        self._block_ms = block_ms
        self._connection: redis.Connection | None = None
        self._selector: selectors.BaseSelector | None = None
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._wake_lock = threading.Lock()
        self._overdue_at = float("inf")
        self.is_waiting = False

    def send(self, *command: Argument) -> None:
        """Send the command. Connects where necessary."""
        if self._connection is None:
            self._connection = self._connections.connect(extra_timeout_s=self._block_ms / 1000)
        with translated(ConnectionClosed), self._dropped_on_error():
            self._connection.send_command(*command)
            self.is_waiting = True
            self._overdue_at = time.monotonic() + self._block_ms / 1000 + OVERDUE_AFTER_S

    def wait(self, timeout_s: float) -> bool:
        """Whether the answer is there. Returns early when woken.

        Raises:
            ConnectionClosed: the server should have answered long ago; the connection is dropped.
        """
        if time.monotonic() > self._overdue_at:
            self.drop()
            raise ConnectionClosed("no answer to a blocking read: the connection or the server hangs")
        if self._selector is None:
            selector = selectors.DefaultSelector()
            selector.register(self._wake_read, selectors.EVENT_READ)
            if self._connection is not None:
                # redis-py has no public way to wait for several sources at once
                sock = self._connection._get_socket()
                assert sock is not None
                selector.register(sock, selectors.EVENT_READ)
            self._selector = selector
        is_there = False
        for key, _ in self._selector.select(max(0.0, timeout_s)):
            if key.fd == self._wake_read:
                with suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
            else:
                is_there = True
        return is_there

    def answer(self) -> Any:
        """The answer to the command that was sent."""
        assert self._connection is not None
        self.is_waiting = False
        self._overdue_at = float("inf")
        with translated(ConnectionClosed), self._dropped_on_error():
            return _answer(self._connection)

    def wake(self) -> None:
        """Make ``wait`` return at once, from any thread."""
        with self._wake_lock, suppress(OSError):  # full: it is awake already; closed: nobody sleeps
            os.write(self._wake_write, b"!")

    def drop(self) -> None:
        """Give the connection up, and with it an answer that may be on its way."""
        self.is_waiting = False
        self._overdue_at = float("inf")
        if self._selector is not None:
            self._selector.close()
            self._selector = None
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None

    def close(self) -> None:
        self.drop()
        # under the lock: a late wake must not write into whatever gets this number next
        with self._wake_lock:
            for end in (self._wake_read, self._wake_write):
                if end >= 0:
                    os.close(end)
            self._wake_read = self._wake_write = -1

    @contextmanager
    def _dropped_on_error(self) -> Iterator[None]:
        try:
            yield
        except redis.ResponseError:
            if self._connection is not None and not self._connection.is_connected:
                self.drop()
            raise
        except BaseException:
            self.drop()
            raise


def _answer(connection: redis.Connection) -> Any:
    try:
        return connection.read_response()
    except redis.ResponseError as error:
        if _says(error, WRONG_SERVER):
            connection.disconnect()
        raise


def _says(error: redis.ResponseError, words: Sequence[str]) -> bool:
    # redis-py takes the first word off the text where it has a class for it
    told = f"{type(error).__name__.upper()} {error}"
    return any(word in told for word in words)


@contextmanager
def translated(kind: type[ConnectionClosed] | type[ConnectionFailed]) -> Iterator[None]:
    """Turns redis-py's connection errors into Dramatiq's."""
    try:
        yield
    except redis.ResponseError as error:
        if _says(error, NOT_NOW):
            raise ConnectionClosed(f"Redis cannot do this now: {error}") from error
        raise
    except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
        raise kind(f"{type(error).__name__}: {error}") from error
