"""Graphs of numbered nodes: their minimum spanning forests, and their components.

Edges are (m, 2) arrays of nodes. All steps are array operations, because the graphs have up to 100,000 nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sploot_cluster.pet.vectors import Rows


@dataclass(frozen=True, slots=True)
class Merges:
    """The minimum spanning forest of a graph, and how Borůvka's algorithm merged the nodes into it, round by round.

    Edges are known by their positions in the order of ascending weight.

    Attributes:
        component: the (n,) component of each node in the whole graph.
        kept: positions of the edges of the forest, in ascending order.
        rounds: for each round, the (n,) component of each node after it, and the (n,) last of the edges along which the
            node's components were merged so far, or -1 if they were not.
    """

    component: Rows
    kept: Rows
    rounds: list[tuple[Rows, Rows]]

    @classmethod
    def of(cls, n: int, edges: Rows) -> Merges:
        """Return the merges of n nodes along ``edges``, which are as for :func:`forest`. O((n + m) · log n)."""
        kept, rounds = [np.empty(0, dtype=np.intp)], []
        component: Rows = np.arange(n)
        last: Rows = np.full(n, -1)
        for picked, lightest, becomes in _rounds(n, edges):
            kept.append(picked)
            last = np.maximum(last, lightest[component])
            component = becomes[component]
            rounds.append((component, last))
        return cls(component, np.sort(np.concatenate(kept)), rounds)

    def last_between(self, ones: Rows, others: Rows) -> Rows:
        """Return the last edge on the forest's path between each of m pairs of nodes, or -1 if there is no path.

        Along the rounds, both nodes of a pair end in one component, and the last edge of their path is the last of all
        edges along which their components were merged until then (King, 1997).
        """
        found, open_ = np.full(len(ones), -1), np.arange(len(ones))
        for component, last in self.rounds:
            a, b = ones[open_], others[open_]
            is_joined = component[a] == component[b]
            joined = open_[is_joined]
            found[joined] = np.maximum(last[a[is_joined]], last[b[is_joined]])
            open_ = open_[~is_joined]
        return found

    def order(self) -> Rows:
        """Return all nodes, ordered so that the nodes of each component of each round are adjacent."""
        return np.lexsort([np.arange(len(self.component)), *(component for component, _ in self.rounds)])


def forest(n: int, edges: Rows) -> Rows:
    """Return the positions, in ascending order, of the edges that make up the minimum spanning forest of n nodes.

    O(m · log n).

    Args:
        edges: pairs of nodes, by ascending weight. Pairs may repeat. A pair of a node with itself is ignored.
    """
    return np.sort(np.concatenate([np.empty(0, dtype=np.intp), *(picked for picked, _, _ in _rounds(n, edges))]))


def _rounds(n: int, edges: Rows) -> Iterator[tuple[Rows, Rows, Rows]]:
    """Run Borůvka's algorithm. Edges are compared by position, so none are equal and no round can close a cycle.

    Yields:
        For each round: the positions of the chosen edges; the position of each component's edge, -1 if it has none; and
        the number of the component that each component becomes a part of.
    """
    n_left = n
    left: Rows = np.arange(len(edges))
    ones, others = edges[:, 0], edges[:, 1]
    while True:
        leaves = ones != others
        left, ones, others = left[leaves], ones[leaves], others[leaves]
        if not len(left):
            return
        # find the lightest edge of each component: if an index occurs several times, numpy keeps the last assignment
        lightest = np.full((2, n_left), len(left), dtype=np.intp)
        backwards = np.arange(len(left) - 1, -1, -1)
        lightest[0, ones[::-1]] = backwards
        lightest[1, others[::-1]] = backwards
        chosen = lightest.min(axis=0)
        is_lightest = np.zeros(len(left) + 1, dtype=np.bool_)
        is_lightest[chosen] = True
        picked = np.flatnonzero(is_lightest[:-1])
        n_left, becomes = components(n_left, np.stack([ones[picked], others[picked]], axis=1))
        yield left[picked], np.append(left, -1)[chosen], becomes
        ones, others = becomes[ones], becomes[others]


def components(n: int, edges: Rows) -> tuple[int, Rows]:
    """Return the number of components of a graph with n nodes, and the (n,) component of each node.

    Components are numbered by their first node.
    """
    # each node points to a node of its component with a lower number; roots point to themselves
    root: Rows = np.arange(n)
    ones, others = edges[:, 0], edges[:, 1]
    while True:
        ones, others = root[ones], root[others]
        differs = ones != others
        if not differs.any():
            break
        ones, others = ones[differs], others[differs]
        np.minimum.at(root, np.maximum(ones, others), np.minimum(ones, others))
        while True:
            farther = root[root]
            if np.array_equal(farther, root):
                break
            root = farther
    is_root = root == np.arange(n)
    number = np.cumsum(is_root) - 1
    return int(np.count_nonzero(is_root)), number[root]
