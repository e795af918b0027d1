"""Planning of corrections: from a labeller's request to labels, ids and a commit.

Each correction becomes an entry of the pet's ledger and is applied to the labels immediately. ``decide.resolving`` and
``decide.enforcing`` maintain it from then on. All functions here are pure and deterministic: the same correction on the
same state gives the same change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from sploot_cluster.decide.constraints import RowConstraints
from sploot_cluster.decide.corrections.base import Operation, Plan, Request
from sploot_cluster.decide.enforcing import enforce
from sploot_cluster.decide.regrouping import IdRules, regroup
from sploot_cluster.decide.resolving import resolve
from sploot_cluster.errors import InvalidInput, UnknownCluster, UnknownMedia
from sploot_cluster.pet.models import (
    NOISE,
    Change,
    ClusterId,
    Corrected,
    Correction,
    MediaId,
    Origin,
    PetState,
    Signature,
)
from sploot_cluster.pet.vectors import LabelVector, OriginVector, Rows
from sploot_cluster.settings import ClusterSettings

# Anchors per cluster: enough that a few of them may be deleted, few enough that the ledger stays small.
MOST_ANCHORS: Final = 8


def signature(request: Request[Any], state: PetState, operation: Operation) -> Signature:
    """Return the fields that all corrections share: revision, operation id, requester and time."""
    return state.revision + 1, operation.id, request.requested_by, operation.at


def done_before(state: PetState, operation_id: str) -> Corrected | None:
    """Return the result of an operation in the ledger, with the cluster that its id resolves to now; else None."""
    done = next((one for one in reversed(state.ledger) if one.operation_id == operation_id), None)
    if done is None:
        return None
    cluster = None if done.cluster is None else state.aliases.get(done.cluster, done.cluster)
    return Corrected(done.revision, cluster, n_moved=0, overridden=(), is_duplicate=True)


def correct(state: PetState, correction: Correction, plan: Plan, settings: ClusterSettings) -> tuple[Change, Corrected]:
    """Return the change that appends ``correction`` and updates the labels to satisfy all corrections."""
    constraints = resolve((*state.ledger, correction))
    rows = constraints.by_row(state.rows)
    groups = enforce(plan.labels, state.vectors, rows, counts=(state.origins != Origin.ABSORBED) | rows.placed)
    regrouped = regroup(
        state,
        groups,
        origins_after(state.origins, groups, rows),
        rows,
        settings,
        ids=IdRules(
            _given(state, plan, groups, takes_over=correction.undoes() is None),
            plan.next_cluster,
            plan.returning,
            ended={cluster: members for members, cluster in plan.named if cluster not in state.clusters},
        ),
    )
    # resolving a long ledger takes a while, so resolve it without the new correction only if a correction yields
    known = resolve(state.ledger).overridden if constraints.overridden else ()
    overridden = tuple(sentence for sentence in constraints.overridden if sentence not in known)
    summary = {"n_moved": regrouped.n_moved, "overridden": list(overridden), **correction.summary()}
    change = regrouped.change(state, correction.kind, by=correction.by, correction=correction, summary=summary)
    answer = Corrected(state.revision + 1, correction.cluster, regrouped.n_moved, overridden, is_duplicate=False)
    return change, answer


def record(state: PetState, correction: Correction) -> tuple[Change, Corrected]:
    """Return the change that appends a correction that moves no items, such as a naming."""
    change = Change(
        correction.kind,
        next_cluster=state.next_cluster,
        n_at_recluster=state.n_at_recluster,
        noise_arrivals=state.noise_arrivals,
        correction=correction,
        by=correction.by,
        summary=correction.summary(),
    )
    return change, Corrected(state.revision + 1, correction.cluster, n_moved=0, overridden=(), is_duplicate=False)


def origins_after(origins: OriginVector, groups: LabelVector, rows: RowConstraints) -> OriginVector:
    """Return origins in which exactly the rows placed by a correction in force are CORRECTED.

    Rows that no longer are CORRECTED, NOISE or DISMISSED become ARRIVED; all others keep their origin.
    """
    origins = origins.copy()
    origins[np.isin(origins, (Origin.CORRECTED, Origin.NOISE, Origin.DISMISSED))] = Origin.ARRIVED
    origins[rows.placed] = Origin.CORRECTED
    origins[groups == NOISE] = Origin.NOISE
    origins[rows.dismissed] = Origin.DISMISSED
    return origins


def _given(state: PetState, plan: Plan, groups: LabelVector, *, takes_over: bool) -> dict[int, ClusterId]:
    """Return the ids that the plan requests: group -> id.

    Args:
        takes_over: also assign the id if another cluster has more items in the group than the plan names. An undo must
            not do so: the items that it names may have joined other items by now, and those keep their id.
    """
    given: dict[int, ClusterId] = {}
    counts = (state.origins != Origin.ABSORBED) & (state.labels != NOISE)
    for rows, cluster in sorted(plan.named, key=lambda name: name[1] not in state.clusters):
        candidates, n = np.unique(groups[rows[groups[rows] != NOISE]], return_counts=True)
        if not len(candidates):
            continue
        group = int(candidates[n.argmax()])
        others = np.setdiff1d(np.flatnonzero((groups == group) & counts), rows)
        of_others = Counter(state.labels[others].tolist())
        is_theirs = all(of_others[other] <= n.max() for other in of_others.keys() - {cluster, *given.values()})
        if (is_theirs or takes_over) and group not in given and cluster not in given.values():
            given[group] = cluster
    return given


def without(
    state: PetState, media: Sequence[MediaId], cluster: ClusterId, *, instead: ClusterId = NOISE
) -> LabelVector:
    """Return the labels with those of ``media`` that are in ``cluster`` moved to noise, or to another cluster."""
    labels = state.labels.copy()
    rows = present(state, media)
    labels[rows[labels[rows] == cluster]] = instead
    return labels


def some_of(state: PetState, cluster: ClusterId, media_ids: Sequence[str]) -> tuple[Rows, Rows]:
    """Return the rows of the items that should leave a cluster, and the rows of all its items.

    Raises:
        UnknownMedia: some of the items are not in the cluster.
        InvalidInput: the items are all items of the cluster.
    """
    media, members = [MediaId(item) for item in media_ids], rows_of(state, cluster)
    elsewhere = [item for item in media if item not in state.rows or state.labels[state.rows[item]] != cluster]
    if elsewhere:
        raise UnknownMedia(pet=state.pet, media=tuple(elsewhere), where=f"cluster {cluster}")
    if len(media) == len(members):
        raise InvalidInput(
            "media_ids",
            f"expected some items of cluster {cluster}, got all {len(members)}",
            "leave at least one item in the cluster, or dismiss the items",
        )
    return np.sort(present(state, media)), members


def living(state: PetState, cluster: int, field_name: str) -> ClusterId:
    """Return the living cluster that an id resolves to.

    Raises:
        UnknownCluster: the id is neither a living cluster nor an alias.
    """
    now = state.aliases.get(ClusterId(cluster), ClusterId(cluster))
    if now not in state.clusters:
        has_ended = 1 <= cluster < state.next_cluster
        raise UnknownCluster(pet=state.pet, cluster=cluster, field=field_name, has_ended=has_ended)
    return now


def rows_of(state: PetState, cluster: ClusterId) -> Rows:
    """Return the rows of a cluster's items."""
    return np.flatnonzero(state.labels == cluster)


