"""Explanations of why an item is in its cluster, and the lineage of cluster ids."""

from __future__ import annotations

import numpy as np
import pytest

from sploot_cluster import ClusterService
from sploot_cluster.decide.why import explain
from sploot_cluster.errors import UnknownCluster, UnknownMedia
from sploot_cluster.pet.models import ClusterId, MediaId, Origin
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.store.memory import MemoryPetStore
from tests.sploot_cluster.albums import DIM, MODEL, PET, grouped, name, names, picture, take
from tests.sploot_cluster.states import looks, pet_state

ONE, TWO, THREE = ClusterId(1), ClusterId(2), ClusterId(3)


@pytest.fixture
def store() -> MemoryPetStore:
    return MemoryPetStore()


@pytest.fixture
def service(store: MemoryPetStore) -> ClusterService:
    """A service whose clusters 1, 2 and 3 have twelve items each, of subjects 0, 1 and 2 respectively."""
    return grouped(store, 3, range(12))


# -- why -------------------------------------------------------------------------------------------------------------


def test_explanation_lists_neighbours_and_the_margin_to_the_next_cluster(service: ClusterService) -> None:
    why = service.why(PET, name(0, 3))

    similarity = {number: float(picture(0, 3) @ picture(0, number)) for number in range(12) if number != 3}
    expected = sorted(similarity, key=lambda number: -similarity[number])[:5]
    assert [near.media_id for near in why.nearest] == [name(0, number) for number in expected]
    assert why.nearest[0].similarity == pytest.approx(similarity[expected[0]], abs=1e-5)
    assert (why.cluster_id, why.origin, why.revision) == (ONE, "core", 37)
    assert why.similarity == pytest.approx(np.mean([similarity[number] for number in expected[:3]]), abs=1e-5)
    assert why.second is not None
    assert why.similarity is not None
    assert why.second.cluster_id in (TWO, THREE)
    assert why.margin == pytest.approx(why.similarity - why.second.similarity)
    assert "recluster" in why.reason
    assert why.corrections == ()


@pytest.mark.parametrize("nearest", [2, 3])
def test_explanation_names_the_most_similar_other_cluster(nearest: int) -> None:
    lean = np.zeros((1, 8), dtype=np.float32)
    lean[0, 0], lean[0, nearest - 1] = 0.8, 0.6
    state = pet_state([1] * 6 + [2] * 5 + [3] * 5, np.vstack([looks(5), lean, looks(5, 5, 5)[5:]]).astype(np.float32))

    second = explain(state, MediaId("m5")).second

    assert second is not None
    assert second.cluster_id == nearest


def test_absorbed_items_are_never_listed_as_nearest() -> None:
    origins = [Origin.CORE] * 3 + [Origin.ABSORBED] * 3
    state = pet_state([1] * 6, looks(6), origins=origins)

    why = explain(state, MediaId("m5"))

    assert {near.media_id for near in why.nearest} == {"m0", "m1", "m2"}
    assert "low confidence" in why.reason


def test_explanation_names_the_user_and_a_negative_margin_after_a_merge(
    service: ClusterService,
) -> None:
    split = service.split(PET, ONE, [name(0, 0)], operation_id="1", by="ada")
    assert split.cluster is not None
    merged = service.merge(PET, [split.cluster, TWO], operation_id="2", by="bob")

    why = service.why(PET, name(0, 0))

    assert (why.cluster_id, why.origin) == (merged.cluster, "corrected")
    assert why.reason == f"decided by bob at revision {merged.revision}"
    assert why.margin is not None
    assert why.margin < 0
    assert why.second is not None
    assert (why.second.cluster_id, why.second.is_forbidden) == (ONE, True)
    assert [(demand.kind, demand.by) for demand in why.corrections] == [("merge", "bob"), ("split", "ada")]
    split_demand = why.corrections[1].demand
    assert split_demand == "apart from the items that remained (11), together with the others that moved (0)"


def test_explanation_of_noise_states_the_threshold_of_the_nearest_cluster(service: ClusterService) -> None:
    odd = picture(0, 1) + picture(1, 1) + picture(5, 1)
    service.assign(PET, MediaId("odd"), model=MODEL, vector=odd)

    why = service.why(PET, MediaId("odd"))

    assert (why.cluster_id, why.similarity, why.margin) == (None, None, None)
    assert why.second is not None
    assert why.second.similarity < why.second.threshold
    assert why.reason.endswith(f"below its threshold of {why.second.threshold:.3f}")


