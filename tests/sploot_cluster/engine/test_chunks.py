"""Chunks, compared with a naive all-pairs product of the vectors."""

from __future__ import annotations

import numpy as np
import pytest

from sploot_cluster.engine.chunks import Chunks, block_rows, nearest_rows
from sploot_cluster.pet.vectors import FloatMatrix, as_vectors
from tests.sploot_cluster.states import looks


def scattered(n: int, dim: int = 16) -> FloatMatrix:
    return as_vectors(np.random.default_rng(n).normal(size=(n, dim)))


SETS = {
    "two": scattered(2),
    "one chunk": scattered(8),
    "one too many": scattered(9),
    "scattered": scattered(701),
    "looks": looks(90, 300, 11, 40, spread=0.2),
    "copies": np.repeat(scattered(5), 100, axis=0),
}


@pytest.fixture(params=list(SETS.values()), ids=list(SETS))
def vectors(request: pytest.FixtureRequest) -> FloatMatrix:
    found: FloatMatrix = request.param
    return found


@pytest.fixture(params=[1_024, 7], ids=["of eight", "of more"])
def chunks(request: pytest.FixtureRequest, vectors: FloatMatrix, monkeypatch: pytest.MonkeyPatch) -> Chunks:
    """The chunks of ``vectors``: once of normal size, and once fewer and larger, as for a large set."""
    monkeypatch.setattr("sploot_cluster.engine.chunks._MOST_CHUNKS", request.param)
    return Chunks.of(vectors)


def test_every_row_is_in_exactly_one_chunk_and_the_last_chunk_is_padded(vectors: FloatMatrix, chunks: Chunks) -> None:
    flat = chunks.rows.ravel()

    assert sorted(np.delete(flat, chunks.fillings).tolist()) == list(range(len(vectors)))
    np.testing.assert_array_equal(flat[chunks.places], np.arange(len(vectors)))
    np.testing.assert_array_equal(flat[chunks.fillings], np.full(len(chunks.fillings), chunks.rows[0, -1]))
    np.testing.assert_array_equal(chunks.columns, vectors[chunks.rows])


@pytest.mark.parametrize("k", [1, 3, 16])
def test_nearest_rows_and_chunk_maxima_match_a_full_comparison(vectors: FloatMatrix, chunks: Chunks, k: int) -> None:
    n, k = len(vectors), min(k, len(vectors) - 1)
    full = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    np.fill_diagonal(full, -3)

    found = nearest_rows(vectors, chunks, k, threads=2)

    np.testing.assert_allclose(found.similarity, -np.sort(-full, axis=1)[:, :k], atol=4e-6)
    np.testing.assert_allclose(found.similarity, np.take_along_axis(full, found.rows, axis=1), atol=4e-6)
    assert all(len(set(row)) == k for row in found.rows.tolist())
    assert (found.rows != np.arange(n)[:, None]).all()
    np.testing.assert_allclose(found.most, full[:, chunks.rows].max(axis=1), atol=4e-6)


def test_similar_vectors_share_chunks() -> None:
    vectors = looks(*[160] * 12, spread=0.05, dim=64)
    order = np.random.default_rng(1).permutation(len(vectors))

    look_of = order[Chunks.of(vectors[order]).rows] // 160

    assert np.mean(look_of == look_of[0]) > 0.9


@pytest.mark.parametrize("n", [1, 2, 200, 512, 513, 1_000, 5_000, 20_000, 100_000, 20_000_000])
def test_size_of_row_blocks_is_limited_and_their_number_is_even(n: int) -> None:
    size = block_rows(n)

    assert 1 <= size <= min(n, 1_024)
    assert size * n <= max(n, 8 * 1024 * 1024)
    assert not 512 < n <= 20_000 or -(-n // size) % 2 == 0
