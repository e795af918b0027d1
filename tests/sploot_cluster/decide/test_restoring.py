"""Ids after a restore: no id is used again for other items, and old ids resolve to the clusters of their items."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from sploot_cluster import ClusterService
from sploot_cluster.decide.corrections.planning import origins_after
from sploot_cluster.decide.regrouping import regroup
from sploot_cluster.decide.resolving import resolve
from sploot_cluster.pet.models import NOISE, ClusterId, MediaId, PetState
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.store.port import PetStore
from tests.sploot_cluster.albums import PET, grouped, name, names, take

ONE, TWO, THREE, FOUR = ClusterId(1), ClusterId(2), ClusterId(3), ClusterId(4)

Machine = Callable[..., PetState]


@pytest.fixture
def service(store: PetStore) -> ClusterService:
    """A service with clusters 1, 2 and 3 of eight items each, at revision 25."""
    return grouped(store, 3, range(8))


@pytest.fixture
def machine(store: PetStore) -> Machine:
    """A function that commits a recluster into the given groups. All other items stay where they are."""

    def recluster(*found: Iterable[MediaId], noise: Iterable[MediaId] = ()) -> PetState:
        state = store.load(PET)
        groups = state.labels.copy()
        for number, media in enumerate(found, start=1_000):
            groups[[state.rows[item] for item in media if item in state.rows]] = number
        groups[[state.rows[item] for item in noise]] = NOISE
        rows = resolve(state.ledger).by_row(state.rows)
        origins = origins_after(state.origins, groups, rows)
        regrouped = regroup(state, groups, origins, rows, ClusterSettings())
        return store.commit(state, regrouped.change(state, "recluster", by="machine", summary={}, is_recluster=True))

    return recluster


def where(store: PetStore, media: Iterable[MediaId]) -> set[int]:
    """Return the clusters that these items are in."""
    state = store.load(PET)
    return {int(state.labels[state.rows[item]]) for item in media}


# -- ids ---------------------------------------------------------------------------------------------------------------


def test_restore_does_not_assign_a_merged_id_to_items_of_another_cluster(
    service: ClusterService, store: PetStore
) -> None:
    before = store.view(PET).revision
    moved, remaining = names(0, range(5)), names(0, range(5, 8))
    split = service.split(PET, ONE, sorted(moved), operation_id="1", by="ada")
    service.merge(PET, [TWO, THREE], into=TWO, operation_id="2", by="ada")

    service.restore(PET, before, operation_id="3", by="bob")

    assert (where(store, moved), where(store, remaining)) == ({split.cluster}, {ONE})
    assert where(store, names(1, range(8)) | names(2, range(8))) == {TWO}
    assert store.view(PET).aliases == {THREE: TWO}


def test_restore_does_not_reuse_the_id_of_a_dismissed_cluster_elsewhere(
    service: ClusterService, store: PetStore
) -> None:
    before = store.view(PET).revision
    service.dismiss(PET, sorted(names(2, range(8))), operation_id="1", by="ada")
    service.split(PET, ONE, sorted(names(0, range(5))), operation_id="2", by="ada")

    service.restore(PET, before, operation_id="3", by="bob")

    assert (where(store, names(0, range(5))), where(store, names(0, range(5, 8)))) == ({FOUR}, {ONE})
    assert where(store, names(2, range(8))) == {NOISE}


def test_restore_assigns_no_merged_id_to_items_that_left_before_the_merge(
    service: ClusterService, store: PetStore, machine: Machine
) -> None:
    """The user who merged cluster 1 into 2 meant the items in 1 at that time, so both ids must lead to them."""
    before = store.view(PET).revision
    meant, others = names(0, range(3)), names(0, range(3, 8))
    machine(noise=others)
    service.merge(PET, [ONE, TWO], into=TWO, operation_id="1", by="ada")

    service.restore(PET, before, operation_id="2", by="bob")

    view = store.view(PET)
    assert where(store, meant) == {TWO}
    assert where(store, others) == {FOUR}
    assert view.aliases == {ONE: TWO}


def test_restore_gives_an_id_back_to_the_items_that_remained_after_a_split(
    service: ClusterService, store: PetStore, machine: Machine
) -> None:
    before = store.view(PET).revision
    moved, remaining = names(0, range(5)), names(0, range(5, 8))
    service.split(PET, ONE, sorted(moved), operation_id="1", by="ada")
    machine(remaining | names(2, range(8)))
    assert store.view(PET).aliases == {ONE: THREE}

    service.restore(PET, before, operation_id="2", by="bob")

    assert (where(store, moved), where(store, remaining)) == ({FOUR}, {ONE})
    assert where(store, names(2, range(8))) == {THREE}
    assert store.view(PET).aliases == {}


def test_restore_brings_back_an_id_that_a_recluster_retired(
    service: ClusterService, store: PetStore, machine: Machine
) -> None:
    before = store.load(PET)
    machine(names(0, range(8)) | names(1, range(8)))
    renamed = machine(names(0, range(8)))
    service.dismiss(PET, [name(0, 0)], operation_id="1", by="ada")
    assert set(renamed.clusters) == {1, 3, 4}

    service.restore(PET, before.revision, operation_id="2", by="bob")

    assert where(store, names(0, range(1, 8))) == {ONE}
    assert where(store, names(1, range(8))) == {TWO}


def test_restore_is_exact_if_no_correction_was_made_since(service: ClusterService, store: PetStore) -> None:
    """If no correction was made after the restored revision, labels and ids are exactly those of that revision."""
    both = store.load(PET)
    first = service.merge(PET, [ONE, TWO], into=ONE, operation_id="1", by="ada")
    second = service.split(PET, ONE, sorted(names(1, range(8))), operation_id="2", by="ada")
    apart = store.load(PET)
    service.restore(PET, both.revision, operation_id="3", by="bob")
    service.restore(PET, first.revision, operation_id="4", by="bob")

    service.restore(PET, second.revision, operation_id="5", by="bob")

    now = store.load(PET)
    assert now.labels.tolist() == apart.labels.tolist()
    assert now.aliases == apart.aliases


def test_restore_sends_later_items_to_the_most_similar_cluster(
    service: ClusterService, store: PetStore, machine: Machine
) -> None:
    before = store.view(PET).revision
    take(service, 0, range(20, 24))
    take(service, 1, range(20, 24))
    machine(names(0, range(24)) | names(1, range(24)))
    assert where(store, names(0, range(20, 24)) | names(1, range(20, 24))) == {ONE}

    restored = service.restore(PET, before, operation_id="1", by="bob")

    assert where(store, names(0, range(20, 24))) == {ONE}
    assert where(store, names(1, range(20, 24))) == {TWO}
    assert restored.n_later == 8


def test_restore_keeps_later_arrivals_in_a_later_split_off_cluster(service: ClusterService, store: PetStore) -> None:
    before = store.view(PET).revision
    split = service.split(PET, ONE, sorted(names(0, range(5))), operation_id="1", by="ada")
    take(service, 0, range(20, 24))
    with_them = where(store, names(0, range(20, 24)))

    service.restore(PET, before, operation_id="2", by="bob")

    assert where(store, names(0, range(5))) == {split.cluster}
    assert where(store, names(0, range(20, 24))) == with_them


# -- aliases -----------------------------------------------------------------------------------------------------------


def test_restore_reverts_an_alias_that_a_recluster_changed(
    service: ClusterService, store: PetStore, machine: Machine
) -> None:
    machine(names(0, range(8)) | names(1, range(8)))
    before = store.load(PET)
    assert before.aliases == {TWO: ONE}
    machine(names(0, range(8)) | names(1, range(8)) | names(2, range(8)))
    take(service, 2, range(20, 30))
    machine(names(2, range(8)) | names(2, range(20, 30)) | names(0, range(8)) | names(1, range(8)))
    assert {TWO, THREE} <= store.load(PET).aliases.keys()

    service.restore(PET, before.revision, operation_id="1", by="bob")

    assert store.load(PET).aliases == {TWO: ONE}
    assert where(store, names(2, range(8))) == {THREE}


def test_restore_points_an_alias_to_the_split_off_cluster_with_its_items(
    service: ClusterService, store: PetStore, machine: Machine
) -> None:
    before = store.view(PET).revision
    machine(names(0, range(8)) | names(1, range(8)))
    split = service.split(PET, ONE, sorted(names(1, range(8))), operation_id="1", by="ada")

    service.restore(PET, before, operation_id="2", by="bob")

    assert where(store, names(1, range(8))) == {split.cluster}
    assert store.view(PET).aliases == {TWO: split.cluster}


def test_restore_turns_newer_ids_into_aliases_of_their_items_cluster(
    service: ClusterService, store: PetStore, machine: Machine
) -> None:
    before = store.view(PET).revision
    machine(names(0, range(4)), names(0, range(4, 8)) | names(1, range(1)))
    youngest = machine(names(0, range(4)) | names(1, range(2)) | names(0, range(4, 5)), names(1, range(2, 8)))
    younger = set(range(4, youngest.next_cluster))
    machine(names(0, range(8)) | names(1, range(8)) | names(2, range(8)))
    assert younger <= store.load(PET).aliases.keys()

    service.restore(PET, before, operation_id="1", by="bob")

    state = store.load(PET)
    assert set(state.clusters) == {ONE, TWO, THREE}
    assert {state.aliases[ClusterId(id_)] for id_ in younger} == {ONE}


def test_restore_turns_an_id_into_an_alias_if_its_items_became_noise(
    service: ClusterService, store: PetStore, machine: Machine
) -> None:
    before = store.view(PET).revision
    machine(names(0, range(3)), names(0, range(3, 8)))
    ended = machine(noise=names(0, range(3)))
    assert FOUR not in ended.aliases.keys() | ended.clusters.keys()

    service.restore(PET, before, operation_id="1", by="bob")

    assert store.view(PET).aliases == {FOUR: ONE}


def test_restore_after_deletion_brings_aliases_back(service: ClusterService, store: PetStore, machine: Machine) -> None:
    machine(names(0, range(8)) | names(1, range(8)))
    before = store.load(PET)
    machine(names(2, range(8)) | names(1, range(8)) | names(0, range(7)), names(0, range(7, 8)))
    deleted = [name(0, 7), *names(2, range(8))]
    service.delete_media(PET, deleted, by="ada")

    service.restore(PET, before.revision, operation_id="1", by="bob")

    assert store.view(PET).aliases.items() >= {TWO: ONE}.items()
    assert where(store, names(0, range(7)) | names(1, range(8))) == {ONE}


@pytest.mark.parametrize("way", ["kept", "exported"])
def test_past_returns_the_aliases_of_every_revision(
    service: ClusterService, store: PetStore, machine: Machine, way: str
) -> None:
    states = [store.load(PET)]
    states.append(machine(names(0, range(8)) | names(1, range(8))))
    states.append(machine(names(2, range(8)) | names(1, range(8)) | names(0, range(8))))
    for number, deed in enumerate((service.split, service.exclude)):
        cluster = ClusterId(min(store.load(PET).clusters))
        deed(PET, cluster, [name(0, number)], operation_id=f"{number}", by="ada")
        states.append(store.load(PET))
    service.restore(PET, states[1].revision, operation_id="back", by="bob")
    states.append(store.load(PET))
    if way == "exported":
        file = service.export(PET)
        service.delete_pet(PET)
        service.import_pet(file)

    past = store.past(PET)

    for state in states:
        assert past.at(state.revision).aliases == state.aliases
    assert len({tuple(sorted(state.aliases.items())) for state in states}) > 2