def test_explanation_of_an_excluded_item_states_the_exclusion(service: ClusterService) -> None:
    excluded = service.exclude(PET, ONE, [name(0, 0)], operation_id="1", by="ada")

    why = service.why(PET, name(0, 0))
    other = service.why(PET, name(0, 1))

    assert why.second is not None
    assert (why.second.cluster_id, why.second.is_forbidden) == (ONE, True)
    assert why.reason.endswith("a correction keeps the item out of it")
    assert [(one.revision, one.demand) for one in why.corrections] == [
        (excluded.revision, "not in the cluster that id 1 resolves to, nor with the items that remained in it (11)")
    ]
    assert [one.demand for one in other.corrections] == ["apart from the excluded items (1)"]


def test_explanation_of_a_dismissed_item_names_the_user(service: ClusterService) -> None:
    dismissed = service.dismiss(PET, [name(0, 0)], operation_id="1", by="ada")

    why = service.why(PET, name(0, 0))

    assert (why.origin, why.reason) == ("dismissed", f"decided by ada at revision {dismissed.revision}")
    assert [one.demand for one in why.corrections] == ["in no cluster"]


def test_explanation_does_not_list_undone_corrections(service: ClusterService) -> None:
    excluded = service.exclude(PET, ONE, [name(0, 0)], operation_id="1", by="ada")
    service.undo(PET, excluded.revision, operation_id="2", by="ada")

    assert service.why(PET, name(0, 0)).corrections == ()


def test_explanation_of_the_only_item_of_a_pet_lists_no_neighbours(store: MemoryPetStore) -> None:
    service = ClusterService(store)
    take(service, 0, range(1))

    why = service.why(PET, name(0, 0))

    assert (why.nearest, why.second) == ((), None)
    assert why.reason == "the pet has no cluster that the item could join"


def test_explanation_of_an_unknown_item_is_refused(service: ClusterService) -> None:
    with pytest.raises(UnknownMedia):
        service.why(PET, MediaId("nobody's"))


# -- lineage of ids --------------------------------------------------------------------------------------------------


def test_merged_and_split_clusters_list_the_clusters_that_they_came_from(
    service: ClusterService, store: MemoryPetStore
) -> None:
    service.merge(PET, [ONE, TWO], into=ONE, operation_id="1", by="ada")
    split = service.split(PET, THREE, [name(2, 0), name(2, 1)], operation_id="2", by="ada")

    lineage = {cluster.cluster_id: (cluster.split_from, cluster.merged_from) for cluster in store.view(PET).clusters}

    assert lineage == {ONE: (None, (TWO,)), THREE: (None, ()), split.cluster: (THREE, ())}


def test_clusters_divided_by_a_recluster_list_their_former_cluster(store: MemoryPetStore) -> None:
    service = ClusterService(store, settings=ClusterSettings(single_cluster_similarity=0.01))
    take(service, 0, range(12))
    service.recluster(PET)
    take(service, 1, range(12))
    merged = {cluster.cluster_id for cluster in store.view(PET).clusters}
    service.recluster(PET)

    views = store.view(PET).clusters
    assert merged <= {cluster.cluster_id for cluster in views}
    assert all(cluster.split_from in (None, *merged) for cluster in views)


def test_error_for_an_unknown_cluster_states_whether_its_id_was_used(service: ClusterService) -> None:
    service.dismiss(PET, sorted(names(0, range(12))), operation_id="1", by="ada")

    with pytest.raises(UnknownCluster, match="has no cluster 1 any more") as ended:
        service.merge(PET, [ONE, TWO], operation_id="2", by="ada")
    with pytest.raises(UnknownCluster, match="has no cluster 99;"):
        service.merge(PET, [ClusterId(99), TWO], operation_id="3", by="ada")

    assert ended.value.field == "cluster_ids"


@pytest.mark.parametrize("seed", range(4))
def test_reclusters_keep_ids_and_most_labels_as_items_arrive(seed: int) -> None:
    store, rng = MemoryPetStore(), np.random.default_rng(seed)
    service = ClusterService(store)
    centres = rng.normal(size=(12, DIM))
    for number in range(400):
        vector = centres[rng.integers(12)] + rng.normal(scale=0.35, size=DIM)
        service.assign(PET, MediaId(f"m{number}"), model=MODEL, vector=vector)
    service.recluster(PET)
    before = store.load(PET)

    again = service.recluster(PET)
    for number in range(400, 440):
        vector = centres[rng.integers(12)] + rng.normal(scale=0.35, size=DIM)
        service.assign(PET, MediaId(f"m{number}"), model=MODEL, vector=vector)
    service.recluster(PET)

    after = store.load(PET)
    share_kept = np.mean(after.labels[: before.n_media] == before.labels)
    assert (again.n_moved, again.n_new_ids, again.n_retired_ids) == (0, 0, 0), f"seed {seed}"
    assert before.next_cluster > len(before.clusters) > 1, f"seed {seed}"
    assert share_kept > 0.9, f"seed {seed}: {share_kept:.3f} of the items kept their cluster when a tenth arrived"
