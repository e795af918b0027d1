"""Tests that cut a connection at each call in a message's life, before the call or its reply arrives."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.broker import MessageProxy
from dramatiq.errors import BrokerConnectionError
from dramatiq.middleware import Callbacks, Middleware, Pipelines, Retries

from broker import RedisStreamsBroker
from tests.faults.nemeses import SCRIPTS
from tests.faults.outage import Outage, Where
from tests.support import eventually

STREAM = "streams:default"


@pytest.fixture(autouse=True)
def _impatient_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the Worker's pauses: 3 s after a lost connection, and 5 s before it tries again to acknowledge."""
    monkeypatch.setattr("dramatiq.worker.CONSUMER_RESTART_DELAY_SECS", 0.05)
    monkeypatch.setattr("dramatiq.worker.POST_PROCESS_MESSAGE_RETRY_DELAY_SECS", 0.05)


@contextmanager
def broker_on(outage: Outage, middleware: list[Middleware], **settings: Any) -> Iterator[RedisStreamsBroker]:
    url = f"{outage.url}?socket_timeout=2"
    broker = RedisStreamsBroker(url, middleware=middleware, **{"lease_ms": 2_000, **settings})
    try:
        yield broker
    finally:
        broker.close()


@contextmanager
def working(broker: RedisStreamsBroker) -> Iterator[dramatiq.Worker]:
    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=4)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


def is_empty(client: Any) -> bool:
    # in one transaction, because messages move between the stream and the delayed set
    with client.pipeline(transaction=True) as moment:
        moment.xlen(STREAM)
        moment.zcard("{streams:default}:delayed")
        return not any(moment.execute())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_no_message_is_lost_when_the_connection_breaks_at_any_call(
    outage: Outage, redis_client: redis.Redis, name: str, where: Where
) -> None:
    ran: Counter[int] = Counter()
    with broker_on(outage, [Retries(min_backoff=1, max_backoff=10, max_retries=2)]) as broker:

        @dramatiq.actor(broker=broker)
        def work(n: int) -> None:
            ran[n] += 1
            if n % 10 == 1 and ran[n] == 1:
                raise ValueError("once")
            if n % 10 == 2:
                raise ValueError("always")

        outage.aim(name, where)
        for n in range(10):
            work.send_with_options(args=(n,), unique_key=str(n))
        work.send(10)
        broker.enqueue_many([work.message(n) for n in range(11, 40)])
        hand_some_back(broker)
        with working(broker):
            eventually(lambda: is_empty(redis_client), within_s=60)
        assert len(broker.dead_letters("default")) == 4

    assert set(ran) == set(range(40))
    assert outage.cuts == {(name, where): 1}, "the cut must have happened exactly once"


def hand_some_back(broker: RedisStreamsBroker) -> None:
    """Receive messages, start none, and hand them back."""
    received: list[MessageProxy] = []
    while not received:
        with suppress(BrokerConnectionError):
            consumer = broker.consume("default", prefetch=5, timeout=500)
            received += filter(None, [next(consumer)])
    with suppress(BrokerConnectionError):
        consumer.requeue(received)
    consumer.close()


@pytest.mark.parametrize("how", ["pipeline", "on_success", "on_failure"])
def test_follow_up_message_of_a_finished_job_survives_a_redis_outage(
    outage: Outage, redis_client: redis.Redis, how: str
) -> None:
    began, go_on, followed = threading.Event(), threading.Event(), threading.Event()
    middleware = [Retries(max_retries=0), Pipelines(), Callbacks()]
    with broker_on(outage, middleware, enqueue_timeout_ms=100) as broker:

        @dramatiq.actor(broker=broker)
        def first() -> None:
            began.set()
            go_on.wait(20)
            if how == "on_failure":
                raise ValueError("as asked")

        @dramatiq.actor(broker=broker)
        def second(*_: object) -> None:
            followed.set()

        if how == "pipeline":
            dramatiq.pipeline([first.message(), second.message()], broker=broker).run()
        else:
            first.send_with_options(on_success=second) if how == "on_success" else first.send_with_options(
                on_failure=second
            )
        with working(broker):
            assert began.wait(20)
            with outage.refusing():
                go_on.set()
                time.sleep(0.3)
            assert followed.wait(30)
            eventually(lambda: is_empty(redis_client), within_s=30)
