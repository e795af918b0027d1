"""The exact minimum spanning tree of mutual reachability, from matrix products.

HDBSCAN's hierarchy is the minimum spanning tree of a complete graph whose edge between two vectors weighs their
distance, but no less than the core distance of either (Campello, Moulavi and Sander, 2013). Trees for space do not help
in hundreds of dimensions; matrix products do. Borůvka's algorithm runs on a few nearest neighbours of each vector. A
component's best edge counts only if no edge outside those lists can be better: everything that a vector does not list
is farther than its last neighbour, its *horizon*. Vectors whose horizon is too near to tell are compared with all
others once; what that finds is their horizon from then on, because components only grow.

Similarities are float32, which is what decides between edges; lengths are computed anew in float64. What was computed
once is grown and pruned in ``tree_changes``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from sploot_cluster.models import Backend
from sploot_cluster.threads import spread
from sploot_cluster.vectors import BoolVector, FloatMatrix, FloatVector

Rows = npt.NDArray[np.intp]
DoubleVector = npt.NDArray[np.float64]
DoubleMatrix = npt.NDArray[np.float64]

# (vectors, k) -> (n, k) the k most similar other rows of each row, and their similarity; the most similar first.
Nearest = Callable[[FloatMatrix, int], tuple[Rows, FloatMatrix]]

# Similarities of the same two vectors differ by less than this with the order of summation in float32.
ROUNDING: Final = np.float32(4e-6)

# Twice as many decide more edges without a comparison with all, and cost what they save; measured from 200 to 10k.
_NEIGHBOURS: Final = 16
# Values of one product: large enough for BLAS, which is a quarter faster with 1,024 rows than with 256; small enough
# that two threads take 80 MB, whatever n is.
_BLOCK_VALUES: Final = 8 * 1024 * 1024
_MOST_ROWS: Final = 1_024
# Pairs whose distance is computed at a time.
_PAIRS: Final = 512
# Columns whose maximum is looked at first when the nearest are selected.
_CHUNK: Final = 32
# Below every similarity.
_NEVER: Final = np.float32(-3)


@dataclass(frozen=True, slots=True)
class SpanningTree:
    """A spanning tree of n ≥ 2 vectors, with what it takes to let it grow.

    Attributes:
        neighbours: (n, k) the nearest other rows of each row, nearest first; k is HDBSCAN's min_samples.
        distances: (n, k) float64, how far those are; the last is the row's core distance.
        edges: (n − 1, 2) rows, in no order.
        lengths: (n − 1,) float64 distances between the ends of the edges.
        backend: what found the neighbours.
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
        """(n,) core distances."""
        core: DoubleVector = self.distances[:, -1]
        return core

    @property
    def weights(self) -> DoubleVector:
        """(n − 1,) float64 mutual reachability distances of the edges."""
        weights: DoubleVector = np.maximum(self.lengths, self.core[self.edges].max(axis=1, initial=0.0))
        return weights


def spanning_tree(
    vectors: FloatMatrix,
    min_samples: int,
    *,
    threads: int = 1,
    nearest: Nearest | None = None,
    backend: Backend = "hdbscan_cpu",
) -> SpanningTree:
    """The minimum spanning tree of the mutual reachability graph.

    Of edges whose weights differ by less than float32 tells, either may be in it; see ``density.cluster_densely`` for
    why that does not matter where they are equal.

    Args:
        vectors: (n, d) float32 of unit norm, n ≥ 2. Not modified.
        min_samples: which neighbour's distance is a vector's core distance, not counting itself; 1 to n − 1.
        threads: how many of them compute.
        nearest: who finds neighbours, such as a GPU; these threads by default.
        backend: what that one is called.

    O(n² · d) time: one product of all with all, and another one in all for the vectors whose neighbours do not tell.
    O(n · d) memory, beside 0.5 kB per vector and 40 MB per thread.
    """
    n = len(vectors)
    k = min(max(_NEIGHBOURS, min_samples + 1), n - 1)
    neighbours, similarity = nearest(vectors, k) if nearest else nearest_rows(vectors, k, threads=threads)
    nearest_ones, distances = _nearest_exactly(vectors, neighbours, similarity, min_samples)
    core = similarity[:, min_samples - 1].copy()
    edges = _Boruvka(vectors, neighbours, similarity, core, threads).run()
    lengths = distances_between(vectors, edges[:, 0], edges[:, 1])
    return SpanningTree(nearest_ones, distances, edges, lengths, backend)


