"""Fast calls of Lua scripts on reused connections, bypassing redis-py's per-call overhead.

For each call, redis-py spends more time on the pool, retries and instrumentation than on sending it and reading the
reply. So each call is first tried once on a connection from this module's own list. If that fails, because the
connection is broken or the server does not know the script, the call is repeated through redis-py, with its error
handling. Several calls of one script share a round trip. Scripts must therefore be safe to run twice. Cluster clients,
and pools that block until a connection is free, always use redis-py.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final
from weakref import WeakKeyDictionary

import redis
from redis.exceptions import NoScriptError
from redis.sentinel import SentinelConnectionPool

# Calling hiredis directly packs a commit in a third of the time, because redis-py first checks each argument's type.
_pack: Callable[[tuple[Any, ...]], bytes] | None = (
    getattr(import_module("hiredis"), "pack_command", None) if find_spec("hiredis") else None
)

_POOLS: Final = (redis.ConnectionPool, SentinelConnectionPool)

# Maximum number of connections to keep per pool, enough for all threads that call at the same time. For a pool that is
# limited to fewer than 32 connections, half of its limit.
MOST_KEPT: Final = 16

# The keys and arguments of one call.
Call = tuple[Sequence[str], Sequence[Any]]


class ShortCalls:
    """Fast script calls on one client. Thread-safe, and safe after a fork."""

    def __init__(self, client: redis.Redis | redis.RedisCluster) -> None:
        self.client = client
        pool: Any = client.connection_pool if isinstance(client, redis.Redis) else None
        self._pool = pool if type(pool) in _POOLS else None
        if self._pool is not None:
            self._kept = _kept.setdefault(self._pool, deque())
            self._most_kept = min(MOST_KEPT, self._pool.max_connections // 2)

    @property
    def is_short(self) -> bool:
        """Whether calls are first tried on this module's own connections."""
        return self._pool is not None

    def script(self, text: str) -> Script:
        return Script(self, self.client.register_script(text))

    def take(self) -> Any:
        """Return a connection for exclusive use by this thread.

        Raises:
            NoScriptError: calls have to go through redis-py.
        """
        if self._pool is None:
            raise NoScriptError
        try:
            return self._kept.pop()
        except IndexError:
            return self._pool.get_connection()

    def give_back(self, connection: Any) -> None:
        """Keep a connection for later calls, or release it to its pool."""
        if len(self._kept) < self._most_kept:
            self._kept.append(connection)
        else:
            self._pool.release(connection)  # type: ignore[union-attr]  # not None: the connection came from it

    def evalsha(self, sha: str, keys: Sequence[str], args: Sequence[Any], then: Sequence[Any] = ()) -> tuple[Any, Any]:
        """Run the script, then the command ``then``, in one attempt; return both replies.

        Raises:
            redis.RedisError: the script's own error. After a ``ConnectionError``, ``TimeoutError`` or ``NoScriptError``
                the outcome is unknown: repeat the call through redis-py.
        """
        with _Used(self) as used:
            connection = used.connection
            commands: list[tuple[Any, ...]] = [("EVALSHA", sha, len(keys), *keys, *args)]
            if then:
                commands.append(tuple(then))
            connection.send_packed_command([_packed(connection, commands)])  # joined: each item is a system call
            answer = _reply(connection)
            after = connection.read_response() if then else None
            used.is_answered = not _is_from_replica(answer)
        if isinstance(answer, redis.ResponseError):
            raise answer
        return answer, after

    def evalsha_many(self, sha: str, calls: Sequence[Call], then: Sequence[Any] = ()) -> tuple[list[Any], Any]:
        """Return the replies to many calls of a script and to the command ``then`` after them, in one round trip.

        An error reply is an element of the list. Raises the same errors as :meth:`evalsha` if the connection fails.
        """
        with _Used(self) as used:
            connection = used.connection
            commands: list[tuple[Any, ...]] = [("EVALSHA", sha, len(keys), *keys, *args) for keys, args in calls]
            if then:
                commands.append(tuple(then))
            connection.send_packed_command([_packed(connection, commands)])
            answers = [_reply(connection) for _ in calls]
            after = connection.read_response() if then else None
            used.is_answered = not any(_is_from_replica(answer) for answer in answers)
        return answers, after


