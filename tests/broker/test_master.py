"""Worker processes of Dramatiq's command end with the master that started them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import dramatiq
import psutil
import pytest
import redis

from broker import RedisStreamsBroker, master
from tests.broker.processes import command, is_keeper
from tests.broker.test_dramatiq_command import STREAM, message, taken
from tests.support import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

GRACE = "MASTER_GRACE_MS"


@pytest.fixture
def client(redis_client: redis.Redis) -> Any:
    return redis_client


@pytest.fixture
def producer(redis_url: str) -> Iterator[RedisStreamsBroker]:
    broker = RedisStreamsBroker(redis_url, middleware=[])
    yield broker
    broker.close()


def workers_of(master: subprocess.Popen[bytes], client: Any) -> list[psutil.Process]:
    """Return the workers and their keepers, without the processes that middleware or ``spawn`` started."""
    forked = {int(pid) for pid in client.lrange("forked", 0, -1)}
    return [
        one
        for one in psutil.Process(master.pid).children(recursive=True)
        if one.pid not in forked and "resource_tracker" not in " ".join(one.cmdline())
    ]


def have_ended(processes: list[psutil.Process]) -> bool:
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)


@pytest.mark.parametrize(
    ("n_workers", "options"), [(2, ()), (1, ("--use-spawn",))], ids=["two forked", "a spawned one"]
)
def test_workers_of_a_killed_master_end_and_their_jobs_run_elsewhere(
    redis_url: str,
    client: Any,
    producer: RedisStreamsBroker,
    n_workers: int,
    options: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of the workers is stopped, as by a debugger. It still ends."""
    monkeypatch.setenv(GRACE, "500")
    producer.enqueue_many([message("work", number, 60) for number in range(4)])
    with command(redis_url, "--threads", "1", "--processes", str(n_workers), *options) as master:
        eventually(lambda: client.llen("began") == n_workers and client.llen("forked"), within_s=60)
        eventually(lambda: len(workers_of(master, client)) >= 2 * n_workers)  # each worker has a keeper
        workers = workers_of(master, client)
        next(one for one in workers if not is_keeper(one)).send_signal(signal.SIGSTOP)
        master.kill()
        master.wait()

        eventually(lambda: have_ended(workers), within_s=60)

    assert client.llen("ran") == 0
    assert sorted(delivery.args[0] for delivery in taken(producer, 4)) == [0, 1, 2, 3]


def test_job_ends_in_the_grace_period_but_cannot_write_to_the_masters_log(
    redis_url: str, client: Any, producer: RedisStreamsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(GRACE, "60000")
    producer.enqueue(message("write_without_master", 1))
    with command(redis_url, "--threads", "1", "--processes", "2") as master:
        eventually(lambda: client.llen("began") == 1 and client.llen("forked"), within_s=60)
        workers = workers_of(master, client)
        for pid in client.lrange("forked", 0, -1):
            os.kill(
                int(pid), signal.SIGKILL
            )  # the fork has the worker's file descriptors, and would keep the log pipe open
        master.kill()
        master.wait()

        eventually(lambda: have_ended(workers), within_s=60)

    assert client.lrange("wrote", 0, -1) == [b"BrokenPipeError"]
    assert client.xlen(STREAM) == 0
    assert producer.counters("default")["recovered"] == 0


def test_worker_ends_if_its_master_ends_during_boot(
    redis_url: str, client: Any, producer: RedisStreamsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it boots, the worker waits for its dead master in Dramatiq's code, and would read messages during that."""
    monkeypatch.setenv(GRACE, "600000")
    monkeypatch.setenv("BOOT_WITHOUT_MASTER", "1")
    with command(redis_url, "--threads", "1") as master:
        eventually(lambda: client.llen("booting"), within_s=60)
        worker = psutil.Process(int(client.lindex("booting", 0)))
        master.kill()
        master.wait()

        eventually(lambda: have_ended([worker]), within_s=60)

        eventually(lambda: not client.zcard("{streams:default}:consumers"))


def test_workers_outlive_their_master_without_a_grace_period(
    redis_url: str, client: Any, producer: RedisStreamsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(GRACE, "")
    with command(redis_url, "--threads", "1") as master:
        eventually(lambda: client.llen("forked"), within_s=60)
        workers = workers_of(master, client)
        master.kill()
        master.wait()
        producer.enqueue(message("work", 1, 1))

        eventually(lambda: client.lrange("ran", 0, -1) == [b"1"], within_s=60)

        assert not have_ended(workers)


def test_worker_not_started_by_the_command_has_no_master(redis_url: str) -> None:
    broker = RedisStreamsBroker(redis_url, middleware=[], master_grace_ms=0)
    broker.declare_queue("default")
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
    worker.start()
    worker.stop()
    broker.close()

    assert master.of_this_process() is None
