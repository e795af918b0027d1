"""Where every media item of a pet is counted, once: ingested = clustered + noise + quarantined + dismissed.

*Ingested* counts, one by one, the items that came: those with a row, and those whose vectors are all of another model
or dimension than the pet's. The latter are *quarantined*, by their names, until a vector of the pet's space comes for
them or the pet is switched to the model that has one. The other three are counted from the labels at every commit. So
the two sides agree only if nothing was lost; a commit after which they would not is refused.

The quarantine names ``MAX_QUARANTINED`` items, and besides them all that a second model alone has. An arrival that
finds it full is counted as *overflowed*, outside of the equation: it is not known whether it is the first of its item.
Its event is a dead letter.

An event that is refused at the door, for a field that nobody could use, never was an item: it is a dead letter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np

from sploot_cluster.errors import UnreadablePet
from sploot_cluster.pet.models import NOISE, Change, MediaId, Origin, PetId, PetState

# A producer that was given the wrong model fills this within minutes; more names tell nothing new.
MAX_QUARANTINED: Final = 10_000


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An item whose vector could not be compared with the pet's."""

    model: str
    dim: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Tally:
    """How many items are where, of one pet or of many.

    Attributes:
        overflowed: arrivals that could not be quarantined, because the quarantine was full; no part of ``ingested``.
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
    """The tally of one pet, and what is quarantined of it."""

    tally: Tally
    quarantine: Mapping[MediaId, Quarantined]


@dataclass(frozen=True, slots=True)
class Totals:
    """The tally of all pets.

    Attributes:
        tally: of the pets that can be read.
        unconserved: pets whose tally is not conserved, and those that cannot be read; ascending.
        unreadable: what is damaged of the latter.
    """

    tally: Tally
    n_pets: int
    unconserved: tuple[PetId, ...]
    unreadable: tuple[UnreadablePet, ...] = ()


def counts_after(state: PetState, change: Change) -> tuple[int, int, int]:
    """Clustered, noise and dismissed media of the state that follows; arrivals are counted where they are put. O(n)."""
    labels = state.labels if change.relabelling is None else change.relabelling.labels
    origins = state.origins if change.relabelling is None else change.relabelling.origins
    clustered = int(np.count_nonzero(labels != NOISE)) + sum(arrival.label != NOISE for arrival in change.arrivals)
    dismissed = int(np.count_nonzero((labels == NOISE) & (origins == Origin.DISMISSED)))
    return clustered, len(labels) + len(change.arrivals) - clustered - dismissed, dismissed
