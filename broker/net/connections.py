"""Connections to Redis: commands that are sent once, and blocking reads that can be interrupted.

redis-py repeats a command when its connection breaks. If only the reply to an XADD was lost, the entry is added twice.
So this module does not repeat commands. Callers decide, because they know whether repeating is safe. There is one
exception. An idle connection may be dead, because a firewall or a lost host forgot it without closing it. Then the
other idle connections are dropped, and a command that is marked as repeatable is sent once more on a new connection.

This module translates redis-py's errors to Dramatiq's: ``ConnectionFailed`` if nothing was sent, and
``ConnectionClosed`` if the connection broke later or the server cannot execute the command now. Other error replies
remain ``redis.ResponseError``.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import threading
import time
from _thread import start_new_thread
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from types import TracebackType
from typing import Any, Final, TypeVar

import redis
from dramatiq.errors import ConnectionClosed, ConnectionFailed
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..errors import SettingsError
from ..scripts import Script
from .addresses import Address, address_of
from .bounded_read import BoundedReader, Bounds
from .cluster import Node, Slots, redirected, slot_of
from .pool import CLOSE_AFTER_IDLE_S, Limit, Pool, socket_of

Argument = str | bytes | int
T = TypeVar("T")

# Error replies that mean that the server cannot execute the command now, because of a failover, a start, a full disk or
# memory, or a busy script. They are recognized by their text, because an error inside a script keeps only its text.
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
# Error replies that mean that this is the wrong server. A new connection looks up the address again, in Sentinel or
# DNS.
WRONG_SERVER: Final = ("READONLY", "LOADING", "MASTERDOWN", "MOVED")

# Prefixes of the settings that redis-py's pools add for push notifications, which require protocol 3.
POOLS_OWN: Final = ("maint", "orig_", "oss_cluster_", "himport_")

# Read timeout for a client that sets none. It is redis-py's default since 8.0. Without a timeout, reads would wait
# forever if the server hangs or its machine is lost.
TIMEOUT_S: Final = 5.0

# Maximum time to wait for the reply to a repeatable command on a connection that was idle for a while, unless half the
# read timeout is less.
IDLE_ANSWER_S: Final = 1.0

# If the thread that closes idle connections is later than this, it counts as dead, and another one is started.
CLOSER_GRACE_S: Final = 5.0

# Maximum number of cluster redirects that a command follows.
MOST_REDIRECTS: Final = 4

REDIRECT_PAUSE_S: Final = 0.05

# How long after a blocking command's timeout a busy server may answer it.
OVERDUE_AFTER_S: Final = 5.0


class Connections:
    """A process's connections to Redis, in one pool per node."""

    def __init__(self, client: redis.Redis | redis.RedisCluster) -> None:
        if client.get_encoder().decode_responses:
            raise SettingsError(
                "client",
                "expected decode_responses=False, got True",
                "create the client with decode_responses=False, because entries may contain any bytes",
            )
        self._slots = Slots(client) if isinstance(client, redis.RedisCluster) else None
        # keep the pool, because connections query a Sentinel pool for the master's address
        self._pool: Any = client.connection_pool if isinstance(client, redis.Redis) else None
        self._pools: dict[Node | None, Pool] = {}
        self._silent: set[Node | None] = set()
        self._lock = threading.Lock()
        self._closer_due = 0.0  # time until which the thread that closes idle connections is known to run
        self._is_closed = threading.Event()

    @cached_property
    def _template(self) -> tuple[type[redis.Connection], dict[str, Any]]:
        """The connection class and its settings, which are the same for all nodes of a cluster."""
        pool = self._pool if self._slots is None else self._slots.pool
        return pool.connection_class, {
            **{k: v for k, v in pool.connection_kwargs.items() if not k.startswith(POOLS_OWN)},
            "retry": Retry(NoBackoff(), 0),
            "retry_on_error": [],
            "retry_on_timeout": False,
            # no health checks, because their PING would wait for the whole read timeout; see ``IDLE_ANSWER_S``
            "health_check_interval": 0,
            "socket_timeout": pool.connection_kwargs.get("socket_timeout") or TIMEOUT_S,
            # protocol 2, so that replies have the same form in every release of redis-py
            "protocol": 2,
        }

    @cached_property
    def _limit(self) -> Limit:
        pool = self._pool if self._slots is None else self._slots.pool
        return Limit.of(pool, self._template[1]["socket_timeout"])

    @cached_property
    def _idle_answer_s(self) -> float:
        return min(IDLE_ANSWER_S, float(self._template[1]["socket_timeout"]) / 2)

    def own(self, key: str) -> Owned:
        """Return a new connection to the node of ``key`` for a blocking read.

        Raises:
            ConnectionFailed: the connection cannot be opened, or ``max_connections`` would leave none for commands.
        """
        pool = self._pool_of(self._node_of(key))
        return Owned(pool, pool.own())

    def most_owned(self, key: str) -> int:
        """Return the maximum number of connections to the node of ``key`` that blocking reads may own."""
        return self._pool_of(self._node_of(key)).most_owned

    @property
    def is_cluster(self) -> bool:
        """Whether Redis is a cluster. If so, queues are on different nodes, and a command reads only one queue."""
        return self._slots is not None

    def address(self, key: str) -> Address | None:
        """Return the address of ``key``'s server for another process, or None if only redis-py can connect to it.

        Raises:
            BrokerConnectionError: Sentinel or the cluster did not report the node.
        """
        node = self._node_of(key)
        if node is None and isinstance(self._pool, redis.sentinel.SentinelConnectionPool):
            with translated(ConnectionFailed):
                node = self._pool.get_master_address()
        connection_class, settings = self._template
        if self._slots is not None:
            # ignore the cluster client's connect hook, which is only needed to read from replicas
            settings = {name: value for name, value in settings.items() if name != "redis_connect_func"}
        return address_of(connection_class, settings, node)

    def run(self, *command: Argument, key: str | None = None, is_repeatable: bool = False) -> Any:
        """Run one command and return its reply.

        Args:
            key: any key of the queue; by default, the command's first argument.
            is_repeatable: whether the command may be sent again if an idle connection turns out to be dead.
        """
        node = self._node_of(str(command[1]) if key is None else key)
        for _ in range(MOST_REDIRECTS):
            try:
                return self._exchange(node, [command], self.answer, is_repeatable=is_repeatable)
            except Redirected as redirect:
                node = redirect.to
                if redirect.is_asking:
                    return self._ask(node, command)
        raise ConnectionClosed(f"expected at most {MOST_REDIRECTS} cluster redirects, got more; check the slot map")

    def read(self, *command: Argument, key: str, bounds: Bounds | None) -> Any:
        """Run one command and return its reply, cut to ``bounds``."""

        def answer(connection: redis.Connection) -> Any:
            sock = socket_of(connection)
            reader = None if bounds is None or sock is None else BoundedReader(sock, bounds)
            return self.answer(connection, reader)

        return self._exchange(self._node_of(key), [command], answer, is_repeatable=False)

    def run_script(self, script: Script, keys: Sequence[str], args: Iterable[Argument]) -> Any:
        """Run a script and return its reply. The script is loaded if the server does not know it."""
        rest = (len(keys), *keys, *args)
        try:
            return self.run("EVALSHA", script.sha, *rest, key=keys[0], is_repeatable=script.is_repeatable)
        except redis.exceptions.NoScriptError:
            return self.run("EVAL", script.text, *rest, key=keys[0], is_repeatable=script.is_repeatable)

    def run_scripts(self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Argument]]]) -> list[Any]:
        """Run many calls of a script, in one round trip per node; return their replies in order."""
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

    def delete(self, keys: Sequence[str]) -> None:
        """Delete keys with one command or, in a cluster, with one command per slot."""
        by_slot: defaultdict[int | None, list[str]] = defaultdict(list)
        for key in keys:
            by_slot[None if self._slots is None else slot_of(key)].append(key)
        for of_slot in by_slot.values():
            self.run("DEL", *of_slot)

    def share_slot(self, one: str, another: str) -> bool:
        """Return whether one script may use both keys."""
        return self._slots is None or slot_of(one) == slot_of(another)

    def together(self, keys: Sequence[str]) -> list[list[str]]:
        """Return the keys grouped by node, so that an unreachable node does not affect the keys of others."""
        by_node: defaultdict[Node | str | None, list[str]] = defaultdict(list)
        for key in keys:
            try:
                by_node[self._node_of(key)].append(key)
            except ConnectionFailed:  # no node serves the key's slot at the moment
                by_node[key].append(key)
        return list(by_node.values())

    def is_silent(self, key: str) -> bool:
        """Return whether ``key``'s server did not answer the last command.

        If so, a process that stops skips optional commands, so that it waits for only one timeout.
        """
        if not self._silent:
            return False
        try:
            return self._node_of(key) in self._silent
        except ConnectionFailed:
            return True

    def note_answer(self, node: Node | None) -> None:
        """Record that a node answered."""
        if self._silent:
            self._silent.discard(node)

    def note_silence(self, node: Node | None) -> None:
        """Record that a node did not answer in time."""
        self._silent.add(node)

    def close(self) -> None:
        """Close all idle connections. Borrowed connections stay open until they are garbage-collected."""
        self._is_closed.set()
        for pool in list(self._pools.values()):
            pool.close()

    def _run_scripts_at(
        self, node: Node | None, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Argument]]]
    ) -> list[Any]:
        tails = [(len(keys), *keys, *args) for keys, args in calls]
        # send EVAL first, which loads the script for the other calls if the server does not know it
        commands = [("EVAL", script.text, *tails[0]), *(("EVALSHA", script.sha, *tail) for tail in tails[1:])]
        again: list[int] = []

        def answers_of(connection: redis.Connection) -> list[Any]:
            answers: list[Any] = []
            first_error: redis.ResponseError | None = None
            again.clear()
            for place in range(len(commands)):
                # read every reply, because the connection's next user would get an unread one
                try:
                    answers.append(self.answer(connection))
                except Redirected:
                    again.append(place)
                    answers.append(None)
                except redis.ResponseError as error:
                    # the script is missing if the EVAL call was redirected, or if SCRIPT FLUSH ran after it
                    if isinstance(error, redis.exceptions.NoScriptError):
                        again.append(place)
                    else:
                        first_error = first_error or error
                    answers.append(None)
            if first_error is not None:
                raise first_error
            return answers

        answers = self._exchange(node, commands, answers_of, is_repeatable=script.is_repeatable)
        for place in again:
            answers[place] = self.run_script(script, *calls[place])
        return answers

    def _exchange(
        self,
        node: Node | None,
        commands: Sequence[Sequence[Argument]],
        answer: Callable[[redis.Connection], T],
        *,
        is_repeatable: bool,
    ) -> T:
        """Send commands in one round trip, and return the result of ``answer``, which reads the replies.

        If the connection had been idle and is dead, repeatable commands are sent again on a new connection.
        """
        borrowed = Borrowed(self, node)
        try:
            with borrowed as connection, translated(ConnectionClosed):
                _send(connection, commands)
                if is_repeatable and borrowed.was_idle and not connection.can_read(self._idle_answer_s):
                    raise redis.TimeoutError("no answer on a connection that had been idle")
                return answer(connection)
        except ConnectionClosed as error:
            if not (is_repeatable and borrowed.was_idle) or _is_answer(error):
                raise
            dead = error
        try:
            with Borrowed(self, node) as connection, translated(ConnectionClosed):
                _send(connection, commands)
                return answer(connection)
        except ConnectionFailed as error:
            # this is not ConnectionFailed, because the server may have received the commands on the first connection
            raise ConnectionClosed(f"{dead}; no new connection: {error}") from error.__cause__

    def _ask(self, node: Node, command: Sequence[Argument]) -> Any:
        """Run a command on the node to which a slot is migrating, and return its reply."""
        with Borrowed(self, node) as connection, translated(ConnectionClosed):
            connection.send_command("ASKING")
            connection.read_response()
            connection.send_command(*command)
            return connection.read_response()

    def _node_of(self, key: str) -> Node | None:
        if self._slots is None:
            return None
        with translated(ConnectionFailed):
            return self._slots.node_of(key)

    def _pool_of(self, node: Node | None) -> Pool:
        found = self._pools.get(node)
        if found is None:
            with self._lock:
                found = self._pools.setdefault(node, Pool(partial(self._connect, node), self._limit))
        return found

    def _connect(self, node: Node | None) -> redis.Connection:
        where: dict[str, Any] = {} if node is None else {"host": node[0], "port": node[1]}
        connection_class, settings = self._template
        connection = connection_class(**{**settings, **where})
        try:
            with translated(ConnectionFailed):
                connection.connect()
        except ConnectionFailed:
            if self._slots is not None:
                self._slots.read_again()
            raise
        return connection

    def answer(self, connection: redis.Connection, reader: BoundedReader | None = None) -> Any:
        """Return the reply to the command that was sent on a connection.

        Args:
            reader: reads the reply within limits; None to read it without limits.

        Raises:
            Redirected: another node of the cluster has the slot. The command was not executed.
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
            if _mentions(error, WRONG_SERVER):
                connection.disconnect()
                if self._slots is not None:
                    self._slots.read_again()
            raise

    def give_back(self, node: Node | None, connection: redis.Connection) -> None:
        self._pools[node].give_back(connection)
        if self._closer_due < time.monotonic():
            self._start_closer()

    def take(self, node: Node | None) -> tuple[redis.Connection, bool]:
        """Borrow a connection; return it and whether it was idle for so long that it may be dead."""
        pool = self._pools.get(node)
        return (self._pool_of(node) if pool is None else pool).take()

    def drop_idle(self, node: Node | None) -> None:
        """Drop the connections that may be dead, because one that was idle for as long was dead."""
        self._pool_of(node).drop_idle()

    def _start_closer(self) -> None:
        with self._lock:
            now = time.monotonic()
            if self._closer_due >= now or self._is_closed.is_set():
                return
            self._closer_due = now + CLOSER_GRACE_S
        # Do not use threading.Thread, whose start() waits for the new thread. Until the new thread runs, it has this
        # thread's id, so an interrupt of a job that enqueues could end it, and start() would wait forever.
        start_new_thread(self._close_unused, ())

    def _close_unused(self) -> None:
        """Close connections that have been idle for too long, until no connection is idle or borrowed."""
        wait_s = 0.0
        while not self._is_closed.wait(wait_s):
            with self._lock:
                # reset this first, so that a connection that is returned now is either seen below or starts a thread
                self._closer_due = 0.0
                found = [pool.close_idle(CLOSE_AFTER_IDLE_S) for pool in self._pools.values()]
                now = time.monotonic()
                due = [at for at in found if at is not None]
                if any(pool.n_lent for pool in self._pools.values()):
                    # a connection is in use; keep running, because otherwise almost every command would start a thread
                    due.append(now + CLOSE_AFTER_IDLE_S)
                if not due:
                    return
                wait_s = max(0.05, min(due) - now)
                self._closer_due = now + wait_s + CLOSER_GRACE_S


class Owned:
    """A connection that a blocking read owns until it closes the connection."""

    def __init__(self, pool: Pool, connection: redis.Connection) -> None:
        self._pool = pool
        self.connection = connection

    def close(self) -> None:
        self._pool.disown(self.connection)


class Borrowed:
    """A context manager that borrows a connection for one exchange of commands and replies.

    It is a class, because a generator function would take as long as packing the command.

    Attributes:
        was_idle: whether the connection was idle for so long that it may be dead.
    """

    __slots__ = ("_connection", "_connections", "_node", "was_idle")

    def __init__(self, connections: Connections, node: Node | None) -> None:
        self._connections, self._node = connections, node
        self.was_idle = False

    def __enter__(self) -> redis.Connection:
        try:
            self._connection, self.was_idle = self._connections.take(self._node)
        except ConnectionFailed as error:
            if _is_silence(error):
                self._connections.note_silence(self._node)
            raise
        return self._connection

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None and not _is_answer(error):
            # drop the connection after any exception, even a time limit, because its next user could get the late reply
            if _is_silence(error):
                _discard_unsent(self._connection)
            self._connection.disconnect()
            if self.was_idle:
                self._connections.drop_idle(self._node)
            if _is_silence(error):
                self._connections.note_silence(self._node)
        else:
            self._connections.note_answer(self._node)
        self._connections.give_back(self._node, self._connection)


class Redirected(Exception):
    """Raised when a cluster node redirects to another node. This module handles it."""

    def __init__(self, to: Node, *, is_asking: bool = False) -> None:
        super().__init__(f"{to[0]}:{to[1]}")
        self.to, self.is_asking = to, is_asking


class BlockingRead:
    """A connection for one blocking command at a time.

    The command is sent once and may block at the server for a long time, so that idle queues are cheap. The thread that
    sent it waits for its reply, and other threads can wake it.
    """

    def __init__(self, connections: Connections, key: str, *, block_ms: int, bounds: Bounds | None = None) -> None:
        """
        Args:
            block_ms: the maximum time that a command blocks at the server.
            bounds: the size limits for one reply, or None for no limits.
        """
        self._connections = connections
        self._bounds = bounds
        self._reader: BoundedReader | None = None
        self._key = key
        self._block_ms = block_ms
        self._owned: Owned | None = None
        self._selector: selectors.BaseSelector | None = None
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._wake_lock = threading.Lock()
        self._overdue_at = float("inf")
        self.is_waiting = False

    @property
    def is_connected(self) -> bool:
        return self._owned is not None

    def send(self, *command: Argument) -> None:
        """Send a command, after opening the connection if necessary."""
        if self._owned is None:
            self._owned = self._connections.own(self._key)
            self._close_selector()  # a wait without a connection may have created a selector
            sock = socket_of(self._owned.connection)
            if self._bounds is not None and sock is not None:
                self._reader = BoundedReader(sock, self._bounds)
        with translated(ConnectionClosed), self._dropped_on_error():
            self._owned.connection.send_command(*command)
            self.is_waiting = True
            self._overdue_at = time.monotonic() + self._block_ms / 1000 + OVERDUE_AFTER_S

    def wait(self, timeout_s: float) -> bool:
        """Wait for the reply or a wake-up; return whether the reply has arrived.

        Raises:
            ConnectionClosed: the reply is overdue; the connection is dropped.
        """
        if time.monotonic() > self._overdue_at:
            self.drop()
            raise ConnectionClosed("no answer to a blocking read; the connection or the server hangs")
        if self._selector is None:
            selector = selectors.DefaultSelector()
            selector.register(self._wake_read, selectors.EVENT_READ)
            if self._owned is not None:
                sock = socket_of(self._owned.connection)
                assert sock is not None
                selector.register(sock, selectors.EVENT_READ)
            self._selector = selector
        has_arrived = False
        for key, _ in self._selector.select(max(0.0, timeout_s)):
            if key.fd == self._wake_read:
                with suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
            else:
                has_arrived = True
        return has_arrived

    def answer(self) -> Any:
        """Return the reply, or None if the cluster moved the key. None is also the reply to a read without entries."""
        assert self._owned is not None
        self.is_waiting = False
        self._overdue_at = float("inf")
        with translated(ConnectionClosed), self._dropped_on_error():
            try:
                return self._connections.answer(self._owned.connection, self._reader)
            except Redirected:
                pass
        # no entry was delivered, and the next command connects to the slot's new node
        self.drop()
        time.sleep(REDIRECT_PAUSE_S)
        return None

    def wake(self) -> None:
        """Make ``wait`` return at once, from any thread."""
        # an error means that the pipe is closed, or full because a wake-up is already pending
        with self._wake_lock, suppress(OSError):
            os.write(self._wake_write, b"!")

    def drop(self) -> None:
        """Close the connection without waiting for an outstanding reply."""
        self.is_waiting = False
        self._overdue_at = float("inf")
        self._close_selector()
        if self._owned is not None:
            self._owned.close()
            self._owned = self._reader = None

    def _close_selector(self) -> None:
        if self._selector is not None:
            self._selector.close()
            self._selector = None

    def close(self) -> None:
        self.drop()
        # take the lock, because a late call of ``wake`` must not write to a file that reuses this descriptor
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
            if self._owned is not None and socket_of(self._owned.connection) is None:
                self.drop()
            raise
        except BaseException:
            self.drop()
            raise


def _send(connection: redis.Connection, commands: Sequence[Sequence[Argument]]) -> None:
    if len(commands) == 1:
        connection.send_command(*commands[0])
    else:
        connection.send_packed_command(connection.pack_commands(commands))


def _is_answer(error: BaseException) -> bool:
    cause = error.__cause__ if isinstance(error, ConnectionClosed) else error
    return isinstance(cause, redis.ResponseError | Redirected)


def _is_silence(error: BaseException) -> bool:
    return isinstance(error.__cause__ or error, redis.TimeoutError | TimeoutError)


def _discard_unsent(connection: redis.Connection) -> None:
    """Let the kernel discard unsent data, so that a command cannot arrive after it was sent again."""
    sock = socket_of(connection)
    if sock is not None:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _node_at(connection: Any) -> Node:
    return str(connection.host), int(connection.port)


def _mentions(error: redis.ResponseError, words: Sequence[str]) -> bool:
    # redis-py removes the first word of the text if it has an exception class for that word
    text = f"{type(error).__name__.upper()} {error}"
    return any(word in text for word in words)


class translated:  # noqa: N801  # reads like a function, as in contextlib
    """A context manager that turns redis-py's connection errors into Dramatiq's."""

    __slots__ = ("_kind",)

    def __init__(self, kind: type[ConnectionClosed] | type[ConnectionFailed]) -> None:
        self._kind = kind

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            return
        if isinstance(error, redis.ResponseError):
            if _mentions(error, NOT_NOW):
                raise ConnectionClosed(f"Redis cannot do this now: {error}") from error
        elif isinstance(error, redis.ConnectionError | redis.TimeoutError | OSError):
            raise self._kind(f"{type(error).__name__}: {error}") from error
