"""Updates of a spanning tree, compared with a tree that is built from scratch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import numpy as np
import pytest

from sploot_cluster.engine.selection import density_of
from sploot_cluster.engine.spanning_tree import SpanningTree, spanning_tree
from sploot_cluster.engine.tree_changes import grown, without
from sploot_cluster.pet.vectors import FloatMatrix, as_vectors
from sploot_cluster.settings import ClusterSettings

Maker = Callable[[np.random.Generator, int], FloatMatrix]


def album(rng: np.random.Generator, n: int) -> FloatMatrix:
    """Return vectors of six subjects of uneven size. About a tenth are unrelated to them, and a tenth are copies."""
    centres = rng.normal(size=(6, 24))
    x = centres[rng.choice(6, size=n, p=[0.4, 0.3, 0.1, 0.1, 0.05, 0.05])] + rng.normal(scale=0.4, size=(n, 24))
    x[rng.random(n) < 0.1] = rng.normal(size=24)
    again = rng.random(n) < 0.1
    x[again] = x[rng.integers(0, n, size=int(again.sum()))]
    return as_vectors(x)


def one_picture(rng: np.random.Generator, n: int) -> FloatMatrix:
    return as_vectors(np.repeat(rng.normal(size=(1, 24)), n, axis=0))


def scattered(rng: np.random.Generator, n: int) -> FloatMatrix:
    return as_vectors(rng.normal(size=(n, 24)))


def no_build(vectors: FloatMatrix, min_samples: int) -> NoReturn:
    raise AssertionError("built from scratch")


def assert_as_built_anew(tree: SpanningTree, vectors: FloatMatrix, seed: int) -> None:
    anew = spanning_tree(vectors, tree.min_samples)
    assert tree.n == len(vectors), seed
    assert tree.weights.sum() == pytest.approx(anew.weights.sum(), rel=1e-9), seed
    np.testing.assert_allclose(np.sort(tree.weights), np.sort(anew.weights), rtol=1e-6, atol=1e-7, err_msg=str(seed))
    np.testing.assert_array_equal(tree.core, anew.core, err_msg=str(seed))
    for settings in (ClusterSettings(), ClusterSettings(sharpness=1, small_group=2)):
        ours, theirs = (density_of(each, vectors, settings=settings) for each in (tree, anew))
        np.testing.assert_array_equal(ours.labels, theirs.labels, err_msg=str(seed))
        np.testing.assert_array_equal(ours.probabilities, theirs.probabilities, err_msg=str(seed))


@pytest.mark.parametrize("min_samples", [1, 2, 4])
@pytest.mark.parametrize("make", [album, one_picture, scattered])
def test_tree_after_arrivals_and_deletions_matches_a_fresh_build(make: Maker, min_samples: int) -> None:
    for seed in range(2):
        rng = np.random.default_rng(seed)
        pool, n = make(rng, 400), int(rng.integers(min_samples + 1, 120)) + 1
        vectors = pool[:n]
        tree = spanning_tree(vectors, min_samples)

        for _ in range(40):
            if rng.random() < 0.6 and n < len(pool):
                more = min(int(rng.integers(1, 9)), len(pool) - n)
                vectors, n = np.concatenate([vectors, pool[n : n + more]]), n + more
                tree = grown(tree, vectors)
            else:
                gone = rng.choice(len(vectors), size=int(rng.integers(1, 4)), replace=False)
                left = without(tree, vectors, gone)
                if left is not None:
                    vectors, tree = np.delete(vectors, gone, axis=0), left

        assert_as_built_anew(tree, vectors, seed)


def test_tree_grown_one_by_one_matches_a_fresh_build() -> None:
    pool = album(np.random.default_rng(3), 150)
    tree = spanning_tree(pool[:2], 1)

    for n in range(3, 151):
        tree = grown(tree, pool[:n])

    assert_as_built_anew(tree, pool, 3)


@pytest.mark.parametrize("min_samples", [1, 2, 4])
@pytest.mark.parametrize("make", [album, one_picture, scattered])
def test_tree_grown_by_many_vectors_at_once_matches_a_fresh_build(make: Maker, min_samples: int) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        n_new = int(rng.choice([5, 8, 9, 40, 150]))
        n = int(rng.integers(max(n_new, min_samples + 1), 300))
        vectors = make(rng, n + n_new)

        tree = grown(spanning_tree(vectors[:n], min_samples), vectors, build=no_build, threads=1 + seed % 2)

        assert_as_built_anew(tree, vectors, seed)


def test_tree_grown_by_a_new_subject_matches_a_fresh_build() -> None:
    """The new vectors are far from the old ones, and near each other."""
    rng = np.random.default_rng(9)
    vectors = np.concatenate([album(rng, 200), album(rng, 60)])

    tree = grown(spanning_tree(vectors[:200], 2), vectors, build=no_build)

    assert_as_built_anew(tree, vectors, 9)


def test_many_new_vectors_at_once_trigger_a_rebuild() -> None:
    pool = album(np.random.default_rng(4), 300)
    built: list[int] = []

    def build(vectors: FloatMatrix, min_samples: int) -> SpanningTree:
        built.append(len(vectors))
        return spanning_tree(vectors, min_samples)

    tree = grown(spanning_tree(pool[:100], 2), pool, build=build)

    assert built == [300]
    assert_as_built_anew(tree, pool, 4)


def test_growing_a_tree_by_no_vectors_returns_the_same_tree() -> None:
    pool = album(np.random.default_rng(5), 50)
    tree = spanning_tree(pool, 1)

    assert grown(tree, pool) is tree


@pytest.mark.parametrize("n_gone", [199, 198])
def test_no_tree_is_returned_when_almost_all_rows_are_removed(n_gone: int) -> None:
    pool = album(np.random.default_rng(6), 200)
    tree = spanning_tree(pool, 2)

    assert without(tree, pool, np.arange(n_gone)) is None


def test_removing_a_hub_and_half_of_the_rows_matches_a_fresh_build() -> None:
    pool = album(np.random.default_rng(7), 200)
    tree = spanning_tree(pool, 1)
    hub = int(np.bincount(tree.edges.ravel()).argmax())
    gone = np.unique([hub, *range(0, 200, 2)])

    left = without(tree, pool, gone)

    assert left is not None
    assert_as_built_anew(left, np.delete(pool, gone, axis=0), 7)


def test_growing_and_removing_do_not_modify_the_original_tree() -> None:
    pool = album(np.random.default_rng(8), 120)
    tree = spanning_tree(pool[:100], 2)
    before = [array.copy() for array in (tree.neighbours, tree.distances, tree.edges, tree.lengths)]

    grown(tree, pool)
    grown(tree, pool[:103])
    without(tree, pool[:100], np.array([3, 50]))

    for array, copy in zip((tree.neighbours, tree.distances, tree.edges, tree.lengths), before, strict=True):
        np.testing.assert_array_equal(array, copy)
