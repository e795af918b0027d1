"""Deletion of items from a pet, as if they had never arrived: nothing in the pet names them any more.

Corrections are kept. Each deleted item that they name is replaced by a random stand-in, which contains no information
about it. So two items that were merged only through a third item stay together when the third is deleted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import numpy as np

from sploot_cluster.decide.assignment import let_count, medoid_of, threshold_of, tightened
from sploot_cluster.decide.presentation import locked_in
from sploot_cluster.pet.models import (
    NOISE,
    ClusterCard,
    ClusterId,
    Correction,
    HistoryEntry,
    MediaId,
    Origin,
    PetState,
)
from sploot_cluster.pet.past import Overwritten, newest
from sploot_cluster.pet.rows import PetRows
from sploot_cluster.pet.vectors import BoolVector, LabelVector, OriginVector

if TYPE_CHECKING:
    from sploot_cluster.pet.shadow import Shadow
    from sploot_cluster.pet.whole import PetDump

# Producers cannot send an id with this prefix, because its first character is not printable.
STAND_IN: Final = "\x7fdeleted-"


def without(pet: PetDump, media: Iterable[MediaId], *, by: str, at: datetime) -> PetDump:
    """Return the pet without these items, one revision later; ids that the pet does not have are ignored."""
    gone, revision = set(media), pet.state.revision + 1
    left, led = leave_out(pet, gone)
    entry = HistoryEntry(revision, "delete", at, by, {"n_deleted": pet.state.n_media - left.state.n_media})
    quarantine = {item: why for item, why in pet.quarantine.items() if item not in gone}
    overwritten, past_from = newest([*left.overwritten, *([of_aliases(revision, led)] if led else [])], pet.past_from)
    return replace(
        left,
        state=replace(
            left.state,
            revision=revision,
            ledger=tuple(_unnamed(pet.state.ledger, gone)),
            relabelled_at=revision,
        ),
        overwritten=overwritten,
        past_from=past_from,
        history=(*pet.history, entry),
        quarantine=quarantine,
        ingested=left.state.n_media + len(quarantine),
        shadow=None if pet.shadow is None else _shadow_without(pet.shadow, gone),
    )


def leave_out(pet: PetDump, gone: Collection[MediaId]) -> tuple[PetDump, dict[ClusterId, ClusterId]]:
    """Return the pet without the rows of these items, also in its past, and the aliases that ended as a result.

    Rows keep their order and move up. Clusters that lost items get a new threshold. Empty clusters end, and so do
    aliases of them. The caller has to update the counts and all data that is not stored by row.
    """
    state = pet.state
    keep: BoolVector = np.array([item not in gone for item in state.media], dtype=np.bool_)
    labels, origins = state.labels[keep], let_count(state.labels[keep], state.origins[keep])
    media = [item for item in state.media if item not in gone]
    rows = PetRows(media, state.vectors[keep], state.occurred_at_ms[keep])
    n = int(np.count_nonzero(keep))
    clusters = _cards(state, keep, labels, origins, rows)
    led = {old: now for old, now in state.aliases.items() if now not in clusters}
    left = replace(
        pet,
        state=replace(
            state,
            media=rows.media(n),
            rows=rows.index(n),
            vectors=rows.vectors(n),
            occurred_at_ms=rows.occurred_at_ms(n),
            labels=labels,
            origins=origins,
            clusters=clusters,
            aliases={old: now for old, now in state.aliases.items() if old not in led},
            n_at_recluster=int(np.count_nonzero(keep[: state.n_at_recluster])),
            noise_arrivals=min(state.noise_arrivals, int(np.count_nonzero(labels == NOISE))),
        ),
        arrived=pet.arrived[keep],
        overwritten=tuple(_moved_up(one, keep) for one in pet.overwritten),
    )
    return left, led


def _shadow_without(shadow: Shadow, gone: set[MediaId]) -> Shadow:
    vectors = {item: vector for item, vector in shadow.vectors.items() if item not in gone}
    return replace(shadow, vectors=vectors, n_vectors=len(vectors))


def _cards(
    state: PetState, keep: BoolVector, labels: LabelVector, origins: OriginVector, rows: PetRows
) -> dict[ClusterId, ClusterCard]:
    lost, locked = set(state.labels[~keep].tolist()), locked_in(state)
    new_row = np.cumsum(keep) - 1
    vectors, cards = rows.vectors(len(labels)), {}
    for cluster, card in state.clusters.items():
        members = np.flatnonzero((labels == cluster) & (origins != Origin.ABSORBED))
        if len(members):
            if cluster in lost:
                threshold = threshold_of(vectors[members])
                threshold = tightened(threshold) if cluster in locked else threshold
                cards[cluster] = replace(card, threshold=threshold, medoid=int(members[medoid_of(vectors[members])]))
            else:
                medoid = None if card.medoid is None else int(new_row[card.medoid])
                cards[cluster] = replace(card, medoid=medoid)
    return cards


def _moved_up(one: Overwritten, keep: BoolVector) -> Overwritten:
    stays = keep[one.rows]
    new_row = np.cumsum(keep) - 1
    rows = new_row[one.rows[stays]].astype(np.uint32)
    return replace(one, rows=rows, labels=one.labels[stays], origins=one.origins[stays])


def of_aliases(revision: int, led: Mapping[ClusterId, ClusterId]) -> Overwritten:
    """Return the record of a commit that moves no items but ends aliases; ``led``: alias -> the id it resolved to."""
    nothing = np.empty(0)
    return Overwritten(
        revision, nothing.astype(np.uint32), nothing.astype(np.int32), nothing.astype(np.uint8), aliases=led
    )


def _unnamed(ledger: Sequence[Correction], gone: set[MediaId]) -> Iterable[Correction]:
    stand_in_of: dict[MediaId, MediaId] = {}

    def unnamed(media: Sequence[MediaId]) -> tuple[MediaId, ...]:
        return tuple(
            stand_in_of.setdefault(item, MediaId(f"{STAND_IN}{uuid4().hex}")) if item in gone else item
            for item in media
        )

    return (correction.renamed(unnamed) for correction in ledger)
