"""The assignment problem, compared with scipy's solution."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from sploot_cluster.engine.matching import matching


@pytest.mark.parametrize("seed", range(60))
def test_matching_has_the_same_sum_as_the_solution_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = rng.integers(0, 12, size=2)
    table = rng.integers(0, 12, size=shape) * (rng.random(shape) < rng.random())

    found = matching(table)

    rows, columns = linear_sum_assignment(table, maximize=True)
    assert sum(table[pair] for pair in found) == table[rows, columns].sum()
    assert all(table[pair] for pair in found)
    for side in zip(*found, strict=True):
        assert len(set(side)) == len(side)


def test_matching_maximises_the_sum_and_not_the_largest_value() -> None:
    assert matching(np.array([[5, 4], [4, 0]])) == [(0, 1), (1, 0)]


def test_matching_contains_no_pair_of_value_zero() -> None:
    assert matching(np.array([[0, 3, 0], [0, 2, 0]])) == [(0, 1)]
    assert matching(np.zeros((2, 0), dtype=np.int64)) == []
