"""Vectors of items that show a few subjects, and helpers that ingest them, for tests of the service."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np

from sploot_cluster import ClusterService
from sploot_cluster.pet.models import Assigned, MediaId, PetId
from sploot_cluster.pet.vectors import FloatVector
from sploot_cluster.store.port import PetStore

PET = PetId(42)
MODEL, DIM = "clip@1", 16


def picture(subject: int, number: int) -> FloatVector:
    """Return an item's vector, which is similar to those of its subject and nearly orthogonal to all others."""
    vector = np.random.default_rng([subject, number]).normal(scale=0.05, size=DIM)
    vector[subject] += 1.0
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def name(subject: int, number: int) -> MediaId:
    return MediaId(f"s{subject}-{number}")


def taken_at(item: MediaId) -> datetime | None:
    """Return the time of an item: the higher its number, the earlier. Every third item has no time."""
    number = int(item.rpartition("-")[2])
    return datetime(2026, 1, 31, 12, tzinfo=UTC) - timedelta(milliseconds=1_001 * number) if number % 3 else None


def take(service: ClusterService, subject: int, numbers: range, *, pet: PetId = PET) -> list[Assigned]:
    """Ingest items of one subject, one after the other."""
    return [
        service.assign(
            pet,
            name(subject, number),
            model=MODEL,
            vector=picture(subject, number),
            occurred_at=taken_at(name(subject, number)),
        )
        for number in numbers
    ]


def grouped(store: PetStore, n_subjects: int, numbers: range) -> ClusterService:
    """Return a service whose pet has the items ``numbers`` of each subject, reclustered into clusters 1, 2, …"""
    service = ClusterService(store)
    for subject in range(n_subjects):
        take(service, subject, numbers)
    service.recluster(PET)
    return service


def two_looks(service: ClusterService) -> None:
    """Give the pet clusters 1 and 2, which show subject 0 in two ways, and four clusters of other subjects."""
    for look, sign in enumerate((1, -1)):
        for number in range(12):
            vector = picture(0, 100 * look + number) + 0.4 * sign * picture(1, number)
            service.assign(PET, name(look, number), model=MODEL, vector=vector)
    for subject in range(10, 14):
        take(service, subject, range(12))
    service.recluster(PET)


def names(subject: int, numbers: range) -> set[MediaId]:
    return {name(subject, number) for number in numbers}
