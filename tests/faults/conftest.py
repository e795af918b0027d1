"""A proxy before this process's server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tasks.embedded_redis import EmbeddedRedis
from tests.faults.outage import Outage


@pytest.fixture
def outage(redis_server: EmbeddedRedis, redis_client: redis.Redis) -> Iterator[Outage]:
    """A proxy before the server, which has been emptied; ``redis_client`` goes past it."""
    with Outage(redis_server.url.removeprefix("unix://")) as outage:
        yield outage
