"""What travelled about a pet or a medium is found and removed, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.middleware import CurrentMessage, Retries, TimeLimit

from broker import RedisStreamsBroker
from sploot_cluster import ClusterService
from sploot_cluster.jobs import Traces
from sploot_cluster.redis_store import RedisPetStore
from tasks.actors import declare_actors
from tasks.client import ClusterTasks
from tasks.contracts import CLUSTER_FEEDBACK, EMBEDDING_INGESTED, stream_of
from tasks.erasure import Erasure
from tasks.jobs import JobRecords, TrackJobs
from tasks.wire import DECODERS

SECRET = "strand é.jpg"


@pytest.fixture
def erasure(redis_client: redis.Redis) -> Iterator[Erasure]:
    broker = RedisStreamsBroker(client=redis_client, middleware=[], decoders=DECODERS)
    yield Erasure(broker, redis_client)
    broker.close()


@pytest.fixture
def tasks(redis_client: redis.Redis) -> Iterator[ClusterTasks]:
    with ClusterTasks(client=redis_client) as tasks:
        yield tasks


def flat(client: redis.Redis, pet_id: int, media_id: str, **changes: str) -> None:
    fields: dict[Any, Any] = {
        "schema": "embedding.ingested/1",
        "event_id": f"e-{pet_id}-{media_id}",
        "pet_id": str(pet_id),
        "media_id": media_id,
        "model": "clip@1",
        "dim": "2",
        "encoding": "json",
        "embedding": "[1.0, 2.0]",
    }
    client.xadd(stream_of(EMBEDDING_INGESTED), fields | changes)


def run_all(client: redis.Redis) -> None:
    """Let a worker work off whatever waits."""
    broker = RedisStreamsBroker(
        client=client,
        middleware=[CurrentMessage(), TimeLimit(), Retries(), TrackJobs(JobRecords(client))],
        decoders=DECODERS,
    )
    declare_actors(broker, ClusterService(RedisPetStore(client)))
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=50)
    worker.start()
    for queue in (EMBEDDING_INGESTED, CLUSTER_FEEDBACK):
        broker.join(queue, timeout=30_000)
    worker.stop()
    broker.close()


@pytest.fixture
def traffic(redis_client: redis.Redis, tasks: ClusterTasks) -> None:
    """Two pets; of pet 42 a medium, a bad flat event, a correction that was refused, and one that was not."""
    for pet_id in (42, 43):
        tasks.ingest(pet_id=pet_id, media_id=SECRET, model="clip@1", embedding=[1.0, 2.0])
        tasks.ingest(pet_id=pet_id, media_id="other.jpg", model="clip@1", embedding=[1.0, 2.0])
        tasks.split(pet_id, 9, [SECRET])
        flat(redis_client, pet_id, SECRET, dim="3")
        flat(redis_client, pet_id, "bad.jpg", dim="3")
    run_all(redis_client)


def test_all_of_a_pet_is_found_and_removed(redis_client: redis.Redis, erasure: Erasure, traffic: None) -> None:
    found = erasure.find(42)
    erased = erasure.erase(42)

    assert found == erased == Traces(n_records=3, n_dead_letters=3, n_waiting=0)
    assert erasure.find(42) == Traces(0, 0, 0)
    assert erasure.find(43) == found


def test_what_names_a_medium_is_removed_and_the_rest_stays(
    redis_client: redis.Redis, erasure: Erasure, traffic: None
) -> None:
    erased = erasure.erase(42, [SECRET])

    # the record of the split, which was refused for its cluster, names no medium
    assert erased == Traces(n_records=1, n_dead_letters=2, n_waiting=0)
    assert erasure.find(42) == Traces(n_records=2, n_dead_letters=1, n_waiting=0)
    assert erasure.find(43) == Traces(n_records=3, n_dead_letters=3, n_waiting=0)
    records = [redis_client.hgetall(key) for key in redis_client.keys("sploot:job:*")]
    text = b" ".join(bytes(v) for record in records if record[b"pet_id"] == b"42" for v in record.values())  # type: ignore[arg-type]  # answers are bytes
    assert SECRET.encode() not in text
    assert json.dumps(SECRET)[1:-1].encode() not in text


@pytest.mark.parametrize("media", [None, ["a.jpg"], ["b.jpg"]])
def test_corrections_that_wait_are_counted_whatever_they_name(
    tasks: ClusterTasks, erasure: Erasure, media: list[str] | None
) -> None:
    """One that names what is gone by the time it runs becomes a dead letter with its name."""
    tasks.dismiss(42, ["a.jpg"])
    tasks.dismiss(43, ["a.jpg"])

    assert erasure.find(42, media).n_waiting == 1


def test_events_that_wait_are_counted_and_left(
    redis_client: redis.Redis, tasks: ClusterTasks, erasure: Erasure
) -> None:
    tasks.ingest(pet_id=42, media_id="a.jpg", model="clip@1", embedding=[1.0, 2.0])
    flat(redis_client, 42, "b.jpg")
    flat(redis_client, 43, "b.jpg")
    tasks.recluster(42)  # it would bring nothing back

    assert erasure.find(42).n_waiting == 2
    assert erasure.find(42, ["a.jpg"]).n_waiting == 1
    assert erasure.erase(42, ["b.jpg"]).n_waiting == 1
    assert redis_client.xlen(stream_of(EMBEDDING_INGESTED)) == 3
