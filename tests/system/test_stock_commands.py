"""The stock commands of Dramatiq and periodiq run our worker and scheduler."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from tasks.contracts import EMBEDDING_INGESTED, GROUP, stream_of
from tasks.redis_access.embedded import EmbeddedRedis
from tests.support import eventually
from tests.system.events import flat_event, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

WORKER = ["dramatiq", "tasks.worker", "--threads", "2"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(options={"appendonly": "no"}) as server:
        yield server


@contextmanager
def running(command: list[str], *, redis_url: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    environ = {**os.environ, "REDIS_URL": redis_url, "WORKER_METRICS_PORT": str(free_port()), "SPLOOT_LEASE_MS": "2000"}
    with log.open("wb") as output:
        script = Path(sys.executable).with_name(command[0])
        process = subprocess.Popen([script, *command[1:]], env=environ, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def test_stock_worker_and_scheduler_run_and_runbook_commands_work(server: EmbeddedRedis, tmp_path: Path) -> None:
    log, stream = tmp_path / "worker.log", stream_of(EMBEDDING_INGESTED)
    with (
        redis.Redis.from_url(server.url) as client,
        running(["periodiq", "tasks.worker"], redis_url=server.url, log=tmp_path / "scheduler.log") as scheduler,
        running([*WORKER, "--processes", "2"], redis_url=server.url, log=log) as worker,
    ):
        for number in range(50):
            client.xadd(stream, flat_event(pet_id=7, number=number))

        eventually(lambda: client.xinfo_stream(stream)["groups"] == 1, within_s=120)
        pending = client.xpending(stream, GROUP)
        consumers = client.xinfo_consumers(stream, GROUP)
        eventually(partial(_has_done, client, 50), within_s=120)
        # the scheduler enqueues a job when it starts, unless it starts in the last seconds of a minute
        eventually(lambda: client.hgetall("sploot:backlog"), within_s=120)

        assert set(pending) == {"pending", "min", "max", "consumers"}
        assert all({"name", "pending", "idle"} <= consumer.keys() for consumer in consumers)
        assert worker.poll() is None, log.read_text()
        assert scheduler.poll() is None, (tmp_path / "scheduler.log").read_text()

    assert worker.returncode == 0, log.read_text()


@pytest.mark.parametrize("command", [WORKER, ["sploot-cluster", "worker", "--threads", "2"]], ids=["stock", "ours"])
def test_worker_reloads_on_sighup_and_then_runs_jobs(server: EmbeddedRedis, tmp_path: Path, command: list[str]) -> None:
    log, stream = tmp_path / "worker.log", stream_of(EMBEDDING_INGESTED)
    with (
        redis.Redis.from_url(server.url) as client,
        running([*command, "--processes", "1"], redis_url=server.url, log=log) as worker,
    ):
        eventually(partial(_has_begun, log, 1), within_s=120)
        worker.send_signal(signal.SIGHUP)
        eventually(partial(_has_begun, log, 2), within_s=120)
        client.xadd(stream, flat_event(pet_id=7, number=0))
        eventually(partial(_has_done, client, 1), within_s=120)

        assert worker.poll() is None, log.read_text()

    assert worker.returncode == 0, log.read_text()


def test_worker_runs_jobs_and_stops_when_no_process_reads_its_log(server: EmbeddedRedis) -> None:
    stream, n = stream_of(EMBEDDING_INGESTED), 400
    environ = {**os.environ, "REDIS_URL": server.url, "WORKER_METRICS_PORT": str(free_port())}
    environ |= {"SPLOOT_LOG_LEVEL": "DEBUG", "SPLOOT_LEASE_MS": "2000"}
    command = [str(Path(sys.executable).with_name("sploot-cluster")), "worker", "--processes", "1", "--threads", "2"]
    with redis.Redis.from_url(server.url) as client:
        worker = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert worker.stdout is not None
        try:
            # a pipe holds the log lines of only about fifty events
            for number in range(n):
                client.xadd(stream, flat_event(pet_id=7, number=number))
            eventually(partial(_has_done, client, n), within_s=120)

            worker.send_signal(signal.SIGTERM)

            assert worker.wait(timeout=60) == 0
        finally:
            worker.kill()
            worker.wait()
            worker.stdout.close()


def _has_done(client: Any, n: int) -> bool:
    return bool(client.xlen(stream_of(EMBEDDING_INGESTED)) == 0 and client.llen("{pet:7}:media") == n)


def _has_begun(log: Path, times: int) -> bool:
    """Return whether worker and exposition process have started this many times; until then a signal is lost."""
    text = log.read_text()
    return text.count("is ready for action") >= 2 * times and text.count("serving metrics") >= times
