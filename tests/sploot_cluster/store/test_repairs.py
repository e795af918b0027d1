"""Tests of repairs: whichever key is damaged, data that can be derived is restored, and losses are listed."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import redis

from sploot_cluster import ClusterService
from sploot_cluster.errors import InvalidInput, ModelMismatch, RevisionConflict, UnknownPet, UnreadablePet
from sploot_cluster.pet.models import MediaId, Origin, PetId
from sploot_cluster.pet.whole import PetDump
from sploot_cluster.store import export_file
from sploot_cluster.store.keys import PETS
from sploot_cluster.store.redis import RedisPetStore
from sploot_cluster.store.repairs import PetRepairs, RawPet
from sploot_cluster.store.salvage import Salvaged, salvage
from tasks.redis_access.embedded import EmbeddedRedis
from tests.sploot_cluster.albums import MODEL, PET, name, names, picture, take
from tests.sploot_cluster.store.test_damage import KEYS, TRUTH, album, contents, cut

AT = datetime(2026, 11, 30, 12, tzinfo=UTC)
DISMISSED = name(0, 5)
EVERYTHING = {name(subject, number) for subject in range(3) for number in range(8)} | {"odd"}

# Key -> the loss that a repair reports if the key is deleted. A truncated key loses the same or less.
LOST = {
    KEYS.labels: "the clusters of",
    KEYS.origins: "the origins of",
    KEYS.ledger: "of the ledger: the ",
    KEYS.history: "entries of the history",
    KEYS.arrived: "the revisions of arrival of",
    KEYS.overwritten: "the labels of earlier revisions",
    KEYS.quarantine: "1 quarantined items: their producers must send them again",
    KEYS.shadow: "the candidate model and its 4 vectors: begin it again",
    KEYS.shadow_vectors: "vectors of the candidate model clip@2",
    KEYS.occurred_at: "the times that producers stated for",
}

# Further losses that other damage may cause.
ALSO_LOST = (LOST[KEYS.overwritten], "clusters without items", "aliases of ended clusters")

Damage = Callable[[Any, str], object]


@pytest.fixture(scope="module")
def whole(redis_server: EmbeddedRedis) -> RawPet:
    """The raw keys of a pet with data in every key, created once because it takes a while."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        album(client)
        return PetRepairs(client).read(PET)


@pytest.fixture
def repairs(redis_client: redis.Redis, whole: RawPet) -> PetRepairs:
    """A ``PetRepairs`` for a server that has the pet."""
    repairs = PetRepairs(redis_client)
    repairs.put_back(whole)
    return repairs


def repaired(repairs: PetRepairs, *, model: str | None = MODEL) -> Salvaged:
    raw = repairs.read(PET)
    found = salvage(raw, by="eve", at=AT, model=model)
    repairs.rewrite(raw, found.pet)
    return found


def problems_of(pet: PetDump) -> list[str]:
    """Return the reasons for which an import would refuse the pet. Also check that its export file equals its dump."""
    exported = export_file.dump(pet)
    assert export_file.dump(export_file.load(exported)) == exported
    return list(export_file.problems(pet))


@pytest.mark.parametrize("damage", [redis.Redis.delete, cut], ids=["deleted", "cut"])
@pytest.mark.parametrize("key", TRUTH, ids=lambda key: key.removeprefix("{pet:42}:"))
def test_repair_of_a_damaged_key_restores_the_pet_and_its_corrections(
    redis_client: redis.Redis, repairs: PetRepairs, key: str, damage: Damage
) -> None:
    damage(redis_client, key)
    assert repairs.damage(PET) is not None

    found = repaired(repairs)

    assert repairs.damage(PET) is None
    assert problems_of(found.pet) == []
    lost = LOST.get(key, "")
    others = [line for line in found.lost if not lost or lost not in line]
    assert all(any(known in line for known in ALSO_LOST) for line in others), found.lost
    assert not (damage is redis.Redis.delete and lost) or any(lost in line for line in found.lost)
    state = found.pet.state
    missing = EVERYTHING - {*state.media, *found.pet.quarantine}
    assert missing == ({"odd"} if key == KEYS.quarantine else set())
    assert found.pet.history[-1].kind == "repair"

    # producers send all items again: then the pet is as it was before, and corrections hold
    service = ClusterService(RedisPetStore(redis_client))
    for subject in range(3):
        take(service, subject, range(8))
    service.recluster(PET)
    view = service.clusters(PET)
    groups = {frozenset(cluster.media_ids) for cluster in view.clusters}
    assert groups == {
        frozenset(names(0, range(8)) - {DISMISSED} | names(1, range(8))),
        frozenset(names(2, range(8))),
    }
    assert (view.dismissed, view.noise) == ((DISMISSED,), ())
    assert service.totals().unconserved == ()


