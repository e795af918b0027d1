"""Small chunks of similar vectors, and a search for nearest neighbours in one product of all vectors with all.

Building a spanning tree asks two questions about a vector: which vectors are near it, and later, whether any vector
outside its component is nearer than the nearest known one. For the second question it is enough to store the vector's
similarity to the most similar vector of each chunk. Because the vectors of a chunk are similar, nearly all chunks are
too far away or lie within the component. So most of a second product is never computed.

The columns of a product are ordered so that the first vectors of all chunks come first, then all second vectors, and so
on. The maxima per chunk are then maxima over whole rows of memory, which is ten times faster than over adjacent values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from sploot_cluster.pet.vectors import FloatMatrix, FloatVector, Rows
from sploot_cluster.threads import spread

# A value that is lower than every similarity.
NEVER: Final = np.float32(-3)

# Vectors per chunk: smaller chunks rule out more but take more memory. Measured with 8, 16 and 32 on 1,000 to 10,000
# vectors.
_SIZE: Final = 8
# One vector in this many is a pivot; the others are ordered by their most similar pivot.
_OF_MANY: Final = 32
# Maximum number of chunks, which limits the stored maxima to 4 kB per vector, whatever n is.
_MOST_CHUNKS: Final = 1_024
# Values per product: large enough for BLAS, which is a quarter faster with 1,024 rows than with 256; small enough that
# two threads take 80 MB, whatever n is.
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
    def of(cls, vectors: FloatMatrix, order: Rows | None = None) -> Chunks:
        """Return the chunks of (n, d) ``vectors`` of unit norm.

        Args:
            order: all rows, ordered so that similar ones are adjacent; default: computed, in O(n² · d / size).
        """
        n = len(vectors)
        size = max(_SIZE, -(-n // _MOST_CHUNKS))
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
    """The results of one product of all vectors with all.

    Attributes:
        rows: (n, k) the k most similar other rows of each row, the most similar first.
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
    """Return the k nearest other rows of each of (n, d) vectors of unit norm; k < n. O(n² · d)."""
    n, (size, n_chunks) = len(vectors), chunks.rows.shape
    places, similarities = np.empty((n, k), dtype=np.intp), np.empty((n, k), dtype=np.float32)
    most = np.empty((n, n_chunks), dtype=np.float32)
    columns, step = chunks.columns.reshape(size * n_chunks, -1).T, block_rows(n)

    def fill(start: int) -> None:
        block = slice(start, min(start + step, n))
        similarity = vectors[block] @ columns
        similarity[np.arange(len(similarity)), chunks.places[block]] = NEVER
        similarity[:, chunks.fillings] = NEVER
        np.max(similarity.reshape(-1, size, n_chunks), axis=1, out=most[block])
        places[block] = _largest(similarity, most[block], k)
        similarities[block] = np.take_along_axis(similarity, places[block], axis=1)

    for _ in spread(fill, range(0, n, step), threads=threads):
        pass
    return Nearest.of(chunks, places, similarities, most)


@dataclass(frozen=True, slots=True)
class Arrived:
    """The results of one product of m new vectors with all vectors, for the new vectors and for the old ones.

    Attributes:
        nearest: the results for each new vector.
        chunks: the chunks of the new vectors.
        most: (n_old, n_chunks) float32 similarity of each old vector to the most similar vector of each new chunk.
        near: (p, 2) pairs of an old and a new row whose similarity is at least the limit given for the old row.
    """

    nearest: Nearest
    chunks: Chunks
    most: FloatMatrix
    near: Rows


def arrived_rows(vectors: FloatMatrix, chunks: Chunks, k: int, *, least: FloatVector, threads: int = 1) -> Arrived:
    """Compare the last m of n vectors of unit norm with all. O(m · n · d).

    Args:
        chunks: the chunks of all vectors.
        k: number of nearest other rows to find for each new row; k < n.
        least: (n − m,) for each old row, the lowest similarity at which a new row counts as near it.
    """
    n, n_old, (_, n_chunks) = len(vectors), len(least), chunks.rows.shape
    of_new = Chunks.of(vectors[n_old:])
    size, n_of_new = of_new.rows.shape
    places, similarities = np.empty((n - n_old, k), dtype=np.intp), np.empty((n - n_old, k), dtype=np.float32)
    most = np.empty((n - n_old, n_chunks), dtype=np.float32)
    most_of_old = np.empty((n_old, n_of_new), dtype=np.float32)
    columns = chunks.columns.reshape(chunks.rows.size, -1).T
    old_places, old_rows = chunks.places[:n_old], chunks.rows.ravel()
    limit = np.full(chunks.rows.size, np.inf, dtype=np.float32)
    limit[old_places] = least
    step = max(1, block_rows(n) // size)

    def fill(start: int) -> Rows:
        of_block = slice(start, min(start + step, n_of_new))
        rows = of_new.rows[:, of_block].T.ravel()
        similarity = vectors[n_old + rows] @ columns
        similarity[np.arange(len(rows)), chunks.places[n_old + rows]] = NEVER
        similarity[:, chunks.fillings] = NEVER
        by_chunk = similarity.reshape(len(rows), -1, n_chunks).max(axis=1)
        largest = _largest(similarity, by_chunk, k)
        most[rows], places[rows] = by_chunk, largest
        similarities[rows] = np.take_along_axis(similarity, largest, axis=1)
        most_of_old[:, of_block] = similarity.reshape(-1, size, similarity.shape[1]).max(axis=1)[:, old_places].T
        near, near_places = np.divmod(np.flatnonzero(similarity >= limit), len(limit))
        return np.stack([old_rows[near_places], n_old + rows[near]], axis=1)

    found = list(spread(fill, range(0, n_of_new, step), threads=threads))
    near = np.unique(np.concatenate(found), axis=0)  # the row that pads the last chunk may be found several times
    of_new = replace(of_new, rows=n_old + of_new.rows)
    return Arrived(Nearest.of(chunks, places, similarities, most), of_new, most_of_old, near)


def block_rows(n: int) -> int:
    """Return the number of rows per block in the product of n vectors with all.

    The number of blocks is even, so that two threads finish at the same time.
    """
    most = max(1, min(_MOST_ROWS, _BLOCK_VALUES // n))
    return n if n <= _FEW_ROWS else -(-n // (2 * -(-n // (2 * most))))


def alike(vectors: FloatMatrix) -> Rows:
    """Return all (n,) rows, ordered so that similar ones are adjacent.

    Rows are ordered by their most similar pivot; the pivots are ordered in the same way, recursively.
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


def _largest(values: FloatMatrix, most: FloatMatrix, k: int) -> Rows:
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