class _Used:
    """A context manager for a connection in use, which disconnects it at the end if a reply is still unread.

    Attributes:
        is_answered: whether every reply was read, and the server is the master.
    """

    __slots__ = ("_calls", "connection", "is_answered")

    def __init__(self, calls: ShortCalls) -> None:
        self._calls, self.connection, self.is_answered = calls, calls.take(), False

    def __enter__(self) -> _Used:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.is_answered:
            # if an exception, such as a time limit, was raised before the reply was read, the next caller would read
            # that reply
            self.connection.disconnect()
        self._calls.give_back(self.connection)


def _packed(connection: Any, commands: Sequence[tuple[Any, ...]]) -> bytes:
    """Return the commands encoded in Redis's protocol."""
    if _pack is not None:
        with suppress(TypeError):  # an argument needs redis-py's conversion
            return b"".join(map(_pack, commands))
    return b"".join(connection.pack_commands(commands))


def _reply(connection: Any) -> Any:
    """Return the next reply; an error reply is returned, not raised."""
    try:
        return connection.read_response()
    except redis.ResponseError as error:
        return error


def _is_from_replica(answer: Any) -> bool:
    """Return whether the reply is the error of a demoted master; reconnecting finds the current master."""
    return isinstance(answer, redis.ResponseError) and "READONLY" in f"{type(answer).__name__.upper()} {answer}"


class Script:
    """A Lua script that can be called like a function."""

    def __init__(self, calls: ShortCalls, in_full: Any) -> None:
        self._calls, self._in_full = calls, in_full

    @property
    def is_short(self) -> bool:
        """Whether calls of this script usually bypass redis-py."""
        return self._calls.is_short

    def __call__(self, *, keys: Sequence[str], args: Sequence[Any] = ()) -> Any:
        try:
            return self._calls.evalsha(self._in_full.sha, keys, args)[0]
        except (redis.ConnectionError, redis.TimeoutError, NoScriptError):
            return self._in_full(keys=keys, args=args)

    def many(self, calls: Sequence[Call], then: Sequence[Any] = ()) -> tuple[list[Any], Any]:
        """Return the replies to many calls and to a command after them. An error reply is an element of the list.

        Args:
            calls: the keys and arguments of each call.
            then: a command that is safe to repeat; its key may be in any slot. If it would need its own round trip, it
                is not sent, and its reply is None.
        """
        try:
            answers, after = self._calls.evalsha_many(self._in_full.sha, calls, then)
        except (redis.ConnectionError, redis.TimeoutError, NoScriptError):
            return [self._in_full_or_error(call) for call in calls], None
        return [
            self._in_full_or_error(call) if isinstance(answer, NoScriptError) else answer
            for call, answer in zip(calls, answers, strict=True)
        ], after

    def _in_full_or_error(self, call: Call) -> Any:
        try:
            return self._in_full(keys=call[0], args=call[1])
        except redis.ResponseError as error:
            return error

    def and_then(self, *command: Any, if_short: bool, keys: Sequence[str], args: Sequence[Any] = ()) -> tuple[Any, Any]:
        """Run the script, then a command in the same round trip; return both replies.

        Args:
            command: a command that is safe to repeat; its key may be in any slot.
            if_short: if the command would need its own round trip, do not send it; its reply is then None.
        """
        try:
            return self._calls.evalsha(self._in_full.sha, keys, args, command)
        except (redis.ConnectionError, redis.TimeoutError, NoScriptError):
            answer = self._in_full(keys=keys, args=args)
            client: Any = self._calls.client
            return answer, None if if_short else client.execute_command(*command)


# Kept connections by pool, most recently used last. Global, because clients are shared while stores come and go.
_kept: Final[WeakKeyDictionary[Any, deque[Any]]] = WeakKeyDictionary()


def _leave_connections() -> None:
    """Drop connections that were inherited in a fork; they belong to the parent process."""
    for connections in list(_kept.values()):
        connections.clear()


os.register_at_fork(after_in_child=_leave_connections)