def nearest_rows(vectors: FloatMatrix, k: int, *, threads: int = 1) -> tuple[Rows, FloatMatrix]:
    """(n, k) the k most similar other rows of each row, and their similarity; the most similar first. k < n."""
    n = len(vectors)
    rows, similarities = np.empty((n, k), dtype=np.intp), np.empty((n, k), dtype=np.float32)
    size = block_rows(n)

    def fill(start: int) -> None:
        end = min(start + size, n)
        similarity = vectors[start:end] @ vectors.T
        similarity[np.arange(end - start), np.arange(start, end)] = _NEVER
        columns = _largest(similarity, k)
        values = np.take_along_axis(similarity, columns, axis=1)
        order = np.lexsort((columns, -values), axis=1)
        rows[start:end] = np.take_along_axis(columns, order, axis=1)
        similarities[start:end] = np.take_along_axis(values, order, axis=1)

    for _ in spread(fill, range(0, n, size), threads=_useful(threads, n, size)):
        pass
    return rows, similarities


def distances_between(vectors: FloatMatrix, rows: Rows, others: Rows | int) -> DoubleVector:
    """(m,) float64 Euclidean distances of pairs of rows; the same whichever of a pair comes first."""
    others = np.broadcast_to(others, rows.shape)
    distances = np.empty(len(rows))
    for start in range(0, len(rows), _PAIRS):
        block = slice(start, start + _PAIRS)
        apart = vectors[rows[block]].astype(np.float64) - vectors[others[block]]
        distances[block] = np.sqrt(np.einsum("ij,ij->i", apart, apart))
    return distances


