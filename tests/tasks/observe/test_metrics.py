"""Metric names that dashboards and alerts rely on; every child exists from the start."""

from __future__ import annotations

import math
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from sploot_cluster.decide.corrections import VERBS
from tasks.contracts import CLUSTER_MAINTENANCE, QUEUE_OF
from tasks.observe.metrics import BACKENDS, OUTCOMES, REFUSALS, JobMetrics, observe_all, share_values
from tasks.retry_policy import POLICIES


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    JobMetrics(registry)
    return registry


def test_metric_names_types_and_labels_match_the_contract(registry: CollectorRegistry) -> None:
    families = {family.name: family for family in registry.collect()}

    assert {name: family.type for name, family in families.items()} == {
        "cluster_jobs": "counter",
        "cluster_job_duration_seconds": "histogram",
        "cluster_actor_jobs": "counter",
        "cluster_job_wait_seconds": "histogram",
        "cluster_item_freshness_seconds": "histogram",
        "cluster_feedback_operations": "counter",
        "cluster_requests_refused": "counter",
        "cluster_job_retries": "counter",
        "cluster_cold_moves": "counter",
        "cluster_backend_fallbacks": "counter",
        "cluster_log_lines_dropped": "counter",
        "cluster_jobs_in_progress": "gauge",
        "cluster_worker_threads": "gauge",
    }
    labels = {name: set(family.samples[0].labels) - {"le"} for name, family in families.items()}
    assert labels == {
        "cluster_jobs": {"outcome", "backend"},
        "cluster_job_duration_seconds": {"backend"},
        "cluster_actor_jobs": {"actor", "outcome"},
        "cluster_job_wait_seconds": {"actor"},
        "cluster_item_freshness_seconds": set(),
        "cluster_feedback_operations": {"operation", "outcome"},
        "cluster_requests_refused": {"operation", "reason"},
        "cluster_job_retries": {"actor"},
        "cluster_cold_moves": {"direction", "outcome"},
        "cluster_backend_fallbacks": {"wanted", "used"},
        "cluster_log_lines_dropped": set(),
        "cluster_jobs_in_progress": set(),
        "cluster_worker_threads": set(),
    }
    assert all(family.documentation for family in families.values())


def test_every_metric_child_starts_at_zero(registry: CollectorRegistry) -> None:
    for backend in BACKENDS:
        assert registry.get_sample_value("cluster_job_duration_seconds_count", {"backend": backend}) == 0
        for outcome in OUTCOMES:
            assert registry.get_sample_value("cluster_jobs_total", {"outcome": outcome, "backend": backend}) == 0
    for operation in VERBS:
        for outcome in OUTCOMES:
            labels = {"operation": operation, "outcome": outcome}
            assert registry.get_sample_value("cluster_feedback_operations_total", labels) == 0
        for reason in REFUSALS:
            labels = {"operation": operation, "reason": reason}
            assert registry.get_sample_value("cluster_requests_refused_total", labels) == 0
    for actor in POLICIES:
        assert registry.get_sample_value("cluster_job_retries_total", {"actor": actor}) == 0
        # maintenance jobs are not counted
        zero = None if QUEUE_OF[actor] == CLUSTER_MAINTENANCE else 0
        assert registry.get_sample_value("cluster_job_wait_seconds_count", {"actor": actor}) == zero
        for outcome in OUTCOMES:
            labels = {"actor": actor, "outcome": outcome}
            assert registry.get_sample_value("cluster_actor_jobs_total", labels) == zero


def test_histogram_buckets_include_the_thresholds_of_alerts(registry: CollectorRegistry) -> None:
    for edge in ("3.0", "5.0", "8.0"):
        labels = {"backend": "faiss", "le": edge}
        assert registry.get_sample_value("cluster_job_duration_seconds_bucket", labels) == 0
    assert registry.get_sample_value("cluster_item_freshness_seconds_bucket", {"le": "5.0"}) == 0


@pytest.mark.parametrize("edge", [3, 5, 8])
def test_p95_comparison_is_exact_at_bucket_edges(edge: float) -> None:
    # as histogram_quantile does: the p95 is above an edge if fewer than 95 % of the durations are at or below it
    rng = np.random.default_rng(95)

    for _ in range(300):
        durations = rng.lognormal(math.log(edge * rng.uniform(0.2, 0.6)), 0.6, size=int(rng.integers(20, 400)))
        registry = CollectorRegistry()
        metrics = JobMetrics(registry)
        for duration in durations:
            metrics.durations.labels("faiss").observe(float(duration))
        labels = {"backend": "faiss", "le": f"{edge:.1f}"}
        below = registry.get_sample_value("cluster_job_duration_seconds_bucket", labels) or 0.0
        rank = math.ceil(0.95 * len(durations))

        assert (below < 0.95 * len(durations)) == (np.sort(durations)[rank - 1] > edge)