def test_repair_does_not_change_undamaged_data(redis_client: redis.Redis, repairs: PetRepairs) -> None:
    before = RedisPetStore(redis_client).dump(PET)
    redis_client.delete(KEYS.rows)

    found = repaired(repairs)

    after = RedisPetStore(redis_client).dump(PET)
    assert (found.derived, found.lost) == (("rows, from media",), ())
    assert after.history[:-1] == before.history
    assert (after.state.ledger, after.quarantine) == (before.state.ledger, before.quarantine)
    assert after.state.clusters == before.state.clusters
    assert after.state.labels.tolist() == before.state.labels.tolist()
    assert after.state.vectors.tobytes() == before.state.vectors.tobytes()
    assert [one.revision for one in after.overwritten] == [one.revision for one in before.overwritten]
    assert after.shadow is not None
    assert before.shadow is not None
    assert after.shadow.vectors.keys() == before.shadow.vectors.keys()


def test_items_whose_vectors_are_lost_are_quarantined(redis_client: redis.Redis, repairs: PetRepairs) -> None:
    for _ in range(2):
        cut(redis_client, KEYS.vectors)

    repaired(repairs)

    service = ClusterService(RedisPetStore(redis_client))
    why = service.why(PET, name(2, 7))
    assert why.reason == "quarantined: its vector was lost in a damaged key; ingest it again with a vector of 'clip@1'"
    assert service.tally(PET).tally.quarantined == 3
    take(service, 2, range(6, 8))
    assert service.tally(PET).tally.quarantined == 1
    assert service.clusters(PET).n_media == 24


def test_lost_ledger_is_replaced_by_corrections_that_keep_items_in_place(
    redis_client: redis.Redis, repairs: PetRepairs
) -> None:
    held = RedisPetStore(redis_client).load(PET)
    n_placed = int((held.origins == Origin.CORRECTED).sum())
    redis_client.delete(KEYS.ledger)

    found = repaired(repairs)

    kinds = [correction.kind for correction in found.pet.state.ledger]
    assert kinds == ["place", "dismiss"]
    assert len(found.pet.state.ledger[0].media()) == n_placed
    assert found.pet.state.ledger[1].media() == [DISMISSED]
    service = ClusterService(RedisPetStore(redis_client))
    undone = service.undo(PET, found.pet.state.ledger[1].revision, operation_id="op", by="ada")
    assert not undone.is_duplicate


def test_repair_of_a_pet_without_meta_requires_its_model(redis_client: redis.Redis, repairs: PetRepairs) -> None:
    redis_client.delete(KEYS.meta)
    before = contents(redis_client)

    with pytest.raises(InvalidInput, match="no key of pet 42 names the model of its vectors any more"):
        repaired(repairs, model=None)

    assert contents(redis_client) == before
    assert repaired(repairs).pet.state.dim == 16


def test_pet_of_a_newer_release_is_not_repaired(redis_client: redis.Redis, repairs: PetRepairs) -> None:
    redis_client.hset(KEYS.meta, "format", "2")

    with pytest.raises(InvalidInput, match="pet 42 has format 2, expected 1"):
        repaired(repairs)


