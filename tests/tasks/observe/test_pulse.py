"""Liveness: every worker process makes progress; nothing else matters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import dramatiq
import pytest
import redis

from broker import RedisStreamsBroker
from tasks.contracts import CLUSTER_EMBEDDING, EMBEDDING_INGESTED, GROUP, QUEUES, stream_of
from tasks.observe.exposition import why_not_ready
from tasks.observe.pulse import BOOT_S, KeepPulse, Pulse, pulses, why_not_alive
from tasks.redis_access.embedded import EmbeddedRedis
from tasks.retry_policy import LIMIT_GRACE_S
from tests.support import eventually
from tests.system.events import free_port

HUNG_AFTER_S = 60.0


def verdict(*found: Pulse, up_for_s: float = 1_000.0, now_s: float = 500.0) -> str | None:
    return why_not_alive(found, hung_after_s=HUNG_AFTER_S, up_for_s=up_for_s, now_s=now_s)


def test_pod_is_alive_while_every_pulse_is_recent() -> None:
    fresh, old = Pulse(1, 499.0, ["q"]), Pulse(2, 500.0 - HUNG_AFTER_S - 1, ["q"])

    assert verdict(fresh, fresh) is None
    assert verdict(fresh, old) == "worker process 2 has made no progress for 61 s"


def test_pod_is_not_alive_when_a_pulse_reports_a_stuck_process() -> None:
    found = Pulse(3, 499.0, ["q"], stuck="a worker thread has ended")

    assert verdict(found) == "worker process 3: a worker thread has ended"


def test_pod_without_pulses_is_alive_only_during_boot() -> None:
    assert verdict(up_for_s=BOOT_S - 1) is None
    assert verdict(up_for_s=BOOT_S + 1) == f"no worker process has booted within {BOOT_S + 1:.0f} s"


class Hours:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.skipped = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.skipped


@contextmanager
def process_running(
    url: str, tmp_path: Path, clock: Hours, run: Any = lambda **_: None
) -> Iterator[tuple[RedisStreamsBroker, dramatiq.Worker, KeepPulse]]:
    keeper = KeepPulse(tmp_path, hung_after_s=HUNG_AFTER_S, clock=clock)
    broker = RedisStreamsBroker(url, group=GROUP, middleware=[keeper], lease_ms=2_000)
    dramatiq.actor(actor_name=CLUSTER_EMBEDDING, queue_name=EMBEDDING_INGESTED, broker=broker)(run)
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
    worker.start()
    try:
        yield broker, worker, keeper
    finally:
        worker.stop()
        broker.close()


def test_pulse_names_queues_and_is_removed_at_shutdown(redis_url: str, tmp_path: Path) -> None:
    with process_running(redis_url, tmp_path, Hours()):
        (found,) = pulses(tmp_path)

    assert (found.pid, found.queues, found.stuck) == (os.getpid(), [EMBEDDING_INGESTED], None)
    assert pulses(tmp_path) == []


def test_job_far_beyond_its_time_limit_is_reported_as_stuck(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, goes_on, began = Hours(), Event(), Event()

    def run(**_: Any) -> None:
        began.set()
        assert goes_on.wait(60)

    with process_running(redis_url, tmp_path, clock, run) as (broker, worker, keeper):
        message: dramatiq.Message[Any] = dramatiq.Message(
            EMBEDDING_INGESTED, CLUSTER_EMBEDDING, (), {}, {"time_limit": 600_000}, message_id="long"
        )
        broker.enqueue(message)
        assert began.wait(30)
        clock.skipped = 600 + LIMIT_GRACE_S - 5
        # consumers use the same clock and would count as stuck first
        monkeypatch.setattr(broker, "consumers_moved_at", dict)
        keeper.write(broker, worker)
        within = pulses(tmp_path)[0].stuck
        clock.skipped += 10
        keeper.write(broker, worker)
        beyond = pulses(tmp_path)[0].stuck
        goes_on.set()

    assert within is None
    assert beyond is not None
    assert beyond.startswith("cluster_embedding long has run for 66")


@pytest.mark.slow
def test_consumer_that_stops_fetching_messages_is_reported_as_stuck(redis_url: str, tmp_path: Path) -> None:
    clock = Hours()
    with process_running(redis_url, tmp_path, clock) as (broker, worker, keeper):
        consumer = worker.consumers[EMBEDDING_INGESTED]
        consumer.pause()
        eventually(lambda: consumer.paused_event.is_set())  # Dramatiq's own pause, during which it asks for no messages
        clock.skipped = HUNG_AFTER_S + 5
        keeper.write(broker, worker)
        (found,) = pulses(tmp_path)
        consumer.resume()

    assert found.stuck is not None
    assert found.stuck.startswith("the consumer of embedding.ingested has not fetched messages for 6")


def test_redis_outage_is_not_reported_as_stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dramatiq.worker.CONSUMER_RESTART_DELAY_SECS", 0.1)
    with (
        EmbeddedRedis(directory=tmp_path, unix_socket=True, options={"appendonly": "no"}) as server,
        process_running(server.url, tmp_path, Hours()) as (broker, worker, keeper),
    ):
        before = broker.consumers_moved_at()[EMBEDDING_INGESTED]
        server.kill()
        # Dramatiq recreates its consumer again and again, in vain
        eventually(lambda: broker.consumers_moved_at()[EMBEDDING_INGESTED] > before + 0.5, within_s=30)
        keeper.write(broker, worker)

        assert pulses(tmp_path)[0].stuck is None
        assert "Redis does not answer" in (why_not_ready(redis.Redis.from_url(server.url)) or "")


def test_queue_without_its_consumer_group_is_not_ready(redis_client: redis.Redis) -> None:
    assert why_not_ready(redis_client, [EMBEDDING_INGESTED]) == (
        f"{stream_of(EMBEDDING_INGESTED)} has no group {GROUP}; workers create it when they start"
    )
    redis_client.xgroup_create(stream_of(EMBEDDING_INGESTED), "of-somebody-else", mkstream=True)
    assert why_not_ready(redis_client, [EMBEDDING_INGESTED]) is not None
    redis_client.xgroup_create(stream_of(EMBEDDING_INGESTED), GROUP)
    assert why_not_ready(redis_client, [EMBEDDING_INGESTED]) is None


@pytest.mark.slow
def test_pod_with_a_stopped_process_is_not_alive_until_it_resumes(tmp_path: Path) -> None:
    with EmbeddedRedis(options={"appendonly": "no"}) as server, _pod(server.url, tmp_path) as port:
        eventually(lambda: _get(port, "/readyz")[0] == 200, within_s=60)
        eventually(lambda: _get(port, "/healthz") == (200, "ok"), within_s=60)
        (found,) = pulses(next(tmp_path.glob("sploot-cluster-metrics-*")))

        os.kill(found.pid, signal.SIGSTOP)
        try:
            reason = eventually(lambda: _says(port, "/healthz", 503), within_s=60)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                assert b"\ncluster_worker_stuck 1.0\n" in answer.read()
        finally:
            os.kill(found.pid, signal.SIGCONT)
        eventually(lambda: _get(port, "/healthz")[0] == 200, within_s=30)

        assert reason.startswith(f"worker process {found.pid} has made no progress for ")
        with redis.Redis.from_url(server.url) as client:
            for queue in QUEUES:
                client.xgroup_destroy(stream_of(queue), GROUP)
        # workers recreate the groups; until then the pod is not ready, but alive
        eventually(lambda: _get(port, "/readyz")[0] == 200, within_s=60)
        server.kill()
        reason = eventually(lambda: _says(port, "/readyz", 503), within_s=30)
        assert "Redis does not answer" in reason
        eventually(lambda: _get(port, "/healthz") == (200, "ok"), within_s=60)


@contextmanager
def _pod(redis_url: str, tmp_path: Path) -> Iterator[int]:
    port = free_port()
    environ = {
        **os.environ,
        "REDIS_URL": redis_url,
        "WORKER_METRICS_PORT": str(port),
        "SPLOOT_HUNG_AFTER_S": "5",
        "TMPDIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "tasks.cli", "worker", "--processes", "1", "--threads", "2"]
    with (tmp_path / "pod.log").open("wb") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(timeout=60)


def _get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, json.load(answer)["status"]
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["status"]
    except OSError as error:
        return 0, str(error)


def _says(port: int, path: str, status: int) -> str:
    """Return the text of the response if it has this status, else an empty string."""
    answered, reason = _get(port, path)
    return reason if answered == status else ""
