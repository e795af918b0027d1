"""Where every medium of a pet is counted, once: ingested = clustered + noise + quarantined + dismissed.

*Ingested* counts, one by one, the media that came: those with a row, and those whose vector is of another model or
dimension than the pet's, which are *quarantined*, by their names, until a vector of the pet's space comes for them.
The other three are counted anew from the labels at every commit. So the two sides agree only if nothing was lost; a
commit after which they would not is refused.

An event that is refused at the door, for a field that nobody could use, never was a medium: it is a dead letter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np

from sploot_cluster.models import NOISE, Change, MediaId, PetId, PetState, Standing

# A producer that was given the wrong model fills this within minutes; more names tell nothing new.
MAX_QUARANTINED: Final = 10_000


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A medium whose vector could not be compared with the pet's."""

    model: str
    dim: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Tally:
    """How many media are where, of one pet or of many."""

    ingested: int = 0
    clustered: int = 0
    noise: int = 0
    quarantined: int = 0
    dismissed: int = 0

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
        )

    def __str__(self) -> str:
        return (
            f"ingested {self.ingested} {'=' if self.is_conserved else '≠'} clustered {self.clustered} + "
            f"noise {self.noise} + quarantined {self.quarantined} + dismissed {self.dismissed}"
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
        unconserved: pets whose tally is not conserved, or whose columns do not fit together.
    """

    tally: Tally
    n_pets: int
    unconserved: tuple[PetId, ...]


def counts_after(state: PetState, change: Change) -> tuple[int, int, int]:
    """Clustered, noise and dismissed media of the state that follows; arrivals are counted where they are put. O(n)."""
    labels = state.labels if change.relabelling is None else change.relabelling.labels
    standings = state.standings if change.relabelling is None else change.relabelling.standings
    clustered = int(np.count_nonzero(labels != NOISE)) + sum(arrival.label != NOISE for arrival in change.arrivals)
    dismissed = int(np.count_nonzero((labels == NOISE) & (standings == Standing.DISMISSED)))
    return clustered, len(labels) + len(change.arrivals) - clustered - dismissed, dismissed
