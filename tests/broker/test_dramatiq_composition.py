"""Pipelines, groups, callbacks, results, barriers and rate limits, which Dramatiq implements on top of any broker."""

from __future__ import annotations

import threading
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.middleware import Callbacks, GroupCallbacks, Pipelines
from dramatiq.rate_limits import Barrier, ConcurrentRateLimiter
from dramatiq.rate_limits.backends import RedisBackend as RateBackend
from dramatiq.results import ResultFailure, Results
from dramatiq.results.backends import RedisBackend as ResultBackend

import broker as broker_package
from tests.broker.test_dramatiq_options import broker_on, quick_retries, working


def test_pipeline_passes_results_on_obeys_delays_and_stops_at_a_failure(
    redis_url: str, redis_client: redis.Redis
) -> None:
    ran: list[tuple[str, tuple[object, ...]]] = []
    results = Results(backend=ResultBackend(client=redis_client))
    with broker_on(redis_url, quick_retries(0), Pipelines(), results) as broker:

        @dramatiq.actor(broker=broker, store_results=True)
        def double(n: int) -> int:
            ran.append(("double", (n,)))
            return 2 * n

        @dramatiq.actor(broker=broker, store_results=True)
        def alone(*args: object) -> str:
            ran.append(("alone", args))
            return "alone"

        @dramatiq.actor(broker=broker, store_results=True)
        def fails(_: object) -> None:
            raise ValueError("as asked")

        good = dramatiq.pipeline(
            [
                double.message(1),
                double.message_with_options(args=(), delay=50),
                alone.message_with_options(args=(), pipe_ignore=True),
            ],
            broker=broker,
        ).run()
        bad = dramatiq.pipeline(
            [double.message(5), fails.message_with_options(args=()), alone.message()], broker=broker
        ).run()
        with working(broker):
            assert good.get_result(block=True, timeout=20_000) == "alone"
            broker.join("default", timeout=30_000)

        assert list(good.get_results()) == [2, 4, "alone"]
        assert bad.messages[2].message_id not in {message_id for message_id, _ in ran}
    assert sorted(ran) == [("alone", ()), ("double", (1,)), ("double", (2,)), ("double", (5,))]


@pytest.mark.parametrize("kind", ["Dramatiq's", "this broker's"])
def test_group_completes_only_when_all_members_are_done(redis_url: str, redis_client: redis.Redis, kind: str) -> None:
    done: list[int] = []
    finished = threading.Event()
    at_the_end: list[list[int]] = []
    dramatiqs = GroupCallbacks(RateBackend(client=redis_client))
    callbacks = dramatiqs if kind == "Dramatiq's" else broker_package.GroupCallbacks()
    results = Results(backend=ResultBackend(client=redis_client))
    with broker_on(redis_url, quick_retries(), Callbacks(), callbacks, results) as broker:

        @dramatiq.actor(broker=broker, store_results=True)
        def part(n: int) -> int:
            if n == 3 and n not in done:
                done.append(n)
                raise ValueError("once")
            done.append(n)
            return n

        @dramatiq.actor(broker=broker)
        def all_done() -> None:
            at_the_end.append(sorted(done))
            finished.set()

        group = dramatiq.group([part.message(n) for n in range(6)], broker=broker)
        group.add_completion_callback(all_done.message())
        group.run()
        with working(broker, threads=4):
            assert finished.wait(30)
            broker.join("default", timeout=30_000)

        assert list(group.get_results(block=True, timeout=5_000)) == [0, 1, 2, 3, 4, 5]
    assert at_the_end == [[0, 1, 2, 3, 3, 4, 5]]


def test_group_of_pipelines_completes(redis_url: str, redis_client: redis.Redis) -> None:
    results = Results(backend=ResultBackend(client=redis_client))
    with broker_on(redis_url, quick_retries(), Pipelines(), results) as broker:

        @dramatiq.actor(broker=broker, store_results=True)
        def add(x: int, y: int) -> int:
            return x + y

        def two_steps(n: int) -> dramatiq.pipeline:
            then = add.message_with_options(args=(10,))
            return dramatiq.pipeline([add.message(n, 1), then], broker=broker)

        group = dramatiq.group([two_steps(n) for n in range(3)], broker=broker)
        group.run()
        with working(broker):
            assert list(group.get_results(block=True, timeout=20_000)) == [11, 12, 13]


@pytest.mark.parametrize(("fails", "told"), [(False, "succeeded"), (True, "failed")])
def test_callbacks_receive_the_message_on_success_and_failure(redis_url: str, fails: bool, told: str) -> None:
    heard: list[tuple[str, str]] = []
    with broker_on(redis_url, quick_retries(0), Callbacks()) as broker:

        @dramatiq.actor(broker=broker)
        def work() -> int:
            if fails:
                raise ValueError("as asked")
            return 42

        @dramatiq.actor(broker=broker)
        def succeeded(message_data: dict[str, Any], result: int) -> None:
            assert result == 42
            heard.append(("succeeded", message_data["message_id"]))

        @dramatiq.actor(broker=broker)
        def failed(message_data: dict[str, Any], exception_data: dict[str, str]) -> None:
            assert exception_data["type"] == "ValueError"
            heard.append(("failed", message_data["message_id"]))

        sent = work.send_with_options(on_success=succeeded, on_failure=failed)
        with working(broker):
            broker.join("default", timeout=30_000)

    assert heard == [(told, sent.message_id)]


def test_result_of_a_failed_job_raises_its_error(redis_url: str, redis_client: redis.Redis) -> None:
    results = Results(backend=ResultBackend(client=redis_client))
    with broker_on(redis_url, quick_retries(1), results) as broker:

        @dramatiq.actor(broker=broker, store_results=True)
        def work() -> None:
            raise ValueError("as asked")

        sent = work.send()
        with working(broker), pytest.raises(ResultFailure, match="as asked"):
            sent.get_result(backend=results.backend, block=True, timeout=20_000)


def test_rate_limited_jobs_are_retried_until_all_have_run(redis_url: str, redis_client: redis.Redis) -> None:
    running = most = n_done = 0
    lock = threading.Lock()
    limiter = ConcurrentRateLimiter(RateBackend(client=redis_client), "jobs", limit=1)
    with broker_on(redis_url, quick_retries(1_000)) as broker:

        @dramatiq.actor(broker=broker)
        def work() -> None:
            nonlocal running, most, n_done
            with limiter.acquire():
                with lock:
                    running += 1
                    most = max(most, running)
                threading.Event().wait(0.01)
                with lock:
                    running -= 1
                    n_done += 1

        for _ in range(10):
            work.send()
        with working(broker, threads=4):
            broker.join("default", timeout=60_000)

    assert (most, n_done) == (1, 10)


def test_jobs_wait_for_each_other_at_a_barrier(redis_url: str, redis_client: redis.Redis) -> None:
    met = []
    barrier = Barrier(RateBackend(client=redis_client), "meeting", ttl=60_000)
    barrier.create(parties=3)
    with broker_on(redis_url) as broker:

        @dramatiq.actor(broker=broker)
        def work(n: int) -> None:
            if barrier.wait(block=True, timeout=20_000):
                met.append(n)

        for n in range(3):
            work.send(n)
        with working(broker, threads=3):
            broker.join("default", timeout=30_000)

    assert sorted(met) == [0, 1, 2]
