"""What worker processes count: every name, label and bucket in one place. Samples of queues are in ``backlog``.

Dramatiq's workers are processes, and one process answers ``/metrics`` for all of them. So each writes its values to
files of one directory, which the answering one adds up: prometheus_client's multiprocess mode, chosen when it is
first imported, hence :func:`share_values`. What processes that died have counted stays, so that no counter falls while
its master lives; what they had at work goes, see :func:`forget_the_dead`.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

from tasks.contracts import (
    CLUSTER_MAINTENANCE,
    DISMISS_MEDIA,
    EXCLUDE_MEDIA,
    MERGE_CLUSTERS,
    RESTORE_REVISION,
    SPLIT_CLUSTER,
    UNDO_FEEDBACK,
)
from tasks.observe.job_facts import NO_BACKEND
from tasks.retry_policy import POLICIES

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from sploot_cluster.engine.backends import Fallback

Outcome = Literal["success", "error", "invalid", "timeout"]
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)

BACKENDS: Final = ("faiss", "hdbscan_cpu", "hdbscan_gpu", NO_BACKEND)
OPERATIONS: Final = {
    MERGE_CLUSTERS: "merge",
    SPLIT_CLUSTER: "split",
    EXCLUDE_MEDIA: "exclude",
    DISMISS_MEDIA: "dismiss",
    UNDO_FEEDBACK: "undo",
    RESTORE_REVISION: "restore",
}

# An arrival takes milliseconds, a recluster of 50,000 media half a minute. Alerts and the dashboard ask for exactly
# 3, 5 and 8 seconds.
DURATION_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 8, 15, 30, 60, 120, 300)

# Not jobs of a pet: the samples of the queues would bury what the rates are about.
UNCOUNTED_QUEUES: Final = frozenset({CLUSTER_MAINTENANCE})

VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
PREFIX: Final = "sploot-cluster-metrics-"


def share_values() -> Path | None:
    """Have this process share its values with those of the same master; None for a process without one.

    To be called before prometheus_client is imported. The directory bears the master's name; what masters that have
    ended left behind is removed.
    """
    master = multiprocessing.parent_process()
    if master is None or master.pid is None:
        return None
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid, _, born = left.name.removeprefix(PREFIX).partition("-")
        if not pid.isdecimal() or _born(int(pid)) != born:
            shutil.rmtree(left, ignore_errors=True)
    directory = _directory_of(master.pid)
    directory.mkdir(mode=0o700, exist_ok=True)
    os.environ[VARIABLE] = str(directory)
    return directory


def forget_the_dead(directory: Path) -> None:
    """Remove the gauges of processes that are gone: a killed one cannot take back what it had at work."""
    for values in directory.glob("gauge_live*_*.db"):
        if not is_running(int(values.stem.rpartition("_")[2])):
            values.unlink(missing_ok=True)


class JobMetrics:
    """What one process counts. Every child exists from the start, with 0: alerts must find it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it untyped
        self.jobs = Counter(
            "cluster_jobs_total",
            "Attempts of jobs that ended, by how: success, error (tried again), invalid (never), timeout.",
            ["outcome", "backend"],
            registry=registry,
        )
        self.durations = Histogram(
            "cluster_job_duration_seconds",
            "How long attempts took, without the time that they waited.",
            ["backend"],
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self.feedback = Counter(
            "cluster_feedback_operations_total",
            "Attempts of corrections that people made, by how they ended.",
            ["operation", "outcome"],
            registry=registry,
        )
        self.retries = Counter(
            "cluster_job_retries_total", "Attempts that failed and will be repeated.", ["actor"], registry=registry
        )
        self.fallbacks = Counter(
            "cluster_backend_fallbacks_total",
            "Jobs that wanted one backend and used another.",
            ["wanted", "used"],
            registry=registry,
        )
        self.in_progress = Gauge(
            "cluster_jobs_in_progress",
            "Attempts that run now, samples of the queues included.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.threads = Gauge(
            "cluster_worker_threads",
            "Threads that run jobs: as many attempts can run at once.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.log_lines_dropped = Counter(
            "cluster_log_lines_dropped_total",
            "Log lines that were dropped because their reader had stopped reading.",
            registry=registry,
        )
        for backend in BACKENDS:
            self.durations.labels(backend)
        for outcome, backend in product(OUTCOMES, BACKENDS):
            self.jobs.labels(outcome, backend)
        for operation, outcome in product(OPERATIONS.values(), OUTCOMES):
            self.feedback.labels(operation, outcome)
        for actor in POLICIES:
            self.retries.labels(actor)
        self.fallbacks.labels("hdbscan_gpu", "hdbscan_cpu")


@cache
def job_metrics() -> JobMetrics:
    """Those of this process, in the registry that prometheus_client uses by itself."""
    from prometheus_client import REGISTRY

    return JobMetrics(REGISTRY)


def count_fallback(fallback: Fallback) -> None:
    """Count a backend that was wanted and not used, in this process."""
    job_metrics().fallbacks.labels(fallback.wanted, fallback.used).inc()


def count_dropped_log_lines(n: int) -> None:
    """Count log lines that this process dropped; a master, which counts nothing else, among its workers."""
    of_master = _directory_of(os.getpid())
    if VARIABLE not in os.environ and of_master.is_dir():
        os.environ[VARIABLE] = str(of_master)
    job_metrics().log_lines_dropped.inc(n)


def _directory_of(master: int) -> Path:
    return Path(tempfile.gettempdir(), f"{PREFIX}{master}-{_born(master)}")


def _born(pid: int) -> str:
    """When a process started, in ticks since boot: a pid is used again. Empty where there is no ``/proc``."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def is_running(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except ProcessLookupError:
        return False
    except OSError:
        return True  # there is no /proc
