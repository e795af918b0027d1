"""A new embedding model beside the old one: a second space of the same pet, and the switch to it.

Vectors of two models are never compared. While a *shadow* is open, what producers send in the new model goes there and
nowhere else; the pet lives on in the old one. When every medium has a vector in the shadow, what the pet would look
like in it can be computed, under the old ids and with every correction, and then be made so in one step. The old space
becomes the shadow then: switching back is switching again, until somebody ends it.

What the switch will make is not kept with its preview but computed again and compared by the token: the new vectors are
most of it, and whoever switches has the engine at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from sploot_cluster.diff import Diff, Snapshot, compare
from sploot_cluster.errors import InvalidInput
from sploot_cluster.models import NOISE, ClusterId, HistoryEntry, MediaId, PetState, Reclustered, Standing
from sploot_cluster.past import newest, overwritten_by
from sploot_cluster.rows import PetRows, follow
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.vectors import FloatVector

if TYPE_CHECKING:
    from sploot_cluster.density import Density
    from sploot_cluster.dumps import PetDump


@dataclass(frozen=True, slots=True)
class Shadow:
    """A space that is open beside a pet's own.

    Attributes:
        model, dim: of its vectors.
        begun_at, by: when it was opened, and by whom.
        vectors: medium -> (dim,) float32 of unit norm; empty where only the rest is told.
        n_vectors: how many there are.
    """

    model: str
    dim: int
    begun_at: datetime
    by: str
    vectors: Mapping[MediaId, FloatVector]
    n_vectors: int


@dataclass(frozen=True, slots=True)
class Switch:
    """What a pet would be in its shadow's space.

    Attributes:
        token: names the pet, the shadow and what becomes of both.
        dump: the pet after the switch.
        diff: media that only the shadow has are arrivals.
        result: as of a recluster.
    """

    token: str
    dump: PetDump
    diff: Diff
    result: Reclustered


def in_shadow(pet: PetDump) -> PetState:
    """The pet in its shadow's space, before it is clustered there: its media, then those that only the shadow has.

    Raises:
        InvalidInput: no shadow is open, or media have no vector in it.
    """
    state, shadow = pet.state, pet.shadow
    if shadow is None:
        raise InvalidInput("pet_id", f"pet {state.pet} has no second model beside {state.model}", "begin one first")
    missing = [medium for medium in state.media if medium not in shadow.vectors]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise InvalidInput(
            "model",
            f"{len(missing)} of {state.n_media} media of pet {state.pet} have no vector of {shadow.model}: {shown}",
            "embed them with it and ingest them, or delete them",
        )
    new = sorted(shadow.vectors.keys() - state.rows.keys())
    media = [*state.media, *new]
    rows = PetRows(media, np.stack([shadow.vectors[medium] for medium in media]).astype(np.float32))
    n = len(media)
    return replace(
        state,
        model=shadow.model,
        dim=shadow.dim,
        media=rows.media(n),
        rows=rows.index(n),
        vectors=rows.vectors(n),
        labels=np.append(state.labels, np.full(len(new), NOISE)).astype(np.int32),
        standings=np.append(state.standings, np.full(len(new), Standing.NOISE)).astype(np.uint8),
    )


def plan_switch(pet: PetDump, density: Density, *, settings: ClusterSettings, by: str, at: datetime) -> Switch:
    """What the pet becomes in its shadow's space; ``density`` is of the vectors of :func:`in_shadow`.

    Raises:
        InvalidInput: as :func:`in_shadow`.
    """
    from sploot_cluster.recluster import plan_recluster

    state, shadow, beside = pet.state, pet.shadow, in_shadow(pet)
    assert shadow is not None
    # thresholds of the old space mean nothing in the new one
    bare = replace(beside, clusters={id_: replace(card, threshold=np.inf) for id_, card in state.clusters.items()})
    is_settled = np.isin(beside.standings, (Standing.CORE, Standing.CORRECTED))
    unsettled = replace(bare, standings=np.where(is_settled, Standing.ARRIVED, beside.standings).astype(np.uint8))
    change, result = plan_recluster(unsettled, density, settings=settings, by=by)
    switched = follow(beside, change, version="")
    n_old, n = state.n_media, switched.n_media
    was = overwritten_by(beside, change)
    overwritten, past_from = newest([*pet.overwritten, *([was] if was else [])], pet.past_from)
    old = Shadow(
        model=state.model or "",
        dim=state.dim or 0,
        begun_at=at,
        by=by,
        vectors=dict(zip(state.media, state.vectors, strict=True)),
        n_vectors=n_old,
    )
    quarantine = {medium: why for medium, why in pet.quarantine.items() if medium not in switched.rows}
    summary = {"from": state.model, "to": shadow.model, "n_moved": result.n_moved, "constraints": result.kept}
    after = replace(
        pet,
        state=switched,
        arrived=np.append(pet.arrived, np.full(n - n_old, switched.revision)).astype(np.uint32),
        overwritten=overwritten,
        past_from=past_from,
        history=(*pet.history, HistoryEntry(switched.revision, "switch", at, by, summary)),
        quarantine=quarantine,
        ingested=n + len(quarantine),
        shadow=old,
    )
    diff = compare(Snapshot.of(state), replace(Snapshot.of(switched), revision=None))
    return Switch(_token(pet, switched), after, diff, result)


def _token(pet: PetDump, switched: PetState) -> str:
    content = sha256(f"{pet.state.version} {switched.model}".encode())
    for medium in switched.media:
        content.update(medium.encode() + b"\0")
    content.update(switched.labels.astype("<i4").tobytes() + switched.standings.tobytes())
    content.update(np.ascontiguousarray(switched.vectors).tobytes())
    return f"{pet.state.revision}-{content.hexdigest()[:20]}"


def cluster_of(state: PetState, media: MediaId) -> ClusterId:
    """Where a medium is in the pet's own space; NOISE for one that only the shadow has."""
    row = state.rows.get(media)
    return NOISE if row is None else ClusterId(int(state.labels[row]))
