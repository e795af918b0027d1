"""What people say: what becomes of labels, ids, standings, and what is answered."""

from __future__ import annotations

import pytest

from sploot_cluster import ClusterService
from sploot_cluster.errors import InvalidInput, StaleRevision, UnknownCluster, UnknownMedia, UnknownRevision
from sploot_cluster.memory_store import MemoryPetStore
from sploot_cluster.models import Arrival, Change, ClusterId, MediaId, PetState, Relabelling, Standing
from tests.sploot_cluster.albums import PET, grouped, name, names, take

ONE, TWO, THREE = ClusterId(1), ClusterId(2), ClusterId(3)


@pytest.fixture
def store() -> MemoryPetStore:
    return MemoryPetStore()


@pytest.fixture
def service(store: MemoryPetStore) -> ClusterService:
    """Clusters 1, 2, 3 of twelve pictures each: subjects 0, 1, 2."""
    return grouped(store, 3, range(12))


def where(store: MemoryPetStore, medium: MediaId) -> int:
    state = store.load(PET)
    return int(state.labels[state.rows[medium]])


def standing(state: PetState, medium: MediaId) -> Standing:
    return Standing(state.standings[state.rows[medium]])


def members(store: MemoryPetStore, cluster: int) -> set[MediaId]:
    return set(next(view.media for view in store.view(PET).clusters if view.id == cluster))


def test_a_merge_prefers_the_cluster_with_most_media(service: ClusterService, store: MemoryPetStore) -> None:
    service.split(PET, TWO, sorted(names(1, range(4))), operation_id="1", by="ada")

    merged = service.merge(PET, [TWO, THREE], operation_id="2", by="ada")

    assert (merged.cluster, merged.n_moved) == (THREE, 8)
    assert members(store, 3) == names(1, range(4, 12)) | names(2, range(12))


def test_merged_media_are_corrected_and_all_others_as_they_were(service: ClusterService, store: MemoryPetStore) -> None:
    service.merge(PET, [ONE, TWO], operation_id="1", by="ada")

    state = store.load(PET)
    assert {standing(state, medium) for medium in names(0, range(12)) | names(1, range(12))} == {Standing.CORRECTED}
    assert {standing(state, medium) for medium in names(2, range(12))} == {Standing.CORE}


def test_an_alias_is_as_good_as_an_id(service: ClusterService, store: MemoryPetStore) -> None:
    service.merge(PET, [ONE, TWO], into=TWO, operation_id="1", by="ada")

    service.merge(PET, [ONE, THREE], into=ONE, operation_id="2", by="ada")

    view = store.view(PET)
    assert [cluster.id for cluster in view.clusters] == [TWO]
    assert view.aliases == {ONE: TWO, THREE: TWO}


