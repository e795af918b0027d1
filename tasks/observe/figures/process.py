"""Facts that a scraped process reports about itself: its release, its settings, and whether Redis accepts writes.

The values are computed at each scrape. They are not gauges of prometheus_client, because in its multiprocess mode a
gauge is written to a file and outlives its process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import redis
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from sploot_cluster import __version__
from sploot_cluster.refusals import REDIS_ERRORS, refusal_of
from tasks.redis_access.probe import probe_writes

_MEANINGS: Final = {
    "cluster_build_info": "The release of the process; always 1.",
    "cluster_ingest_rollout_percent": "Share of pets whose items are accepted from producers, as configured for this "
    "process.",
    "media_cluster_redis_writable": "1 if Redis accepted a write during the scrape, 0 if it refused: it or its disk is "
    "full, its replicas are gone, or it is a replica itself. No job can be enqueued or finished then.",
    "cluster_worker_start_time_seconds": "When the counters of this pod started at 0, on its own clock.",
    "cluster_worker_stuck": "1 if /healthz reports that a worker process of this pod makes no progress: it hangs or is "
    "frozen.",
}


@dataclass(frozen=True, slots=True)
class Pod:
    """The worker pod of an exposition process.

    Attributes:
        is_stuck: returns whether ``/healthz`` reports a worker process that makes no progress.
        started_at: when its counters started at 0, in seconds since the epoch.
    """

    is_stuck: Callable[[], bool]
    started_at: float


class ProcessCollector(Collector):
    """A collector of facts about this process. If Redis does not answer, the metric about its writes is missing."""

    def __init__(self, client: redis.Redis, *, rollout_percent: float, pod: Pod | None = None) -> None:
        """
        Args:
            rollout_percent: share of pets whose items are accepted, in percent.
            pod: also report about this worker pod.
        """
        self._client, self._rollout_percent, self._pod = client, rollout_percent, pod

    def describe(self) -> Iterable[Metric]:
        """Return the families without samples, so that registering does not call Redis."""
        of_pods = ("cluster_worker_start_time_seconds", "cluster_worker_stuck")
        return [_family(name) for name in _MEANINGS if self._pod is not None or name not in of_pods]

    def collect(self) -> Iterator[Metric]:
        yield _family("cluster_build_info", 1, __version__)
        yield _family("cluster_ingest_rollout_percent", self._rollout_percent)
        if self._pod is not None:
            yield _family("cluster_worker_start_time_seconds", self._pod.started_at)
            yield _family("cluster_worker_stuck", int(self._pod.is_stuck()))
        try:
            probe_writes(self._client)
        except REDIS_ERRORS as error:
            if refusal_of(error) is not None:
                yield _family("media_cluster_redis_writable", 0)
        else:
            yield _family("media_cluster_redis_writable", 1)


def _family(name: str, value: float | None = None, *labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, _MEANINGS[name], labels=["version"] if name == "cluster_build_info" else [])
    if value is not None:
        family.add_metric(labels, value)
    return family
