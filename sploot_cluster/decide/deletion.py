"""Deletion of items from a pet, as if they had never arrived. Afterwards, nothing in the pet names them.

Corrections are kept. Each deleted item that they name is replaced by a random stand-in, which contains no information
about it. So two items that were merged only through a third item stay together when the third is deleted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
from sploot_cluster.pet.vectors import BoolVector, FloatMatrix, LabelVector, OriginVector, Rows

if TYPE_CHECKING:
    from sploot_cluster.pet.shadow import Shadow
    from sploot_cluster.pet.whole import PetDump

# Producers cannot send an id with this prefix, because its first character is not printable.
STAND_IN: Final = "\x7fdeleted-"

# When a cluster loses items, its threshold and medoid are computed again only if its vectors take at most this many
# bytes (8,192 items of 512 dimensions). A larger cluster keeps its threshold until the next recluster, because a few
# items change it little.
MOST_BYTES_OF_CLUSTER: Final = 16 * 1024 * 1024


VectorsOf = Callable[[Rows], FloatMatrix]
"""A function that returns the vectors of the given rows of a pet, in the same order."""


def without(
    pet: PetDump, media: Iterable[MediaId], *, by: str, at: datetime, vectors_of: VectorsOf | None = None
) -> PetDump:
    """Return the pet at the next revision, without these items. Ids that the pet does not have are ignored.

    Args:
        vectors_of: a function that returns the vectors of rows. It is needed only if the pet's state has no vectors;
            the result then has none either.
    """
    gone, revision = set(media), pet.state.revision + 1
    left, led = leave_out(pet, gone, vectors_of=vectors_of)
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


def leave_out(
    pet: PetDump, gone: Collection[MediaId], *, vectors_of: VectorsOf | None = None
) -> tuple[PetDump, dict[ClusterId, ClusterId]]:
    """Return the pet and its past without the rows of these items, and the aliases that ended as a result.

    Rows keep their order and move up. Clusters that lost items get a new threshold. Empty clusters end, and so do
    their aliases. The caller has to update the counts and all data that is not stored by row.

    Args:
        vectors_of: as for :func:`without`.
    """
    state = pet.state
    keep: BoolVector = np.array([item not in gone for item in state.media], dtype=np.bool_)
    labels, origins = state.labels[keep], let_count(state.labels[keep], state.origins[keep])
    media = [item for item in state.media if item not in gone]
    vectors = state.vectors[keep] if vectors_of is None else state.vectors[:0]
    rows = PetRows(media, vectors, state.occurred_at_ms[keep])
    n = int(np.count_nonzero(keep))
    clusters = _cards(state, keep, labels, origins, vectors_of or state.vectors.__getitem__)
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
    n_gone = len(shadow.vectors) - len(vectors)
    return replace(shadow, vectors=vectors, n_vectors=shadow.n_vectors - n_gone)


def _cards(
    state: PetState, keep: BoolVector, labels: LabelVector, origins: OriginVector, vectors_of: VectorsOf
) -> dict[ClusterId, ClusterCard]:
    """Return the cards of the clusters that have items left.

    Args:
        labels, origins: the labels and origins of the rows to keep.
    """
    lost, locked = set(state.labels[~keep].tolist()), locked_in(state)
    new_row, old_row = np.cumsum(keep) - 1, np.flatnonzero(keep)
    counted, sizes = np.unique(labels[origins != Origin.ABSORBED], return_counts=True)
    n_left = Counter(dict(zip(counted.tolist(), sizes.tolist(), strict=True)))
    most = MOST_BYTES_OF_CLUSTER // (4 * max(1, state.dim or 1))
    cards = {}
    for cluster, card in state.clusters.items():
        if not n_left[cluster]:
            continue
        medoid = None if card.medoid is None or not keep[card.medoid] else int(new_row[card.medoid])
        if cluster in lost and n_left[cluster] <= most:
            members = np.flatnonzero((labels == cluster) & (origins != Origin.ABSORBED))
            vectors = vectors_of(old_row[members])
            threshold = threshold_of(vectors)
            threshold = tightened(threshold) if cluster in locked else threshold
            cards[cluster] = replace(card, threshold=threshold, medoid=int(members[medoid_of(vectors)]))
        else:
            cards[cluster] = replace(card, medoid=medoid)
    return cards


def _moved_up(one: Overwritten, keep: BoolVector) -> Overwritten:
    stays = keep[one.rows]
    new_row = np.cumsum(keep) - 1
    rows = new_row[one.rows[stays]].astype(np.uint32)
    return replace(one, rows=rows, labels=one.labels[stays], origins=one.origins[stays])


def of_aliases(revision: int, led: Mapping[ClusterId, ClusterId]) -> Overwritten:
    """Return the record of a commit that only ends aliases. ``led`` maps each alias to the id that it resolved to."""
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
