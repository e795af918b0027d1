"""The correction ``place``: items join a cluster from anywhere, stay there, and return when the placement is undone."""

from __future__ import annotations

import pytest

from sploot_cluster import ClusterService
from sploot_cluster.errors import InvalidInput, UnknownCluster, UnknownMedia
from sploot_cluster.pet.models import ClusterId, MediaId, Origin
from sploot_cluster.store.memory import MemoryPetStore
from tests.sploot_cluster.albums import PET, grouped, name, names, take

ONE, TWO, THREE, FOUR = (ClusterId(number) for number in range(1, 5))


@pytest.fixture
def store() -> MemoryPetStore:
    return MemoryPetStore()


@pytest.fixture
def service(store: MemoryPetStore) -> ClusterService:
    """A service whose clusters 1, 2 and 3 have twelve items each, of subjects 0, 1 and 2 respectively."""
    return grouped(store, 3, range(12))


def where(store: MemoryPetStore, *items: MediaId) -> list[int]:
    state = store.load(PET)
    return [int(state.labels[state.rows[item]]) for item in items]


def test_placed_items_are_not_moved_back_by_a_recluster(service: ClusterService, store: MemoryPetStore) -> None:
    moved = sorted(names(1, range(3)))

    placed = service.place(PET, moved, into=ONE, operation_id="1", by="ada")
    before = where(store, *moved, name(1, 5), name(0, 0))
    service.recluster(PET)

    assert (placed.cluster, placed.n_moved) == (ONE, 3)
    assert before == [1, 1, 1, 2, 1]
    assert where(store, *moved, name(1, 5), name(0, 0)) == before


def test_placement_of_most_items_of_a_cluster_moves_no_other_items(
    service: ClusterService, store: MemoryPetStore
) -> None:
    moved = sorted(names(1, range(10)))

    service.place(PET, moved, into=ONE, operation_id="1", by="ada")
    service.recluster(PET)

    assert {*where(store, *moved, *names(0, range(12)))} == {ONE}
    assert ONE not in where(store, name(1, 10), name(1, 11))


def test_placed_noise_items_stay_in_the_cluster_after_a_recluster(
    service: ClusterService, store: MemoryPetStore
) -> None:
    service.exclude(PET, TWO, [name(1, 0)], operation_id="1", by="ada")
    service.place(PET, [name(1, 0)], into=THREE, operation_id="2", by="ada")

    service.recluster(PET)

    assert where(store, name(1, 0)) == [THREE]


def test_items_placed_without_a_target_become_a_new_cluster(service: ClusterService, store: MemoryPetStore) -> None:
    moved = [name(0, 0), name(1, 0), name(2, 0)]

    placed = service.place(PET, moved, operation_id="1", by="ada")
    service.recluster(PET)

    assert placed.cluster == FOUR
    assert where(store, *moved, name(0, 1), name(1, 1)) == [4, 4, 4, 1, 2]


def test_placed_item_is_no_longer_dismissed(service: ClusterService, store: MemoryPetStore) -> None:
    service.dismiss(PET, [name(0, 0)], operation_id="1", by="ada")

    service.place(PET, [name(0, 0)], into=ONE, operation_id="2", by="ada")
    service.recluster(PET)

    assert where(store, name(0, 0)) == [ONE]
    assert store.load(PET).origins[store.load(PET).rows[name(0, 0)]] == Origin.CORRECTED


def test_placing_an_item_in_its_own_cluster_marks_it_as_corrected(
    service: ClusterService, store: MemoryPetStore
) -> None:
    confirmed = service.place(PET, [name(0, 0)], into=ONE, operation_id="1", by="ada")
    state = store.load(PET)

    assert (confirmed.cluster, confirmed.n_moved) == (ONE, 0)
    assert state.origins[state.rows[name(0, 0)]] == Origin.CORRECTED


