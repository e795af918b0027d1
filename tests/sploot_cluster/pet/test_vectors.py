"""Tests of the validation and normalisation of input arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sploot_cluster.errors import InvalidInput
from sploot_cluster.pet.vectors import as_vector, as_vectors


@given(
    arrays(
        np.float64,
        st.tuples(st.integers(0, 5), st.integers(1, 6)),
        elements=st.floats(1e-6, 1e150) | st.floats(-1e150, -1e-6),
    )
)
def test_rows_get_unit_norm_and_keep_their_direction(x: npt.NDArray[np.float64]) -> None:
    before = x.copy()

    vectors = as_vectors(x)

    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert (np.sign(vectors) * np.sign(x) >= 0).all()
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1, 1e30, 1e150])
def test_scale_does_not_affect_the_direction(scale: float) -> None:
    if scale < 1e-12:
        # vectors of such small numbers lose their direction in float32
        with pytest.raises(InvalidInput, match="zero vector"):
            as_vector(np.array([3, 4]) * scale)
    else:
        np.testing.assert_allclose(as_vector(np.array([3, 4]) * scale), [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "problem"),
    [
        ([["a"]], "numeric dtype"),
        ([[True]], "numeric dtype"),
        ([[1j]], "numeric dtype"),
        ([1.0, 2.0], "expected shape (n, d)"),
        (np.empty((2, 0)), "expected shape (n, d)"),
        ([[1.0, 2.0], [np.nan, 1.0]], "row 1 contains NaN"),
        ([[np.inf, 0.0]], "row 0 contains NaN or infinite"),
        ([[1.0, 2.0], [0.0, 0.0]], "row 1 is a zero vector"),
    ],
)
def test_invalid_matrix_is_refused_with_problem_and_hint(x: npt.ArrayLike, problem: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        as_vectors(x, field="queries")

    assert refused.value.field == "queries"
    assert problem in refused.value.problem
    assert refused.value.hint


def test_as_vector_refuses_a_matrix() -> None:
    with pytest.raises(InvalidInput, match="expected shape \\(d,\\)"):
        as_vector([[1.0, 2.0]])
