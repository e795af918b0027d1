"""Fast calls of Lua scripts on reused connections, bypassing redis-py's per-call overhead.

For each call, redis-py spends more time on the pool, retries and instrumentation than on sending it and reading the
reply. So each call is first tried once on a connection from this module's own list. If that fails, because the
connection is broken or the server does not know the script, it is repeated through redis-py, with its error handling.
Scripts must therefore be safe to run twice. Cluster clients, and pools that block until a connection is free, always
use redis-py.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

import redis
from redis.exceptions import NoScriptError
from redis.sentinel import SentinelConnectionPool

_POOLS: Final = (redis.ConnectionPool, SentinelConnectionPool)

# Connections kept per pool, at most half of the pool's limit: enough for all threads that call at once.
MOST_KEPT: Final = 16


class ShortCalls:
    """Fast script calls on one client. Thread-safe, and safe after a fork."""

    def __init__(self, client: redis.Redis | redis.RedisCluster) -> None:
        self.client = client
        pool: Any = client.connection_pool if isinstance(client, redis.Redis) else None
        self._pool = pool if type(pool) in _POOLS else None
        if self._pool is not None:
            self._kept = _kept.setdefault(self._pool, deque())
            self._most_kept = min(MOST_KEPT, self._pool.max_connections // 2)

    def script(self, text: str) -> Script:
        return Script(self, self.client.register_script(text))

    def evalsha(self, sha: str, keys: Sequence[str], args: Sequence[Any], then: Sequence[Any] = ()) -> tuple[Any, Any]:
        """Return the replies to the script and to the command ``then``, if the first attempt gets them.

        Raises:
            redis.RedisError: the script's own error. After a ``ConnectionError``, ``TimeoutError`` or ``NoScriptError``
                the outcome is unknown: repeat the call through redis-py.
        """
        if self._pool is None:
            raise NoScriptError
        try:
            connection = self._kept.pop()
        except IndexError:
            connection = self._pool.get_connection()
        is_answered = False
        try:
            packed = connection.pack_command("EVALSHA", sha, len(keys), *keys, *args)
            if then:
                packed = [b"".join((*packed, *connection.pack_command(*then)))]  # each item is a system call
            connection.send_packed_command(packed)
            try:
                answer = connection.read_response()
            except redis.ResponseError:
                if then:
                    connection.read_response()
                raise
            after = connection.read_response() if then else None
            is_answered = True
            return answer, after
        except redis.ResponseError as error:
            # a demoted master keeps replying READONLY; reconnecting looks up the current master again
            is_answered = "READONLY" not in f"{type(error).__name__.upper()} {error}"
            raise
        finally:
            if not is_answered:
                # also if an exception, such as a time limit, was raised before the reply was read: otherwise the next
                # caller would read that reply
                connection.disconnect()
            if len(self._kept) < self._most_kept:
                self._kept.append(connection)
            else:
                self._pool.release(connection)


class Script:
    """A script that is called with its keys and arguments."""

    def __init__(self, calls: ShortCalls, in_full: Any) -> None:
        self._calls, self._in_full = calls, in_full

    def __call__(self, *, keys: Sequence[str], args: Sequence[Any] = ()) -> Any:
        try:
            return self._calls.evalsha(self._in_full.sha, keys, args)[0]
        except (redis.ConnectionError, redis.TimeoutError, NoScriptError):
            return self._in_full(keys=keys, args=args)

    def and_then(self, *command: Any, if_short: bool, keys: Sequence[str], args: Sequence[Any] = ()) -> tuple[Any, Any]:
        """Return the replies to the script and to a command that follows it in the same round trip.

        Args:
            command: a command that may be repeated; its key may be in any slot.
            if_short: send the command only if it needs no round trip of its own; its reply is None otherwise.
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