def test_undo_returns_each_placed_item_to_its_former_cluster_or_noise(
    service: ClusterService, store: MemoryPetStore
) -> None:
    service.exclude(PET, TWO, [name(1, 0)], operation_id="1", by="ada")
    moved = [name(1, 0), name(2, 0), name(2, 1)]
    placed = service.place(PET, moved, into=ONE, operation_id="2", by="ada")

    undone = service.undo(PET, placed.revision, operation_id="3", by="ada")
    back = where(store, *moved)
    service.undo(PET, undone.revision, operation_id="4", by="ada")

    assert back == [-1, THREE, THREE]
    assert where(store, *moved) == [ONE, ONE, ONE]


def test_placing_one_split_off_item_back_does_not_move_the_others(
    service: ClusterService, store: MemoryPetStore
) -> None:
    moved = sorted(names(0, range(4)))
    created = service.split(PET, ONE, moved, operation_id="1", by="ada").cluster

    placed = service.place(PET, moved[:1], into=ONE, operation_id="2", by="ada")
    service.recluster(PET)

    assert where(store, *moved, name(0, 9)) == [ONE, created, created, created, ONE]
    assert placed.overridden == (
        "the split at revision 38 by ada: newer corrections place 1 of the 12 items that it names",
    )


def test_undo_of_a_placement_into_a_new_cluster_ends_the_cluster(
    service: ClusterService, store: MemoryPetStore
) -> None:
    moved = [name(0, 0), name(1, 0)]
    placed = service.place(PET, moved, operation_id="1", by="ada")

    service.undo(PET, placed.revision, operation_id="2", by="ada")

    assert where(store, *moved) == [ONE, TWO]
    assert FOUR not in store.load(PET).clusters


def test_placement_holds_after_half_of_its_anchors_are_deleted(service: ClusterService, store: MemoryPetStore) -> None:
    service.place(PET, [name(1, 0)], into=ONE, operation_id="1", by="ada")
    anchors = store.load(PET).ledger[-1].media()[:4]

    service.delete_media(PET, anchors, by="eve")
    service.recluster(PET)

    assert {*where(store, name(1, 0), *(names(0, range(12)) - {*anchors}))} == {ONE}


def test_later_items_of_a_subject_do_not_follow_its_placed_items(
    service: ClusterService, store: MemoryPetStore
) -> None:
    service.place(PET, [name(1, 0), name(1, 1)], into=ONE, operation_id="1", by="ada")

    take(service, 1, range(20, 24))

    assert ONE not in where(store, *names(1, range(20, 24)))


@pytest.mark.parametrize(
    ("media", "into", "error", "field"),
    [
        ([MediaId("stranger")], ONE, UnknownMedia, "media_ids"),
        ([name(0, 0)], ClusterId(9), UnknownCluster, "into"),
        ([], ONE, InvalidInput, "media_ids"),
    ],
    ids=["unknown item", "unknown cluster", "no items"],
)
def test_placement_with_an_unknown_item_or_cluster_or_no_items_is_refused(
    service: ClusterService,
    store: MemoryPetStore,
    media: list[MediaId],
    into: ClusterId,
    error: type[InvalidInput],
    field: str,
) -> None:
    before = store.view(PET)

    with pytest.raises(error) as refused:
        service.place(PET, media, into=into, operation_id="1", by="ada")

    assert refused.value.field == field
    assert store.view(PET) == before


def test_placing_items_again_is_refused_with_a_reason(service: ClusterService) -> None:
    service.place(PET, [name(1, 0)], into=ONE, operation_id="1", by="ada")

    with pytest.raises(InvalidInput, match="already placed"):
        service.place(PET, [name(1, 0)], into=ONE, operation_id="2", by="ada")


def test_explanation_of_a_placed_item_names_the_placement(service: ClusterService) -> None:
    service.place(PET, [name(1, 0)], into=ONE, operation_id="1", by="ada")

    why = service.why(PET, name(1, 0))

    assert why.reason.startswith("decided by ada")
    assert [demand.kind for demand in why.corrections] == ["place"]
    assert "the cluster that id 1 resolves to" in why.corrections[0].demand
