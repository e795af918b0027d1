"""A pet's jobs are found in every state, and the index never outgrows the waiting jobs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import redis

from broker import Inspector
from broker.stats import LAST_ID
from tasks.client import ClusterTasks
from tasks.contracts import CLUSTER_FEEDBACK, CLUSTER_RECLUSTER, EMBEDDING_INGESTED, stream_of
from tasks.queue_ops.pet_index import KeepPetIndex, PetIndex
from tests.support import eventually
from tests.system.events import flat_event, free_port
from tests.tasks.queue_ops.desk import KEYS, STUCK, Desk

PETS = "{streams:embedding.ingested}:pets"


def n_rows(client: redis.Redis) -> int:
    """Return the number of entries in the index."""
    return client.zcount(PETS, 0, "+inf")


@pytest.fixture
def desk(redis_client: redis.Redis) -> Desk:
    return Desk(redis_client)


def test_waiting_events_and_messages_of_the_pet_are_found(desk: Desk, redis_client: redis.Redis) -> None:
    (flat,) = desk.add(1, pet_id=42)
    desk.add(1, 2, 3, pet_id=7)
    tasks = ClusterTasks(client=redis_client)
    tasks.ingest(pet_id=42, media_id='looks like "pet_id":7', model="clip@1", embedding=[1.0, 2.0])
    tasks.ingest(pet_id=4, media_id="m", model="clip@1", embedding=[1.0, 2.0])
    merge = tasks.merge(42, [1, 2])

    found, _ = desk.operations.find(42)

    assert [(job.queue, job.state, job.media_id) for job in found] == [
        (EMBEDDING_INGESTED, "waiting", "media-1"),
        (EMBEDDING_INGESTED, "waiting", 'looks like "pet_id":7'),
        (CLUSTER_FEEDBACK, "waiting", None),
    ]
    assert found[0].entry_id == flat
    assert found[2].message_id == merge.job_id


def test_in_flight_and_delayed_jobs_are_found(desk: Desk, redis_client: redis.Redis) -> None:
    (entry_id,) = desk.add(1, pet_id=42)
    desk.deliver()
    ClusterTasks(client=redis_client).request_recluster(42, reason="it grew", delay_ms=60_000)

    found, _ = desk.operations.find(42)

    assert [(job.queue, job.state, job.entry_id, job.holder) for job in found] == [
        (EMBEDDING_INGESTED, "in flight", entry_id, STUCK),
        (CLUSTER_RECLUSTER, "delayed", None, None),
    ]


def test_ended_jobs_are_not_found_and_leave_the_index(desk: Desk) -> None:
    first, second, third = desk.add(1, 2, 3, pet_id=42)
    desk.operations.find(42)
    desk.client.xdel(KEYS.stream, second)

    found, n_indexed = desk.operations.find(42)

    assert [job.entry_id for job in found] == [first, third]
    assert n_indexed == 0
    assert n_rows(desk.client) == 2


def test_deleted_index_is_rebuilt(desk: Desk) -> None:
    desk.add(1, 2, pet_id=42)
    desk.operations.find(42)
    desk.client.delete(PETS)

    found, n_indexed = desk.operations.find(42)

    assert [job.media_id for job in found] == ["media-1", "media-2"]
    assert n_indexed == 2
    assert desk.operations.find(42)[1] == 0


def test_job_that_is_retried_during_the_search_is_found(
    desk: Desk, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = ClusterTasks(client=redis_client)
    tasks.request_recluster(42, reason="it grew", delay_ms=0)
    read_entries = Inspector.entries

    def retry_first(self: Inspector, entry_ids: Sequence[str]) -> list[Mapping[bytes, bytes] | None]:
        if redis_client.xdel(stream_of(CLUSTER_RECLUSTER), *entry_ids):
            tasks.request_recluster(42, reason="again", delay_ms=60_000)
        return read_entries(self, entry_ids)

    monkeypatch.setattr(Inspector, "entries", retry_first)
    found, _ = desk.operations.find(42)

    assert [(job.queue, job.state) for job in found] == [(CLUSTER_RECLUSTER, "delayed")]


def test_pet_ids_with_the_same_score_are_distinguished(desk: Desk) -> None:
    huge = 2**63 - 1
    (entry_id,) = desk.add(1, pet_id=7)
    desk.client.delete(KEYS.stream)
    fields = {"schema": "embedding.ingested/1", "event_id": "e", "media_id": "m"}
    entry_id = desk.client.xadd(KEYS.stream, fields | {"pet_id": str(huge)}).decode()
    desk.client.xadd(KEYS.stream, fields | {"pet_id": str(huge - 1)})

    found, _ = desk.operations.find(huge)

    assert [job.entry_id for job in found] == [entry_id]


def test_invalid_entries_do_not_hide_other_entries(desk: Desk) -> None:
    for fields in ({"pet_id": "x"}, {"message": "{"}, {"nothing": "at all"}, {"pet_id": "9" * 400}, {"pet_id": ""}):
        desk.client.xadd(KEYS.stream, fields)
    (entry_id,) = desk.add(1, pet_id=42)

    found, _ = desk.operations.find(42)

    assert [job.entry_id for job in found] == [entry_id]


def test_only_waiting_entries_are_indexed(desk: Desk, redis_client: redis.Redis) -> None:
    keeper = KeepPetIndex(redis_client)
    desk.add(*range(10))

    n_young = keeper.run_once()
    n_waiting = PetIndex(redis_client, EMBEDDING_INGESTED).note(waited_ms=0)
    desk.client.xtrim(KEYS.stream, maxlen=0)
    keeper.run_once()

    assert (n_young, n_waiting) == (0, 10)
    assert redis_client.exists(PETS, f"{PETS}:progress") == 0


@pytest.mark.slow
def test_server_indexes_waiting_entries_without_a_worker(desk: Desk, redis_client: redis.Redis, redis_url: str) -> None:
    desk.add(*range(500))
    environ = {**os.environ, "REDIS_URL": redis_url, "SPLOOT_HTTP_PORT": str(free_port())}
    server = subprocess.Popen([sys.executable, "-m", "tasks.cli", "serve"], env=environ, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: n_rows(redis_client) == 500, within_s=60)
    finally:
        server.terminate()
        server.wait(timeout=30)

    _, n_indexed = desk.operations.find(7)
    assert n_indexed == 0


def test_index_does_not_grow_with_throughput(desk: Desk, redis_client: redis.Redis) -> None:
    index = PetIndex(redis_client, EMBEDDING_INGESTED)
    for _ in range(50):
        desk.add(*range(100))
        index.note(1_000, waited_ms=0)
        desk.client.xtrim(KEYS.stream, maxlen=100)

    assert redis_client.xlen(KEYS.stream) == 100
    assert n_rows(redis_client) <= 400


@pytest.mark.parametrize(
    "odd_id", ["1794203586547828000-0", f"{2**64 - 1}-7", f"{2**64 - 1}-{2**64 - 1}"], ids=["µs", "ms", "the greatest"]
)
def test_jobs_behind_an_id_ahead_of_the_clock_are_found(desk: Desk, redis_client: Any, odd_id: str) -> None:
    desk.add(1, pet_id=42)
    redis_client.xadd(KEYS.stream, flat_event(pet_id=42, number=2), id=odd_id)
    n = 2
    if odd_id != LAST_ID:
        desk.add(3, 4, pet_id=42)
        n = 4

    for _ in range(2):
        found, _ = desk.operations.find(42)
        assert [job.media_id for job in found] == [f"media-{number}" for number in range(1, n + 1)]
        assert [job.added_at is None for job in found] == [False] + [True] * (n - 1)


def test_entries_with_ids_ahead_of_the_clock_are_indexed_after_a_wait(desk: Desk, redis_client: Any) -> None:
    redis_client.xadd(KEYS.stream, flat_event(pet_id=42, number=1), id="1794203586547828000-0")
    desk.add(2, pet_id=42)
    index = PetIndex(redis_client, EMBEDDING_INGESTED)

    index.note(waited_ms=60_000)  # records the last entry of the stream
    desk.add(3, pet_id=42)
    assert n_rows(redis_client) == 0
    seen_at = int(redis_client.hget(f"{PETS}:progress", "seen_at"))
    redis_client.hset(f"{PETS}:progress", "seen_at", seen_at - 60_000)
    index.note(waited_ms=60_000)

    assert n_rows(redis_client) == 2


def test_recreated_stream_is_indexed_from_its_start(desk: Desk, redis_client: Any) -> None:
    redis_client.xadd(KEYS.stream, flat_event(pet_id=42, number=1), id=LAST_ID)
    assert len(desk.operations.find(42)[0]) == 1
    redis_client.delete(KEYS.stream)
    desk.add(2, pet_id=42)

    found, _ = desk.operations.find(42)

    assert [job.media_id for job in found] == ["media-2"]
