"""Erasure finds and removes all traces of a pet or an item, and nothing else."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.middleware import CurrentMessage, Retries, TimeLimit

from broker import RedisStreamsBroker
from sploot_cluster import ClusterService
from sploot_cluster.errors import UnknownMedia
from sploot_cluster.jobs import DeadLetterRef, Traces
from sploot_cluster.pet.models import MediaId, PetId
from sploot_cluster.store.redis import RedisPetStore
from tasks.actors import declare_actors
from tasks.client import ClusterTasks
from tasks.contracts import CLUSTER_FEEDBACK, CLUSTER_RECLUSTER, EMBEDDING_INGESTED, GROUP, stream_of
from tasks.erasure import Erasure
from tasks.job_records import JobOwner, JobRecords, TrackJobs
from tasks.wire import DECODERS

SECRET = "strand é.jpg"


@pytest.fixture
def erasure(redis_client: redis.Redis) -> Iterator[Erasure]:
    broker = RedisStreamsBroker(client=redis_client, group=GROUP, middleware=[], decoders=DECODERS)
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
    """Let a worker run all waiting jobs."""
    broker = RedisStreamsBroker(
        client=client,
        group=GROUP,
        middleware=[CurrentMessage(), TimeLimit(), Retries(), TrackJobs(JobRecords(client))],
        decoders=DECODERS,
    )
    declare_actors(broker, ClusterService(RedisPetStore(client)), traces=Erasure(broker, client))
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=50)
    worker.start()
    for queue in (EMBEDDING_INGESTED, CLUSTER_FEEDBACK, CLUSTER_RECLUSTER):
        broker.join(queue, timeout=30_000)
    worker.stop()
    broker.close()


def counts(traces: Traces) -> tuple[int, int, int]:
    return traces.n_records, traces.n_dead_letters, traces.n_waiting


def bury(client: redis.Redis, queue: str, entry: dict[Any, Any], *, error: str = "OSError: disk full") -> DeadLetterRef:
    """Add a dead letter of an entry, as the broker stores it."""
    fields: dict[Any, Any] = {
        "reason": "failed",
        "error": error,
        "entry_id": "1-0",
        "deliveries": 1,
        "died_at": "2026-11-24T03:00:00+00:00",
    }
    for name, value in entry.items():
        fields[b"entry:" + (name if isinstance(name, bytes) else name.encode())] = value
    dead_letter_id = client.xadd(f"{{{stream_of(queue)}}}:dead", fields)
    assert isinstance(dead_letter_id, bytes)
    return DeadLetterRef(queue, dead_letter_id.decode())


def event(media_id: str, encoding: str = "f32le", **changes: Any) -> dict[Any, Any]:
    """Return a flat event; in base64, its embedding is ``AACAPwAAAAAAAAAA``."""
    values = [1.0, 0.0, 0.0]
    packed = struct.pack("<3f", *values)
    embedding: dict[str, Any] = {
        "f32le": packed,
        "f16le": struct.pack("<3e", *values),
        "base64-f32le": base64.b64encode(packed),
        "json": json.dumps(values),
    }
    fields: dict[Any, Any] = {
        "schema": "embedding.ingested/1",
        "event_id": f"e-{media_id}",
        "pet_id": "7",
        "media_id": media_id,
        "model": "t@1",
        "dim": "3",
        "encoding": encoding,
        "embedding": embedding[encoding],
    }
    return fields | changes


def message(actor: str, queue: str, **kwargs: Any) -> dict[Any, Any]:
    kwargs = {"pet_id": 7, **kwargs}
    sent = dramatiq.Message[Any](queue_name=queue, actor_name=actor, args=(), kwargs=kwargs, options={})
    return {"message": sent.encode()}


NAMES = [
    *("m1", "m10", "A", "AA", "1", "7", "t@1", "e-m10", " "),
    *('q"uo', "back\\slash", "strand é.jpg", "\U0001f408", "f" * 256),
]


@pytest.fixture
def traffic(redis_client: redis.Redis, tasks: ClusterTasks) -> None:
    """Send traffic of two pets; for pet 42 an item, an invalid event, a refused and an accepted correction."""
    for pet_id in (42, 43):
        tasks.ingest(pet_id=pet_id, media_id=SECRET, model="clip@1", embedding=[1.0, 2.0])
        tasks.ingest(pet_id=pet_id, media_id="other.jpg", model="clip@1", embedding=[1.0, 2.0])
        tasks.split(pet_id, 9, [SECRET])
        flat(redis_client, pet_id, SECRET, dim="3")
        flat(redis_client, pet_id, "bad.jpg", dim="3")
    run_all(redis_client)


def test_job_deletes_an_item_with_its_records_and_dead_letters(
    traffic: None, redis_client: redis.Redis, tasks: ClusterTasks, erasure: Erasure
) -> None:
    found = erasure.find(42, [SECRET])

    job = tasks.delete_items(42, [SECRET], requested_by="eve")
    run_all(redis_client)

    status = tasks.job(job.job_id)
    assert status is not None
    assert status.state == "succeeded"
    assert status.result == {
        "n_media": 1,
        "n_corrections": 0,
        "n_records": found.n_records,
        "n_dead_letters": found.n_dead_letters,
        "revision": 3,
    }
    assert not RedisPetStore(redis_client).has(PetId(42), MediaId(SECRET))
    assert RedisPetStore(redis_client).has(PetId(43), MediaId(SECRET))
    assert counts(erasure.find(42, [SECRET])) == (0, 0, 0)


def test_erasure_removes_all_traces_of_a_pet(redis_client: redis.Redis, erasure: Erasure, traffic: None) -> None:
    found = erasure.find(42)
    erased = erasure.erase(42)

    assert found == erased
    assert counts(found) == counts(erasure.find(43)) == (3, 2, 0)
    assert erasure.find(42) == Traces(0, 0, 0)


def test_erasure_removes_only_traces_that_name_the_item(
    redis_client: redis.Redis, erasure: Erasure, traffic: None
) -> None:
    erased = erasure.erase(42, [SECRET])

    # the record of the split names no item, because the reason for its refusal was the cluster
    assert counts(erased) == (1, 1, 0)
    assert counts(erasure.find(42)) == (2, 1, 0)
    assert counts(erasure.find(43)) == (3, 2, 0)
    records = [redis_client.hgetall(key) for key in redis_client.keys("sploot:{jobs}:record:*")]
    text = b" ".join(bytes(v) for record in records if record[b"pet_id"] == b"42" for v in record.values())  # type: ignore[arg-type]  # replies are bytes
    assert SECRET.encode() not in text
    assert json.dumps(SECRET)[1:-1].encode() not in text


@pytest.mark.parametrize("media", [None, ["a.jpg"], ["b.jpg"]])
def test_waiting_corrections_are_counted_for_any_item(
    tasks: ClusterTasks, erasure: Erasure, media: list[str] | None
) -> None:
    """A correction that runs after its item was deleted leaves a record that may contain the item's id."""
    tasks.dismiss(42, ["a.jpg"])
    tasks.dismiss(43, ["a.jpg"])

    assert erasure.find(42, media).n_waiting == 1


