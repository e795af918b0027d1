"""Tests that the queue gauges equal the content of Redis, entry by entry, in thousands of random states."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from broker import RedisStreamsBroker
from tasks.contracts import GROUP, QUEUES
from tests.tasks.observe.test_backlog import check_walk

pytestmark = pytest.mark.ops

N_STATES = 620
SEEDS = range(8)


@pytest.fixture
def broker(redis_client: redis.Redis) -> Iterator[RedisStreamsBroker]:
    broker = RedisStreamsBroker(client=redis_client, middleware=[], group=GROUP)
    for queue in QUEUES:
        broker.declare_queue(queue)
    yield broker
    broker.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_gauges_equal_the_content_of_redis(seed: int, redis_client: redis.Redis, broker: RedisStreamsBroker) -> None:
    assert N_STATES * len(SEEDS) >= 4_800

    met = check_walk(redis_client, broker, n_states=N_STATES, seed=seed)

    print(f"seed {seed}: {dict(met)}")
    assert met["lag is nil"] > 20
    assert met["orphans"] > 20
