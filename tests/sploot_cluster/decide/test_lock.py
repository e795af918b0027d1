"""The corrections ``lock`` and ``unlock``: a locked cluster stays as it is, whatever a recluster finds."""

from __future__ import annotations

import numpy as np
import pytest

from sploot_cluster import ClusterService
from sploot_cluster.decide.assignment import LOCKED_REACH
from sploot_cluster.decide.recluster import plan_recluster
from sploot_cluster.errors import InvalidInput
from sploot_cluster.pet.models import ClusterId, Origin, PetState
from sploot_cluster.pet.rows import follow
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.store.memory import MemoryPetStore
from tests.sploot_cluster.albums import MODEL, PET, grouped, name, names, picture, take
from tests.sploot_cluster.decide.test_recluster import density

ONE, TWO, THREE, FOUR = (ClusterId(number) for number in range(1, 5))
OF_TWO = np.stack([picture(1, number) for number in range(12)])


@pytest.fixture
def store() -> MemoryPetStore:
    return MemoryPetStore()


@pytest.fixture
def service(store: MemoryPetStore) -> ClusterService:
    """A service whose clusters 1, 2 and 3 have twelve items each, of subjects 0, 1 and 2 respectively."""
    return grouped(store, 3, range(12))


def locked(service: ClusterService) -> set[int]:
    return {view.cluster_id for view in service.clusters(PET).clusters if view.is_locked}


def threshold(service: ClusterService, cluster: ClusterId) -> float:
    return next(view.threshold for view in service.clusters(PET).clusters if view.cluster_id == cluster)


def reclustered(state: PetState, *groups: int) -> PetState:
    """Return the pet after a recluster in which density found these groups."""
    change, _ = plan_recluster(state, density(*groups), settings=ClusterSettings(), by="machine")
    return follow(state, change, version="next")


def test_lock_raises_the_threshold_until_unlock(service: ClusterService) -> None:
    before = threshold(service, TWO)

    service.lock(PET, [TWO], operation_id="1", by="ada")
    during, is_locked = threshold(service, TWO), locked(service)
    service.recluster(PET)
    after_recluster = threshold(service, TWO)
    service.unlock(PET, [TWO], operation_id="2", by="ada")

    assert is_locked == {TWO}
    assert during == after_recluster == pytest.approx(1 - LOCKED_REACH * (1 - before))
    assert threshold(service, TWO) == pytest.approx(before)
    assert locked(service) == set()


def test_arrival_between_the_thresholds_joins_only_the_unlocked_cluster(service: ClusterService) -> None:
    allowed = 1 - threshold(service, TWO)
    far = next(
        vector
        for share in np.linspace(0, 0.5, 5_000)
        if (vector := picture(1, 0) + share * picture(9, 0)) is not None and 0.96 < distance(vector) / allowed < 0.99
    )

    service.lock(PET, [TWO], operation_id="1", by="ada")
    refused = service.assign(PET, name(1, 50), model=MODEL, vector=far)
    service.unlock(PET, [TWO], operation_id="2", by="ada")
    taken = service.assign(PET, name(1, 51), model=MODEL, vector=far)

    assert (refused.cluster, taken.cluster) == (-1, TWO)


def distance(vector: np.ndarray[tuple[int, ...], np.dtype[np.floating]]) -> float:
    """Return the distance of an item from cluster 2: one minus its mean similarity to the three nearest members."""
    unit = vector / np.linalg.norm(vector)
    return float(1 - np.sort(OF_TWO @ unit)[-3:].mean())


def test_recluster_does_not_divide_or_join_or_dissolve_a_locked_cluster(
    service: ClusterService, store: MemoryPetStore
) -> None:
    service.lock(PET, [ONE], operation_id="1", by="ada")
    state = store.load(PET)

    cut = reclustered(state, *[0, 1] * 6, *[2] * 12, *[3] * 12)
    joined = reclustered(state, *[0] * 24, *[1] * 12)
    dissolved = reclustered(state, *[-1] * 12, *[0] * 12, *[1] * 12)

    for after in (cut, joined, dissolved):
        assert (after.labels[:12] == ONE).all()
        assert (after.labels[12:24] == TWO).all()
        assert not np.isin(after.origins, (Origin.NOISE, Origin.ABSORBED)).any()