def test_waiting_events_are_counted_and_stay(redis_client: redis.Redis, tasks: ClusterTasks, erasure: Erasure) -> None:
    tasks.ingest(pet_id=42, media_id="a.jpg", model="clip@1", embedding=[1.0, 2.0])
    flat(redis_client, 42, "b.jpg")
    flat(redis_client, 43, "b.jpg")
    tasks.recluster(42)  # not counted: a recluster would not bring an item back

    assert erasure.find(42).n_waiting == 2
    assert erasure.find(42, ["a.jpg"]).n_waiting == 1
    assert erasure.erase(42, ["b.jpg"]).n_waiting == 1
    assert redis_client.xlen(stream_of(EMBEDDING_INGESTED)) == 3


@pytest.mark.parametrize("encoding", ["f32le", "f16le", "base64-f32le", "json"])
def test_erasure_of_items_finds_and_removes_only_their_events(
    redis_client: redis.Redis, erasure: Erasure, encoding: str
) -> None:
    dead_letters = {media: bury(redis_client, EMBEDDING_INGESTED, event(media, encoding)) for media in NAMES}
    bury(redis_client, EMBEDDING_INGESTED, event("m1", encoding, pet_id="77"))

    for media in NAMES:
        found = erasure.find(7, [media])
        assert found.dead_letters == (dead_letters.pop(media),)
        assert erasure.erase(7, [media]) == found
        assert set(erasure.find(7).dead_letters) == set(dead_letters.values())
    assert counts(erasure.find(77)) == (0, 1, 0)


def test_erasure_of_items_removes_exactly_their_messages(redis_client: redis.Redis, erasure: Erasure) -> None:
    ingests = {
        media: bury(redis_client, EMBEDDING_INGESTED, message("cluster_embedding", EMBEDDING_INGESTED, media_id=media))
        for media in NAMES
    }
    splits = {
        media: bury(redis_client, CLUSTER_FEEDBACK, message("split_cluster", CLUSTER_FEEDBACK, media_ids=["x", media]))
        for media in NAMES
    }

    for media in NAMES:
        assert set(erasure.erase(7, [media]).dead_letters) == {ingests.pop(media), splits.pop(media)}
    assert erasure.find(7) == Traces(0, 0, 0)


