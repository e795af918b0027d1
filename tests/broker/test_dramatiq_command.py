"""Dramatiq's own commands with real processes: reload, stop, watch, forks, gevent."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import dramatiq
import psutil
import pytest
import redis

from broker import RedisStreamsBroker
from tasks.embedded_redis import EmbeddedRedis
from tests.broker.processes import command
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
    """Return whether workers of the command have started this many times, reloads included."""
    return bool(client.llen("forked") == times and client.zcard("{streams:default}:consumers"))


def ran(client: Any) -> Counter[int]:
    return Counter(map(int, client.lrange("ran", 0, -1)))


def test_reloads_under_load_lose_nothing_and_run_nothing_twice(
    redis_url: str, client: Any, producer: RedisStreamsBroker
) -> None:
    n = 0
    with command(redis_url, "--threads", "4") as process:
        for number_of_starts in range(1, 4):
            producer.enqueue_many([message("work", number, 0.005) for number in range(n, n + 200)])
            n += 200
            # a second signal before the first is handled would kill the process
            eventually(partial(has_started, client, number_of_starts), within_s=40)
            process.send_signal(signal.SIGHUP)
        eventually(lambda: client.llen("ran") >= n and client.xlen(STREAM) == 0, within_s=60)

    assert ran(client) == Counter(range(n))


def test_stop_finishes_jobs_and_hands_back_the_others_in_order(
    redis_url: str, client: Any, producer: RedisStreamsBroker
) -> None:
    producer.enqueue_many([message("work", number, 0.5) for number in range(10)])

    with command(redis_url, "--threads", "1") as process:
        eventually(lambda: client.llen("began"), within_s=40)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    first = client.lrange("ran", 0, -1)
    pending = client.xpending_range(STREAM, "cluster-workers", "-", "+", 100)

    assert first == client.lrange("began", 0, -1), "what had begun was let end"
    assert all(entry["times_delivered"] == 0 for entry in pending), "giving back burns no delivery"
    with command(redis_url, "--threads", "1"):
        eventually(lambda: client.xlen(STREAM) == 0, within_s=40)
    assert [int(number) for number in client.lrange("ran", 0, -1)] == list(range(10))


def test_job_that_outlives_the_stop_runs_again(redis_url: str, client: Any, producer: RedisStreamsBroker) -> None:
    producer.enqueue(message("work", 1, 4))
    with command(redis_url, "--threads", "1", "--worker-shutdown-timeout", "100") as process:
        eventually(lambda: client.llen("began"), within_s=40)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert client.xlen(STREAM) == 1

    with command(redis_url, "--threads", "1"):
        eventually(lambda: client.xlen(STREAM) == 0, within_s=40)

    assert ran(client) == Counter([1])


def test_source_change_reloads_workers_and_middleware_processes(
    redis_url: str, client: Any, producer: RedisStreamsBroker, tmp_path: Path
) -> None:
    source = tmp_path / "changed.py"
    source.touch()
    with command(redis_url, "--threads", "1", "--watch", str(tmp_path), "--watch-use-polling"):
        producer.enqueue(message("work", 1))
        eventually(lambda: client.llen("ran") == 1, within_s=40)
        eventually(lambda: has_started(client, 1), within_s=40)

        source.write_text("# another\n")
        eventually(lambda: client.llen("forked") > 1, within_s=40)
        producer.enqueue(message("work", 2))
        eventually(lambda: client.llen("ran") == 2, within_s=40)


def test_greenlet_that_never_yields_keeps_its_lease(redis_url: str, client: Any, producer: RedisStreamsBroker) -> None:
    with command(redis_url, "--threads", "8", name="dramatiq-gevent"):
        producer.enqueue_many([message("work" if n % 10 else "fail_once", n) for n in range(200)])
        eventually(lambda: client.llen("ran") == 200, within_s=60)
        producer.enqueue(message("compute", 5))  # two leases and a half
        eventually(lambda: client.llen("ran") == 201 and client.xlen(STREAM) == 0, within_s=60)

    assert ran(client) == Counter([*range(200), -1])
    assert producer.counters("default")["recovered"] == 0


def test_worker_that_boots_before_redis_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("dramatiq_restart_delay", "300")
    server, log = EmbeddedRedis(directory=tmp_path, options={"appendonly": "no"}), tmp_path / "log"
    with stopped_at_the_end(server), command(server.url, log=log) as process:
        eventually(lambda: "Connection refused" in log.read_text(), within_s=60)
        before = workers_of(process)

        server.start()

        assert runs_a_job(server.url)
        assert workers_of(process) == before


def test_worker_that_boots_while_redis_loads_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("dramatiq_restart_delay", "300")
    monkeypatch.setattr("tasks.embedded_redis.START_TIMEOUT_S", 90)
    # loading takes two minutes unless the setting changes meanwhile
    server, log = EmbeddedRedis(directory=tmp_path, options={"key-load-delay": "500"}), tmp_path / "log"
    with stopped_at_the_end(server), redis.Redis.from_url(server.url) as client:
        server.start()
        client.eval("for i = 1, 200000 do redis.call('SET', 'key-' .. i, 'x') end", 0)
        server.kill()
        with command(server.url, log=log) as process:

            def end_loading_once_the_worker_met_it() -> None:
                eventually(lambda: "is loading the dataset" in log.read_text(), within_s=60)
                client.config_set("key-load-delay", 0)

            meeting = threading.Thread(target=end_loading_once_the_worker_met_it)
            meeting.start()
            server.start()
            meeting.join()
            before = workers_of(process)

            assert runs_a_job(server.url)
            assert workers_of(process) == before


@contextmanager
def stopped_at_the_end(server: EmbeddedRedis) -> Iterator[None]:
    try:
        yield
    finally:
        server.stop()


def workers_of(process: subprocess.Popen[bytes]) -> set[int]:
    """Return the pids of the command's descendants; while these stay the same, none was replaced."""
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
