"""Validation and normalisation of input arrays: checked once here, trusted everywhere else.

A validated matrix is C-contiguous float32 with rows of unit norm, and only its creator writes to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sploot_cluster.errors import InvalidInput
from sploot_cluster.limits import SMALLEST_NORM

FloatMatrix = npt.NDArray[np.float32]
FloatVector = npt.NDArray[np.float32]
LabelVector = npt.NDArray[np.int32]
OriginVector = npt.NDArray[np.uint8]
# Milliseconds since the epoch; see ``times``.
TimeVector = npt.NDArray[np.int64]
# Row numbers.
Rows = npt.NDArray[np.intp]
BoolVector = npt.NDArray[np.bool_]


def as_vectors(x: npt.ArrayLike, *, field: str = "embedding") -> FloatMatrix:
    """Return a validated copy of ``x`` with rows of unit norm.

    Args:
        x: (n, d) real numbers, n ≥ 0, d ≥ 1. Not modified.
        field: the caller's name for ``x``, used in errors.

    Returns:
        (n, d) float32, C-contiguous, each row of Euclidean norm 1.

    Raises:
        InvalidInput: ``x`` is not numeric, not two-dimensional or not finite, or has a row of zeros. The error names
            the first such row.
    """
    array: npt.NDArray[Any] = np.asarray(x)
    if array.dtype.kind not in "fiu":
        raise InvalidInput(field, f"expected a numeric dtype, got {array.dtype}", "send real numbers")
    if array.ndim != 2 or array.shape[1] == 0:
        raise InvalidInput(field, f"expected shape (n, d), got {array.shape}", "send a matrix with one row per item")
    # float64, so that 1e38 squared does not overflow and 1e-30 squared does not vanish
    wide = array.astype(np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    finite = np.isfinite(norms)
    if not finite.all():
        row = int(np.argmin(finite))
        raise InvalidInput(field, f"row {row} contains NaN or infinite values", "send finite numbers")
    if norms.size and norms.min() <= SMALLEST_NORM:
        row = int(np.argmin(norms))
        raise InvalidInput(field, f"row {row} is a zero vector", "a zero vector has no direction; embed the item again")
    wide /= norms[:, None]
    return np.ascontiguousarray(wide, dtype=np.float32)


def as_vector(x: npt.ArrayLike, *, field: str = "embedding") -> FloatVector:
    """Return ``x`` as a validated (d,) float32 unit vector. Raises the same errors as :func:`as_vectors`."""
    array = np.asarray(x)
    if array.ndim != 1:
        raise InvalidInput(field, f"expected shape (d,), got {array.shape}", "send one list of numbers")
    if array.dtype.kind == "f" and len(array):
        # fast path for nearly every arrival, without the checks for matrices
        wide = array.astype(np.float64)
        norm = math.sqrt(float(np.einsum("i,i->", wide, wide)))
        if SMALLEST_NORM < norm < math.inf:
            unit: FloatVector = (wide / norm).astype(np.float32)
            return unit
    row: FloatVector = as_vectors(array[None, :], field=field)[0]
    return row


def as_vector_each(xs: Sequence[npt.ArrayLike]) -> list[FloatVector | None]:
    """Return :func:`as_vector` of each of ``xs``, or None where it would raise. Faster than separate calls."""
    arrays = [np.asarray(x) for x in xs]
    vectors: list[FloatVector | None] = [None] * len(arrays)
    by_length: dict[int, list[int]] = {}
    for at, array in enumerate(arrays):
        if array.ndim == 1 and array.dtype.kind in "fiu" and len(array):
            by_length.setdefault(len(array), []).append(at)
    for places in by_length.values():
        wide = np.array([arrays[at] for at in places], dtype=np.float64)
        norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
        is_usable = (norms > SMALLEST_NORM) & np.isfinite(norms)
        norms[~is_usable] = 1.0
        wide /= norms[:, None]
        unit = wide.astype(np.float32)
        for row, at in enumerate(places):
            if is_usable[row]:
                vectors[at] = unit[row]
    return vectors
