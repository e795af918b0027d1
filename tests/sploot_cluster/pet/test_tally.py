"""Tests that every ingested item is counted exactly once, and that a commit that breaks this is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import redis

from sploot_cluster import ClusterService
from sploot_cluster.errors import DimensionMismatch, ModelMismatch, NotConserved, UnreadablePet
from sploot_cluster.pet.models import Change, ClusterId, Origin, PetId, Relabelling
from sploot_cluster.pet.tally import Tally
from sploot_cluster.pet.vectors import LabelVector
from sploot_cluster.store.keys import PetKeys
from sploot_cluster.store.port import PetStore
from sploot_cluster.store.redis import RedisPetStore
from tests.sploot_cluster.albums import MODEL, PET, grouped, name, picture, take

ONE = ClusterId(1)


@pytest.fixture
def service(store: PetStore) -> ClusterService:
    """A service with clusters 1 and 2 of eight items each."""
    return grouped(store, 2, range(8))


def send(service: ClusterService, number: int, *, model: str = MODEL, dim: int = 16) -> None:
    service.assign(PET, name(3, number), model=model, vector=picture(3, number)[:dim])


def nothing_new(n: int, labels: LabelVector) -> Change:
    """Return a recluster that moves no items."""
    origins = np.where(labels < 0, Origin.NOISE, Origin.ARRIVED).astype(np.uint8)
    return Change(
        "recluster",
        next_cluster=ClusterId(9),
        n_at_recluster=n,
        noise_arrivals=0,
        relabelling=Relabelling(labels, origins),
    )


def test_items_are_counted_by_their_state(service: ClusterService) -> None:
    service.dismiss(PET, [name(0, 0)], operation_id="1", by="ada")
    service.exclude(PET, ONE, [name(0, 1)], operation_id="2", by="ada")
    with pytest.raises(ModelMismatch):
        send(service, 0, model="clip@2")

    tally = service.tally(PET).tally

    assert tally == Tally(ingested=17, clustered=14, noise=1, quarantined=1, dismissed=1)
    assert tally.is_conserved
    assert str(tally) == "ingested 17 = clustered 14 + noise 1 + quarantined 1 + dismissed 1"


def test_item_with_wrong_model_or_dimension_is_quarantined_until_corrected(service: ClusterService) -> None:
    with pytest.raises(ModelMismatch):
        send(service, 0, model="clip@2")
    for number in range(2):
        with pytest.raises(DimensionMismatch):
            send(service, number, dim=8)
    taken_down = service.tally(PET)
    send(service, 0)
    afterwards = service.tally(PET)

    assert {item: (why.model, why.dim) for item, why in taken_down.quarantine.items()} == {
        name(3, 0): (MODEL, 8),
        name(3, 1): (MODEL, 8),
    }
    assert (taken_down.tally.ingested, taken_down.tally.quarantined) == (18, 2)
    assert (afterwards.tally.ingested, afterwards.tally.quarantined, afterwards.tally.noise) == (18, 1, 1)


def test_known_item_sent_again_with_a_wrong_model_is_not_quarantined(service: ClusterService) -> None:
    service.assign(PET, name(0, 0), model="clip@2", vector=picture(0, 0))

    assert service.tally(PET).quarantine == {}


def test_full_quarantine_counts_further_arrivals_without_storing_them(
    service: ClusterService, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("store.redis", "store.memory"):
        monkeypatch.setattr(f"sploot_cluster.{module}.MAX_QUARANTINED", 2)

    for number in range(4):
        with pytest.raises(ModelMismatch):
            send(service, number, model="clip@2")

    assert service.tally(PET).tally == Tally(18, clustered=16, quarantined=2, overflowed=2)
    assert str(service.tally(PET).tally).endswith("; 2 arrivals found the quarantine full")


def test_totals_list_pets_whose_tally_does_not_add_up(redis_client: redis.Redis) -> None:
    service = ClusterService(RedisPetStore(redis_client))
    for pet in (PET, PetId(7), PetId(9)):
        take(service, 0, range(3), pet=pet)
    redis_client.hincrby(PetKeys.of(PetId(7)).meta, "ingested", 1)
    redis_client.append(PetKeys.of(PetId(9)).origins, b"\0")

    totals = service.totals()

    assert (totals.n_pets, totals.unconserved) == (3, (7, 9))
    assert [(damaged.pet, damaged.key) for damaged in totals.unreadable] == [(9, "{pet:9}:origins")]
    assert (totals.tally.ingested, totals.tally.noise) == (7, 6)
    assert service.totals([PET]).unconserved == ()


def test_commit_that_would_lose_an_item_is_refused(service: ClusterService, store: PetStore) -> None:
    stored = store.dump(PET)
    state = store.replace(stored, replace(stored, ingested=stored.ingested + 1))
    change = replace(nothing_new(state.n_media, state.labels), next_cluster=state.next_cluster)

    with pytest.raises(NotConserved, match="ingested 17 ≠ clustered 16") as refused:
        store.commit(state, change)

    assert "nothing was written" in str(refused.value)
    assert store.load(PET).version == state.version


def test_commit_on_columns_of_different_lengths_is_refused(redis_client: redis.Redis) -> None:
    store = RedisPetStore(redis_client)
    take(ClusterService(store), 0, range(8))
    state = store.load(PET)
    redis_client.append(PetKeys.of(PET).labels, b"\xff\xff\xff\xff")

    with pytest.raises(UnreadablePet, match=r"\{pet:42\}:labels: expected 32 bytes, found 36 bytes"):
        store.commit(state, nothing_new(8, state.labels))

    assert redis_client.hget(PetKeys.of(PET).meta, "revision") == b"8"
