"""Where the campaign's server is, as its workers and producers are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from redis.sentinel import Sentinel

MASTER: Final = "campaign"


def where_redis_is(environment: Mapping[str, str]) -> dict[str, Any]:
    """What a worker or a producer gives to its broker."""
    if (port := environment.get("FAULTS_SENTINEL_PORT")) is None:
        return {"url": environment["FAULTS_BROKER_URL"]}
    # as in the url: shorter than redis-py's own
    timeouts = {"socket_timeout": 1.5, "socket_connect_timeout": 1.5}
    return {"client": Sentinel([("127.0.0.1", int(port))], **timeouts).master_for(MASTER, **timeouts)}
