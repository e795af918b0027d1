"""From a spanning tree to the order in which an agglomerative hierarchy joins its components.

Core distances make many edges equally heavy, and which of them a minimum spanning tree holds is chance. But what is
connected at a distance is not: it is the same for every minimum spanning tree. So edges of one weight, as far as
float32 can tell, are taken together. Each component that they make is its largest part, which the others join one
after another, the smallest first. Any other order would make components that begin and end at the same distance, and a
hierarchy takes those for clusters. Of parts of one size the one with the smaller name comes first, so that the order of
rows has no say.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from sploot_cluster.spanning_tree import Rows, SpanningTree

Merges = npt.NDArray[np.float64]

# Half the squared distance of unit vectors is one minus their similarity, which float32 rounds to about a fifth of it.
_SAME: Final = 5e-7


def merges(tree: SpanningTree, names: Rows | None = None) -> Merges:
    """(n − 1, 3) row, row, distance: whose components are joined, and where; by ascending distance.

    Args:
        names: (n,) different numbers that decide between parts of one size; by default the rows themselves.
    """
    weights = tree.weights
    order = np.argsort(weights, kind="stable")
    edges, weights = tree.edges[order], weights[order]
    bounds = np.flatnonzero(np.diff(weights**2 / 2, prepend=-np.inf, append=np.inf) > _SAME)
    if len(bounds) < tree.n:
        edges = _outwards(edges, bounds.tolist(), np.arange(tree.n) if names is None else names)
        weights = np.repeat(weights[bounds[1:] - 1], np.diff(bounds))
    return np.column_stack([edges.astype(np.float64), weights])


def _outwards(edges: Rows, bounds: list[int], names: Rows) -> Rows:
    """The edges again; those between two bounds are replaced by others that join the same parts as told above."""
    n = len(names)
    parent, size, name = list(range(n)), [1] * n, names.tolist()

    def find(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    def join(kept: int, other: int) -> None:
        parent[other] = kept
        size[kept] += size[other]
        name[kept] = min(name[kept], name[other])

    ends = edges.tolist()
    for start, end in pairwise(bounds):
        if end - start == 1:
            one, other = find(ends[start][0]), find(ends[start][1])
            join(*((one, other) if size[one] >= size[other] else (other, one)))
            continue
        group: dict[int, list[int]] = {}
        of: dict[int, int] = {}
        for one, other in ends[start:end]:
            one, other = find(one), find(other)
            a, b = of.setdefault(one, one), of.setdefault(other, other)
            group.setdefault(a, [one])
            group.setdefault(b, [other])
            if len(group[a]) < len(group[b]):
                a, b = b, a
            for part in group.pop(b):
                of[part] = a
                group[a].append(part)
        at = start
        for parts in sorted(group.values(), key=lambda parts: min(name[part] for part in parts)):
            parts.sort(key=lambda part: (-size[part], name[part]))
            largest, *others = parts
            for part in sorted(others, key=lambda part: (size[part], name[part])):
                ends[at] = [largest, part]
                at += 1
        for one, other in ends[start:end]:
            join(one, other)
    return np.array(ends, dtype=np.intp).reshape(-1, 2)
