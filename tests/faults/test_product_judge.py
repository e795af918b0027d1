"""Tests that the judge of the product's campaign reports every kind of violation, and nothing in an intact product."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from sploot_cluster import ClusterService
from sploot_cluster.pet.models import ClusterId, PetId
from sploot_cluster.store.keys import PetKeys
from sploot_cluster.store.redis import RedisPetStore
from sploot_cluster.store.repairs import PetRepairs, RawPet
from tasks.client import ClusterTasks
from tasks.redis_access.embedded import EmbeddedRedis
from tests.faults.product.judge import broken_demands, found_in, logged_ends, problems_of
from tests.faults.product.load import Records
from tests.sploot_cluster.albums import PET, grouped, name, take
from tests.sploot_cluster.days import Day
from tests.sploot_cluster.oracle import demands

KEYS = PetKeys.of(PET)
DEAD = "{streams:embedding.ingested}:dead"
RECORD = "sploot:{jobs}:record:"


@pytest.fixture
def tasks(redis_client: redis.Redis) -> Iterator[ClusterTasks]:
    with ClusterTasks(client=redis_client) as tasks:
        yield tasks


@pytest.fixture(scope="module")
def pets(redis_server: EmbeddedRedis) -> list[RawPet]:
    """A small pet with a merge and one without, created once."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        service = grouped(RedisPetStore(client), 2, range(6))
        service.merge(PET, [ClusterId(1), ClusterId(2)], operation_id="job-1", by="ada")
        take(service, 0, range(3), pet=PetId(7))
        return [PetRepairs(client).read(pet) for pet in service.pets()]


@pytest.fixture
def records(redis_client: redis.Redis, pets: list[RawPet]) -> Records:
    """The records of these pets, without any violation."""
    for pet in pets:
        PetRepairs(redis_client).put_back(pet)
    redis_client.hset(f"{RECORD}job-1", mapping=ended("succeeded"))
    items = [(int(PET), name(subject, number)) for subject in range(2) for number in range(6)]
    return Records(confirmed=dict.fromkeys(items, 0.0), corrections={"job-1": PET})


def ended(state: str) -> dict[Any, Any]:
    return {"state": state, "queue": "cluster.feedback", "actor": "merge_clusters", "pet_id": str(PET)}


def problems(records: Records, client: redis.Redis, tasks: ClusterTasks) -> list[str]:
    return list(problems_of(records, found_in(client), tasks))


def test_judge_reports_no_problem_for_consistent_data(
    redis_client: redis.Redis, tasks: ClusterTasks, records: Records
) -> None:
    assert problems(records, redis_client, tasks) == []


def test_judge_reports_a_confirmed_item_that_is_missing(
    redis_client: redis.Redis, tasks: ClusterTasks, records: Records
) -> None:
    records.confirmed |= {(42, "gone"): 0.0, (7, name(0, 0)): 0.0}

    assert problems(records, redis_client, tasks) == ["(42, 'gone') was confirmed and is nowhere"]

    records.doubtful.add((42, "gone"))
    assert problems(records, redis_client, tasks) == []


def test_judge_reports_a_deleted_item_that_still_exists(
    redis_client: redis.Redis, tasks: ClusterTasks, records: Records
) -> None:
    records.deleted.add((42, name(0, 0)))

    assert problems(records, redis_client, tasks) == ["(42, 's0-0') was deleted and is there"]


def test_judge_reports_an_item_in_two_places(redis_client: redis.Redis, tasks: ClusterTasks, records: Records) -> None:
    letter: dict[Any, Any] = {"entry:pet_id": str(PET), "entry:media_id": name(0, 0), "error": "x", "entry_id": "1-0"}
    redis_client.xadd(DEAD, letter | {"reason": "failed", "deliveries": 1})

    assert problems(records, redis_client, tasks) == ["(42, 's0-0') is in its pet and a dead letter: failed"]


def test_judge_reports_a_correction_missing_from_the_ledger(
    redis_client: redis.Redis, tasks: ClusterTasks, records: Records
) -> None:
    redis_client.hset(f"{RECORD}job-2", mapping=ended("succeeded"))
    redis_client.hset(f"{RECORD}job-1", mapping=ended("dead"))
    records.corrections |= {"job-2": PET, "job-3": PET}

    assert problems(records, redis_client, tasks) == [
        "correction job-1 is dead and in the ledger of pet 42",
        "correction job-2 succeeded and is 0 times in the ledger of pet 42",
        "job job-3 of pet 42 has not ended: None",
    ]


def test_outdated_record_of_a_job_whose_end_was_logged_is_accepted(
    redis_client: redis.Redis, tasks: ClusterTasks, records: Records, tmp_path: Path
) -> None:
    records.corrections["job-3"] = PET
    log = tmp_path / "worker.log"
    log.write_text('{"message": "correction refused", "message_id": "job-3", "outcome": "refused"}\n')

    found = list(problems_of(records, found_in(redis_client), tasks, logged=logged_ends([log])))

    assert (found, records.behind) == ([], {"job-3"})


def test_judge_reports_a_correction_that_the_clusters_violate(
    redis_client: redis.Redis, tasks: ClusterTasks, records: Records
) -> None:
    redis_client.setrange(KEYS.labels, 0, (-1).to_bytes(4, "little", signed=True))
    redis_client.setrange(KEYS.origins, 0, b"\0")

    found = problems(records, redis_client, tasks)

    assert any(text.startswith("pet 42: its corrections are broken") for text in found)


def test_judge_reports_a_key_that_belongs_to_no_part_of_the_system(
    redis_client: redis.Redis, tasks: ClusterTasks, records: Records
) -> None:
    redis_client.set("strange", "x")
    redis_client.set("{pet:9}:labels", "x")

    assert sorted(problems(records, redis_client, tasks)) == [
        "the key strange belongs to nothing",
        "the key {pet:9}:labels belongs to nothing",
    ]


def test_judge_reports_an_export_that_import_would_refuse(
    redis_client: redis.Redis, tasks: ClusterTasks, records: Records
) -> None:
    records.torn.append("pet 42: half of it")

    assert problems(records, redis_client, tasks) == ["pet 42: half of it"]
    assert isinstance(ClusterService(RedisPetStore(redis_client)).export(PET), bytes)


def test_judge_and_oracle_report_the_same_broken_corrections() -> None:
    rng = random.Random(7)
    day = Day(7, upheavals=True)
    for _ in range(40):
        day.go_on()
    state = day.store.load(PET)
    whole, demanded = dict(zip(state.media, state.labels.tolist(), strict=True)), demands(state.ledger)
    some = sorted({*state.labels.tolist()})

    n_broken = 0
    for n_moved in (0, 1, 1, 1, 2, 2, 2, 3, 3, 5) * 3:
        labels = whole | {item: rng.choice(some) for item in rng.sample(sorted(whole), n_moved)}
        expected = bool(demanded.broken(labels, state.aliases))
        assert bool(broken_demands(demanded, labels, state.aliases)) == expected
        n_broken += expected

    assert 0 < n_broken < 30
