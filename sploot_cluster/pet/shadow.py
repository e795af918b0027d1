"""The shadow of a pet: a second vector space, open while its items are embedded with a candidate model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sploot_cluster.pet.models import MediaId
from sploot_cluster.pet.vectors import FloatVector


@dataclass(frozen=True, slots=True)
class Shadow:
    """The vector space of a candidate model, in parallel with the pet's own.

    Attributes:
        model, dim: model and dimensions of its vectors.
        begun_at, by: when and by whom it was opened.
        vectors: item -> (dim,) float32 of unit norm; empty if the vectors were not loaded.
        n_vectors: number of its vectors.
        was_own: whether the pet used this space before a switch, so that it can be switched back.
    """

    model: str
    dim: int
    begun_at: datetime
    by: str
    vectors: Mapping[MediaId, FloatVector]
    n_vectors: int
    was_own: bool = False
