"""Switch of a pet to a candidate embedding model.

Vectors of two models are never compared. While a *shadow*, the space of a candidate model, is open, vectors of that
model are stored only there, and the pet keeps using its own model. Items that only the shadow has are quarantined, so
that they are counted. A switch adds them to the pet; if the shadow is ended instead, they stay quarantined. Once every
item of the pet has a vector in the shadow, a preview can compute the clusters in that space, with the same ids and all
corrections. The switch then applies the preview in one step.

The former space then becomes the shadow, so a second switch can return to it until the shadow is ended. Switching back
is always possible: items without a vector in the former space leave their clusters and are quarantined, and their
vectors are kept in the shadow. Corrections that name them stay in the ledger and apply again when the items return.

A preview of a switch is not stored: the switch computes it again and compares the tokens. A stored preview would
consist mostly of the new vectors, and the caller of a switch has the engine installed anyway.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from sploot_cluster.decide.deletion import leave_out, of_aliases
from sploot_cluster.errors import InvalidInput
from sploot_cluster.pet.diff import MovedItem, PetDiff, Snapshot, cluster_or_none, compare
from sploot_cluster.pet.models import NOISE, ClusterId, HistoryEntry, MediaId, Origin, PetState, Reclustered
from sploot_cluster.pet.past import newest, overwritten_by
from sploot_cluster.pet.rows import PetRows, follow
from sploot_cluster.pet.shadow import Shadow
from sploot_cluster.pet.tally import Quarantined
from sploot_cluster.settings import ClusterSettings

if TYPE_CHECKING:
    from sploot_cluster.engine.selection import Density
    from sploot_cluster.pet.whole import PetDump


@dataclass(frozen=True, slots=True)
class Switch:
    """The result of a switch to the space of the shadow.

    Attributes:
        token: identifies the pet, the shadow and the result.
        dump: the pet after the switch.
        diff: the differences; items that only the shadow has count as arrivals.
        result: the report on the switch, in the same form as for a recluster.
        joining: items that only the shadow has; the switch adds them, and a switch back would leave them out.
        left_out: items without a vector in the shadow when switching back; they would be quarantined.
    """

    token: str
    dump: PetDump
    diff: PetDiff
    result: Reclustered
    joining: tuple[MediaId, ...]
    left_out: tuple[MediaId, ...]


def in_shadow(pet: PetDump) -> PetState:
    """Return the pet in the shadow's space before clustering: the pet's items, then those that only the shadow has.

    Raises:
        InvalidInput: no shadow is open, the shadow is empty, or it is not the former space and items lack a vector in
            it.
    """
    return _placed(leave_out(pet, _missing(pet))[0])


def _missing(pet: PetDump) -> list[MediaId]:
    """Return the items of the pet that have no vector in the shadow.

    Raises:
        InvalidInput: for the same reasons as :func:`in_shadow`.
    """
    state, shadow = pet.state, pet.shadow
    if shadow is None:
        raise InvalidInput("pet_id", f"pet {state.pet} has no candidate model", "begin one first")
    missing = [item for item in state.media if item not in shadow.vectors]
    if missing and not shadow.was_own:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise InvalidInput(
            "model",
            f"{len(missing)} of {state.n_media} items of pet {state.pet} have no vector of {shadow.model}: {shown}",
            "ingest them with vectors of that model, or delete them",
        )
    if not shadow.vectors:
        problem = f"no item of pet {state.pet} has a vector of {shadow.model}"
        raise InvalidInput("model", problem, "ingest its items with vectors of that model")
    return missing


def _placed(pet: PetDump) -> PetState:
    """Return the pet with the vectors of its shadow, including items that only the shadow has.

    Every item of the pet must have a vector in the shadow.
    """
    state, shadow = pet.state, pet.shadow
    assert shadow is not None
    new = sorted(shadow.vectors.keys() - state.rows.keys())
    media = [*state.media, *new]
    vectors = np.stack([shadow.vectors[item] for item in media]).astype(np.float32)
    # items that only the shadow has are quarantined, so their times are in the quarantine
    times = np.append(state.occurred_at_ms, [pet.quarantine[item].occurred_at_ms for item in new]).astype(np.int64)
    rows = PetRows(media, vectors, times)
    n = len(media)
    return replace(
        state,
        model=shadow.model,
        dim=shadow.dim,
        media=rows.media(n),
        rows=rows.index(n),
        vectors=rows.vectors(n),
        occurred_at_ms=rows.occurred_at_ms(n),
        labels=np.append(state.labels, np.full(len(new), NOISE)).astype(np.int32),
        origins=np.append(state.origins, np.full(len(new), Origin.NOISE)).astype(np.uint8),
    )


def plan_switch(pet: PetDump, density: Density, *, settings: ClusterSettings, by: str, at: datetime) -> Switch:
    """Return the switch of a pet to the space of its shadow.

    Args:
        density: the density of the state that :func:`in_shadow` returns.

    Raises:
        InvalidInput: for the same reasons as :func:`in_shadow`.
    """
    from sploot_cluster.decide.recluster import plan_recluster

    state, shadow, left_out = pet.state, pet.shadow, _missing(pet)
    assert shadow is not None
    left, led = leave_out(pet, left_out)
    candidate = _placed(left)
    # thresholds of the old space have no meaning in the new one
    bare = replace(
        candidate, clusters={id_: replace(card, threshold=np.inf) for id_, card in candidate.clusters.items()}
    )
    is_settled = np.isin(candidate.origins, (Origin.CORE, Origin.CORRECTED))
    unsettled = replace(bare, origins=np.where(is_settled, Origin.ARRIVED, candidate.origins).astype(np.uint8))
    change, result = plan_recluster(unsettled, density, settings=settings, by=by)
    switched = follow(candidate, change, version="")
    n_old, n = left.state.n_media, switched.n_media
    was = overwritten_by(candidate, change)
    if led:
        was = replace(was or of_aliases(switched.revision, {}), aliases={**(was.aliases if was else {}), **led})
    overwritten, past_from = newest([*left.overwritten, *([was] if was else [])], pet.past_from)
    old = Shadow(
        model=state.model or "",
        dim=state.dim or 0,
        begun_at=at,
        by=by,
        vectors=dict(zip(state.media, state.vectors, strict=True)),
        n_vectors=state.n_media,
        was_own=True,
    )
    quarantine = {item: why for item, why in pet.quarantine.items() if item not in switched.rows}
    quarantine |= {
        item: Quarantined(old.model, old.dim, at, int(state.occurred_at_ms[state.rows[item]])) for item in left_out
    }
    summary = {
        "from": state.model,
        "to": shadow.model,
        "n_moved": result.n_moved,
        "n_joined": n - n_old,
        "n_left_out": len(left_out),
        "constraints": f"{result.constraints_kept} of {result.constraints}",
    }
    after = replace(
        left,
        state=replace(switched, relabelled_at=switched.revision) if left_out else switched,
        arrived=np.append(left.arrived, np.full(n - n_old, switched.revision)).astype(np.uint32),
        overwritten=overwritten,
        past_from=past_from,
        history=(*pet.history, HistoryEntry(switched.revision, "switch", at, by, summary)),
        quarantine=quarantine,
        ingested=n + len(quarantine),
        shadow=old,
    )
    diff = compare(Snapshot.of(left.state), replace(Snapshot.of(switched), revision=None))
    leaving = (MovedItem(item, cluster_or_none(state.labels[state.rows[item]]), None) for item in left_out)
    return Switch(
        _token(pet, switched),
        after,
        replace(diff, moved=(*diff.moved, *leaving)),
        result,
        joining=tuple(switched.media[n_old:]),
        left_out=tuple(left_out),
    )


def _token(pet: PetDump, switched: PetState) -> str:
    content = sha256(f"{pet.state.version} {switched.model}".encode())
    for item in switched.media:
        content.update(item.encode() + b"\0")
    content.update(switched.labels.astype("<i4").tobytes() + switched.origins.tobytes())
    content.update(np.ascontiguousarray(switched.vectors).tobytes())
    return f"{pet.state.revision}-{content.hexdigest()[:20]}"


def cluster_of(state: PetState, media: MediaId) -> ClusterId:
    """Return the cluster of an item in the pet's own space, or NOISE for an item that only the shadow has."""
    row = state.rows.get(media)
    return NOISE if row is None else ClusterId(int(state.labels[row]))
