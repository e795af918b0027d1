"""A worker pod under the stock command: metrics of all its processes, probes and logs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from broker import RedisStreamsBroker
from sploot_cluster import __version__
from tasks.client import ClusterTasks
from tasks.contracts import EMBEDDING_INGESTED, GROUP
from tasks.observe.exposition import expose, why_not_ready
from tasks.redis_access.embedded import EmbeddedRedis
from tasks.settings import Settings
from tests.support import eventually
from tests.system.events import free_port


@contextmanager
def pod(redis_url: str, tmp_path: Path, port: int, *, processes: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``dramatiq tasks.worker``; the log is ``pod.log``."""
    environ = {**os.environ, "REDIS_URL": redis_url, "WORKER_METRICS_PORT": str(port), "SPLOOT_LEASE_MS": "2000"}
    script = str(Path(sys.executable).with_name("dramatiq"))
    command = [script, "tasks.worker", "--processes", str(processes), "--threads", "2"]
    with (tmp_path / "pod.log").open("wb") as log:
        process = subprocess.Popen(command, env=environ | {"TMPDIR": str(tmp_path)}, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def head(port: int, path: str) -> tuple[int, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method="HEAD")
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert int(answer.headers["Content-Length"]) > 0
        return answer.status, answer.fp.read()


def samples(port: int) -> dict[tuple[str, str], float]:
    """Return the sum of each (name, outcome) over all other labels, or an empty dict if the pod does not respond."""
    totals: dict[tuple[str, str], float] = {}
    status, text = get(port, "/metrics")
    for family in text_string_to_metric_families(text if status == 200 else ""):
        for sample in family.samples:
            key = sample.name, sample.labels.get("outcome", "")
            totals[key] = totals.get(key, 0) + sample.value
    return totals


@pytest.mark.slow
def test_pod_metrics_cover_all_processes_including_killed_ones(tmp_path: Path) -> None:
    port = free_port()
    with (
        EmbeddedRedis(options={"appendonly": "no"}) as server,
        ClusterTasks(server.url) as tasks,
        redis.Redis.from_url(server.url) as client,
        pod(server.url, tmp_path, port, processes=2) as master,
    ):
        eventually(lambda: get(port, "/healthz")[0] == 200, within_s=60)
        assert get(port, "/readyz")[0] == 200
        assert get(port, "/nothing")[0] == 404
        assert head(port, "/metrics") == (200, b"")
        names = {name for name, _ in samples(port)}
        assert {"media_cluster_pending_jobs", "cluster_jobs_total", "cluster_last_noise_count"} <= names
        eventually(lambda: samples(port)["cluster_worker_threads", ""] == 4, within_s=60)

        events = [
            {"pet_id": 1, "media_id": f"m{number}", "model": "clip@1", "embedding": [1.0, number]}
            for number in range(40)
        ]
        tasks.ingest_many(events)
        eventually(lambda: samples(port)["cluster_jobs_total", "success"] >= 40, within_s=60)

        broker = RedisStreamsBroker(client=client, group=GROUP, middleware=[])
        pids = {int(consumer.name.split(":")[1]) for consumer in broker.stats(EMBEDDING_INGESTED).consumers}
        assert len(pids) == 2
        os.kill(pids.pop(), signal.SIGKILL)
        counts = [40.0]
        while counts[-1] >= 0:  # until the master ends because one of its processes died
            counts.append(samples(port).get(("cluster_jobs_total", "success"), -1.0))

        assert set(counts) <= {40.0, -1.0}
        assert master.wait(timeout=30) != 0
        broker.close()

    log = (tmp_path / "pod.log").read_text().splitlines()
    jobs = [json.loads(line) for line in log if '"cluster_embedding"' in line]
    assert len(jobs) == 40
    assert {job["outcome"] for job in jobs} == {"success"}
    assert list(tmp_path.glob("sploot-cluster-metrics-*")) == []


# A module with a correction that fails after the pod received SIGTERM.
SLOW_MODULE = """
import time
import dramatiq
from tasks.worker import broker

@dramatiq.actor(queue_name="cluster.feedback", actor_name="merge_clusters", max_retries=0)
def merge_clusters(**_):
    open("begun", "w").close()
    time.sleep(1)
    raise ValueError("failed while the pod drained")
"""


def failed_corrections(port: int) -> float:
    """Return the number of failed corrections, or -1 if the pod does not respond."""
    status, text = get(port, "/metrics")
    if status != 200:
        return -1
    families = {family.name: family for family in text_string_to_metric_families(text)}
    found = families["cluster_feedback_operations"].samples
    return sum(sample.value for sample in found if sample.labels["outcome"] != "success")


@pytest.mark.slow
def test_failure_of_a_job_during_drain_is_scraped(tmp_path: Path) -> None:
    port = free_port()
    # the stock actor is replaced before the worker starts
    (tmp_path / "slow_pod.py").write_text(
        SLOW_MODULE.replace("@dramatiq.actor", 'broker.actors.pop("merge_clusters")\n\n@dramatiq.actor')
    )
    with EmbeddedRedis(options={"appendonly": "no"}) as server, ClusterTasks(server.url) as tasks:
        environ = {**os.environ, "REDIS_URL": server.url, "WORKER_METRICS_PORT": str(port), "TMPDIR": str(tmp_path)}
        environ["PYTHONPATH"] = f"{tmp_path}:{Path(__file__).parents[3]}"
        command = [str(Path(sys.executable).with_name("dramatiq")), "slow_pod", "--processes", "1", "--threads", "2"]
        with (tmp_path / "pod.log").open("wb") as log:
            master = subprocess.Popen(command, env=environ, stdout=log, stderr=log, cwd=tmp_path)
        try:
            eventually(lambda: failed_corrections(port) == 0, within_s=60)
            tasks.merge(1, [1, 2])
            eventually(lambda: (tmp_path / "begun").exists(), within_s=30)

            master.terminate()
            seen: list[float] = []

            def is_over() -> bool:
                seen.append(failed_corrections(port))
                return seen[-1] < 0

            eventually(is_over, within_s=60, every_s=0.1)
            assert master.wait(timeout=60) == 0
        finally:
            master.kill()
            master.wait(timeout=30)

    assert max(seen) == 1, seen
    assert list(tmp_path.glob("sploot-cluster-metrics-*")) == []


@pytest.mark.slow
def test_pod_retries_a_metrics_port_in_use_and_closes_it_with_its_workers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, EmbeddedRedis(options={"appendonly": "no"}) as server:
        port = taken.getsockname()[1]
        with redis.Redis.from_url(server.url) as client, pod(server.url, tmp_path, port, processes=1) as master:
            eventually(lambda: "WORKER_METRICS_PORT" in (tmp_path / "pod.log").read_text(), within_s=60)
            with ClusterTasks(server.url) as tasks:
                tasks.ingest(pet_id=1, media_id="m", model="clip@1", embedding=[1.0, 0.0])
            eventually(lambda: client.exists("{pet:1}:meta"), within_s=30)

            taken.close()

            eventually(lambda: get(port, "/healthz")[0] == 200, within_s=30)

            master.terminate()  # nothing scrapes the pod

            assert master.wait(timeout=30) == 0
            assert get(port, "/healthz")[0] == 0


def test_pod_without_redis_is_not_ready_and_exposes_no_samples() -> None:
    client = redis.Redis.from_url(f"redis://127.0.0.1:{free_port()}", retry=None)

    body, media_type = expose(client, Settings(ingest_rollout_percent=25), with_jobs=False)("")

    assert "Redis does not answer" in (why_not_ready(client) or "")
    assert b"media_cluster" not in body
    assert f'cluster_build_info{{version="{__version__}"}} 1.0'.encode() in body
    assert b"cluster_ingest_rollout_percent 25.0" in body
    assert b"cluster_worker_stuck" not in body
    assert media_type.startswith("text/plain")