def test_erasure_of_items_removes_exactly_their_records(redis_client: redis.Redis, erasure: Erasure) -> None:
    records, owner = JobRecords(redis_client), JobOwner(CLUSTER_FEEDBACK, "split_cluster", 7)
    for at, media in enumerate(NAMES):
        error = UnknownMedia(pet=7, media=("x", MediaId(media)), where="cluster 3")
        records.write(f"error-{at}", owner, state="dead", error=f"UnknownMedia: {error}")
        records.write(f"result-{at}", owner, state="succeeded", result={"media": media})
        records.write(f"other-{at}", owner, state="dead", error=f"ModelMismatch: model: got {media!r}")

    for at, media in enumerate(NAMES):
        assert set(erasure.erase(7, [media]).records) == {f"error-{at}", f"result-{at}"}
    assert {job_id.partition("-")[0] for job_id in erasure.find(7).records} == {"other"}


def test_erasure_reports_and_leaves_unreadable_dead_letters(redis_client: redis.Redis, erasure: Erasure) -> None:
    unclear = [
        bury(redis_client, EMBEDDING_INGESTED, entry)
        for entry in (
            {"message": '{"kwargs": {"pet_id": 7, "media_id": "m1"'},
            {"media_id": "m1"},
            event("m1", pet_id="seven"),
            message("cluster_embedding", EMBEDDING_INGESTED, media_id="m1"),
        )
    ]
    readable = unclear.pop()
    unclear.append(bury(redis_client, EMBEDDING_INGESTED, {"message": '{"kwargs": {"pet_id": [7], "media_id": "m1"}}'}))
    for entry in (event("m1") | {"media_id": b"m1\xff"}, event("")):
        bury(redis_client, EMBEDDING_INGESTED, entry)
    bury(redis_client, CLUSTER_FEEDBACK, {"message": '{"kwargs": {}}'})

    erased = erasure.erase(7, ["m1", "m1\ufffd"])

    assert erased.dead_letters == (readable,)
    assert set(erased.unreadable) == set(erasure.find(7).unreadable) == set(unclear)
    assert counts(erasure.find(7)) == (0, 2, 0)


def test_unreadable_dead_letter_is_reported_only_for_the_pet_it_names(
    redis_client: redis.Redis, erasure: Erasure
) -> None:
    read_by_its_head = message("split_cluster", CLUSTER_FEEDBACK, pet_id=70, media_ids=["m" * 200] * 6_000)
    for entry in (read_by_its_head, {"message": '{"kwargs": {"pet_id": 70, "media_id": "m1'}):
        bury(redis_client, CLUSTER_FEEDBACK, entry)
    number_cut = bury(redis_client, CLUSTER_FEEDBACK, {"message": '{"kwargs": {"pet_id": 7'})

    assert erasure.find(7).unreadable == (number_cut,)
    assert len(erasure.find(70).unreadable) == 3
    assert erasure.erase(70).n_dead_letters == 0


def test_record_whose_job_id_another_pet_reused_is_kept(redis_client: redis.Redis, erasure: Erasure) -> None:
    records = JobRecords(redis_client)
    for pet_id in (42, 43):
        records.write("a", JobOwner(CLUSTER_FEEDBACK, "split_cluster", pet_id), state="queued", how="new")

    assert erasure.erase(42).n_records == 0
    assert erasure.erase(43).records == ("a",)


def test_event_of_an_item_is_counted_behind_thousands_of_other_events(
    redis_client: redis.Redis, erasure: Erasure
) -> None:
    pipe = redis_client.pipeline(transaction=False)
    for number in range(2_500):
        pipe.xadd(stream_of(EMBEDDING_INGESTED), event(f"{number}.jpg"))
    pipe.execute()

    assert erasure.find(7, ["2499.jpg"]).n_waiting == 1
    assert erasure.find(7).n_waiting == 2_500


def test_message_too_large_to_be_read_counts_for_every_item(redis_client: redis.Redis, erasure: Erasure) -> None:
    large = message("cluster_embedding", EMBEDDING_INGESTED, model="t@1", embedding="A" * 300_000, media_id="m1")
    redis_client.xadd(stream_of(EMBEDDING_INGESTED), large)

    assert erasure.find(7, ["any"]).n_waiting == 1
    assert erasure.find(8, ["any"]).n_waiting == 0


def test_erasure_counts_a_waiting_event_with_the_longest_id(redis_client: redis.Redis, erasure: Erasure) -> None:
    flat(redis_client, 7, "f" * 256)

    assert erasure.find(7, ["f" * 256]).n_waiting == 1
    assert erasure.find(7, ["f" * 255]).n_waiting == 0
