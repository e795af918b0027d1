"""Assignment of arrivals, thresholds of clusters, and requests for a recluster."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sploot_cluster.decide.assignment import (
    Decision,
    decide,
    own_similarity,
    reach,
    recluster_reason,
    similarity_to,
    threshold_of,
)
from sploot_cluster.engine.neighbours import Neighbours, nearest
from sploot_cluster.pet.models import NOISE, Origin, PetState
from sploot_cluster.pet.vectors import FloatVector, as_vector, as_vectors
from sploot_cluster.settings import ClusterSettings
from tests.sploot_cluster.states import looks, pet_state

SETTINGS = ClusterSettings()


def decided(state: PetState, vector: FloatVector, settings: ClusterSettings = SETTINGS) -> Decision:
    neighbours = nearest(state.vectors, vector[None, :], settings.n_neighbours)
    return decide(neighbours, state.labels, state.origins, state.clusters, settings)


def axis(number: int, lean: float = 0.0, dim: int = 8) -> FloatVector:
    """Return the unit vector of an axis, tilted towards the next axis by ``lean``."""
    vector = np.zeros(dim)
    vector[number], vector[number + 1] = 1, lean
    return as_vector(vector)


def test_arrival_joins_the_most_similar_cluster_whose_threshold_it_reaches() -> None:
    state = pet_state([1] * 5 + [2] * 5, looks(5, 5), thresholds={1: 0.1, 2: 0.1})

    decision = decided(state, axis(1, lean=0.2))

    assert (decision.cluster, decision.origin) == (2, Origin.ARRIVED)
    expected = similarity_to(state.vectors[5:], axis(1, lean=0.2)[None, :])[0]
    assert decision.similarity == pytest.approx(float(expected), abs=1e-5)


def test_arrival_below_every_threshold_is_noise_and_reports_similarity() -> None:
    state = pet_state([1] * 5 + [2] * 5, looks(5, 5), thresholds={1: 0.99, 2: 0.99})

    decision = decided(state, axis(0, lean=0.5))

    assert (decision.cluster, decision.origin) == (NOISE, Origin.NOISE)
    assert decision.similarity == pytest.approx(0.9, abs=0.05)


def test_first_item_of_a_pet_is_noise() -> None:
    assert decided(pet_state([], looks()), axis(0)) == Decision(NOISE, Origin.NOISE, None)


def test_noise_and_absorbed_items_do_not_attract_arrivals() -> None:
    origins = [Origin.CORE] * 3 + [Origin.ABSORBED] * 3 + [Origin.NOISE] * 3
    state = pet_state([1] * 6 + [NOISE] * 3, looks(3, 3, 3), origins=origins)

    assert decided(state, axis(1)).cluster == NOISE
    assert decided(state, axis(2)).cluster == NOISE
    assert decided(state, axis(0)).cluster == 1


def test_arrival_slack_admits_arrivals_beyond_the_threshold() -> None:
    state = pet_state([1] * 5, looks(5, spread=0.001), thresholds={1: 0.98})
    query = axis(0, lean=0.23)  # similarity about .975: 1.27 times the distance that the threshold allows

    assert decided(state, query).cluster == NOISE
    assert decided(state, query, replace(SETTINGS, arrival_slack=1.4)).cluster == 1


def test_arrival_needs_several_neighbours_in_a_cluster_to_join_it() -> None:
    # of the three neighbours only one is in cluster 2, so the mean for cluster 2 is unknown
    settings = replace(SETTINGS, n_neighbours=3)
    state = pet_state([1] * 2 + [2] * 5, looks(3, 4), thresholds={1: 0.9999, 2: -1.0})

    assert decided(state, axis(0, lean=0.1), settings).cluster == NOISE
    assert decided(state, axis(0, lean=0.1)).cluster == 2, "with all items as neighbours, the mean is known"


def test_smallest_id_wins_among_equally_similar_clusters() -> None:
    vectors = looks(3, spread=0.0).repeat(2, axis=0)
    state = pet_state([2, 1] * 3, vectors)

    assert decided(state, axis(0)).cluster == 1


@pytest.mark.parametrize("seed", range(40))
def test_early_decision_equals_the_decision_from_all_neighbours(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(9, 65))
    # only six different similarities, so that many clusters are equally similar
    similarity = (np.sort(rng.integers(0, 6, size=n))[::-1] / 6).astype(np.float32)
    labels = rng.integers(-1, 4, size=n).astype(np.int32)
    origins = rng.choice([Origin.CORE, Origin.ARRIVED, Origin.ABSORBED], size=n).astype(np.uint8)
    cards = pet_state([0, 1, 2, 3], looks(4), thresholds=dict(enumerate(rng.random(4).tolist()))).clusters
    counted = [row for row in range(n) if labels[row] != NOISE and origins[row] != Origin.ABSORBED]
    of = {id_: [float(similarity[row]) for row in counted if labels[row] == id_] for id_ in cards}
    means = sorted((-sum(all_[:3]) / len(all_[:3]), id_) for id_, all_ in of.items() if all_)

    neighbours = Neighbours(np.arange(n)[None], similarity[None])
    decision = decide(neighbours, labels, origins, cards, SETTINGS)

    reached = [one for one in means if reach(-one[0], cards[one[1]].threshold) <= SETTINGS.arrival_slack]
    expected = (reached[0][1], -reached[0][0]) if reached else (NOISE, -means[0][0] if means else None)
    assert (decision.cluster, decision.similarity) == expected


def test_reach_is_one_at_the_threshold_and_grows_with_distance() -> None:
    assert reach(0.9, 0.9) == pytest.approx(1, abs=1e-3)
    assert reach(0.8, 0.9) == pytest.approx(2, abs=1e-3)
    assert reach(1.0, 1.0) == 0
    assert reach(0.99, 1.0) > 100


def test_threshold_ignores_an_outlier_among_the_members() -> None:
    tight = looks(12, spread=0.02)
    stray = axis(0, lean=0.8)[None, :]

    threshold = threshold_of(np.vstack([tight, stray]))

    assert threshold == pytest.approx(threshold_of(tight), abs=0.01)
    assert threshold > similarity_to(tight, stray)[0] + 0.1


def test_threshold_is_the_lowest_similarity_that_is_not_an_outlier() -> None:
    random = np.random.default_rng(5)
    for _ in range(300):
        members = as_vectors(random.normal(size=(random.integers(2, 40), 4)))
        own = own_similarity(members)
        lower, upper = np.quantile(own, [0.25, 0.75])

        assert threshold_of(members) == float(np.clip(own[own >= lower - 1.5 * (upper - lower)].min(), -1, 1))


def test_threshold_of_a_single_member_is_one() -> None:
    assert threshold_of(looks(1)) == 1.0


def test_threshold_from_a_sample_is_between_minimum_and_median() -> None:
    vectors = looks(3_000, spread=0.1)

    sampled = threshold_of(vectors)

    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    own = np.partition(similarity, -3, axis=1)[:, -3:].mean(axis=1)
    assert own.min() - 1e-5 <= sampled <= float(np.median(own))


@pytest.mark.parametrize(
    ("n_media", "n_at_recluster", "noise_arrivals", "reason"),
    [
        (7, 0, 0, None),
        (8, 0, 0, "growth: 8 new items since the last recluster, which covered 0"),
        (119, 100, 0, None),
        (120, 100, 0, "growth: 20 new items since the last recluster, which covered 100"),
        (115, 100, 9, None),
        (115, 100, 10, "drift: 10 of 15 new items since the last recluster found no cluster"),
        (1_100, 1_000, 24, None),
        (1_100, 1_000, 25, "drift: 25 of 100 new items since the last recluster found no cluster"),
    ],
)
def test_recluster_is_requested_after_growth_or_drift(
    n_media: int, n_at_recluster: int, noise_arrivals: int, reason: str | None
) -> None:
    state = replace(
        pet_state([1] * n_media, looks(n_media, dim=2)), n_at_recluster=n_at_recluster, noise_arrivals=noise_arrivals
    )

    assert recluster_reason(state, SETTINGS) == reason
