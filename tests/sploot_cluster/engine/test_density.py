"""Density clustering of real images, and of shapes that are easy to get wrong."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score

from sploot_cluster.density import cluster_densely
from sploot_cluster.errors import InvalidInput
from sploot_cluster.pet.vectors import as_vectors
from sploot_cluster.settings import ClusterSettings
from tasks.demo.sample import albums
from tests.sploot_cluster.states import looks


def test_groups_are_numbered_by_their_first_row() -> None:
    vectors = looks(20, 30, 25)[::-1]

    found = cluster_densely(vectors)

    assert found.labels.tolist() == [0] * 25 + [1] * 30 + [2] * 20
    assert found.labels.dtype == np.int32
    assert found.probabilities.dtype == np.float32
    assert ((found.probabilities >= 0) & (found.probabilities <= 1)).all()
    assert found.backend == "hdbscan_cpu"


def test_images_of_four_digits_are_separated() -> None:
    digits = load_digits()
    is_chosen = np.isin(digits.target, [0, 1, 4, 6])

    found = cluster_densely(digits.data[is_chosen])

    clustered = found.labels >= 0
    assert adjusted_rand_score(digits.target[is_chosen][clustered], found.labels[clustered]) > 0.8
    assert clustered.mean() > 0.5


# Our groups differ from those of hdbscan only where distances tie, and rounding decides ties. On reordered rows, even
# hdbscan agrees with itself only by at least .949 at 200 rows and .979 at 1,000; at the other sizes it agrees fully.
@pytest.mark.parametrize(
    ("n", "size", "samples", "agreement"),
    [(200, 3, 2, 0.94), (400, 5, 1, 0.99), (1_000, 5, 3, 0.97), (1_797, 8, 1, 0.99)],
)
def test_groups_match_hdbscan(n: int, size: int, samples: int, agreement: float) -> None:
    hdbscan = pytest.importorskip("hdbscan", reason="hdbscan has no wheel for this machine")
    vectors = as_vectors(load_digits().data[:n])

    ours = cluster_densely(vectors, min_cluster_size=size, min_samples=samples)

    theirs = hdbscan.HDBSCAN(
        min_cluster_size=size, min_samples=samples, algorithm="generic", approx_min_span_tree=False
    ).fit(vectors.astype(np.float64))
    assert len(set(theirs.labels_.tolist())) > 5
    assert adjusted_rand_score(theirs.labels_, ours.labels) > agreement
    assert ours.probabilities.mean() == pytest.approx(theirs.probabilities_.mean(), abs=0.02)


def test_row_order_does_not_affect_groups() -> None:
    vectors = as_vectors(load_digits().data[:200])
    found = cluster_densely(vectors)

    for seed in range(5):
        order = np.random.default_rng(seed).permutation(200)
        assert adjusted_rand_score(found.labels[order], cluster_densely(vectors[order]).labels) == 1.0, seed


def test_same_input_gives_same_result() -> None:
    vectors = looks(40, 40, spread=0.3)

    first, second = cluster_densely(vectors), cluster_densely(vectors)

    np.testing.assert_array_equal(first.labels, second.labels)
    np.testing.assert_array_equal(first.probabilities, second.probabilities)


def test_pet_with_one_subject_is_one_group_without_the_outlier() -> None:
    found = cluster_densely(looks(25, 1, spread=0.1))

    assert found.labels[25] == -1
    assert set(found.labels[:25].tolist()) <= {0, -1}
    assert np.count_nonzero(found.labels == 0) >= 22


@pytest.mark.parametrize("common", [0, 1.5, 2.1, 3.0])
def test_component_common_to_all_vectors_does_not_affect_groups(common: float) -> None:
    """A few models give every image nearly the same vector: median similarities are 0, .69, .82 and .90 here."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        subjects = np.repeat(as_vectors(rng.normal(size=(4, 256))), 8, axis=0)
        items = as_vectors(0.75 * subjects + 0.66 * as_vectors(rng.normal(size=(32, 256))))
        vectors = np.concatenate([items, as_vectors(rng.normal(size=(60, 256)))])

        found = cluster_densely(vectors + common * as_vectors(rng.normal(size=(1, 256))))

        assert adjusted_rand_score(np.repeat(range(4), 8), found.labels[:32]) > 0.9, seed
        assert np.count_nonzero(found.labels[32:] < 0) > 30, seed


