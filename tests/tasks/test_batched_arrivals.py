"""Batches of embedding events on a real queue with a worker: pets, counters, log lines and spans of each event."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.broker import MessageProxy
from dramatiq.middleware import CurrentMessage, Retries, TimeLimit
from prometheus_client import CollectorRegistry

from broker import NotDoneInBatch, RedisStreamsBroker
from sploot_cluster import ClusterService
from sploot_cluster.pet.models import PetId
from sploot_cluster.store.redis import RedisPetStore
from tasks.actors import declare_actors
from tasks.contracts import CLUSTER_EMBEDDING, EMBEDDING_INGESTED, GROUP, stream_of
from tasks.observe.job_log import RecordJobs
from tasks.observe.logs import NameJobs
from tasks.observe.metrics import JobMetrics
from tasks.observe.pulse import KeepPulse, pulses
from tasks.wire import CHECKS, DECODERS
from tests.support import eventually
from tests.system.events import flat_event

N = 24


class Noise:
    def note(self, n_noise: int, *, pet_id: int | None, n_media: int) -> object: ...


class Pool:
    """A worker that handles embedding events in batches, and its metrics."""

    def __init__(self, url: str, client: redis.Redis, pulse: KeepPulse) -> None:
        self.registry = CollectorRegistry()
        self.broker = RedisStreamsBroker(
            url,
            group=GROUP,
            decoders=DECODERS,
            checks=CHECKS,
            lease_ms=2_000,
            middleware=[
                NameJobs(),
                TimeLimit(),
                Retries(),
                CurrentMessage(),
                RecordJobs(noise=Noise(), metrics=JobMetrics(self.registry)),
                pulse,
            ],
        )
        self.store = RedisPetStore(client)
        declare_actors(self.broker, ClusterService(self.store), batch_size=64)
        self.worker = dramatiq.Worker(self.broker, worker_timeout=50, worker_threads=1)

    def run(self) -> None:
        self.worker.start()
        self.broker.join(EMBEDDING_INGESTED, timeout=20_000)
        # the last job may still be counted as running after its message has been acknowledged
        eventually(lambda: self.count("cluster_jobs_in_progress") == 0)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    def jobs(self, outcome: str, backend: str) -> float:
        return self.count("cluster_jobs_total", outcome=outcome, backend=backend)


class Later:
    """A clock that the test advances."""

    skipped_s = 0.0

    def __call__(self) -> float:
        return self.skipped_s


@pytest.fixture
def clock() -> Later:
    return Later()


@pytest.fixture
def pool(redis_url: str, redis_client: redis.Redis, tmp_path: Path, clock: Later) -> Iterator[Pool]:
    pool = Pool(redis_url, redis_client, KeepPulse(tmp_path, hung_after_s=1e9, clock=clock))
    yield pool
    pool.worker.stop()
    pool.broker.close()


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="sploot-cluster.queue")
    return caplog


def send(client: redis.Redis, *numbers: int, **changes: Any) -> None:
    for number in numbers:
        event: dict[Any, Any] = flat_event(pet_id=1 + number % 2, number=number)
        client.xadd(stream_of(EMBEDDING_INGESTED), event | changes)


def lines(caplog: pytest.LogCaptureFixture, text: str) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.message == text]


def test_waiting_events_are_committed_as_a_batch_and_counted_one_by_one(
    pool: Pool, redis_client: redis.Redis, logged: pytest.LogCaptureFixture
) -> None:
    send(redis_client, *range(N))

    pool.run()

    for pet in (PetId(1), PetId(2)):
        state = pool.store.load(pet)
        assert list(state.media) == [f"media-{number}" for number in range(pet - 1, N, 2)]
        assert state.revision < N // 2
    assert pool.jobs("success", "faiss") == pool.count("cluster_job_duration_seconds_count", backend="faiss") == N
    assert [pool.jobs(outcome, "none") for outcome in ("success", "error", "invalid", "timeout")] == [0, 0, 0, 0]
    done = lines(logged, "job done")
    assert {(line["pet_id"], line["message_id"]) for line in done} == {
        (1 + number % 2, f"event-{1 + number % 2}-{number}") for number in range(N)
    }
    assert {(line["actor"], line["attempt"], line["backend_used"], line["outcome"]) for line in done} == {
        (CLUSTER_EMBEDDING, 1, "faiss", "success")
    }
    assert len(done) == N
    assert pool.broker.counters(EMBEDDING_INGESTED)["unbatched"] == 0


def test_unusual_events_have_the_same_outcome_in_a_batch_as_individually(
    pool: Pool, redis_client: redis.Redis, logged: pytest.LogCaptureFixture
) -> None:
    send(redis_client, *range(N))
    send(redis_client, 5)  # the producer sends one event twice
    send(redis_client, 50, model="other@1")

    pool.run()

    (dead_letter,) = pool.broker.dead_letters(EMBEDDING_INGESTED).list()
    assert dead_letter.message_id == "event-1-50"
    assert "other@1" in str(dead_letter.error)
    assert pool.store.tally(PetId(1)).tally.quarantined == 1
    assert sum(pool.store.load(PetId(pet)).n_media for pet in (1, 2)) == N
    assert (pool.jobs("success", "faiss"), pool.jobs("invalid", "none")) == (N + 1, 1)
    assert [line["message_id"] for line in lines(logged, "job failed")] == ["event-1-50"]
    assert pool.broker.counters(EMBEDDING_INGESTED)["unbatched"] <= 1


def test_messages_of_a_failed_batch_run_one_by_one(
    pool: Pool, redis_client: redis.Redis, logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(redis_client, *range(N))
    monkeypatch.setattr(ClusterService, "assign_many", fail)

    pool.run()

    assert sum(pool.store.load(PetId(pet)).n_media for pet in (1, 2)) == N
    assert (pool.jobs("success", "faiss"), pool.jobs("error", "none")) == (N, 0)
    assert len(lines(logged, "job done")) == N
    assert pool.broker.counters(EMBEDDING_INGESTED)["unbatched"] > 0
    assert pool.broker.counters(EMBEDDING_INGESTED)["retried"] == 0


def test_thread_is_not_reported_as_stuck_after_an_unfinished_batch(pool: Pool, tmp_path: Path, clock: Later) -> None:
    pulse = KeepPulse(tmp_path, hung_after_s=1e9, clock=clock)
    messages = [MessageProxy(dramatiq.Message(EMBEDDING_INGESTED, CLUSTER_EMBEDDING, (), {}, {})) for _ in range(2)]
    for message in messages:
        pulse.before_process_message(pool.broker, message)
    clock.skipped_s = 10_000

    pulse.write(pool.broker, pool.worker)
    (stuck,) = pulses(tmp_path)
    for message in reversed(messages):
        pulse.after_process_message(pool.broker, message, exception=NotDoneInBatch())
    pulse.write(pool.broker, pool.worker)
    (free,) = pulses(tmp_path)

    assert stuck.stuck is not None
    assert free.stuck is None


def fail(*_: object, **__: object) -> None:
    raise RuntimeError("a bug")
