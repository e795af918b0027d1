"""Tests that operations that are fast with ten messages still work with two hundred thousand."""

from __future__ import annotations

from typing import Any

import dramatiq
import pytest
import redis

from broker import RedisStreamsBroker
from tests.support import eventually

pytestmark = pytest.mark.slow

STREAM, GROUP = "streams:q", "workers"
N = 200_000
# entries per call, few enough that a loaded machine replies before the client times out
STEP = 10_000


def test_orphans_are_found_among_two_hundred_thousand_pending_entries(
    redis_url: str, redis_client: redis.Redis
) -> None:
    client: Any = redis_client
    payload = dramatiq.Message("q", "work", (), {}, {}).encode()
    add = "for i = 1, ARGV[2] do redis.call('XADD', KEYS[1], '*', 'message', ARGV[1]) end"
    deliver = "redis.call('XREADGROUP', 'GROUP', ARGV[1], 'busy', 'COUNT', ARGV[2], 'STREAMS', KEYS[1], '>')"
    client.xgroup_create(STREAM, GROUP, "0", mkstream=True)
    for _ in range(0, N, STEP):
        client.eval(add, 1, STREAM, payload, STEP)
        client.eval(deliver, 1, STREAM, GROUP, STEP)
    last = [entry_id for entry_id, _ in client.xrevrange(STREAM, count=30)]
    assert client.xack(STREAM, GROUP, *last) == 30

    broker = RedisStreamsBroker(redis_url, middleware=[], lease_ms=3_600_000, keeper_process=False)
    broker.declare_queue("q")
    consumer = broker.consume("q", prefetch=30, timeout=1_000)
    found = set()

    def receive() -> bool:
        delivery = next(consumer)
        if delivery is not None:
            found.add(delivery.entry_id)
        return len(found) == 30

    eventually(receive, within_s=60)
    consumer.close()
    broker.close()

    assert found == {entry_id.decode() for entry_id in last}
    assert client.xpending(STREAM, GROUP)["pending"] == N
