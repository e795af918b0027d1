"""The map of a pet: similar items are near each other on it, and corrections do not move points."""

from __future__ import annotations

import numpy as np

from sploot_cluster import ClusterService
from sploot_cluster.pet.models import ClusterId, PetId
from sploot_cluster.store.memory import MemoryPetStore
from tests.sploot_cluster.albums import PET, grouped, take


def test_items_of_one_subject_are_near_each_other_on_the_map() -> None:
    found = grouped(MemoryPetStore(), 3, range(10)).map(PET)

    points = np.array([found.x, found.y]).T
    subject = np.array([int(item[1]) for item in found.media_ids])
    centres = np.array([points[subject == one].mean(axis=0) for one in range(3)])
    nearest = np.linalg.norm(points[:, None] - centres[None], axis=2).argmin(axis=1)
    assert nearest.tolist() == subject.tolist()
    assert ((points >= 0) & (points <= 1)).all()
    assert points.max() == 1


def test_correction_does_not_move_points_on_the_map() -> None:
    service = grouped(MemoryPetStore(), 3, range(10))
    before = service.map(PET)

    service.merge(PET, [ClusterId(1), ClusterId(2)], operation_id="m", by="ada")

    after = service.map(PET)
    assert (after.media_ids, after.x, after.y) == (before.media_ids, before.x, before.y)
    assert after.revision == before.revision + 1


def test_map_shows_an_even_sample_of_a_large_pet_and_can_be_empty() -> None:
    service = ClusterService(MemoryPetStore())
    take(service, 0, range(10))

    sample, one, empty = service.map(PET, limit=4), service.map(PET, limit=2), service.map(PetId(7))

    assert (sample.n_media, sample.media_ids) == (10, ("s0-0", "s0-3", "s0-6", "s0-9"))
    assert one.media_ids == ("s0-0", "s0-9")
    assert (empty.n_media, empty.media_ids) == (0, ())
