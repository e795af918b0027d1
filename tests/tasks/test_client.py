"""The producers' client: what it sends, what it refuses, and when it gives up."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import redis

from broker import RedisStreamsBroker
from sploot_cluster.event import EmbeddingIngested
from sploot_cluster.jobs import JobQueue, ReclusterRequests
from tasks.client import ClusterTasks, InvalidInput, QueueUnavailable
from tasks.contracts import CLUSTER_FEEDBACK, CLUSTER_RECLUSTER, EMBEDDING_INGESTED, GROUP, stream_of
from tasks.redis_access.embedded import EmbeddedRedis
from tests.faults.outage import Outage
from tests.support import eventually


@pytest.fixture
def tasks(redis_url: str) -> Iterator[ClusterTasks]:
    with ClusterTasks(redis_url) as tasks:
        yield tasks


def sent(client: redis.Redis, queue: str) -> list[dict[str, Any]]:
    """Return the messages that wait in a queue's stream."""
    entries: Any = client.xrange(stream_of(queue))
    return [json.loads(fields[b"message"]) for _, fields in entries]


def test_client_implements_the_ports_of_the_domain(tasks: ClusterTasks) -> None:
    def is_accepted_by_mypy(queue: JobQueue, requests: ReclusterRequests) -> bool:
        return isinstance(queue, ClusterTasks) and isinstance(requests, ClusterTasks)

    assert is_accepted_by_mypy(tasks, tasks)


def test_merge_becomes_a_message_for_its_actor(tasks: ClusterTasks, redis_client: redis.Redis) -> None:
    job = tasks.merge(42, [3, 7], 7, requested_by="anna")

    (message,) = sent(redis_client, CLUSTER_FEEDBACK)
    assert (job.queue, job.coalesced, job.position) == (CLUSTER_FEEDBACK, False, 1)
    assert message["message_id"] == job.job_id
    assert message["actor_name"] == "merge_clusters"
    assert message["kwargs"] == {"pet_id": 42, "cluster_ids": [3, 7], "into": 7, "requested_by": "anna"}


def test_each_method_of_the_client_sends_a_message_to_its_actor(tasks: ClusterTasks, redis_client: redis.Redis) -> None:
    tasks.merge(pet_id=42, cluster_ids=(3, 7))
    tasks.split(pet_id=42, cluster_id=3, media_ids=["a.jpg"])
    tasks.undo(pet_id=42, revision=17)
    last = tasks.recluster(pet_id=42)

    actors = [message["actor_name"] for message in sent(redis_client, CLUSTER_FEEDBACK)]
    assert actors == ["merge_clusters", "split_cluster", "undo_feedback"]
    assert [message["actor_name"] for message in sent(redis_client, CLUSTER_RECLUSTER)] == ["recluster_pet"]
    assert last.queue == CLUSTER_RECLUSTER


def test_second_recluster_of_a_pet_returns_the_waiting_one(tasks: ClusterTasks, redis_client: redis.Redis) -> None:
    first, again, other = tasks.recluster(42), tasks.recluster(42), tasks.recluster(43)

    assert (again.job_id, again.coalesced) == (first.job_id, True)
    assert (other.coalesced, other.position) == (False, 2)
    assert len(sent(redis_client, CLUSTER_RECLUSTER)) == 2
    assert len(list(redis_client.scan_iter("sploot:{jobs}:record:*"))) == 2
    assert redis_client.zrange("sploot:{jobs}:pet:42", 0, -1) == [first.job_id.encode()]


def test_delayed_recluster_is_returned_to_later_callers(tasks: ClusterTasks, redis_client: redis.Redis) -> None:
    tasks.request_recluster(42, reason="grew by 20%", delay_ms=60_000)
    joined = tasks.recluster(42)

    assert joined.coalesced
    assert sent(redis_client, CLUSTER_RECLUSTER) == []
    status = tasks.job(joined.job_id)
    assert status is not None
    assert status.state == "delayed"
    assert status.due_at is not None
    assert status.reason.startswith("due at ")


