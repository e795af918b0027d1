"""A generated history of three hours in the project's own metrics, so that every panel has data.

It has two worker pods, uploads and several incidents: a producer sends bad fields, the engine becomes slow until the
backlog grows, a worker is down for a while, the scheduler pauses, and corrections fail. A seed always gives the same
history.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import redis
from prometheus_client import CollectorRegistry, Metric

from sploot_cluster.api.traffic import Answered
from tasks.contracts import (
    CLUSTER_EMBEDDING,
    CLUSTER_FEEDBACK,
    CLUSTER_MAINTENANCE,
    CLUSTER_RECLUSTER,
    EMBEDDING_INGESTED,
    QUEUES,
    RECLUSTER_PET,
)
from tasks.observe.backlog import BACKLOG, TICKED_AT, BacklogCollector
from tasks.observe.figures.noise import NOISE
from tasks.observe.figures.requests import RequestMetrics
from tasks.observe.metrics import JobMetrics
from tasks.redis_access.embedded import EmbeddedRedis
from tests.ops.servers import Prometheus, ServerProblem, prometheus

STEP_S: Final = 15
LENGTH_S: Final = 3 * 3_600
RULES_WITHIN_S: Final = 120.0
# Time for preparing the history. The history ends at the time when it can be served, because alerts end two minutes
# after the last sample.
PREPARED_WITHIN_S: Final = 30.0
ALERTS: Final = Path(__file__).parents[2] / "ops" / "alerts"

# Start and end of each incident, in minutes before the end of the history.
BAD_FIELDS: Final = (140, 128)
SLOW: Final = (100, 76)
ONE_POD: Final = (66, 55)
NO_SCHEDULER: Final = (50, 46)
NOISY: Final = (40, 22)
BAD_CORRECTIONS: Final = (30, 27)
LATE_LETTERS: Final = (12, 9)

# The actors that do work in this history. The empty histograms of the others would be most of its lines.
ACTORS: Final = {CLUSTER_EMBEDDING, RECLUSTER_PET}


@dataclass
class Pod:
    """One worker pod and its metrics."""

    name: str
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.metrics = JobMetrics(self.registry)
        self.metrics.threads.set(8)


class History:
    """A simulated pipeline, in steps of ``STEP_S``."""

    def __init__(self, client: redis.Redis, *, end_s: float, seed: int = 1) -> None:
        self._client, self._end_s = client, end_s
        self._rng = np.random.default_rng(seed)
        self._pods = [Pod("worker-0:9105"), Pod("worker-1:9105")]
        self._queues = CollectorRegistry()
        self._queues.register(BacklogCollector(client))
        self._requests = RequestMetrics()
        self._requests.expect(["get_clusters", "merge_clusters", "get_readiness"])
        self._waiting, self._added, self._dead, self._delayed = 0.0, 184_000.0, 3.0, 4.0
        self._noise, self._streak, self._sampled_at, self._ticked_at = 9, 0, 0.0, 0.0
        self._keys, self._memory = 21_400.0, 310e6

    def lines(self) -> Iterator[str]:
        """Yield the whole history as OpenMetrics lines with timestamps."""
        for number in range(LENGTH_S // STEP_S + 1):
            now = self._end_s - LENGTH_S + number * STEP_S
            yield from self._step(now)
        yield "# EOF"

    def _step(self, now: float) -> Iterator[str]:
        minutes_left = (self._end_s - now) / 60
        hour = (LENGTH_S - (self._end_s - now)) / 3_600
        arrivals = float(self._rng.poisson(34 + 12 * math.sin(2.4 * hour) + 4 * math.sin(21 * hour)))
        pods = self._pods[:1] if _during(ONE_POD, minutes_left) else self._pods
        is_slow = _during(SLOW, minutes_left)
        capacity = float(self._rng.poisson((21 if is_slow else 46) * len(pods) / 2 + (0 if is_slow else 20)))
        self._added += arrivals
        done = min(self._waiting + arrivals, capacity)
        self._waiting += arrivals - done
        for n in range(int(done)):
            self._arrival(pods[n % len(pods)], is_slow=is_slow, is_bad=_during(BAD_FIELDS, minutes_left))
        busy = self._rng.binomial(8, min(0.97, 0.12 + done / 220 + (0.55 if is_slow else 0)), size=len(pods))
        for pod, at_work in zip(pods, busy, strict=True):
            pod.metrics.in_progress.set(int(at_work))
        self._recluster(pods[0], is_slow=is_slow, is_noisy=_during(NOISY, minutes_left))
        self._correct(pods[-1], is_bad=_during(BAD_CORRECTIONS, minutes_left))
        if _during(LATE_LETTERS, minutes_left) and self._rng.random() < 0.3:
            self._dead += 1
        self._sample(now, minutes_left, in_flight=int(busy.sum()), is_slow=is_slow)
        yield from self._exposed(now, pods)

    def _arrival(self, pod: Pod, *, is_slow: bool, is_bad: bool) -> None:
        if is_bad and self._rng.random() < 0.07:
            pod.metrics.jobs.labels("invalid", "none").inc()
            pod.metrics.by_actor.labels(CLUSTER_EMBEDDING, "invalid").inc()
            pod.metrics.durations.labels("none").observe(0.003)
            self._dead += 1
            return
        took_s = float(self._rng.lognormal(math.log(3.4 if is_slow else 0.022), 0.65 if is_slow else 0.5))
        failed = self._rng.random() < (0.004 if is_slow else 0.0006)
        pod.metrics.jobs.labels("error" if failed else "success", "faiss").inc()
        pod.metrics.durations.labels("faiss").observe(took_s)
        pod.metrics.by_actor.labels(CLUSTER_EMBEDDING, "error" if failed else "success").inc()
        waited_s = self._waiting / 2.3 + float(self._rng.lognormal(math.log(0.02), 0.6))
        pod.metrics.waits.labels(CLUSTER_EMBEDDING).observe(waited_s)
        pod.metrics.freshness.observe(waited_s + took_s)
        if failed:
            pod.metrics.retries.labels("cluster_embedding").inc()
            self._delayed += 1

    def _recluster(self, pod: Pod, *, is_slow: bool, is_noisy: bool) -> None:
        for _ in range(int(self._rng.poisson(1.6))):
            gpu = self._rng.random() < 0.25
            took_s = float(self._rng.lognormal(math.log((0.3 if gpu else 1.1) * (2.5 if is_slow else 1)), 0.45))
            backend = "hdbscan_gpu" if gpu and not is_slow else "hdbscan_cpu"
            if gpu and is_slow:
                pod.metrics.fallbacks.labels("hdbscan_gpu", "hdbscan_cpu").inc()
            pod.metrics.jobs.labels("success", backend).inc()
            pod.metrics.durations.labels(backend).observe(took_s)
            pod.metrics.by_actor.labels(RECLUSTER_PET, "success").inc()
            pod.metrics.waits.labels(RECLUSTER_PET).observe(30 + took_s)
            self._noise = int(self._rng.poisson(44 if is_noisy else 9))
            self._streak = self._streak + 1 if self._noise > 30 else 0

    def _correct(self, pod: Pod, *, is_bad: bool) -> None:
        for operation, odds in (("merge", 0.35), ("split", 0.14), ("undo", 0.05)):
            if self._rng.random() < odds:
                outcome = "error" if is_bad and self._rng.random() < 0.4 else "success"
                pod.metrics.feedback.labels(operation, outcome).inc()
                pod.metrics.jobs.labels(outcome, "none").inc()
                pod.metrics.durations.labels("none").observe(float(self._rng.lognormal(math.log(0.03), 0.4)))
                if outcome == "error":
                    pod.metrics.retries.labels(
                        f"{operation}_clusters" if operation == "merge" else "split_cluster"
                    ).inc()

    def _sample(self, now: float, minutes_left: float, *, in_flight: int, is_slow: bool) -> None:
        self._delayed = max(0.0, self._delayed * 0.9 + self._rng.random())
        self._client.hset(
            NOISE, mapping={"last_count": self._noise, "high_streak": self._streak, "at_ms": int(now * 1_000)}
        )
        if _during(NO_SCHEDULER, minutes_left):
            return
        age_s = self._waiting / 2.3 + (3 if is_slow else 0.2) * self._rng.random()
        facts: dict[str, float] = {f"{queue}:{fact}": 0 for queue in QUEUES for fact in ("pending", "undelivered")}
        facts |= {
            f"{EMBEDDING_INGESTED}:pending": in_flight + (8 if is_slow else 1),
            f"{EMBEDDING_INGESTED}:undelivered": self._waiting,
            f"{EMBEDDING_INGESTED}:delayed": self._delayed,
            f"{EMBEDDING_INGESTED}:dead": self._dead,
            f"{EMBEDDING_INGESTED}:added": self._added,
            f"{EMBEDDING_INGESTED}:oldest_pending_ms": 1_000 * (age_s / 8 if is_slow else 0.4 * self._rng.random()),
            f"{EMBEDDING_INGESTED}:oldest_age_ms": 1_000 * age_s,
            f"{CLUSTER_FEEDBACK}:pending": int(self._rng.integers(0, 3)),
            f"{CLUSTER_FEEDBACK}:oldest_age_ms": 400 * self._rng.random(),
            f"{CLUSTER_RECLUSTER}:pending": int(self._rng.integers(0, 4)),
            f"{CLUSTER_RECLUSTER}:delayed": int(self._rng.integers(6, 15)),
            f"{CLUSTER_RECLUSTER}:oldest_pending_ms": 2_000 * self._rng.random() * (4 if is_slow else 1),
            f"{CLUSTER_RECLUSTER}:oldest_age_ms": 3_000 * self._rng.random() * (4 if is_slow else 1),
            f"{CLUSTER_MAINTENANCE}:added": (now % 1e6) / 5,
        }
        self._sampled_at, self._ticked_at = now - now % 10 + 0.1, now - now % 60
        times = {"pending_at_ms": self._sampled_at * 1_000, "lag_at_ms": self._sampled_at * 1_000}
        times[TICKED_AT] = self._ticked_at * 1_000
        self._client.hset(BACKLOG, mapping={name: int(value) for name, value in (facts | times).items()})

    def _exposed(self, now: float, pods: list[Pod]) -> Iterator[str]:
        queues = list(self._queues.collect())
        for pod in self._pods:
            labels = {"job": "sploot-cluster", "instance": pod.name}
            yield _line("up", labels, float(pod in pods), now)
            if pod in pods:
                yield from _lines([*pod.registry.collect(), *queues], labels, now)
                yield _line("media_cluster_redis_writable", labels, 1.0, now)
                yield _line("cluster_worker_stuck", labels, 0.0, now)
                yield _line("cluster_build_info", {**labels, "version": "0.1.0"}, 1.0, now)
        yield from self._media(now)
        yield from self._served(now, is_failing=len(pods) == 1)
        self._keys += 2.1 * self._rng.random()
        self._memory += 9e3 * self._rng.random() + 1_200 * max(0.0, self._waiting - 100)
        of_redis = {"job": "redis", "instance": "redis:6379"}
        clients = 21 + 9 * len(pods)
        for name, value, labels in (
            ("up", 1, {}),
            ("redis_memory_used_bytes", self._memory + 3e3 * self._waiting, {}),
            ("redis_memory_max_bytes", 1e9, {}),
            ("redis_db_keys", self._keys, {"db": "db0"}),
            ("redis_evicted_keys_total", 0, {}),
            ("redis_connected_clients", clients + int(self._rng.integers(0, 3)), {}),
            ("redis_blocked_clients", 4 * len(pods), {}),
        ):
            yield _line(name, {**of_redis, **labels}, float(value), now)

    def _served(self, now: float, *, is_failing: bool) -> Iterator[str]:
        """Yield the metrics that the HTTP server exports."""
        for operation, usual in (("get_clusters", 6.0), ("merge_clusters", 0.6), ("get_readiness", 1.5)):
            for _ in range(int(self._rng.poisson(usual))):
                status = 503 if is_failing and self._rng.random() < 0.1 else 422 if self._rng.random() < 0.02 else 200
                self._requests.count(Answered(operation, status, float(self._rng.lognormal(math.log(0.01), 0.8))))
        labels = {"job": "sploot-cluster-server", "instance": "server:8080"}
        yield _line("up", labels, 1.0, now)
        yield from _lines(self._requests.collect(), labels, now)

    def _media(self, now: float) -> Iterator[str]:
        """Yield the metrics of the media sampler, and the ingest rollout."""
        clustered, noise, quarantined, dismissed = round(0.93 * self._added), round(0.05 * self._added), 37, 112
        places = {"clustered": clustered, "noise": noise, "quarantined": quarantined, "dismissed": dismissed}
        labels = {"job": "sploot-cluster", "instance": self._pods[0].name}
        for place, count in places.items():
            yield _line("cluster_media", {**labels, "outcome": place}, float(count), now)
        yield _line("cluster_media_ingested", labels, float(sum(places.values())), now)
        yield _line("cluster_pets", labels, 2_140.0, now)
        yield _line("cluster_cold_pets", labels, 400.0, now)
        yield _line("cluster_cold_bytes", labels, 4.1e8, now)
        yield _line("cluster_pets_unconserved", labels, 0.0, now)
        yield _line("cluster_media_sample_timestamp_seconds", labels, self._ticked_at, now)
        yield _line("cluster_ingest_rollout_percent", labels, 100.0, now)


@contextmanager
def served_history(directory: Path) -> Iterator[tuple[Prometheus, float]]:
    """Run a Prometheus that holds the history and evaluates the rules; yield it and the end of the history.

    Raises:
        ServerProblem: promtool refused the history, or Prometheus did not start.
    """
    end_s = float(int(time.time() + PREPARED_WITHIN_S))
    data = directory / "data"
    with (
        tempfile.TemporaryDirectory(prefix="sploot-redis-") as redis_directory,
        EmbeddedRedis(directory=Path(redis_directory), unix_socket=True, options={"appendonly": "no"}) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        history = directory / "history.om"
        history.write_text("\n".join(History(client, end_s=end_s).lines()) + "\n")
    _promtool("tsdb", "create-blocks-from", "openmetrics", history, data)
    rules = sorted(ALERTS.glob("*.yaml"))
    config = {"global": {"evaluation_interval": "2s"}, "rule_files": [str(path) for path in rules]}
    with prometheus(directory, {"global": {}}) as without_rules:
        # compute the series that the rules would have recorded during the history
        begin = ("--start", f"{end_s - LENGTH_S:.0f}", "--end", f"{end_s:.0f}", "--eval-interval", "60s")
        recorded = directory / "recorded"
        _promtool(
            "tsdb",
            "create-blocks-from",
            "rules",
            *begin,
            "--url",
            without_rules.url,
            f"--output-dir={recorded}",
            *rules,
        )
    for block in recorded.iterdir():
        shutil.move(block, data / block.name)
    with prometheus(directory, config) as served:
        _await_alerts(served)
        yield served, end_s


def _await_alerts(served: Prometheus) -> None:
    """Wait until the alert on new dead letters fires, with which the history ends."""
    deadline = time.monotonic() + RULES_WITHIN_S
    while not served.query('ALERTS{alertstate="firing", alertname="MediaClusterDeadLettersNew"}'):
        if time.monotonic() > deadline:
            raise ServerProblem("no alert on new dead letters fires; check that Prometheus evaluates its rules")
        time.sleep(0.2)


def _promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise ServerProblem(f"promtool {arguments[0]} {arguments[1]}: {done.stdout[-500:]}{done.stderr[-500:]}")


def _during(begin_and_end: tuple[int, int], minutes_left: float) -> bool:
    begin, end = begin_and_end
    return begin >= minutes_left > end


def _lines(families: Iterable[Metric], labels: dict[str, str], now: float) -> Iterator[str]:
    for family in families:
        for sample in family.samples:
            if sample.labels.get("actor", RECLUSTER_PET) not in ACTORS:
                continue
            yield _line(sample.name, {**labels, **sample.labels}, sample.value, now)


def _line(name: str, labels: dict[str, str], value: float, now: float) -> str:
    inside = ",".join(f'{label}="{text}"' for label, text in labels.items())
    return f"{name}{{{inside}}} {value!r} {now:.3f}"
