"""The exact minimum spanning tree of mutual reachability, from matrix products.

HDBSCAN's hierarchy is the minimum spanning tree of a complete graph whose edge between two vectors weighs their
distance, but no less than the core distance of either (Campello, Moulavi and Sander, 2013). Trees for space do not help
in hundreds of dimensions; matrix products do. Borůvka's algorithm runs on a few nearest neighbours of each vector. A
component's best edge counts only if no edge outside those lists can be better: everything that a vector does not list
is farther than its last neighbour, its *horizon*. Vectors whose horizon is too near to tell are compared with all
others once; what that finds is their horizon from then on, because components only grow.

Similarities are float32, which is what decides between edges; weights are computed anew in float64.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from sploot_cluster.vectors import BoolVector, FloatMatrix, FloatVector

Rows = npt.NDArray[np.intp]
DoubleVector = npt.NDArray[np.float64]

# Twice as many decide more edges without a comparison with all, and cost what they save; measured from 200 to 10k.
_NEIGHBOURS: Final = 16
# Rows of one product: large enough for BLAS, and small enough that 50,000 columns take 50 MB.
_BLOCK: Final = 256
# Columns whose maximum is looked at first when the nearest are selected.
_CHUNK: Final = 32
# Below every similarity.
_NEVER: Final = np.float32(-3)


@dataclass(frozen=True, slots=True)
class SpanningTree:
    """A spanning tree of n vectors by ascending weight.

    Attributes:
        edges: (n − 1, 2) rows, the smaller one first. Edges of equal weight, which core distances make common, are in
            an order in which the largest component grows by the others: any other one would make components that
            begin and end at the same distance, and a hierarchy takes them for clusters.
        weights: (n − 1,) float64 mutual reachability distances, ascending.
    """

    edges: Rows
    weights: DoubleVector


def spanning_tree(vectors: FloatMatrix, min_samples: int) -> SpanningTree:
    """The minimum spanning tree of the mutual reachability graph. Of equally good ones, always the same.

    Args:
        vectors: (n, d) float32 of unit norm, n ≥ 2. Not modified.
        min_samples: which neighbour's distance is a vector's core distance, not counting itself; 1 to n − 1.

    O(n² · d) time: one product of all with all, and another one in all for the vectors whose neighbours do not tell.
    O(n · d) memory, beside 0.5 kB per vector.
    """
    n = len(vectors)
    neighbours, similarity = _nearest(vectors, min(max(_NEIGHBOURS, min_samples), n - 1))
    core_neighbour, core = neighbours[:, min_samples - 1], similarity[:, min_samples - 1].copy()
    edges = _Boruvka(vectors, neighbours, similarity, core).run()

    core_distance = _distances(vectors, np.arange(n), core_neighbour)
    ends = core_distance[edges].max(axis=1)
    weights = np.maximum(ends, _distances(vectors, edges[:, 0], edges[:, 1]))
    order = np.lexsort((edges[:, 1], edges[:, 0], weights))
    order = order[_in_order_of_growth(edges[order], weights[order])]
    return SpanningTree(edges[order], weights[order])


class _Boruvka:
    """Borůvka's algorithm on similarities, where the best edge is the most similar one."""

    def __init__(self, vectors: FloatMatrix, neighbours: Rows, similarity: FloatMatrix, core: FloatVector) -> None:
        n = len(vectors)
        self._vectors, self._neighbours, self._core = vectors, neighbours, core
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
        unsure = np.flatnonzero((self._horizon > reached[component]) & ~is_exact)
        if not len(unsure):
            return
        # columns by component, so that a vector's own ones are a slice
        order = np.argsort(component, kind="stable")
        columns, core = np.ascontiguousarray(self._vectors[order]).T, self._core[order]
        first = np.searchsorted(component[order], np.arange(self._n_components + 1))
        buffer = np.empty((_BLOCK, len(order)), dtype=np.float32)
        while len(unsure):
            # those that may hide most come first: what they find may settle the others
            unsure = unsure[np.argsort(reached[component[unsure]] - self._horizon[unsure], kind="stable")]
            rows, unsure = unsure[:_BLOCK], unsure[_BLOCK:]
            similarity = np.matmul(self._vectors[rows], columns, out=buffer[: len(rows)])
            np.minimum(similarity, core, out=similarity)
            of = component[rows]
            for row, (start, end) in enumerate(zip(first[of].tolist(), first[of + 1].tolist(), strict=True)):
                similarity[row, start:end] = _NEVER
            nearest = similarity.argmax(axis=1)
            found = np.minimum(similarity[np.arange(len(rows)), nearest], self._core[rows])
            self._found[rows], self._found_with[rows], self._horizon[rows] = found, order[nearest], found
            is_better = found > best[rows]
            best[rows[is_better]], best_with[rows[is_better]] = found[is_better], order[nearest[is_better]]
            np.maximum.at(reached, of, found)
            unsure = unsure[self._horizon[unsure] > reached[component[unsure]]]

    def _join(self, best: FloatVector, best_with: Rows, reached: FloatVector) -> Rows:
        """Join components along their best edges, and return those that made no circle: of equals some may."""
        chosen = np.flatnonzero(best >= reached[self._component])
        edges = np.sort(np.stack([chosen, best_with[chosen]], axis=1), axis=1)
        edges = edges[np.lexsort((edges[:, 1], edges[:, 0], -best[chosen]))]
        between = np.sort(self._component[edges], axis=1)
        _, first = np.unique(between, axis=0, return_index=True)
        first.sort()
        # ranks instead of weights: they differ, and none is zero
        rank = np.arange(1, len(first) + 1, dtype=np.float64)
        shape = (self._n_components, self._n_components)
        forest = minimum_spanning_tree(csr_array((rank, (between[first, 0], between[first, 1])), shape=shape))
        self._n_components, joined = connected_components(forest, directed=False)
        self._component = joined.astype(np.intp)[self._component]
        kept: Rows = edges[first[forest.data.astype(np.intp) - 1]]
        return kept


