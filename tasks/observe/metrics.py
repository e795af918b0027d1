"""Counters of worker processes: every name, label and bucket in one place. ``backlog`` samples the queues.

Dramatiq runs several worker processes, and one process answers ``/metrics`` for all of them. Each writes its values to
files in one directory, which the answering process adds up. This is prometheus_client's multiprocess mode, which must
be chosen before its first import, hence :func:`share_values`. Counts of dead processes are kept, so no counter falls
while its master lives; their in-progress gauges are removed, see :func:`forget_the_dead`.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from bisect import bisect_left
from collections import Counter as Multiset
from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

from broker.identity import is_running, started_at
from sploot_cluster.decide.corrections import VERBS
from tasks.contracts import CLUSTER_MAINTENANCE, QUEUE_OF
from tasks.observe.job_facts import NO_BACKEND
from tasks.retry_policy import POLICIES

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Histogram

    from sploot_cluster.engine.backends import Fallback
    from sploot_cluster.store.cold.moves import Moved

Outcome = Literal["success", "error", "invalid", "timeout"]
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)

# Why a correction was refused: it names something that does not exist, items have moved since its sender read the pet,
# it is already undone, or another field does not fit the pet.
Refusal = Literal["unknown", "stale", "done", "unfit"]
REFUSALS: Final[tuple[Refusal, ...]] = get_args(Refusal)

BACKENDS: Final = ("faiss", "hdbscan_cpu", "hdbscan_gpu", NO_BACKEND)
# actor -> verb of its correction
OPERATIONS: Final = {request.actor_name: verb for verb, request in VERBS.items()}

# Histogram buckets. An arrival takes milliseconds, a recluster of 50,000 items half a minute. Alerts and the dashboard
# need the buckets of 3, 5 and 8 seconds.
DURATION_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 8, 15, 30, 60, 120, 300)

# The freshness objective needs the bucket of 5 seconds.
WAIT_BUCKETS_S: Final = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 15, 60, 300, 900, 3600)

# Queues whose jobs are not about pets. If the samples of the queues were counted, they would dominate the rates.
UNCOUNTED_QUEUES: Final = frozenset({CLUSTER_MAINTENANCE})

VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
PREFIX: Final = "sploot-cluster-metrics-"


def share_values() -> Path | None:
    """Share this process's values with the other processes of its master, and return the directory that holds them.

    Return None if the process has no master. Call this before prometheus_client is imported. The directory is named
    after the master; directories of masters that have ended are removed.
    """
    master = multiprocessing.parent_process()
    if master is None or master.pid is None:
        return None
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid, _, born = left.name.removeprefix(PREFIX).partition("-")
        if not pid.isdecimal() or (started_at(int(pid)) or "") != born:
            shutil.rmtree(left, ignore_errors=True)
    directory = _directory_of(master.pid)
    directory.mkdir(mode=0o700, exist_ok=True)
    os.environ[VARIABLE] = str(directory)
    from prometheus_client import values

    # By default, the library makes a system call for the process id at every count, which takes as long as counting.
    values.ValueClass = values.MultiProcessValue(_ProcessId())  # type: ignore[no-untyped-call]  # untyped in the library
    return directory


class _ProcessId:
    """A function that returns the id of this process, also after a fork, without a system call."""

    def __init__(self) -> None:
        self._note()
        os.register_at_fork(after_in_child=self._note)

    def __call__(self) -> int:
        return self._pid

    def _note(self) -> None:
        self._pid = os.getpid()


def forget_the_dead(directory: Path) -> None:
    """Delete the gauges of dead processes: a killed process cannot reset its in-progress gauge."""
    for values in directory.glob("gauge_live*_*.db"):
        if not is_running(int(values.stem.rpartition("_")[2])):
            values.unlink(missing_ok=True)


class JobMetrics:
    """The counters of one process. Every series exists from the start, with the value 0, because alerts need it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

        disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped in the library
        self.jobs = Counter(
            "cluster_jobs_total",
            "Finished attempts by outcome: success, error (retried), invalid (not retried), timeout.",
            ["outcome", "backend"],
            registry=registry,
        )
        self.durations = Histogram(
            "cluster_job_duration_seconds",
            "Duration of attempts, without waiting time; of a job in a batch, that of the batch.",
            ["backend"],
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self.by_actor = Counter(
            "cluster_actor_jobs_total",
            "The attempts of cluster_jobs_total by actor, the kind of the job; messages that no actor ran are missing.",
            ["actor", "outcome"],
            registry=registry,
        )
        self.waits = Histogram(
            "cluster_job_wait_seconds",
            "Time from when a job was enqueued to the start of its first attempt; a delay or its batch included.",
            ["actor"],
            buckets=WAIT_BUCKETS_S,
            registry=registry,
        )
        self.freshness = Histogram(
            "cluster_item_freshness_seconds",
            "Time from the arrival of an item's event to its assignment, retries included. The objective is 5 s.",
            buckets=WAIT_BUCKETS_S,
            registry=registry,
        )
        self.feedback = Counter(
            "cluster_feedback_operations_total",
            "Finished attempts of labellers' corrections, by outcome.",
            ["operation", "outcome"],
            registry=registry,
        )
        self.refused = Counter(
            "cluster_requests_refused_total",
            "Corrections that did not fit the pet any more when they ran; they changed nothing and are not failures.",
            ["operation", "reason"],
            registry=registry,
        )
        self.retries = Counter(
            "cluster_job_retries_total", "Attempts that failed and will be retried.", ["actor"], registry=registry
        )
        self.cold_moves = Counter(
            "cluster_cold_moves_total",
            "Moves of pets' vectors out of Redis and back, by outcome; error: the storage did not answer, or an object "
            "is missing or damaged, also in a read. All are 0 unless SPLOOT_COLD_STORE is set.",
            ["direction", "outcome"],
            registry=registry,
        )
        self.fallbacks = Counter(
            "cluster_backend_fallbacks_total",
            "Jobs that fell back from the wanted backend to another one.",
            ["wanted", "used"],
            registry=registry,
        )
        self.in_progress = Gauge(
            "cluster_jobs_in_progress",
            "Attempts running now, including samples of the queues; a batch counts as one.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.threads = Gauge(
            "cluster_worker_threads",
            "Worker threads: the maximum number of concurrent attempts.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.log_lines_dropped = Counter(
            "cluster_log_lines_dropped_total",
            "Log lines dropped because their reader had stopped reading.",
            registry=registry,
        )
        for backend in BACKENDS:
            self.durations.labels(backend)
        for outcome, backend in product(OUTCOMES, BACKENDS):
            self.jobs.labels(outcome, backend)
        for operation, outcome in product(OPERATIONS.values(), OUTCOMES):
            self.feedback.labels(operation, outcome)
        for operation, reason in product(OPERATIONS.values(), REFUSALS):
            self.refused.labels(operation, reason)
        for actor in POLICIES:
            self.retries.labels(actor)
            if QUEUE_OF[actor] not in UNCOUNTED_QUEUES:
                self.waits.labels(actor)
                for outcome in OUTCOMES:
                    self.by_actor.labels(actor, outcome)
        self.fallbacks.labels("hdbscan_gpu", "hdbscan_cpu")
        for direction, moved in product(("out", "back"), ("success", "error")):
            self.cold_moves.labels(direction, moved)


def observe_all(histogram: Histogram, values: Sequence[float]) -> None:
    """Observe many values in about the time that one takes: each part of a histogram is written once.

    prometheus_client has no such method, so this adds to the parts that ``Histogram.observe`` adds to.
    """
    bounds, counts = histogram._upper_bounds, Multiset[int]()
    for value in values:
        counts[bisect_left(bounds, value)] += 1
    histogram._sum.inc(sum(values))
    for at, n in counts.items():
        histogram._buckets[at].inc(n)


@cache
def job_metrics() -> JobMetrics:
    """Return the counters of this process, in prometheus_client's default registry."""
    from prometheus_client import REGISTRY

    return JobMetrics(REGISTRY)


def count_move(moved: Moved) -> None:
    """Count a move between Redis and the cold store, in this process."""
    job_metrics().cold_moves.labels(moved.direction, "success" if moved.is_done else "error").inc()


def count_fallback(fallback: Fallback) -> None:
    """Count a fallback to another backend, in this process."""
    job_metrics().fallbacks.labels(fallback.wanted, fallback.used).inc()


def count_dropped_log_lines(n: int) -> None:
    """Count log lines that this process dropped. A master counts nothing else; it writes to its workers' directory."""
    of_master = _directory_of(os.getpid())
    if VARIABLE not in os.environ and of_master.is_dir():
        os.environ[VARIABLE] = str(of_master)
    job_metrics().log_lines_dropped.inc(n)


def _directory_of(master: int) -> Path:
    # the name includes the start time of the master, because pids are reused
    return Path(tempfile.gettempdir(), f"{PREFIX}{master}-{started_at(master) or ''}")
