"""The exact minimum spanning tree of mutual reachability, computed with matrix products.

HDBSCAN's hierarchy is the minimum spanning tree of a complete graph. The weight of an edge is the distance between its
vectors, but at least the core distance of each (Campello, Moulavi and Sander, 2013). Space-partitioning trees
do not help in hundreds of dimensions; matrix products do. Borůvka's algorithm runs on a short list of nearest
neighbours per vector. A component's best listed edge is accepted only if no unlisted edge can be better: every vector
that is missing from the list is farther away than the last one in it, the *horizon*. Where the horizon is too near to
decide, the vector is compared with more vectors: the members of the few ``chunks`` whose most similar member is near
enough. The result of that comparison becomes the vector's new horizon. It stays valid because components only grow.

Edges are compared by float32 similarity; their lengths are then recomputed in float64. ``tree_changes`` updates a tree
when items come or go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sploot_cluster.engine.chunks import NEVER, Chunks, Nearest, nearest_rows
from sploot_cluster.engine.graph import components, forest
from sploot_cluster.pet.models import Backend
from sploot_cluster.pet.vectors import BoolVector, FloatMatrix, FloatVector, Rows
from sploot_cluster.threads import quiet_blas, spread

DoubleVector = npt.NDArray[np.float64]
DoubleMatrix = npt.NDArray[np.float64]

# The signature of ``chunks.nearest_rows``, without threads.
FindNearest = Callable[[FloatMatrix, Chunks, int], Nearest]

# The float32 similarity of two vectors varies by less than this with the order of summation.
ROUNDING: Final = np.float32(4e-6)

# Length of the neighbour lists. Doubling it decides more edges without a full comparison, but costs as much time as it
# saves. Measured with 200 to 10,000 vectors.
NEIGHBOURS: Final = 16
# Number of rows per block when rows are compared with chunks. Each row is compared with every chunk that any row of its
# block needs.
_ROWS: Final = 128
# Number of rows per block when one thread computes exact distances to nearest neighbours.
_MOST_ROWS: Final = 1_024
# Number of pairs per block of distances. A block that fits into a core's cache is a quarter faster than one of 512.
_PAIRS: Final = 128


@dataclass(frozen=True, slots=True)
class SpanningTree:
    """A spanning tree of n ≥ 2 vectors, with the data needed to update it.

    Attributes:
        neighbours: (n, k) the nearest other rows of each row, nearest first; k is HDBSCAN's min_samples.
        distances: (n, k) float64 distances to ``neighbours``; the last is the row's core distance.
        edges: (n − 1, 2) pairs of rows, in no particular order.
        lengths: (n − 1,) float64 distances between the ends of the edges.
        backend: the backend that found the neighbours.
    """

    neighbours: Rows
    distances: DoubleMatrix
    edges: Rows
    lengths: DoubleVector
    backend: Backend = "hdbscan_cpu"

    @property
    def n(self) -> int:
        return len(self.neighbours)

    @property
    def min_samples(self) -> int:
        return int(self.neighbours.shape[1])

    @property
    def n_bytes(self) -> int:
        return self.neighbours.nbytes + self.distances.nbytes + self.edges.nbytes + self.lengths.nbytes

    @property
    def core(self) -> DoubleVector:
        """The (n,) core distances."""
        core: DoubleVector = self.distances[:, -1]
        return core

    @property
    def weights(self) -> DoubleVector:
        """The (n − 1,) float64 mutual reachability distances of the edges."""
        weights: DoubleVector = np.maximum(self.lengths, self.core[self.edges].max(axis=1, initial=0.0))
        return weights


def spanning_tree(
    vectors: FloatMatrix,
    min_samples: int,
    *,
    threads: int = 1,
    nearest: FindNearest | None = None,
    backend: Backend = "hdbscan_cpu",
) -> SpanningTree:
    """Return the minimum spanning tree of the mutual reachability graph.

    If the weights of two edges differ by less than float32 can resolve, the tree may contain either edge; ``hierarchy``
    explains why this does not matter where the weights are equal.

    Args:
        vectors: (n, d) float32 of unit norm, n ≥ 2. Not modified.
        min_samples: a vector's core distance is the distance to its neighbour of this rank, from 1 to n − 1; the vector
            itself does not count.
        threads: number of threads that compute.
        nearest: a function that finds neighbours, for example on a GPU. Default: one that uses ``threads`` CPU threads.
        backend: name of the backend that ``nearest`` uses.

    O(n² · d) time: one all-pairs product, and rarely more than 10 % of another. O(n · d) memory: three times the size
    of the vectors, plus 5 kB per vector and 40 MB per thread.
    """
    with quiet_blas():
        k = min(max(NEIGHBOURS, min_samples + 1), len(vectors) - 1)
        chunks = Chunks.of(vectors)
        found = nearest(vectors, chunks, k) if nearest else nearest_rows(vectors, chunks, k, threads=threads)
        rows = np.arange(len(vectors))
        nearest_ones, distances = nearest_exactly(vectors, rows, found, min_samples, threads=threads)
        core = found.similarity[:, min_samples - 1].copy()
        edges = _Boruvka(vectors, core, chunks, found).run()
        lengths = distances_between(vectors, edges[:, 0], edges[:, 1])
    return SpanningTree(nearest_ones, distances, edges, lengths, backend)


def distances_between(vectors: FloatMatrix, rows: Rows, others: Rows | int) -> DoubleVector:
    """Return the (m,) float64 Euclidean distances of pairs of rows. The order in a pair does not affect any bit."""
    others = np.broadcast_to(others, rows.shape)
    distances = np.empty(len(rows))
    for start in range(0, len(rows), _PAIRS):
        block = slice(start, start + _PAIRS)
        apart = vectors[rows[block]].astype(np.float64) - vectors[others[block]]
        distances[block] = np.sqrt(np.einsum("ij,ij->i", apart, apart))
    return distances


class _Boruvka:
    """Borůvka's algorithm on similarities: the best edge is the most similar one."""

    def __init__(self, vectors: FloatMatrix, core: FloatVector, chunks: Chunks, nearest: Nearest) -> None:
        """
        Args:
            vectors: (n, d) float32 of unit norm.
            core: (n,) similarity of each row to the neighbour that determines its core distance.
            chunks, nearest: the results of the all-pairs product.
        """
        n = len(vectors)
        self._vectors, self._core, self._chunks, self._nearest = vectors, core, chunks, nearest
        self._reachability = np.minimum(np.minimum(nearest.similarity, core[:, None]), core[nearest.rows])
        # the highest similarity that a row may have to rows that are not in its list and that it was not compared with;
        # no edge of a row is better than the row's similarity in ``core``
        self._horizon = np.minimum(nearest.similarity[:, -1], core)
        # the best edge that a comparison found, and the row at its other end: stale once both are in one component
        self._found, self._found_with = np.full(n, NEVER), np.zeros(n, dtype=np.intp)
        self._component: Rows = np.arange(n)
        self._n_components = n

    def run(self) -> Rows:
        """Return the tree's edges as (n − 1, 2) rows, the smaller row first."""
        edges = []
        while self._n_components > 1:
            best, best_with = self._best_known()
            self._look_farther(best, best_with)
            edges.append(self._join(best, best_with))
        return np.concatenate(edges)

    def _best_known(self) -> tuple[FloatVector, Rows]:
        """Return, for each vector, the best known edge out of its component and the row it leads to."""
        component, listed = self._component, self._nearest.rows
        known, at = np.where(component[listed] != component[:, None], self._reachability, NEVER), np.arange(len(listed))
        nearest = known.argmax(axis=1)
        best, best_with = known[at, nearest], listed[at, nearest]
        is_better = self._is_fresh() & (self._found > best)
        best[is_better], best_with[is_better] = self._found[is_better], self._found_with[is_better]
        return best, best_with

    def _is_fresh(self) -> BoolVector:
        is_fresh: BoolVector = (self._found > NEVER) & (self._component[self._found_with] != self._component)
        return is_fresh

    def _reached(self, best: FloatVector) -> FloatVector:
        """Return, for each component, the best of the ``best`` edges of its rows."""
        reached = np.full(self._n_components, NEVER)
        np.maximum.at(reached, self._component, best)
        return reached

    def _look_farther(self, best: FloatVector, best_with: Rows) -> None:
        """Update ``best`` and ``best_with`` in place with better edges that the neighbour lists lack.

        The similarity to the most similar vector of each chunk is known. If the chunk contains no row of the component,
        the component has an edge at least that good. A chunk whose most similar vector is worse than the best of these
        edges cannot hold a better one.
        """
        component, chunks, most = self._component, self._chunks, self._nearest.most
        reached = self._reached(best)
        is_exact = self._is_fresh() & (self._found >= self._horizon)
        unsure = np.flatnonzero((self._horizon > reached[component]) & ~is_exact)
        if not len(unsure):
            return
        # sorted by component, because rows of one component are compared with the same chunks
        unsure = unsure[np.argsort(component[unsure], kind="stable")]
        of_columns, core_of_columns = component[chunks.rows], self._core[chunks.rows]
        is_of_one = (of_columns == of_columns[0]).all(axis=0)
        least_core, holds = core_of_columns.min(axis=0), np.zeros((self._n_components, len(is_of_one)), dtype=np.bool_)
        holds[of_columns, np.arange(len(is_of_one))] = True
        holds_all = holds & is_of_one

        for start in range(0, len(unsure), _ROWS):
            rows = unsure[start : start + _ROWS]
            bound = np.minimum(most[rows], least_core)
            np.putmask(bound, holds[component[rows]], NEVER)
            outside = np.minimum(bound.max(axis=1), self._core[rows])
            np.maximum.at(reached, component[rows], outside - ROUNDING)

        for start in range(0, len(unsure), _ROWS):
            rows = unsure[start : start + _ROWS]
            of = component[rows]
            limit = reached[of]
            may_hide = most[rows] >= limit[:, None] - ROUNDING
            may_hide &= ~holds_all[of]
            candidates = np.flatnonzero(may_hide.any(axis=0))
            if not len(candidates):
                self._horizon[rows] = limit
                continue
            columns = chunks.columns.take(candidates, axis=1)
            similarity = self._vectors[rows] @ columns.reshape(-1, columns.shape[2]).T
            np.minimum(similarity, core_of_columns.take(candidates, axis=1).ravel(), out=similarity)
            np.putmask(similarity, of_columns.take(candidates, axis=1).ravel() == of[:, None], NEVER)
            nearest = similarity.argmax(axis=1)
            found = np.minimum(similarity[np.arange(len(rows)), nearest], self._core[rows])
            found_with = chunks.rows.take(candidates, axis=1).ravel()[nearest]
            self._found[rows], self._found_with[rows] = found, found_with
            self._horizon[rows] = np.maximum(found, limit)
            is_better = found > best[rows]
            best[rows[is_better]], best_with[rows[is_better]] = found[is_better], found_with[is_better]

    def _join(self, best: FloatVector, best_with: Rows) -> Rows:
        """Join components along their best edges, and return the edges that did not close a cycle.

        Equally good edges can form cycles, so each component contributes one best edge only: with two in one round, the
        second could connect components that a better edge should connect later.
        """
        chosen = np.flatnonzero(best >= self._reached(best)[self._component])
        edges = np.sort(np.stack([chosen, best_with[chosen]], axis=1), axis=1)
        order = np.lexsort((edges[:, 1], edges[:, 0], -best[chosen]))
        _, of_each = np.unique(self._component[chosen][order], return_index=True)
        edges = edges[order][np.sort(of_each)]
        edges = edges[forest(self._n_components, self._component[edges])]
        self._n_components, becomes = components(self._n_components, self._component[edges])
        self._component = becomes[self._component]
        return edges


