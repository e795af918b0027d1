"""Lua scripts called the short way: on a connection that is kept, without redis-py's care around each call.

redis-py spends more on a call's pool, retries and instrumentation than on sending it and reading the answer. So a call
is made once on a connection that was used before; whatever comes of it but an answer, from a broken connection to a
script that the server does not know, it is made again in redis-py's own way, with all of its care. These scripts must
therefore be made for running twice. Clients of a Cluster, and pools whose users wait for each other's connections, know
redis-py's own way alone.
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

# Of one pool, as far as that is less than half of what it may have: as many as threads call at once, with room.
MOST_KEPT: Final = 16


class ShortCalls:
    """Calls of scripts on one client. Safe to use from many threads, and after a fork."""

    def __init__(self, client: redis.Redis | redis.RedisCluster) -> None:
        self._client = client
        pool: Any = client.connection_pool if isinstance(client, redis.Redis) else None
        self._pool = pool if type(pool) in _POOLS else None
        if self._pool is not None:
            self._kept = _kept.setdefault(self._pool, deque())
            self._most_kept = min(MOST_KEPT, self._pool.max_connections // 2)

    def script(self, text: str) -> Script:
        return Script(self, self._client.register_script(text))

    def evalsha(self, sha: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """The answer of the script, if the first try brings one.

        Raises:
            redis.RedisError: what the script answered; a ``ConnectionError``, ``TimeoutError`` or ``NoScriptError``
                says nothing but that it must be called again in another way.
        """
        if self._pool is None:
            raise NoScriptError
        try:
            connection = self._kept.pop()
        except IndexError:
            connection = self._pool.get_connection()
        is_answered = False
        try:
            connection.send_command("EVALSHA", sha, len(keys), *keys, *args)
            answer = connection.read_response()
            is_answered = True
            return answer
        except redis.ResponseError as error:
            # a master that was demoted says so for ever: connect anew, which asks the name server who it is now
            is_answered = "READONLY" not in f"{type(error).__name__.upper()} {error}"
            raise
        finally:
            if not is_answered:
                # a time limit between the call and its answer, too: the next caller would get that one
                connection.disconnect()
            if len(self._kept) < self._most_kept:
                self._kept.append(connection)
            else:
                self._pool.release(connection)


class Script:
    """A script, called with its keys and arguments."""

    def __init__(self, calls: ShortCalls, in_full: Any) -> None:
        self._calls, self._in_full = calls, in_full

    def __call__(self, *, keys: Sequence[str], args: Sequence[Any] = ()) -> Any:
        try:
            return self._calls.evalsha(self._in_full.sha, keys, args)
        except (redis.ConnectionError, redis.TimeoutError, NoScriptError):
            return self._in_full(keys=keys, args=args)


# By pool, the last used last: clients are shared, and stores come and go.
_kept: Final[WeakKeyDictionary[Any, deque[Any]]] = WeakKeyDictionary()


def _leave_connections() -> None:
    """They belong to the process that this one was forked from."""
    for kept in list(_kept.values()):
        kept.clear()


os.register_at_fork(after_in_child=_leave_connections)