def test_no_series_with_creation_times_is_exposed(registry: CollectorRegistry) -> None:
    samples = [
        sample.name
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    ]

    assert samples
    assert [name for name in samples if name.endswith("_created")] == []


_COUNT = """
import multiprocessing, os, signal
from tasks.observe.metrics import share_values

def count(n):
    share_values()
    from tasks.observe.metrics import job_metrics
    count = job_metrics().jobs.labels("success", "faiss")
    count.inc(n)
    if os.fork() == 0:
        count.inc(1000 * n)
        os._exit(0)
    os.wait()
    count.inc(n)  # would overwrite what the child counted, if it had counted in the file of this process
    os.kill(os.getpid(), signal.SIGKILL)  # no cleanup

def tell():
    share_values()
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    print(registry.get_sample_value("cluster_jobs_total", {"outcome": "success", "backend": "faiss"}), flush=True)

if __name__ == "__main__":
    for n in (1, 20, 300):
        process = multiprocessing.Process(target=count, args=(n,))
        process.start()
        process.join()
        teller = multiprocessing.Process(target=tell)
        teller.start()
        teller.join()
"""


def lines_of_a_master(code: str, tmp_path: Path) -> list[str]:
    script = tmp_path / "master.py"
    script.write_text(code)
    environ = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, script], env=environ, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def counts_of_a_master(tmp_path: Path) -> list[str]:
    return lines_of_a_master(_COUNT, tmp_path)


def test_counters_add_up_over_live_dead_and_forked_processes(tmp_path: Path) -> None:
    assert counts_of_a_master(tmp_path) == ["1002.0", "21042.0", "321642.0"]


@pytest.mark.slow
def test_master_starts_at_zero_and_removes_stale_directories(tmp_path: Path) -> None:
    counts_of_a_master(tmp_path)
    (left,) = tmp_path.glob("sploot-cluster-metrics-*")

    again = counts_of_a_master(tmp_path)

    assert again == ["1002.0", "21042.0", "321642.0"]
    assert not left.exists()


_AT_WORK = """
import multiprocessing, os, signal, sys
from tasks.observe.metrics import share_values

def work(ready):
    share_values()
    from tasks.observe.metrics import job_metrics
    job_metrics().in_progress.inc(3)
    job_metrics().threads.set(4)
    ready.set()
    signal.pause()

def tell():
    directory = share_values()
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector
    from tasks.observe.metrics import forget_the_dead
    forget_the_dead(directory)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    print(*(registry.get_sample_value(name) for name in ("cluster_jobs_in_progress", "cluster_worker_threads")))

def show():
    teller = multiprocessing.Process(target=tell)
    teller.start()
    teller.join()

if __name__ == "__main__":
    workers = []
    for _ in range(2):
        ready = multiprocessing.Event()
        workers.append(multiprocessing.Process(target=work, args=(ready,)))
        workers[-1].start()
        ready.wait()
    show()
    os.kill(workers[0].pid, signal.SIGKILL)
    os.waitid(os.P_PID, workers[0].pid, os.WEXITED | os.WNOWAIT)  # not waited for, so it is a zombie
    show()
    workers[0].join()
    show()
    workers[1].terminate()
    workers[1].join()
"""


def test_in_progress_gauge_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    assert lines_of_a_master(_AT_WORK, tmp_path) == ["6.0 8.0", "3.0 4.0", "3.0 4.0"]


def test_process_without_a_master_shares_no_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: None)

    assert share_values() is None


COUNT_AS_MASTER = """
import multiprocessing, os, sys, tempfile
tempfile.tempdir = sys.argv[1]

def work():
    from tasks.observe.metrics import count_dropped_log_lines, share_values
    share_values()
    count_dropped_log_lines(3)

child = multiprocessing.get_context("fork").Process(target=work)
child.start()
child.join()
from tasks.observe.metrics import count_dropped_log_lines
count_dropped_log_lines(4)
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
registry = CollectorRegistry()
MultiProcessCollector(registry)
print(registry.get_sample_value("cluster_log_lines_dropped_total"))
"""


def test_dropped_log_lines_of_a_master_are_counted(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COUNT_AS_MASTER, str(tmp_path)], capture_output=True, text=True, check=True
    )

    assert done.stdout == "7.0\n"


def test_many_values_count_as_if_they_were_observed_one_by_one() -> None:
    together, one_by_one = CollectorRegistry(), CollectorRegistry()
    values = [0.0, 0.005, 0.0078125, 3.0, 3.5, 300.0, 301.0, 0.005]

    observe_all(JobMetrics(together).durations.labels("faiss"), values)

    histogram = JobMetrics(one_by_one).durations.labels("faiss")
    for value in values:
        histogram.observe(value)
    assert generate_latest(together) == generate_latest(one_by_one)
