"""Updates of a spanning tree when vectors are added or removed. The result equals that of a fresh build.

**Adding vectors.** Weights only fall, and only for edges of vectors whose core distance shrinks: edges to the
neighbours within their old core distance. So every edge of the new tree is in the old tree, in the neighbour lists of
these vectors, or among the edges of the new vectors, their *stars* (Spira and Pan, 1975, for one more node). A few
vectors are added one by one. An edge of a star is then dropped early if a better edge of the star, followed by a better
tree edge, leads to the same vector. For many, one product of the new vectors with all finds the neighbours. The old
tree and the edges to these make up a tree that is nearly right, and bounds prove that nearly all other edges of the new
vectors are not needed.

**Removing vectors.** Weights only grow, and only for edges of vectors that had a removed vector in their neighbour
list. The rest of the tree, without these edges, is contained in some minimum tree of the remaining vectors. Its parts
are joined by comparing every vector outside the largest part with all vectors. If more than half of the vectors would
have to be compared, a fresh build is cheaper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from sploot_cluster.engine.chunks import Chunks, Nearest, alike, arrived_rows, block_rows
from sploot_cluster.engine.graph import Merges, components, forest
from sploot_cluster.engine.spanning_tree import (
    NEIGHBOURS,
    ROUNDING,
    DoubleMatrix,
    DoubleVector,
    SpanningTree,
    distances_between,
    nearest_exactly,
    spanning_tree,
)
from sploot_cluster.pet.vectors import BoolVector, FloatMatrix, FloatVector, Rows
from sploot_cluster.threads import quiet_blas

# Maximum number of vectors to add one by one: adding them all at once takes at least as long as adding four one by one.
# Measured with 200 to 10,000 rows.
_FEW: Final = 4
# A tree is rebuilt if more than this share of all rows is new. When the number of rows doubles, growing the tree takes
# 60–80 % of the time of a full build; measured with 2,000 to 10,000 rows.
_MANY: Final = 0.5

# (vectors, min_samples) -> their spanning tree, built from scratch.
Build = Callable[[FloatMatrix, int], SpanningTree]

_FAR: Final = np.float32(-3)

# New rows per product with the chunks that may have better edges. With more, fewer products are needed, but each has
# more rows that are compared in vain. Measured: 16, 32 and 64 differ by less than a tenth.
_ROWS: Final = 32


def grown(tree: SpanningTree, vectors: FloatMatrix, *, build: Build = spanning_tree, threads: int = 1) -> SpanningTree:
    """Return the tree of all ``vectors``, given the tree of the first ``tree.n``. O(n · d) per added vector.

    Args:
        vectors: (n, d) float32 of unit norm, n ≥ tree.n. Not modified.
        build: builds the tree from scratch if most vectors are new.
        threads: number of threads that compute, if more than a few vectors are new.
    """
    n_new = len(vectors) - tree.n
    if n_new > _MANY * len(vectors):
        return build(vectors, tree.min_samples)
    if n_new > _FEW:
        with quiet_blas():
            return _with_many_more(tree, vectors, threads)
    for n in range(tree.n, len(vectors)):
        tree = _with_one_more(tree, vectors[: n + 1])
    return tree


def without(
    tree: SpanningTree, vectors: FloatMatrix, gone: Rows, *, build: Build = spanning_tree
) -> SpanningTree | None:
    """Return the tree of the remaining rows, renumbered in their order; None if too few remain for a tree.

    Args:
        vectors: (n, d) float32 of unit norm, for all rows of ``tree``. Not modified.
        gone: the rows to leave out, in any order.
        build: builds the tree from scratch if much of it would change.
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


def _with_many_more(tree: SpanningTree, vectors: FloatMatrix, threads: int) -> SpanningTree:
    n, n_old, k = len(vectors), tree.n, tree.min_samples
    nearest_first = tree.edges[np.argsort(tree.weights, kind="stable")]
    # similar old rows are near each other in the order in which the tree merges them
    order = np.concatenate([Merges.of(n_old, nearest_first).order(), n_old + alike(vectors[n_old:])])
    chunks = Chunks.of(vectors, order, more=2)  # at most half of the rows are new
    found, near = arrived_rows(
        vectors,
        chunks,
        min(max(NEIGHBOURS, k + 1), n - 1),
        least=_similarity(tree.core) - ROUNDING,
        threads=threads,
    )
    of_new, distances_of_new = nearest_exactly(vectors, np.arange(n_old, n), found, k, threads=threads)
    neighbours, distances, shrunk = _with_near(tree, vectors, near)
    neighbours, distances = np.concatenate([neighbours, of_new]), np.concatenate([distances, distances_of_new])

    core = distances[:, -1]
    # the weights of edges from a row to its former neighbours fell with its core distance
    fallen = np.stack([np.repeat(shrunk, k), tree.neighbours[shrunk].ravel()], axis=1)
    edges = np.sort(np.concatenate([tree.edges, fallen]), axis=1)
    lengths = np.concatenate([tree.lengths, tree.distances[shrunk].ravel()])
    known = _Edges(edges, _similarity(np.maximum(lengths, core[edges].max(axis=1))))
    chosen = _Growth(vectors, _similarity(core), chunks, found).tree(known)
    return SpanningTree(neighbours, distances, chosen, _lengths(vectors, chosen, edges, lengths))


