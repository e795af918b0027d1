"""Updates of a spanning tree when vectors are added or removed. The result equals that of a fresh build.

**Adding vectors.** A few vectors are added one by one, many at once (``growth``). The edges of one new vector are its
*star*: every edge of the new tree is in the old tree, in the star, or in the neighbour lists of vectors whose core
distance shrinks (Spira and Pan, 1975, for one more node). An edge of the star is dropped early if a better edge of the
star, followed by a better tree edge, leads to the same vector.

**Removing vectors.** Weights only grow, and only for edges of vectors that had a removed vector in their neighbour
list. The rest of the tree, without these edges, is contained in some minimum tree of the remaining vectors. Its parts
are joined by comparing every vector outside the largest part with all vectors. If more than half of the vectors would
have to be compared, a fresh build is cheaper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from sploot_cluster.engine.chunks import block_rows
from sploot_cluster.engine.graph import components, forest
from sploot_cluster.engine.growth import similarity_at, with_many_more
from sploot_cluster.engine.spanning_tree import (
    ROUNDING,
    DoubleVector,
    SpanningTree,
    distances_between,
    spanning_tree,
)
from sploot_cluster.pet.vectors import BoolVector, FloatMatrix, FloatVector, Rows
from sploot_cluster.threads import quiet_blas

# Maximum number of vectors to add one by one. Adding any number at once takes at least as long as adding four one by
# one. Measured with 200 to 10,000 rows.
_FEW: Final = 4
# A tree is rebuilt if more than this share of all rows is new. When the number of rows doubles, growing the tree takes
# 60–80 % of the time of a full build. Measured with 2,000 to 10,000 rows.
_MANY: Final = 0.5

# (vectors, min_samples) -> their spanning tree, built from scratch.
Build = Callable[[FloatMatrix, int], SpanningTree]

_FAR: Final = np.float32(-3)


def grown(tree: SpanningTree, vectors: FloatMatrix, *, build: Build = spanning_tree, threads: int = 1) -> SpanningTree:
    """Return the tree of all ``vectors``, given the tree of the first ``tree.n``. O(n · d) per added vector.

    Args:
        vectors: (n, d) float32 of unit norm, n ≥ tree.n. Not modified.
        build: a function that builds the tree from scratch, used if most vectors are new.
        threads: number of threads, used if more than a few vectors are new.
    """
    n_new = len(vectors) - tree.n
    if n_new > _MANY * len(vectors):
        return build(vectors, tree.min_samples)
    if n_new > _FEW:
        with quiet_blas():
            return with_many_more(tree, vectors, threads=threads)
    for n in range(tree.n, len(vectors)):
        tree = _with_one_more(tree, vectors[: n + 1])
    return tree


def without(
    tree: SpanningTree, vectors: FloatMatrix, gone: Rows, *, build: Build = spanning_tree
) -> SpanningTree | None:
    """Return the tree of the remaining rows, renumbered in their order, or None if too few remain for a tree.

    Args:
        vectors: (n, d) float32 of unit norm, for all rows of ``tree``. Not modified.
        gone: the rows to leave out, in any order.
        build: a function that builds the tree from scratch, used if much of it would change.
    """
    stays: BoolVector = np.ones(tree.n, dtype=np.bool_)
    stays[gone] = False
    n, k = int(np.count_nonzero(stays)), tree.min_samples
    if n <= k or n < 2:
        return None
    number = np.cumsum(stays) - 1
    rest = np.ascontiguousarray(vectors[: tree.n][stays])
    listed_gone = np.zeros(n, dtype=np.bool_)
    listed_gone[np.flatnonzero((~stays)[tree.neighbours[stays]]) // k] = True
    if np.count_nonzero(listed_gone) > n // 4:
        return build(rest, k)

    neighbours, distances = number[tree.neighbours[stays]], tree.distances[stays].copy()
    grew = np.flatnonzero(listed_gone)
    neighbours[grew], distances[grew] = _nearest_of(rest, grew, k)
    core = distances[:, -1]
    is_kept = stays[tree.edges].all(axis=1)
    edges, lengths = number[tree.edges[is_kept]], tree.lengths[is_kept]
    is_same = np.logical_not(listed_gone[edges].any(axis=1))
    edges, lengths = edges[is_same], lengths[is_same]
    n_parts, part = components(n, edges)
    if n - np.bincount(part).max() > n // 2:
        return build(rest, k)
    bridges = _bridges(rest, core, n_parts, part)
    return SpanningTree(
        neighbours,
        distances,
        np.concatenate([edges, bridges]),
        np.concatenate([lengths, distances_between(rest, bridges[:, 0], bridges[:, 1])]),
    )


def _with_one_more(tree: SpanningTree, vectors: FloatMatrix) -> SpanningTree:
    new, k = tree.n, tree.min_samples
    similarity = vectors[:new] @ vectors[new]
    nearest, near = _nearest_to(vectors, similarity, new, k)

    # rows whose core distance may shrink: a float32 filter first, then exact distances
    close = np.flatnonzero(similarity >= similarity_at(tree.core) - ROUNDING)
    apart = distances_between(vectors, close, new)
    shrinks = apart < tree.core[close]
    shrunk, apart = close[shrinks], apart[shrinks]
    neighbours, distances = tree.neighbours, tree.distances
    fallen, fallen_lengths = np.empty((0, 2), dtype=np.intp), np.empty(0)
    if len(shrunk):
        fallen = np.stack([np.repeat(shrunk, k), neighbours[shrunk].ravel()], axis=1)
        fallen_lengths = distances[shrunk].ravel()
        longer = np.column_stack([neighbours[shrunk], np.full(len(shrunk), new)])
        farther = np.column_stack([distances[shrunk], apart])
        order = np.argsort(farther, axis=1, kind="stable")[:, :k]
        neighbours, distances = neighbours.copy(), distances.copy()
        neighbours[shrunk] = np.take_along_axis(longer, order, axis=1)
        distances[shrunk] = np.take_along_axis(farther, order, axis=1)
    neighbours = np.concatenate([neighbours, nearest[None]])
    distances = np.concatenate([distances, near[None]])

    core = distances[:, -1]
    weights = np.maximum(tree.lengths, core[tree.edges].max(axis=1))
    star = _star(similarity, core, tree.edges, weights)
    edges = np.concatenate([tree.edges, np.sort(fallen, axis=1), np.column_stack([star, np.full(len(star), new)])])
    lengths = np.concatenate([tree.lengths, fallen_lengths, distances_between(vectors, star, new)])
    chosen = _lightest(new + 1, edges, np.maximum(lengths, core[edges].max(axis=1)))
    return SpanningTree(neighbours, distances, edges[chosen], lengths[chosen])


def _star(similarity: FloatVector, core: DoubleVector, edges: Rows, weights: DoubleVector) -> Rows:
    """Return the rows whose edge to the new row, the last of ``core``, may be in a minimum tree."""
    core_similarity = similarity_at(core)
    reachability = np.minimum(np.minimum(similarity, core_similarity[:-1]), core_similarity[-1])
    one, other = reachability[edges[:, 0]], reachability[edges[:, 1]]
    # leave out a row if the detour through one of its tree neighbours is better than the direct edge
    limit = similarity_at(weights) - ROUNDING
    is_left_out = np.zeros(len(similarity), dtype=np.bool_)
    is_left_out[edges[(one > other + ROUNDING) & (limit > other), 1]] = True
    is_left_out[edges[(other > one + ROUNDING) & (limit > one), 0]] = True
    return np.flatnonzero(~is_left_out)


def _bridges(vectors: FloatMatrix, core: DoubleVector, n_parts: int, part: Rows) -> Rows:
    """Return the (n_parts − 1, 2) edges that join the parts into a minimum tree.

    All rows outside the largest part are compared with all rows.
    """
    if n_parts == 1:
        return np.empty((0, 2), dtype=np.intp)
    order = np.argsort(part, kind="stable")
    columns, core_similarity = np.ascontiguousarray(vectors[order]).T, similarity_at(core)
    first = np.searchsorted(part[order], np.arange(n_parts))
    is_compared = part != np.bincount(part).argmax()
    rows = np.flatnonzero(is_compared)
    best = np.full((n_parts, n_parts), _FAR)
    best_edge = np.zeros((n_parts, n_parts, 2), dtype=np.intp)
    size = block_rows(len(order))
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        reachability = np.minimum(vectors[block] @ columns, core_similarity[order])
        np.minimum(reachability, core_similarity[block][:, None], out=reachability)
        to_part = np.maximum.reduceat(reachability, first, axis=1)
        for at, row in enumerate(block.tolist()):
            mine = part[row]
            for better in np.flatnonzero(to_part[at] > best[mine]).tolist():
                if better != mine:
                    begin, end = first[better], first[better + 1] if better + 1 < n_parts else len(order)
                    with_row = order[begin + reachability[at, begin:end].argmax()]
                    best[mine, better] = to_part[at, better]
                    best_edge[mine, better] = (min(row, with_row), max(row, with_row))
    ones, others = np.nonzero(best > _FAR)
    edges = best_edge[ones, others]
    ascending = np.argsort(-best[ones, others], kind="stable")
    pairs = np.sort(np.stack([ones, others], axis=1), axis=1)[ascending]
    _, unique = np.unique(pairs, axis=0, return_index=True)
    unique.sort()
    return edges[ascending[unique[forest(n_parts, pairs[unique])]]]


def _lightest(n: int, edges: Rows, weights: DoubleVector) -> Rows:
    """Return the positions of the edges that make up a minimum spanning tree of n nodes.

    ``edges`` may contain duplicates.
    """
    order = np.argsort(weights, kind="stable")
    _, first = np.unique(edges[order, 0] * n + edges[order, 1], return_index=True)
    first.sort()
    order = order[first]
    return order[forest(n, edges[order])]


def _nearest_to(vectors: FloatMatrix, similarity: FloatVector, row: int, k: int) -> tuple[Rows, DoubleVector]:
    """Return the (k,) rows nearest to ``row``, and their distances.

    Args:
        similarity: the similarity of ``row`` to each candidate. That to itself must be left out, or lower than all
            others.
    """
    close = np.arange(len(similarity))
    if k < len(similarity):
        close = np.flatnonzero(similarity >= np.partition(similarity, -k)[-k] - 2 * ROUNDING)
    apart = distances_between(vectors, close, row)
    order = np.lexsort((close, apart))[:k]
    return close[order], apart[order]


def _nearest_of(vectors: FloatMatrix, rows: Rows, k: int) -> tuple[Rows, DoubleVector]:
    """Return the (m, k) nearest other rows of ``rows``, and their distances."""
    nearest, near = np.empty((len(rows), k), dtype=np.intp), np.empty((len(rows), k))
    for at, row in enumerate(rows.tolist()):
        similarity = vectors @ vectors[row]
        similarity[row] = _FAR
        nearest[at], near[at] = _nearest_to(vectors, similarity, row, k)
    return nearest, near
