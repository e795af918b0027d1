"""The correction ``name``: a cluster keeps its name through merges, splits, reclusters and deletions of items."""

from __future__ import annotations

import pytest

from sploot_cluster import ClusterService
from sploot_cluster.errors import InvalidInput, StaleRevision, UnknownCluster
from sploot_cluster.pet.models import ClusterId, ClusterView
from sploot_cluster.store.memory import MemoryPetStore
from tests.sploot_cluster.albums import PET, grouped, name, names

ONE, TWO, THREE, FOUR = (ClusterId(number) for number in range(1, 5))


@pytest.fixture
def store() -> MemoryPetStore:
    return MemoryPetStore()


@pytest.fixture
def service(store: MemoryPetStore) -> ClusterService:
    """A service whose clusters 1, 2 and 3 have twelve items each, of subjects 0, 1 and 2 respectively."""
    return grouped(store, 3, range(12))


def cluster(service: ClusterService, cluster_id: ClusterId) -> ClusterView:
    return next(view for view in service.clusters(PET).clusters if view.cluster_id == cluster_id)


def named(service: ClusterService) -> dict[int, str | None]:
    return {view.cluster_id: view.name for view in service.clusters(PET).clusters}


def test_newest_name_is_shown_and_no_item_moves(service: ClusterService, store: MemoryPetStore) -> None:
    before = store.load(PET)

    first = service.name(PET, TWO, "Rex", operation_id="1", by="ada")
    service.name(PET, TWO, "Rex on the beach", operation_id="2", by="ada")
    after = store.load(PET)

    assert (first.cluster, first.n_moved) == (TWO, 0)
    assert named(service) == {ONE: None, TWO: "Rex on the beach", THREE: None}
    assert after.labels.tolist() == before.labels.tolist()
    assert after.clusters == before.clusters


def test_naming_does_not_make_a_loaded_page_stale(service: ClusterService) -> None:
    seen = service.clusters(PET).revision
    service.name(PET, TWO, "Rex", operation_id="1", by="ada")
    service.undo(PET, seen + 1, operation_id="2", by="ada")

    service.merge(PET, [ONE, TWO], operation_id="3", by="ben", expected_revision=seen)

    with pytest.raises(StaleRevision):
        service.merge(PET, [ONE, THREE], operation_id="4", by="ben", expected_revision=seen)


def test_name_stays_after_a_recluster_and_a_split(service: ClusterService) -> None:
    service.name(PET, TWO, "Rex", operation_id="1", by="ada")

    service.split(PET, TWO, sorted(names(1, range(4))), operation_id="2", by="ada")
    service.recluster(PET)

    assert named(service) == {ONE: None, TWO: "Rex", THREE: None, FOUR: None}


def test_merged_cluster_has_the_name_of_the_cluster_that_was_kept(service: ClusterService) -> None:
    service.name(PET, ONE, "Rex", operation_id="1", by="ada")
    service.name(PET, TWO, "Rex at sea", operation_id="2", by="ada")

    merge = service.merge(PET, [ONE, TWO], into=ONE, operation_id="3", by="ada")
    merged = cluster(service, ONE)
    service.undo(PET, merge.revision, operation_id="4", by="ada")

    assert (merged.name, merged.other_names) == ("Rex", ("Rex at sea",))
    assert named(service) == {ONE: "Rex", TWO: "Rex at sea", THREE: None}


def test_unnamed_cluster_gets_the_name_of_a_cluster_merged_into_it(service: ClusterService) -> None:
    service.name(PET, TWO, "Rex", operation_id="1", by="ada")

    service.merge(PET, [ONE, TWO], into=ONE, operation_id="2", by="ada")

    assert (cluster(service, ONE).name, cluster(service, ONE).other_names) == ("Rex", ())


def test_undo_of_a_naming_restores_the_previous_name(service: ClusterService) -> None:
    service.name(PET, TWO, "Rex", operation_id="1", by="ada")
    second = service.name(PET, TWO, "Max", operation_id="2", by="ada")

    service.undo(PET, second.revision, operation_id="3", by="ada")
    undone = cluster(service, TWO).name
    service.undo(PET, second.revision + 1, operation_id="4", by="ada")

    assert (undone, cluster(service, TWO).name) == ("Rex", "Max")


def test_name_follows_the_most_typical_items_when_the_cluster_id_has_ended(service: ClusterService) -> None:
    service.name(PET, TWO, "Rex", operation_id="1", by="ada")

    service.dismiss(PET, sorted(names(1, range(12))), operation_id="2", by="ada")
    service.place(PET, sorted(names(1, range(12))), operation_id="3", by="ada")

    assert TWO not in named(service)
    assert named(service)[FOUR] == "Rex"


def test_name_survives_the_deletion_of_items_and_an_export(service: ClusterService) -> None:
    service.name(PET, TWO, "Rex", operation_id="1", by="ada")

    service.delete_media(PET, sorted(names(1, range(6))), by="ada")
    content = service.export(PET)
    other = ClusterService(MemoryPetStore())
    other.import_pet(content)

    assert named(service)[TWO] == named(other)[TWO] == "Rex"


@pytest.mark.parametrize(
    ("cluster_id", "text", "field"),
    [(9, "Rex", "cluster_id"), (2, "", "name"), (2, "a" * 101, "name"), (2, " Rex", "name"), (2, "a\nb", "name")],
)
def test_invalid_naming_is_refused(service: ClusterService, cluster_id: int, text: str, field: str) -> None:
    with pytest.raises((InvalidInput, UnknownCluster)) as refused:
        service.name(PET, ClusterId(cluster_id), text, operation_id="1", by="ada")

    assert refused.value.field == field
    assert refused.value.hint


def test_naming_a_cluster_with_its_current_name_is_refused(service: ClusterService) -> None:
    service.name(PET, TWO, "Rex", operation_id="1", by="ada")

    with pytest.raises(InvalidInput, match="has this name already"):
        service.name(PET, TWO, "Rex", operation_id="2", by="ada")


def test_repeated_naming_operation_takes_effect_once(service: ClusterService) -> None:
    first = service.name(PET, TWO, "Rex", operation_id="1", by="ada")

    again = service.name(PET, TWO, "Rex", operation_id="1", by="ada")

    assert (again.revision, again.is_duplicate) == (first.revision, True)
    assert name(1, 0) in cluster(service, TWO).media_ids
