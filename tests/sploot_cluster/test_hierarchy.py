"""The order in which components are joined, above all where distances are equal."""

from __future__ import annotations

import numpy as np
import pytest

from sploot_cluster.density import cluster_densely
from sploot_cluster.hierarchy import linkage
from sploot_cluster.spanning_tree import SpanningTree, spanning_tree
from sploot_cluster.vectors import FloatMatrix, as_vectors


def tree_of(n: int, *edges: tuple[int, int, float]) -> SpanningTree:
    """A tree whose cores are so small that only lengths count."""
    return SpanningTree(
        np.zeros((n, 1), dtype=np.intp),
        np.zeros((n, 1)),
        np.array([edge[:2] for edge in edges], dtype=np.intp),
        np.array([edge[2] for edge in edges]),
    )


def components_after(tree: SpanningTree, names: list[int] | None = None) -> list[tuple[list[int], list[int]]]:
    """Which rows are joined to which at each step."""
    of = {row: [row] for row in range(tree.n)}
    steps = []
    for step, (one, other, _, size) in enumerate(linkage(tree, None if names is None else np.array(names)).tolist()):
        kept, joins = of.pop(int(one)), of.pop(int(other))
        steps.append((kept, joins))
        of[tree.n + step] = sorted(kept + joins)
        assert len(of[tree.n + step]) == size
    return steps


def test_distances_ascend() -> None:
    steps = linkage(tree_of(4, (0, 1, 3.0), (1, 2, 1.0), (2, 3, 2.0)))

    assert steps.tolist() == [[1, 2, 1, 2], [4, 3, 2, 3], [5, 0, 3, 4]]


def test_at_one_distance_the_others_join_the_largest_the_smallest_first() -> None:
    tree = tree_of(6, (0, 1, 1.0), (1, 2, 1.5), (3, 4, 1.2), (2, 5, 2.0), (5, 3, 2.0))

    assert components_after(tree)[-2:] == [([0, 1, 2], [5]), ([0, 1, 2, 5], [3, 4])]


@pytest.mark.parametrize("order", [1, -1])
def test_distances_that_float32_cannot_tell_apart_are_one(order: int) -> None:
    """Which of them is the larger is chance: what joins at both is joined as at one."""
    edges = [(0, 1, 0.5), (1, 2, 0.6), (3, 4, 0.55), (2, 5, 1.0), (5, 3, 1.0 + order * 1e-8)]

    assert components_after(tree_of(6, *edges))[-2:] == [([0, 1, 2], [5]), ([0, 1, 2, 5], [3, 4])]


def test_of_parts_of_one_size_the_one_with_the_smaller_name_is_first() -> None:
    tree = tree_of(3, (0, 1, 1.0), (1, 2, 1.0))

    assert components_after(tree) == [([0], [1]), ([0, 1], [2])]
    assert components_after(tree, names=[9, 4, 5]) == [([1], [2]), ([1, 2], [0])]


@pytest.mark.parametrize("min_samples", [1, 2, 4])
def test_which_of_many_minimum_trees_it_is_does_not_matter(min_samples: int) -> None:
    """Vectors of few values have many equal distances, and so many minimum trees."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        vectors: FloatMatrix = as_vectors(rng.integers(0, 3, size=(120, 4)) + 1)
        names = rng.permutation(len(vectors))
        found = cluster_densely(vectors, min_cluster_size=4, min_samples=min_samples, names=names)

        order = rng.permutation(len(vectors))
        other = cluster_densely(vectors[order], min_cluster_size=4, min_samples=min_samples, names=names[order])

        pairs = found.labels[order][:, None] == found.labels[order]
        np.testing.assert_array_equal(pairs, other.labels[:, None] == other.labels, err_msg=str(seed))
        np.testing.assert_array_equal(found.labels[order] < 0, other.labels < 0, err_msg=str(seed))


def test_the_distances_are_those_of_the_tree() -> None:
    tree = spanning_tree(as_vectors(np.random.default_rng(1).normal(size=(50, 8))), 3)

    steps = linkage(tree)

    assert len(np.unique(steps[:, 2])) < 49  # core distances are of several edges
    np.testing.assert_array_equal(np.sort(tree.weights), steps[:, 2])
