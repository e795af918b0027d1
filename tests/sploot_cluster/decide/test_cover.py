"""The correction ``cover``: an item stands for its cluster through merges, reclusters and deletions."""

from __future__ import annotations

import numpy as np
import pytest

from sploot_cluster import ClusterService
from sploot_cluster.errors import InvalidInput, UnknownCluster, UnknownMedia
from sploot_cluster.pet.models import ClusterId, MediaId
from sploot_cluster.store.memory import MemoryPetStore
from tests.sploot_cluster.albums import PET, grouped, name, names, picture, take

ONE, TWO, THREE, FOUR = (ClusterId(number) for number in range(1, 5))


@pytest.fixture
def service() -> ClusterService:
    """A service whose clusters 1, 2 and 3 have twelve items each, of subjects 0, 1 and 2 respectively."""
    return grouped(MemoryPetStore(), 3, range(12))


def covers(service: ClusterService) -> dict[int, MediaId | None]:
    """Return the chosen cover of each cluster, or None if it is derived."""
    return {view.cluster_id: view.cover if view.is_cover_chosen else None for view in service.clusters(PET).clusters}


def cover(service: ClusterService, cluster: ClusterId) -> MediaId:
    return next(view.cover for view in service.clusters(PET).clusters if view.cluster_id == cluster)


def medoid(subject: int, numbers: range) -> MediaId:
    vectors = np.array([picture(subject, number) for number in numbers])
    return name(subject, numbers[int((vectors @ vectors.sum(axis=0)).argmax())])


def test_cover_is_the_most_typical_item_until_a_user_chooses_one(service: ClusterService) -> None:
    derived = [cover(service, one) for one in (ONE, TWO, THREE)]

    first = service.cover(PET, TWO, name(1, 4), operation_id="1", by="ada")
    second = service.cover(PET, TWO, name(1, 5), operation_id="2", by="ada")
    chosen = covers(service)
    service.undo(PET, second.revision, operation_id="3", by="ada")
    before = covers(service)[TWO]
    service.undo(PET, first.revision, operation_id="4", by="ada")

    assert derived == [medoid(subject, range(12)) for subject in range(3)]
    assert (first.cluster, first.n_moved) == (TWO, 0)
    assert chosen == {ONE: None, TWO: name(1, 5), THREE: None}
    assert before == name(1, 4)
    assert covers(service)[TWO] is None


def test_merged_cluster_has_the_cover_of_the_cluster_that_was_kept(service: ClusterService) -> None:
    service.cover(PET, ONE, name(0, 1), operation_id="1", by="ada")
    service.cover(PET, TWO, name(1, 1), operation_id="2", by="ada")

    kept = service.merge(PET, [ONE, TWO], into=ONE, operation_id="3", by="ada")
    of_kept = covers(service)
    service.undo(PET, kept.revision, operation_id="4", by="ada")
    service.merge(PET, [TWO, THREE], into=THREE, operation_id="5", by="ada")

    assert of_kept[ONE] == name(0, 1)
    assert covers(service) == {ONE: name(0, 1), THREE: name(1, 1)}


def test_cover_survives_a_recluster_and_ends_when_its_item_leaves(service: ClusterService) -> None:
    service.cover(PET, TWO, name(1, 4), operation_id="1", by="ada")

    take(service, 1, range(12, 20))
    service.recluster(PET)
    stayed = covers(service)[TWO]
    service.place(PET, [name(1, 4)], into=ONE, operation_id="2", by="ada")
    gone = covers(service)
    service.undo(PET, service.revision(PET), operation_id="3", by="ada")

    assert stayed == name(1, 4)
    assert (gone[ONE], gone[TWO]) == (None, None)
    assert covers(service)[TWO] == name(1, 4)


def test_deleted_cover_is_replaced_by_a_typical_item(service: ClusterService) -> None:
    service.cover(PET, TWO, name(1, 4), operation_id="1", by="ada")
    typical = cover(service, ONE)

    service.delete_media(PET, [name(1, 4), typical], by="eve")

    assert covers(service) == {ONE: None, TWO: None, THREE: None}
    assert cover(service, ONE) in names(0, range(12)) - {typical}
    assert cover(service, THREE) == medoid(2, range(12))


def test_export_keeps_chosen_covers(service: ClusterService) -> None:
    service.cover(PET, TWO, name(1, 4), operation_id="1", by="ada")
    copy = ClusterService(MemoryPetStore())

    view = copy.import_pet(service.export(PET))

    assert {one.cluster_id: one.cover for one in view.clusters if one.is_cover_chosen} == {TWO: name(1, 4)}
    assert all(one.cover in one.media_ids for one in view.clusters)


def test_invalid_cover_is_refused(service: ClusterService) -> None:
    service.cover(PET, TWO, name(1, 4), operation_id="1", by="ada")

    with pytest.raises(UnknownMedia) as elsewhere:
        service.cover(PET, ONE, name(1, 4), operation_id="2", by="ada")
    with pytest.raises(UnknownCluster):
        service.cover(PET, ClusterId(9), name(1, 4), operation_id="3", by="ada")
    with pytest.raises(InvalidInput, match="already"):
        service.cover(PET, TWO, name(1, 4), operation_id="4", by="ada")

    assert elsewhere.value.field == "media_id"
