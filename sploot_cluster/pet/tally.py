"""The tally of items: ingested = clustered + noise + quarantined + dismissed.

*Ingested* is incremented when an item arrives, whether the item gets a row or is quarantined. An item is *quarantined*,
by its id, if none of its vectors has the pet's model and dimension. It leaves the quarantine when a vector of the pet's
space arrives for it, or when the pet is switched to its model. *Clustered*, *noise* and *dismissed* are counted from
the labels at every commit. So the two sides are equal only if no item was lost. A commit that would make them differ is
refused.

The quarantine holds ``MAX_QUARANTINED`` items, plus all items that have a vector only of a candidate model. An arrival
that finds it full is counted as *overflowed*, outside the equation, because it is not known whether its item was
counted before. The event of this arrival becomes a dead letter.

An event that fails validation is not an item and is not counted; it becomes a dead letter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Final

import numpy as np

from sploot_cluster.answer_fields import described
from sploot_cluster.errors import UnreadablePet
from sploot_cluster.pet.models import NOISE, Change, MediaId, Origin, PetId, PetState
from sploot_cluster.pet.times import UNKNOWN, time_of

# Maximum number of items in a pet's quarantine: a producer with the wrong model fills it within minutes, and more ids
# would add no information.
MAX_QUARANTINED: Final = 10_000


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An item whose vector could not be compared with the pet's.

    Attributes:
        at: when it was quarantined.
        occurred_at_ms: the time that the producer stated for it; see ``times``.
    """

    model: str
    dim: int
    at: datetime
    occurred_at_ms: int = UNKNOWN


@dataclass(frozen=True, slots=True)
class Tally:
    """The numbers of items by state, for one pet or for many.

    Attributes:
        overflowed: arrivals that could not be quarantined because the quarantine was full; not part of ``ingested``.
    """

    ingested: int = 0
    clustered: int = 0
    noise: int = 0
    quarantined: int = 0
    dismissed: int = 0
    overflowed: int = 0

    @property
    def is_conserved(self) -> bool:
        return self.ingested == self.clustered + self.noise + self.quarantined + self.dismissed

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.ingested + other.ingested,
            self.clustered + other.clustered,
            self.noise + other.noise,
            self.quarantined + other.quarantined,
            self.dismissed + other.dismissed,
            self.overflowed + other.overflowed,
        )

    def __str__(self) -> str:
        return (
            f"ingested {self.ingested} {'=' if self.is_conserved else '≠'} clustered {self.clustered} + "
            f"noise {self.noise} + quarantined {self.quarantined} + dismissed {self.dismissed}"
            + (f"; {self.overflowed} arrivals found the quarantine full" if self.overflowed else "")
        )


@dataclass(frozen=True, slots=True)
class PetTally:
    """The tally of one pet, and its quarantined items."""

    tally: Tally
    quarantine: Mapping[MediaId, Quarantined]

    def view(self, pet: PetId) -> TallyView:
        """Return the tally for callers."""
        return TallyView(
            pet,
            **asdict(self.tally),
            is_conserved=self.tally.is_conserved,
            quarantine=tuple(
                QuarantinedItem(item, why.model, why.dim, why.at, time_of(why.occurred_at_ms))
                for item, why in sorted(self.quarantine.items())
            ),
        )


@dataclass(frozen=True, slots=True)
class QuarantinedItem:
    """An item in the quarantine of its pet."""

    media_id: MediaId
    model: str
    dim: int
    at: datetime = field(metadata=described("When it was quarantined."))
    occurred_at: datetime | None = field(metadata=described("The time that its producer stated."))


@dataclass(frozen=True, slots=True)
class TallyView:
    """The tally of a pet: every ingested item is counted exactly once."""

    pet_id: PetId
    ingested: int = field(metadata=described("Number of ingested items, counted on arrival."))
    clustered: int
    noise: int
    quarantined: int
    dismissed: int
    overflowed: int = field(
        metadata=described("Arrivals dropped because the quarantine was full; not part of ingested.")
    )
    is_conserved: bool = field(metadata=described("Whether ingested = clustered + noise + quarantined + dismissed."))
    quarantine: tuple[QuarantinedItem, ...] = field(
        metadata=described("Items whose vectors have another model or dimension than the pet's.")
    )


@dataclass(frozen=True, slots=True)
class Totals:
    """The tally of all pets.

    Attributes:
        tally: the tally of all readable pets.
        unconserved: pets whose tally is not conserved, and unreadable pets; ascending.
        unreadable: the errors of the unreadable pets.
        fullest: the pet whose vectors take the most bytes, or None if there is no pet.
        fullness: the size of its vectors, as a share of the maximum size for one pet.
        vector_bytes: the size of all vectors, wherever they are.
        n_cold, cold_bytes: the number of pets whose vectors are in the cold store, and the size of these vectors.
    """

    tally: Tally
    n_pets: int
    unconserved: tuple[PetId, ...]
    unreadable: tuple[UnreadablePet, ...] = ()
    fullest: PetId | None = None
    fullness: float = 0.0
    vector_bytes: int = 0
    n_cold: int = 0
    cold_bytes: int = 0


def counts_after(state: PetState, change: Change) -> tuple[int, int, int]:
    """Return the numbers of clustered, noise and dismissed items after ``change``. O(n)."""
    labels = state.labels if change.relabelling is None else change.relabelling.labels
    origins = state.origins if change.relabelling is None else change.relabelling.origins
    clustered = int(np.count_nonzero(labels != NOISE)) + sum(arrival.label != NOISE for arrival in change.arrivals)
    # an int, because comparing an array with an enum member takes ten times as long
    dismissed = int(np.count_nonzero((labels == NOISE) & (origins == int(Origin.DISMISSED))))
    return clustered, len(labels) + len(change.arrivals) - clustered - dismissed, dismissed
