"""The curve of the teaching benchmark. No test asserts how well the engine learns."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality.sets import LabelledSet
from benchmarks.teaching.curve import LEARNERS, OURS, UNTAUGHT, bill, corrections, curve
from sploot_cluster.pet.models import NOISE
from sploot_cluster.pet.vectors import as_vectors


def subjects(*, offset: float, n: int = 60, dim: int = 32) -> LabelledSet:
    """Return items of two subjects in turn; every tenth is a stranger. With a small offset, the subjects look alike."""
    random = np.random.default_rng(5)
    truth = np.where(np.arange(n) % 10 == 9, -1, np.arange(n) % 2).astype(np.int64)
    vectors = random.normal(size=(n, dim))
    vectors[truth >= 0, 0] += 14
    vectors[:, 1] += offset * np.array([1, -1, 0])[truth]
    return LabelledSet("test", "test", as_vectors(vectors), truth)


def test_corrections_are_listed_by_number_of_items_with_their_kind() -> None:
    clusters = np.array([1, 1, 1, 1, 2, 2, 2, NOISE, 1, NOISE])
    truth = np.array([0, 0, 0, 0, 0, 0, 0, 0, 1, -1])

    found = corrections(clusters, truth, np.arange(10))

    assert [(one.kind, one.rows, one.cluster, one.into) for one in found] == [
        ("merge", [4, 5, 6], 2, 1),
        ("attach", [7], NOISE, 1),
        ("begin", [8], 1, None),
    ]


@pytest.mark.slow  # scikit-learn is imported
def test_curve_shows_that_a_learner_profits_from_a_correction() -> None:
    look_alikes = subjects(offset=2.4)

    first, again = curve(look_alikes, steps=(0, 1)), curve(look_alikes, steps=(0, 1))

    assert first == again
    assert {*LEARNERS} < {*first}
    untaught, taught = first["linear discriminant"]
    assert untaught < 0.5 < taught


@pytest.mark.slow  # scikit-learn is imported
def test_clear_subjects_need_no_corrections_and_strangers_are_counted() -> None:
    bills = bill(subjects(offset=12))

    assert bills.keys() == {UNTAUGHT, OURS, *LEARNERS}
    for name in LEARNERS:
        assert (bills[name].n_items, bills[name].corrections.total(), bills[name].strangers) == (30, 0, 3)
