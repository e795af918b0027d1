"""The progress that running jobs report is readable by message id."""

from __future__ import annotations

import threading
import time
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import AsyncIO, CurrentMessage

from broker import Progress, report_progress
from broker.net.connections import Connections
from broker.running.progress import REPORT_EVERY_S
from tests.broker.test_dramatiq_options import broker_on, quick_retries, working
from tests.support import eventually

PROGRESS_KEYS = "{streams:default}:progress:*"


def test_progress_of_a_running_job_is_readable_and_ends_with_it(redis_url: str, redis_client: redis.Redis) -> None:
    reported, may_end = threading.Event(), threading.Event()
    with broker_on(redis_url) as broker:

        @dramatiq.actor(broker=broker)
        def work() -> None:
            report_progress(3, 4, "nearly")
            reported.set()
            assert may_end.wait(30)

        sent = work.send()
        assert broker.progress("default", sent.message_id) is None
        with working(broker):
            assert reported.wait(30)
            found = broker.progress("default", sent.message_id)
            may_end.set()
            broker.join("default", timeout=30_000)

        assert found is not None
        assert (found.done, found.total, found.note, found.fraction) == (3, 4, "nearly", 0.75)
        assert 0 <= found.age_ms < 60_000
        eventually(lambda: broker.progress("default", sent.message_id) is None)
    assert redis_client.keys(PROGRESS_KEYS) == []


def test_reports_from_a_tight_loop_are_dropped_except_the_last(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[str] = []
    run = Connections.run

    def counting(self: Connections, *command: Any, **options: Any) -> Any:
        if command[0] == "SET":
            stored.append(command[2])
        return run(self, *command, **options)

    monkeypatch.setattr(Connections, "run", counting)
    began_at = time.monotonic()
    with broker_on(redis_url) as broker:

        @dramatiq.actor(broker=broker)
        def work() -> None:
            for n in range(2_000):
                report_progress(n, 1_000, f"turn {n}")

        work.send()
        with working(broker):
            broker.join("default", timeout=30_000)

    assert (stored[0], '[1000, 1000, "turn 1000"]' in stored) == ('[0, 1000, "turn 0"]', True)
    assert len(stored) <= 3 + (time.monotonic() - began_at) / REPORT_EVERY_S


def test_coroutine_reports_its_progress(redis_url: str) -> None:
    found: list[Progress | None] = []
    with broker_on(redis_url, AsyncIO(), CurrentMessage()) as broker:

        @dramatiq.actor(broker=broker)
        async def work(message_id: str) -> None:
            report_progress(1)
            found.append(broker.progress("default", message_id))

        message = work.message("")
        broker.enqueue(message.copy(args=(message.message_id,)))
        with working(broker):
            broker.join("default", timeout=30_000)

    assert [one and (one.done, one.total, one.fraction) for one in found] == [(1, None, None)]


def test_progress_does_not_outlive_an_attempt(redis_url: str, redis_client: redis.Redis) -> None:
    attempts: list[bool] = []
    with broker_on(redis_url, quick_retries(1)) as broker:

        @dramatiq.actor(broker=broker)
        def work() -> None:
            attempts.append(bool(redis_client.keys(PROGRESS_KEYS)))
            report_progress(1)
            raise ValueError("as asked")

        work.send()
        with working(broker):
            broker.join("default", timeout=30_000)

        assert broker.counters("default")["dead"] == 1
    assert attempts == [False, False]
    assert redis_client.keys(PROGRESS_KEYS) == []


def test_report_that_redis_refuses_does_not_fail_the_job(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []
    run = Connections.run

    def refusing(self: Connections, *command: Any, **options: Any) -> Any:
        if command[0] == "SET":
            tries.append(command[1])
            raise ConnectionClosed("as asked")
        return run(self, *command, **options)

    monkeypatch.setattr(Connections, "run", refusing)
    with broker_on(redis_url) as broker:

        @dramatiq.actor(broker=broker)
        def work() -> None:
            report_progress(1)
            report_progress(2)

        work.send()
        with working(broker):
            broker.join("default", timeout=30_000)

        assert broker.dead_letters("default").list() == []
    assert len(tries) == 1


def test_job_that_reports_a_value_that_is_not_a_number_fails(redis_url: str) -> None:
    with broker_on(redis_url, quick_retries(0)) as broker:

        @dramatiq.actor(broker=broker)
        def work() -> None:
            report_progress("half of it")  # type: ignore[arg-type]

        work.send()
        with working(broker):
            broker.join("default", timeout=30_000)

        assert "ValueError" in broker.dead_letters("default").list()[0].error


def test_report_outside_a_job_of_this_broker_does_nothing() -> None:
    ran: list[int] = []
    broker = StubBroker(middleware=[])

    @dramatiq.actor(broker=broker)
    def work() -> None:
        report_progress(1)
        ran.append(1)

    # in a new thread, because other tests leave unfinished jobs in this one
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    work.send()
    with working(broker):  # type: ignore[arg-type]  # any broker will do
        broker.join("default")

    assert ran == [1, 1]


@pytest.mark.parametrize(
    ("done", "total", "fraction"), [(1, 4, 0.25), (9, 4, 1.0), (-1, 4, 0.0), (1, None, None), (1, 0, None)]
)
def test_fraction_is_between_zero_and_one(done: float, total: float | None, fraction: float | None) -> None:
    assert Progress(done, total, None, age_ms=0).fraction == fraction
