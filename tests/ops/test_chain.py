"""Tests of the chain from metrics to notifications: exporter, Prometheus, rules, Alertmanager, receivers.

Stand-ins replace the receivers. Every window, hold time and timer is divided by 60, and nothing else is changed. The
alerts on the objectives are left out, because even so their windows are hours long; promtool tests them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis
from prometheus_client import CollectorRegistry, start_http_server

from broker import RedisStreamsBroker
from tasks.contracts import EMBEDDING_INGESTED, GROUP, QUEUES, stream_of
from tasks.demo.monitoring import write_routes, write_rules
from tasks.demo.receivers import Receivers, receivers
from tasks.observe.backlog import BACKLOG, TICKED_AT, BacklogCollector, BacklogSampler
from tasks.observe.figures.noise import NoiseWatch
from tasks.observe.metrics import JobMetrics
from tasks.redis_access.embedded import EmbeddedRedis
from tests.ops.mutants import OBJECTIVES
from tests.ops.servers import Prometheus, alertmanager, free_port, prometheus
from tests.ops.tools import tool
from tests.refusing import REFUSING
from tests.support import eventually
from tests.tasks.observe.test_exposition import get, pod

pytestmark = pytest.mark.ops

SCRAPE_S = 0.5
STREAM = stream_of(EMBEDDING_INGESTED)
MINUTES_ARE_SECONDS = 60


class Pipeline:
    """The metrics of a worker pod, on a real Redis. The pod is healthy until a test changes it."""

    def __init__(self, client: redis.Redis) -> None:
        self.client: Any = client
        self.registry = CollectorRegistry()
        self.metrics = JobMetrics(self.registry)
        self.registry.register(BacklogCollector(client))
        self.broker = RedisStreamsBroker(client=client, middleware=[], group=GROUP)
        for queue in QUEUES:
            self.broker.declare_queue(queue)
        self.sampler = BacklogSampler(self.broker, client)
        self.succeeds = True
        self.is_failing = False
        self.duration_s = 0.02
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def upload(self) -> None:
        self.broker.enqueue(dramatiq.Message(EMBEDDING_INGESTED, "cluster_embedding", (), {}, {}))

    def hold_a_job_for(self, seconds: int) -> None:
        self.upload()
        read = self.client.xreadgroup(GROUP, "stuck", {STREAM: ">"}, count=1)
        self.client.xclaim(STREAM, GROUP, "stuck", 0, [read[0][1][0][0]], idle=seconds * 1_000)

    def finish_everything(self) -> None:
        n_finished = self.client.xtrim(STREAM, maxlen=0)
        self.client.hincrby(f"{{{STREAM}}}:counters", "removed", n_finished)  # as a worker would count them
        self.client.xgroup_destroy(STREAM, GROUP)
        self.client.xgroup_create(STREAM, GROUP, "0", mkstream=True)

    def __enter__(self) -> Pipeline:
        self.client.xgroup_create(STREAM, GROUP, "0", mkstream=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()
        self.broker.close()

    def _work(self) -> None:
        while not self._ends.wait(0.1):
            if self.succeeds:
                self.metrics.jobs.labels("success", "faiss").inc()
                self.metrics.durations.labels("faiss").observe(self.duration_s)
            if self.is_failing:
                self.metrics.jobs.labels("error", "faiss").inc()
            self.sampler.sample_pending()
            self.sampler.sample_lag()
            self.client.hset(BACKLOG, TICKED_AT, int(time.time() * 1_000))


@contextmanager
def exporter(registry: CollectorRegistry) -> Iterator[str]:
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def chain(directory: Path) -> Iterator[tuple[Pipeline, Prometheus, Receivers]]:
    tool("prometheus")
    tool("prometheus-alertmanager")
    with (
        EmbeddedRedis(directory=directory, unix_socket=True, options={"appendonly": "no"}) as server,
        redis.Redis.from_url(server.url) as client,
        Pipeline(client) as pipeline,
        exporter(pipeline.registry) as target,
        receivers() as notes,
        alertmanager(directory, write_routes(directory, notes.url, MINUTES_ARE_SECONDS)) as pager,
        prometheus(directory, _config(directory, target, pager)) as monitoring,
    ):
        # wait for the longest window while all is healthy, so that no alert fires because of missing history
        eventually(
            lambda: monitoring.query('sum(increase(cluster_jobs_total{outcome="success"}[10s])) > 50'), within_s=60
        )
        # on a loaded machine, the shortened hold times may end before the first scrape
        eventually(lambda: notes.over() == notes.fired() and not descriptions(monitoring), within_s=60)
        notes.seen.clear()
        yield pipeline, monitoring, notes


def _config(directory: Path, target: str, pager: str) -> dict[str, Any]:
    return {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [
            str(path) for path in write_rules(directory, MINUTES_ARE_SECONDS) if path.name not in OBJECTIVES
        ],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [pager.removeprefix("http://")]}]}]},
        "scrape_configs": [{"job_name": "sploot-cluster", "static_configs": [{"targets": [target]}]}],
    }


def fail(pipeline: Pipeline, _: Receivers) -> None:
    pipeline.is_failing = True


def be_slow(pipeline: Pipeline, _: Receivers) -> None:
    pipeline.duration_s = 9.0


def fail_two_corrections(pipeline: Pipeline, notes: Receivers) -> None:
    pipeline.metrics.feedback.labels("merge", "error").inc()
    eventually(lambda: ("pagerduty", "MediaClusterFeedbackFailed") in notes.fired(), within_s=30)
    pipeline.metrics.feedback.labels("split", "invalid").inc()


def make_noise(pipeline: Pipeline, _: Receivers) -> None:
    for _n in range(3):
        NoiseWatch(pipeline.client).note(31)


def stall(pipeline: Pipeline, notes: Receivers) -> None:
    pipeline.succeeds = False

    def uploaded_until_paged() -> bool:
        pipeline.upload()
        return ("pagerduty", "MediaClusterStalled") in notes.fired()

    eventually(uploaded_until_paged, within_s=60, every_s=0.3)


def hang(pipeline: Pipeline, _: Receivers) -> None:
    pipeline.hold_a_job_for(40)


def repair(pipeline: Pipeline) -> None:
    pipeline.succeeds, pipeline.is_failing, pipeline.duration_s = True, False, 0.02
    NoiseWatch(pipeline.client).note(2)
    pipeline.finish_everything()


INCIDENTS: dict[str, tuple[Callable[[Pipeline, Receivers], None], set[tuple[str, str]]]] = {
    "failures": (
        fail,
        {
            ("slack", "MediaClusterFailuresSpiking"),
            ("pagerduty", "MediaClusterFailuresSpiking"),
        },
    ),
    "latency": (
        be_slow,
        {
            ("slack", "MediaClusterLatencyCritical"),
            ("slack", "MediaClusterLatencyCriticalSustained"),
            ("pagerduty", "MediaClusterLatencyCriticalSustained"),
            ("slack-oncall", "MediaClusterLatencyHighSustained"),
        },
    ),
    "feedback": (
        fail_two_corrections,
        {
            ("slack", "MediaClusterFeedbackFailed"),
            ("pagerduty", "MediaClusterFeedbackFailed"),
            ("slack", "MediaClusterFeedbackFailingRepeatedly"),
            ("pagerduty", "MediaClusterFeedbackFailingRepeatedly"),
        },
    ),
    "noise": (make_noise, {("slack", "MediaClusterNoiseHigh")}),
    "stall": (
        stall,
        {
            ("slack", "MediaClusterStalled"),
            ("pagerduty", "MediaClusterStalled"),
        },
    ),
    "lag": (hang, {("slack", "MediaClusterStreamLagCritical")}),
}


@pytest.mark.parametrize("incident", INCIDENTS)
def test_incident_notifies_exactly_its_receivers_and_resolves(incident: str, tmp_path: Path) -> None:
    begin, expected = INCIDENTS[incident]

    with chain(tmp_path) as (pipeline, monitoring, notes):
        begin(pipeline, notes)
        eventually(lambda: notes.fired() >= expected, within_s=60)
        texts = descriptions(monitoring)
        repair(pipeline)
        eventually(lambda: notes.over() >= expected and not descriptions(monitoring), within_s=90)

        assert notes.fired() == notes.over() == expected
        assert texts
        assert [text for text in texts if "{{" in text or "<no value>" in text or "error" in text.lower()[:6]] == []
        severities = {one.body["payload"]["severity"] for one in notes.seen if "payload" in one.body}
        assert severities <= {"error", "critical"}
        assert ("critical" in severities) == (incident == "feedback")


def test_redis_that_refuses_writes_causes_a_page_that_resolves(tmp_path: Path) -> None:
    page, port = ("pagerduty", "MediaClusterRedisRefusesWrites"), free_port()
    tool("prometheus")
    tool("prometheus-alertmanager")
    with (
        EmbeddedRedis(directory=tmp_path, unix_socket=True, options={"appendonly": "no"}) as server,
        redis.Redis.from_url(server.url) as client,
        pod(server.url, tmp_path, port, processes=1),
        receivers() as notes,
        alertmanager(tmp_path, write_routes(tmp_path, notes.url, MINUTES_ARE_SECONDS)) as pager,
        prometheus(tmp_path, _config(tmp_path, f"127.0.0.1:{port}", pager)) as monitoring,
    ):
        eventually(lambda: get(port, "/readyz")[0] == 200, within_s=60)
        eventually(lambda: monitoring.query("media_cluster_redis_writable == 1"), within_s=60)

        with REFUSING["NOREPLICAS"](server, client):
            eventually(lambda: page in notes.fired(), within_s=60)
            assert get(port, "/readyz")[0] == 503
            assert get(port, "/healthz")[0] == 200

        eventually(lambda: page in notes.over(), within_s=60)


def descriptions(monitoring: Prometheus) -> list[str]:
    """Return the descriptions of all current alerts."""
    alerts = monitoring.alerts()
    return [alert["annotations"]["description"] for alert in alerts]
