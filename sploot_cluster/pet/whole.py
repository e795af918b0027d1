"""All data of a pet as one value, for exports, deletions and model switches."""

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
    """All stored data of a pet.

    Attributes:
        state: including vectors.
        arrived, overwritten: as in ``past.Past``, but ``overwritten`` is oldest first.
        past_from: the oldest revision that can be computed.
        history: oldest first.
        ingested, overflowed: as in ``tally.Tally``.
        shadow: including its vectors, or None if no shadow is open.
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
