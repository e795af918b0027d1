"""Near copies: which items count as one, and how that affects the groups of a recluster."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from sploot_cluster.density import cluster_densely
from sploot_cluster.engine.copies import pictures
from sploot_cluster.engine.spanning_tree import spanning_tree
from sploot_cluster.pet.vectors import FloatMatrix, Rows, as_vectors

DIM = 256


def directions(rng: np.random.Generator, n: int) -> FloatMatrix:
    return as_vectors(rng.normal(size=(n, DIM)))


def album(rng: np.random.Generator, n: int, n_subjects: int) -> tuple[FloatMatrix, Rows]:
    """Return n vectors with a cosine similarity of about .6 to others of their subject, and their subjects."""
    subjects = np.arange(n) % n_subjects
    return as_vectors(0.78 * directions(rng, n_subjects)[subjects] + 0.62 * directions(rng, n)), subjects


def with_bursts(rng: np.random.Generator, vectors: FloatMatrix, rows: int, frames: int) -> FloatMatrix:
    """Return the vectors followed by ``frames`` near copies of each of the first ``rows``, row by row."""
    again = np.repeat(vectors[:rows], frames, axis=0)
    return np.concatenate([vectors, as_vectors(again + 0.08 * directions(rng, len(again)))])


def pictures_of(vectors: FloatMatrix) -> Rows:
    return pictures(spanning_tree(vectors, 2), vectors)


def test_frames_of_a_burst_are_one_picture() -> None:
    rng = np.random.default_rng(1)
    vectors, _ = album(rng, 60, 3)

    found = pictures_of(with_bursts(rng, vectors, 2, 11))

    assert len(set(found.tolist())) == 60
    assert set(found[60:71].tolist()) == {found[0]}
    assert set(found[71:82].tolist()) == {found[1]}


def test_different_items_of_one_subject_are_separate_pictures() -> None:
    vectors, _ = album(np.random.default_rng(2), 60, 3)

    assert sorted(pictures_of(vectors).tolist()) == list(range(60))


def test_each_item_counts_if_all_items_of_a_pet_are_identical() -> None:
    assert sorted(pictures_of(as_vectors(np.ones((20, 4)))).tolist()) == list(range(20))


def test_frames_of_a_video_are_separate_pictures() -> None:
    """Each frame is near the next one, but far from the frame twenty later."""
    angles = np.linspace(0, np.pi, 200)
    video = np.zeros((200, DIM))
    video[:, 0], video[:, 1] = np.cos(angles), np.sin(angles)
    vectors, _ = album(np.random.default_rng(3), 300, 3)

    found = pictures_of(np.concatenate([vectors, as_vectors(video)]))

    assert len(set(found.tolist())) == 500


@pytest.mark.parametrize(("n", "frames"), [(100, 7), (100, 19), (250, 11)])
def test_burst_is_grouped_with_its_subject(n: int, frames: int) -> None:
    rng = np.random.default_rng(4)
    vectors, subjects = album(rng, n, 5)

    found = cluster_densely(with_bursts(rng, vectors, 5, frames))

    expected = np.concatenate([subjects, np.repeat(subjects[:5], frames)])
    assert adjusted_rand_score(expected, found.labels) > 0.95


@pytest.mark.parametrize("times", [2, 3, 5])
def test_few_copies_of_an_unrelated_picture_do_not_form_a_group(times: int) -> None:
    rng = np.random.default_rng(5)
    vectors, _ = album(rng, 120, 3)
    strangers = np.repeat(directions(rng, 10), times, axis=0)

    found = cluster_densely(np.concatenate([vectors, strangers]))

    assert set(found.labels[120:].tolist()) - {-1} <= set(found.labels[:120].tolist())
    assert len(set(found.labels[:120].tolist()) - {-1}) == 3


def test_many_copies_of_an_unrelated_picture_form_a_group() -> None:
    rng = np.random.default_rng(6)
    vectors, _ = album(rng, 120, 3)

    found = cluster_densely(with_bursts(rng, np.concatenate([directions(rng, 1), vectors]), 1, 11))

    series = [0, *range(121, 132)]
    assert set(found.labels[series].tolist()) == {found.labels[0]} != {-1}
    assert np.count_nonzero(found.labels == found.labels[0]) == 12


def test_order_of_rows_does_not_affect_pictures() -> None:
    rng = np.random.default_rng(7)
    vectors, _ = album(rng, 90, 3)
    vectors = with_bursts(rng, vectors, 3, 5)
    names = rng.permutation(len(vectors))
    found = pictures(spanning_tree(vectors, 2), vectors, names)

    order = rng.permutation(len(vectors))
    reordered = pictures(spanning_tree(vectors[order], 2), vectors[order], names[order])

    np.testing.assert_array_equal(found[order][:, None] == found[order], reordered[:, None] == reordered)
