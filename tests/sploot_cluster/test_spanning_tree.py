"""The spanning tree against a naive one over the whole matrix of distances."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from sploot_cluster.spanning_tree import spanning_tree
from sploot_cluster.vectors import FloatMatrix, as_vectors
from tests.sploot_cluster.states import looks


def mutual_reachability(vectors: FloatMatrix, min_samples: int) -> npt.NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    distances = np.linalg.norm(wide[:, None] - wide[None], axis=2)
    core = np.sort(distances, axis=1)[:, min_samples]
    reachability: npt.NDArray[np.float64] = np.maximum(distances, np.maximum.outer(core, core))
    return reachability


def scattered(n: int, dim: int, seed: int) -> FloatMatrix:
    return as_vectors(np.random.default_rng(seed).normal(size=(n, dim)))


@pytest.mark.parametrize("min_samples", [1, 2, 5, 30])
@pytest.mark.parametrize(
    "vectors",
    [
        scattered(2, 3, 1),
        scattered(40, 3, 2),
        scattered(700, 32, 3),
        looks(300, 250, 40, 5, spread=0.1),
        looks(200, 200, 200, spread=0.01, dim=64),
    ],
    ids=["two", "few", "scattered", "uneven", "far apart"],
)
def test_the_weights_are_those_of_a_naive_tree(vectors: FloatMatrix, min_samples: int) -> None:
    samples = min(min_samples, len(vectors) - 1)
    full = mutual_reachability(vectors, samples)

    tree = spanning_tree(vectors, samples)

    naive = np.sort(minimum_spanning_tree(full).data)
    assert tree.weights.sum() == pytest.approx(naive.sum(), rel=1e-6)
    np.testing.assert_allclose(tree.weights, naive, rtol=1e-4)
    np.testing.assert_allclose(full[tree.edges[:, 0], tree.edges[:, 1]], tree.weights, rtol=1e-4)


@pytest.mark.parametrize("n_copies", [2, 40, 300])
def test_copies_of_the_same_vectors_are_joined_at_no_cost(n_copies: int) -> None:
    vectors = np.repeat(scattered(3, 8, 4), n_copies, axis=0)

    tree = spanning_tree(vectors, 1)

    assert np.count_nonzero(tree.weights > 1e-6) == 2


@pytest.mark.parametrize("vectors", [scattered(500, 16, 5), looks(100, 1, spread=0.0)], ids=["scattered", "copies"])
def test_it_is_a_tree_over_all_vectors_in_ascending_order(vectors: FloatMatrix) -> None:
    n, before = len(vectors), vectors.copy()

    tree = spanning_tree(vectors, 2)

    assert tree.edges.shape == (n - 1, 2)
    assert (tree.edges[:, 0] < tree.edges[:, 1]).all()
    assert (np.diff(tree.weights) >= 0).all()
    graph = coo_array((np.ones(n - 1), (tree.edges[:, 0], tree.edges[:, 1])), shape=(n, n))
    assert connected_components(graph, directed=False)[0] == 1
    np.testing.assert_array_equal(vectors, before)


def test_the_same_vectors_give_the_same_tree() -> None:
    vectors = looks(80, 80, spread=0.2)

    one, other = spanning_tree(vectors, 2), spanning_tree(vectors.copy(), 2)

    np.testing.assert_array_equal(one.edges, other.edges)
    np.testing.assert_array_equal(one.weights, other.weights)
