"""Explanation of why an item is where it is, as a pure function of a pet's state.

It lists the nearest accepted items, compares the item's own cluster with the most similar other one, and names the
corrections that affect the item. *Accepted* items are those in a cluster that were not merely absorbed into it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, assert_never

import numpy as np

from sploot_cluster.answer_fields import INTERNAL, described
from sploot_cluster.decide.assignment import reach, similarity_to
from sploot_cluster.decide.constraints import Constraints
from sploot_cluster.decide.corrections.base import Statement
from sploot_cluster.decide.resolving import resolve
from sploot_cluster.errors import UnknownMedia
from sploot_cluster.pet.diff import cluster_or_none
from sploot_cluster.pet.models import (
    NOISE,
    ChangeKind,
    ClusterId,
    Correction,
    MediaId,
    Origin,
    PetId,
    PetState,
)
from sploot_cluster.pet.shadow import Shadow
from sploot_cluster.pet.tally import Quarantined
from sploot_cluster.pet.times import time_of

N_NEAREST: Final = 5
QUARANTINED: Final = "quarantined"  # shown as the origin of an item without a row


@dataclass(frozen=True, slots=True)
class NearItem:
    """An accepted item that is similar to the explained item."""

    media_id: MediaId
    cluster_id: ClusterId
    similarity: float = field(metadata=described("Cosine similarity."))


@dataclass(frozen=True, slots=True)
class RivalCluster:
    """The most similar cluster other than the item's own."""

    cluster_id: ClusterId
    similarity: float = field(metadata=described("Mean top-3 cosine similarity to the accepted items of the cluster."))
    threshold: float = field(metadata=described("The similarity that an arriving item must reach."))
    is_forbidden: bool = field(metadata=described("Whether a correction in force keeps the item out of the cluster."))


@dataclass(frozen=True, slots=True)
class Demand:
    """The effect of a correction in force on an item."""

    revision: int
    kind: ChangeKind
    by: str
    at: datetime
    demand: str
    # True if it puts the item into a cluster or keeps it out of all; other demands only restrict where the item may be
    is_decisive: bool = field(metadata=INTERNAL)


@dataclass(frozen=True, slots=True)
class Why:
    """Why an item is where it is."""

    pet_id: PetId
    media_id: MediaId
    revision: int
    cluster_id: ClusterId | None = field(metadata=described("Its cluster; null if the item is noise or quarantined."))
    origin: str = field(metadata=described("noise, core, arrived, absorbed, corrected, dismissed or quarantined."))
    reason: str = field(metadata=described("One sentence."))
    similarity: float | None = field(metadata=described("Mean top-3 cosine similarity to its own cluster."))
    threshold: float | None = field(
        metadata=described("The similarity that an arriving item must reach to join its cluster.")
    )
    second: RivalCluster | None = field(metadata=described("The most similar other cluster."))
    margin: float | None = field(
        metadata=described(
            "Similarity to its own cluster minus that to `second`; below 0 if a correction placed it there."
        )
    )
    nearest: tuple[NearItem, ...] = field(
        metadata=described(
            "The nearest accepted items, nearest first. Accepted items are in a cluster and were not absorbed."
        )
    )
    corrections: tuple[Demand, ...] = field(
        metadata=described("Corrections in force that affect the item, newest first.")
    )
    occurred_at: datetime | None = field(metadata=described("The time that its producer stated."))


def explain(state: PetState, media: MediaId) -> Why:
    """Explain why ``media`` is where it is. O(n · dim).

    Raises:
        UnknownMedia: the pet does not have the item.
    """
    row = state.rows.get(media)
    if row is None:
        raise UnknownMedia(pet=state.pet, media=(media,), where="any cluster or the noise")
    constraints = resolve(state.ledger)
    rows = constraints.by_row(state.rows)
    own, origin = ClusterId(int(state.labels[row])), Origin(int(state.origins[row]))

    vector = state.vectors[row]
    is_accepted = (state.labels != NOISE) & (state.origins != Origin.ABSORBED)
    is_accepted[row] = False
    accepted = np.flatnonzero(is_accepted)
    similarity = state.vectors[accepted] @ vector
    nearest = [
        NearItem(state.media[int(accepted[at])], ClusterId(int(state.labels[accepted[at]])), float(similarity[at]))
        for at in np.argsort(-similarity, kind="stable")[:N_NEAREST].tolist()
    ]

    sides = rows.sides[rows.atoms[row]] if rows.atoms[row] >= 0 else None
    barred = {state.aliases.get(cluster, cluster) for at, cluster in rows.barred if at == row}
    own_similarity: float | None = None
    second: RivalCluster | None = None
    for cluster, card in sorted(state.clusters.items()):
        members = accepted[state.labels[accepted] == cluster]
        if not len(members):
            continue
        likeness = float(similarity_to(state.vectors[members], vector[None, :])[0])
        if cluster == own:
            own_similarity = likeness
        elif second is None or likeness > second.similarity:
            in_cluster = np.flatnonzero(state.labels == cluster)
            is_forbidden = cluster in barred or (sides is not None and rows.sides_of(in_cluster).conflict(sides))
            second = RivalCluster(cluster, likeness, card.threshold, is_forbidden or bool(rows.dismissed[row]))
    demands = tuple(_demands(state.ledger, constraints, media))
    return Why(
        state.pet,
        media,
        state.revision,
        cluster_or_none(own),
        origin.word,
        reason=_reason(own, origin, own_similarity, second, demands),
        similarity=own_similarity,
        threshold=state.clusters[own].threshold if own in state.clusters else None,
        second=second,
        margin=None if own_similarity is None or second is None else own_similarity - second.similarity,
        nearest=tuple(nearest),
        corrections=demands,
        occurred_at=time_of(int(state.occurred_at_ms[row])),
    )


