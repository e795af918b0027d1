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
import socket
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from types import TracebackType
from typing import Any, Final

import redis
from dramatiq.errors import ConnectionClosed, ConnectionFailed
from redis.backoff import NoBackoff
from redis.retry import Retry

from .addresses import Address, address_of
from .bounded_read import BoundedReader, Bounds
from .cluster import Node, Slots, redirected
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

# What redis-py waits for an answer from 8.0 on. Before, and where a client was made without, it waited for ever for a
# server that hangs, or whose machine is gone.
TIMEOUT_S: Final = 5.0

# A connection that lay idle longer may have been closed by the server or by something between.
PROBE_AFTER_IDLE_S: Final = 1.0


# A command follows so many redirects of a cluster.
MOST_REDIRECTS: Final = 4

REDIRECT_PAUSE_S: Final = 0.05

# A server may answer a blocking command late: it serves others first.
OVERDUE_AFTER_S: Final = 5.0


class Connections:
    """What one process keeps open to Redis. Threads borrow; there are never more connections than threads, per node."""

    def __init__(self, client: redis.Redis | redis.RedisCluster) -> None:
        if client.get_encoder().decode_responses:
            raise SettingsError(
                "client", "decodes answers to text", "make it with decode_responses=False: entries may hold any bytes"
            )
        self._slots = Slots(client) if isinstance(client, redis.RedisCluster) else None
        # A pool of Sentinel is asked for the master's address by the connections; it must outlive them.
        self._pool: Any = client.connection_pool if isinstance(client, redis.Redis) else None
        self._idle: defaultdict[Node | None, deque[tuple[redis.Connection, float]]] = defaultdict(deque)
        self._silent: set[Node | None] = set()

    @cached_property
    def _template(self) -> tuple[type[redis.Connection], dict[str, Any]]:
        """How connections are made: their class and its settings. Of a cluster one node's stand for all."""
        pool = self._pool if self._slots is None else self._slots.pool
        return pool.connection_class, {
            **{k: v for k, v in pool.connection_kwargs.items() if not k.startswith(POOLS_OWN)},
            "retry": Retry(NoBackoff(), 0),
            "retry_on_error": [],
            "retry_on_timeout": False,
            "socket_timeout": pool.connection_kwargs.get("socket_timeout") or TIMEOUT_S,
            # one form of answers for every release of redis-py
            "protocol": 2,
        }

    def connect(self, key: str, *, extra_timeout_s: float = 0.0) -> redis.Connection:
        """A new connection to where ``key`` is, which belongs to the caller.

        Args:
            extra_timeout_s: added to the read timeout, for commands that block at the server.
        """
        return self._connect(self._node_of(key), extra_timeout_s=extra_timeout_s)

    def address(self, key: str) -> Address | None:
        """What another process of this machine needs to reach ``key``; None where only this one can.

        Raises:
            BrokerConnectionError: Sentinel, or the cluster, could not say where it is.
        """
        node = self._node_of(key)
        if node is None and isinstance(self._pool, redis.sentinel.SentinelConnectionPool):
            with translated(ConnectionFailed):
                node = self._pool.get_master_address()
        connection_class, settings = self._template
        if self._slots is not None:
            # a cluster's client looks at its connections once more; that is about replicas, which nobody asks here
            settings = {name: value for name, value in settings.items() if name != "redis_connect_func"}
        return address_of(connection_class, settings, node)

    def run(self, *command: Argument, key: str | None = None) -> Any:
        """The answer to one command.

        Args:
            key: any key of the queue it is about; the command's second word where that is one.
        """
        node = self._node_of(str(command[1]) if key is None else key)
        for _ in range(MOST_REDIRECTS):
            try:
                with self._borrowed(node) as connection, translated(ConnectionClosed):
                    connection.send_command(*command)
                    return self.answer(connection)
            except Redirected as redirect:
                node = redirect.to
                if redirect.is_asking:
                    return self._ask(node, command)
        raise ConnectionClosed("the cluster's nodes send a command from one to the other")

    def run_script(self, script: Script, keys: Sequence[str], args: Iterable[Argument]) -> Any:
        """The answer of a script, which is loaded where the server does not know it."""
        rest = (len(keys), *keys, *args)
        try:
            return self.run("EVALSHA", script.sha, *rest, key=keys[0])
        except redis.exceptions.NoScriptError:
            return self.run("EVAL", script.text, *rest, key=keys[0])

    def run_scripts(self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Argument]]]) -> list[Any]:
        """The answers to many calls of a script, in one round trip to each node."""
        if len(calls) == 1:
            return [self.run_script(script, *calls[0])]
        by_node: defaultdict[Node | None, list[int]] = defaultdict(list)
        for place, (keys, _) in enumerate(calls):
            by_node[self._node_of(keys[0])].append(place)
        answers: list[Any] = [None] * len(calls)
        for node, places in by_node.items():
            for place, answer in zip(
                places, self._run_scripts_at(node, script, [calls[p] for p in places]), strict=True
            ):
                answers[place] = answer
        return answers

    def together(self, keys: Sequence[str]) -> list[list[str]]:
        """The keys, those of one node together: where one node does not answer, another one may."""
        by_node: defaultdict[Node | str | None, list[str]] = defaultdict(list)
        for key in keys:
            try:
                by_node[self._node_of(key)].append(key)
            except ConnectionFailed:  # no node has its slot just now
                by_node[key].append(key)
        return list(by_node.values())

    def is_silent(self, key: str) -> bool:
        """Whether the server that has ``key`` let the last question to it wait in vain.

        For courtesies at the end of a process: the first one that is not answered has waited for all of them.
        """
        if not self._silent:
            return False
        try:
            return self._node_of(key) in self._silent
        except ConnectionFailed:
            return True

    def note_answer(self, node: Node | None) -> None:
        """The server answered."""
        if self._silent:
            self._silent.discard(node)

    def note_silence(self, node: Node | None) -> None:
        """The server did not answer in time."""
        self._silent.add(node)

    def close(self) -> None:
        """Close what is idle. What is borrowed is closed when it comes back to nobody."""
        for idle in list(self._idle.values()):
            while idle:
                idle.pop()[0].disconnect()

    def _run_scripts_at(
        self, node: Node | None, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Argument]]]
    ) -> list[Any]:
        tails = [(len(keys), *keys, *args) for keys, args in calls]
        answers: list[Any] = []
        again: list[int] = []
        first_error: redis.ResponseError | None = None
        with self._borrowed(node) as connection, translated(ConnectionClosed):
            # EVAL first: it loads the script for the others, whatever the server knows.
            commands = [("EVAL", script.text, *tails[0]), *(("EVALSHA", script.sha, *tail) for tail in tails[1:])]
            connection.send_packed_command(connection.pack_commands(commands))
            for place in range(len(commands)):
                # every answer is read, or the next user of the connection would get it
                try:
                    answers.append(self.answer(connection))
                except Redirected:
                    again.append(place)
                    answers.append(None)
                except redis.ResponseError as error:
                    # the one that should have loaded it was redirected, or SCRIPT FLUSH came between
                    if isinstance(error, redis.exceptions.NoScriptError):
                        again.append(place)
                    else:
                        first_error = first_error or error
                    answers.append(None)
            if first_error is not None:
                raise first_error
        for place in again:
            answers[place] = self.run_script(script, *calls[place])
        return answers

    def _ask(self, node: Node, command: Sequence[Argument]) -> Any:
        """The answer of the node that a slot is on its way to."""
        with self._borrowed(node) as connection, translated(ConnectionClosed):
            connection.send_command("ASKING")
            connection.read_response()
            connection.send_command(*command)
            return connection.read_response()

    def _node_of(self, key: str) -> Node | None:
        if self._slots is None:
            return None
        with translated(ConnectionFailed):
            return self._slots.node_of(key)

    def _connect(self, node: Node | None, *, extra_timeout_s: float = 0.0) -> redis.Connection:
        where: dict[str, Any] = {} if node is None else {"host": node[0], "port": node[1]}
        connection_class, settings = self._template
        where["socket_timeout"] = settings["socket_timeout"] + extra_timeout_s
        connection = connection_class(**{**settings, **where})
        self._open(connection)
        return connection

    def _open(self, connection: redis.Connection) -> None:
        try:
            with translated(ConnectionFailed):
                connection.connect()
        except ConnectionFailed:
            if self._slots is not None:
                self._slots.read_again()
            raise

    def answer(self, connection: redis.Connection, reader: BoundedReader | None = None) -> Any:
        """The answer to what was sent; through ``reader`` where one reads from the connection's socket.

        Raises:
            Redirected: another node of the cluster has the slot; nothing was done.
        """
        try:
            return connection.read_response() if reader is None else reader.read()
        except redis.exceptions.MovedError as error:
            if self._slots is None:
                connection.disconnect()
                raise
            raise Redirected(self._slots.correct(error, _node_at(connection))) from error
        except redis.exceptions.AskError as error:
            if self._slots is None:
                raise
            raise Redirected(redirected(error, _node_at(connection)), is_asking=True) from error
        except redis.ResponseError as error:
            if _says(error, WRONG_SERVER):
                connection.disconnect()
                if self._slots is not None:
                    self._slots.read_again()
            raise

    def _borrowed(self, node: Node | None) -> Borrowed:
        return Borrowed(self, node)

    def give_back(self, node: Node | None, connection: redis.Connection) -> None:
        self._idle[node].append((connection, time.monotonic()))

    def take(self, node: Node | None) -> redis.Connection:
        try:
            connection, since = self._idle[node].pop()
        except IndexError:
            return self._connect(node)
        with translated(ConnectionFailed):
            if time.monotonic() - since > PROBE_AFTER_IDLE_S and _socket_of(connection) is not None:
                try:
                    is_dirty = connection.can_read(0)
                except (redis.ConnectionError, redis.TimeoutError, OSError):
                    is_dirty = True
                if is_dirty:
                    connection.disconnect()
        if _socket_of(connection) is None:
            self._open(connection)
        return connection


