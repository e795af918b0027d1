"""The second vector space of a pet, open while its items are embedded by a candidate model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sploot_cluster.pet.models import MediaId
from sploot_cluster.pet.vectors import FloatVector


@dataclass(frozen=True, slots=True)
class Shadow:
    """A space that is open beside a pet's own.

    Attributes:
        model, dim: of its vectors.
        begun_at, by: when it was opened, and by whom.
        vectors: item -> (dim,) float32 of unit norm; empty where only the rest is told.
        n_vectors: how many there are.
        was_own: the pet lived in this space before it was switched: it is the way back.
    """

    model: str
    dim: int
    begun_at: datetime
    by: str
    vectors: Mapping[MediaId, FloatVector]
    n_vectors: int
    was_own: bool = False