def explain_quarantine(state: PetState, media: MediaId, why: Quarantined, shadow: Shadow | None) -> Why:
    """Explain why ``media`` is quarantined.

    Args:
        shadow: the space of the candidate model, if one is open.
    """
    space = f"{why.model!r} ({why.dim} dimensions), but the pet uses {state.model!r} ({state.dim} dimensions)"
    problem = f"its vector is of {space}"
    if (why.model, why.dim) == (state.model, state.dim):
        problem, ends = "its vector was lost in a damaged key", f"ingest it again with a vector of {state.model!r}"
    elif shadow is not None and (shadow.model, shadow.dim) == (why.model, why.dim):
        ends = "a switch to that model adds it to the pet"
    else:
        ends = f"ingest it with a vector of {state.model!r}"
    return Why(
        state.pet,
        media,
        state.revision,
        cluster_id=None,
        origin=QUARANTINED,
        reason=f"quarantined: {problem}; {ends}",
        similarity=None,
        threshold=None,
        second=None,
        margin=None,
        nearest=(),
        corrections=tuple(_demands(state.ledger, resolve(state.ledger), media)),
        occurred_at=time_of(why.occurred_at_ms),
    )


def _reason(
    own: ClusterId, origin: Origin, similarity: float | None, second: RivalCluster | None, demands: Sequence[Demand]
) -> str:
    match origin:
        case Origin.CORE:
            return f"clustered with similar items of cluster {own} in a recluster"
        case Origin.ARRIVED:
            return f"assigned on arrival or left by a correction: cluster {own} was the closest within its threshold"
        case Origin.ABSORBED:
            return f"absorbed from noise beyond the budget; cluster {own} was the most similar (low confidence)"
        case Origin.CORRECTED | Origin.DISMISSED:
            deciding = next((demand for demand in demands if demand.is_decisive), None)
            return f"decided by {deciding.by} at revision {deciding.revision}" if deciding else "decided by a user"
        case Origin.NOISE:
            if second is None:
                return "the pet has no cluster that the item could join"
            nearest = f"similarity to the nearest cluster, {second.cluster_id}, is {second.similarity:.3f}"
            if second.is_forbidden:
                return f"{nearest}, but a correction keeps the item out of it"
            if reach(second.similarity, second.threshold) > 1:
                return f"{nearest}, below its threshold of {second.threshold:.3f}"
            return f"{nearest}, similar enough to join; the next recluster decides"
        case _:
            assert_never(origin)


def _demands(ledger: Sequence[Correction], constraints: Constraints, media: MediaId) -> Iterator[Demand]:
    """Yield the demands of corrections in force on an item, except those that newer corrections override."""
    placing = {group.revision: len(group.media) - 1 for group in constraints.together if media in group.media}
    parting = {one.revision for one in constraints.apart if media in one.moved or media in one.remaining}
    barring = {one.revision for one in constraints.barred if media in one.media}
    nowhere = {one.revision for one in constraints.nowhere if media in one.media}
    revisions = placing.keys() | parting | barring | nowhere
    for statement in reversed(ledger):
        if isinstance(statement, Statement) and statement.revision in revisions:
            demand = statement.demand_on(media, n_mates=placing.get(statement.revision))
            is_decisive = statement.revision in placing or statement.revision in nowhere
            yield Demand(statement.revision, statement.kind, statement.by, statement.at, demand, is_decisive)