def test_locked_cluster_absorbs_no_noise(service: ClusterService, store: MemoryPetStore) -> None:
    for number in range(40):
        vector = picture(0, number) + 0.4 * picture(number % 5 + 4, number)
        assert service.assign(PET, name(9, number), model=MODEL, vector=vector).cluster == -1
    state = store.load(PET)
    groups = [*[0] * 12, *[1] * 12, *[2] * 12, *[-1] * 40]
    absorbed = np.count_nonzero(reclustered(state, *groups).labels == ONE) - 12

    service.lock(PET, [ONE], operation_id="1", by="ada")
    after = reclustered(store.load(PET), *groups)

    assert absorbed > 0
    assert np.count_nonzero(after.labels == ONE) == 12


def test_users_can_still_correct_a_locked_cluster(service: ClusterService) -> None:
    service.lock(PET, [ONE, TWO], operation_id="1", by="ada")

    service.split(PET, ONE, [name(0, 0), name(0, 1)], operation_id="2", by="ada")
    merge = service.merge(PET, [TWO, THREE], into=THREE, operation_id="3", by="ada")
    merged = locked(service)
    service.undo(PET, merge.revision, operation_id="4", by="ada")

    assert merged == {ONE}
    assert locked(service) == {ONE, TWO}
    assert len(service.clusters(PET).clusters) == 4


def test_deletion_keeps_the_lock(service: ClusterService) -> None:
    service.lock(PET, [TWO], operation_id="1", by="ada")

    service.delete_media(PET, [name(1, 0), name(0, 0)], by="eve")
    during = threshold(service, TWO)
    service.unlock(PET, [TWO], operation_id="2", by="ada")

    assert during == pytest.approx(1 - LOCKED_REACH * (1 - threshold(service, TWO)))


def test_locked_cluster_takes_in_only_similar_items_as_the_pet_grows(service: ClusterService) -> None:
    service.lock(PET, [TWO], operation_id="1", by="ada")

    take(service, 1, range(12, 40))
    service.recluster(PET)

    members = next(view for view in service.clusters(PET).clusters if view.cluster_id == TWO).media_ids
    assert names(1, range(12)) <= set(members) <= names(1, range(40))


@pytest.mark.parametrize("ids", [[], [ClusterId(9)]])
def test_invalid_lock_is_refused(service: ClusterService, ids: list[ClusterId]) -> None:
    with pytest.raises(InvalidInput) as refused:
        service.lock(PET, ids, operation_id="1", by="ada")

    assert refused.value.field == "cluster_ids"


def test_lock_or_unlock_that_changes_nothing_is_refused(service: ClusterService) -> None:
    service.lock(PET, [TWO], operation_id="1", by="ada")

    with pytest.raises(InvalidInput, match="locked already"):
        service.lock(PET, [TWO], operation_id="2", by="ada")
    with pytest.raises(InvalidInput, match="unlocked already"):
        service.unlock(PET, [ONE], operation_id="3", by="ada")


def test_next_recluster_changes_nothing_after_a_locked_cluster_returns(service: ClusterService) -> None:
    members = service.clusters(PET).clusters[0].media_ids
    service.lock(PET, [ONE], operation_id="1", by="ada")
    service.exclude(PET, ONE, members[:3], operation_id="2", by="ada")
    service.exclude(PET, ONE, members[3:6], operation_id="3", by="ada")
    service.restore(PET, 36, operation_id="4", by="ada")  # before the first recluster, when all items were noise
    assert service.clusters(PET).clusters == ()

    first, second = service.recluster(PET), service.recluster(PET)

    clusters = {view.size: view.cluster_id for view in service.clusters(PET).clusters}
    assert sorted(clusters) == [3, 6, 12]
    assert locked(service) == {clusters[6]}
    assert first.n_new_ids == 4
    assert (first.n_kept_ids, first.n_retired_ids, first.constraints_kept) == (0, 0, first.constraints)
    assert (second.n_moved, second.n_new_ids, second.n_retired_ids) == (0, 0, 0)
