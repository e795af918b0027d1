"""Tests of pets with deleted or truncated keys: the next access reports them, and nothing else is lost."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import redis

from sploot_cluster import ClusterService
from sploot_cluster.errors import ModelMismatch, PetExists, RevisionConflict, UnknownMedia, UnknownPet, UnreadablePet
from sploot_cluster.pet.models import Change, ClusterId, MediaId, PetId
from sploot_cluster.store.keys import PETS, PetKeys
from sploot_cluster.store.redis import RedisPetStore
from tests.sploot_cluster.albums import PET, grouped, name, picture, take

KEYS = PetKeys.of(PET)
COMPUTED = {KEYS.tree, KEYS.preview}  # keys that can be computed again
TRUTH = [key for key in KEYS if key not in COMPUTED]
NEW = "clip@2"

TOUCHES: Mapping[str, Callable[[ClusterService], object]] = {
    "arrival": lambda service: take(service, 0, range(90, 91)),
    "known arrival": lambda service: take(service, 0, range(1)),
    "arrival of the second model": lambda service: service.assign(PET, MediaId("n"), model=NEW, vector=[1.0] * 16),
    "arrival of a third model": lambda service: service.assign(PET, MediaId("n"), model="x@1", vector=[1.0] * 16),
    "recluster": lambda service: service.recluster(PET),
    "preview": lambda service: service.preview(PET),
    "merge": lambda service: service.merge(PET, [ClusterId(1), ClusterId(3)], operation_id="op", by="ada"),
    "dismiss": lambda service: service.dismiss(PET, [name(0, 1)], operation_id="op", by="ada"),
    "undo": lambda service: service.undo(PET, 26, operation_id="op", by="ada"),
    "restore": lambda service: service.restore(PET, 25, operation_id="op", by="ada"),
    "delete media": lambda service: service.delete_media(PET, [name(0, 0)], by="eve"),
    "view": lambda service: service.clusters(PET),
    "history": lambda service: service.history(PET),
    "at": lambda service: service.at(PET, 3),
    "diff": lambda service: service.compare(PET, 3, 9),
    "why": lambda service: service.why(PET, name(0, 2)),
    "tally": lambda service: service.tally(PET),
    "export": lambda service: service.export(PET),
    "begin a model": lambda service: service.begin_model(PET, "x@1", 8, by="eve"),
    "end a model": lambda service: service.end_model(PET),
    "switch": lambda service: service.preview_switch(PET),
}


def album(client: Any) -> ClusterService:
    """A service whose cache holds a pet with data in every key."""
    service = grouped(RedisPetStore(client), 3, range(8))
    service.merge(PET, [ClusterId(1), ClusterId(2)], operation_id="1", by="ada")
    service.dismiss(PET, [name(0, 5)], operation_id="2", by="ada")
    with pytest.raises(ModelMismatch):
        service.assign(PET, MediaId("odd"), model="x@1", vector=[1.0] * 16)
    service.begin_model(PET, NEW, 16, by="eve")
    for number in range(4):
        service.assign(PET, name(0, number), model=NEW, vector=picture(0, number))
    assert set(client.keys("{*")) >= {key.encode() for key in TRUTH}
    return service


def cut(client: Any, key: str) -> None:
    """Remove the last element of a key, whatever its type."""
    match client.type(key):
        case b"string":
            client.set(key, bytes(client.get(key) or b"")[:-4])
        case b"list":
            client.rpop(key)
        case b"hash":
            client.hdel(key, client.hkeys(key)[-1])
        case b"stream":
            client.xdel(key, client.xrevrange(key, count=1)[0][0])


def contents(client: Any) -> dict[bytes, Any]:
    return {key: client.dump(key) for key in client.keys("{*")}


@pytest.mark.parametrize("damage", [redis.Redis.delete, cut], ids=["deleted", "cut"])
@pytest.mark.parametrize("key", TRUTH, ids=lambda key: key.removeprefix("{pet:42}:"))
def test_damaged_key_is_reported_by_every_access_and_loses_nothing(
    redis_client: redis.Redis, key: str, damage: Callable[[Any, str], object]
) -> None:
    remembers = album(redis_client)
    damage(redis_client, key)
    before = contents(redis_client)

    for service in (remembers, ClusterService(RedisPetStore(redis_client))):
        for touch, call in TOUCHES.items():
            with pytest.raises(UnreadablePet) as refused:
                call(service)
            error = refused.value
            assert (error.pet, (error.key or "").partition(" ")[0]) == (PET, key), touch
            assert error.expected, touch
            assert error.found, touch
            assert str(error).endswith(error.hint), touch
            assert contents(redis_client) == before, touch
    assert [damaged.key for damaged in remembers.totals().unreadable] == [error.key]
    assert remembers.totals().unconserved == (PET,)


def test_missing_field_of_meta_is_reported_by_its_name(redis_client: redis.Redis) -> None:
    remembers = album(redis_client)
    whole: dict[Any, Any] = redis_client.hgetall(KEYS.meta)

    for field in whole:
        redis_client.hdel(KEYS.meta, field)
        before = contents(redis_client)
        for service in (remembers, ClusterService(RedisPetStore(redis_client))):
            for touch in ("arrival", "recluster", "dismiss", "view"):
                with pytest.raises(UnreadablePet, match="found nothing") as refused:
                    TOUCHES[touch](service)
                assert refused.value.key == f"{KEYS.meta} {field.decode()}", touch
        assert contents(redis_client) == before, field
        redis_client.hset(KEYS.meta, field, whole[field])
    take(remembers, 0, range(90, 91))


@pytest.mark.parametrize("value", ["", "many", "-1", "1e309"])
def test_non_numeric_field_of_meta_is_reported(redis_client: redis.Redis, value: str) -> None:
    service = album(redis_client)
    whole: dict[Any, Any] = redis_client.hgetall(KEYS.meta)

    for field in ("n_media", "dim", "n_corrections", "n_shadow", "format"):
        redis_client.hset(KEYS.meta, field, value)
        with pytest.raises(UnreadablePet):
            take(service, 0, range(90, 91))
        redis_client.hset(KEYS.meta, field, whole[field.encode()])


@pytest.mark.parametrize("damage", [redis.Redis.delete, cut], ids=["deleted", "cut"])
@pytest.mark.parametrize("key", sorted(COMPUTED))
def test_damaged_tree_or_preview_does_not_block_any_operation(
    redis_client: redis.Redis, key: str, damage: Callable[[Any, str], object]
) -> None:
    service = grouped(RedisPetStore(redis_client), 3, range(90))
    service.preview(PET)
    assert redis_client.exists(key)
    damage(redis_client, key)

    for worker in (service, ClusterService(RedisPetStore(redis_client))):
        take(worker, 0, range(200, 201))
        worker.recluster(PET)


def test_import_over_remains_of_a_pet_is_refused(redis_client: redis.Redis) -> None:
    service = album(redis_client)
    file = service.export(PET)
    with pytest.raises(PetExists):
        service.import_pet(file)
    redis_client.delete(KEYS.meta)
    before = contents(redis_client)

    with pytest.raises(UnreadablePet, match="a hash next to 15 other keys of the pet, found nothing"):
        service.import_pet(file)

    assert contents(redis_client) == before


def test_damaged_pet_can_be_deleted_and_imported(redis_client: redis.Redis) -> None:
    service = album(redis_client)
    file = service.export(PET)
    redis_client.delete(KEYS.ledger)

    service.delete_pet(PET)
    left = redis_client.keys("*")
    service.import_pet(file)

    assert left == []
    assert service.export(PET) == file
    take(service, 0, range(90, 91))
    with pytest.raises(UnknownPet):
        service.delete_pet(PetId(7))


def test_labels_of_a_cluster_without_a_card_are_reported(redis_client: redis.Redis) -> None:
    service = album(redis_client)
    cards = redis_client.hgetall(KEYS.clusters)
    redis_client.hdel(KEYS.clusters, "3")
    redis_client.hset(KEYS.clusters, "77", cards[b"3"])
    before = contents(redis_client)

    fresh = ClusterService(RedisPetStore(redis_client))
    for touch in ("arrival", "recluster", "view"):
        with pytest.raises(UnreadablePet, match="labels name cluster"):
            TOUCHES[touch](fresh)

    assert service.clusters(PetId(7)).n_media == 0
    assert contents(redis_client) == before


def test_unreadable_pet_survives_pickling_with_its_attributes() -> None:
    error = UnreadablePet.of_key(pet=42, key="{pet:42}:ledger", expected="2 items", found="1 items")

    again = pickle.loads(pickle.dumps(error))

    assert str(again) == str(error)
    assert (again.key, again.expected, again.found, again.hint) == (error.key, "2 items", "1 items", error.hint)


# -- the list of all pets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_remembered", [True, False], ids=["remembered", "fresh"])
@pytest.mark.parametrize("touch", ["arrival", "recluster", "dismiss", "delete media"])
def test_unlisted_pet_is_listed_by_the_next_commit(redis_client: redis.Redis, touch: str, is_remembered: bool) -> None:
    service = album(redis_client)
    redis_client.delete(PETS)

    TOUCHES[touch](service if is_remembered else ClusterService(RedisPetStore(redis_client)))

    assert service.pets() == [PET]
    assert service.totals().n_pets == 1


def test_commit_after_a_concurrent_deletion_does_not_bring_the_pet_back(redis_client: redis.Redis) -> None:
    store, service = RedisPetStore(redis_client), album(redis_client)
    state = store.load(PET)
    service.delete_pet(PET)

    with pytest.raises(UnknownMedia):
        service.why(PET, name(0, 0))
    with pytest.raises(RevisionConflict):
        store.commit(state, Change("arrival", state.next_cluster, state.n_at_recluster, state.noise_arrivals))

    assert redis_client.keys("*") == []
