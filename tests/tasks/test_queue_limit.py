"""The queue limit that workers store: the thin client, the HTTP API and the command line obey it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Final

import pytest
import redis
from starlette.testclient import TestClient

from sploot_cluster.jobs import QueueFull
from sploot_cluster.store.redis import RedisPetStore
from tasks.client import ClusterTasks, QueueUnavailable
from tasks.composition import build_app, build_worker
from tasks.contracts import CLUSTER_FEEDBACK, CLUSTER_RECLUSTER, EMBEDDING_INGESTED, EXPORT_PENDING_JOBS, stream_of
from tasks.queue_limit import MAX_QUEUE_LENGTH, READ_EVERY_S, QueueLimit
from tasks.settings import Settings
from tests.sploot_cluster.albums import grouped
from tests.sploot_cluster.api.front import API, client_of
from tests.tasks.command_line import CommandLine

LIMIT: Final = 3
FEEDBACK: Final = stream_of(CLUSTER_FEEDBACK)
EVENT: Final[dict[str, Any]] = {"pet_id": 7, "media_id": "m", "model": "clip@1", "embedding": [1.0, 0.0]}


def sampled_by_a_worker(redis_url: str, *, max_queue_length: int) -> None:
    """Let a worker with this setting take a sample of the queues."""
    with closing(build_worker(Settings(redis_url=redis_url, max_queue_length=max_queue_length))) as broker:
        broker.actors[EXPORT_PENDING_JOBS].fn()


@pytest.fixture
def full(redis_client: redis.Redis, redis_url: str) -> redis.Redis:
    """A Redis with pet 42 and a queue limit, set by a worker, that only the feedback queue has reached."""
    grouped(RedisPetStore(redis_client), 2, range(6))
    sampled_by_a_worker(redis_url, max_queue_length=LIMIT)
    with ClusterTasks(client=redis_client) as tasks:
        for revision in range(1, LIMIT + 1):
            tasks.undo(42, revision)
    return redis_client


@pytest.fixture
def tasks(full: redis.Redis) -> Iterator[ClusterTasks]:
    with ClusterTasks(client=full) as tasks:
        yield tasks


def test_full_queue_refuses_a_correction_and_names_the_setting(tasks: ClusterTasks, full: redis.Redis) -> None:
    records = set(full.scan_iter("sploot:{jobs}:record:*"))
    assert len(records) == LIMIT

    with pytest.raises(QueueFull) as refused:
        tasks.merge(42, [1, 2])

    assert (refused.value.queue, refused.value.length, refused.value.limit) == (CLUSTER_FEEDBACK, LIMIT, LIMIT)
    assert isinstance(refused.value, QueueUnavailable), "callers that try again later catch it"
    assert "nothing was enqueued" in str(refused.value)
    assert "SPLOOT_MAX_QUEUE_LENGTH" in str(refused.value)
    assert full.xlen(FEEDBACK) == LIMIT
    assert set(full.scan_iter("sploot:{jobs}:record:*")) == records, "the refused job left a record"


def test_error_survives_pickling_unchanged() -> None:
    full = QueueFull(queue=CLUSTER_FEEDBACK, length=4, limit=3, outcome="nothing was enqueued")

    copy = pickle.loads(pickle.dumps(full))

    assert (type(copy), str(copy), vars(copy)) == (QueueFull, str(full), vars(full))


def test_refused_correction_is_enqueued_once_there_is_room(tasks: ClusterTasks, full: redis.Redis) -> None:
    with pytest.raises(QueueFull):
        tasks.merge(42, [1, 2])
    full.execute_command("XTRIM", FEEDBACK, "MAXLEN", LIMIT - 1)

    tasks.merge(42, [1, 2])

    assert full.xlen(FEEDBACK) == LIMIT


def test_full_queue_does_not_affect_other_queues(tasks: ClusterTasks, full: redis.Redis) -> None:
    tasks.recluster(42)
    tasks.ingest(**EVENT)

    assert full.xlen(stream_of(CLUSTER_RECLUSTER)) == full.xlen(stream_of(EMBEDDING_INGESTED)) == 1


def test_batch_is_refused_from_the_first_event_beyond_the_limit(tasks: ClusterTasks, full: redis.Redis) -> None:
    events = [{**EVENT, "media_id": f"m{number}"} for number in range(LIMIT + 1)]

    with pytest.raises(QueueFull, match="sending all again is safe"):
        tasks.ingest_many(events)

    assert full.xlen(stream_of(EMBEDDING_INGESTED)) == LIMIT


def test_recluster_that_the_service_requests_is_never_refused(tasks: ClusterTasks, full: redis.Redis) -> None:
    for pet in range(1, LIMIT + 1):
        tasks.recluster(pet)

    tasks.request_recluster(42, reason="it grew", delay_ms=60_000)

    with pytest.raises(QueueFull):
        tasks.recluster(43)
    assert full.zcard(f"{{{stream_of(CLUSTER_RECLUSTER)}}}:delayed") == 1


def test_queue_accepts_every_message_if_workers_set_no_limit(full: redis.Redis, redis_url: str) -> None:
    sampled_by_a_worker(redis_url, max_queue_length=0)

    with ClusterTasks(client=full) as tasks:
        tasks.merge(42, [1, 2])

    assert full.xlen(FEEDBACK) == LIMIT + 1


@pytest.mark.parametrize("with_key", [False, True], ids=["without key", "with key"])
def test_request_to_a_full_queue_returns_503_with_retry_after(
    full: redis.Redis, redis_url: str, with_key: bool
) -> None:
    headers = {"Idempotency-Key": "merge-1"} if with_key else {}
    body = {"pet_id": 42, "cluster_ids": [1, 2]}

    with client_of(build_app(Settings(redis_url=redis_url))) as http:
        refused = _merge(http, body, headers)
        full.delete(FEEDBACK)
        accepted = _merge(http, body, headers)

    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert refused.headers["content-type"] == "application/problem+json"
    problem = refused.json()
    assert problem["type"] == "urn:sploot:problem:queue-full"
    assert f"queue {CLUSTER_FEEDBACK} holds 3 jobs, and its limit is 3" in problem["detail"]
    assert "SPLOOT_MAX_QUEUE_LENGTH" in problem["errors"][0]["hint"]
    assert accepted.status_code == 202, accepted.text


def _merge(http: TestClient, body: dict[str, Any], headers: dict[str, str]) -> Any:
    return http.post(f"{API}/clusters/merge", json=body, headers=headers)


@pytest.mark.usefixtures("full")
def test_command_refused_by_a_full_queue_exits_4(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = CommandLine(redis_url, monkeypatch, capsys)("merge", "42", "1", "2")

    assert ran.code == 4, ran.err
    assert "SPLOOT_MAX_QUEUE_LENGTH" in ran.err


def test_limit_is_read_again_after_ten_seconds(redis_client: redis.Redis) -> None:
    now = 100.0
    limit = QueueLimit(redis_client, clock=lambda: now)
    assert limit.current() == 0

    redis_client.set(MAX_QUEUE_LENGTH, 5)
    now += READ_EVERY_S - 0.1
    assert limit.current() == 0
    now += 0.1
    assert limit.current() == 5


def test_stored_limit_that_is_not_a_number_counts_as_no_limit(redis_client: redis.Redis) -> None:
    redis_client.set(MAX_QUEUE_LENGTH, "many")

    assert QueueLimit(redis_client).current() == 0
