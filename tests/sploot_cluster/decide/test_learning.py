"""Where a user separated look-alikes, items that no correction names follow the named items that they resemble."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from sploot_cluster import ClusterService
from sploot_cluster.decide.constraints import FREE, RowConstraints, Sides
from sploot_cluster.decide.learning import follow_named
from sploot_cluster.pet.models import ClusterId, MediaId
from sploot_cluster.pet.vectors import FloatMatrix, FloatVector
from sploot_cluster.store.memory import MemoryPetStore
from tests.sploot_cluster.albums import MODEL, PET

DIM = 64


def look_alike(subject: int, number: int) -> FloatVector:
    """Return the vector of an item of one of two subjects that density cannot tell apart."""
    vector = np.random.default_rng([subject, number]).normal(size=DIM)
    vector[0] += 14
    vector[1] += 3.2 * (-1) ** subject
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def item(subject: int, number: int) -> MediaId:
    return MediaId(f"{'ab'[subject]}-{number}")


def take(service: ClusterService, numbers: range) -> None:
    for number in numbers:
        for subject in (0, 1):
            vector = look_alike(subject, number)
            service.assign(PET, item(subject, number), model=MODEL, vector=vector)


def sides_of(service: ClusterService, numbers: range) -> tuple[list[ClusterId | None], list[ClusterId | None]]:
    where = {media: view.cluster_id for view in service.clusters(PET).clusters for media in view.media_ids}
    return tuple([where.get(item(subject, number)) for number in numbers] for subject in (0, 1))  # type: ignore[return-value]


def test_later_items_stay_on_their_side_of_a_split_after_reclusters() -> None:
    service = ClusterService(MemoryPetStore())
    take(service, range(30))
    mixed = service.place(PET, [item(*one) for one in product((0, 1), range(30))], operation_id="0", by="ada").cluster
    assert mixed is not None
    split = service.split(PET, mixed, [item(1, number) for number in range(30)], operation_id="1", by="ada")

    take(service, range(30, 90))
    on_arrival = sides_of(service, range(30, 90))
    first = service.recluster(PET)
    after = sides_of(service, range(30, 90))
    second = service.recluster(PET)

    for subject, side in enumerate((mixed, split.cluster)):
        assert after[subject].count(side) >= on_arrival[subject].count(side) >= 40
        assert after[subject].count((split.cluster, mixed)[subject]) <= 2
    assert first.constraints_kept == first.constraints
    assert second.n_moved == 0


# Rows 0 to 2 and rows 3 to 5 are the named items of two groups that a correction separates. There are three of each, so
# that a threshold can be computed.
NAMED = RowConstraints(
    np.array([0, 0, 0, 1, 1, 1, -1, -1, -1, -1], dtype=np.int32),
    np.zeros(10, dtype=np.bool_),
    [Sides(moved=1), Sides(remaining=1)],
    np.zeros(10, dtype=np.bool_),
)


def at(*angles: float) -> FloatMatrix:
    """Return unit vectors at the given angles in degrees."""
    radians = np.radians(angles)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("angles", "before", "after"),
    [
        # noise within reach joins the more similar side; noise out of reach stays
        ((5, 55, 31, 180), (-1, -1, -1, -1), (0, 1, -1, -1)),
        # an item on the side that it resembles less changes sides
        ((5, 55, 5, 55), (1, 0, 0, 1), (0, 1, 0, 1)),
        # a group joins if half of it is within reach; items out of reach go where the others go
        ((5, 6, 120, 125), (2, 2, 2, 2), (0, 0, 0, 0)),
        # a group stays if less than half of it is within reach
        ((5, 110, 120, 125), (2, 2, 2, 2), (2, 2, 2, 2)),
    ],
)
def test_unnamed_items_follow_the_named_items_that_they_resemble(
    angles: tuple[float, ...], before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    groups = np.array([0, 0, 0, 1, 1, 1, *before], dtype=np.int32)

    vectors, nowhere = at(0, 6, 12, 50, 56, 62, *angles), np.full(10, -1, dtype=np.int32)

    followed = follow_named(groups, vectors, NAMED, before=nowhere)

    assert followed.tolist() == [0, 0, 0, 1, 1, 1, *after]
    assert follow_named(followed, vectors, NAMED, before=followed).tolist() == followed.tolist()


def test_item_within_reach_of_both_sides_stays_in_its_cluster() -> None:
    wide = at(0, 20, 40, 50, 70, 90, 44, 46, 44, 46)
    before = np.array([7, 7, 7, 8, 8, 8, 8, 7, 7, 8], dtype=np.int32)

    followed = follow_named(np.array([0, 0, 0, 1, 1, 1, -1, -1, 0, 1], dtype=np.int32), wide, NAMED, before=before)

    assert followed.tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 0, 1]


def test_items_do_not_move_if_no_correction_separates_clusters() -> None:
    groups = np.array([0, 0, 0, 1, 1, 1, -1, -1, 2, 2], dtype=np.int32)
    free = RowConstraints(NAMED.atoms, NAMED.placed, [FREE, FREE], NAMED.dismissed)

    followed = follow_named(groups, at(0, 6, 12, 50, 56, 62, 5, 55, 5, 6), free, before=groups)

    assert followed.tolist() == groups.tolist()
