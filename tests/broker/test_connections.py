"""Connections of producers and workers: idle ones that died."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from broker import EnqueueUncertain, RedisStreamsBroker
from tasks.embedded_redis import EmbeddedRedis
from tests.broker.scene import KEYS, QUEUE, message
from tests.faults.outage import Outage
from tests.support import eventually


@pytest.fixture
def network(redis_server: EmbeddedRedis, redis_client: redis.Redis) -> Iterator[Outage]:
    """A network between the producer and an empty server."""
    with Outage(redis_server.url.removeprefix("unix://")) as outage:
        yield outage


@pytest.fixture
def producer(network: Outage, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisStreamsBroker]:
    """A producer whose connections count as idle at once. Its enqueue timeout is less than its read timeout."""
    monkeypatch.setattr("broker.connections.PROBE_AFTER_IDLE_S", 0.0)
    monkeypatch.setattr("broker.connections.IDLE_ANSWER_S", 0.05)
    client = redis.Redis.from_url(network.url, socket_timeout=1)
    broker = RedisStreamsBroker(client=client, middleware=[], enqueue_timeout_ms=0)
    yield broker
    broker.close()
    client.close()


def fill_pool(network: Outage, producer: RedisStreamsBroker, n: int) -> None:
    """Make the producer open ``n`` connections, which are idle afterwards."""
    threads = [threading.Thread(target=producer.enqueue, args=(message(f"{number}"),)) for number in range(n)]
    with network.hanging():
        for thread in threads:
            thread.start()
        eventually(lambda: network.n_open == n)
    for thread in threads:
        thread.join()


def test_enqueue_works_after_idle_connections_died(
    network: Outage, producer: RedisStreamsBroker, redis_client: Any
) -> None:
    fill_pool(network, producer, 3)
    network.forget()

    sent = [producer.enqueue(message("after"))]
    sent += producer.enqueue_many([message("a"), message("b").copy(queue_name="other")])

    assert redis_client.xlen(KEYS.stream) == 3 + 2
    assert redis_client.xlen("streams:other") == 1
    assert len({one.message_id for one in sent}) == 3
    eventually(lambda: network.n_forgotten == 0)


def test_every_enqueue_of_a_burst_works_after_idle_connections_died(
    network: Outage, producer: RedisStreamsBroker, redis_client: Any
) -> None:
    fill_pool(network, producer, 3)
    network.forget()

    threads = [threading.Thread(target=producer.enqueue, args=(message(f"{number}"),)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert redis_client.xlen(KEYS.stream) == 6


def test_message_is_enqueued_once_if_only_its_reply_died(
    network: Outage, producer: RedisStreamsBroker, redis_client: Any
) -> None:
    producer.enqueue(message("before"))

    network.aim("enqueue_plain", "after")
    producer.enqueue(message("after"))

    assert network.cuts["enqueue_plain", "after"] == 1
    assert redis_client.xlen(KEYS.stream) == 2


def test_enqueue_is_uncertain_if_the_server_hangs(network: Outage, producer: RedisStreamsBroker) -> None:
    producer.enqueue(message("before"))

    with network.hanging(), pytest.raises(EnqueueUncertain) as raised:
        producer.enqueue(message("after"))

    assert len(raised.value.message_ids) == 1


def test_statistics_are_read_after_idle_connections_died(network: Outage, producer: RedisStreamsBroker) -> None:
    producer.enqueue(message("one"))
    network.forget()

    assert producer.stats(QUEUE).undelivered == 1
