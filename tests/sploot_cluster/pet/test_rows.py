"""Tests that rows are only appended and never change."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sploot_cluster.pet.models import MediaId
from sploot_cluster.pet.rows import PetRows
from sploot_cluster.pet.vectors import FloatMatrix


def media(*names: str) -> list[MediaId]:
    return [MediaId(name) for name in names]


def rows_of(n: int, *, first: int = 0) -> FloatMatrix:
    """Return n vectors whose values are their row numbers."""
    return np.repeat(np.arange(first, first + n, dtype=np.float32)[:, None], 3, axis=1)


def test_appended_rows_appear_only_in_longer_views() -> None:
    rows = PetRows(media("a", "b"), rows_of(2))
    before, index = rows.media(2), rows.index(2)

    same = rows.extended(2, media("c", "d"), rows_of(2, first=2))

    assert same is rows
    assert (list(before), list(rows.media(4))) == (["a", "b"], ["a", "b", "c", "d"])
    assert [item in index for item in ("b", "c", "x", 1)] == [True, False, False, False]
    assert (dict(index), dict(rows.index(4))) == ({"a": 0, "b": 1}, {"a": 0, "b": 1, "c": 2, "d": 3})
    assert MediaId("c") not in index
    np.testing.assert_array_equal(rows.vectors(4), rows_of(4))


def test_tentative_vector_does_not_overwrite_an_existing_row() -> None:
    rows = PetRows(media("a", "b"), rows_of(2))
    rows.extended(2, media("c"), rows_of(1, first=2))

    longer = rows.vectors_and(2, np.full(3, 9, dtype=np.float32))

    np.testing.assert_array_equal(longer, np.vstack([rows_of(2), np.full((1, 3), 9)]))
    np.testing.assert_array_equal(rows.vectors(3), rows_of(3))


def test_known_rows_are_not_appended_again() -> None:
    rows = PetRows(media("a", "b", "c"), rows_of(3))

    same = rows.extended(1, media("b", "c", "d"), rows_of(3, first=1))

    assert same is rows
    assert list(rows.media(4)) == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(rows.vectors(4), rows_of(4))


def test_rows_are_copied_if_other_rows_already_follow() -> None:
    rows = PetRows(media("a", "b"), rows_of(2))

    branch = rows.extended(1, media("x", "y"), rows_of(2, first=7))

    assert branch is not rows
    assert list(branch.media(3)) == ["a", "x", "y"]
    assert branch.vectors(3)[:, 0].tolist() == [0, 7, 8]
    assert list(rows.media(2)) == ["a", "b"]
    assert rows.vectors(2)[:, 0].tolist() == [0, 1]


def test_vectors_passed_in_are_never_written_to() -> None:
    mine = rows_of(2)
    rows = PetRows(media("a", "b"), mine)

    rows.extended(2, media("c"), rows_of(1, first=9))
    rows.extended(1, media("x"), rows_of(1, first=8))

    np.testing.assert_array_equal(mine, rows_of(2))


def test_media_view_behaves_as_a_sequence() -> None:
    look = PetRows(media("a", "b", "c", "d"), rows_of(4)).media(3)

    assert (look[0], look[-1], look[1:], look[::-1]) == ("a", "c", ("b", "c"), ("c", "b", "a"))
    assert look == ("a", "b", "c")
    assert look != ["a", "b"]
    assert "d" not in look
    assert repr(look) == "MediaView(['a', 'b', 'c'])"


def test_rows_appended_by_several_threads_are_stored_once() -> None:
    n = 2_000
    rows = PetRows(media("m0"), rows_of(1))

    def catch_up(step: int) -> bool:
        """Append rows, ``step`` at a time, and return whether all were stored after each step."""
        is_whole = True
        for row in range(1, n, step):
            m = min(row + step, n)
            assert rows.extended(row, media(*(f"m{i}" for i in range(row, m))), rows_of(m - row, first=row)) is rows
            is_whole &= rows.vectors(m)[-1, 0] == m - 1 and rows.media(m)[-1] == f"m{m - 1}"
            is_whole &= len(list(rows.index(m))) == m and rows.index(m)[MediaId(f"m{m - 1}")] == m - 1
        return is_whole

    with ThreadPoolExecutor(4) as pool:
        whole = list(pool.map(catch_up, (1, 2, 3, 7)))

    assert whole == [True] * 4
    assert list(rows.media(n)) == [f"m{i}" for i in range(n)]
    np.testing.assert_array_equal(rows.vectors(n), rows_of(n))


def test_times_are_appended_and_copied_with_the_rows() -> None:
    rows = PetRows(media("a", "b"), rows_of(2), np.array([7, 8]))
    before = rows.occurred_at_ms(2)

    rows.extended(2, media("c"), rows_of(1, first=2), np.array([9]))
    branch = rows.extended(2, media("x"), rows_of(1, first=9))

    assert (before.tolist(), rows.occurred_at_ms(3).tolist()) == ([7, 8], [7, 8, 9])
    assert branch.occurred_at_ms(3).tolist() == [7, 8, 0]
    assert not before.flags.writeable
