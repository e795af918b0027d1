"""Forests and components, compared with scipy's, and how a forest was merged."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from sploot_cluster.engine.graph import Merges, components, forest
from sploot_cluster.pet.vectors import Rows


def graph(n: int, edges: Rows, weights: npt.NDArray[np.float64]) -> csr_array:
    return csr_array((weights, (edges[:, 0], edges[:, 1])), shape=(n, n))


def random_edges(seed: int) -> tuple[int, Rows]:
    """Return up to 40 nodes and up to 80 distinct edges between different ones, in random order."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 41))
    pairs = np.sort(rng.integers(0, n, size=(int(rng.integers(0, 81)), 2)), axis=1)
    return n, rng.permutation(np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0))


@pytest.mark.parametrize("seed", range(40))
def test_forest_matches_scipy(seed: int) -> None:
    n, edges = random_edges(seed)

    found = forest(n, edges)

    # scipy takes a weight of zero for a missing edge
    theirs = minimum_spanning_tree(graph(n, edges, np.arange(1.0, len(edges) + 1)))
    assert found.tolist() == (np.sort(theirs.data) - 1).astype(int).tolist()


@pytest.mark.parametrize("seed", range(40))
def test_components_match_scipy_and_are_numbered_by_first_node(seed: int) -> None:
    n, edges = random_edges(seed)

    n_found, found = components(n, edges)

    n_theirs, theirs = connected_components(graph(n, edges, np.ones(len(edges))), directed=False)
    assert n_found == n_theirs
    assert len(set(zip(found.tolist(), theirs.tolist(), strict=True))) == n_found
    assert found[np.sort(np.unique(found, return_index=True)[1])].tolist() == list(range(n_found))


def test_long_path_is_one_component_and_a_spanning_forest_of_itself() -> None:
    nodes = np.random.default_rng(1).permutation(5_000)
    path = np.stack([nodes[:-1], nodes[1:]], axis=1)

    assert components(5_000, path)[0] == 1
    assert forest(5_000, path).tolist() == list(range(4_999))


@pytest.mark.parametrize("seed", range(40))
def test_merges_name_the_last_edge_of_every_path(seed: int) -> None:
    n, edges = random_edges(seed)
    nodes = np.arange(n)
    # along the edges in ascending order, two nodes are first connected by the last edge of the path between them
    expected = np.full((n, n), -1)
    for at in range(len(edges)):
        _, component = components(n, edges[: at + 1])
        expected[(component[:, None] == component) & (expected < 0)] = at

    merges = Merges.of(n, edges)

    ones, others = np.nonzero(~np.eye(n, dtype=np.bool_))
    assert merges.kept.tolist() == forest(n, edges).tolist()
    np.testing.assert_array_equal(merges.last_between(ones, others), expected[ones, others])
    order = merges.order()
    assert sorted(order.tolist()) == nodes.tolist()
    for component, _ in merges.rounds:
        assert np.count_nonzero(np.diff(component[order])) == len(np.unique(component)) - 1


def test_merges_without_edges_leave_every_node_apart() -> None:
    merges = Merges.of(3, np.empty((0, 2), dtype=np.intp))

    assert merges.order().tolist() == merges.component.tolist() == [0, 1, 2]
    assert merges.last_between(np.array([0]), np.array([1])).tolist() == [-1]
