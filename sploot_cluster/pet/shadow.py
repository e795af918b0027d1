"""The shadow of a pet: a second vector space, open while its items are embedded with a candidate model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sploot_cluster.answer_fields import described
from sploot_cluster.pet.models import MediaId, PetId
from sploot_cluster.pet.vectors import FloatVector


@dataclass(frozen=True, slots=True)
class Shadow:
    """The vector space of a candidate model, kept in parallel with the pet's own.

    Attributes:
        model, dim: the model and the dimension of its vectors.
        begun_at, by: when and by whom it was opened.
        vectors: item -> (dim,) float32 of unit norm; empty if the vectors were not loaded.
        n_vectors: number of its vectors.
        was_own: whether the pet used this space before a switch, so that a second switch can return to it.
    """

    model: str
    dim: int
    begun_at: datetime
    by: str
    vectors: Mapping[MediaId, FloatVector]
    n_vectors: int
    was_own: bool = False

    def view(self, *, n_only_here: int) -> CandidateModel:
        """Return the candidate model for callers, without its vectors."""
        return CandidateModel(self.model, self.dim, self.n_vectors, n_only_here, self.begun_at, self.by)


@dataclass(frozen=True, slots=True)
class CandidateModel:
    """A candidate embedding model of a pet, used in parallel with the pet's own."""

    model: str
    dim: int
    n_vectors: int = field(metadata=described("Number of items that have a vector of this model."))
    n_only_here: int = field(metadata=described("Quarantined items, which have no vector of the pet's own model."))
    begun_at: datetime
    by: str


@dataclass(frozen=True, slots=True)
class PetModel:
    """The embedding model of a pet, and the candidate model that runs in parallel."""

    pet_id: PetId
    revision: int
    model: str | None
    dim: int | None
    n_media: int
    candidate: CandidateModel | None
