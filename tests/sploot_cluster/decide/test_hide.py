"""The corrections ``hide`` and ``show``: a hidden cluster continues, takes in similar items, and is not shown."""

from __future__ import annotations

import pytest

from sploot_cluster import ClusterService
from sploot_cluster.errors import InvalidInput, UnknownCluster
from sploot_cluster.pet.models import ClusterId
from sploot_cluster.store.memory import MemoryPetStore
from tests.sploot_cluster.albums import PET, grouped, names, take

ONE, TWO, THREE, FOUR = (ClusterId(number) for number in range(1, 5))


@pytest.fixture
def service() -> ClusterService:
    """A service whose clusters 1, 2 and 3 have twelve items each, of subjects 0, 1 and 2 respectively."""
    return grouped(MemoryPetStore(), 3, range(12))


def hidden(service: ClusterService) -> set[int]:
    return {view.cluster_id for view in service.clusters(PET).clusters if view.is_hidden}


def test_hidden_cluster_takes_in_similar_items_and_does_not_count_as_noise(service: ClusterService) -> None:
    service.hide(PET, [TWO], operation_id="1", by="ada")

    take(service, 1, range(12, 30))
    service.recluster(PET)

    view = service.clusters(PET)
    assert hidden(service) == {TWO}
    assert view.n_noise == 0
    assert {one.cluster_id: one.size for one in view.clusters} == {ONE: 12, TWO: 30, THREE: 12}


def test_undo_of_showing_a_cluster_hides_it_again(service: ClusterService) -> None:
    service.hide(PET, [ONE, TWO], operation_id="1", by="ada")

    shown = service.show(PET, [TWO], operation_id="2", by="ada")
    after_show = hidden(service)
    service.undo(PET, shown.revision, operation_id="3", by="ada")

    assert after_show == {ONE}
    assert hidden(service) == {ONE, TWO}


def test_hidden_cluster_is_shown_while_it_is_merged_into_a_shown_cluster(service: ClusterService) -> None:
    service.hide(PET, [TWO], operation_id="1", by="ada")

    merge = service.merge(PET, [ONE, TWO], into=ONE, operation_id="2", by="ada")
    merged = hidden(service)
    service.undo(PET, merge.revision, operation_id="3", by="ada")

    assert merged == set()
    assert hidden(service) == {TWO}


def test_new_cluster_with_most_items_of_an_ended_hidden_cluster_is_hidden(service: ClusterService) -> None:
    service.hide(PET, [TWO], operation_id="1", by="ada")

    service.dismiss(PET, sorted(names(1, range(12))), operation_id="2", by="ada")
    ended = hidden(service)
    service.place(PET, sorted(names(1, range(12))), operation_id="3", by="ada")

    assert ended == set()
    assert hidden(service) == {FOUR}


@pytest.mark.parametrize("ids", [[], [ClusterId(9)]])
def test_invalid_hiding_is_refused(service: ClusterService, ids: list[ClusterId]) -> None:
    with pytest.raises((InvalidInput, UnknownCluster)) as refused:
        service.hide(PET, ids, operation_id="1", by="ada")

    assert refused.value.field == "cluster_ids"


def test_hiding_a_hidden_cluster_and_showing_a_visible_cluster_are_refused(service: ClusterService) -> None:
    service.hide(PET, [TWO], operation_id="1", by="ada")

    with pytest.raises(InvalidInput, match="hidden already"):
        service.hide(PET, [TWO], operation_id="2", by="ada")
    with pytest.raises(InvalidInput, match="shown already"):
        service.show(PET, [ONE], operation_id="3", by="ada")
