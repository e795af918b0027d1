"""A pet without some of its media, as if they had never come: nothing in it names them any more.

Corrections stay. Where they name a deleted item, a stand-in takes its place that was drawn at random and says nothing
of it: two media that people joined through a third one stay joined when that one is deleted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Final, assert_never
from uuid import uuid4

import numpy as np

from sploot_cluster.decide.assignment import let_count, threshold_of
from sploot_cluster.pet.models import (
    NOISE,
    ClusterCard,
    ClusterId,
    Correction,
    Dismissal,
    Exclusion,
    HistoryEntry,
    MediaId,
    Merge,
    Origin,
    PetState,
    Split,
    Undo,
)
from sploot_cluster.pet.past import Overwritten, newest
from sploot_cluster.pet.rows import PetRows
from sploot_cluster.pet.vectors import BoolVector, LabelVector, OriginVector

if TYPE_CHECKING:
    from sploot_cluster.pet.shadow import Shadow
    from sploot_cluster.pet.whole import PetDump

# No producer's name begins like this: it cannot be printed.
STAND_IN: Final = "\x7fdeleted-"


def without(pet: PetDump, media: Iterable[MediaId], *, by: str, at: datetime) -> PetDump:
    """The pet after these media are deleted, one revision later; those it does not have are no harm."""
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
    """The pet without the rows of these media, now and in its past, and the aliases that lead nowhere without them.

    Rows keep their order and move up. Clusters that lost counting media get another threshold, empty ones end, and so
    does every alias that leads to one. What is counted, and what stands beside the rows, is the caller's to change.
    """
    state = pet.state
    keep: BoolVector = np.array([item not in gone for item in state.media], dtype=np.bool_)
    labels, origins = state.labels[keep], let_count(state.labels[keep], state.origins[keep])
    rows = PetRows([item for item in state.media if item not in gone], state.vectors[keep].copy())
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
    lost = set(state.labels[~keep].tolist())
    vectors, cards = rows.vectors(len(labels)), {}
    for cluster, card in state.clusters.items():
        members = np.flatnonzero((labels == cluster) & (origins != Origin.ABSORBED))
        if len(members):
            cards[cluster] = replace(card, threshold=threshold_of(vectors[members])) if cluster in lost else card
    return cards


def _moved_up(one: Overwritten, keep: BoolVector) -> Overwritten:
    stays = keep[one.rows]
    new_row = np.cumsum(keep) - 1
    rows = new_row[one.rows[stays]].astype(np.uint32)
    return replace(one, rows=rows, labels=one.labels[stays], origins=one.origins[stays])


def of_aliases(revision: int, led: Mapping[ClusterId, ClusterId]) -> Overwritten:
    """What a commit overwrites that moves no item: aliases, and where they led before."""
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

    def all_unnamed(groups: Mapping[ClusterId, Sequence[MediaId]]) -> dict[ClusterId, tuple[MediaId, ...]]:
        return {cluster: unnamed(media) for cluster, media in groups.items()}

    for said in ledger:
        match said:
            case Merge() | Dismissal():
                yield replace(said, groups=all_unnamed(said.groups))
            case Split():
                yield replace(said, moved=unnamed(said.moved), remaining=unnamed(said.remaining))
            case Exclusion():
                yield replace(said, media=unnamed(said.media), remaining=unnamed(said.remaining))
            case Undo():
                yield said
            case _:
                assert_never(said)
