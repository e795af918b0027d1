"""Explanation of an item's place: the nearest accepted items, its own cluster against the next best, and corrections.

Accepted items are those in a cluster that were not merely absorbed into it. A pure function of a pet's state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, assert_never

import numpy as np

from sploot_cluster.decide.assignment import reach, similarity_to
from sploot_cluster.decide.constraints import Constraints
from sploot_cluster.decide.corrections.base import Statement
from sploot_cluster.decide.resolving import resolve
from sploot_cluster.errors import UnknownMedia
from sploot_cluster.pet.models import (
    NOISE,
    ChangeKind,
    ClusterId,
    Correction,
    MediaId,
    Origin,
    PetState,
)
from sploot_cluster.pet.shadow import Shadow
from sploot_cluster.pet.tally import Quarantined

N_NEAREST: Final = 5


@dataclass(frozen=True, slots=True)
class Near:
    """An accepted item and its cosine similarity to the item in question."""

    media: MediaId
    cluster: ClusterId
    similarity: float


@dataclass(frozen=True, slots=True)
class Rival:
    """A cluster that the item is not in.

    Attributes:
        similarity: mean top-3 cosine similarity of the item to the cluster's accepted items.
        threshold: similarity that an arrival must reach.
        is_forbidden: whether a correction in force keeps the item out of it.
    """

    cluster: ClusterId
    similarity: float
    threshold: float
    is_forbidden: bool


@dataclass(frozen=True, slots=True)
class Demand:
    """A correction in force, and in words what it demands of the item.

    Attributes:
        is_decisive: it places the item, or keeps it out of all clusters; others only restrict where it may be.
    """

    revision: int
    kind: ChangeKind
    by: str
    at: datetime
    demand: str
    is_decisive: bool


@dataclass(frozen=True, slots=True)
class Why:
    """The explanation of an item's place.

    Attributes:
        cluster: NOISE for an item in no cluster.
        origin: None for a quarantined item, of which the pet has no vector to compare.
        reason: one sentence.
        similarity, threshold: of its own cluster, as in :class:`Rival`; None for noise.
        second: the most similar of the other clusters; None if there is none.
        margin: similarity to its own cluster minus that to ``second``; below 0 for an item that was placed where it
            would not have been assigned automatically; None unless there are both.
        nearest: accepted items, the most similar first.
        demands: of corrections in force, newest first.
    """

    media: MediaId
    revision: int
    cluster: ClusterId
    origin: Origin | None
    reason: str
    similarity: float | None
    threshold: float | None
    second: Rival | None
    margin: float | None
    nearest: Sequence[Near]
    demands: Sequence[Demand]


def explain(state: PetState, media: MediaId) -> Why:
    """Explain why ``media`` is where it is. O(n · dim).

    Raises:
        UnknownMedia: the pet does not have it.
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
        Near(state.media[int(accepted[at])], ClusterId(int(state.labels[accepted[at]])), float(similarity[at]))
        for at in np.argsort(-similarity, kind="stable")[:N_NEAREST].tolist()
    ]

    sides = rows.sides[rows.atoms[row]] if rows.atoms[row] >= 0 else None
    barred = {state.aliases.get(cluster, cluster) for at, cluster in rows.barred if at == row}
    own_similarity: float | None = None
    second: Rival | None = None
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
            second = Rival(cluster, likeness, card.threshold, is_forbidden or bool(rows.dismissed[row]))
    demands = tuple(_demands(state.ledger, constraints, media))
    return Why(
        media,
        state.revision,
        own,
        origin,
        reason=_reason(own, origin, own_similarity, second, demands),
        similarity=own_similarity,
        threshold=state.clusters[own].threshold if own in state.clusters else None,
        second=second,
        margin=None if own_similarity is None or second is None else own_similarity - second.similarity,
        nearest=tuple(nearest),
        demands=demands,
    )


def explain_quarantine(state: PetState, media: MediaId, why: Quarantined, shadow: Shadow | None) -> Why:
    """Explain why ``media``, which has no row, is quarantined.

    Args:
        shadow: the space of the candidate model, if any.
    """
    space = f"{why.model!r} ({why.dim} dimensions), but the pet uses {state.model!r} ({state.dim} dimensions)"
    if shadow is not None and (shadow.model, shadow.dim) == (why.model, why.dim):
        ends = "a switch to that model adds it to the pet"
    else:
        ends = f"ingest it with a vector of {state.model!r}"
    return Why(
        media,
        state.revision,
        NOISE,
        origin=None,
        reason=f"quarantined: its vector is of {space}; {ends}",
        similarity=None,
        threshold=None,
        second=None,
        margin=None,
        nearest=(),
        demands=tuple(_demands(state.ledger, resolve(state.ledger), media)),
    )


def _reason(
    own: ClusterId, origin: Origin, similarity: float | None, second: Rival | None, demands: Sequence[Demand]
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
            return f"decided by {deciding.by} at revision {deciding.revision}" if deciding else "decided by a person"
        case Origin.NOISE:
            if second is None:
                return "the pet has no cluster that the item could join"
            nearest = f"similarity to the nearest cluster, {second.cluster}, is {second.similarity:.3f}"
            if second.is_forbidden:
                return f"{nearest}, but a correction keeps the item out of it"
            if reach(second.similarity, second.threshold) > 1:
                return f"{nearest}, below its threshold of {second.threshold:.3f}"
            return f"{nearest}, similar enough to join; the next recluster decides"
        case _:
            assert_never(origin)


def _demands(ledger: Sequence[Correction], constraints: Constraints, media: MediaId) -> Iterator[Demand]:
    """Yield what the corrections in force demand of an item; what newer corrections overrode is left out."""
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
