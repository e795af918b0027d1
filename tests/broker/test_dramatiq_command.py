"""Dramatiq's own commands in real processes: reload, stop, watch, gevent, and a start before Redis is up."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dramatiq
import psutil
import pytest
import redis

from broker import Delivery, RedisStreamsBroker
from tasks.redis_access.embedded import EmbeddedRedis
from tests.broker.processes import command
from tests.broker.scene import received
from tests.support import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

STREAM = "streams:default"


@pytest.fixture
def client(redis_client: redis.Redis) -> Any:
    return redis_client


@pytest.fixture
def producer(redis_url: str) -> Iterator[RedisStreamsBroker]:
    broker = RedisStreamsBroker(redis_url, middleware=[])
    yield broker
    broker.close()


def message(actor: str, *args: object) -> dramatiq.Message[Any]:
    return dramatiq.Message(queue_name="default", actor_name=actor, args=args, kwargs={}, options={})


def has_started(client: Any, times: int) -> bool:
    """Return whether the command has started workers this many times, including reloads."""
    return bool(client.llen("forked") == times and client.zcard("{streams:default}:consumers"))


def ran(client: Any) -> Counter[int]:
    return Counter(map(int, client.lrange("ran", 0, -1)))


def taken(producer: RedisStreamsBroker, n: int) -> list[Delivery]:
    """Receive and acknowledge the next messages, as another process would, and return them."""
    producer.declare_queue("default")
    consumer = producer.consume("default", prefetch=n, timeout=2_000)
    try:
        deliveries = received(consumer, n)
        for delivery in deliveries:
            consumer.ack(delivery)
    finally:
        consumer.close()
    return deliveries


def test_reload_under_load_loses_nothing_and_runs_nothing_twice(
    redis_url: str, client: Any, producer: RedisStreamsBroker, tmp_path: Path
) -> None:
    source = tmp_path / "changed.py"
    source.touch()
    pytest.importorskip("watchdog", reason="watchdog has no wheel for this machine and Python")
    with command(redis_url, "--threads", "4", "--watch", str(tmp_path), "--watch-use-polling"):
        producer.enqueue_many([message("work", number, 0.005) for number in range(300)])
        eventually(lambda: has_started(client, 1), within_s=40)
        source.write_text("# another\n")  # Dramatiq's watcher sends SIGHUP to the master
        producer.enqueue_many([message("work", number, 0.005) for number in range(300, 600)])
        eventually(lambda: has_started(client, 2), within_s=40)
        eventually(lambda: client.llen("ran") >= 600 and client.xlen(STREAM) == 0, within_s=60)

    assert ran(client) == Counter(range(600))


def test_stop_finishes_running_jobs_and_hands_back_the_others_in_order(
    redis_url: str, client: Any, producer: RedisStreamsBroker
) -> None:
    producer.enqueue_many([message("work", number, 0.3) for number in range(10)])

    with command(redis_url, "--threads", "1") as process:
        eventually(lambda: client.llen("began"), within_s=40)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0

    began = [int(number) for number in client.lrange("began", 0, -1)]
    assert list(ran(client)) == began, "what had begun was let end"
    rest = taken(producer, 10 - len(began))
    assert [*began, *(delivery.args[0] for delivery in rest)] == list(range(10))
    assert {delivery.deliveries for delivery in rest} == {1}, "giving back burns no delivery"


def test_job_that_outlives_the_stop_runs_again(redis_url: str, client: Any, producer: RedisStreamsBroker) -> None:
    producer.enqueue(message("work", 1, 60))
    with command(redis_url, "--threads", "1", "--worker-shutdown-timeout", "100") as process:
        eventually(lambda: client.llen("began"), within_s=40)
        process.send_signal(signal.SIGTERM)
        process.wait(30)

    (again,) = taken(producer, 1)

    assert (again.args[0], again.deliveries) == (1, 2)
    assert client.llen("ran") == 0


def test_greenlet_that_never_yields_keeps_its_lease(redis_url: str, client: Any, producer: RedisStreamsBroker) -> None:
    with command(redis_url, "--threads", "8", name="dramatiq-gevent") as process:
        producer.enqueue_many([message("work" if n % 10 else "fail_once", n) for n in range(200)])
        producer.enqueue(message("work", 200), delay=200)
        eventually(lambda: client.llen("ran") == 201, within_s=60)
        producer.enqueue(message("compute", 3))  # runs for 3 s, which is 1.5 times the lease
        eventually(lambda: client.lindex("began", -1) == b"-1", within_s=60)
        robber = RedisStreamsBroker(redis_url, middleware=[], lease_ms=2_000)
        robber.declare_queue("default")
        consumer = robber.consume("default", timeout=2_800)

        assert next(consumer) is None

        consumer.close()
        robber.close()
        eventually(lambda: client.llen("ran") == 202 and client.xlen(STREAM) == 0, within_s=60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0

    assert ran(client) == Counter([*range(201), -1])
    assert producer.counters("default")["recovered"] == 0


def test_worker_waits_while_redis_starts_and_loads_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("dramatiq_restart_delay", "300")
    monkeypatch.setattr("tasks.redis_access.embedded.START_TIMEOUT_S", 90)
    # loading takes two minutes unless this setting is changed in the meantime
    server, log = EmbeddedRedis(directory=tmp_path, options={"key-load-delay": "500"}), tmp_path / "log"
    with stopped_at_the_end(server), redis.Redis.from_url(server.url, socket_timeout=60) as client:
        server.start()
        client.eval("for i = 1, 200000 do redis.call('SET', 'key-' .. i, 'x') end", 0)
        server.kill()
        with command(server.url, log=log) as process:
            eventually(lambda: "Connection refused" in log.read_text(), within_s=60)
            before = workers_of(process)

            def end_loading_once_the_worker_met_it() -> None:
                eventually(lambda: "is loading the dataset" in log.read_text(), within_s=60)
                client.config_set("key-load-delay", 0)

            meeting = threading.Thread(target=end_loading_once_the_worker_met_it)
            meeting.start()
            server.start()
            meeting.join()

            assert runs_a_job(server.url)
            assert workers_of(process) <= before, "none was replaced"


@contextmanager
def stopped_at_the_end(server: EmbeddedRedis) -> Iterator[None]:
    try:
        yield
    finally:
        server.stop()


def workers_of(process: subprocess.Popen[bytes]) -> set[int]:
    """Return the pids of the command's live child processes."""
    return {child.pid for child in psutil.Process(process.pid).children() if child.status() != psutil.STATUS_ZOMBIE}


def runs_a_job(url: str) -> bool:
    producer = RedisStreamsBroker(url, middleware=[])
    try:
        producer.enqueue(message("work", 1))
        with redis.Redis.from_url(url) as client:
            eventually(lambda: ran(client) == {1: 1}, within_s=60)
    finally:
        producer.close()
    return True
