"""Corrections: their effect on labels, ids and origins, and the results that they return."""

from __future__ import annotations

import pytest

from sploot_cluster import ClusterService
from sploot_cluster.errors import InvalidInput, StaleRevision, UnknownCluster, UnknownMedia, UnknownRevision
from sploot_cluster.pet.models import Arrival, Change, ClusterId, MediaId, Origin, PetState, PetView, Relabelling
from sploot_cluster.store.memory import MemoryPetStore
from tests.sploot_cluster.albums import PET, grouped, name, names, take

ONE, TWO, THREE = ClusterId(1), ClusterId(2), ClusterId(3)


@pytest.fixture
def store() -> MemoryPetStore:
    return MemoryPetStore()


@pytest.fixture
def service(store: MemoryPetStore) -> ClusterService:
    """A service whose clusters 1, 2 and 3 have twelve items each, of subjects 0, 1 and 2 respectively."""
    return grouped(store, 3, range(12))


def where(store: MemoryPetStore, item: MediaId) -> int:
    state = store.load(PET)
    return int(state.labels[state.rows[item]])


def origin(state: PetState, item: MediaId) -> Origin:
    return Origin(state.origins[state.rows[item]])


def members(store: MemoryPetStore, cluster: int) -> set[MediaId]:
    return set(next(view.media_ids for view in store.view(PET).clusters if view.cluster_id == cluster))


def items_by_cluster(view: PetView) -> list[tuple[ClusterId, tuple[MediaId, ...]]]:
    return [(cluster.cluster_id, cluster.media_ids) for cluster in view.clusters]


def test_merge_keeps_the_id_of_the_largest_cluster(service: ClusterService, store: MemoryPetStore) -> None:
    service.split(PET, TWO, sorted(names(1, range(4))), operation_id="1", by="ada")

    merged = service.merge(PET, [TWO, THREE], operation_id="2", by="ada")

    assert (merged.cluster, merged.n_moved) == (THREE, 8)
    assert members(store, 3) == names(1, range(4, 12)) | names(2, range(12))


def test_merge_changes_the_origin_of_merged_items_only(service: ClusterService, store: MemoryPetStore) -> None:
    service.merge(PET, [ONE, TWO], operation_id="1", by="ada")

    state = store.load(PET)
    assert {origin(state, item) for item in names(0, range(12)) | names(1, range(12))} == {Origin.CORRECTED}
    assert {origin(state, item) for item in names(2, range(12))} == {Origin.CORE}


def test_merge_accepts_aliases(service: ClusterService, store: MemoryPetStore) -> None:
    service.merge(PET, [ONE, TWO], into=TWO, operation_id="1", by="ada")

    service.merge(PET, [ONE, THREE], into=ONE, operation_id="2", by="ada")

    view = store.view(PET)
    assert [cluster.cluster_id for cluster in view.clusters] == [TWO]
    assert view.aliases == {ONE: TWO, THREE: TWO}


