"""The order in which components are joined, especially at equal distances."""

from __future__ import annotations

import numpy as np
import pytest

from sploot_cluster.density import cluster_densely
from sploot_cluster.engine.hierarchy import linkage
from sploot_cluster.engine.spanning_tree import SpanningTree, spanning_tree
from sploot_cluster.pet.vectors import FloatMatrix, as_vectors


def tree_of(n: int, *edges: tuple[int, int, float]) -> SpanningTree:
    """Return a tree with core distances of 0, so that only edge lengths count."""
    return SpanningTree(
        np.zeros((n, 1), dtype=np.intp),
        np.zeros((n, 1)),
        np.array([edge[:2] for edge in edges], dtype=np.intp),
        np.array([edge[2] for edge in edges]),
    )


def components_after(tree: SpanningTree, names: list[int] | None = None) -> list[tuple[list[int], list[int]]]:
    """Return, for each step, the rows of the two components that it joins."""
    of = {row: [row] for row in range(tree.n)}
    steps = []
    for step, (one, other, _, size) in enumerate(linkage(tree, None if names is None else np.array(names)).tolist()):
        target, joins = of.pop(int(one)), of.pop(int(other))
        steps.append((target, joins))
        of[tree.n + step] = sorted(target + joins)
        assert len(of[tree.n + step]) == size
    return steps


def test_linkage_distances_ascend() -> None:
    steps = linkage(tree_of(4, (0, 1, 3.0), (1, 2, 1.0), (2, 3, 2.0)))

    assert steps.tolist() == [[1, 2, 1, 2], [4, 3, 2, 3], [5, 0, 3, 4]]


def test_equally_distant_parts_join_the_largest_one_in_ascending_size() -> None:
    tree = tree_of(6, (0, 1, 1.0), (1, 2, 1.5), (3, 4, 1.2), (2, 5, 2.0), (5, 3, 2.0))

    assert components_after(tree)[-2:] == [([0, 1, 2], [5]), ([0, 1, 2, 5], [3, 4])]


def test_each_part_counts_as_one_row() -> None:
    tree = tree_of(5, (0, 1, 0.1), (1, 2, 3.0), (2, 3, 1.0), (3, 4, 2.0))

    steps = linkage(tree, parts=np.array([0, 0, 1, 2, 0]))

    assert steps.tolist() == [[1, 2, 1, 2], [3, 0, 2, 3]]
    assert linkage(tree, parts=np.zeros(5, dtype=np.intp)).shape == (0, 4)


@pytest.mark.parametrize("order", [1, -1])
def test_distances_equal_within_float32_precision_count_as_equal(order: int) -> None:
    """Rounding decides which of the two is larger, so both are joined as if at the same distance."""
    edges = [(0, 1, 0.5), (1, 2, 0.6), (3, 4, 0.55), (2, 5, 1.0), (5, 3, 1.0 + order * 1e-8)]

    assert components_after(tree_of(6, *edges))[-2:] == [([0, 1, 2], [5]), ([0, 1, 2, 5], [3, 4])]


def test_parts_of_equal_size_are_joined_in_the_order_of_their_names() -> None:
    tree = tree_of(3, (0, 1, 1.0), (1, 2, 1.0))

    assert components_after(tree) == [([0], [1]), ([0, 1], [2])]
    assert components_after(tree, names=[9, 4, 5]) == [([1], [2]), ([1, 2], [0])]


@pytest.mark.parametrize("min_samples", [1, 2, 4])
def test_choice_of_minimum_tree_does_not_affect_groups(min_samples: int) -> None:
    """Vectors with few distinct values have many equal distances, and therefore many minimum spanning trees."""
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


def test_linkage_distances_are_the_weights_of_the_spanning_tree() -> None:
    tree = spanning_tree(as_vectors(np.random.default_rng(1).normal(size=(50, 8))), 3)

    steps = linkage(tree)

    assert len(np.unique(steps[:, 2])) < 49  # several edges have the same core distance as their length
    np.testing.assert_array_equal(np.sort(tree.weights), steps[:, 2])
