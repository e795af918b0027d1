"""The address of the campaign's server, as its workers and producers receive it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from redis.sentinel import Sentinel

MASTER: Final = "campaign"


def where_redis_is(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments with which a worker or producer creates its broker."""
    if (port := environment.get("FAULTS_SENTINEL_PORT")) is None:
        return {"url": environment["FAULTS_BROKER_URL"]}
    # the same timeouts as in the URL, shorter than redis-py's defaults
    timeouts = {"socket_timeout": 1.5, "socket_connect_timeout": 1.5}
    return {"client": Sentinel([("127.0.0.1", int(port))], **timeouts).master_for(MASTER, **timeouts)}