@pytest.mark.parametrize(("cluster_ids", "into", "field"), [([1], None, "cluster_ids"), ([1, 1], None, "cluster_ids")])
def test_a_merge_of_fewer_than_two_clusters_is_refused(
    service: ClusterService, cluster_ids: list[int], into: int | None, field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        service.merge(PET, [ClusterId(id_) for id_ in cluster_ids], operation_id="1", by="ada")

    assert refused.value.field == field


def test_a_merge_into_a_cluster_that_is_not_merged_is_refused(service: ClusterService) -> None:
    with pytest.raises(InvalidInput) as refused:
        service.merge(PET, [ONE, TWO], into=THREE, operation_id="1", by="ada")

    assert refused.value.field == "into"


def test_an_unknown_cluster_is_refused_by_the_name_of_its_field(service: ClusterService) -> None:
    with pytest.raises(UnknownCluster) as refused:
        service.merge(PET, [ONE, TWO], into=ClusterId(9), operation_id="1", by="ada")

    assert refused.value.field == "into"


@pytest.mark.parametrize(
    ("moved", "error"),
    [([], InvalidInput), (sorted(names(0, range(12))), InvalidInput), ([name(1, 0)], UnknownMedia)],
    ids=["nothing", "everything", "of another cluster"],
)
def test_a_split_that_makes_no_two_clusters_is_refused(
    service: ClusterService, store: MemoryPetStore, moved: list[MediaId], error: type[InvalidInput]
) -> None:
    before = store.view(PET)

    with pytest.raises(error) as refused:
        service.split(PET, ONE, moved, operation_id="1", by="ada")

    assert refused.value.field == "media_ids"
    assert store.view(PET) == before


def test_a_split_makes_an_id_that_was_never_there(service: ClusterService, store: MemoryPetStore) -> None:
    created = service.split(PET, ONE, [name(0, 0), name(0, 1), name(0, 0)], operation_id="1", by="ada").cluster

    assert created == 4
    assert members(store, 4) == {name(0, 0), name(0, 1)}
    assert store.load(PET).next_cluster == 5


def test_wrongly_merged_clusters_can_be_taken_apart_one_by_one(service: ClusterService, store: MemoryPetStore) -> None:
    service.merge(PET, [ONE, TWO, THREE], into=ONE, operation_id="1", by="ada")

    service.split(PET, ONE, sorted(names(1, range(12))), operation_id="2", by="ada")
    last = service.split(PET, ONE, sorted(names(2, range(12))), operation_id="3", by="ada")
    service.recluster(PET)

    assert {where(store, medium) for medium in names(0, range(12))} == {1}
    assert len({where(store, name(subject, 0)) for subject in range(3)}) == 3
    assert last.overridden == (
        "the merge at revision 38 by ada: newer corrections divide its 36 items into groups of 12, 12, 12",
    )


def test_a_correction_reports_what_it_contradicts(service: ClusterService) -> None:
    split = service.split(PET, ONE, [name(0, 0)], operation_id="1", by="ada")
    assert split.cluster is not None

    merged = service.merge(PET, [ONE, split.cluster], operation_id="2", by="bob")

    assert split.overridden == ()
    assert len(merged.overridden) == 1
    assert f"the split at revision {split.revision} by ada" in merged.overridden[0]


def test_an_undone_merge_gives_the_ids_back(service: ClusterService, store: MemoryPetStore) -> None:
    before = store.view(PET)
    merged = service.merge(PET, [ONE, TWO], into=TWO, operation_id="1", by="ada")

    undone = service.undo(PET, merged.revision, operation_id="2", by="ada")

    after = store.view(PET)
    assert [(cluster.id, cluster.media) for cluster in after.clusters] == [
        (cluster.id, cluster.media) for cluster in before.clusters
    ]
    assert after.aliases == {}
    assert undone.n_moved == 12
    assert Standing.CORRECTED not in {how for cluster in after.clusters for how in cluster.standings}


def test_an_undone_merge_gives_older_ids_back_too(service: ClusterService, store: MemoryPetStore) -> None:
    service.merge(PET, [TWO, THREE], into=TWO, operation_id="1", by="ada")
    merged = service.merge(PET, [ONE, TWO], into=ONE, operation_id="2", by="ada")
    led_then = store.view(PET).aliases

    service.undo(PET, merged.revision, operation_id="3", by="ada")

    assert led_then == {TWO: ONE, THREE: ONE}
    assert store.view(PET).aliases == {THREE: TWO}


def test_who_came_to_a_merged_cluster_goes_with_its_like_when_the_merge_is_undone(
    service: ClusterService, store: MemoryPetStore
) -> None:
    merged = service.merge(PET, [ONE, TWO], operation_id="1", by="ada")
    late = [take(service, subject, range(14, 20)) for subject in (0, 1)]
    joined = [[arrival.media for arrival in arrivals if arrival.cluster == ONE] for arrivals in late]
    assert all(joined), "the test needs arrivals of both subjects"

    service.undo(PET, merged.revision, operation_id="2", by="ada")

    assert {where(store, medium) for medium in joined[0]} == {1}
    assert {where(store, medium) for medium in joined[1]} == {2}


def test_an_undone_split_returns_what_it_moved(service: ClusterService, store: MemoryPetStore) -> None:
    split = service.split(PET, ONE, sorted(names(0, range(5))), operation_id="1", by="ada")

    service.undo(PET, split.revision, operation_id="2", by="ada")

    assert members(store, 1) == names(0, range(12))
    assert store.view(PET).aliases == {split.cluster: ONE}


@pytest.mark.parametrize(("n_moved", "comes_along"), [(5, True), (1, False)])
def test_who_came_to_a_split_off_cluster_returns_with_most_of_it(
    service: ClusterService, store: MemoryPetStore, n_moved: int, comes_along: bool
) -> None:
    moved = sorted(names(0, range(n_moved)))
    split = service.split(PET, ONE, moved, operation_id="1", by="ada")
    assert split.cluster is not None
    state, came = store.load(PET), [MediaId("x0"), MediaId("x1")]
    arrivals = tuple(
        Arrival(medium, state.vectors[state.rows[moved[0]]], split.cluster, Standing.ARRIVED) for medium in came
    )
    store.commit(
        state,
        Change("arrival", state.next_cluster, state.n_at_recluster, state.noise_arrivals, arrivals=arrivals),
    )

    service.undo(PET, split.revision, operation_id="2", by="ada")

    assert set(moved) <= members(store, 1)
    assert (set(came) <= members(store, 1)) is comes_along


def test_an_undo_takes_back_one_correction_and_no_other(service: ClusterService, store: MemoryPetStore) -> None:
    first = service.merge(PET, [ONE, TWO], operation_id="1", by="ada")
    service.merge(PET, [ONE, THREE], operation_id="2", by="ada")

    undone = service.undo(PET, first.revision, operation_id="3", by="ada")

    assert undone.n_moved == 0
    assert members(store, 1) == names(0, range(12)) | names(1, range(12)) | names(2, range(12))


@pytest.mark.parametrize("kind", ["merge", "split", "split that leaves one"])
def test_an_undo_that_is_undone_does_the_correction_again(
    service: ClusterService, store: MemoryPetStore, kind: str
) -> None:
    if kind == "merge":
        corrected = service.merge(PET, [ONE, TWO], into=TWO, operation_id="1", by="ada")
    else:
        moved = names(0, range(5 if kind == "split" else 11))
        corrected = service.split(PET, ONE, sorted(moved), operation_id="1", by="ada")
    before = store.view(PET)
    undone = service.undo(PET, corrected.revision, operation_id="2", by="ada")

    service.undo(PET, undone.revision, operation_id="3", by="ada")

    after = store.view(PET)
    assert [(cluster.id, cluster.media) for cluster in after.clusters] == [
        (cluster.id, cluster.media) for cluster in before.clusters
    ]
    with pytest.raises(UnknownRevision):
        service.undo(PET, undone.revision, operation_id="4", by="ada")


# -- not this one ----------------------------------------------------------------------------------------------------


def test_an_excluded_medium_leaves_and_never_comes_back(service: ClusterService, store: MemoryPetStore) -> None:
    excluded = service.exclude(PET, ONE, [name(0, 3)], operation_id="1", by="ada")
    at_once = where(store, name(0, 3))
    service.recluster(PET)
    take(service, 0, range(20, 40))
    again = service.recluster(PET)

    assert (excluded.cluster, excluded.n_moved, at_once) == (None, 1, -1)
    assert members(store, 1) >= names(0, range(12)) - {name(0, 3)}
    assert where(store, name(0, 3)) != 1
    assert again.kept == "constraints kept 2 of 2"


def test_an_excluded_medium_may_go_elsewhere(service: ClusterService, store: MemoryPetStore) -> None:
    service.merge(PET, [ONE, TWO], into=ONE, operation_id="1", by="ada")
    service.exclude(PET, ONE, sorted(names(1, range(12))), operation_id="2", by="ada")
    take(service, 1, range(20, 40))

    service.recluster(PET)

    elsewhere = where(store, name(1, 0))
    assert elsewhere == where(store, name(1, 1)) == where(store, name(1, 30))
    assert elsewhere not in (-1, ONE)


def test_an_excluded_medium_stays_out_although_the_cluster_is_of_others_now(
    service: ClusterService, store: MemoryPetStore
) -> None:
    service.exclude(PET, ONE, [name(0, 0)], operation_id="1", by="ada")
    take(service, 0, range(20, 60))
    # nobody is left of those whom the medium was parted from
    service.dismiss(PET, sorted(names(0, range(1, 12))), operation_id="2", by="ada")

    reclustered = service.recluster(PET)

    assert members(store, 1) == names(0, range(20, 60)), "the id went with those who came"
    assert where(store, name(0, 0)) == -1
    assert reclustered.kept == "constraints kept 3 of 3"


def test_an_exclusion_takes_back_what_older_corrections_said_of_the_medium(
    service: ClusterService, store: MemoryPetStore
) -> None:
    merged = service.merge(PET, [ONE, TWO], operation_id="1", by="ada")

    excluded = service.exclude(PET, ONE, [name(0, 0)], operation_id="2", by="bob")

    assert excluded.overridden == (
        f"the merge at revision {merged.revision} by ada: newer corrections remove 1 of its 24 items",
    )
    assert standing(store.load(PET), name(0, 0)) == Standing.NOISE


def test_a_newer_merge_brings_an_excluded_medium_back_and_says_so(
    service: ClusterService, store: MemoryPetStore
) -> None:
    excluded = service.exclude(PET, ONE, [name(0, 0), name(0, 1)], operation_id="1", by="ada")
    split = service.split(PET, TWO, [name(1, 0)], operation_id="2", by="ada")
    assert split.cluster is not None
    service.undo(PET, excluded.revision, operation_id="3", by="ada")
    service.undo(PET, excluded.revision + 2, operation_id="4", by="ada")  # the exclusion holds again

    assert where(store, name(0, 0)) == where(store, name(0, 1)) == -1


@pytest.mark.parametrize(
    ("media", "error"),
    [([], InvalidInput), (sorted(names(0, range(12))), InvalidInput), ([name(1, 0)], UnknownMedia)],
    ids=["nothing", "everything", "of another cluster"],
)
def test_an_exclusion_that_leaves_nothing_to_be_kept_from_is_refused(
    service: ClusterService, store: MemoryPetStore, media: list[MediaId], error: type[InvalidInput]
) -> None:
    before = store.view(PET)

    with pytest.raises(error) as refused:
        service.exclude(PET, ONE, media, operation_id="1", by="ada")

    assert refused.value.field == "media_ids"
    assert store.view(PET) == before


# -- dismissed -------------------------------------------------------------------------------------------------------


def test_dismissed_media_are_noise_for_ever(service: ClusterService, store: MemoryPetStore) -> None:
    dismissed = [name(0, 0), name(1, 0)]
    service.dismiss(PET, dismissed, operation_id="1", by="ada")

    for start in (20, 30, 40):
        take(service, 0, range(start, start + 10))
        reclustered = service.recluster(PET)

    view = store.view(PET)
    assert {where(store, medium) for medium in dismissed} == {-1}
    assert set(view.dismissed) == set(dismissed)
    assert not set(view.noise) & set(dismissed)
    assert (reclustered.n_dismissed, reclustered.n_noise) == (2, view.n_noise)


def test_dismissed_media_take_no_place_in_the_noise_budget(store: MemoryPetStore) -> None:
    service = grouped(store, 3, range(20))
    service.dismiss(PET, sorted(names(0, range(18))), operation_id="1", by="ada")

    reclustered = service.recluster(PET)

    assert (reclustered.n_dismissed, reclustered.n_noise, reclustered.n_absorbed) == (18, 0, 0)


def test_an_undone_dismissal_brings_media_back_to_where_they_were(
    service: ClusterService, store: MemoryPetStore
) -> None:
    before = store.view(PET)
    dismissed = service.dismiss(PET, [name(0, 0), name(1, 0)], operation_id="1", by="ada")

    undone = service.undo(PET, dismissed.revision, operation_id="2", by="ada")

    after = store.view(PET)
    assert [(c.id, c.media) for c in after.clusters] == [(c.id, c.media) for c in before.clusters]
    assert (after.dismissed, undone.n_moved) == ((), 2)


def test_an_undone_dismissal_does_not_break_what_was_said_since(service: ClusterService, store: MemoryPetStore) -> None:
    excluded = service.exclude(PET, ONE, [name(0, 0)], operation_id="1", by="ada")
    dismissed = service.dismiss(PET, [name(0, 0)], operation_id="2", by="ada")
    service.undo(PET, dismissed.revision, operation_id="3", by="ada")
    kept_out = where(store, name(0, 0))

    service.undo(PET, excluded.revision, operation_id="4", by="ada")

    assert (kept_out, where(store, name(0, 0))) == (-1, ONE)


@pytest.mark.parametrize("media", [[], [MediaId("nobody's")]])
def test_a_dismissal_of_nothing_is_refused(service: ClusterService, media: list[MediaId]) -> None:
    with pytest.raises(InvalidInput) as refused:
        service.dismiss(PET, media, operation_id="1", by="ada")

    assert refused.value.field == "media_ids"


def test_media_are_dismissed_once(service: ClusterService, store: MemoryPetStore) -> None:
    service.dismiss(PET, [name(0, 0)], operation_id="1", by="ada")

    both = service.dismiss(PET, [name(0, 0), name(0, 1)], operation_id="2", by="ada")

    assert both.n_moved == 1
    assert len(store.view(PET).dismissed) == 2
    with pytest.raises(InvalidInput, match="already dismissed"):
        service.dismiss(PET, [name(0, 0), name(0, 1)], operation_id="3", by="ada")


# -- stale pages -----------------------------------------------------------------------------------------------------


def test_a_correction_from_a_page_that_is_not_true_any_more_is_refused(
    service: ClusterService, store: MemoryPetStore
) -> None:
    seen = store.view(PET).revision
    merged = service.merge(PET, [ONE, TWO], operation_id="1", by="ada", expected_revision=seen)

    with pytest.raises(StaleRevision) as refused:
        service.dismiss(PET, [name(0, 0)], operation_id="2", by="bob", expected_revision=seen)

    assert (refused.value.expected, refused.value.moved_at) == (seen, merged.revision)
    assert service.merge(PET, [ONE, TWO], operation_id="1", by="ada", expected_revision=seen).is_duplicate


def test_arrivals_make_no_page_stale(service: ClusterService, store: MemoryPetStore) -> None:
    seen = store.view(PET).revision
    take(service, 0, range(20, 23))

    corrected = service.exclude(PET, ONE, [name(0, 0)], operation_id="1", by="ada", expected_revision=seen)

    assert corrected.n_moved == 1


def test_an_arrival_and_a_recluster_cannot_be_undone(service: ClusterService) -> None:
    for revision in (1, 37):
        with pytest.raises(UnknownRevision):
            service.undo(PET, revision, operation_id="1", by="ada")


# -- ids of others -----------------------------------------------------------------------------------------------------


def test_an_undone_dismissal_takes_no_id_from_the_cluster_that_its_media_go_to(
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


def test_a_merge_that_is_done_again_takes_no_id_from_a_cluster_that_is_mostly_others(
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
    labels[[state.rows[medium] for medium in media]] = into
    relabelling = Relabelling(labels, state.standings)
    store.commit(state, Change("recluster", state.next_cluster, 0, 0, relabelling=relabelling))