@dataclass(frozen=True, slots=True)
class _Edges:
    """Edges of a graph: (m, 2) ``rows``, the smaller row first, and their float32 ``reachability`` as similarities."""

    rows: Rows
    reachability: FloatVector

    @classmethod
    def of(cls, ones: Rows, others: Rows, reachability: FloatVector) -> _Edges:
        return cls(np.sort(np.stack([ones, others], axis=1), axis=1), reachability)

    @classmethod
    def joined(cls, parts: Iterable[_Edges]) -> _Edges:
        some = list(parts)
        return cls(np.concatenate([each.rows for each in some]), np.concatenate([each.reachability for each in some]))

    def merged(self, n: int) -> tuple[_Edges, Merges]:
        """Return the edges, the best first, and the merges of n rows along them."""
        order = np.argsort(-self.reachability, kind="stable")
        edges = _Edges(self.rows[order], self.reachability[order])
        return edges, Merges.of(n, edges.rows)

    def kept(self, merges: Merges) -> _Edges:
        return _Edges(self.rows[merges.kept], self.reachability[merges.kept])


class _Growth:
    """The choice of the edges of a tree that many new rows have joined.

    An edge that is missing from a tree belongs in it if it is better than the worst edge on the path between its ends.
    The tree of the old rows is known, and the nearest neighbours of the new ones. Of all other edges of new rows, few
    can belong in the tree that these make up: no edge between a row and a chunk is better than the similarity of the
    row to the most similar row of the chunk, and a path is at least as good as the paths from both ends to a third row.
    """

    def __init__(self, vectors: FloatMatrix, core: FloatVector, chunks: Chunks, nearest: Nearest) -> None:
        """
        Args:
            vectors: (n, d) float32 of unit norm, the old rows first.
            core: (n,) similarity of each row to the neighbour that determines its core distance.
            chunks: the chunks of all rows.
            nearest: the results for the new rows.
        """
        self._vectors, self._core, self._chunks, self._nearest = vectors, core, chunks, nearest
        self._n, self._n_old = len(core), len(core) - len(nearest.rows)

    def tree(self, known: _Edges) -> Rows:
        """Return the (n − 1, 2) edges of the tree, the smaller row first.

        Args:
            known: edges that connect the old rows; they include every edge between old rows that may be in the tree.
        """
        edges, merges = _Edges.joined([known, self._listed()]).merged(self._n)
        apart = np.flatnonzero(merges.component != merges.component[0])
        if len(apart):
            edges, merges = _Edges.joined([edges.kept(merges), self._links(apart)]).merged(self._n)
        better = self._better(merges, edges.reachability)
        edges, merges = _Edges.joined([edges.kept(merges), *better]).merged(self._n)
        return edges.kept(merges).rows

    def _listed(self) -> _Edges:
        """Return the edges to the nearest neighbours of the new rows."""
        rows, neighbours = np.arange(self._n_old, self._n), self._nearest.rows
        similarity = np.minimum(self._nearest.similarity, self._core[neighbours])
        np.minimum(similarity, self._core[rows, None], out=similarity)
        return _Edges.of(np.repeat(rows, neighbours.shape[1]), neighbours.ravel(), similarity.ravel())

    def _links(self, rows: Rows) -> _Edges:
        """Return a good edge to an old row for each of these new rows: to the best one of their best chunk."""
        old_chunks = np.flatnonzero(self._chunks.rows[0] < self._n_old)
        ends = np.empty(len(rows), dtype=np.intp)
        for at, row in enumerate(rows.tolist()):
            among = self._chunks.rows[:, old_chunks[self._nearest.most[row - self._n_old, old_chunks].argmax()]]
            among = among[among < self._n_old]
            ends[at] = among[(self._vectors[among] @ self._vectors[row]).argmax()]
        similarity = np.einsum("ij,ij->i", self._vectors[rows], self._vectors[ends])
        return _Edges.of(rows, ends, np.minimum(similarity, self._core[np.stack([rows, ends])].min(axis=0)))

    def _better(self, merges: Merges, reachability: FloatVector) -> Iterator[_Edges]:
        """Yield the edges of new rows that are better than an edge on the path between their ends."""
        chunks, order = self._chunks, merges.order()
        hub = np.full(self._n, order[self._n // 2])
        to_hub = reachability[merges.last_between(hub, np.arange(self._n))]
        to_hub[hub[0]] = 1
        to_chunk, core_of_chunk = to_hub[chunks.rows].min(axis=0), self._core[chunks.rows].max(axis=0)
        new = order[order >= self._n_old]  # in this order, because similar rows are compared with the same chunks
        for start in range(0, self._n - self._n_old, _ROWS):
            rows = new[start : start + _ROWS]
            core, path = self._core[rows, None], to_hub[rows, None]
            best = np.minimum(np.minimum(self._nearest.most[rows - self._n_old], core), core_of_chunk)
            candidates = np.flatnonzero((best > np.minimum(path, to_chunk)).any(axis=0))
            if not len(candidates):
                continue
            columns = chunks.columns.take(candidates, axis=1)
            others = chunks.rows.take(candidates, axis=1).ravel()
            found = self._vectors[rows] @ columns.reshape(len(others), -1).T
            np.minimum(np.minimum(found, self._core[others], out=found), core, out=found)
            at = np.nonzero(found > np.minimum(path, to_hub[others]))
            one, other, found = rows[at[0]], others[at[1]], found[at]
            is_better = (one != other) & (found > reachability[merges.last_between(one, other)])
            yield _Edges.of(one[is_better], other[is_better], found[is_better])


def _lengths(vectors: FloatMatrix, chosen: Rows, edges: Rows, lengths: DoubleVector) -> DoubleVector:
    """Return the lengths of ``chosen`` edges, given the lengths of ``edges``; all edges have the smaller row first."""
    n = len(vectors)
    known = edges[:, 0] * n + edges[:, 1]
    order = np.argsort(known)
    wanted = chosen[:, 0] * n + chosen[:, 1]
    at = order[np.minimum(np.searchsorted(known[order], wanted), len(known) - 1)]
    found, is_new = lengths[at], known[at] != wanted
    found[is_new] = distances_between(vectors, chosen[is_new, 0], chosen[is_new, 1])
    return found


def _with_near(tree: SpanningTree, vectors: FloatMatrix, near: Rows) -> tuple[Rows, DoubleMatrix, Rows]:
    """Update the neighbours of old rows and their distances, given pairs of an old row and a new row near it.

    Returns:
        neighbours, distances: (n, k) as in :class:`~sploot_cluster.engine.spanning_tree.SpanningTree`.
        shrunk: the rows whose neighbours changed.
    """
    k = tree.min_samples
    apart = distances_between(vectors, near[:, 0], near[:, 1])
    is_nearer = apart < tree.core[near[:, 0]]
    near, apart = near[is_nearer], apart[is_nearer]
    shrunk = np.unique(near[:, 0])
    neighbours, distances = tree.neighbours.copy(), tree.distances.copy()
    of = np.concatenate([np.repeat(shrunk, k), near[:, 0]])
    listed = np.concatenate([neighbours[shrunk].ravel(), near[:, 1]])
    far = np.concatenate([distances[shrunk].ravel(), apart])
    order = np.lexsort((listed, far, of))
    first = np.searchsorted(of[order], shrunk)
    kept = order[first[:, None] + np.arange(k)]
    neighbours[shrunk], distances[shrunk] = listed[kept], far[kept]
    return neighbours, distances, shrunk


def _nothing(n: int) -> Rows:
    return np.empty((n, 0), dtype=np.intp)


def _with_one_more(tree: SpanningTree, vectors: FloatMatrix) -> SpanningTree:
    new, k = tree.n, tree.min_samples
    similarity = vectors[:new] @ vectors[new]
    nearest, near = _nearest_to(vectors, similarity, new, k)

    # rows whose core distance may shrink: a float32 filter first, then exact distances
    close = np.flatnonzero(similarity >= _similarity(tree.core) - ROUNDING)
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
    core_similarity = _similarity(core)
    reachability = np.minimum(np.minimum(similarity, core_similarity[:-1]), core_similarity[-1])
    one, other = reachability[edges[:, 0]], reachability[edges[:, 1]]
    # leave out a row if the detour through one of its tree neighbours is better than the direct edge
    limit = _similarity(weights) - ROUNDING
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
    columns, core_similarity = np.ascontiguousarray(vectors[order]).T, _similarity(core)
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
    """Return the positions of the edges that make up a minimum spanning tree of n nodes; edges may repeat."""
    order = np.argsort(weights, kind="stable")
    _, first = np.unique(edges[order, 0] * n + edges[order, 1], return_index=True)
    first.sort()
    order = order[first]
    return order[forest(n, edges[order])]


def _nearest_to(vectors: FloatMatrix, similarity: FloatVector, row: int, k: int) -> tuple[Rows, DoubleVector]:
    """Return the (k,) rows nearest to ``row``, and their distances.

    Args:
        similarity: similarity to each candidate. The similarity of ``row`` to itself is left out, or lower than all
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


def _similarity(distances: DoubleVector) -> FloatVector:
    """Return the cosine similarities of unit vectors at these Euclidean distances."""
    return (1 - distances**2 / 2).astype(np.float32)
