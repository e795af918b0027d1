"""Counters and log lines of jobs on a real queue with a real worker, and of jobs that never ran."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.middleware import Retries, TimeLimit, TimeLimitExceeded
from prometheus_client import CollectorRegistry

from broker import DeadLetter, RedisStreamsBroker
from sploot_cluster.errors import DimensionMismatch, InvalidInput, StaleRevision
from tasks.contracts import CLUSTER_MAINTENANCE, CLUSTER_RECLUSTER, EMBEDDING_INGESTED, GROUP, RECLUSTER_PET
from tasks.observe.job_facts import current_job
from tasks.observe.job_log import LoadEngine, RecordJobs, outcome_of
from tasks.observe.metrics import OUTCOMES, JobMetrics
from tasks.wire import DECODERS
from tests.support import eventually


class Noise:
    """A stand-in for ``NoiseWatch`` that fails on demand, as Redis may."""

    def __init__(self) -> None:
        self.noted: list[tuple[int, int | None, int]] = []
        self.is_broken = False

    def note(self, n_noise: int, *, pet_id: int | None, n_media: int) -> None:
        if self.is_broken:
            raise redis.ConnectionError("away")
        self.noted.append((n_noise, pet_id, n_media))


class Pool:
    """A queue with its worker, its metrics and the noise counts recorded from it."""

    def __init__(self, url: str) -> None:
        self.noise, self.registry = Noise(), CollectorRegistry()
        record = RecordJobs(noise=self.noise, metrics=JobMetrics(self.registry))
        self.broker = RedisStreamsBroker(
            url, group=GROUP, decoders=DECODERS, middleware=[TimeLimit(), Retries(), record], lease_ms=2_000
        )
        self.worker = dramatiq.Worker(self.broker, worker_timeout=50, worker_threads=2)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    def jobs(self, outcome: str, backend: str = "none") -> float:
        return self.count("cluster_jobs_total", outcome=outcome, backend=backend)


@pytest.fixture
def pool(redis_url: str) -> Iterator[Pool]:
    pool = Pool(redis_url)
    yield pool
    pool.worker.stop()
    pool.broker.close()


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="sploot-cluster.queue")
    return caplog


def lines(caplog: pytest.LogCaptureFixture, text: str) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.message == text]


def test_job_is_counted_timed_and_logged_in_one_line(pool: Pool, logged: pytest.LogCaptureFixture) -> None:
    @dramatiq.actor(actor_name="cluster_embedding", queue_name=EMBEDDING_INGESTED, broker=pool.broker)
    def assign(pet_id: int, traceparent: str) -> None:
        current_job().pet_id, current_job().backend = pet_id, "faiss"

    trace_id = "0af7651916cd43dd8448eb211c80319c"
    message = assign.send(pet_id=42, traceparent=f"00-{trace_id}-b7ad6b7169203331-01")
    pool.worker.start()
    pool.broker.join(EMBEDDING_INGESTED, timeout=20_000)
    eventually(lambda: lines(logged, "job done"))

    (line,) = lines(logged, "job done")
    assert (line["name"], line["levelname"]) == ("sploot-cluster.queue", "INFO")
    assert {name: line[name] for name in ("pet_id", "message_id", "actor", "attempt", "outcome", "trace_id")} == {
        "pet_id": 42,
        "message_id": message.message_id,
        "actor": "cluster_embedding",
        "attempt": 1,
        "outcome": "success",
        "trace_id": trace_id,
    }
    assert line["backend_used"] == "faiss"
    assert 0 <= line["duration_ms"] <= line["age_ms"] + 1
    assert 0 <= line["queue_ms"] <= line["age_ms"]
    assert pool.jobs("success", "faiss") == 1
    assert pool.count("cluster_job_duration_seconds_count", backend="faiss") == 1


def test_waiting_time_and_freshness_count_from_the_arrival(pool: Pool) -> None:
    @dramatiq.actor(
        actor_name="cluster_embedding",
        queue_name=EMBEDDING_INGESTED,
        broker=pool.broker,
        max_retries=1,
        min_backoff=1,
        max_backoff=2,
    )
    def assign(fails: bool) -> None:
        if fails and current_job().attempt == 1:
            raise RuntimeError("away")

    def came_before(seconds: int, *, fails: bool) -> None:
        message = assign.message(fails=fails)
        pool.broker.enqueue(message.copy(message_timestamp=message.message_timestamp - 1000 * seconds))

    came_before(0, fails=False)
    came_before(20, fails=True)
    came_before(100, fails=False)
    pool.worker.start()
    eventually(lambda: pool.count("cluster_item_freshness_seconds_count") == 3)

    labels = {"actor": "cluster_embedding"}
    assert pool.count("cluster_item_freshness_seconds_bucket", le="15.0") == 1
    assert pool.count("cluster_item_freshness_seconds_bucket", le="60.0") == 2
    assert pool.count("cluster_job_wait_seconds_count", **labels) == 3
    assert pool.count("cluster_job_wait_seconds_bucket", **labels, le="15.0") == 1
    assert pool.count("cluster_job_wait_seconds_bucket", **labels, le="60.0") == 2
    assert pool.count("cluster_actor_jobs_total", **labels, outcome="success") == 3
    assert pool.count("cluster_actor_jobs_total", **labels, outcome="error") == 1


def test_waiting_reclusters_do_not_count_as_late_items(pool: Pool) -> None:
    recluster = dramatiq.actor(actor_name=RECLUSTER_PET, broker=pool.broker)(lambda: None)
    recluster.send()
    pool.worker.start()
    eventually(lambda: pool.count("cluster_job_wait_seconds_count", actor=RECLUSTER_PET) == 1)

    assert pool.count("cluster_item_freshness_seconds_count") == 0


@pytest.mark.parametrize("claimed", ["entry", "timestamp"])
def test_age_is_unknown_when_a_job_has_a_future_time(
    pool: Pool, logged: pytest.LogCaptureFixture, redis_client: redis.Redis, claimed: str
) -> None:
    actor = dramatiq.actor(actor_name="merge_clusters", broker=pool.broker)(lambda: None)
    ahead_ms = 1000 * int(time.time()) + 3_600_000
    message = actor.message() if claimed == "entry" else actor.message().copy(message_timestamp=ahead_ms)
    redis_client.xadd(
        "streams:default", {"message": message.encode()}, id=f"{ahead_ms}-0" if claimed == "entry" else "*"
    )
    pool.worker.start()

    (line,) = eventually(lambda: lines(logged, "job done")) or []

    assert (line["age_ms"], line["queue_ms"]) == (None, None)
    assert pool.count("cluster_job_wait_seconds_count", actor="merge_clusters") == 0


def test_failed_attempts_and_retries_are_counted_once_each(pool: Pool, logged: pytest.LogCaptureFixture) -> None:
    @dramatiq.actor(actor_name=RECLUSTER_PET, broker=pool.broker, max_retries=2, min_backoff=1, max_backoff=2)
    def fail() -> None:
        raise RuntimeError("no luck")

    fail.send()
    pool.worker.start()
    eventually(lambda: pool.jobs("error") == 3)

    assert pool.count("cluster_job_retries_total", actor=RECLUSTER_PET) == 2
    failed = eventually(lambda: found if len(found := lines(logged, "job failed")) == 3 else None)
    assert failed is not None
    assert [line["attempt"] for line in failed] == [1, 2, 3]
    assert {line["error"] for line in failed} == {"RuntimeError: no luck"}
    assert all(line["exc_info"] for line in failed)
    assert eventually(lambda: lines(logged, "dead letter"))[0]["reason"] == "failed"
    assert pool.jobs("invalid") == 0


def test_invalid_field_is_logged_without_a_traceback(pool: Pool, logged: pytest.LogCaptureFixture) -> None:
    @dramatiq.actor(actor_name="merge_clusters", broker=pool.broker, throws=(InvalidInput,))
    def refuse() -> None:
        raise InvalidInput("cluster_ids", "is empty", "send two")

    refuse.send()
    pool.worker.start()
    eventually(lambda: pool.jobs("invalid") == 1)

    assert pool.count("cluster_feedback_operations_total", operation="merge", outcome="invalid") == 1
    (line,) = lines(logged, "job failed")
    assert line["exc_info"] is None
    dead_letter = eventually(lambda: lines(logged, "dead letter"))[0]
    assert (dead_letter["field"], dead_letter["hint"]) == ("cluster_ids", "send two")
    assert pool.jobs("invalid") == 1


def test_refused_correction_does_not_count_as_a_failure(pool: Pool, logged: pytest.LogCaptureFixture) -> None:
    @dramatiq.actor(actor_name="merge_clusters", broker=pool.broker)
    def refuse() -> None:
        current_job().refusal = StaleRevision(pet=42, expected=3, moved_at=4)

    refuse.send()
    pool.worker.start()
    eventually(lambda: pool.count("cluster_requests_refused_total", operation="merge", reason="stale") == 1)

    assert [pool.jobs(outcome) for outcome in OUTCOMES] == [0] * len(OUTCOMES)
    assert pool.count("cluster_feedback_operations_total", operation="merge", outcome="success") == 0
    (line,) = lines(logged, "correction refused")
    assert (line["outcome"], line["levelname"]) == ("refused", "INFO")
    assert lines(logged, "dead letter") == []


def test_undecodable_event_counts_as_invalid(
    pool: Pool, redis_client: redis.Redis, logged: pytest.LogCaptureFixture
) -> None:
    @dramatiq.actor(actor_name="cluster_embedding", queue_name=EMBEDDING_INGESTED, broker=pool.broker)
    def assign(**_: object) -> None:
        raise AssertionError("it must not run")

    redis_client.xadd("streams:embedding.ingested", {"schema": "embedding.ingested/1", "pet_id": "cat"})
    redis_client.xadd("streams:embedding.ingested", {"message": b"\xff\xfe"})
    pool.worker.start()

    eventually(lambda: pool.jobs("invalid") == 2)
    assert {line["reason"] for line in lines(logged, "dead letter")} == {"undecodable"}


def test_recluster_succeeds_even_if_its_noise_cannot_be_recorded(pool: Pool, logged: pytest.LogCaptureFixture) -> None:
    @dramatiq.actor(actor_name=RECLUSTER_PET, broker=pool.broker)
    def regroup(n_noise: int) -> None:
        current_job().pet_id, current_job().n_media, current_job().noise_count = 42, 400, n_noise

    pool.worker.start()
    regroup.send(31)
    eventually(lambda: pool.noise.noted == [(31, 42, 400)])
    pool.noise.is_broken = True
    regroup.send(7)
    eventually(lambda: pool.jobs("success") == 2)

    eventually(lambda: lines(logged, "could not record the noise of a recluster"))
    assert pool.noise.noted == [(31, 42, 400)]
    assert [line["noise_count"] for line in lines(logged, "job done")] == [31, 7]


def test_cancelled_job_is_logged_but_does_not_count_as_a_failure(pool: Pool, logged: pytest.LogCaptureFixture) -> None:
    began = threading.Event()

    @dramatiq.actor(actor_name="recluster_pet", queue_name=CLUSTER_RECLUSTER, broker=pool.broker)
    def recluster(pet_id: int) -> None:
        began.set()
        while True:  # in short steps, because an interrupt cannot end a wait
            threading.Event().wait(0.01)

    message = recluster.send(pet_id=42)
    pool.worker.start()
    eventually(began.is_set)
    pool.broker.cancel(message.message_id)
    eventually(lambda: lines(logged, "job cancelled"))

    (line,) = lines(logged, "job cancelled")
    assert {name: line[name] for name in ("pet_id", "message_id", "actor", "outcome")} == {
        "pet_id": 42,
        "message_id": message.message_id,
        "actor": "recluster_pet",
        "outcome": "cancelled",
    }
    assert lines(logged, "job failed") == []
    eventually(lambda: pool.count("cluster_jobs_in_progress") == 0)
    assert pool.jobs("error") == 0


def test_in_progress_gauge_falls_back_to_zero(pool: Pool) -> None:
    is_running, may_end = threading.Event(), threading.Event()

    @dramatiq.actor(actor_name="slow", broker=pool.broker)
    def slow() -> None:
        is_running.set()
        may_end.wait(30)

    @dramatiq.actor(actor_name="bad", broker=pool.broker, max_retries=0)
    def bad() -> None:
        raise RuntimeError("no luck")

    slow.send()
    bad.send()
    pool.worker.start()

    assert is_running.wait(20)
    eventually(lambda: pool.jobs("error") == 1)
    assert eventually(lambda: pool.count("cluster_jobs_in_progress")) == 1
    assert pool.count("cluster_worker_threads") == 2
    may_end.set()
    eventually(lambda: pool.count("cluster_jobs_in_progress") == 0)


def test_backlog_samples_are_not_counted_as_jobs(pool: Pool, logged: pytest.LogCaptureFixture) -> None:
    @dramatiq.actor(actor_name="export_stream_lag", queue_name=CLUSTER_MAINTENANCE, broker=pool.broker)
    def sample() -> None: ...

    sample.send()
    pool.worker.start()

    (line,) = eventually(lambda: lines(logged, "job done"))
    assert line["levelname"] == "DEBUG"
    assert pool.jobs("success") == 0


def test_logged_facts_of_a_job_do_not_leak_into_the_next_job(pool: Pool, logged: pytest.LogCaptureFixture) -> None:
    @dramatiq.actor(actor_name="first", broker=pool.broker)
    def first() -> None:
        current_job().pet_id, current_job().backend = 1, "faiss"

    @dramatiq.actor(actor_name="second", broker=pool.broker)
    def second() -> None: ...

    pool.worker.start()
    for _ in range(5):
        first.send()
        second.send()
    eventually(lambda: len(lines(logged, "job done")) == 10)

    logged_jobs = {(line["actor"], line["pet_id"], line["backend_used"]) for line in lines(logged, "job done")}
    assert logged_jobs == {("first", 1, "faiss"), ("second", None, "none")}


@pytest.mark.parametrize(
    ("exception", "outcome"),
    [
        (None, "success"),
        (DimensionMismatch(pet=1, expected=2, got=3), "invalid"),
        (TimeLimitExceeded(), "timeout"),
        (KeyError("x"), "error"),
        (SystemExit(1), "error"),
    ],
)
def test_outcome_of_an_exception_is_one_word(exception: BaseException | None, outcome: str) -> None:
    assert outcome_of(exception) == outcome


@pytest.mark.parametrize(
    ("reason", "counted"),
    [
        ("undecodable", "invalid"),
        ("oversize", "invalid"),
        ("not-enqueued", "invalid"),
        ("unhandled", None),
        ("delivery-limit", "error"),
        ("failed", None),
    ],
)
def test_dead_letter_is_counted_only_if_no_attempt_was_counted(pool: Pool, reason: str, counted: str | None) -> None:
    dead_letter = DeadLetter(
        id="1-0",
        queue_name="q",
        reason=reason,
        error="E: e",
        field=None,
        hint=None,
        traceback=None,
        actor_name="merge_clusters",
        message_id=None,
        entry_id="1-0",
        deliveries=1,
        died_at=datetime.now(UTC),
        fields={},
    )

    pool.broker.middleware[-1].after_dead_letter(pool.broker, dead_letter)  # type: ignore[attr-defined]  # RecordJobs

    assert {outcome: pool.jobs(outcome) for outcome in ("success", "invalid", "error", "timeout")} == {
        "success": 0,
        "invalid": float(counted == "invalid"),
        "error": float(counted == "error"),
        "timeout": 0,
    }
    by_actor = pool.count("cluster_actor_jobs_total", actor="merge_clusters", outcome="error")
    assert by_actor == float(counted == "error")


def test_worker_boot_loads_the_engine() -> None:
    LoadEngine().after_process_boot(RedisStreamsBroker("redis://127.0.0.1:1", middleware=[]))

    assert {"faiss", "sploot_cluster.engine.selection"} <= sys.modules.keys()
