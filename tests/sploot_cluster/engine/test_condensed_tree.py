"""Selection of groups from a hierarchy, compared with the package hdbscan."""

from __future__ import annotations

import numpy as np
import pytest

from sploot_cluster.engine.condensed_tree import select
from sploot_cluster.engine.hierarchy import Linkage, linkage
from sploot_cluster.engine.spanning_tree import spanning_tree
from sploot_cluster.pet.vectors import Rows, as_vectors


def hierarchy_of(rng: np.random.Generator, *, has_duplicates: bool) -> Linkage:
    """Return the hierarchy of a few groups of random spread in a random number of dimensions."""
    n, n_groups, dim = int(rng.integers(25, 400)), int(rng.integers(1, 9)), int(rng.integers(2, 65))
    x = rng.normal(size=(n_groups, dim))[rng.integers(0, n_groups, n)]
    x += rng.normal(size=(n, dim)) * rng.uniform(0.05, 1)
    if has_duplicates:
        x[n // 2 :] = x[: n - n // 2]
    return linkage(spanning_tree(as_vectors(x), int(rng.integers(1, 10))))


def partition(labels: Rows) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels[labels >= 0])}


@pytest.mark.parametrize("sharpness", [1, 3])
@pytest.mark.parametrize("has_duplicates", [False, True])
def test_groups_and_probabilities_equal_those_of_hdbscan(sharpness: int, has_duplicates: bool) -> None:
    theirs = pytest.importorskip("hdbscan.hdbscan_", reason="hdbscan has no wheel for this machine")
    n_groups = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        hierarchy = hierarchy_of(rng, has_duplicates=has_duplicates)
        hierarchy[:, 2] **= sharpness
        size = int(rng.integers(2, 25))

        found = select(hierarchy.copy(), size)

        expected, of_expected, *_ = theirs._tree_to_labels(None, hierarchy, size, cluster_selection_method="eom")
        assert partition(found.labels) == partition(expected), seed
        np.testing.assert_allclose(found.probabilities, of_expected, rtol=1e-12, err_msg=str(seed))
        n_groups += len(partition(found.labels))
    assert n_groups > 20


def test_all_rows_are_noise_if_there_are_fewer_than_a_group_needs() -> None:
    found = select(np.array([[0, 1, 0.5, 2], [3, 2, 0.7, 3]]), 4)

    assert found.labels.tolist() == [-1, -1, -1]
    assert found.probabilities.tolist() == [0, 0, 0]
    assert found.contrasts.tolist() == [0, 0, 0]


def test_contrast_compares_the_distance_to_other_rows_with_the_distances_within_a_group() -> None:
    within = [[0, 1, 0.1, 2], [3, 4, 0.1, 2], [7, 2, 0.2, 3], [8, 5, 0.4, 3]]

    found = select(np.array([*within, [9, 10, 0.8, 6], [11, 6, 0.9, 7]]), 3)

    assert found.contrasts.tolist() == pytest.approx([4, 4, 4, 2, 2, 2, 0])


def test_contrast_of_identical_rows_is_infinite() -> None:
    found = select(np.array([[0, 1, 0, 2], [2, 3, 0.5, 2], [4, 5, 0.7, 4]]), 2)

    assert found.contrasts.tolist() == [np.inf, np.inf, pytest.approx(1.4), pytest.approx(1.4)]
