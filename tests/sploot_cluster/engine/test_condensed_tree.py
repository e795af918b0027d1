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

        labels, probabilities = select(hierarchy.copy(), size)

        expected, of_expected, *_ = theirs._tree_to_labels(None, hierarchy, size, cluster_selection_method="eom")
        assert partition(labels) == partition(expected), seed
        np.testing.assert_allclose(probabilities, of_expected, rtol=1e-12, err_msg=str(seed))
        n_groups += len(partition(labels))
    assert n_groups > 20


def test_all_rows_are_noise_if_there_are_fewer_than_a_group_needs() -> None:
    labels, probabilities = select(np.array([[0, 1, 0.5, 2], [3, 2, 0.7, 3]]), 4)

    assert labels.tolist() == [-1, -1, -1]
    assert probabilities.tolist() == [0, 0, 0]