class Borrowed:
    """A connection for the length of a command. No generator: that would cost as much as packing the command."""

    __slots__ = ("_connection", "_connections", "_node")

    def __init__(self, connections: Connections, node: Node | None) -> None:
        self._connections, self._node = connections, node

    def __enter__(self) -> redis.Connection:
        try:
            self._connection = self._connections.take(self._node)
        except ConnectionFailed as error:
            if _is_silence(error):
                self._connections.note_silence(self._node)
            raise
        return self._connection

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None and not _is_answer(error):
            # Whatever raised, a time limit between the command and its answer too: the next user would get that.
            self._connection.disconnect()
            if _is_silence(error):
                self._connections.note_silence(self._node)
        else:
            self._connections.note_answer(self._node)
        self._connections.give_back(self._node, self._connection)


class Redirected(Exception):
    """Raised when a node of a cluster names another one; seen by no caller."""

    def __init__(self, to: Node, *, is_asking: bool = False) -> None:
        super().__init__(f"{to[0]}:{to[1]}")
        self.to, self.is_asking = to, is_asking


class BlockingRead:
    """One blocking command at a time on a connection of its own.

    The command is sent once and may wait at the server for long; its thread waits in slices, so that it can stop,
    and another thread can wake it. That is what makes an idle queue cheap.
    """

    def __init__(self, connections: Connections, key: str, *, block_ms: int, bounds: Bounds | None = None) -> None:
        """
        Args:
            bounds: how much of an answer is kept; None keeps all of it.
        """
        self._connections = connections
        self._bounds = bounds
        self._reader: BoundedReader | None = None
        self._key = key
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
            self._connection = self._connections.connect(self._key, extra_timeout_s=self._block_ms / 1000)
            sock = _socket_of(self._connection)
            if self._bounds is not None and sock is not None:
                self._reader = BoundedReader(sock, self._bounds)
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
                sock = _socket_of(self._connection)
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
        """The answer to the command that was sent; None, as after a read without news, when a cluster moved the key."""
        assert self._connection is not None
        self.is_waiting = False
        self._overdue_at = float("inf")
        with translated(ConnectionClosed), self._dropped_on_error():
            try:
                return self._connections.answer(self._connection, self._reader)
            except Redirected:
                pass
        # Nothing was delivered; who asks again asks the node that has the slot now, or soon will.
        self.drop()
        time.sleep(REDIRECT_PAUSE_S)
        return None

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
            self._connection = self._reader = None

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
            if self._connection is not None and _socket_of(self._connection) is None:
                self.drop()
            raise
        except BaseException:
            self.drop()
            raise


