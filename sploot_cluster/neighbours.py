"""Exact nearest neighbours by cosine similarity. The only module that imports faiss.

faiss (measured with faiss-cpu 1.15) answers one query over 10,000 × 512 in half a millisecond, and k hardly matters.
Its OpenMP threads are set to one: workers are already as many as cores, and threads of several of them on the same
cores wait for each other. OpenMP keeps that number per thread, so it is set where the search happens, not at import.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from sploot_cluster.vectors import FloatMatrix


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The media nearest to each of n queries, closest first.

    Attributes:
        ids: (n, k) int64 rows, -1 where there are fewer than k.
        similarity: (n, k) float32 cosine similarity, -inf beside -1.
    """

    ids: npt.NDArray[np.int64]
    similarity: FloatMatrix


class NeighbourIndex:
    """Vectors that can be searched, in the order in which they were added; row i is the i-th added.

    Holds its own copy: 4 · dim bytes per vector. May be searched from many threads, changed from one.
    """

    def __init__(self, dim: int) -> None:
        """An empty index for vectors of length ``dim``."""
        self._index = faiss.IndexFlatIP(dim)

    @property
    def n(self) -> int:
        """How many vectors there are."""
        return int(self._index.ntotal)

    def add(self, vectors: FloatMatrix) -> None:
        """Append ``vectors``: (m, dim) float32 of unit norm; see ``vectors.as_vectors``. Not modified."""
        self._index.add(np.ascontiguousarray(vectors))

    def nearest(self, queries: FloatMatrix, k: int) -> Neighbours:
        """The k nearest vectors of each query, closest first. Exact, O(n · dim) per query.

        Args:
            queries: (m, dim) float32 of unit norm. Not modified.
            k: how many, from 1; fewer come back when the index holds fewer, and the rest is filled with -1.
        """
        faiss.omp_set_num_threads(1)
        similarity, ids = self._index.search(np.ascontiguousarray(queries), k)
        similarity[ids < 0] = -np.inf  # faiss fills with the lowest float, which can be taken for a similarity
        return Neighbours(ids, similarity)
