"""Conversion of a spanning tree into a single-linkage hierarchy, with a defined order for edges of equal weight.

Core distances give many edges the same weight, and a minimum spanning tree contains an arbitrary choice of these edges.
But at every distance, all minimum spanning trees connect the same rows. So edges whose weights are equal within float32
precision are processed together. In each component that these edges form, the largest part absorbs the others one after
another, the smallest first. Any other order would create components that begin and end at the same distance, and the
hierarchy would take them for clusters. Each row has a number, its *name*. Parts of equal size are ordered by their
smallest name, so the order of rows does not matter.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from sploot_cluster.engine.graph import forest
from sploot_cluster.engine.spanning_tree import SpanningTree
from sploot_cluster.pet.vectors import Rows

Linkage = npt.NDArray[np.float64]

# Weights are equal if half their squares differ by at most this. For unit vectors, half the squared distance is
# 1 − similarity; float32 rounds similarities to about a fifth of this.
_SAME: Final = 5e-7


def linkage(tree: SpanningTree, names: Rows | None = None, *, parts: Rows | None = None) -> Linkage:
    """Return the (m − 1, 4) linkage matrix in the format of scipy and hdbscan: two components, distance, joint size.

    Single rows, or parts, are components 0 to m − 1; step i creates component m + i. Distances ascend.

    Args:
        names: (n,) distinct numbers that order parts of equal size. Default: the row numbers.
        parts: (n,) the part of each row, from 0 to m − 1, for m ≥ 1 parts that each count as a single row. Default:
            each row is a part of its own.
    """
    names = np.arange(tree.n) if names is None else names
    n, edges, weights = tree.n, tree.edges, tree.weights
    order = np.argsort(weights, kind="stable")
    edges, weights = edges[order], weights[order]
    if parts is not None and (n_parts := int(parts.max()) + 1) < n:
        edges = np.sort(parts[edges], axis=1)
        kept = forest(n_parts, edges)
        n, edges, weights = n_parts, edges[kept], weights[kept]
        least = np.full(n, len(names), dtype=np.intp)
        np.minimum.at(least, parts, names)
        names = least
    if n == 1:
        return np.empty((0, 4))
    bounds = np.flatnonzero(np.diff(weights**2 / 2, prepend=-np.inf, append=np.inf) > _SAME)
    steps = np.empty((n - 1, 4))
    steps[:, 2] = np.repeat(weights[bounds[1:] - 1], np.diff(bounds))
    steps[:, [0, 1, 3]] = _join(edges, bounds.tolist(), names.tolist())
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

    heads, tails = edges[:, 0].tolist(), edges[:, 1].tolist()
    for start, end in pairwise(bounds):
        if end - start == 1:
            one, other = heads[start], tails[start]
            # as in find, but inlined, because a call takes as long as all other steps for one edge
            while parent[one] != one:
                parent[one] = one = parent[parent[one]]
            while parent[other] != other:
                parent[other] = other = parent[parent[other]]
            if size[one] < size[other]:
                one, other = other, one
            join(one, other)
            continue
        group: dict[int, list[int]] = {}
        of: dict[int, int] = {}
        for one, other in zip(heads[start:end], tails[start:end], strict=True):
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
