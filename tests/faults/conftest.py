"""The fixture for a fault-injecting proxy in front of the Redis server of this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tasks.redis_access.embedded import EmbeddedRedis
from tests.faults.outage import Outage


@pytest.fixture
def outage(redis_server: EmbeddedRedis, redis_client: redis.Redis) -> Iterator[Outage]:
    """A proxy in front of the emptied server; ``redis_client`` bypasses it."""
    with Outage(redis_server.url.removeprefix("unix://")) as outage:
        yield outage