def _is_answer(error: BaseException) -> bool:
    told = error.__cause__ if isinstance(error, ConnectionClosed) else error
    return isinstance(told, redis.ResponseError | Redirected)


def _is_silence(error: BaseException) -> bool:
    return isinstance(error.__cause__ or error, redis.TimeoutError | TimeoutError)


def _socket_of(connection: Any) -> socket.socket | None:
    """None where it is not connected. redis-py has no public way to it; nor, before 8.0, to whether there is one."""
    found: socket.socket | None = connection._sock
    return found


def _node_at(connection: Any) -> Node:
    return str(connection.host), int(connection.port)


def _says(error: redis.ResponseError, words: Sequence[str]) -> bool:
    # redis-py takes the first word off the text where it has a class for it
    told = f"{type(error).__name__.upper()} {error}"
    return any(word in told for word in words)


class translated:  # noqa: N801  # read like a function, as those of contextlib
    """Turns redis-py's connection errors into Dramatiq's."""

    __slots__ = ("_kind",)

    def __init__(self, kind: type[ConnectionClosed] | type[ConnectionFailed]) -> None:
        self._kind = kind

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            return
        if isinstance(error, redis.ResponseError):
            if _says(error, NOT_NOW):
                raise ConnectionClosed(f"Redis cannot do this now: {error}") from error
        elif isinstance(error, redis.ConnectionError | redis.TimeoutError | OSError):
            raise self._kind(f"{type(error).__name__}: {error}") from error
