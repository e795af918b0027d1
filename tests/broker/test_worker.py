"""The broker with Dramatiq's own Worker and middleware."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.broker import MessageProxy
from dramatiq.errors import QueueJoinTimeout
from dramatiq.middleware import Callbacks, CurrentMessage, Middleware, Pipelines, Retries
from dramatiq.results import ResultFailure, Results
from dramatiq.results.backends import RedisBackend

from broker import RedisStreamsBroker
from tests.support import eventually

STREAM = "streams:default"


@contextmanager
def broker_on(url: str, middleware: list[Middleware]) -> Iterator[RedisStreamsBroker]:
    broker = RedisStreamsBroker(url, middleware=middleware, lease_ms=2_000)
    try:
        yield broker
    finally:
        broker.close()


@contextmanager
def working(broker: RedisStreamsBroker, *, threads: int = 4) -> Iterator[dramatiq.Worker]:
    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=threads)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


def test_every_message_runs_once_and_leaves_no_keys(redis_url: str, redis_client: redis.Redis) -> None:
    ran: Counter[int] = Counter()
    with broker_on(redis_url, []) as broker:

        @dramatiq.actor(broker=broker)
        def work(n: int) -> None:
            ran[n] += 1

        broker.enqueue_many([work.message(n) for n in range(2_000)])
        with working(broker, threads=8):
            broker.join("default", timeout=60_000)

    assert ran == Counter(range(2_000))
    assert redis_client.xlen(STREAM) == 0
    assert redis_client.xpending(STREAM, "workers")["pending"] == 0


def test_delivery_attributes_bypass_the_slow_proxy_of_dramatiq(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def read_from_message(proxy: MessageProxy, name: str) -> Any:
        read.append(name)
        return getattr(proxy._message, name)

    monkeypatch.setattr(MessageProxy, "__getattr__", read_from_message)
    with closing(RedisStreamsBroker(redis_url, lease_ms=2_000)) as broker:  # with Dramatiq's default middleware

        @dramatiq.actor(broker=broker)
        def work() -> None:
            pass

        work.send()
        with working(broker):
            broker.join("default", timeout=10_000)

    assert read == []


def test_failed_job_is_retried_and_then_succeeds(redis_url: str) -> None:
    attempts = []
    with broker_on(redis_url, [Retries(min_backoff=1, max_backoff=20), CurrentMessage()]) as broker:

        @dramatiq.actor(broker=broker, max_retries=3)
        def work() -> None:
            message = CurrentMessage.get_current_message()
            assert message is not None
            attempts.append(message.options.get("retries", 0))
            if len(attempts) < 3:
                raise RuntimeError("not yet")

        work.send()
        with working(broker):
            broker.join("default", timeout=30_000)

        assert attempts == [0, 1, 2]
        assert broker.counters("default")["retried"] == 2
        assert len(broker.dead_letters("default")) == 0


def test_results_pipelines_and_groups_work(redis_url: str, redis_client: redis.Redis) -> None:
    results = Results(backend=RedisBackend(client=redis_client))
    with broker_on(redis_url, [Retries(), Callbacks(), Pipelines(), results]) as broker:

        @dramatiq.actor(broker=broker, store_results=True)
        def add(x: int, y: int) -> int:
            return x + y

        with working(broker):
            tens, hundreds = (add.message_with_options(args=(n,)) for n in (10, 100))
            chain = dramatiq.pipeline([add.message(1, 2), tens, hundreds], broker=broker).run()
            together = dramatiq.group([add.message(n, n) for n in range(5)], broker=broker).run()

            assert chain.get_result(block=True, timeout=20_000) == 113
            assert list(together.get_results(block=True, timeout=20_000)) == [0, 2, 4, 6, 8]


def test_message_for_an_undeclared_actor_does_not_stop_the_worker(redis_url: str) -> None:
    done = threading.Event()
    with broker_on(redis_url, [Retries()]) as broker:

        @dramatiq.actor(broker=broker)
        def known() -> None:
            done.set()

        broker.enqueue(dramatiq.Message(queue_name="default", actor_name="unknown", args=(), kwargs={}, options={}))
        known.send()
        with working(broker, threads=1):
            assert done.wait(20)
            (dead_letter,) = eventually(lambda: broker.dead_letters("default").list())

    assert (dead_letter.reason, dead_letter.actor_name) == ("unknown-actor", "unknown")


def test_callers_waiting_for_results_learn_of_messages_that_never_run(
    redis_url: str, redis_client: redis.Redis
) -> None:
    told: list[dict[str, Any]] = []
    results = Results(backend=RedisBackend(client=redis_client))
    with broker_on(redis_url, [Retries(), Callbacks(), results]) as broker:

        @dramatiq.actor(broker=broker)
        def on_failure(message: dict[str, Any], error: dict[str, Any]) -> None:
            told.append(error)

        @dramatiq.actor(broker=broker, store_results=True, on_failure="on_failure")
        def work(what: str) -> None:
            raise AssertionError("never")

        doomed = work.message("kills its workers")
        entry = redis_client.xadd(STREAM, {"message": doomed.encode()})
        redis_client.xgroup_create(STREAM, "workers", "0")
        redis_client.xreadgroup("workers", "dead", {STREAM: ">"})
        redis_client.hset("{streams:default}:suspects", entry, "4 1 dead")
        redis_client.zadd("{streams:default}:consumers", {"dead": 0})
        oversize, elsewhere = work.message("x" * (1 << 20)), work.message("lost").copy(queue_name="elsewhere")
        redis_client.xadd(STREAM, {"message": oversize.encode()})
        redis_client.xadd(STREAM, {"message": elsewhere.encode()})

        with working(broker):
            refused = {}
            for message in (doomed, oversize, elsewhere):
                with pytest.raises(ResultFailure) as failure:
                    results.backend.get_result(message, block=True, timeout=20_000)
                refused[message.message_id] = failure.value.orig_exc_type
            eventually(lambda: told)
            dead_letters = {
                dead_letter.message_id: dead_letter for dead_letter in broker.dead_letters("default").list()
            }

    assert refused == {
        doomed.message_id: "DeliveryLimitReached",
        oversize.message_id: "Oversize",
        elsewhere.message_id: "WrongQueue",
    }
    assert [one["type"] for one in told] == ["DeliveryLimitReached"]
    assert {dead_letter.reason for dead_letter in dead_letters.values()} == {
        "delivery-limit",
        "oversize",
        "wrong-queue",
    }
    assert dead_letters[doomed.message_id].deliveries == 2


def test_worker_thread_survives_any_message(redis_url: str) -> None:
    n_done = 0
    with broker_on(redis_url, [Retries(max_retries=0)]) as broker:

        @dramatiq.actor(broker=broker)
        def work(how: str) -> None:
            nonlocal n_done
            if how == "raise":
                raise ValueError("no")
            n_done += 1

        for _ in range(20):
            work.send("raise")
        broker.enqueue(dramatiq.Message("default", "work", args=(1, 2, 3), kwargs={}, options={}))
        work.send("go")
        with working(broker, threads=2):
            eventually(lambda: n_done == 1, within_s=20)
            eventually(lambda: len(broker.dead_letters("default")) == 21, within_s=20)


def test_unstarted_messages_are_handed_back_when_a_worker_stops(redis_url: str, redis_client: redis.Redis) -> None:
    started, release = threading.Event(), threading.Event()
    with broker_on(redis_url, []) as broker:

        @dramatiq.actor(broker=broker)
        def work(n: int) -> None:
            started.set()
            release.wait(20)

        broker.enqueue_many([work.message(n) for n in range(10)])
        with working(broker, threads=1) as worker:
            assert started.wait(20)
            stopping = threading.Thread(target=worker.stop)
            stopping.start()
            release.set()
            stopping.join(30)

    pending: Any = redis_client.xpending_range(STREAM, "workers", "-", "+", 100)
    assert all(entry["times_delivered"] == 0 for entry in pending), "giving back burns no delivery"
    assert redis_client.xlen(STREAM) >= 8

    ran = []
    with broker_on(redis_url, []) as broker:

        @dramatiq.actor(broker=broker, actor_name="work")
        def work_on(n: int) -> None:
            ran.append(n)

        with working(broker, threads=1):
            broker.join("default", timeout=30_000)

    assert ran == sorted(ran)
    assert set(ran) | {0} == set(range(10))


def test_join_waits_for_running_and_delayed_messages(redis_url: str) -> None:
    release = threading.Event()
    with broker_on(redis_url, []) as broker:

        @dramatiq.actor(broker=broker)
        def work() -> None:
            release.wait(20)

        work.send()
        with working(broker):
            with pytest.raises(QueueJoinTimeout):
                broker.join("default", timeout=100)
            release.set()
            broker.join("default", timeout=20_000)

            work.send_with_options(delay=60_000)
            with pytest.raises(QueueJoinTimeout):
                broker.join("default", timeout=100)


def test_flushed_queue_is_empty_and_still_works(redis_url: str, redis_client: redis.Redis) -> None:
    ran = threading.Event()
    with broker_on(redis_url, []) as broker:

        @dramatiq.actor(broker=broker)
        def work(is_last: bool) -> None:
            assert is_last
            ran.set()

        work.send(False)
        work.send_with_options(args=(False,), delay=50)
        broker.flush("default")
        assert redis_client.xlen(STREAM) == 0

        with working(broker):
            work.send(True)
            assert ran.wait(20)
