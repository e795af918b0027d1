"""Exact neighbours."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sploot_cluster.neighbours import NeighbourIndex
from sploot_cluster.vectors import FloatMatrix, as_vectors


def vectors(n: int, *, seed: int = 3, dim: int = 24) -> FloatMatrix:
    return as_vectors(np.random.default_rng(seed).normal(size=(n, dim)))


def test_the_nearest_are_those_of_a_full_comparison() -> None:
    held, queries = vectors(500), vectors(20, seed=4)
    index = NeighbourIndex(24)
    index.add(held[:200])
    index.add(held[200:])

    found = index.nearest(queries, 10)

    similarity = queries @ held.T
    expected = np.argsort(-similarity, axis=1)[:, :10]
    assert index.n == 500
    np.testing.assert_array_equal(found.ids, expected)
    np.testing.assert_allclose(found.similarity, np.take_along_axis(similarity, expected, axis=1), atol=1e-5)


def test_where_there_are_fewer_the_rest_is_marked() -> None:
    index = NeighbourIndex(24)
    index.add(vectors(2))

    found = index.nearest(vectors(1, seed=4), 5)

    assert sorted(found.ids[0].tolist()) == [-1, -1, -1, 0, 1]
    assert np.isneginf(found.similarity[0, 2:]).all()
    assert np.isfinite(found.similarity[0, :2]).all()


def test_an_index_keeps_its_own_copy() -> None:
    held = vectors(3)
    index = NeighbourIndex(24)
    index.add(held)

    query = held[:1].copy()
    held[:] = 0

    assert index.nearest(query, 1).ids.tolist() == [[0]]


def test_an_index_is_searched_from_many_threads() -> None:
    held = vectors(300)
    index = NeighbourIndex(24)
    index.add(held)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: int(index.nearest(held[row : row + 1], 1).ids[0, 0]), range(300)))

    assert found == list(range(300))
