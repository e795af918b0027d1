"""The correction ``keep_apart``: no recluster mixes clusters that a user separated, however similar new items are."""

from __future__ import annotations

import numpy as np
import pytest

from sploot_cluster import ClusterService
from sploot_cluster.errors import InvalidInput, UnknownCluster
from sploot_cluster.pet.models import ClusterId, MediaId
from sploot_cluster.store.memory import MemoryPetStore
from tests.sploot_cluster.albums import MODEL, PET, grouped, name, names, picture

ONE, TWO, THREE = (ClusterId(number) for number in range(1, 4))


@pytest.fixture
def store() -> MemoryPetStore:
    return MemoryPetStore()


@pytest.fixture
def service(store: MemoryPetStore) -> ClusterService:
    """A service whose clusters 1, 2 and 3 have twelve items each, of subjects 0, 1 and 2 respectively."""
    return grouped(store, 3, range(12))


def clusters_of(store: MemoryPetStore, subject: int) -> set[int]:
    state = store.load(PET)
    return {int(state.labels[state.rows[item]]) for item in names(subject, range(12))}


def bridge(service: ClusterService, subject: int, other: int) -> None:
    """Add items between two subjects, so that a recluster would put all of them into one cluster."""
    for number, share in enumerate(np.linspace(0, 1, 120)):
        vector = share * picture(subject, number % 12) + (1 - share) * picture(other, number % 12)
        service.assign(PET, MediaId(f"bridge-{number}"), model=MODEL, vector=vector)


def test_recluster_does_not_mix_clusters_that_are_kept_apart(service: ClusterService, store: MemoryPetStore) -> None:
    free = ClusterService(MemoryPetStore())
    free.import_pet(service.export(PET))

    service.keep_apart(PET, [ONE, TWO], operation_id="1", by="ada")
    for one in (service, free):
        bridge(one, 0, 1)
        one.recluster(PET)

    mixed = next(view for view in free.clusters(PET).clusters if name(0, 0) in view.media_ids)
    assert name(1, 0) in mixed.media_ids
    assert not clusters_of(store, 0) & clusters_of(store, 1) - {-1}


def test_separation_moves_no_items(service: ClusterService, store: MemoryPetStore) -> None:
    before = store.load(PET).labels.tolist()

    done = service.keep_apart(PET, [ONE, TWO, THREE], operation_id="1", by="ada")

    assert (done.n_moved, done.overridden) == (0, ())
    assert store.load(PET).labels.tolist() == before


def test_newer_merge_overrides_a_separation_until_the_merge_is_undone(
    service: ClusterService, store: MemoryPetStore
) -> None:
    service.keep_apart(PET, [ONE, TWO], operation_id="1", by="ada")

    merge = service.merge(PET, [ONE, TWO], operation_id="2", by="ben")
    merged = clusters_of(store, 0) | clusters_of(store, 1)
    service.undo(PET, merge.revision, operation_id="3", by="ben")

    assert merged == {ONE}
    assert "separation at revision" in merge.overridden[0]
    assert (clusters_of(store, 0), clusters_of(store, 1)) == ({ONE}, {TWO})


def test_undone_separation_no_longer_keeps_clusters_apart(service: ClusterService, store: MemoryPetStore) -> None:
    separation = service.keep_apart(PET, [ONE, TWO], operation_id="1", by="ada")
    kept = service.why(PET, name(0, 0)).corrections
    service.undo(PET, separation.revision, operation_id="2", by="ada")

    bridge(service, 0, 1)
    service.recluster(PET)

    assert [demand.demand for demand in kept] == ["apart from the items of the other clusters (12)"]
    assert service.why(PET, name(0, 0)).corrections == ()
    assert clusters_of(store, 0) & clusters_of(store, 1)


@pytest.mark.parametrize("ids", [[ONE], [ONE, ONE], [ONE, ClusterId(9)], list(range(1, 22))])
def test_invalid_separation_is_refused(service: ClusterService, ids: list[ClusterId]) -> None:
    with pytest.raises((InvalidInput, UnknownCluster)) as refused:
        service.keep_apart(PET, ids, operation_id="1", by="ada")

    assert refused.value.field == "cluster_ids"