def test_unrelated_vectors_are_noise() -> None:
    vectors = np.random.default_rng(5).normal(size=(40, 256))

    assert set(cluster_densely(vectors).labels.tolist()) == {-1}


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_vectors_are_noise(n: int) -> None:
    found = cluster_densely(looks(n) if n else np.empty((0, 8), dtype=np.float32))

    assert found.labels.tolist() == [-1] * n
    assert found.probabilities.tolist() == [0] * n


@pytest.mark.parametrize("n", [3, 4, 5, 50, 200])
def test_identical_vectors_form_one_group(n: int) -> None:
    assert cluster_densely(np.ones((n, 4))).labels.tolist() == [0] * n


def test_vector_lengths_do_not_affect_groups() -> None:
    vectors = looks(20, 30)
    lengths = np.random.default_rng(2).uniform(0.1, 50, size=(50, 1))

    np.testing.assert_array_equal(cluster_densely(vectors * lengths).labels, cluster_densely(vectors).labels)


def test_error_for_a_parameter_out_of_range_names_the_parameter() -> None:
    with pytest.raises(InvalidInput, match=r"^min_cluster_size: expected at least 2, got 1"):
        cluster_densely(looks(10), min_cluster_size=1)
    with pytest.raises(InvalidInput, match=r"^min_samples: expected at least 1, got 0"):
        cluster_densely(looks(10), min_samples=0)


def test_recluster_separates_groups_that_plain_stability_merges() -> None:
    """Plain stability favours large groups and merges the five digits of this demo album into one."""
    ziggy = next(album for album in albums() if album.name == "Ziggy")
    plain = cluster_densely(ziggy.vectors, min_cluster_size=12, min_samples=2)

    found = cluster_densely(ziggy.vectors)

    assert np.bincount(plain.labels[plain.labels >= 0]).max() > 400
    assert np.bincount(found.labels[found.labels >= 0]).max() < 200
    clustered = found.labels >= 0
    assert adjusted_rand_score(ziggy.truth[clustered], found.labels[clustered]) > 0.7


def test_small_groups_are_found_without_changing_large_ones() -> None:
    vectors = looks(80, 80, 4, 3, spread=0.05)

    found = cluster_densely(vectors)
    without = cluster_densely(vectors, settings=ClusterSettings(small_group=5))

    assert found.labels.tolist() == [0] * 80 + [1] * 80 + [2] * 4 + [3] * 3
    assert without.labels.tolist() == [0] * 80 + [1] * 80 + [-1] * 7


@pytest.mark.parametrize("size", [4, 6, 11])
@pytest.mark.parametrize("n_groups", [10, 60])
def test_small_groups_that_are_clear_are_not_merged(size: int, n_groups: int) -> None:
    vectors = looks(*[size] * n_groups, dim=64)

    found = cluster_densely(vectors)

    assert found.labels.tolist() == np.repeat(np.arange(n_groups), size).tolist()


def test_no_group_is_smaller_than_min_cluster_size() -> None:
    vectors = looks(20, 6, 20)

    assert len(set(cluster_densely(vectors, min_cluster_size=4, min_samples=2).labels.tolist()) - {-1}) == 3
    found = cluster_densely(vectors, min_cluster_size=10, min_samples=2)

    groups, sizes = np.unique(found.labels[found.labels >= 0], return_counts=True)
    assert groups.tolist() == [0, 1]
    assert sizes.min() >= 10
