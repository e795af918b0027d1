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

from sploot_cluster.spanning_tree import SpanningTree
from sploot_cluster.vectors import Rows

Linkage = npt.NDArray[np.float64]

# Half the squared distance of unit vectors is one minus their similarity, which float32 rounds to about a fifth of it.
_SAME: Final = 5e-7


def linkage(tree: SpanningTree, names: Rows | None = None) -> Linkage:
    """(n − 1, 4) as scipy and hdbscan write it: two components, their distance, and how many rows they have together.

    Rows are components 0 to n − 1; step i makes component n + i. Distances ascend.

    Args:
        names: (n,) different numbers that decide between parts of one size; by default the rows themselves.
    """
    n = tree.n
    weights = tree.weights
    order = np.argsort(weights, kind="stable")
    edges, weights = tree.edges[order], weights[order]
    bounds = np.flatnonzero(np.diff(weights**2 / 2, prepend=-np.inf, append=np.inf) > _SAME)
    steps = np.empty((n - 1, 4))
    steps[:, 2] = np.repeat(weights[bounds[1:] - 1], np.diff(bounds))
    steps[:, [0, 1, 3]] = _join(edges, bounds.tolist(), (np.arange(n) if names is None else names).tolist())
    return steps


def _join(edges: Rows, bounds: list[int], name: list[int]) -> list[tuple[int, int, int]]:
    """Component, component, size of both; for the edges between two bounds in the order that is told above."""
    n = len(name)
    parent, size, component = list(range(n)), [1] * n, list(range(n))
    steps: list[tuple[int, int, int]] = []

    def find(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    def join(kept: int, other: int) -> None:
        parent[other] = kept
        size[kept] += size[other]
        if name[other] < name[kept]:
            name[kept] = name[other]
        steps.append((component[kept], component[other], size[kept]))
        component[kept] = n + len(steps) - 1

    ends = edges.tolist()
    for start, end in pairwise(bounds):
        if end - start == 1:
            one, other = find(ends[start][0]), find(ends[start][1])
            if size[one] >= size[other]:
                join(one, other)
            else:
                join(other, one)
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
        for parts in sorted(group.values(), key=lambda parts: min(name[part] for part in parts)):
            largest, *others = sorted(parts, key=lambda part: (-size[part], name[part]))
            for part in sorted(others, key=lambda part: (size[part], name[part])):
                join(largest, part)
    return steps
