"""Conversion of density groups into clusters: noise budget, corrections, late items, ids."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime

import numpy as np

from sploot_cluster.decide.corrections.exclude import Exclusion
from sploot_cluster.decide.corrections.merge import Merge
from sploot_cluster.decide.corrections.split import Split
from sploot_cluster.decide.recluster import plan_recluster
from sploot_cluster.engine.selection import Density
from sploot_cluster.pet.models import NOISE, ClusterId, Correction, MediaId, Origin, PetState
from sploot_cluster.pet.rows import follow
from sploot_cluster.settings import ClusterSettings
from tests.sploot_cluster.states import looks, pet_state

AT = datetime(2026, 1, 31, tzinfo=UTC)
SETTINGS = ClusterSettings()


def density(*labels: int) -> Density:
    return Density(np.array(labels, dtype=np.int32), np.ones(len(labels), dtype=np.float32), "hdbscan_cpu")


def media(*rows: int) -> tuple[MediaId, ...]:
    return tuple(MediaId(f"m{row}") for row in rows)


def merge(into: int, groups: dict[int, tuple[MediaId, ...]], revision: int = 900) -> Correction:
    by_id = {ClusterId(id_): members for id_, members in groups.items()}
    return Merge(revision, f"op-{revision}", "ada", AT, into=ClusterId(into), groups=by_id)


def split(source: int, created: int, moved: tuple[MediaId, ...], remaining: tuple[MediaId, ...]) -> Correction:
    return Split(901, "op-901", "ada", AT, ClusterId(source), ClusterId(created), moved, remaining)


def after(state: PetState, labels: Density, settings: ClusterSettings = SETTINGS) -> PetState:
    change, _ = plan_recluster(state, labels, settings=settings, by="machine")
    return follow(state, change, version="next")


def test_recluster_with_unchanged_density_moves_nothing() -> None:
    state = pet_state([1] * 5 + [2] * 5, looks(5, 5))

    change, reclustered = plan_recluster(state, density(*[0] * 5, *[1] * 5), settings=SETTINGS, by="machine")

    assert reclustered.n_moved == 0
    assert (reclustered.n_clusters, reclustered.n_kept_ids, reclustered.n_noise) == (2, 2, 0)
    assert change.clusters == {}
    assert (change.n_at_recluster, change.noise_arrivals) == (10, 0)


def test_merged_items_stay_together_under_the_chosen_id() -> None:
    ledger = [merge(2, {1: media(*range(5)), 2: media(*range(5, 10))})]
    state = pet_state([2] * 10 + [3] * 5, looks(5, 5, 5), ledger=ledger)

    new = after(state, density(*[0] * 5, *[1] * 5, *[2] * 5))

    assert new.labels.tolist() == [2] * 10 + [3] * 5
    assert set(new.origins[:10].tolist()) == {Origin.CORRECTED}


def test_items_kept_apart_are_not_absorbed_into_one_cluster() -> None:
    exclusion = Exclusion(901, "op-901", "ada", AT, ClusterId(7), media(5), media(6))
    state = pet_state([1] * 5 + [NOISE] * 2, looks(7), ledger=[exclusion])
    settings = ClusterSettings(noise_floor=0, noise_ratio=0)

    change, reclustered = plan_recluster(state, density(*[0] * 5, -1, -1), settings=settings, by="machine")

    labels = follow(state, change, version="next").labels.tolist()
    assert sorted(labels[5:]) == [NOISE, 1]
    assert (reclustered.constraints_kept, reclustered.constraints) == (2, 2)


def test_split_items_stay_apart_when_density_joins_them() -> None:
    ledger = [split(1, 2, media(0, 1), media(2, 3, 4, 5))]
    state = pet_state([2, 2, 1, 1, 1, 1], looks(6), ledger=ledger)

    change, reclustered = plan_recluster(state, density(0, 0, 0, 0, 0, 0), settings=SETTINGS, by="machine")

    assert follow(state, change, version="next").labels.tolist() == [2, 2, 1, 1, 1, 1]
    assert (reclustered.constraints_kept, reclustered.constraints) == (2, 2)


def test_placed_items_are_never_noise() -> None:
    state = pet_state([1, 1, 2], looks(3), ledger=[merge(1, {1: media(0), 5: media(1)})])

    new = after(state, density(NOISE, NOISE, NOISE))

    assert new.labels.tolist() == [1, 1, NOISE]


def test_few_placed_items_leave_a_density_group_of_another_cluster() -> None:
    # density puts a merged pair into one group with ten other items
    state = pet_state([1, 1] + [2] * 10, looks(12), ledger=[merge(1, {1: media(0), 5: media(1)})])

    new = after(state, density(*[0] * 12))

    assert new.labels.tolist() == [1, 1] + [2] * 10


def test_recluster_does_not_join_curated_clusters() -> None:
    ledger = [
        merge(1, {1: media(0, 1, 2), 5: media(3)}),
        merge(2, {2: media(4, 5), 6: media(6)}, revision=902),
    ]
    state = pet_state([1] * 4 + [2] * 3 + [NOISE], looks(8), ledger=ledger)

    new = after(state, density(*[0] * 8))

    assert new.labels.tolist() == [1] * 4 + [2] * 3 + [1]


def test_curated_cluster_takes_in_its_density_group_and_keeps_its_id() -> None:
    state = pet_state([1] * 4 + [2] * 5, looks(9), ledger=[merge(1, {1: media(0, 1), 5: media(2, 3)})])

    new = after(state, density(*[0] * 9))

    assert new.labels.tolist() == [1] * 9
    assert new.aliases == {2: 1}


def test_absorbed_items_leave_a_merged_cluster_with_their_density_group() -> None:
    ledger = [merge(1, {1: media(*range(5)), 2: media(*range(5, 10))})]
    origins = [Origin.CORRECTED] * 10 + [Origin.ABSORBED] * 10
    state = pet_state([1] * 20, looks(5, 3, 12), origins=origins, aliases={2: 1}, ledger=ledger)

    new = after(state, density(*[0] * 5, *[1] * 3, *[2] * 12))

    assert new.labels.tolist() == [1] * 10 + [3] * 10


def test_excluded_item_is_assigned_like_an_arrival() -> None:
    vectors = np.vstack([looks(5, 5), looks(5, 5)[9:]]).astype(np.float32)
    exclusion = Exclusion(901, "op-901", "ada", AT, ClusterId(1), media(10), media(0))
    state = pet_state([1] * 5 + [2] * 5 + [NOISE], vectors, ledger=[exclusion])

    new = after(state, density(*[0] * 5, *[1] * 5, 0))

    assert (new.labels[10], new.origins[10]) == (2, Origin.ARRIVED)


def test_excluded_noise_is_not_absorbed_by_another_cluster() -> None:
    between = np.array([[0.9, 0.4, 0, 0, 0, 0, 0, 0]], dtype=np.float32)
    vectors = np.vstack([looks(5, 5), between / np.linalg.norm(between)]).astype(np.float32)
    exclusion = Exclusion(901, "op-901", "ada", AT, ClusterId(1), media(10), media(0))
    settings = ClusterSettings(noise_floor=0, noise_ratio=0, absorption_slack=1_000, absorption_slack_excluded=1_000)

    def label_of_noise(*ledger: Correction) -> int:
        state = pet_state([1] * 5 + [2] * 5 + [NOISE], vectors, ledger=ledger)
        return int(after(state, density(*[0] * 5, *[1] * 5, NOISE), settings).labels[10])

    assert label_of_noise() == 1
    assert label_of_noise(exclusion) == NOISE


def test_excluded_noise_does_not_count_towards_the_budget() -> None:
    vectors = looks(20, 4)
    exclusion = Exclusion(901, "op-901", "ada", AT, ClusterId(1), media(20, 21), media(0))
    settings = ClusterSettings(noise_floor=2, noise_ratio=0, absorption_slack=1_000, absorption_slack_excluded=1_000)

    def n_absorbed(*ledger: Correction) -> int:
        state = pet_state([1] * 20 + [NOISE] * 4, vectors, ledger=ledger)
        return int((after(state, density(*[0] * 20, *[NOISE] * 4), settings).labels[20:] != NOISE).sum())

    assert n_absorbed() == 2
    assert n_absorbed(exclusion) == 0


def test_exclusion_lowers_the_slack_for_other_noise() -> None:
    far = np.array([[1, 0.6, 0, 0, 0, 0, 0, 0], [1, 0.9, 0, 0, 0, 0, 0, 0]], dtype=np.float32)
    vectors = np.vstack([looks(20), far / np.linalg.norm(far, axis=1, keepdims=True)]).astype(np.float32)
    exclusion = Exclusion(901, "op-901", "ada", AT, ClusterId(1), media(21), media(0))

    def label_of_other(slack: float) -> int:
        settings = ClusterSettings(noise_floor=0, noise_ratio=0, absorption_slack=10, absorption_slack_excluded=slack)
        state = pet_state([1] * 20 + [NOISE] * 2, vectors, ledger=[exclusion])
        return int(after(state, density(*[0] * 20, NOISE, NOISE), settings).labels[20])

    assert label_of_other(10) == 1
    assert label_of_other(1.1) == NOISE


def test_items_newer_than_the_density_result_are_assigned_like_arrivals() -> None:
    state = pet_state([1] * 6 + [NOISE, NOISE], looks(6, 0, 1, spread=0.01)[[0, 1, 2, 3, 4, 5, 0, 6]])

    new = after(state, density(*[0] * 6))

    assert new.labels.tolist() == [1] * 6 + [1, NOISE]
    assert new.origins[6] == Origin.ARRIVED
    assert new.n_at_recluster == 8


def test_excess_noise_is_absorbed_most_similar_first_within_the_slack() -> None:
    core = looks(20, spread=0.05, dim=4)
    away = np.array([[1, 0.0, t, 0] for t in (0.14, 0.10, 0.12)] + [[0, 1, 0, 0]], dtype=np.float32)
    vectors = np.vstack([core, away / np.linalg.norm(away, axis=1, keepdims=True)]).astype(np.float32)
    state = pet_state([NOISE] * 24, vectors)
    labels = density(*[0] * 20, *[NOISE] * 4)

    def absorbed(noise_floor: int, slack: float) -> list[int]:
        settings = ClusterSettings(noise_floor=noise_floor, noise_ratio=0, absorption_slack=slack)
        return np.flatnonzero(after(state, labels, settings).origins == Origin.ABSORBED).tolist()

    assert absorbed(4, 1_000) == []
    assert absorbed(3, 1_000) == [21]
    assert absorbed(2, 1_000) == [21, 22]
    assert absorbed(0, 1_000) == [20, 21, 22, 23]
    assert absorbed(0, 10) == [20, 21, 22]


def test_absorbed_items_change_neither_threshold_nor_id() -> None:
    core = looks(20, spread=0.05, dim=4)
    vectors = np.vstack([core, [[0.99, 0.1, 0.1, 0]]]).astype(np.float32)
    state = pet_state([1] * 20 + [NOISE], vectors)
    without = after(state, density(*[0] * 20, NOISE), ClusterSettings(noise_floor=1))

    with_it = after(
        without, density(*[0] * 20, NOISE), ClusterSettings(noise_floor=0, noise_ratio=0, absorption_slack=1_000)
    )

    assert with_it.labels[20] == 1
    assert with_it.clusters == without.clusters


def test_noise_is_not_absorbed_into_the_other_side_of_a_split() -> None:
    core = looks(20, spread=0.05, dim=4)
    vectors = np.vstack([core, core[:1]]).astype(np.float32)
    ledger = [split(2, 1, media(*range(20)), media(20))]
    state = pet_state([1] * 20 + [NOISE], vectors, ledger=ledger)

    new = after(state, density(*[0] * 20, NOISE), ClusterSettings(noise_floor=0, noise_ratio=0, absorption_slack=1_000))

    assert new.labels[20] == NOISE


def test_recluster_memory_does_not_grow_with_groups_times_noise() -> None:
    """In a pet with many small groups and much noise, a groups × noise matrix would take most of the memory."""
    n_groups, n_noise = 250, 1_500
    labels = [*np.repeat(range(n_groups), 3).tolist(), *[NOISE] * n_noise]
    vectors = np.random.default_rng(1).normal(size=(len(labels), 8)).astype(np.float32)
    state = pet_state([NOISE] * len(labels), vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    tracemalloc.start()
    try:
        plan_recluster(state, density(*labels), settings=SETTINGS, by="machine")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 2 * 4 * n_groups * n_noise, peak