def _nearest(vectors: FloatMatrix, k: int) -> tuple[Rows, FloatMatrix]:
    """(n, k) the k most similar other rows of each row, and their similarity; the most similar first."""
    n = len(vectors)
    rows, similarities = np.empty((n, k), dtype=np.intp), np.empty((n, k), dtype=np.float32)
    buffer = np.empty((_BLOCK, n), dtype=np.float32)
    for start in range(0, n, _BLOCK):
        end = min(start + _BLOCK, n)
        similarity = np.matmul(vectors[start:end], vectors.T, out=buffer[: end - start])
        similarity[np.arange(end - start), np.arange(start, end)] = _NEVER
        columns = _largest(similarity, k)
        values = np.take_along_axis(similarity, columns, axis=1)
        order = np.lexsort((columns, -values), axis=1)
        rows[start:end] = np.take_along_axis(columns, order, axis=1)
        similarities[start:end] = np.take_along_axis(values, order, axis=1)
    return rows, similarities


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


def _distances(vectors: FloatMatrix, rows: Rows, others: Rows) -> DoubleVector:
    """(m,) float64 Euclidean distances of pairs of rows."""
    distances = np.empty(len(rows))
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        apart = vectors[rows[block]].astype(np.float64) - vectors[others[block]]
        distances[block] = np.sqrt(np.einsum("ij,ij->i", apart, apart))
    return distances


def _in_order_of_growth(edges: Rows, weights: DoubleVector) -> list[int]:
    """The positions of edges by weight, those of equal weight outwards from the largest component that they touch."""
    n_rows = len(edges) + 1
    parent, size = list(range(n_rows)), [1] * n_rows

    def find(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    ends = edges.tolist()
    bounds = [0, *(np.flatnonzero(np.diff(weights)) + 1).tolist(), len(ends)]
    order: list[int] = []
    for start, end in pairwise(bounds):
        if end - start == 1:
            order.append(start)
        else:
            touching: dict[int, list[tuple[int, int]]] = defaultdict(list)
            for position in range(start, end):
                one, other = (find(row) for row in ends[position])
                touching[one].append((position, other))
                touching[other].append((position, one))
            seen: set[int] = set()
            for largest in sorted(touching, key=lambda component: (-size[component], component)):
                grown = deque([] if largest in seen else [largest])
                seen.add(largest)
                while grown:
                    for position, component in touching[grown.popleft()]:
                        if component not in seen:
                            seen.add(component)
                            order.append(position)
                            grown.append(component)
        for position in range(start, end):
            one, other = (find(row) for row in ends[position])
            one, other = (one, other) if (size[one], -one) >= (size[other], -other) else (other, one)
            parent[other] = one
            size[one] += size[other]
    return order