def nearest_exactly(
    vectors: FloatMatrix, rows: Rows, found: Nearest, k: int, *, threads: int
) -> tuple[Rows, DoubleMatrix]:
    """Return the k nearest of each row's ``found`` rows, as (m, k), and their float64 distances.

    Ties in float32 are resolved exactly.
    """
    nearest, distances = found.rows[:, :k].copy(), np.empty((len(rows), k))

    def fill(start: int) -> None:
        block = slice(start, start + _MOST_ROWS)
        of_block, candidates = rows[block], nearest[block]
        far = distances_between(vectors, np.repeat(of_block, k), candidates.ravel()).reshape(-1, k)
        if k < found.rows.shape[1]:
            similarity = found.similarity[block]
            for at in np.flatnonzero(similarity[:, k - 1] - similarity[:, k] < 2 * ROUNDING).tolist():
                close = found.rows[start + at, similarity[at] >= similarity[at, k - 1] - 2 * ROUNDING]
                apart = distances_between(vectors, close, int(of_block[at]))
                chosen = np.lexsort((close, apart))[:k]
                candidates[at], far[at] = close[chosen], apart[chosen]
        order = np.lexsort((candidates, far), axis=1)
        nearest[block], distances[block] = (
            np.take_along_axis(candidates, order, axis=1),
            np.take_along_axis(far, order, axis=1),
        )

    for _ in spread(fill, range(0, len(rows), _MOST_ROWS), threads=threads):
        pass
    return nearest, distances