def test_embedding_is_sent_as_base64_f32le(tasks: ClusterTasks, redis_client: redis.Redis) -> None:
    vector = np.array([0.5, -0.25, 1.0])

    job = tasks.ingest(pet_id=42, media_id="a.jpg", model="clip@1", embedding=vector, event_id="upload-7")

    (message,) = sent(redis_client, EMBEDDING_INGESTED)
    assert job.job_id == message["message_id"] == "upload-7"
    assert message["kwargs"]["encoding"] == "base64-f32le"
    assert EmbeddingIngested.from_kwargs(message["kwargs"]).vector().tolist() == vector.tolist()


def test_thousand_items_take_a_few_round_trips(tasks: ClusterTasks, redis_client: redis.Redis) -> None:
    def n_commands() -> int:
        return int(redis_client.info("stats")["total_commands_processed"])

    tasks.ingest_many([])
    before = n_commands()

    jobs = tasks.ingest_many(
        {"pet_id": 42, "media_id": f"{n}.jpg", "model": "clip@1", "embedding": [1.0, float(n)]} for n in range(1_000)
    )

    assert redis_client.xlen(stream_of(EMBEDDING_INGESTED)) == 1_000
    assert len({job.job_id for job in jobs}) == 1_000
    # commands inside a script count too: five per batch of 200, one XADD per event
    assert n_commands() - before < 1_100


def test_ingest_many_sends_nothing_if_one_event_is_invalid(tasks: ClusterTasks, redis_client: redis.Redis) -> None:
    good = {"pet_id": 42, "media_id": "a.jpg", "model": "clip@1", "embedding": [1.0, 0.0]}

    with pytest.raises(InvalidInput, match="event 1: value 0 is NaN") as refused:
        tasks.ingest_many([good, good | {"embedding": [float("nan"), 1.0]}])

    assert refused.value.field == "embedding"
    assert redis_client.xlen(stream_of(EMBEDDING_INGESTED)) == 0


