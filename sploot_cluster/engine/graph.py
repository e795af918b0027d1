"""Graphs of numbered nodes: their minimum spanning forests, their components, and walks along trees.

Edges are (m, 2) arrays of nodes. The steps are array operations, because the graphs have up to 100,000 nodes; only the
walk visits one node after another.
"""

from __future__ import annotations

import numpy as np

from sploot_cluster.pet.vectors import Rows


def forest(n: int, edges: Rows) -> Rows:
    """Return the positions, in ascending order, of the edges that make up the minimum spanning forest of n nodes.

    Borůvka's algorithm on the positions, which are distinct, so that no round can close a cycle. O(m · log n).

    Args:
        edges: pairs of distinct nodes, by ascending weight.
    """
    n_left = n
    left: Rows = np.arange(len(edges))
    ones, others = edges[:, 0], edges[:, 1]
    chosen = [np.empty(0, dtype=np.intp)]
    while True:
        leaves = ones != others
        left, ones, others = left[leaves], ones[leaves], others[leaves]
        if not len(left):
            return np.sort(np.concatenate(chosen))
        # find the lightest edge of each component: if an index occurs several times, numpy keeps the last assignment
        lightest = np.full((2, n_left), len(left), dtype=np.intp)
        backwards = np.arange(len(left) - 1, -1, -1)
        lightest[0, ones[::-1]] = backwards
        lightest[1, others[::-1]] = backwards
        is_lightest = np.zeros(len(left) + 1, dtype=np.bool_)
        is_lightest[lightest.min(axis=0)] = True
        picked = np.flatnonzero(is_lightest[:-1])
        chosen.append(left[picked])
        n_left, becomes = components(n_left, np.stack([ones[picked], others[picked]], axis=1))
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


def walk(n: int, edges: Rows) -> Rows:
    """Return the n nodes of a tree in depth-first order, from node 0. O(n)."""
    ends = np.concatenate([edges, edges[:, ::-1]])
    ends = ends[np.argsort(ends[:, 0], kind="stable")]
    first = np.searchsorted(ends[:, 0], np.arange(n + 1)).tolist()
    neighbours = ends[:, 1].tolist()
    order, waiting, is_seen = [], [0], bytearray(n)
    while waiting:
        node = waiting.pop()
        if not is_seen[node]:
            is_seen[node] = 1
            order.append(node)
            waiting += neighbours[first[node] : first[node + 1]]
    return np.array(order, dtype=np.intp)
