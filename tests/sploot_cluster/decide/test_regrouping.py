"""Cards, thresholds and counts of groups that become clusters."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from sploot_cluster.decide.assignment import threshold_of
from sploot_cluster.decide.constraints import RowConstraints
from sploot_cluster.decide.corrections.exclude import Exclusion
from sploot_cluster.decide.regrouping import regroup
from sploot_cluster.decide.resolving import resolve
from sploot_cluster.pet.models import NOISE, ClusterId, MediaId, Origin, PetState
from sploot_cluster.settings import ClusterSettings
from tests.sploot_cluster.states import looks, pet_state


def no_constraints(state: PetState) -> RowConstraints:
    return resolve(()).by_row(state.rows)


def test_cards_are_written_for_changed_clusters_only() -> None:
    vectors = looks(4, 4, 4)
    state = pet_state([1] * 4 + [2] * 4 + [3] * 4, vectors)
    groups = np.array([1] * 4 + [2] * 3 + [9] * 5, dtype=np.int32)

    regrouped = regroup(state, groups, state.origins, no_constraints(state), ClusterSettings())

    assert regrouped.labels.tolist() == [1] * 4 + [2] * 3 + [3] * 5
    assert sorted(regrouped.clusters) == [2, 3]
    card = regrouped.clusters[regrouped.labels[-1]]
    assert card is not None
    assert card.threshold == threshold_of(vectors[7:])
    assert card.since == 1
    assert (regrouped.n_moved, regrouped.n_kept_ids, regrouped.n_new_ids, regrouped.n_retired_ids) == (1, 3, 0, 0)


def test_card_is_removed_when_a_cluster_ends_and_added_for_a_new_one() -> None:
    state = pet_state([1] * 4 + [NOISE] * 4, looks(4, 4))
    groups = np.array([NOISE] * 4 + [0] * 4, dtype=np.int32)
    origins = np.array([Origin.NOISE] * 4 + [Origin.CORE] * 4, dtype=np.uint8)

    regrouped = regroup(state, groups, origins, no_constraints(state), ClusterSettings())

    card = regrouped.clusters[regrouped.labels[4]]
    assert card is not None
    assert (card.id, card.since) == (2, state.revision + 1)
    assert list(regrouped.clusters.values()).count(None) == 1
    assert (regrouped.n_kept_ids, regrouped.n_new_ids, regrouped.n_retired_ids) == (0, 1, 1)


def test_absorbed_items_do_not_change_the_threshold() -> None:
    vectors = looks(6)
    state = pet_state([1] * 5 + [NOISE], vectors, thresholds={1: threshold_of(vectors[:5])})
    origins = np.array([Origin.CORE] * 5 + [Origin.ABSORBED], dtype=np.uint8)

    regrouped = regroup(state, np.array([1] * 6, dtype=np.int32), origins, no_constraints(state), ClusterSettings())

    assert regrouped.clusters == {}
    assert regrouped.labels.tolist() == [1] * 6


def test_excluded_item_stays_out_of_the_cluster_that_replaced_its_own() -> None:
    """This also holds after all remaining items were deleted, when no cannot-link pair keeps the item out."""
    exclusion = Exclusion(
        9, "op-9", "ada", datetime(2026, 1, 31, tzinfo=UTC), ClusterId(1), (MediaId("m4"),), (MediaId("gone"),)
    )
    state = pet_state([2] * 4 + [NOISE], looks(5), aliases={1: 2}, ledger=[exclusion])
    origins = np.full(5, Origin.CORE, dtype=np.uint8)
    rows = resolve(state.ledger).by_row(state.rows)

    regrouped = regroup(state, np.zeros(5, dtype=np.int32), origins, rows, ClusterSettings())

    assert regrouped.labels.tolist() == [2] * 4 + [NOISE]
    assert regrouped.origins[4] == Origin.NOISE


def test_absorbed_items_become_arrived_if_they_form_a_cluster_of_their_own() -> None:
    origins = [Origin.CORE] * 4 + [Origin.ABSORBED] * 2
    state = pet_state([1] * 6, looks(6), origins=origins)
    groups = np.array([5] * 4 + [1] * 2, dtype=np.int32)

    regrouped = regroup(state, groups, state.origins, no_constraints(state), ClusterSettings())

    assert regrouped.origins.tolist() == [Origin.CORE] * 4 + [Origin.ARRIVED] * 2
    assert regrouped.labels.tolist() == [1] * 4 + [2] * 2
    assert state.origins.tolist() == origins