def media_at(state: PetState, rows: Rows) -> tuple[MediaId, ...]:
    """Return the items in the given rows."""
    return tuple(state.media[row] for row in rows.tolist())


def rows_of_known(state: PetState, media_ids: Iterable[str]) -> Rows:
    """Return the rows of items.

    Raises:
        UnknownMedia: items that the pet does not have.
    """
    media = [MediaId(item) for item in media_ids]
    unknown = tuple(item for item in media if item not in state.rows)
    if unknown:
        raise UnknownMedia(pet=state.pet, media=unknown, where="any cluster or the noise")
    return present(state, media)


def by_cluster(state: PetState, rows: Rows) -> dict[ClusterId, tuple[MediaId, ...]]:
    """Return the items of rows by the cluster where each is now, including NOISE."""
    clusters: list[ClusterId] = np.unique(state.labels[rows]).tolist()
    return {cluster: media_at(state, rows[state.labels[rows] == cluster]) for cluster in clusters}


def present(state: PetState, media: Iterable[MediaId]) -> Rows:
    """Return the rows of the given items; items that the pet no longer has are left out."""
    return np.array([state.rows[item] for item in media if item in state.rows], dtype=np.intp)


def anchors(state: PetState, cluster: ClusterId, *, without: Rows | None = None) -> tuple[MediaId, ...]:
    """Return the items that stand for a cluster in a correction: the most central of those that people placed.

    If people placed none, return the most central of the counted members, or else of all members.

    Args:
        without: rows that are about to leave the cluster, or to be placed in it.
    """
    members = rows_of(state, cluster)
    if without is not None:
        members = np.setdiff1d(members, without)
    placed = members[state.origins[members] == Origin.CORRECTED]
    counted = members[state.origins[members] != Origin.ABSORBED]
    candidates = placed if len(placed) else counted if len(counted) else members
    centrality = state.vectors[candidates] @ state.vectors[candidates].sum(axis=0)
    return media_at(state, np.sort(candidates[np.argsort(-centrality, kind="stable")[:MOST_ANCHORS]]))