def block_rows(n: int) -> int:
    """Rows of one product with n columns."""
    return max(1, min(_MOST_ROWS, _BLOCK_VALUES // n))


def _useful(threads: int, n_rows: int, size: int) -> int:
    return max(1, min(threads, -(-n_rows // size)))


class _Boruvka:
    """Borůvka's algorithm on similarities, where the best edge is the most similar one."""

    def __init__(
        self, vectors: FloatMatrix, neighbours: Rows, similarity: FloatMatrix, core: FloatVector, threads: int
    ) -> None:
        n = len(vectors)
        self._vectors, self._neighbours, self._core, self._threads = vectors, neighbours, core, threads
        self._reachability = np.minimum(np.minimum(similarity, core[:, None]), core[neighbours])
        self._horizon = similarity[:, -1].copy()
        # what a comparison with all found; stale once both ends are in one component
        self._found, self._found_with = np.full(n, _NEVER), np.zeros(n, dtype=np.intp)
        self._component: Rows = np.arange(n)
        self._n_components = n

    def run(self) -> Rows:
        """(n − 1, 2) rows of the tree's edges, the smaller row first."""
        edges = []
        while self._n_components > 1:
            best, best_with = self._best_listed()
            reached = np.full(self._n_components, _NEVER)
            np.maximum.at(reached, self._component, best)
            self._look_farther(best, best_with, reached)
            edges.append(self._join(best, best_with, reached))
        return np.concatenate(edges)

    def _best_listed(self) -> tuple[FloatVector, Rows]:
        """For each vector, the best known edge out of its component, and where it leads."""
        component, rows = self._component, np.arange(len(self._vectors))
        leaves = component[self._neighbours] != component[:, None]
        listed = np.where(leaves, self._reachability, _NEVER)
        nearest = listed.argmax(axis=1)
        best, best_with = listed[rows, nearest], self._neighbours[rows, nearest]
        is_better = self._is_fresh() & (self._found > best)
        best[is_better], best_with[is_better] = self._found[is_better], self._found_with[is_better]
        return best, best_with

    def _is_fresh(self) -> BoolVector:
        is_fresh: BoolVector = (self._found > _NEVER) & (self._component[self._found_with] != self._component)
        return is_fresh

    def _look_farther(self, best: FloatVector, best_with: Rows, reached: FloatVector) -> None:
        """Compare with all those that may hide a better edge than ``reached`` by their component; in place."""
        component = self._component
        is_exact = self._is_fresh() & (self._found >= self._horizon)
        # equal ones too: which of them a thread would skip depends on how far the others are
        unsure = np.flatnonzero((self._horizon >= reached[component]) & ~is_exact)
        if not len(unsure):
            return
        # columns by component, so that a vector's own ones are a slice
        order = np.argsort(component, kind="stable")
        columns, core = np.ascontiguousarray(self._vectors[order]).T, self._core[order]
        first = np.searchsorted(component[order], np.arange(self._n_components + 1))
        # those that may hide most come first: what they find may settle the others
        unsure = unsure[np.argsort(reached[component[unsure]] - self._horizon[unsure], kind="stable")]
        size, lock = block_rows(len(order)) // 4 or 1, Lock()

        def look(start: int) -> None:
            rows = unsure[start : start + size]
            rows = rows[self._horizon[rows] >= reached[component[rows]]]
            if not len(rows):
                return
            similarity = self._vectors[rows] @ columns
            np.minimum(similarity, core, out=similarity)
            of = component[rows]
            for row, (begin, end) in enumerate(zip(first[of].tolist(), first[of + 1].tolist(), strict=True)):
                similarity[row, begin:end] = _NEVER
            nearest = similarity.argmax(axis=1)
            found = np.minimum(similarity[np.arange(len(rows)), nearest], self._core[rows])
            self._found[rows], self._found_with[rows], self._horizon[rows] = found, order[nearest], found
            is_better = found > best[rows]
            best[rows[is_better]], best_with[rows[is_better]] = found[is_better], order[nearest[is_better]]
            with lock:
                np.maximum.at(reached, of, found)

        for _ in spread(look, range(0, len(unsure), size), threads=_useful(self._threads, len(unsure), size)):
            pass

    def _join(self, best: FloatVector, best_with: Rows, reached: FloatVector) -> Rows:
        """Join components along their best edges, and return those that made no circle: of equals some may.

        Each component has one best edge, also where several are equally good: two of them in one round could join
        what a later and better one should.
        """
        chosen = np.flatnonzero(best >= reached[self._component])
        edges = np.sort(np.stack([chosen, best_with[chosen]], axis=1), axis=1)
        order = np.lexsort((edges[:, 1], edges[:, 0], -best[chosen]))
        _, of_each = np.unique(self._component[chosen][order], return_index=True)
        edges = edges[order][np.sort(of_each)]
        between = np.sort(self._component[edges], axis=1)
        _, first = np.unique(between, axis=0, return_index=True)
        first.sort()
        kept = edges[first[forest(self._n_components, between[first])]]
        self._n_components, self._component = joined(self._n_components, between[first], self._component)
        return kept


def forest(n: int, edges: Rows) -> Rows:
    """The positions of the edges, which come by ascending weight, that make up the minimum spanning forest of n nodes.

    ``edges`` are different pairs of different nodes.
    """
    # ranks instead of weights: they differ, and none is zero
    rank = np.arange(1, len(edges) + 1, dtype=np.float64)
    tree = minimum_spanning_tree(csr_array((rank, (edges[:, 0], edges[:, 1])), shape=(n, n)))
    positions: Rows = np.sort(tree.data).astype(np.intp) - 1
    return positions


def joined(n: int, edges: Rows, component: Rows) -> tuple[int, Rows]:
    """How many components n of them become by ``edges`` between them, and which one each row's becomes."""
    ones = np.ones(len(edges), dtype=np.int8)
    n_joined, becomes = connected_components(
        csr_array((ones, (edges[:, 0], edges[:, 1])), shape=(n, n)), directed=False
    )
    return n_joined, becomes.astype(np.intp)[component]


def _nearest_exactly(
    vectors: FloatMatrix, neighbours: Rows, similarity: FloatMatrix, k: int
) -> tuple[Rows, DoubleMatrix]:
    """(n, k) the nearest of the neighbours and their float64 distances, which also decide between similar ones."""
    n = len(vectors)
    rows = np.arange(n)
    nearest, distances = neighbours[:, :k].copy(), np.empty((n, k))
    for column in range(k):
        distances[:, column] = distances_between(vectors, rows, nearest[:, column])
    if k < neighbours.shape[1]:
        for row in np.flatnonzero(similarity[:, k - 1] - similarity[:, k] < 2 * ROUNDING).tolist():
            close = neighbours[row, similarity[row] >= similarity[row, k - 1] - 2 * ROUNDING]
            apart = distances_between(vectors, close, row)
            chosen = np.lexsort((close, apart))[:k]
            nearest[row], distances[row] = close[chosen], apart[chosen]
    order = np.lexsort((nearest, distances), axis=1)
    return np.take_along_axis(nearest, order, axis=1), np.take_along_axis(distances, order, axis=1)


def _largest(values: FloatMatrix, k: int) -> Rows:
    """(m, k) the columns of the k largest values of each row, in no order.

    They lie in the k chunks of columns with the largest maxima, so that most values are only looked at once.
    """
    m, n = values.shape
    n_chunks = n // _CHUNK
    if n_chunks <= 2 * k:
        return np.argpartition(values, n - k, axis=1)[:, n - k :]
    chunks = values[:, : n_chunks * _CHUNK].reshape(m, n_chunks, _CHUNK)
    best = np.argpartition(chunks.max(axis=2), n_chunks - k, axis=1)[:, n_chunks - k :]
    columns = (best[:, :, None] * _CHUNK + np.arange(_CHUNK)).reshape(m, -1)
    rest = np.broadcast_to(np.arange(n_chunks * _CHUNK, n), (m, n - n_chunks * _CHUNK))
    columns = np.concatenate([columns, rest], axis=1)
    among = np.take_along_axis(values, columns, axis=1)
    largest = np.argpartition(among, among.shape[1] - k, axis=1)[:, among.shape[1] - k :]
    return np.take_along_axis(columns, largest, axis=1)