@pytest.mark.parametrize(("cluster_ids", "into", "field"), [([1], None, "cluster_ids"), ([1, 1], None, "cluster_ids")])
def test_merge_of_fewer_than_two_clusters_is_refused(
    service: ClusterService, cluster_ids: list[int], into: int | None, field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        service.merge(PET, [ClusterId(id_) for id_ in cluster_ids], operation_id="1", by="ada")

    assert refused.value.field == field


def test_merge_target_that_is_not_among_the_merged_clusters_is_refused(service: ClusterService) -> None:
    with pytest.raises(InvalidInput) as refused:
        service.merge(PET, [ONE, TWO], into=THREE, operation_id="1", by="ada")

    assert refused.value.field == "into"


def test_error_for_an_unknown_cluster_names_the_field(service: ClusterService) -> None:
    with pytest.raises(UnknownCluster) as refused:
        service.merge(PET, [ONE, ClusterId(9)], into=ClusterId(9), operation_id="1", by="ada")

    assert refused.value.field == "cluster_ids"


@pytest.mark.parametrize(
    ("moved", "error"),
    [([], InvalidInput), (sorted(names(0, range(12))), InvalidInput), ([name(1, 0)], UnknownMedia)],
    ids=["nothing", "everything", "of another cluster"],
)
def test_split_that_would_not_make_two_clusters_is_refused(
    service: ClusterService, store: MemoryPetStore, moved: list[MediaId], error: type[InvalidInput]
) -> None:
    before = store.view(PET)

    with pytest.raises(error) as refused:
        service.split(PET, ONE, moved, operation_id="1", by="ada")

    assert refused.value.field == "media_ids"
    assert store.view(PET) == before


def test_split_creates_a_new_id(service: ClusterService, store: MemoryPetStore) -> None:
    created = service.split(PET, ONE, [name(0, 0), name(0, 1), name(0, 0)], operation_id="1", by="ada").cluster

    assert created == 4
    assert members(store, 4) == {name(0, 0), name(0, 1)}
    assert store.load(PET).next_cluster == 5


def test_clusters_merged_by_mistake_can_be_split_off_one_by_one(service: ClusterService, store: MemoryPetStore) -> None:
    service.merge(PET, [ONE, TWO, THREE], into=ONE, operation_id="1", by="ada")

    service.split(PET, ONE, sorted(names(1, range(12))), operation_id="2", by="ada")
    last = service.split(PET, ONE, sorted(names(2, range(12))), operation_id="3", by="ada")
    service.recluster(PET)

    assert {where(store, item) for item in names(0, range(12))} == {1}
    assert len({where(store, name(subject, 0)) for subject in range(3)}) == 3
    assert last.overridden == (
        "the merge at revision 38 by ada: newer corrections divide its 36 items into groups of 12, 12, 12",
    )


def test_correction_reports_the_older_corrections_that_it_overrides(service: ClusterService) -> None:
    split = service.split(PET, ONE, [name(0, 0)], operation_id="1", by="ada")
    assert split.cluster is not None

    merged = service.merge(PET, [ONE, split.cluster], operation_id="2", by="bob")

    assert split.overridden == ()
    assert len(merged.overridden) == 1
    assert f"the split at revision {split.revision} by ada" in merged.overridden[0]


def test_undo_of_a_merge_restores_the_ids(service: ClusterService, store: MemoryPetStore) -> None:
    before = store.view(PET)
    merged = service.merge(PET, [ONE, TWO], into=TWO, operation_id="1", by="ada")

    undone = service.undo(PET, merged.revision, operation_id="2", by="ada")

    after = store.view(PET)
    assert items_by_cluster(after) == items_by_cluster(before)
    assert after.aliases == {}
    assert undone.n_moved == 12
    assert "corrected" not in {how for cluster in after.clusters for how in cluster.origins}


def test_undo_of_a_merge_restores_older_aliases(service: ClusterService, store: MemoryPetStore) -> None:
    service.merge(PET, [TWO, THREE], into=TWO, operation_id="1", by="ada")
    merged = service.merge(PET, [ONE, TWO], into=ONE, operation_id="2", by="ada")
    led_then = store.view(PET).aliases

    service.undo(PET, merged.revision, operation_id="3", by="ada")

    assert led_then == {TWO: ONE, THREE: ONE}
    assert store.view(PET).aliases == {THREE: TWO}


def test_undo_of_a_merge_sends_later_items_to_the_most_similar_cluster(
    service: ClusterService, store: MemoryPetStore
) -> None:
    merged = service.merge(PET, [ONE, TWO], operation_id="1", by="ada")
    late = [take(service, subject, range(14, 20)) for subject in (0, 1)]
    joined = [[arrival.media for arrival in arrivals if arrival.cluster == ONE] for arrivals in late]
    assert all(joined), "the test needs arrivals of both subjects"

    service.undo(PET, merged.revision, operation_id="2", by="ada")

    assert {where(store, item) for item in joined[0]} == {1}
    assert {where(store, item) for item in joined[1]} == {2}


def test_undoing_a_split_moves_the_items_back(service: ClusterService, store: MemoryPetStore) -> None:
    split = service.split(PET, ONE, sorted(names(0, range(5))), operation_id="1", by="ada")

    service.undo(PET, split.revision, operation_id="2", by="ada")

    assert members(store, 1) == names(0, range(12))
    assert store.view(PET).aliases == {split.cluster: ONE}


@pytest.mark.parametrize(("n_moved", "comes_along"), [(5, True), (1, False)])
def test_undo_of_a_split_also_moves_later_arrivals_if_they_are_a_minority(
    service: ClusterService, store: MemoryPetStore, n_moved: int, comes_along: bool
) -> None:
    moved = sorted(names(0, range(n_moved)))
    split = service.split(PET, ONE, moved, operation_id="1", by="ada")
    assert split.cluster is not None
    state, came = store.load(PET), [MediaId("x0"), MediaId("x1")]
    arrivals = tuple(Arrival(item, state.vectors[state.rows[moved[0]]], split.cluster, Origin.ARRIVED) for item in came)
    store.commit(
        state,
        Change("arrival", state.next_cluster, state.n_at_recluster, state.noise_arrivals, arrivals=arrivals),
    )

    service.undo(PET, split.revision, operation_id="2", by="ada")

    assert set(moved) <= members(store, 1)
    assert (set(came) <= members(store, 1)) is comes_along


def test_second_merge_into_a_cluster_lists_only_additional_items(
    service: ClusterService, store: MemoryPetStore
) -> None:
    service.merge(PET, [ONE, TWO], into=ONE, operation_id="1", by="ada")
    take(service, 0, range(50, 52))
    before = members(store, 1)

    second = service.merge(PET, [ONE, THREE], into=ONE, operation_id="2", by="ada")
    named = {*store.load(PET).ledger[-1].media()}
    service.undo(PET, second.revision, operation_id="3", by="ada")

    assert named == (before - names(0, range(12)) - names(1, range(12))) | names(2, range(12))
    assert (members(store, 1), members(store, 3)) == (before, names(2, range(12)))


def test_undo_affects_one_correction_only(service: ClusterService, store: MemoryPetStore) -> None:
    first = service.merge(PET, [ONE, TWO], operation_id="1", by="ada")
    service.merge(PET, [ONE, THREE], operation_id="2", by="ada")

    undone = service.undo(PET, first.revision, operation_id="3", by="ada")

    assert undone.n_moved == 0
    assert members(store, 1) == names(0, range(12)) | names(1, range(12)) | names(2, range(12))


@pytest.mark.parametrize("kind", ["merge", "split", "split that leaves one"])
def test_undo_of_an_undo_reapplies_the_correction(service: ClusterService, store: MemoryPetStore, kind: str) -> None:
    if kind == "merge":
        corrected = service.merge(PET, [ONE, TWO], into=TWO, operation_id="1", by="ada")
    else:
        moved = names(0, range(5 if kind == "split" else 11))
        corrected = service.split(PET, ONE, sorted(moved), operation_id="1", by="ada")
    before = store.view(PET)
    undone = service.undo(PET, corrected.revision, operation_id="2", by="ada")

    service.undo(PET, undone.revision, operation_id="3", by="ada")

    after = store.view(PET)
    assert items_by_cluster(after) == items_by_cluster(before)
    with pytest.raises(UnknownRevision):
        service.undo(PET, undone.revision, operation_id="4", by="ada")


# -- exclusions -----------------------------------------------------------------------------------------------------


def test_excluded_item_never_returns_to_its_cluster(service: ClusterService, store: MemoryPetStore) -> None:
    excluded = service.exclude(PET, ONE, [name(0, 3)], operation_id="1", by="ada")
    at_once = where(store, name(0, 3))
    service.recluster(PET)
    take(service, 0, range(20, 40))
    again = service.recluster(PET)

    assert (excluded.cluster, excluded.n_moved, at_once) == (None, 1, -1)
    assert members(store, 1) >= names(0, range(12)) - {name(0, 3)}
    assert where(store, name(0, 3)) != 1
    assert again.kept == "constraints kept 2 of 2"


def test_excluded_item_may_join_another_cluster(service: ClusterService, store: MemoryPetStore) -> None:
    service.merge(PET, [ONE, TWO], into=ONE, operation_id="1", by="ada")
    service.exclude(PET, ONE, sorted(names(1, range(12))), operation_id="2", by="ada")
    take(service, 1, range(20, 40))

    service.recluster(PET)

    elsewhere = where(store, name(1, 0))
    assert elsewhere == where(store, name(1, 1)) == where(store, name(1, 30))
    assert elsewhere not in (-1, ONE)


def test_excluded_item_stays_out_after_all_members_were_replaced(
    service: ClusterService, store: MemoryPetStore
) -> None:
    service.exclude(PET, ONE, [name(0, 0)], operation_id="1", by="ada")
    take(service, 0, range(20, 60))
    # now the cluster contains no item that the exclusion separates from the excluded one
    service.dismiss(PET, sorted(names(0, range(1, 12))), operation_id="2", by="ada")

    reclustered = service.recluster(PET)

    assert members(store, 1) == names(0, range(20, 60)), "the id stayed with the later items"
    assert where(store, name(0, 0)) == -1
    assert reclustered.kept == "constraints kept 3 of 3"


def test_exclusion_overrides_older_corrections_of_the_item(service: ClusterService, store: MemoryPetStore) -> None:
    merged = service.merge(PET, [ONE, TWO], operation_id="1", by="ada")

    excluded = service.exclude(PET, ONE, [name(0, 0)], operation_id="2", by="bob")

    assert excluded.overridden == (
        f"the merge at revision {merged.revision} by ada: newer corrections remove 1 of its 24 items",
    )
    assert origin(store.load(PET), name(0, 0)) == Origin.NOISE


def test_exclusion_removes_its_items_again_when_its_undo_is_undone(
    service: ClusterService, store: MemoryPetStore
) -> None:
    excluded = service.exclude(PET, ONE, [name(0, 0), name(0, 1)], operation_id="1", by="ada")
    split = service.split(PET, TWO, [name(1, 0)], operation_id="2", by="ada")
    assert split.cluster is not None
    service.undo(PET, excluded.revision, operation_id="3", by="ada")
    # undoes the undo, so the exclusion is in force again
    service.undo(PET, excluded.revision + 2, operation_id="4", by="ada")

    assert where(store, name(0, 0)) == where(store, name(0, 1)) == -1


@pytest.mark.parametrize(
    ("media", "error"),
    [([], InvalidInput), (sorted(names(0, range(12))), InvalidInput), ([name(1, 0)], UnknownMedia)],
    ids=["nothing", "everything", "of another cluster"],
)
def test_exclusion_of_nothing_or_of_all_items_is_refused(
    service: ClusterService, store: MemoryPetStore, media: list[MediaId], error: type[InvalidInput]
) -> None:
    before = store.view(PET)

    with pytest.raises(error) as refused:
        service.exclude(PET, ONE, media, operation_id="1", by="ada")

    assert refused.value.field == "media_ids"
    assert store.view(PET) == before


# -- dismissals -----------------------------------------------------------------------------------------------------


def test_dismissed_items_stay_in_no_cluster_through_reclusters(service: ClusterService, store: MemoryPetStore) -> None:
    dismissed = [name(0, 0), name(1, 0)]
    service.dismiss(PET, dismissed, operation_id="1", by="ada")

    for start in (20, 30, 40):
        take(service, 0, range(start, start + 10))
        reclustered = service.recluster(PET)

    view = store.view(PET)
    assert {where(store, item) for item in dismissed} == {-1}
    assert set(view.dismissed) == set(dismissed)
    assert not set(view.noise) & set(dismissed)
    assert (reclustered.n_dismissed, reclustered.n_noise) == (2, view.n_noise)


def test_dismissed_items_do_not_count_towards_the_noise_budget(store: MemoryPetStore) -> None:
    service = grouped(store, 3, range(20))
    service.dismiss(PET, sorted(names(0, range(18))), operation_id="1", by="ada")

    reclustered = service.recluster(PET)

    assert (reclustered.n_dismissed, reclustered.n_noise, reclustered.n_absorbed) == (18, 0, 0)


def test_undo_of_a_dismissal_returns_items_to_their_clusters(service: ClusterService, store: MemoryPetStore) -> None:
    before = store.view(PET)
    dismissed = service.dismiss(PET, [name(0, 0), name(1, 0)], operation_id="1", by="ada")

    undone = service.undo(PET, dismissed.revision, operation_id="2", by="ada")

    after = store.view(PET)
    assert items_by_cluster(after) == items_by_cluster(before)
    assert (after.dismissed, undone.n_moved) == ((), 2)


def test_undo_of_a_dismissal_respects_corrections_in_force(service: ClusterService, store: MemoryPetStore) -> None:
    excluded = service.exclude(PET, ONE, [name(0, 0)], operation_id="1", by="ada")
    dismissed = service.dismiss(PET, [name(0, 0)], operation_id="2", by="ada")
    service.undo(PET, dismissed.revision, operation_id="3", by="ada")
    kept_out = where(store, name(0, 0))

    service.undo(PET, excluded.revision, operation_id="4", by="ada")

    assert (kept_out, where(store, name(0, 0))) == (-1, ONE)


@pytest.mark.parametrize("media", [[], [MediaId("nobody's")]])
def test_dismissal_without_known_items_is_refused(service: ClusterService, media: list[MediaId]) -> None:
    with pytest.raises(InvalidInput) as refused:
        service.dismiss(PET, media, operation_id="1", by="ada")

    assert refused.value.field == "media_ids"


def test_dismissal_ignores_dismissed_items_and_needs_at_least_one_other(
    service: ClusterService, store: MemoryPetStore
) -> None:
    service.dismiss(PET, [name(0, 0)], operation_id="1", by="ada")

    both = service.dismiss(PET, [name(0, 0), name(0, 1)], operation_id="2", by="ada")

    assert both.n_moved == 1
    assert len(store.view(PET).dismissed) == 2
    with pytest.raises(InvalidInput, match="already dismissed"):
        service.dismiss(PET, [name(0, 0), name(0, 1)], operation_id="3", by="ada")


# -- stale revisions -------------------------------------------------------------------------------------------------


def test_correction_based_on_a_stale_revision_is_refused(service: ClusterService, store: MemoryPetStore) -> None:
    seen = store.view(PET).revision
    merged = service.merge(PET, [ONE, TWO], operation_id="1", by="ada", expected_revision=seen)

    with pytest.raises(StaleRevision) as refused:
        service.dismiss(PET, [name(0, 0)], operation_id="2", by="bob", expected_revision=seen)

    assert (refused.value.expected, refused.value.moved_at) == (seen, merged.revision)
    assert service.merge(PET, [ONE, TWO], operation_id="1", by="ada", expected_revision=seen).is_duplicate


def test_arrivals_do_not_make_a_revision_stale(service: ClusterService, store: MemoryPetStore) -> None:
    seen = store.view(PET).revision
    take(service, 0, range(20, 23))

    corrected = service.exclude(PET, ONE, [name(0, 0)], operation_id="1", by="ada", expected_revision=seen)

    assert corrected.n_moved == 1


def test_arrivals_and_reclusters_cannot_be_undone(service: ClusterService) -> None:
    for revision in (1, 37):
        with pytest.raises(UnknownRevision):
            service.undo(PET, revision, operation_id="1", by="ada")


# -- ids of other clusters --------------------------------------------------------------------------------------------


def test_undo_of_a_dismissal_keeps_the_id_of_the_cluster_that_items_join(
    service: ClusterService, store: MemoryPetStore
) -> None:
    service.merge(PET, [TWO, THREE], into=TWO, operation_id="1", by="ada")
    split = service.split(PET, TWO, sorted(names(2, range(3))), operation_id="2", by="ada")
    dismissed = service.dismiss(PET, sorted(names(2, range(3))), operation_id="3", by="ada")
    service.undo(PET, split.revision, operation_id="4", by="ada")

    service.undo(PET, dismissed.revision, operation_id="5", by="ada")

    assert split.cluster == 4
    assert members(store, TWO) == names(1, range(12)) | names(2, range(12))
    assert store.view(PET).aliases == {THREE: TWO, split.cluster: TWO}


def test_reapplied_merge_does_not_rename_a_cluster_of_mostly_other_items(
    service: ClusterService, store: MemoryPetStore
) -> None:
    take(service, 2, range(20, 80))
    split = service.split(PET, TWO, sorted(names(1, range(2))), operation_id="1", by="ada")
    few = ClusterId(split.cluster or 0)
    other = service.split(PET, ONE, sorted(names(0, range(2))), operation_id="2", by="ada")
    merged = service.merge(PET, [few, ClusterId(other.cluster or 0)], into=few, operation_id="3", by="ada")
    undone = service.undo(PET, merged.revision, operation_id="4", by="ada")
    service.undo(PET, split.revision, operation_id="5", by="ada")
    service.undo(PET, other.revision, operation_id="6", by="ada")
    machine_merges(store, names(0, range(2)) | names(1, range(2)), into=THREE)

    service.undo(PET, undone.revision, operation_id="7", by="ada")

    assert members(store, THREE) >= names(2, range(12))


def machine_merges(store: MemoryPetStore, media: set[MediaId], *, into: ClusterId) -> None:
    state = store.load(PET)
    labels = state.labels.copy()
    labels[[state.rows[item] for item in media]] = into
    relabelling = Relabelling(labels, state.origins)
    store.commit(state, Change("recluster", state.next_cluster, 0, 0, relabelling=relabelling))
