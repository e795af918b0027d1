"""Growth of a spanning tree by many vectors at once. The result equals that of a fresh build.

New vectors can shrink the core distances of old ones. That lowers the weights of some edges between old vectors: those
to neighbours within the old core distance. All other weights stay the same. So every edge of the new tree is in the old
tree, in the neighbour lists of these old vectors, or has a new vector at one end.

The neighbours of the new vectors are found by one matrix product with all vectors. An edge is needed only if it is
better than the worst edge on a known path between its ends. So the paths in the old tree rule out nearly all edges from
new to old vectors, as soon as their similarities are computed. The remaining ones, the old tree and the edges to
neighbours make up a nearly correct tree. Edges between new vectors are then compared with the paths in that tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from sploot_cluster.engine.chunks import NEVER, Chunks, Nearest, block_rows, largest_places, products
from sploot_cluster.engine.graph import Merges
from sploot_cluster.engine.spanning_tree import (
    NEIGHBOURS,
    ROUNDING,
    DoubleMatrix,
    DoubleVector,
    SpanningTree,
    distances_between,
    nearest_exactly,
)
from sploot_cluster.pet.vectors import FloatMatrix, FloatVector, Rows
from sploot_cluster.threads import spread

# Factor by which the number of chunks of old rows may exceed that of a fresh build, because their maxima are not kept.
_FINER: Final = 4
# Number of rows whose paths to the chunks are compared at once: few enough for the data to stay in the CPU's cache.
_ROWS: Final = 32


def with_many_more(tree: SpanningTree, vectors: FloatMatrix, *, threads: int) -> SpanningTree:
    """Return the tree of all ``vectors``, given the tree of the first ``tree.n``. O(m · n · d) for m more vectors.

    Args:
        vectors: (n, d) float32 of unit norm, tree.n < n ≤ 2 · tree.n. Not modified.
        threads: number of threads that compute.
    """
    n, n_old, k = len(vectors), tree.n, tree.min_samples
    growth = _Growth(_OldTree(tree, vectors), vectors, threads=threads)
    found, rows = growth.nearest, np.arange(n_old, n)
    of_new, distances_of_new = nearest_exactly(vectors, rows, found, k, threads=threads)
    neighbours, distances, shrunk = _with_near(tree, vectors, growth.near)
    neighbours, distances = np.concatenate([neighbours, of_new]), np.concatenate([distances, distances_of_new])

    core = distances[:, -1]
    # the weights of edges from a row to its former neighbours fell with its core distance
    fallen = np.stack([np.repeat(shrunk, k), tree.neighbours[shrunk].ravel()], axis=1)
    edges = np.sort(np.concatenate([tree.edges, fallen]), axis=1)
    lengths = np.concatenate([tree.lengths, tree.distances[shrunk].ravel()])
    known = _Edges(edges, similarity_at(np.maximum(lengths, core[edges].max(axis=1))))
    chosen = growth.tree(known, similarity_at(core))
    return SpanningTree(neighbours, distances, chosen, _lengths(vectors, chosen, edges, lengths))


def similarity_at(distances: DoubleVector) -> FloatVector:
    """Return the cosine similarities of unit vectors at these Euclidean distances."""
    return (1 - distances**2 / 2).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Edges:
    """Edges of a graph: (m, 2) ``rows``, the smaller row first, and their float32 ``reachability`` as similarities."""

    rows: Rows
    reachability: FloatVector

    @classmethod
    def of(cls, ones: Rows, others: Rows, similarity: FloatVector, core: FloatVector) -> _Edges:
        """Return the edges between pairs of rows, given each pair's similarity and each row's ``core`` similarity."""
        rows = np.sort(np.stack([ones, others], axis=1), axis=1)
        return cls(rows, np.minimum(similarity, np.minimum(core[ones], core[others])))

    @classmethod
    def joined(cls, parts: Iterable[_Edges]) -> _Edges:
        some = list(parts)
        return cls(np.concatenate([each.rows for each in some]), np.concatenate([each.reachability for each in some]))

    def merged(self, n: int) -> tuple[_Edges, Merges]:
        """Return the edges, highest reachability first, and the merges of n rows along the edges in this order."""
        order = np.argsort(-self.reachability, kind="stable")
        edges = _Edges(self.rows[order], self.reachability[order])
        return edges, Merges.of(n, edges.rows)

    def kept(self, merges: Merges) -> _Edges:
        return _Edges(self.rows[merges.kept], self.reachability[merges.kept])


@dataclass(frozen=True, slots=True)
class _Links:
    """One edge for each of m new rows: an old row, the similarity to it, and the edge's reachability.

    The reachability is also a similarity. It is a lower bound, because the core distance of the old row may shrink.
    """

    rows: Rows
    similarity: FloatVector
    reachability: FloatVector

    def of(self, some: slice) -> _Links:
        return _Links(self.rows[some], self.similarity[some], self.reachability[some])


class _OldTree:
    """The tree before it grows, and its paths.

    Attributes:
        min_samples: the tree's HDBSCAN parameter.
        core: (n_old,) similarity of each row to the neighbour that determines its core distance.
        chunks: the chunks of the rows; similar rows are near each other in the order in which the tree merges them.
        least: for each place in the chunks, the lowest similarity at which a new row counts as near the old one there.
    """

    def __init__(self, tree: SpanningTree, vectors: FloatMatrix) -> None:
        n, self.min_samples = tree.n, tree.min_samples
        edges, self._merges = _Edges(tree.edges, similarity_at(tree.weights)).merged(n)
        self._reachability = edges.reachability
        self.core = similarity_at(tree.core)
        order = self._merges.order()
        self.chunks = Chunks.of(vectors[:n], order, more=_FINER)
        rows = self.chunks.rows
        self.least = self.core[rows.ravel()] - ROUNDING
        self.least[self.chunks.fillings] = np.inf
        # The path between two rows is at least as good as the detour through any third row. Two are tried: a row
        # in the middle of the tree, and the row with the densest neighbourhood in the chunk.
        self._to_middle = self._between(np.full(n, order[n // 2]), np.arange(n))
        self._chunk_to_middle = self._to_middle[rows].min(axis=0)
        core = self.core[rows]
        self._hubs = rows[core.argmax(axis=0), np.arange(rows.shape[1])]
        self._to_hub = self._between(np.tile(self._hubs, len(rows)), rows.ravel()).reshape(rows.shape)
        # an edge to a row can be better than the row's path to the hub only if it is better than the core distance
        self._worst_to_hub = np.where(core > self._to_hub, self._to_hub, np.float32(2)).min(axis=0)

    def _between(self, ones: Rows, others: Rows) -> FloatVector:
        """Return the reachability of the worst edge on the path between each pair of rows (from a row to itself, 1)."""
        worst = self._reachability[self._merges.last_between(ones, others)]
        worst[ones == others] = 1
        return worst

    def links(
        self, nearest: Rows, similarity: FloatMatrix, core: FloatVector, to_old: FloatMatrix, most: FloatMatrix
    ) -> _Links:
        """Return a good link for each of m new rows: the best one to an old row among its (m, k) ``nearest`` rows.

        Args:
            similarity: (m, k) similarities to ``nearest``.
            core: (m,) similarity of each new row to the neighbour that determines its core distance.
            to_old, most: as ``similarity`` and ``most`` of :meth:`candidates`.
        """
        rows, n_old = np.arange(len(nearest)), len(self.core)
        is_old = nearest < n_old
        reachability = np.where(is_old, np.minimum(similarity, self.core[np.where(is_old, nearest, 0)]), NEVER)
        best = reachability.argmax(axis=1)
        ends, to_ends = nearest[rows, best], similarity[rows, best]
        # if only new rows are listed, take the most similar old row
        far = np.flatnonzero(~is_old.any(axis=1))
        chunk = most[far].argmax(axis=1)
        of_chunk = to_old.reshape(len(to_old), *self.chunks.rows.shape)[far, :, chunk]
        place = of_chunk.argmax(axis=1)
        ends[far], to_ends[far] = self.chunks.rows[place, chunk], of_chunk.max(axis=1)
        return _Links(ends, to_ends, np.minimum(np.minimum(to_ends, self.core[ends]), core))

    def candidates(
        self, similarity: FloatMatrix, most: FloatMatrix, core: FloatVector, links: _Links
    ) -> tuple[Rows, Rows, FloatVector]:
        """Return the edges of m new rows to old rows that may belong in the new tree.

        Edges to old rows whose core distance shrinks may be missing.

        Args:
            similarity: (m, size · n_chunks) similarities to the rows of the chunks.
            most: (m, n_chunks) similarity to the most similar row of each chunk.
            core, links: those of the new rows.

        Returns:
            The positions of new rows, the old rows, and the similarities of the pairs.
        """
        best = np.minimum(most, core[:, None])
        path = np.minimum(links.reachability, self._to_middle[links.rows])[:, None]
        at, chunk = np.nonzero(best > np.minimum(path, self._chunk_to_middle))
        path = np.minimum(links.reachability[at], self._between(links.rows[at], self._hubs[chunk]))
        is_near = best[at, chunk] > np.minimum(path, self._worst_to_hub[chunk])
        at, chunk, path = at[is_near], chunk[is_near], path[is_near]
        found = similarity.reshape(len(similarity), *self.chunks.rows.shape)[at, :, chunk]
        is_better = np.minimum(found, core[at, None]) > np.minimum(path[:, None], self._to_hub.T[chunk])
        pair, place = np.nonzero(is_better)
        return at[pair], self.chunks.rows[place, chunk[pair]], found[pair, place]

    def better(
        self, at: Rows, others: Rows, similarity: FloatVector, core: FloatVector, links: _Links
    ) -> tuple[Rows, Rows, FloatVector]:
        """Return the edges from new to old rows that are better than the known paths between their ends."""
        path = np.minimum(links.reachability[at], self._between(links.rows[at], others))
        is_better = np.minimum(similarity, core[at]) > path
        return at[is_better], others[is_better], similarity[is_better]


@dataclass(frozen=True, slots=True)
class _Block:
    """The results for a block of new rows.

    Attributes:
        rows, similarity: (m, k) the nearest other rows of each new row, in any order, and the similarities to them.
        new: (m,) the new rows.
        links: the links of the new rows to old rows.
        near: (p, 2) pairs of an old row and a new row within its core distance.
        ones, others, found: the new row, old row and similarity of each edge that may belong in the new tree.
    """

    rows: Rows
    similarity: FloatMatrix
    new: Rows
    links: _Links
    near: Rows
    ones: Rows
    others: Rows
    found: FloatVector


class _Growth:
    """A comparison of many new rows with all rows, from which it chooses the edges of the grown tree.

    Attributes:
        nearest: the results for the new rows; the chunks are those of the new rows.
        near: (p, 2) pairs of an old row and a new row near it.
    """

    def __init__(self, old: _OldTree, vectors: FloatMatrix, *, threads: int) -> None:
        self._old, self._vectors = old, vectors
        self._n, self._n_old = len(vectors), len(old.core)
        self._chunks = Chunks.of(vectors[self._n_old :])
        # twice the rows of a build, which keeps more per row: products of more rows are faster
        self._step = 2 * block_rows(self._n)
        n_new = self._n - self._n_old
        self._most = np.empty((n_new, self._chunks.rows.shape[1]), dtype=np.float32)
        self._blocks = list(spread(self._compare, range(0, n_new, self._step), threads=threads))
        self.near = np.concatenate([each.near for each in self._blocks])
        rows = np.concatenate([each.rows for each in self._blocks])
        similarity = np.concatenate([each.similarity for each in self._blocks])
        order = np.lexsort((rows, -similarity), axis=1)
        self.nearest = Nearest(
            np.take_along_axis(rows, order, axis=1), np.take_along_axis(similarity, order, axis=1), self._most
        )

    def tree(self, known: _Edges, core: FloatVector) -> Rows:
        """Return the (n − 1, 2) edges of the tree, the smaller row first.

        Args:
            known: edges that connect the old rows; they include every edge between old rows that may be in the tree.
            core: (n,) similarity of each row to the neighbour that determines its core distance.
        """
        rows, n_listed = np.arange(self._n_old, self._n), self.nearest.rows.shape[1]
        edges, merges = _Edges.joined(
            [
                known,
                _Edges.of(np.repeat(rows, n_listed), self.nearest.rows.ravel(), self.nearest.similarity.ravel(), core),
                *(_Edges.of(each.new, each.links.rows, each.links.similarity, core) for each in self._blocks),
                *(_Edges.of(each.ones, each.others, each.found, core) for each in self._blocks),
            ]
        ).merged(self._n)
        better = self._between_new(merges, edges.reachability, core)
        edges, merges = _Edges.joined([edges.kept(merges), *better]).merged(self._n)
        return edges.kept(merges).rows

    def _compare(self, start: int) -> _Block:
        """Compare a block of new rows with all rows."""
        old, chunks, n_old = self._old, self._chunks, self._n_old
        block = slice(start, min(start + self._step, self._n - n_old))
        vectors = self._vectors[n_old:][block]
        to_old, most = products(vectors, old.chunks)
        to_new, self._most[block] = products(vectors, chunks, own=chunks.places[block])
        rows, similarity = self._nearest_of(to_old, most, to_new, self._most[block])
        core = -np.sort(-similarity, axis=1)[:, old.min_samples - 1]
        links = old.links(rows, similarity, core, to_old, most)
        at, place = np.divmod(np.flatnonzero(to_old >= old.least), to_old.shape[1])
        near = old.chunks.rows.ravel()[place]
        parts = [(at, near, to_old[at, place])]
        for first in range(0, len(vectors), _ROWS):
            some = slice(first, first + _ROWS)
            ones, others, found = old.candidates(to_old[some], most[some], core[some], links.of(some))
            parts.append((first + ones, others, found))
        ones, others, found = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        ones, others, found = old.better(ones, others, found, core, links)
        new = np.arange(n_old, self._n)[block]
        return _Block(rows, similarity, new, links, np.stack([near, new[at]], axis=1), new[ones], others, found)

    def _nearest_of(
        self, to_old: FloatMatrix, most_of_old: FloatMatrix, to_new: FloatMatrix, most_of_new: FloatMatrix
    ) -> tuple[Rows, FloatMatrix]:
        """Return the nearest other rows of each row of a block, in any order, and the similarities to them."""
        k = min(max(NEIGHBOURS, self._old.min_samples + 1), self._n - 1)
        rows, similarities = [], []
        for found, most, of_place in (
            (to_old, most_of_old, self._old.chunks.rows.ravel()),
            (to_new, most_of_new, self._chunks.rows.ravel() + self._n_old),
        ):
            places = largest_places(found, most, min(k, found.shape[1]))
            rows.append(of_place[places])
            similarities.append(np.take_along_axis(found, places, axis=1))
        listed, similarity = np.concatenate(rows, axis=1), np.concatenate(similarities, axis=1)
        best = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        return np.take_along_axis(listed, best, axis=1), np.take_along_axis(similarity, best, axis=1)

    def _between_new(self, merges: Merges, reachability: FloatVector, core: FloatVector) -> Iterator[_Edges]:
        """Yield the edges between new rows that are better than an edge on the path between their ends."""
        order, columns = merges.order(), self._chunks.columns
        rows_of_chunks, most = self._chunks.rows + self._n_old, self._most
        middle = np.full(self._n, order[self._n // 2])
        to_middle = reachability[merges.last_between(middle, np.arange(self._n))]
        to_middle[middle[0]] = 1
        chunk_to_middle = to_middle[rows_of_chunks].min(axis=0)
        core_of_chunk = core[rows_of_chunks].max(axis=0)
        new = order[order >= self._n_old]  # in this order, because similar rows are compared with the same chunks
        for start in range(0, len(new), _ROWS):
            rows = new[start : start + _ROWS]
            core_of_rows, path = core[rows, None], to_middle[rows, None]
            best = np.minimum(np.minimum(most[rows - self._n_old], core_of_rows), core_of_chunk)
            candidates = np.flatnonzero((best > np.minimum(path, chunk_to_middle)).any(axis=0))
            if not len(candidates):
                continue
            others = rows_of_chunks.take(candidates, axis=1).ravel()
            found = self._vectors[rows] @ columns.take(candidates, axis=1).reshape(len(others), -1).T
            np.minimum(np.minimum(found, core[others], out=found), core_of_rows, out=found)
            at = np.nonzero(found > np.minimum(path, to_middle[others]))
            one, other, found = rows[at[0]], others[at[1]], found[at]
            is_better = (one != other) & (found > reachability[merges.last_between(one, other)])
            yield _Edges.of(one[is_better], other[is_better], found[is_better], core)


def _lengths(vectors: FloatMatrix, chosen: Rows, edges: Rows, lengths: DoubleVector) -> DoubleVector:
    """Return the lengths of ``chosen`` edges, given those of ``edges``. All edges have the smaller row first."""
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
