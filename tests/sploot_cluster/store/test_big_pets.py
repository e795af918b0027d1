"""Tests of pets that are too large for one command: they are read and replaced step by step."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
import redis

from benchmarks import big_pets
from sploot_cluster.decide.deletion import without
from sploot_cluster.errors import ModelMismatch, RevisionConflict, StoreUnavailable, UnknownMedia, UnknownPet
from sploot_cluster.pet.models import MediaId
from sploot_cluster.service import ClusterService
from sploot_cluster.store import export_file
from sploot_cluster.store.keys import PetKeys
from sploot_cluster.store.port import PetStore
from sploot_cluster.store.redis import RedisPetStore
from tasks.redis_access.embedded import EmbeddedRedis
from tests.sploot_cluster.store.test_million_pets import undisturbed
from tests.sploot_cluster.store.test_store import PET, arrival, comparable, recluster

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
KEYS = PetKeys.of(PET)
# A row takes 4 kB, so these rows need several commands to read and to write.
DIM, N = 1024, 600


class Interrupted(redis.Redis):
    """A client that calls ``interrupt`` once, before a pipeline: the next one after ``n_pipelines`` others."""

    interrupt: Callable[[], object] | None = None
    n_pipelines = 0

    def pipeline(self, *args: Any, **options: Any) -> Any:
        if self.n_pipelines:
            self.n_pipelines -= 1
        else:
            interrupt, self.interrupt = self.interrupt, None
            if interrupt is not None:
                interrupt()
        return super().pipeline(*args, **options)


@pytest.fixture
def client(redis_url: str, redis_client: redis.Redis) -> Any:
    with Interrupted.from_url(redis_url) as client:
        yield client


def big_pet(client: redis.Redis) -> RedisPetStore:
    """Store a pet with ``N`` items in one cluster; item 0 is ``m0``."""
    store = RedisPetStore(client)
    empty = store.load(PET)
    state = store.commit(empty, arrival(empty, *(f"m{row}" for row in range(N)), dim=DIM))
    store.commit(state, recluster(state, [1] * N, c1=0.5))
    return store


def test_replacement_of_a_big_pet_leaves_exactly_its_keys(client: Interrupted) -> None:
    store = big_pet(client)
    before = store.dump(PET)
    after = without(before, [MediaId("m7")], by="eve", at=NOW)

    state = store.replace(before, after)

    assert comparable(store.load(PET)) == comparable(state)
    assert export_file.dump(store.dump(PET)) == export_file.dump(after)
    left: Any = client.keys("{*")
    assert set(left) <= {key.encode() for key in KEYS}
    assert {client.pttl(key) for key in left} == {-1}


def test_replacement_of_a_big_pet_that_loses_a_race_writes_nothing(client: Interrupted) -> None:
    store = big_pet(client)
    before = store.dump(PET)
    state = store.commit(before.state, arrival(before.state, "late", dim=DIM))

    with pytest.raises(RevisionConflict):
        store.replace(before, without(before, [MediaId("m7")], by="eve", at=NOW))

    assert comparable(store.load(PET)) == comparable(state)
    left: Any = client.keys("{*")
    assert set(left) <= {key.encode() for key in KEYS}


def test_full_server_keeps_a_big_pet_and_discards_its_partial_copy(
    client: Interrupted, request: pytest.FixtureRequest
) -> None:
    store = big_pet(client)
    before = store.dump(PET)
    request.addfinalizer(lambda: client.config_set("maxmemory", 0))
    client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + 1_000_000)

    with pytest.raises(StoreUnavailable, match="memory"):
        store.replace(before, without(before, [MediaId("m7")], by="eve", at=NOW))

    assert comparable(store.load(PET)) == comparable(before.state)
    left: Any = client.keys("{*")
    assert set(left) <= {key.encode() for key in KEYS}


def test_copy_written_by_a_process_that_died_expires(client: Interrupted) -> None:
    store = big_pet(client)
    before = store.dump(PET)
    seen: list[dict[bytes, int]] = []

    def look() -> None:
        staged: Any = client.keys("{*:new:*")
        seen.append({key: int(client.pttl(key)) for key in staged})

    def look_at_the_second_step() -> None:
        client.interrupt = look

    client.interrupt = look_at_the_second_step

    store.replace(before, without(before, [MediaId("m7")], by="eve", at=NOW))

    assert seen[0]
    assert all(0 < ttl <= 15 * 60 * 1000 for ttl in seen[0].values())


@pytest.mark.parametrize("with_arrival", [False, True], ids=["deletion", "deletion and arrival"])
def test_load_of_a_big_pet_restarts_if_the_pet_is_replaced_meanwhile(
    client: Interrupted, redis_client: redis.Redis, with_arrival: bool
) -> None:
    store, other = big_pet(client), RedisPetStore(redis_client)

    def replace() -> None:
        before = other.dump(PET)
        state = other.replace(before, without(before, [MediaId("m7")], by="eve", at=NOW))
        if with_arrival:
            other.commit(state, arrival(state, "m7", dim=DIM))

    client.interrupt = replace
    loaded = store.load(PET)

    assert comparable(loaded) == comparable(other.load(PET))
    assert loaded.n_media == N - 1 + with_arrival


def test_load_of_a_big_pet_ignores_items_that_arrive_meanwhile(client: Interrupted, redis_client: redis.Redis) -> None:
    store, other = big_pet(client), RedisPetStore(redis_client)
    state = other.load(PET)
    client.interrupt = lambda: other.commit(state, arrival(state, "late", dim=DIM))

    assert comparable(store.load(PET)) == comparable(state)
    np.testing.assert_array_equal(store.load(PET).vectors[:N], state.vectors)


def test_dump_is_consistent_if_an_item_leaves_the_quarantine_meanwhile(
    client: Interrupted, redis_client: redis.Redis
) -> None:
    store, other = big_pet(client), ClusterService(RedisPetStore(redis_client))
    with pytest.raises(ModelMismatch):
        other.assign(PET, MediaId("odd"), model="x@1", vector=[1.0] * DIM)
    client.interrupt = lambda: other.assign(PET, MediaId("odd"), model="clip@1", vector=[1.0] * DIM)

    dump = store.dump(PET)

    assert list(export_file.problems(dump)) == []
    assert ("odd" in dump.state.rows, dump.quarantine, dump.ingested) == (True, {}, N + 1)


# -- removals --------------------------------------------------------------------------------------------------------

# A number of rows that is copied in two steps.
FEW = 100
GONE = [MediaId(name) for name in ("m0", "m7", "m63", "m64", "odd", "never")]


def remover(client: redis.Redis) -> ClusterService:
    """Return a service that removes items from any pet inside Redis."""
    return ClusterService(RedisPetStore(client), big_pet_bytes=0)


def reviewed_pet(client: redis.Redis) -> PetStore:
    """Store a pet of two clusters, with noise, a correction, a quarantined item and a candidate model."""
    store, service = RedisPetStore(client), ClusterService(RedisPetStore(client))
    empty = store.load(PET)
    state = store.commit(empty, arrival(empty, *(f"m{row}" for row in range(FEW)), dim=DIM))
    store.commit(state, recluster(state, [1] * 60 + [2] * 30 + [-1] * 10, c1=0.5, c2=0.5))
    service.dismiss(PET, [MediaId("m7"), MediaId("m8")], operation_id="1", by="ada")
    service.begin_model(PET, "x@1", 8, by="ada")
    for item in ("m1", "m7", "odd", "new"):
        service.assign(PET, MediaId(item), model="x@1", vector=[1.0] * 8)
    return store


def saved(client: redis.Redis) -> dict[str, Any]:
    return {key: client.dump(key) for key in KEYS if client.exists(key)}


def put_back(client: redis.Redis, original: dict[str, Any]) -> None:
    client.delete(*KEYS)
    for key, value in original.items():
        client.restore(key, 0, value)


def content(client: redis.Redis) -> dict[str, object]:
    """Return all data of the pet except times, random names and stand-ins."""
    dump = RedisPetStore(client).dump(PET)
    assert list(export_file.problems(dump)) == []
    assert dump.shadow is not None
    past = RedisPetStore(client).past(PET)
    return {
        "state": comparable(dump.state) | {"version": "", "ledger": [one.revision for one in dump.state.ledger]},
        "arrived": dump.arrived.tolist(),
        "past": [past.at(revision).labels.tolist() for revision in range(past.since, dump.state.revision + 1)],
        "history": [(entry.revision, entry.kind, entry.by, entry.summary) for entry in dump.history],
        "quarantine": set(dump.quarantine),
        "counts": (dump.ingested, dump.overflowed, dump.past_from),
        "shadow": {item: vector.tolist() for item, vector in dump.shadow.vectors.items()},
    }


def test_removal_inside_redis_leaves_the_same_data_as_one_in_memory(redis_client: redis.Redis) -> None:
    reviewed_pet(redis_client)
    original = saved(redis_client)

    removed = remover(redis_client).delete_media(PET, GONE, by="eve")
    inside = content(redis_client)
    put_back(redis_client, original)
    replaced = ClusterService(RedisPetStore(redis_client)).delete_media(PET, GONE, by="eve")

    assert inside == content(redis_client)
    assert removed == replaced
    assert removed.n_media == 5


def test_removal_inside_redis_leaves_exactly_the_keys_of_the_pet(redis_client: redis.Redis) -> None:
    reviewed_pet(redis_client)

    remover(redis_client).delete_media(PET, GONE, by="eve")

    left: Any = redis_client.keys("{*")
    assert set(left) <= {key.encode() for key in KEYS}
    assert {redis_client.pttl(key) for key in left} == {-1}
    assert not any(b"m64" in bytes(redis_client.dump(key) or b"") for key in left)


def test_removal_of_unknown_items_copies_nothing(client: Interrupted) -> None:
    reviewed_pet(client)
    before = client.info("commandstats")["cmdstat_rpush"]["calls"]

    with pytest.raises(UnknownMedia):
        remover(client).delete_media(PET, [MediaId("never")], by="eve")

    assert client.info("commandstats")["cmdstat_rpush"]["calls"] == before


def test_last_items_with_rows_and_in_quarantine_can_be_removed(redis_client: redis.Redis) -> None:
    reviewed_pet(redis_client)

    remover(redis_client).delete_media(PET, [MediaId("odd")], by="eve")
    remover(redis_client).delete_media(PET, [MediaId(f"m{row}") for row in range(FEW)], by="eve")
    remover(redis_client).delete_media(PET, [MediaId("new")], by="eve")

    tally = RedisPetStore(redis_client).tally(PET)
    assert (tally.tally.ingested, tally.quarantine, tally.tally.is_conserved) == (0, {}, True)


def arrive(other: ClusterService) -> None:
    other.assign(PET, MediaId("late"), model="clip@1", vector=[1.0] * DIM)


def quarantine(other: ClusterService) -> None:
    with pytest.raises(ModelMismatch):
        other.assign(PET, MediaId("late"), model="y@1", vector=[1.0] * 4)


def embed(other: ClusterService) -> None:
    other.assign(PET, MediaId("m2"), model="x@1", vector=[1.0] * 8)


def correct(other: ClusterService) -> None:
    other.dismiss(PET, [MediaId("m9")], operation_id="2", by="bob")


def delete(other: ClusterService) -> None:
    other.delete_media(PET, [MediaId("m7"), MediaId("m50")], by="bob")


@pytest.mark.slow
@pytest.mark.parametrize("change", [arrive, quarantine, embed, correct, delete])
def test_change_made_at_any_moment_during_a_removal_is_kept(
    client: Interrupted, redis_client: redis.Redis, change: Callable[[ClusterService], None]
) -> None:
    reviewed_pet(redis_client)
    original = saved(redis_client)
    other, service = ClusterService(RedisPetStore(redis_client)), remover(client)
    n_pipelines, was_interrupted = 0, True
    while was_interrupted:
        client.interrupt, client.n_pipelines = lambda: change(other), n_pipelines
        service.delete_media(PET, GONE, by="eve")
        was_interrupted = client.interrupt is None
        if was_interrupted:
            found = content(redis_client)
            state = RedisPetStore(redis_client).load(PET)
            tally = other.tally(PET)
            assert not {*GONE} & ({*state.media} | {*tally.quarantine})
            is_kept: dict[Callable[[ClusterService], None], bool] = {
                arrive: "late" in state.rows,
                quarantine: "late" in tally.quarantine,
                embed: "m2" in found["shadow"],  # type: ignore[operator]
                correct: "m9" in RedisPetStore(redis_client).view(PET).dismissed,
                delete: "m50" not in state.rows,
            }
            assert is_kept[change], f"lost before pipeline {n_pipelines}"
            left: Any = redis_client.keys("{*")
            assert set(left) <= {key.encode() for key in KEYS}
        put_back(redis_client, original)
        n_pipelines += 1
    assert n_pipelines > 5


def test_pet_deleted_during_a_removal_stays_deleted(client: Interrupted, redis_client: redis.Redis) -> None:
    reviewed_pet(redis_client)
    client.interrupt, client.n_pipelines = lambda: RedisPetStore(redis_client).delete(PET), 4

    with pytest.raises(UnknownPet):
        remover(client).delete_media(PET, GONE, by="eve")

    assert redis_client.keys("*") == []


def test_full_server_refuses_a_removal_and_keeps_the_pet(client: Interrupted, request: pytest.FixtureRequest) -> None:
    store = reviewed_pet(client)
    before = comparable(store.load(PET))
    request.addfinalizer(lambda: client.config_set("maxmemory", 0))
    client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + 100_000)

    with pytest.raises(StoreUnavailable, match="memory"):
        remover(client).delete_media(PET, GONE, by="eve")

    client.config_set("maxmemory", 0)
    assert comparable(store.load(PET)) == before
    left: Any = client.keys("{*")
    assert set(left) <= {key.encode() for key in KEYS}


# -- exports ---------------------------------------------------------------------------------------------------------


def test_export_in_parts_equals_a_dump_in_memory(client: Interrupted) -> None:
    store = big_pet(client)
    service = ClusterService(store)
    service.begin_model(PET, "x@1", DIM, by="ada")
    for item in ("m1", "m7", "new"):
        service.assign(PET, MediaId(item), model="x@1", vector=[1.0] * DIM)

    parts = list(service.export_parts(PET))

    assert len(parts) > 2
    assert b"".join(parts) == export_file.dump(store.dump(PET))
    service.delete_pet(PET)
    assert service.import_pet(b"".join(parts)).n_media == N
    assert b"".join(service.export_parts(PET)) == b"".join(parts)


@pytest.mark.parametrize("change", [arrive, quarantine, correct])
def test_export_ignores_changes_since_its_first_part(
    redis_client: redis.Redis, change: Callable[[ClusterService], None]
) -> None:
    service = ClusterService(reviewed_pet(redis_client))
    before = service.export(PET)

    parts = service.export_parts(PET)
    first = next(parts)
    change(service)

    assert first + b"".join(parts) == before


def test_export_may_include_later_vectors_of_the_candidate_model(redis_client: redis.Redis) -> None:
    service = ClusterService(reviewed_pet(redis_client))

    parts = service.export_parts(PET)
    first = next(parts)
    embed(service)
    exported = export_file.load(first + b"".join(parts))

    assert exported.shadow is not None
    assert {"m1", "m7", "odd", "new"} <= {*exported.shadow.vectors}


@pytest.mark.parametrize("change", [delete, lambda other: other.delete_pet(PET)], ids=["items", "pet"])
def test_export_in_parts_ends_if_the_pet_is_replaced(
    redis_client: redis.Redis, change: Callable[[ClusterService], None]
) -> None:
    service = ClusterService(big_pet(redis_client))

    parts = service.export_parts(PET)
    next(parts)
    change(service)

    with pytest.raises(RevisionConflict):
        list(parts)


def test_export_starts_again_if_the_pet_is_replaced_meanwhile(client: Interrupted, redis_client: redis.Redis) -> None:
    service, other = ClusterService(big_pet(client)), ClusterService(RedisPetStore(redis_client))
    deleted: list[int] = []

    def interrupt() -> None:
        delete(other)
        deleted.append(other.revision(PET))

    client.interrupt, client.n_pipelines = interrupt, 2

    file = service.export(PET)

    assert len(deleted) == 1
    assert file == other.export(PET)


@pytest.mark.scale
@pytest.mark.timeout(1_800)
def test_big_pet_blocks_redis_for_at_most_five_milliseconds(capsys: pytest.CaptureFixture[str]) -> None:
    """Repeats each use of a pet of 50,000 items up to five times, because other processes may interrupt commands."""
    found: dict[str, big_pets.Use] = {}
    for _ in range(5):
        with EmbeddedRedis(options={"appendonly": "yes"}) as server:
            undisturbed(server)
            for use in big_pets.measure(server.url, 50_000):
                best = found.setdefault(use.what, use)
                found[use.what] = min(best, use, key=lambda one: one.usual_ms)
        if all(use.usual_ms < 5 for use in found.values()):
            break

    with capsys.disabled():
        print()
        for use in found.values():
            print(f"{use.what}: {use.usual_ms:.1f} ms (at most {use.longest_ms:.1f}), {use.seconds:.1f} s")
    assert {what: use.usual_ms for what, use in found.items() if use.usual_ms >= 5} == {}
    assert {what: use.peak_mb for what, use in found.items() if use.peak_mb >= 100} == {}
