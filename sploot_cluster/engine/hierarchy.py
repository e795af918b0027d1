"""Conversion of a spanning tree into a single-linkage hierarchy, with a defined order for edges of equal weight.

Core distances give many edges the same weight, and which of them a minimum spanning tree contains is arbitrary. Which
rows are connected at a given distance is not: that is the same for every minimum spanning tree. So edges whose weights
are equal within float32 precision are processed together. In each component that these edges form, the largest part
absorbs the others one after another, the smallest first. Any other order would create components that begin and end at
the same distance, and the hierarchy would take them for clusters. Each row has a number, its *name*. Parts of equal
size are ordered by their smallest name, so the order of rows does not matter.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from sploot_cluster.engine.spanning_tree import SpanningTree
from sploot_cluster.pet.vectors import Rows

Linkage = npt.NDArray[np.float64]

# Weights are equal if half their squares differ by at most this. For unit vectors, half the squared distance is
# 1 − similarity; float32 rounds similarities to about a fifth of this.
_SAME: Final = 5e-7


def linkage(tree: SpanningTree, names: Rows | None = None) -> Linkage:
    """Return the (n − 1, 4) linkage matrix in the format of scipy and hdbscan: two components, distance, joint size.

    Single rows are components 0 to n − 1; step i creates component n + i. Distances ascend.

    Args:
        names: (n,) distinct numbers that order parts of equal size; default: the row numbers.
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
    """Return (component, component, joint size) for each step, in the order that the module docstring defines.

    Args:
        bounds: positions in ``edges`` between which edges have equal weight.
        name: names of the rows. Modified.
    """
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
