"""Near copies: frames of a burst, and the same picture uploaded several times.

Density counts items, so a burst of twelve would look like a dense group of its own within its subject. Therefore items
that are much nearer to each other than items of one subject usually are count as one. A *picture* is a set of such near
copies, or a single item: pictures are the components of the graph in which all near pairs of items are joined.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from sploot_cluster.engine.graph import components
from sploot_cluster.engine.spanning_tree import SpanningTree
from sploot_cluster.pet.vectors import BoolVector, FloatMatrix, Rows

# Two items are near copies if their distance is less than this share of the usual distance between items of one
# subject. Measured: docs/explanation/quality.md.
_SHARE: Final = 0.2
_BLOCK: Final = 4_096
# The usual distance is the distance to the neighbour of this rank. In small pets, where subjects have fewer items, the
# rank is lower: the number of items divided by _RANK_SHARE.
_RANK: Final = 12
_RANK_SHARE: Final = 8
# If the usual distance is less than this, most items of the pet are practically identical. In this case near copies are
# not combined: every item counts as a picture of its own.
_IDENTICAL: Final = 1e-2
# Maximum number of rows to compare with all others. Comparing 128 with 50,000 rows of 512 dimensions takes 0.1 s.
_MOST_PROBES: Final = 128


def pictures(tree: SpanningTree, vectors: FloatMatrix, names: Rows | None = None) -> Rows:
    """Return the number of each row's picture, from 0, as (n,). Near copies share a number. O(n · d).

    Args:
        tree: the spanning tree of all ``vectors``.
        vectors: (n, d) float32 of unit norm.
        names: as for :func:`~sploot_cluster.engine.hierarchy.linkage`.
    """
    each = np.arange(tree.n)
    usual = _usual_distance(vectors, names)
    if usual < _IDENTICAL:
        return each
    limit = _SHARE * usual
    # If a row has at least min_samples near rows, edges of the tree join it to them. Otherwise all its near rows are in
    # its neighbour list.
    near_rows, near_ranks = np.nonzero(tree.distances < limit)
    edges = np.concatenate(
        [tree.edges[tree.weights < limit], np.stack([near_rows, tree.neighbours[near_rows, near_ranks]], axis=1)]
    )
    _, found = components(tree.n, edges)
    is_copy = _is_copy(vectors, found, limit)
    _, numbers = np.unique(np.where(is_copy, found, tree.n + each), return_inverse=True)
    return numbers


def _is_copy(vectors: FloatMatrix, found: Rows, limit: float) -> BoolVector:
    """Return a mask of the rows in components of several rows that are all within ``limit`` of their mean.

    So the frames of a video are not copies: each is near the next one, but the first and the last may have little in
    common.
    """
    size = np.bincount(found)
    members = np.flatnonzero(size[found] > 1)
    is_copy = np.zeros(len(found), dtype=np.bool_)
    if len(members):
        order = members[np.argsort(found[members], kind="stable")]
        of, starts = np.unique(found[order], return_index=True)
        means = np.add.reduceat(vectors[order], starts) / size[of][:, None].astype(np.float32)
        number = np.searchsorted(of, found[order])
        apart = np.empty(len(order))
        for start in range(0, len(order), _BLOCK):
            block = slice(start, start + _BLOCK)
            apart[block] = np.linalg.norm(vectors[order[block]] - means[number[block]], axis=1)
        is_copy[order] = (np.maximum.reduceat(apart, starts) < limit)[number]
    return is_copy


def _usual_distance(vectors: FloatMatrix, names: Rows | None) -> float:
    """Return the upper quartile of the distances from evenly spaced rows to their neighbour of rank ``_RANK`` or lower.

    The median would be too low, because more than half of the items of a pet may be frames of bursts.
    """
    n = len(vectors)
    rank = min(_RANK, max(1, n // _RANK_SHARE))
    probes = np.linspace(0, n - 1, num=min(n, _MOST_PROBES)).astype(np.intp)
    if names is not None:
        probes = np.argsort(names, kind="stable")[probes]
    similarity = vectors[probes] @ vectors.T
    similarity[np.arange(len(probes)), probes] = -np.inf
    of_rank = np.partition(similarity, n - rank, axis=1)[:, n - rank]
    return float(np.sqrt(max(0.0, 2 - 2 * float(np.quantile(of_rank, 0.25)))))
