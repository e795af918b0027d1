"""Enqueueing from coroutines never blocks their event loop, whatever Redis does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import dramatiq
import pytest
import redis

from broker import EnqueueUncertain, MessageTooLarge, RedisStreamsBroker
from tasks.redis_access.embedded import EmbeddedRedis
from tests.broker.scene import KEYS, QUEUE, message
from tests.broker.test_dramatiq_options import broker_on
from tests.faults.outage import Outage
from tests.support import eventually

request_id: ContextVar[str] = ContextVar("request_id")


class Stamping(dramatiq.Middleware):
    """Middleware that needs the caller's context variables."""

    def before_enqueue(self, broker: Any, message: dramatiq.Message[Any], delay: int | None) -> None:
        message.options["request_id"] = request_id.get()


@pytest.fixture
def network(redis_server: EmbeddedRedis, redis_client: redis.Redis) -> Iterator[Outage]:
    """A network between the producer and an empty server."""
    with Outage(redis_server.url.removeprefix("unix://")) as outage:
        yield outage


@pytest.fixture
def producer(network: Outage) -> Iterator[RedisStreamsBroker]:
    with broker_on(network.url) as broker:
        yield broker


def test_coroutine_enqueues_like_any_other_caller(redis_url: str, redis_client: Any) -> None:
    async def enqueue(broker: RedisStreamsBroker) -> None:
        request_id.set("42")
        sent = await broker.aenqueue(message("one", unique_key="k"))
        coalesced = await broker.aenqueue(message("two", unique_key="k"))
        later = await broker.aenqueue(message("three"), delay=60_000)
        many = await broker.aenqueue_many(message(label) for label in ("four", "five"))

        assert coalesced.message_id == sent.message_id
        assert {one.options["request_id"] for one in (sent, later, *many)} == {"42"}
        with pytest.raises(MessageTooLarge):
            await broker.aenqueue(message("x" * 2_000))

    with broker_on(redis_url, Stamping(), max_message_bytes=1_000) as broker:
        asyncio.run(enqueue(broker))

        stats = broker.stats(QUEUE)
        assert (stats.undelivered, stats.delayed) == (3, 1)


def test_event_loop_is_not_blocked_while_redis_hangs(
    network: Outage, producer: RedisStreamsBroker, redis_client: Any
) -> None:
    async def enqueue() -> None:
        with network.hanging():
            sending = [asyncio.create_task(producer.aenqueue(message(f"{number}"))) for number in range(20)]
            while not network.n_open:
                await asyncio.sleep(0.01)
            assert not any(task.done() for task in sending)
        await asyncio.gather(*sending)

    asyncio.run(enqueue())

    assert redis_client.xlen(KEYS.stream) == 20
    assert network.n_open <= 8


def test_cancelled_call_may_still_enqueue(network: Outage, producer: RedisStreamsBroker, redis_client: Any) -> None:
    async def enqueue() -> None:
        with network.hanging():
            sending = asyncio.create_task(producer.aenqueue(message("one")))
            while not network.n_open:
                await asyncio.sleep(0.01)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending

    asyncio.run(enqueue())

    eventually(lambda: redis_client.xlen(KEYS.stream) == 1)


def test_coroutine_gets_the_error_of_an_uncertain_enqueue(network: Outage) -> None:
    client = redis.Redis.from_url(network.url, socket_timeout=0.2)
    broker = RedisStreamsBroker(client=client, middleware=[], enqueue_timeout_ms=0)

    async def enqueue() -> None:
        await broker.aenqueue(message("before"))
        with network.hanging(), pytest.raises(EnqueueUncertain):
            await broker.aenqueue(message("after"))

    asyncio.run(enqueue())
    broker.close()


def test_coroutines_enqueue_after_the_broker_was_closed(redis_url: str, redis_client: Any) -> None:
    with broker_on(redis_url) as broker:
        asyncio.run(broker.aenqueue(message("one")))
        broker.close()

        asyncio.run(broker.aenqueue(message("two")))

    assert redis_client.xlen(KEYS.stream) == 2
