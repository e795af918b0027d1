"""Cards, thresholds and counts of groups that became clusters."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from sploot_cluster.assignment import threshold_of
from sploot_cluster.constraints import RowConstraints, resolve
from sploot_cluster.models import NOISE, ClusterId, Exclusion, MediaId, PetState, Standing
from sploot_cluster.regrouping import regroup
from sploot_cluster.settings import ClusterSettings
from tests.sploot_cluster.states import looks, pet_state


def nobody_said(state: PetState) -> RowConstraints:
    return resolve(()).by_row(state.rows)


def test_cards_are_written_for_what_changed_and_for_nothing_else() -> None:
    vectors = looks(4, 4, 4)
    state = pet_state([1] * 4 + [2] * 4 + [3] * 4, vectors)
    groups = np.array([1] * 4 + [2] * 3 + [9] * 5, dtype=np.int32)

    regrouped = regroup(state, groups, state.standings, nobody_said(state), ClusterSettings())

    assert regrouped.labels.tolist() == [1] * 4 + [2] * 3 + [3] * 5
    assert sorted(regrouped.clusters) == [2, 3]
    card = regrouped.clusters[regrouped.labels[-1]]
    assert card is not None
    assert card.threshold == threshold_of(vectors[7:])
    assert card.since == 1
    assert (regrouped.n_moved, regrouped.n_kept_ids, regrouped.n_new_ids, regrouped.n_retired_ids) == (1, 3, 0, 0)


def test_a_cluster_that_ends_loses_its_card_and_a_new_one_knows_since_when_it_is() -> None:
    state = pet_state([1] * 4 + [NOISE] * 4, looks(4, 4))
    groups = np.array([NOISE] * 4 + [0] * 4, dtype=np.int32)
    standings = np.array([Standing.NOISE] * 4 + [Standing.CORE] * 4, dtype=np.uint8)

    regrouped = regroup(state, groups, standings, nobody_said(state), ClusterSettings())

    card = regrouped.clusters[regrouped.labels[4]]
    assert card is not None
    assert (card.id, card.since) == (2, state.revision + 1)
    assert list(regrouped.clusters.values()).count(None) == 1
    assert (regrouped.n_kept_ids, regrouped.n_new_ids, regrouped.n_retired_ids) == (0, 1, 1)


def test_absorbed_media_do_not_move_a_threshold() -> None:
    vectors = looks(6)
    state = pet_state([1] * 5 + [NOISE], vectors, thresholds={1: threshold_of(vectors[:5])})
    standings = np.array([Standing.CORE] * 5 + [Standing.ABSORBED], dtype=np.uint8)

    regrouped = regroup(state, np.array([1] * 6, dtype=np.int32), standings, nobody_said(state), ClusterSettings())

    assert regrouped.clusters == {}
    assert regrouped.labels.tolist() == [1] * 6


def test_who_was_taken_out_of_a_cluster_stays_out_of_the_one_that_its_id_leads_to() -> None:
    """Also when those who remained are gone, so that nobody keeps the two apart."""
    said = Exclusion(
        9, "op-9", "ada", datetime(2026, 1, 31, tzinfo=UTC), ClusterId(1), (MediaId("m4"),), (MediaId("gone"),)
    )
    state = pet_state([2] * 4 + [NOISE], looks(5), aliases={1: 2}, ledger=[said])
    standings = np.full(5, Standing.CORE, dtype=np.uint8)
    rows = resolve(state.ledger).by_row(state.rows)

    regrouped = regroup(state, np.zeros(5, dtype=np.int32), standings, rows, ClusterSettings())

    assert regrouped.labels.tolist() == [2] * 4 + [NOISE]
    assert regrouped.standings[4] == Standing.NOISE


def test_media_left_in_a_cluster_count_although_they_had_only_been_absorbed() -> None:
    standings = [Standing.CORE] * 4 + [Standing.ABSORBED] * 2
    state = pet_state([1] * 6, looks(6), standings=standings)
    groups = np.array([5] * 4 + [1] * 2, dtype=np.int32)

    regrouped = regroup(state, groups, state.standings, nobody_said(state), ClusterSettings())

    assert regrouped.standings.tolist() == [Standing.CORE] * 4 + [Standing.ARRIVED] * 2
    assert regrouped.labels.tolist() == [1] * 4 + [2] * 2
    assert state.standings.tolist() == standings
