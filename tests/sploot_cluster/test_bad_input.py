"""Tests of unusual input: a matrix of vectors gets labels, anything else an error that names the problem."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sploot_cluster.density import cluster_densely
from sploot_cluster.errors import InvalidInput
from sploot_cluster.pet.models import MediaId, PetId
from sploot_cluster.service import ClusterService
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.store.memory import MemoryPetStore
from tests.sploot_cluster.states import looks

GOOD = looks(10, 10)


def with_row(row: int, value: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    x = GOOD.copy()
    x[row] = value
    return x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.array([["a", "b"], ["c", "d"]]), "x: expected a numeric dtype, got <U1"),
        (GOOD.astype(complex), "x: expected a numeric dtype, got complex128"),
        (np.array([[True, False]]), "x: expected a numeric dtype, got bool"),
        (np.array([[object(), object()]]), "x: expected a numeric dtype, got object"),
        (GOOD[0], r"x: expected shape \(n, d\), got \(8,\)"),
        (GOOD[None], r"x: expected shape \(n, d\), got \(1, 20, 8\)"),
        (np.empty((5, 0)), r"x: expected shape \(n, d\), got \(5, 0\)"),
        (with_row(3, np.nan), "x: row 3 contains NaN or infinite values"),
        (with_row(4, np.inf), "x: row 4 contains NaN or infinite values"),
        (with_row(5, 0), "x: row 5 is a zero vector"),
    ],
)
def test_input_that_is_not_a_matrix_of_vectors_is_refused(x: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{message}"):
        cluster_densely(x)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.uint8])
def test_any_real_dtype_is_accepted(dtype: type[np.generic]) -> None:
    x = np.round(GOOD * 100 + 100).astype(dtype)

    assert cluster_densely(x).labels.tolist() == cluster_densely(x.astype(np.float64)).labels.tolist()


def test_memory_layout_does_not_affect_labels() -> None:
    wide = np.repeat(GOOD, 2, axis=1)

    for x in (np.asfortranarray(GOOD), wide[:, ::2], GOOD[::-1][::-1]):
        np.testing.assert_array_equal(cluster_densely(x).labels, cluster_densely(GOOD).labels)


def test_read_only_vectors_are_accepted_and_not_modified() -> None:
    x = GOOD.copy()
    x.flags.writeable = False

    cluster_densely(x)

    np.testing.assert_array_equal(x, GOOD)


@pytest.mark.parametrize("parameters", [{}, {"min_cluster_size": 2, "min_samples": 1}, {"min_samples": 50}])
@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_few_vectors_get_one_label_each(n: int, parameters: dict[str, Any]) -> None:
    found = cluster_densely(GOOD[:n], **parameters)

    assert (len(found.labels), len(found.probabilities)) == (n, n)
    assert set(found.labels.tolist()) <= {-1, 0}


def test_two_copies_are_noise_and_three_form_a_group() -> None:
    assert cluster_densely(np.ones((2, 4))).labels.tolist() == [-1, -1]
    assert cluster_densely(np.ones((3, 4))).labels.tolist() == [0, 0, 0]


@pytest.mark.parametrize("parameters", [{}, {"min_cluster_size": 5, "min_samples": 3}])
@pytest.mark.parametrize("n", [20, 700, 3_000])
def test_identical_vectors_form_one_group(n: int, parameters: dict[str, Any]) -> None:
    found = cluster_densely(np.ones((n, 16)), **parameters)

    assert set(found.labels.tolist()) == {0}
    assert np.isfinite(found.probabilities).all()


@pytest.mark.parametrize("parameters", [{}, {"min_cluster_size": 5, "min_samples": 3}])
def test_thousands_of_copies_form_one_group_per_original(parameters: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    kinds = rng.normal(size=(4, 32))
    of = rng.permutation(np.repeat(np.arange(4), [1_500, 700, 200, 20]))

    found = cluster_densely(kinds[of], **parameters)

    pairs = found.labels[:, None] == found.labels
    np.testing.assert_array_equal(pairs, of[:, None] == of)
    assert np.isfinite(found.probabilities).all()


def test_many_copies_of_one_item_stay_in_its_group() -> None:
    vectors = looks(60, 60, spread=0.2)
    often = np.concatenate([vectors, np.repeat(vectors[:1], 1_000, axis=0)])

    found = cluster_densely(often)

    assert len(set(found.labels[120:].tolist())) == 1
    assert found.labels[0] == found.labels[120] >= 0


def test_pet_of_copies_stays_one_cluster_as_more_copies_arrive() -> None:
    service = ClusterService(MemoryPetStore(), settings=ClusterSettings(exact_until=1_000))

    for row in range(40):
        service.assign(PetId(1), MediaId(f"m{row}"), model="clip@1", vector=[1.0, 2.0, 3.0])

    (cluster,) = service.clusters(PetId(1)).clusters
    assert cluster.size == 40