def test_repair_refuses_a_pet_that_changed_since_it_was_read(redis_client: redis.Redis, repairs: PetRepairs) -> None:
    redis_client.delete(KEYS.rows)
    raw = repairs.read(PET)
    found = salvage(raw, by="eve", at=AT)
    repairs.rewrite(raw, found.pet)
    before = contents(redis_client)

    with pytest.raises(RevisionConflict):
        repairs.rewrite(raw, found.pet)

    assert contents(redis_client) == before


def test_keys_are_put_back_exactly_as_they_were_read(redis_client: redis.Redis, repairs: PetRepairs) -> None:
    cut(redis_client, KEYS.labels)
    redis_client.delete(KEYS.history)
    redis_client.set(KEYS.clusters, "not a hash")
    raw = repairs.read(PET)
    redis_client.delete(*KEYS)

    repairs.put_back(raw)

    assert repairs.read(PET) == raw
    with pytest.raises((RevisionConflict, UnreadablePet)):
        repairs.put_back(raw)


@pytest.mark.parametrize("seed", range(4))
def test_pet_with_random_damage_is_consistent_after_a_repair(
    redis_client: redis.Redis, repairs: PetRepairs, whole: RawPet, seed: int
) -> None:
    rng = random.Random(seed)
    for _ in range(4):
        redis_client.flushall()
        repairs.put_back(whole)
        hurt = rng.sample(TRUTH, rng.randrange(1, 5))
        for key in hurt:
            rng.choice([redis.Redis.delete, cut, _scramble, _replace])(redis_client, key)  # type: ignore[operator]
        if repairs.damage(PET) is None:
            continue  # a byte without significance changed, such as one in a name
        raw = repairs.read(PET)
        named = {item.decode(errors="replace") for item in (*raw.items("media"), *raw.pairs("rows"))}

        found = repaired(repairs)

        assert repairs.damage(PET) is None, (seed, hurt)
        assert problems_of(found.pet) == [], (seed, hurt)
        if not {KEYS.media, KEYS.rows} <= {*hurt}:
            assert named & EVERYTHING <= {*found.pet.state.media, *found.pet.quarantine}, (seed, hurt)
        service = ClusterService(RedisPetStore(redis_client))
        try:
            service.assign(PET, MediaId("next"), model=MODEL, vector=picture(0, 99))
        except ModelMismatch:
            assert service.tally(PET).tally.quarantined > 0
        service.recluster(PET)
        assert service.totals().unconserved == (), (seed, hurt)


def _scramble(client: Any, key: str) -> None:
    """Change one random byte of a value."""
    match client.type(key):
        case b"string":
            client.setrange(key, client.strlen(key) // 2, b"\xfe\xff")
        case b"list":
            client.lset(key, client.llen(key) // 2, b'\xff{"v": 1')
        case b"hash":
            client.hset(key, client.hkeys(key)[0], b"\xff{")


def _replace(client: Any, key: str) -> None:
    """Overwrite a key with a value of another type."""
    kind = client.type(key)
    client.delete(key)
    client.rpush(key, "x") if kind == b"string" else client.set(key, "x")


# -- the set of all pets -----------------------------------------------------------------------------------------------


def test_list_of_all_pets_is_rebuilt_from_the_keys(redis_client: redis.Redis, repairs: PetRepairs) -> None:
    service = ClusterService(RedisPetStore(redis_client))
    take(service, 0, range(1), pet=PetId(7))
    redis_client.delete(PETS)
    redis_client.sadd(PETS, 99)
    redis_client.delete("{pet:7}:meta")

    found = repairs.compare_lists()
    repairs.relist(found)

    assert found == ([7, 42], [99], [])
    assert service.pets() == [7, 42]
    assert repairs.compare_lists() == ([], [], [])
    assert service.totals().unconserved == (7,)


def test_access_to_a_damaged_pet_does_not_unlist_it(redis_client: redis.Redis, repairs: PetRepairs) -> None:
    redis_client.delete(KEYS.meta)
    service = ClusterService(RedisPetStore(redis_client))

    with pytest.raises(UnreadablePet):
        take(service, 0, range(90, 91))
    with pytest.raises(UnknownPet):
        repairs.damage(PetId(7))

    assert service.pets() == [PET]
