"""All of a pet as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sploot_cluster.pet.models import HistoryEntry, MediaId, PetState
from sploot_cluster.pet.past import Overwritten
from sploot_cluster.pet.shadow import Shadow
from sploot_cluster.pet.tally import Quarantined


@dataclass(frozen=True, slots=True)
class PetDump:
    """Everything that is kept of a pet.

    Attributes:
        state: with its vectors.
        arrived, overwritten, past_from: as of ``past.Past``, but the oldest first.
        history: the oldest first.
        ingested, overflowed: as of ``tally.Tally``.
        shadow: with its vectors, if one is open.
    """

    state: PetState
    arrived: npt.NDArray[np.uint32]
    overwritten: tuple[Overwritten, ...]
    past_from: int
    history: tuple[HistoryEntry, ...]
    quarantine: Mapping[MediaId, Quarantined]
    ingested: int
    shadow: Shadow | None = None
    overflowed: int = 0
