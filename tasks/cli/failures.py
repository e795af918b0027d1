"""The exit code and the line of text with which a command reports an error.

Imported only when an error occurs, because it imports redis-py and Dramatiq, which takes longer than many commands.
"""

from __future__ import annotations

from typing import Final

import redis
from dramatiq.errors import BrokerConnectionError

from sploot_cluster.errors import (
    AlreadyUndone,
    ClusterError,
    InvalidInput,
    PetExists,
    PlanUnknown,
    StalePreview,
    StoreUnavailable,
    UnknownCluster,
    UnknownPet,
    UnknownRevision,
)
from sploot_cluster.jobs import QueueFull, QueueUnavailable
from sploot_cluster.refusals import REDIS_ERRORS, explained, refusal_of
from tasks.cli.shared import FAILED, REFUSED, UNREACHABLE, USAGE, shown_url
from tasks.redis_access.embedded import NoRedisServer

# package -> the extra that installs it. Packages that all commands need are not listed, because both [worker] and
# [server] install them.
EXTRAS: Final = {
    "faiss": "worker",
    "threadpoolctl": "worker",
    "periodiq": "worker",
    "fastapi": "server",
    "uvicorn": "server",
    "pyarrow": "parquet",
    "sklearn": "all",
    "matplotlib": "all",
}


def failure_of(error: Exception) -> tuple[int, str] | None:
    """Return the exit code and one line of text for an error, or None if the error is a bug in this program."""
    match error:
        case UnknownPet():
            return USAGE, f"{error}; sploot-cluster pets lists them"
        case UnknownCluster(pet=pet):
            return USAGE, f"{error}; sploot-cluster clusters {pet} lists them"
        case UnknownRevision(pet=pet) if not isinstance(error, AlreadyUndone):
            return USAGE, f"{error}; sploot-cluster history {pet} lists them"
        case InvalidInput():
            return USAGE, str(error)
        case StalePreview() | PetExists() | QueueFull():
            return REFUSED, str(error)
        case QueueUnavailable() | StoreUnavailable() | BrokerConnectionError():
            return _of_redis(error)
        case ClusterError() | PlanUnknown() | NoRedisServer():
            return FAILED, str(error)
        case ModuleNotFoundError() if (package := (error.name or "").partition(".")[0]) in EXTRAS:
            return USAGE, f"this command needs {package}: pip install 'sploot-cluster[{EXTRAS[package]}]'"
        case _:
            return _of_redis(error) if isinstance(error, REDIS_ERRORS) else None


def _of_redis(error: Exception) -> tuple[int, str]:
    """Return the exit code and one line of text for a Redis error, such as a refusal or a timeout."""
    is_translated = isinstance(error, QueueUnavailable | StoreUnavailable)
    text = " ".join((str(error) if is_translated else explained(error, hint="")).split())
    if refusal_of(error) is not None:
        return UNREACHABLE, f"Redis at {shown_url()} refuses: {text}"
    if isinstance(error, redis.ResponseError):
        return FAILED, f"Redis at {shown_url()} answered with an error: {text}"
    return UNREACHABLE, f"no answer from Redis at {shown_url()}: {text}"
