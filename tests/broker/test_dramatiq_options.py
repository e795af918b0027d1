"""Dramatiq's guarantees about actors and messages, which every broker must provide."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.errors import Retry
from dramatiq.middleware import (
    AgeLimit,
    AsyncIO,
    Middleware,
    Retries,
    Shutdown,
    ShutdownNotifications,
    TimeLimit,
    TimeLimitExceeded,
)

from broker import RedisStreamsBroker
from broker.keys import QueueKeys
from tests.broker.scene import received
from tests.support import eventually

QUICK: dict[str, Any] = {"lease_ms": 2_000, "keeper_process": False}


@contextmanager
def broker_on(url: str, *middleware: Middleware, **settings: Any) -> Iterator[RedisStreamsBroker]:
    broker = RedisStreamsBroker(url, middleware=list(middleware), **(QUICK | settings))
    for one in middleware:
        one.after_process_boot(broker)
    try:
        yield broker
    finally:
        broker.close()


@contextmanager
def working(broker: RedisStreamsBroker, *, threads: int = 2) -> Iterator[dramatiq.Worker]:
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=threads)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


def quick_retries(max_retries: int = 3) -> Retries:
    return Retries(min_backoff=1, max_backoff=10, max_retries=max_retries)


def test_message_older_than_max_age_becomes_a_dead_letter(redis_url: str) -> None:
    ran = []
    with broker_on(redis_url, AgeLimit(max_age=60_000)) as broker:

        @dramatiq.actor(broker=broker)
        def work(label: str) -> None:
            ran.append(label)

        old = work.message("old").copy(message_timestamp=int(time.time() * 1000) - 3_600_000)
        broker.enqueue(old)
        work.send("young")
        with working(broker):
            broker.join("default", timeout=30_000)

        (dead_letter,) = broker.dead_letters("default").list()
        assert (dead_letter.reason, dead_letter.message_id) == ("skipped", old.message_id)
    assert ran == ["young"]


def test_job_beyond_its_time_limit_is_interrupted_and_thread_survives(redis_url: str) -> None:
    seen: list[str] = []
    with broker_on(redis_url, TimeLimit(interval=20), quick_retries(0)) as broker:

        @dramatiq.actor(broker=broker, time_limit=100)
        def work(label: str) -> None:
            try:
                for _ in range(1_000 if label == "slow" else 0):
                    time.sleep(0.01)
            except TimeLimitExceeded:
                seen.append("interrupted")
                raise
            seen.append(label)

        work.send("slow")
        work.send("quick")
        with working(broker, threads=1):
            broker.join("default", timeout=30_000)

        (dead_letter,) = broker.dead_letters("default").list()
        assert dead_letter.error.startswith("TimeLimitExceeded")
    assert seen == ["interrupted", "quick"]


def test_job_notified_of_shutdown_is_retried_elsewhere(redis_url: str) -> None:
    began, told = threading.Event(), threading.Event()
    with broker_on(redis_url, ShutdownNotifications(), quick_retries()) as broker:

        @dramatiq.actor(broker=broker, notify_shutdown=True)
        def work() -> None:
            began.set()
            try:
                for _ in range(1_000 if not told.is_set() else 0):
                    time.sleep(0.01)
            except Shutdown:
                told.set()
                raise

        work.send()
        with working(broker):
            assert began.wait(20)
        assert told.is_set()
        assert broker.counters("default")["retried"] == 1

        with working(broker):
            broker.join("default", timeout=30_000)
        assert len(broker.dead_letters("default")) == 0


def test_coroutine_actor_runs(redis_url: str) -> None:
    ran = []
    with broker_on(redis_url, AsyncIO(), quick_retries()) as broker:

        @dramatiq.actor(broker=broker)
        async def work(n: int) -> None:
            ran.append(n)
            if ran.count(n) < 2:
                raise ValueError("not yet")

        for n in range(5):
            work.send(n)
        with working(broker):
            broker.join("default", timeout=30_000)

    assert sorted(ran) == sorted([*range(5), *range(5)])


def test_class_actor_runs(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    performed = []
    with broker_on(redis_url) as broker:
        monkeypatch.setattr(dramatiq.broker, "global_broker", broker)

        class Base(dramatiq.GenericActor):
            class Meta:
                abstract = True
                queue_name = "tasks"

            def perform(self, label: str) -> None:
                performed.append(label)

        class First(Base):
            pass

        class Second(Base):
            class Meta:
                queue_name = "others"

        First.send("first")
        Second.send("second")
        with working(broker):
            for queue in ("tasks", "others"):
                broker.join(queue, timeout=30_000)

    assert sorted(performed) == ["first", "second"]


def test_actor_with_higher_priority_runs_first_within_a_process(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dramatiq.worker.QUEUE_PREFETCH", 10)
    ran: list[str] = []
    first_runs, go_on = threading.Event(), threading.Event()
    # with the default, a Worker with long jobs would hold no message behind the running one
    with broker_on(redis_url, long_job_ms=None) as broker:

        @dramatiq.actor(broker=broker, priority=5)
        def gate() -> None:
            first_runs.set()
            go_on.wait(20)

        @dramatiq.actor(broker=broker, priority=10)
        def patient() -> None:
            ran.append("patient")

        @dramatiq.actor(broker=broker, priority=0)
        def urgent() -> None:
            ran.append("urgent")

        gate.send()
        with working(broker, threads=1) as worker:
            assert first_runs.wait(20)
            patient.send()
            urgent.send()
            eventually(lambda: worker.work_queue.qsize() == 2)
            go_on.set()
            broker.join("default", timeout=30_000)

    assert ran == ["urgent", "patient"]


def test_delayed_messages_run_in_the_order_of_their_due_times(redis_url: str) -> None:
    ran: list[int] = []
    with broker_on(redis_url) as broker:

        @dramatiq.actor(broker=broker)
        def work(delay: int) -> None:
            ran.append(delay)

        for delay in (300, 200, 100):
            work.send_with_options(args=(delay,), delay=delay)
        with working(broker, threads=1):
            broker.join("default", timeout=30_000)

    assert ran == [100, 200, 300]


@pytest.mark.parametrize("eta", [None, "soon", 1, 1.5])
def test_past_or_invalid_eta_does_not_delay_the_message(redis_url: str, eta: object) -> None:
    ran = threading.Event()
    with broker_on(redis_url) as broker:

        @dramatiq.actor(broker=broker)
        def work() -> None:
            ran.set()

        message = work.message()
        broker.enqueue(message.copy(options={"eta": eta}))
        with working(broker):
            assert ran.wait(20)
            broker.join("default", timeout=30_000)


def test_exception_listed_in_throws_is_not_retried(redis_url: str) -> None:
    ran = []
    with broker_on(redis_url, quick_retries(5)) as broker:

        @dramatiq.actor(broker=broker, throws=KeyError)
        def work() -> None:
            ran.append(1)
            raise KeyError("as declared")

        work.send()
        with working(broker):
            broker.join("default", timeout=30_000)

        assert len(broker.dead_letters("default")) == 1
    assert ran == [1]


def test_retry_when_of_the_actor_decides_whether_a_job_is_retried(redis_url: str) -> None:
    ran = []
    with broker_on(redis_url, quick_retries()) as broker:

        @dramatiq.actor(broker=broker, retry_when=lambda retries, error: retries < 4)
        def work() -> None:
            ran.append(1)
            raise ValueError("always")

        work.send()
        with working(broker):
            broker.join("default", timeout=30_000)

        assert (len(ran), len(broker.dead_letters("default"))) == (5, 1)


def test_actor_that_raises_retry_runs_again_after_its_delay(redis_url: str) -> None:
    ran: list[float] = []
    with broker_on(redis_url, Retries(min_backoff=60_000)) as broker:

        @dramatiq.actor(broker=broker)
        def work() -> None:
            ran.append(time.monotonic())
            if len(ran) == 1:
                raise Retry("soon", delay=200)

        work.send()
        with working(broker):
            broker.join("default", timeout=30_000)

    assert ran[1] - ran[0] >= 0.2


def test_retry_exhausted_callback_runs_after_the_last_attempt(redis_url: str) -> None:
    told = threading.Event()
    with broker_on(redis_url, quick_retries(1)) as broker:

        @dramatiq.actor(broker=broker)
        def gave_up(message_data: dict[str, Any], retry_info: dict[str, int]) -> None:
            assert retry_info["max_retries"] == 1
            told.set()

        @dramatiq.actor(broker=broker, on_retry_exhausted="gave_up")
        def work() -> None:
            raise ValueError("always")

        work.send()
        with working(broker):
            assert told.wait(20)
            broker.join("default", timeout=30_000)


def test_paused_worker_starts_no_job_until_resumed(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dramatiq.worker.CONSUMER_RESTART_DELAY_SECS", 0.05)
    ran = threading.Event()
    with broker_on(redis_url) as broker:

        @dramatiq.actor(broker=broker)
        def work() -> None:
            ran.set()

        with working(broker) as worker:
            worker.pause()
            work.send()
            assert not ran.wait(0.3)
            worker.resume()
            assert ran.wait(20)


def test_join_waits_for_a_message_that_moves_between_stream_and_delayed(redis_url: str) -> None:
    """The message moves fifty times between the stream and the delayed set, and is always in one of them."""
    n_tries = 50
    tries = 0
    with broker_on(redis_url, Retries(min_backoff=1, max_backoff=1, max_retries=n_tries)) as broker:

        @dramatiq.actor(broker=broker)
        def work() -> None:
            nonlocal tries
            tries += 1
            if tries <= n_tries:
                raise ValueError("again")

        work.send()
        with working(broker):
            broker.join("default", interval=0, timeout=60_000)
            assert tries == n_tries + 1


def make_due(client: Any) -> None:
    """Make all delayed messages due."""
    keys = QueueKeys("streams", "default")
    for name in client.zrange(keys.delayed, 0, -1):
        client.zadd(keys.delayed, {name: 1})
    client.xadd(keys.timer, {"due": 1})


def test_delayed_message_survives_a_worker_stop(redis_url: str, redis_client: redis.Redis) -> None:
    ran = threading.Event()
    with broker_on(redis_url) as broker:

        @dramatiq.actor(broker=broker)
        def work() -> None:
            ran.set()

        work.send_with_options(delay=3_600_000)
        with working(broker):
            pass
        assert broker.stats("default").delayed == 1
        make_due(redis_client)  # as if an hour had passed
        with working(broker):
            assert ran.wait(20)


def test_more_messages_than_lua_can_unpack_are_requeued_and_flushed(redis_url: str, redis_client: redis.Redis) -> None:
    n = 8_500  # Lua's unpack() handles about 8,000 values
    with broker_on(redis_url) as broker:
        broker.declare_queue("default")
        broker.enqueue(dramatiq.Message("default", "work", (), {}, {}))
        consumer = broker.consume("default", prefetch=n, timeout=5_000)
        (one,) = received(consumer, 1)
        consumer.nack(one)
        keys = QueueKeys("streams", "default")
        copying = (
            "local _, one = unpack(redis.call('XRANGE', KEYS[1], '-', '+')[1])\n"
            "for _ = 2, tonumber(ARGV[1]) do redis.call('XADD', KEYS[1], '*', unpack(one)) end"
        )
        redis_client.eval(copying, 1, keys.dead, str(n))
        dead_letters = broker.dead_letters("default")

        assert dead_letters.requeue(dead_letter.id for dead_letter in dead_letters.list(n)) == n
        assert len(received(consumer, n)) == n
        broker.flush("default")

        stats = broker.stats("default")
        assert (stats.in_flight, stats.waiting, stats.dead) == (0, 0, 0)
        consumer.close()
