"""The assignment problem: pair rows with columns of a table so that the paired cells have the largest sum.

The nonzero cells of most overlap tables form many small connected parts, so each part is solved separately.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sploot_cluster.engine.graph import components

Table = npt.NDArray[np.int64]
Cost = npt.NDArray[np.float64]


def matching(table: Table) -> list[tuple[int, int]]:
    """Return the (row, column) pairs whose cells have the largest sum, in ascending order.

    Each row and each column is in at most one pair, and no pair has the value 0. If several choices have the largest
    sum, the result is one of them, and always the same. O(k³) for the largest connected part of k rows or columns.

    Args:
        table: values of at least 0.
    """
    n_rows = len(table)
    rows, columns = np.nonzero(table)
    _, part = components(n_rows + table.shape[1], np.stack([rows, n_rows + columns], axis=1))
    pairs = []
    for one in np.unique(part[rows]).tolist():
        of_rows = np.flatnonzero(part[:n_rows] == one)
        of_columns = np.flatnonzero(part[n_rows:] == one)
        values = table[np.ix_(of_rows, of_columns)]
        for row, column in _largest(values):
            if values[row, column]:
                pairs.append((int(of_rows[row]), int(of_columns[column])))
    return sorted(pairs)


def _largest(values: Table) -> list[tuple[int, int]]:
    """Return the pairs with the largest sum. Their number is that of rows or of columns, whichever is smaller."""
    if len(values) > values.shape[1]:
        return [(row, column) for column, row in _largest(values.T)]
    if len(values) == 1:
        return [(0, int(values.argmax()))]
    return [(row, column) for column, row in enumerate(_cheapest(-values.astype(np.float64))) if row >= 0]


def _cheapest(cost: Cost) -> list[int]:
    """Return the row assigned to each column at the lowest total cost, -1 = none. Every row gets a column.

    The Hungarian method with potentials (Kuhn, 1955; Jonker and Volgenant, 1987): rows are added one by one, each along
    a shortest path through the columns that are already assigned.

    Args:
        cost: (n, m) with n ≤ m.
    """
    n, m = cost.shape
    of_row, of_column = np.zeros(n), np.zeros(m)
    owner = np.full(m, -1, dtype=np.intp)
    for start in range(n):
        distance, before = np.full(m, np.inf), np.full(m, -1, dtype=np.intp)
        is_reached = np.zeros(m, dtype=np.bool_)
        row, column, length = start, -1, 0.0
        while row >= 0:
            through = length + cost[row] - of_row[row] - of_column
            is_shorter = ~is_reached & (through < distance)
            distance[is_shorter], before[is_shorter] = through[is_shorter], column
            column = int(np.where(is_reached, np.inf, distance).argmin())
            is_reached[column], length, row = True, float(distance[column]), int(owner[column])
        # the last column on the path is not assigned yet
        passed = is_reached.copy()
        passed[column] = False
        of_row[start] += length
        of_row[owner[passed]] += length - distance[passed]
        of_column[passed] -= length - distance[passed]
        while column >= 0:
            owner[column] = start if before[column] < 0 else owner[before[column]]
            column = int(before[column])
    return owner.tolist()
