"""Why a medium is where it is: the nearest accepted media, how its cluster compares with the next, what people said.

Accepted media are those of clusters that were not merely absorbed. A pure function of a pet's state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, assert_never

import numpy as np

from sploot_cluster.assignment import reach, similarity_to
from sploot_cluster.constraints import Constraints, resolve
from sploot_cluster.errors import UnknownMedia
from sploot_cluster.models import (
    NOISE,
    ChangeKind,
    ClusterId,
    Correction,
    Dismissal,
    Exclusion,
    MediaId,
    Merge,
    PetState,
    Said,
    Split,
    Standing,
    Undo,
)

N_NEAREST: Final = 5


@dataclass(frozen=True, slots=True)
class Near:
    """An accepted medium and its cosine similarity to the one that is asked about."""

    media: MediaId
    cluster: ClusterId
    similarity: float


@dataclass(frozen=True, slots=True)
class Rival:
    """A cluster that the medium is not in.

    Attributes:
        similarity: mean top-3 cosine similarity of the medium to its accepted media.
        threshold: what an arrival must reach.
        is_forbidden: a correction in force keeps the medium out of it.
    """

    cluster: ClusterId
    similarity: float
    threshold: float
    is_forbidden: bool


@dataclass(frozen=True, slots=True)
class Demand:
    """What a correction in force demands of the medium, in words."""

    revision: int
    kind: ChangeKind
    by: str
    at: datetime
    demand: str


@dataclass(frozen=True, slots=True)
class Why:
    """Why a medium is where it is.

    Attributes:
        cluster: NOISE for a medium in none.
        because: one sentence.
        similarity, threshold: to its own cluster, as of :class:`Rival`; None for noise.
        second: the most similar of the other clusters; None if there is none.
        margin: how much more similar its own cluster is than ``second``; below 0 for a medium that was put where it
            would not have gone by itself; None unless there are both.
        nearest: accepted media, the most similar first.
        demands: of corrections in force, the newest first.
    """

    media: MediaId
    revision: int
    cluster: ClusterId
    standing: Standing
    because: str
    similarity: float | None
    threshold: float | None
    second: Rival | None
    margin: float | None
    nearest: Sequence[Near]
    demands: Sequence[Demand]


def explain(state: PetState, media: MediaId) -> Why:
    """Why ``media`` is where it is. O(n · dim).

    Raises:
        UnknownMedia: the pet does not have it.
    """
    row = state.rows.get(media)
    if row is None:
        raise UnknownMedia(pet=state.pet, media=(media,), where="any cluster or the noise")
    constraints = resolve(state.ledger)
    rows = constraints.by_row(state.rows)
    own, standing = ClusterId(int(state.labels[row])), Standing(int(state.standings[row]))

    vector = state.vectors[row]
    is_accepted = (state.labels != NOISE) & (state.standings != Standing.ABSORBED)
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
        standing,
        because=_because(own, standing, own_similarity, second, demands),
        similarity=own_similarity,
        threshold=state.clusters[own].threshold if own in state.clusters else None,
        second=second,
        margin=None if own_similarity is None or second is None else own_similarity - second.similarity,
        nearest=tuple(nearest),
        demands=demands,
    )


def _because(
    own: ClusterId, standing: Standing, similarity: float | None, second: Rival | None, demands: Sequence[Demand]
) -> str:
    match standing:
        case Standing.CORE:
            return f"a recluster found it among its like in cluster {own}"
        case Standing.ARRIVED:
            return f"when it came, or when a correction left it there, cluster {own} was the nearest that reached it"
        case Standing.ABSORBED:
            return f"it was noise beyond the budget, and cluster {own} the nearest: low confidence"
        case Standing.CORRECTED | Standing.DISMISSED:
            kinds = ("dismiss",) if standing == Standing.DISMISSED else ("merge", "split")
            said = next((demand for demand in demands if demand.kind in kinds), None)
            return f"{said.by} said so at revision {said.revision}" if said else "a person said so"
        case Standing.NOISE:
            if second is None:
                return "the pet has no cluster that it could be in"
            told = f"the nearest cluster, {second.cluster}, is {second.similarity:.3f} similar"
            if second.is_forbidden:
                return f"{told}, and people keep it out of it"
            if reach(second.similarity, second.threshold) > 1:
                return f"{told} and asks for {second.threshold:.3f}"
            return f"{told}, which would do: the next recluster decides"
        case _:
            assert_never(standing)


def _demands(ledger: Sequence[Correction], constraints: Constraints, media: MediaId) -> Iterator[Demand]:
    """What holds of the corrections about a medium; what newer ones took back is left out."""
    placing = {group.revision: len(group.media) - 1 for group in constraints.together if media in group.media}
    parting = {one.revision for one in constraints.apart if media in one.moved or media in one.remaining}
    barring = {one.revision for one in constraints.barred if media in one.media}
    nowhere = {one.revision for one in constraints.nowhere if media in one.media}
    revisions = placing.keys() | parting | barring | nowhere
    for correction in reversed(ledger):
        if isinstance(correction, Undo) or correction.revision not in revisions:
            continue
        kind, demand = _told(correction, media, n_mates=placing.get(correction.revision))
        yield Demand(correction.revision, kind, correction.by, correction.at, demand)


def _told(correction: Said, media: MediaId, *, n_mates: int | None) -> tuple[ChangeKind, str]:
    match correction:
        case Merge(into=into):
            return "merge", f"together with {n_mates} others, in the cluster that {into} leads to"
        case Split(moved=moved, remaining=remaining):
            if media in moved:
                return (
                    "split",
                    f"apart from the {len(remaining)} that remained, together with {n_mates or 0} that moved",
                )
            return "split", f"apart from the {len(moved)} that moved away"
        case Exclusion(source=source, media=taken_out, remaining=remaining):
            if media in taken_out:
                return "exclude", f"not in the cluster that {source} leads to, nor with the {len(remaining)} in it then"
            return "exclude", f"apart from the {len(taken_out)} that were taken out"
        case Dismissal():
            return "dismiss", "in no cluster"
        case _:
            assert_never(correction)
