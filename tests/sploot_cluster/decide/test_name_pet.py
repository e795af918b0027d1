"""The correction ``name_pet``: a pet has a name, lists show it, and searches find the pet by its beginning."""

from __future__ import annotations

import pytest
import redis

from sploot_cluster import ClusterService
from sploot_cluster.errors import AlreadyMade, InvalidInput, UnknownPet
from sploot_cluster.pet.models import PetId
from sploot_cluster.store.keys import NAMES, PETS, PetKeys
from sploot_cluster.store.memory import MemoryPetStore
from sploot_cluster.store.port import PetStore
from sploot_cluster.store.redis import RedisPetStore
from tests.sploot_cluster.albums import PET, grouped, take

OTHER = PetId(7)


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> PetStore:
    if request.param == "memory":
        return MemoryPetStore()
    return RedisPetStore(request.getfixturevalue("redis_client"))


@pytest.fixture
def service(store: PetStore) -> ClusterService:
    """A service with pet 42, which has clusters, and pet 7, which has one item."""
    service = grouped(store, 2, range(6))
    take(service, 0, range(1), pet=OTHER)
    return service


def name(service: ClusterService, text: str, *, pet: PetId = PET) -> int:
    """Name a pet, and return the revision."""
    operation_id = f"{pet}-{service.revision(pet)}"
    return service.name_pet(pet, text, operation_id=operation_id, by="ada").revision


def found(service: ClusterService, search: str) -> list[tuple[int, str | None]]:
    return [(pet.pet_id, pet.name) for pet in service.page_of_pets(search=search).pets]


def test_pet_is_found_by_the_beginning_of_its_name(service: ClusterService) -> None:
    name(service, "Mochi the Great")
    name(service, "MOPS", pet=OTHER)

    assert service.clusters(PET).name == "Mochi the Great"
    assert found(service, "") == [(OTHER, "MOPS"), (PET, "Mochi the Great")]
    assert found(service, "mo") == [(OTHER, "MOPS"), (PET, "Mochi the Great")]
    assert found(service, "MOCHI THE") == [(PET, "Mochi the Great")]
    assert found(service, "the") == []


@pytest.mark.parametrize("text", ["Žofka", "Straße", "麻糬", "7", "100% “Dog”", "x" * 100])
def test_names_in_any_script_are_found(service: ClusterService, text: str) -> None:
    name(service, text)

    assert (PET, text) in found(service, text[:3].upper())


def test_search_for_digits_finds_ids_and_names(service: ClusterService) -> None:
    name(service, "42nd street", pet=OTHER)

    assert found(service, "42") == [(OTHER, "42nd street"), (PET, None)]


def test_former_name_is_not_found_until_an_undo_restores_it(service: ClusterService) -> None:
    name(service, "Mochi")
    revision = name(service, "Rex")
    renamed = (found(service, "mochi"), found(service, "rex"))
    service.undo(PET, revision, operation_id="undo", by="ben")
    undone = (found(service, "mochi"), found(service, "rex"))
    name(service, "")

    assert renamed == ([], [(PET, "Rex")])
    assert undone == ([(PET, "Mochi")], [])
    assert (found(service, "mochi"), service.clusters(PET).name) == ([], None)
    assert [entry.summary["name"] for entry in service.history(PET) if entry.kind == "name_pet"] == ["", "Rex", "Mochi"]


def test_pet_name_survives_reclusters_and_deletions_and_moves_no_items(
    service: ClusterService, store: PetStore
) -> None:
    before = store.load(PET)
    name(service, "Mochi")
    after = store.load(PET)
    service.recluster(PET)
    service.delete_media(PET, list(before.media[:2]), by="eve")

    assert after.labels.tolist() == before.labels.tolist()
    assert after.relabelled_at == before.relabelled_at
    assert found(service, "mochi") == [(PET, "Mochi")]


def test_name_is_not_found_after_a_pet_is_deleted_until_it_is_imported(service: ClusterService) -> None:
    name(service, "Mochi")
    file = service.export(PET)
    service.delete_pet(PET)
    deleted = found(service, "mochi")
    service.import_pet(file, pet=PetId(99))

    assert (deleted, found(service, "mochi")) == ([], [(99, "Mochi")])


def test_naming_that_changes_nothing_is_refused(service: ClusterService) -> None:
    with pytest.raises(AlreadyMade, match="pet 42 has no name"):
        name(service, "")
    name(service, "Mochi")

    with pytest.raises(AlreadyMade, match="this name already"):
        name(service, "Mochi")
    with pytest.raises(InvalidInput, match="begins or ends with a space"):
        name(service, "Mochi ")
    with pytest.raises(InvalidInput, match="U\\+0000"):
        name(service, "Mo\0chi")
    with pytest.raises(UnknownPet):
        name(service, "Rex", pet=PetId(8))
    assert service.pets() == [OTHER, PET]


def test_search_drops_stale_index_entries_that_a_dead_process_left(redis_client: redis.Redis) -> None:
    service = grouped(RedisPetStore(redis_client), 1, range(3))
    name(service, "Mochi")
    redis_client.zadd(NAMES, {b"rex\x0042": 0, b"rex\x00999": 0})

    assert found(service, "rex") == []
    assert redis_client.zrange(NAMES, 0, -1) == [b"mochi\x0042"]


def test_name_index_and_set_of_pets_are_rebuilt_after_both_are_lost(redis_client: redis.Redis) -> None:
    service = grouped(RedisPetStore(redis_client), 1, range(3))
    name(service, "Mochi")
    redis_client.delete(NAMES, PETS)

    take(service, 0, range(90, 91))

    assert found(service, "mochi") == [(PET, "Mochi")]


def test_arrivals_in_unnamed_pets_write_nothing_to_the_name_index(redis_client: redis.Redis) -> None:
    grouped(RedisPetStore(redis_client), 1, range(3))

    assert redis_client.exists(NAMES) == 0
    assert redis_client.hget(PetKeys.of(PET).meta, "name") is None


def test_deletion_works_although_the_name_cannot_be_read(redis_client: redis.Redis) -> None:
    service = grouped(RedisPetStore(redis_client), 1, range(3))
    name(service, "Mochi")
    redis_client.delete(PetKeys.of(PET).meta)
    redis_client.set(PetKeys.of(PET).meta, "damaged")

    service.delete_pet(PET)

    assert found(service, "mochi") == []
    assert redis_client.zcard(NAMES) == 0
