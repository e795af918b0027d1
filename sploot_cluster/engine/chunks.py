"""Small chunks of similar vectors, and a search for nearest neighbours in one all-pairs product.

Building a spanning tree asks two questions about a vector: which vectors are near it, and later, whether any vector
outside its component is nearer than the nearest known one. For the second question it is enough to store the vector's
similarity to the most similar vector of each chunk. Because the vectors of a chunk are similar, nearly all chunks are
too far away or lie within the component. So most of a second product is never computed.

The columns of a product are ordered so that the first vectors of all chunks come first, then all second vectors, and so
on. The maxima per chunk are then maxima over whole rows of memory, which is ten times faster than over adjacent values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from sploot_cluster.pet.vectors import FloatMatrix, Rows
from sploot_cluster.threads import spread

# A value that is lower than every similarity.
NEVER: Final = np.float32(-3)

# Number of vectors per chunk: smaller chunks rule out more but take more memory. Measured with 8, 16 and 32 on 1,000 to
# 10,000 vectors.
_SIZE: Final = 8
# One in 32 vectors is a pivot. The others are ordered by their most similar pivot.
_OF_MANY: Final = 32
# Maximum number of chunks, which limits the stored maxima to 4 kB per vector, whatever n is.
_MOST_CHUNKS: Final = 1_024
# Number of values per product: large enough for BLAS, which is a quarter faster with 1,024 rows than with 256, and
# small enough that two threads take 80 MB, whatever n is.
_BLOCK_VALUES: Final = 8 * 1024 * 1024
_MOST_ROWS: Final = 1_024
_FEW_ROWS: Final = 512


@dataclass(frozen=True, slots=True)
class Chunks:
    """A partition of n vectors into chunks of equal size.

    Attributes:
        rows: (size, n_chunks) the rows of each chunk. The last chunk is padded with its first row.
        columns: (size, n_chunks, d) the vectors of ``rows``.
        places: (n,) position of each row in the flattened ``rows``.
        fillings: positions of the padding in the flattened ``rows``.
    """

    rows: Rows
    columns: FloatMatrix
    places: Rows
    fillings: Rows

    @classmethod
    def of(cls, vectors: FloatMatrix, order: Rows | None = None, *, more: int = 1) -> Chunks:
        """Return the chunks of (n, d) ``vectors`` of unit norm.

        Args:
            order: all rows, ordered so that similar rows are adjacent. Default: computed in O(n² · d / size).
            more: factor by which to raise the maximum number of chunks, if only some of the rows are compared with
                them.
        """
        n = len(vectors)
        size = max(_SIZE, -(-n // (more * _MOST_CHUNKS)))
        n_chunks = -(-n // size)
        order = alike(vectors) if order is None else order
        filled = np.append(order, np.repeat(order[(n_chunks - 1) * size], n_chunks * size - n))
        rows = np.ascontiguousarray(filled.reshape(n_chunks, size).T)
        numbers = np.arange(n_chunks * size).reshape(size, n_chunks).T.ravel()
        places = np.empty(n, dtype=np.intp)
        places[order] = numbers[:n]
        return cls(rows, vectors[rows], places, numbers[n:])


@dataclass(frozen=True, slots=True)
class Nearest:
    """Each row's nearest rows and its similarity to each chunk, from one all-pairs product.

    Attributes:
        rows: (n, k) the k most similar other rows of each row, most similar first.
        similarity: (n, k) float32 similarities to ``rows``.
        most: (n, n_chunks) float32 similarity to the most similar other row of each chunk.
    """

    rows: Rows
    similarity: FloatMatrix
    most: FloatMatrix

    @classmethod
    def of(cls, chunks: Chunks, places: Rows, similarity: FloatMatrix, most: FloatMatrix) -> Nearest:
        """Build the results from (n, k) positions in the flattened ``chunks.rows``, in any order, and similarities."""
        rows = chunks.rows.ravel()[places]
        order = np.lexsort((rows, -similarity), axis=1)
        return cls(np.take_along_axis(rows, order, axis=1), np.take_along_axis(similarity, order, axis=1), most)


def nearest_rows(vectors: FloatMatrix, chunks: Chunks, k: int, *, threads: int = 1) -> Nearest:
    """Return the k < n nearest other rows of each of (n, d) vectors of unit norm. O(n² · d)."""
    n, n_chunks, step = len(vectors), chunks.rows.shape[1], block_rows(len(vectors))
    places, similarities = np.empty((n, k), dtype=np.intp), np.empty((n, k), dtype=np.float32)
    most = np.empty((n, n_chunks), dtype=np.float32)

    def fill(start: int) -> None:
        block = slice(start, min(start + step, n))
        similarity, most[block] = products(vectors[block], chunks, own=chunks.places[block])
        places[block] = largest_places(similarity, most[block], k)
        similarities[block] = np.take_along_axis(similarity, places[block], axis=1)

    for _ in spread(fill, range(0, n, step), threads=threads):
        pass
    return Nearest.of(chunks, places, similarities, most)


def products(vectors: FloatMatrix, chunks: Chunks, *, own: Rows | None = None) -> tuple[FloatMatrix, FloatMatrix]:
    """Return the similarities of m vectors to all rows of the chunks, and to the most similar row of each chunk.

    Args:
        own: position of each vector in the flattened ``chunks.rows``, if the vectors are rows of the chunks. They are
            then not compared with themselves.

    Returns:
        The (m, size · n_chunks) similarities in the order of the flattened ``chunks.rows``, and the (m, n_chunks)
        highest similarity per chunk.
    """
    size, n_chunks = chunks.rows.shape
    similarity = vectors @ chunks.columns.reshape(size * n_chunks, -1).T
    if own is not None:
        similarity[np.arange(len(similarity)), own] = NEVER
    similarity[:, chunks.fillings] = NEVER
    return similarity, similarity.reshape(-1, size, n_chunks).max(axis=1)


def block_rows(n: int) -> int:
    """Return the number of rows per block in the all-pairs product of n vectors.

    The number of blocks is even, so that two threads finish at the same time.
    """
    most = max(1, min(_MOST_ROWS, _BLOCK_VALUES // n))
    return n if n <= _FEW_ROWS else -(-n // (2 * -(-n // (2 * most))))


def alike(vectors: FloatMatrix) -> Rows:
    """Return the numbers of all (n,) rows, ordered so that similar rows are adjacent.

    Rows are ordered by their most similar pivot. The pivots are ordered in the same way, recursively.
    """
    n = len(vectors)
    if n <= _OF_MANY:
        return np.arange(n)
    few = np.ascontiguousarray(vectors[::_OF_MANY])
    rank = np.empty(len(few), dtype=np.intp)
    rank[alike(few)] = np.arange(len(few))
    nearest, near = np.empty(n, dtype=np.intp), np.empty(n, dtype=np.float32)
    for start in range(0, n, _MOST_ROWS):
        similarity = vectors[start : start + _MOST_ROWS] @ few.T
        nearest[start : start + _MOST_ROWS] = rank[similarity.argmax(axis=1)]
        near[start : start + _MOST_ROWS] = similarity.max(axis=1)
    return np.lexsort((-near, nearest))


def largest_places(values: FloatMatrix, most: FloatMatrix, k: int) -> Rows:
    """Return the (m, k) columns of the k largest values of each row, in any order.

    These values lie in the k chunks with the largest maxima, so most values are read only once.
    """
    n, n_chunks = values.shape[1], most.shape[1]
    if n_chunks <= 2 * k:
        return np.argpartition(values, n - k, axis=1)[:, n - k :]
    best = np.argpartition(most, n_chunks - k, axis=1)[:, None, n_chunks - k :]
    columns = (best + np.arange(0, n, n_chunks)[:, None]).reshape(len(values), -1)
    among = np.take_along_axis(values, columns, axis=1)
    largest = np.argpartition(among, among.shape[1] - k, axis=1)[:, among.shape[1] - k :]
    return np.take_along_axis(columns, largest, axis=1)
