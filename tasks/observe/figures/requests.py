"""Metrics of the HTTP server: its requests by operation and status, and their durations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, disable_created_metrics
from prometheus_client.registry import Collector

from sploot_cluster.api.traffic import Answered

# Histogram buckets. Most requests take milliseconds; a preview takes up to 20 s.
DURATION_BUCKETS_S: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

STATUSES: Final = ("2xx", "3xx", "4xx", "5xx")


class RequestMetrics(Collector):
    """The request metrics of one server process.

    ``expect`` exposes every series as 0 before its first request. Otherwise an alert on an increase would miss the
    first error, because that error would create the series.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped in the library
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "cluster_http_requests_total",
            "Requests that the HTTP server answered, by operation (its id in the API, or other) and class of status.",
            ["operation", "status"],
            registry=self._registry,
        )
        self._durations = Histogram(
            "cluster_http_request_duration_seconds",
            "Time from a request to the beginning of its response.",
            ["operation"],
            buckets=DURATION_BUCKETS_S,
            registry=self._registry,
        )

    def expect(self, operations: Iterable[str]) -> None:
        """Start the counts of these operations at 0."""
        for operation in operations:
            self._durations.labels(operation)
            for status in STATUSES:
                self._requests.labels(operation, status)

    def count(self, answered: Answered) -> None:
        """Count a request."""
        self._requests.labels(answered.operation, f"{answered.status // 100}xx").inc()
        self._durations.labels(answered.operation).observe(answered.duration_s)

    def collect(self) -> Iterator[Metric]:
        yield from self._registry.collect()
