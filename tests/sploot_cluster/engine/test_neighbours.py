"""Exact nearest neighbours."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sploot_cluster.engine.neighbours import nearest, nearest_in_turn
from sploot_cluster.pet.vectors import FloatMatrix, as_vectors


def vectors(n: int, *, seed: int = 3, dim: int = 24) -> FloatMatrix:
    return as_vectors(np.random.default_rng(seed).normal(size=(n, dim)))


def test_nearest_matches_a_full_comparison() -> None:
    held, queries = vectors(500), vectors(20, seed=4)

    found = nearest(held, queries, 10)

    similarity = queries @ held.T
    expected = np.argsort(-similarity, axis=1)[:, :10]
    np.testing.assert_array_equal(found.ids, expected)
    np.testing.assert_allclose(found.similarity, np.take_along_axis(similarity, expected, axis=1), atol=1e-5)


@pytest.mark.parametrize("n", [0, 2])
def test_missing_neighbours_are_filled_with_minus_one(n: int) -> None:
    held = vectors(2)[:n] if n else np.empty((0, 0), dtype=np.float32)

    found = nearest(held, vectors(1, seed=4), 5)

    assert sorted(found.ids[0].tolist()) == [-1] * (5 - n) + list(range(n))
    assert np.isneginf(found.similarity[0, n:]).all()
    assert np.isfinite(found.similarity[0, :n]).all()


def test_read_only_vectors_can_be_searched() -> None:
    held = vectors(3)
    held.flags.writeable = False

    assert nearest(held, held[1:2], 1).ids.tolist() == [[1]]


def test_threads_can_search_concurrently() -> None:
    held = vectors(300)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: int(nearest(held, held[row : row + 1], 1).ids[0, 0]), range(300)))

    assert found == list(range(300))


@pytest.mark.parametrize("n", [0, 5, 300])
def test_nearest_in_turn_gives_the_same_results_as_appending_each_query(n: int) -> None:
    held, queries = vectors(n, dim=32), vectors(50, seed=4, dim=32)
    queries[15:45] = held[0] if n else queries[4]  # more equal items than neighbours
    all_of_them = np.concatenate([held, queries])

    found = list(nearest_in_turn(held, queries, 20))

    for at, neighbours in enumerate(found):
        alone = nearest(all_of_them[: n + at], queries[at][None], 20)
        np.testing.assert_array_equal(neighbours.similarity, alone.similarity)
        # equally similar rows may be in any order
        np.testing.assert_array_equal(np.sort(neighbours.ids), np.sort(alone.ids))
