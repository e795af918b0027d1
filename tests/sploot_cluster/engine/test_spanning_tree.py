"""The spanning tree, compared with a naive one over the full distance matrix."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from sploot_cluster.engine.spanning_tree import spanning_tree
from sploot_cluster.pet.vectors import FloatMatrix, as_vectors
from tests.sploot_cluster.states import looks


def mutual_reachability(vectors: FloatMatrix, min_samples: int) -> npt.NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    distances = np.linalg.norm(wide[:, None] - wide[None], axis=2)
    core = np.sort(distances, axis=1)[:, min_samples]
    reachability: npt.NDArray[np.float64] = np.maximum(distances, np.maximum.outer(core, core))
    return reachability


def lattice(n: int, seed: int) -> FloatMatrix:
    """Return vectors with few distinct values, many of them equally far from each other."""
    return as_vectors(np.random.default_rng(seed).integers(1, 4, size=(n, 4)))


def scattered(n: int, dim: int, seed: int) -> FloatMatrix:
    return as_vectors(np.random.default_rng(seed).normal(size=(n, dim)))


@pytest.mark.parametrize("min_samples", [1, 2, 5, 30])
@pytest.mark.parametrize(
    "vectors",
    [
        scattered(2, 3, 1),
        scattered(40, 3, 2),
        scattered(450, 32, 3),
        looks(200, 150, 40, 5, spread=0.1),
        looks(130, 130, 130, spread=0.01, dim=64),
        lattice(120, 8),
        lattice(300, 9),
    ],
    ids=["two", "few", "scattered", "uneven", "far apart", "equally far", "equally far, many"],
)
def test_weights_match_a_naive_tree(vectors: FloatMatrix, min_samples: int) -> None:
    samples = min(min_samples, len(vectors) - 1)
    full = mutual_reachability(vectors, samples)

    tree = spanning_tree(vectors, samples)

    np.fill_diagonal(full, 0)
    # scipy treats a distance of zero as a missing edge, so 1 is added to each and subtracted again
    naive = np.sort(minimum_spanning_tree(full + (1 - np.eye(len(full)))).data) - 1
    assert tree.weights.sum() == pytest.approx(naive.sum(), rel=1e-6)
    np.testing.assert_allclose(np.sort(tree.weights), naive, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(full[tree.edges[:, 0], tree.edges[:, 1]], tree.weights, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "vectors", [scattered(700, 32, 3), lattice(700, 10), np.repeat(scattered(9, 8, 4), 70, axis=0)]
)
def test_chunk_size_does_not_affect_weights(vectors: FloatMatrix, monkeypatch: pytest.MonkeyPatch) -> None:
    small = spanning_tree(vectors, 2)

    monkeypatch.setattr("sploot_cluster.engine.chunks._MOST_CHUNKS", 9)
    large = spanning_tree(vectors, 2)

    np.testing.assert_allclose(np.sort(large.weights), np.sort(small.weights), rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("n_copies", [2, 40, 300])
def test_copies_of_a_vector_are_joined_at_distance_zero(n_copies: int) -> None:
    vectors = np.repeat(scattered(3, 8, 4), n_copies, axis=0)

    tree = spanning_tree(vectors, 1)

    assert np.count_nonzero(tree.weights > 1e-6) == 2


@pytest.mark.parametrize("vectors", [scattered(500, 16, 5), looks(100, 1, spread=0.0)], ids=["scattered", "copies"])
def test_edges_form_a_tree_over_all_vectors(vectors: FloatMatrix) -> None:
    n, before = len(vectors), vectors.copy()

    tree = spanning_tree(vectors, 2)

    assert tree.edges.shape == (n - 1, 2)
    assert (tree.edges[:, 0] < tree.edges[:, 1]).all()
    graph = coo_array((np.ones(n - 1), (tree.edges[:, 0], tree.edges[:, 1])), shape=(n, n))
    assert connected_components(graph, directed=False)[0] == 1
    np.testing.assert_array_equal(vectors, before)


@pytest.mark.parametrize(
    "vectors",
    [looks(80, 80, spread=0.2), np.repeat(scattered(40, 8, 6), 40, axis=0), looks(2_500, 500, spread=0.3, dim=8)],
    ids=["looks", "copies", "many"],
)
def test_number_of_threads_does_not_affect_the_tree(vectors: FloatMatrix) -> None:
    one = spanning_tree(vectors, 2)

    for threads in (1, 2, 5):
        other = spanning_tree(vectors.copy(), 2, threads=threads)
        np.testing.assert_array_equal(one.edges, other.edges)
        np.testing.assert_array_equal(one.weights, other.weights)


def test_neighbours_and_distances_match_a_full_comparison() -> None:
    vectors = scattered(150, 16, 7)
    full = np.linalg.norm(vectors[:, None].astype(np.float64) - vectors[None], axis=2)

    tree = spanning_tree(vectors, 3)

    np.testing.assert_allclose(tree.distances, np.sort(full, axis=1)[:, 1:4], rtol=1e-12)
    np.testing.assert_allclose(np.take_along_axis(full, tree.neighbours, axis=1), tree.distances, rtol=1e-12)
    np.testing.assert_array_equal(tree.core, tree.distances[:, 2])
