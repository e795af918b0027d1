"""The table of errors with which Redis refuses commands, each with a hint for operators.

An outage ends without intervention or when Redis is repaired; a configuration fault ends when the configuration is
corrected. Neither is the fault of the caller, who may send the same call again. ``refusal_of`` finds the row for an
error of redis-py, and ``explained`` turns it into a sentence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import redis
from redis.exceptions import RedisClusterException

# RedisClusterException (no node of the cluster answers) is not a subclass of RedisError.
REDIS_ERRORS: Final = (redis.RedisError, RedisClusterException)


@dataclass(frozen=True, slots=True)
class RedisRefusal:
    """An error with which Redis refuses a command, either for now or for this user.

    Attributes:
        code: the first word of the error from Redis.
        problem: what is wrong with Redis, as a sentence without a full stop.
        hint: how to fix it.
        is_outage: whether the state of the server is the cause; if False, the settings of this process are.
    """

    code: str
    problem: str
    hint: str
    is_outage: bool = True


REFUSALS: Final = (
    RedisRefusal(
        "OOM",
        "Redis is full: it has reached its maxmemory and refuses writes",
        "raise maxmemory, or free memory: sploot-cluster queue dead purge QUEUE --all --yes",
    ),
    RedisRefusal(
        "MISCONF",
        "Redis cannot write to its disk and refuses writes",
        "make room on the disk of Redis and let it write to its directory; "
        "redis-cli INFO persistence shows what failed",
    ),
    RedisRefusal(
        "NOREPLICAS",
        "Redis refuses writes because fewer replicas are connected than min-replicas-to-write asks for",
        "bring the replicas back (redis-cli INFO replication), or lower min-replicas-to-write until then",
    ),
    RedisRefusal(
        "READONLY",
        "this Redis is a replica and does not accept writes",
        "set REDIS_URL to the primary, or to redis+sentinel://… which follows a failover; "
        "promote the replica with REPLICAOF NO ONE if the primary is lost",
    ),
    RedisRefusal(
        "MASTERDOWN",
        "this Redis is a replica that has lost its primary",
        "bring the primary back, or promote the replica with REPLICAOF NO ONE",
    ),
    RedisRefusal(
        "CLUSTERDOWN",
        "the Redis Cluster is down: a slot has no reachable node",
        "bring the missing node back; redis-cli --cluster check names it",
    ),
    RedisRefusal(
        "LOADING",
        "Redis has started and is loading its data",
        "wait until it is loaded; redis-cli INFO persistence shows loading_eta_seconds",
    ),
    RedisRefusal(
        "TRYAGAIN",
        "the Redis Cluster is moving a slot between two nodes",
        "wait until the slot is moved; redis-cli --cluster check shows open slots",
    ),
    RedisRefusal(
        "BUSY",
        "Redis is busy running a script",
        "wait, or end the script with redis-cli SCRIPT KILL",
    ),
    RedisRefusal(
        "MAXCLIENTS",
        "Redis has as many connections as its maxclients allows",
        "raise maxclients, or end what holds the connections; redis-cli CLIENT LIST shows them",
    ),
    RedisRefusal(
        "NOPERM",
        "the Redis user of this process lacks a permission",
        "load the users of this release (python -m deploy.redis_users), "
        "and give each process its own user in REDIS_URL",
        is_outage=False,
    ),
    RedisRefusal(
        "NOAUTH",
        "Redis does not accept the user and password of this process",
        "correct user and password in REDIS_URL",
        is_outage=False,
    ),
)

_BY_CODE: Final = {refusal.code: refusal for refusal in REFUSALS}

# redis-py removes the first word from the text of an error for which it has a special class.
_BY_CLASS: Final = {
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
    "MasterDownError": "MASTERDOWN",
    "ClusterDownError": "CLUSTERDOWN",
    "BusyLoadingError": "LOADING",
    "TryAgainError": "TRYAGAIN",
    "NoPermissionError": "NOPERM",
    "AuthenticationError": "NOAUTH",
}
# A pattern that finds the code within a script's error, such as "… @user_script:4: -OOM command not allowed …".
_WORD: Final = re.compile(rf"(?:^|[^A-Za-z0-9])({'|'.join(_BY_CODE)})(?= )")
# Part of the text of an error without a code -> the code to use.
_PHRASES: Final = {
    "max number of clients reached": "MAXCLIENTS",
    "ACL failure in script": "NOPERM",
    "The user executing the script can't": "NOPERM",
    "WRONGPASS": "NOAUTH",
}


def refusal_of(error: BaseException | None) -> RedisRefusal | None:
    """Return the refusal that caused an error, directly or through ``__cause__``, or None if Redis did not refuse."""
    while error is not None:
        if isinstance(error, REDIS_ERRORS) and (code := _code_of(error)) is not None:
            return _BY_CODE[code]
        error = error.__cause__
    return None


def explained(error: BaseException, *, outcome: str = "", hint: str = "check that Redis is up and call again") -> str:
    """Return one sentence about an error from Redis: what is wrong, what the call did or did not do, how to fix it.

    Args:
        outcome: the effect of the failed call, such as ``nothing was enqueued``.
        hint: the hint to use if Redis did not reply, or if its error is not in the table.
    """
    refusal = refusal_of(error)
    answer = str(error).removesuffix(".")
    if refusal is None:
        return "; ".join(part for part in (answer, outcome, hint) if part)
    return "; ".join(part for part in (f"{refusal.problem} ({answer})", outcome, refusal.hint) if part)


def _code_of(error: BaseException) -> str | None:
    for kind in type(error).__mro__:
        if kind.__name__ in _BY_CLASS:
            return _BY_CLASS[kind.__name__]
    text = str(error)
    if found := _WORD.search(text):
        return found[1]
    return next((code for phrase, code in _PHRASES.items() if phrase in text), None)