@pytest.mark.parametrize(
    ("call", "arguments", "field"),
    [
        ("recluster", {"pet_id": "42"}, "pet_id"),
        ("recluster", {"pet_id": True}, "pet_id"),
        ("merge", {"pet_id": 42, "cluster_ids": [3]}, "cluster_ids"),
        ("merge", {"pet_id": 42, "cluster_ids": 3}, "cluster_ids"),
        ("split", {"pet_id": 42, "cluster_id": 3, "media_ids": "a.jpg"}, "media_ids"),
        ("split", {"pet_id": 42, "cluster_id": 3, "media_ids": ["x" * 250 + str(n) for n in range(9_000)]}, "message"),
        ("exclude", {"pet_id": 42, "cluster_id": 3, "media_ids": []}, "media_ids"),
        ("dismiss", {"pet_id": 42, "media_ids": ["a", ""]}, "media_ids[1]"),
        ("dismiss", {"pet_id": 42, "media_ids": ["a"], "expected_revision": "7"}, "expected_revision"),
        ("undo", {"pet_id": 42, "revision": 0}, "revision"),
        ("ingest", {"pet_id": 42, "media_id": "a", "model": "clip@1", "embedding": [0.0, 0.0]}, "embedding"),
        ("ingest", {"pet_id": 42, "media_id": "a", "model": "clip@1", "embedding": None}, "embedding"),
        ("ingest", {"pet_id": 42, "media_id": "a", "model": "clip", "embedding": [1.0, 0.0]}, "model"),
    ],
)
def test_invalid_field_is_refused_before_anything_is_sent(
    tasks: ClusterTasks, redis_client: redis.Redis, call: str, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        getattr(tasks, call)(**arguments)

    assert refused.value.field == field
    assert list(redis_client.scan_iter("streams:*")) == []


def test_closed_port_is_reported_immediately() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    with ClusterTasks(f"redis://127.0.0.1:{port}/0") as tasks, pytest.raises(QueueUnavailable, match="nothing was"):
        tasks.recluster(42)


def test_client_gives_up_on_a_silent_server_within_three_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        start = time.monotonic()

        with ClusterTasks(f"redis://127.0.0.1:{port}/0") as tasks, pytest.raises(QueueUnavailable):
            tasks.merge(42, [3, 7])

        assert time.monotonic() - start < 3.5


def test_unreadable_status_raises_queue_unavailable(redis_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    with ClusterTasks(f"redis://127.0.0.1:{port}/0") as tasks, pytest.raises(QueueUnavailable):
        tasks.job("any")


@pytest.mark.slow
def test_client_works_after_its_idle_connections_were_lost(
    redis_server: EmbeddedRedis, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.net.pool.PROBE_AFTER_IDLE_S", 0.0)
    with Outage(redis_server.url.removeprefix("unix://")) as network, ClusterTasks(network.url) as tasks:
        tasks.recluster(42)
        network.forget()

        jobs = [tasks.recluster(43), tasks.recluster(44)]

        waiting = {message["message_id"] for message in sent(redis_client, CLUSTER_RECLUSTER)}
        assert {job.job_id for job in jobs} <= waiting
        eventually(lambda: network.n_forgotten == 0)


def test_closed_connection_is_reopened(tasks: ClusterTasks, redis_client: redis.Redis) -> None:
    tasks.undo(42, 1)
    for other in redis_client.client_list():
        if int(other["id"]) != redis_client.client_id():
            redis_client.client_kill_filter(_id=other["id"])

    tasks.undo(42, 2)

    assert [message["kwargs"]["revision"] for message in sent(redis_client, CLUSTER_FEEDBACK)] == [1, 2]


def test_client_is_safe_for_concurrent_threads(tasks: ClusterTasks, redis_client: redis.Redis) -> None:
    barrier = threading.Barrier(8)

    def undo_some(first: int) -> list[str]:
        barrier.wait()
        return [tasks.undo(42, revision).job_id for revision in range(first, first + 25)]

    with ThreadPoolExecutor(8) as pool:
        jobs = [job for some in pool.map(undo_some, range(1, 201, 25)) for job in some]

    assert len(set(jobs)) == 200
    revisions = [message["kwargs"]["revision"] for message in sent(redis_client, CLUSTER_FEEDBACK)]
    assert sorted(revisions) == list(range(1, 201))


def test_given_redis_client_is_used_and_left_open(redis_client: redis.Redis) -> None:
    with ClusterTasks(client=redis_client) as tasks:
        tasks.undo(42, 1)

    assert redis_client.ping()
    assert len(sent(redis_client, CLUSTER_FEEDBACK)) == 1


def test_client_needs_a_url_or_a_redis_client() -> None:
    with pytest.raises(TypeError, match="redis_url or client"):
        ClusterTasks()


def test_unknown_job_has_no_status(tasks: ClusterTasks) -> None:
    assert tasks.job("nobody-enqueued-this") is None


def test_job_record_expires_a_day_after_its_last_change(tasks: ClusterTasks, redis_client: redis.Redis) -> None:
    job = tasks.recluster(42)

    assert 86_000 < int(redis_client.ttl(f"sploot:{{jobs}}:record:{job.job_id}")) <= 86_400


def test_worker_decodes_messages_of_the_client(tasks: ClusterTasks, redis_client: redis.Redis) -> None:
    tasks.split(42, 3, ["a.jpg", "b.jpg"])
    broker = RedisStreamsBroker(client=redis_client, group=GROUP, middleware=[])
    broker.declare_queue(CLUSTER_FEEDBACK)

    consumer = broker.consume(CLUSTER_FEEDBACK, timeout=5_000)
    delivered = next(consumer)

    assert delivered is not None
    assert delivered.kwargs["media_ids"] == ["a.jpg", "b.jpg"]
    consumer.ack(delivered)
    consumer.close()
    broker.close()
