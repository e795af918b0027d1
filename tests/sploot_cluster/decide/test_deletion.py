"""Tests that deletion leaves nothing behind, and that export and import preserve a pet exactly."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import redis

from sploot_cluster import ClusterService
from sploot_cluster.decide.deletion import without
from sploot_cluster.decide.resolving import resolve
from sploot_cluster.errors import ModelMismatch, PetExists, UnknownMedia, UnknownPet, UnreadableExport
from sploot_cluster.pet.models import ClusterId, MediaId, PetId, PetState
from sploot_cluster.pet.times import time_of
from sploot_cluster.store import export_file as dumps
from sploot_cluster.store.keys import PETS, PetKeys
from sploot_cluster.store.memory import MemoryPetStore
from sploot_cluster.store.port import PetStore
from sploot_cluster.store.redis import RedisPetStore
from tests.sploot_cluster.albums import DIM, PET, grouped, name, names, picture, take, taken_at
from tests.sploot_cluster.days import STEPS, Day, check, check_past
from tests.sploot_cluster.oracle import demands

ONE, TWO, THREE = ClusterId(1), ClusterId(2), ClusterId(3)
OTHER = PetId(7)


@pytest.fixture
def service(store: PetStore) -> ClusterService:
    """A service with a pet that has clusters, corrections of every kind, a quarantined item and a preview."""
    service = grouped(store, 3, range(8))
    service.merge(PET, [ONE, TWO], into=ONE, operation_id="1", by="ada")
    service.split(PET, THREE, [name(2, 0), name(2, 1)], operation_id="2", by="ada")
    service.exclude(PET, ONE, [name(0, 0)], operation_id="3", by="bob")
    service.dismiss(PET, [name(1, 0)], operation_id="4", by="bob")
    with pytest.raises(ModelMismatch):
        service.assign(PET, MediaId("odd"), model="clip@2", vector=[1.0] * DIM, occurred_at=taken_at(name(0, 1)))
    service.preview(PET)
    return service


def everything(client: redis.Redis) -> bytes:
    """Return all keys and values of a Redis server as one string."""
    client.config_set("rdbcompression", "no")  # compressed ids would not be found
    return b"\n".join(bytes(key) + b" " + bytes(client.dump(key) or b"") for key in sorted(client.keys("*")))  # type: ignore[arg-type]  # replies are bytes


def comparable(store: PetStore, pet: PetId = PET) -> dict[str, object]:
    """Return all stored data of a pet, in comparable values."""
    dump = store.dump(pet)
    state = dump.state
    return {
        "media": list(state.media),
        "vectors": state.vectors.tolist(),
        "labels": state.labels.tolist(),
        "origins": state.origins.tolist(),
        "occurred_at_ms": state.occurred_at_ms.tolist(),
        "facts": (state.revision, state.model, state.dim, state.next_cluster, state.n_at_recluster),
        "counts": (state.noise_arrivals, state.relabelled_at, dump.past_from, dump.ingested),
        "clusters": dict(state.clusters),
        "aliases": dict(state.aliases),
        "ledger": state.ledger,
        "arrived": dump.arrived.tolist(),
        "history": dump.history,
        "overwritten": [
            (one.revision, one.rows.tolist(), one.labels.tolist(), one.origins.tolist(), one.aliases)
            for one in dump.overwritten
        ],
        "quarantine": dict(dump.quarantine),
    }


def places(state: PetState) -> dict[MediaId, int]:
    return dict(zip(state.media, state.labels.tolist(), strict=True))


# -- items -----------------------------------------------------------------------------------------------------------


def test_deletion_of_an_item_leaves_all_others_in_place(service: ClusterService, store: PetStore) -> None:
    gone = [name(0, 1), name(2, 0), MediaId("odd"), MediaId("never there")]
    before = store.load(PET)
    past = {revision: places_at(store, revision) for revision in (10, 25, 27)}

    deleted = service.delete_media(PET, gone, by="eve")

    after = store.load(PET)
    assert places(after) == {item: label for item, label in places(before).items() if item not in gone}
    assert np.array_equal(after.vectors[after.rows[name(2, 7)]], picture(2, 7))
    assert [time_of(ms) for ms in after.occurred_at_ms.tolist()] == list(map(taken_at, after.media))
    assert (deleted.n_media, deleted.n_corrections, deleted.revision) == (3, 3, before.revision + 1)
    tally = service.tally(PET).tally
    assert (tally.is_conserved, tally.ingested, tally.quarantined) == (True, 22, 0)
    for revision, then in past.items():
        assert places_at(store, revision) == {m: label for m, label in then.items() if m not in gone}
    (entry,) = service.history(PET, limit=1)
    assert (entry.kind, entry.by, entry.summary) == ("delete", "eve", {"n_deleted": 2})


def places_at(store: PetStore, revision: int) -> dict[MediaId, int]:
    then = store.past(PET).at(revision)
    return dict(zip(then.media, then.labels.tolist(), strict=True))


def test_deleted_item_leaves_nothing_in_redis(redis_client: redis.Redis) -> None:
    store = RedisPetStore(redis_client)
    service = ClusterService(store)
    secret, vector = MediaId("a-name-to-be-forgotten"), picture(0, 99)
    take(service, 0, range(8))
    take(service, 1, range(8))
    service.assign(PET, secret, model="clip@1", vector=vector)
    service.recluster(PET)
    service.merge(PET, [ONE, TWO], operation_id="1", by="ada")
    service.exclude(PET, ONE, [secret], operation_id="2", by="ada")
    service.dismiss(PET, [secret], operation_id="3", by="ada")
    service.preview(PET)
    stored = everything(redis_client)
    assert secret.encode() in stored

    service.delete_media(PET, [secret], by="eve")

    left = everything(redis_client)
    assert secret.encode() not in left
    assert vector.tobytes() not in redis_client.lrange(PetKeys.of(PET).vectors, 0, -1)
    assert not redis_client.exists(PetKeys.of(PET).preview, PetKeys.of(PET).tree)


def test_corrections_of_other_items_hold_after_a_deletion(service: ClusterService, store: PetStore) -> None:
    take(service, 3, range(8))
    service.recluster(PET)
    fourth = ClusterId(places(store.load(PET))[name(3, 0)])
    service.split(PET, fourth, [name(3, 0)], operation_id="5", by="ada")
    link = ClusterId(places(store.load(PET))[name(3, 0)])
    service.merge(PET, [link, THREE], operation_id="6", by="ada")

    # this is the only item that two corrections have in common
    service.delete_media(PET, [name(3, 0)], by="eve")
    reclustered = service.recluster(PET)

    state = store.load(PET)
    assert demands(state.ledger).broken(places(state), state.aliases) == []
    assert reclustered.constraints_kept == reclustered.constraints
    assert len({places(state)[item] for item in names(2, range(2, 8))}) == 1
    assert resolve(state.ledger).conflicts(name(2, 2), name(3, 1)), (
        "it is merged with one, and was split from the other"
    )


def test_size_at_the_last_recluster_excludes_items_deleted_since(service: ClusterService, store: PetStore) -> None:
    take(service, 0, range(20, 22))

    service.delete_media(PET, [name(0, 1), name(1, 1), name(0, 20)], by="eve")

    state = store.load(PET)
    assert (state.n_media, state.n_at_recluster) == (23, 22)


def test_deleted_item_that_arrives_again_is_new(service: ClusterService, store: PetStore) -> None:
    service.delete_media(PET, [name(0, 0), name(1, 0)], by="eve")

    (again,) = take(service, 1, range(1))

    assert not again.is_duplicate
    assert name(1, 0) not in store.view(PET).dismissed


def test_unknown_items_cannot_be_deleted(service: ClusterService) -> None:
    with pytest.raises(UnknownMedia):
        service.delete_media(PET, [MediaId("never there")], by="eve")
    with pytest.raises(UnknownPet):
        service.delete_media(OTHER, [name(0, 0)], by="eve")


def test_pet_whose_items_were_all_deleted_accepts_new_ones(service: ClusterService, store: PetStore) -> None:
    service.delete_media(PET, [*store.load(PET).media], by="eve")

    empty = store.view(PET)
    take(service, 0, range(8))
    service.recluster(PET)

    assert (empty.n_media, empty.clusters, empty.noise) == (0, (), ())
    again = store.view(PET)
    assert (again.n_media, len(again.clusters)) == (8, 1)


@pytest.mark.parametrize("seed", range(3))
def test_corrections_hold_on_simulated_days_with_deletions(seed: int) -> None:
    day = Day(seed)
    for _ in range(STEPS):
        day.go_on()
        state = day.store.load(PET)
        if state.n_media > 3 and day.random.random() < 0.15:
            day.delete(state, "")
            check(day, f"seed {seed}, step {day.n_steps}: deletion")
    check_past(day)


def test_arrivals_during_a_deletion_are_not_lost(redis_client: redis.Redis) -> None:
    store = RedisPetStore(redis_client)
    take(ClusterService(store), 0, range(20))

    def delete() -> None:
        for number in range(10):
            ClusterService(store).delete_media(PET, [name(0, number)], by="eve")

    with ThreadPoolExecutor(3) as pool:
        arrivals = [pool.submit(take, ClusterService(store), subject, range(30)) for subject in (1, 2)]
        deletions = pool.submit(delete)
        for arrival in arrivals:
            arrival.result()
        deletions.result()

    state = store.load(PET)
    assert set(state.media) == names(0, range(10, 20)) | names(1, range(30)) | names(2, range(30))
    for item in (name(0, 15), name(1, 7), name(2, 29)):
        subject, number = item.removeprefix("s").split("-")
        assert np.array_equal(state.vectors[state.rows[item]], picture(int(subject), int(number)))
    assert store.tally(PET).tally.is_conserved


# -- pets ------------------------------------------------------------------------------------------------------------


def test_deleted_pet_leaves_nothing_in_redis(redis_client: redis.Redis) -> None:
    service = ClusterService(RedisPetStore(redis_client))
    for subject in range(2):
        take(service, subject, range(8))
    service.recluster(PET)
    service.dismiss(PET, [name(0, 0)], operation_id="1", by="ada")
    service.preview(PET)
    take(service, 0, range(3), pet=OTHER)
    with pytest.raises(ModelMismatch):
        service.assign(PET, MediaId("odd"), model="clip@2", vector=[1.0] * DIM)

    deleted = service.delete_pet(PET)

    assert (deleted.n_media, deleted.n_corrections) == (17, 1)
    assert redis_client.keys("{pet:42}*") == []
    assert redis_client.smembers(PETS) == {b"7"}
    with pytest.raises(UnknownPet):
        service.delete_pet(PET)


def test_deleted_pet_can_be_recreated(service: ClusterService, store: PetStore) -> None:
    service.delete_pet(PET)

    take(service, 5, range(3))

    state = store.load(PET)
    assert (state.revision, state.n_media, state.ledger) == (3, 3, ())
    assert store.pets() == [PET]


def test_worker_that_has_a_deleted_pet_in_its_cache_does_not_bring_it_back(
    service: ClusterService, store: PetStore
) -> None:
    other = ClusterService(store)
    take(other, 0, range(30, 31))
    service.delete_pet(PET)

    take(other, 0, range(31, 32))

    assert list(store.load(PET).media) == [name(0, 31)]


def test_pet_created_during_its_deletion_is_listed(redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = RedisPetStore(redis_client), RedisPetStore(redis_client)
    commit = store._commit.and_then

    def overtaken(*command: Any, **kwargs: Any) -> object:
        other.delete(PET)
        return commit(*command, **kwargs)

    monkeypatch.setattr(store._commit, "and_then", overtaken)

    take(ClusterService(store), 0, range(1))

    assert store.pets() == [PET]


def test_pet_deleted_during_a_deletion_of_items_leaves_nothing(
    redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = RedisPetStore(redis_client), RedisPetStore(redis_client)
    service = ClusterService(store)
    take(service, 0, range(3))
    replace = store.replace

    def overtaken(*args: Any, **kwargs: Any) -> PetState:
        other.delete(PET)
        return replace(*args, **kwargs)

    monkeypatch.setattr(store, "replace", overtaken)

    with pytest.raises(UnknownPet):
        service.delete_media(PET, [name(0, 0)], by="eve")

    assert redis_client.keys("*") == []


# -- export files ----------------------------------------------------------------------------------------------------


def test_imported_pet_equals_the_exported_one(service: ClusterService, store: PetStore) -> None:
    before = comparable(store)
    file = service.export(PET)
    service.delete_pet(PET)

    view = service.import_pet(file)

    assert comparable(store) == before
    assert view.revision == store.revision(PET)
    assert store.pets() == [PET]
    assert service.export(PET) == file
    assert service.tally(PET).tally.is_conserved


def test_pet_moved_to_another_store_accepts_changes(redis_client: redis.Redis, store: PetStore) -> None:
    for subject in range(3):
        take(ClusterService(store), subject, range(8))
    ClusterService(store).recluster(PET)
    ClusterService(store).merge(PET, [ONE, TWO], operation_id="1", by="ada")
    elsewhere = ClusterService(MemoryPetStore())

    elsewhere.import_pet(ClusterService(store).export(PET), pet=OTHER)
    take(elsewhere, 0, range(20, 24), pet=OTHER)
    reclustered = elsewhere.recluster(OTHER)

    assert (reclustered.n_media, reclustered.kept) == (28, "constraints kept 1 of 1")


def test_import_over_an_existing_pet_is_refused(service: ClusterService, store: PetStore) -> None:
    file = service.export(PET)
    before = comparable(store)

    with pytest.raises(PetExists, match="pet 42 already exists, at revision 29; delete it first"):
        service.import_pet(file)

    assert comparable(store) == before


def test_export_of_an_unknown_pet_is_refused(store: PetStore) -> None:
    with pytest.raises(UnknownPet):
        ClusterService(store).export(PET)


def _facts(change: Callable[[dict[str, object]], object]) -> Callable[[dict[str, bytes]], None]:
    def changed(parts: dict[str, bytes]) -> None:
        facts = json.loads(parts["pet.json"])
        change(facts)
        parts["pet.json"] = json.dumps(facts).encode()

    return changed


def _column(name: str, change: Callable[[bytes], bytes]) -> Callable[[dict[str, bytes]], None]:
    """Return a function that changes a column and its checksum."""

    def changed(parts: dict[str, bytes]) -> None:
        facts = json.loads(parts["pet.json"])
        parts[name] = change(parts[name])
        facts["sha256"][name] = sha256(parts[name]).hexdigest()
        parts["pet.json"] = json.dumps(facts).encode()

    return changed


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda parts: parts.pop("pet.json"), "pet.json"),
        (lambda parts: parts.update({"vectors.f32le": parts["vectors.f32le"][:-4] + b"\0\0\0\1"}), "checksum"),
        (_facts(lambda facts: facts.update(format=2)), "expected format 1, got 2"),
        (_facts(lambda facts: facts.update(media=facts["media"][:-1])), "reshape"),  # type: ignore[index]
        (_facts(lambda facts: facts.update(clusters=[])), "labels do not match its clusters"),
        (_facts(lambda facts: facts.update(ingested=3)), "ingested 3 items"),
        (_facts(lambda facts: facts.pop("ledger")), "pet.json has no ledger"),
        (_facts(lambda facts: facts["media"].__setitem__(0, facts["media"][1])), "contains an item twice"),  # type: ignore[index]
        (_facts(lambda facts: facts["media"].__setitem__(0, "odd")), "contains an item twice"),  # type: ignore[index]
        (_facts(lambda facts: facts.update(next_cluster=4)), "next cluster id, 4, was assigned already"),
        (_facts(lambda facts: facts.update(aliases={"2": 9})), "aliases do not resolve to its clusters"),
        (_facts(lambda facts: facts.update(aliases={"1": 3})), "aliases do not resolve to its clusters"),
        (_column("occurred_at.i64le", lambda column: column[:-8]), "has 23 times of 24 items"),
        (_column("occurred_at.i64le", lambda column: column[:-1] + b"\x7f"), "time of an item is out of range"),
        (_column("origins.u8", lambda column: bytes(len(column))), "origins do not match its labels"),
        (_column("vectors.f32le", lambda column: bytes(len(column))), "vectors do not have unit norm"),
        (_column("vectors.f32le", lambda column: b"\xff" * len(column)), "vectors do not have unit norm"),
        (_column("arrived.u32le", lambda column: column[4:] + column[:4]), "arrivals are not in order"),
        (_column("arrived.u32le", lambda column: column[:-4] + b"\xff\xff\0\0"), "arrivals are not in order"),
    ],
)
def test_modified_export_is_refused(
    service: ClusterService, change: Callable[[dict[str, bytes]], object], problem: str
) -> None:
    with zipfile.ZipFile(io.BytesIO(service.export(PET))) as packed:
        parts = {part: packed.read(part) for part in packed.namelist()}
    change(parts)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for part, content in parts.items():
            packed.writestr(part, content)

    with pytest.raises(UnreadableExport, match=problem) as refused:
        service.import_pet(file.getvalue(), pet=OTHER)

    assert refused.value.field == "file"


def test_import_of_a_file_that_is_not_a_zip_is_refused() -> None:
    with pytest.raises(UnreadableExport, match="BadZipFile"):
        dumps.load(b"pet")


@pytest.mark.parametrize("way", ["a cluster", "an alias"])
def test_export_is_refused_if_its_next_cluster_id_was_already_assigned(service: ClusterService, way: str) -> None:
    pet = dumps.load(service.export(PET))
    next_id, one = pet.state.next_cluster, pet.overwritten[-1]
    labels = np.full_like(one.labels, next_id) if way == "a cluster" else one.labels
    aliases: dict[ClusterId, ClusterId | None] = {next_id: ClusterId(1)} if way == "an alias" else {}
    file = dumps.dump(replace(pet, overwritten=(replace(one, labels=labels, aliases=aliases),)))

    with pytest.raises(UnreadableExport, match=f"next cluster id, {next_id}, was assigned already"):
        service.import_pet(file, pet=OTHER)


def test_deletion_drops_the_oldest_stored_revision_beyond_the_limit(
    service: ClusterService, store: PetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pet = store.dump(PET)
    n_kept = len(pet.overwritten)
    monkeypatch.setattr("sploot_cluster.pet.past.KEPT", n_kept)
    led = replace(pet, state=replace(pet.state, aliases={ClusterId(99): ClusterId(3)}))

    after = without(led, names(2, range(8)), by="eve", at=datetime.now(UTC))

    assert 3 not in after.state.clusters
    assert len(after.overwritten) == n_kept
    assert after.past_from == pet.overwritten[0].revision
    assert after.overwritten[-1].aliases == {99: 3}
