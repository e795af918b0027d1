"""Planning of corrections: from a labeller's request to labels, ids and a commit.

Each correction becomes an entry of the pet's ledger and is applied to the labels immediately. From then on,
``decide.resolving`` and ``decide.enforcing`` make sure that it holds. All functions here are pure and deterministic:
the same correction on the same state gives the same change.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, Final

import numpy as np

from sploot_cluster.decide.assignment import threshold_of, tightened
from sploot_cluster.decide.constraints import RowConstraints
from sploot_cluster.decide.corrections.base import Operation, Plan, Request
from sploot_cluster.decide.corrections.lookup import media_at, rows_of
from sploot_cluster.decide.enforcing import enforce
from sploot_cluster.decide.presentation import locked_in
from sploot_cluster.decide.regrouping import IdRules, regroup
from sploot_cluster.decide.resolving import resolve
from sploot_cluster.pet.models import (
    NOISE,
    Change,
    ClusterCard,
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

# Maximum number of anchors per cluster: enough to survive the deletion of a few, and few enough to keep the ledger
# small.
MOST_ANCHORS: Final = 8


def signature(request: Request[Any], state: PetState, operation: Operation) -> Signature:
    """Return the fields that all corrections share: revision, operation id, requester and time."""
    return state.revision + 1, operation.id, request.requested_by, operation.at


def done_before(state: PetState, operation_id: str) -> Corrected | None:
    """Return the result of an operation, with the current id of its cluster, or None if it is not in the ledger."""
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
    # resolving a long ledger is slow, so resolve it without the new correction only if a correction yields
    known = resolve(state.ledger).overridden if constraints.overridden else ()
    overridden = tuple(sentence for sentence in constraints.overridden if sentence not in known)
    answer = Corrected(
        state.revision + 1,
        correction.cluster,
        regrouped.n_moved,
        overridden,
        is_duplicate=False,
        n_also_moved=0 if correction.undoes() is not None else _n_unnamed(state, correction, plan, regrouped.labels),
    )
    summary: dict[str, object] = {"n_moved": answer.n_moved, "overridden": list(overridden), **correction.summary()}
    if answer.n_also_moved:
        summary["n_also_moved"] = answer.n_also_moved
    change = regrouped.change(state, correction.kind, by=correction.by, correction=correction, summary=summary)
    return change, answer


def _n_unnamed(state: PetState, correction: Correction, plan: Plan, labels: LabelVector) -> int:
    """Return the number of items that moved without being moved by the plan or named by the user."""
    moved = (labels != state.labels) & (plan.labels == state.labels)
    named = {*correction.requested()} if moved.any() else set[MediaId]()
    return sum(state.media[row] not in named for row in np.flatnonzero(moved).tolist())


def record(state: PetState, correction: Correction) -> tuple[Change, Corrected]:
    """Return the change that appends a correction that moves no items, such as a naming.

    Clusters that it locks or unlocks get a new threshold.
    """
    was_locked, locked = locked_in(state), locked_in(replace(state, ledger=(*state.ledger, correction)))
    cards = dict[ClusterId, ClusterCard | None]()
    for cluster in was_locked ^ locked:
        members = rows_of(state, cluster)
        threshold = threshold_of(state.vectors[members[state.origins[members] != Origin.ABSORBED]])
        threshold = tightened(threshold) if cluster in locked else threshold
        cards[cluster] = replace(state.clusters[cluster], threshold=threshold)
    change = Change(
        correction.kind,
        next_cluster=state.next_cluster,
        n_at_recluster=state.n_at_recluster,
        noise_arrivals=state.noise_arrivals,
        clusters=cards,
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


def anchors(state: PetState, cluster: ClusterId, *, without: Rows | None = None) -> tuple[MediaId, ...]:
    """Return the items that stand for a cluster in a correction: the most central items that users placed.

    If users placed none, return the most central of the counted members, or else of all members.

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
