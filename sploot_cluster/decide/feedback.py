"""Planning of corrections by people: merge, split, exclude, dismiss, undo.

Each correction becomes an entry of the pet's ledger and is applied to the labels immediately;
:mod:`sploot_cluster.decide.constraints` enforces it from then on. All functions here are pure and deterministic:
the same correction on the same state gives the same change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import assert_never

import numpy as np

from sploot_cluster.decide.assignment import most_similar
from sploot_cluster.decide.constraints import RowConstraints, enforce, in_force, resolve, taken_back
from sploot_cluster.decide.regrouping import IdRules, regroup
from sploot_cluster.errors import InvalidInput, UnknownCluster, UnknownMedia, UnknownRevision
from sploot_cluster.pet.models import (
    NOISE,
    Change,
    ChangeKind,
    ClusterId,
    Corrected,
    Correction,
    Dismissal,
    Exclusion,
    MediaId,
    Merge,
    Origin,
    PetState,
    Said,
    Split,
    Undo,
)
from sploot_cluster.pet.vectors import LabelVector, OriginVector, Rows
from sploot_cluster.settings import ClusterSettings


def find_operation(ledger: Sequence[Correction], operation_id: str) -> Correction | None:
    """Return the correction with this operation id; None if it is new."""
    return next((correction for correction in reversed(ledger) if correction.operation_id == operation_id), None)


def plan_merge(
    state: PetState,
    cluster_ids: Sequence[ClusterId],
    into: ClusterId | None = None,
    *,
    settings: ClusterSettings,
    operation_id: str,
    by: str,
    at: datetime,
) -> tuple[Change, Corrected]:
    """Merge clusters into one whose items stay together. Merged ids become aliases of it.

    Args:
        cluster_ids: at least two different clusters, by id or alias.
        into: cluster whose id is kept; default: the one with most items, or the smallest id if equal.

    Raises:
        UnknownCluster: an id is neither a cluster nor an alias.
        InvalidInput: fewer than two clusters, or ``into`` is not among them.
    """
    merged = sorted({_living(state, cluster, "cluster_ids") for cluster in cluster_ids})
    if len(merged) < 2:
        raise InvalidInput(
            "cluster_ids",
            f"expected at least two different clusters of pet {state.pet}, got {list(cluster_ids)}",
            "send the ids of the clusters to merge",
        )
    rows_of = {cluster: _rows(state, cluster) for cluster in merged}
    target = (
        min(merged, key=lambda cluster: (-len(rows_of[cluster]), cluster))
        if into is None
        else _living(state, into, "into")
    )
    if target not in rows_of:
        raise InvalidInput("into", f"cluster {into} is not one of the clusters to merge", "choose one of cluster_ids")

    correction = Merge(
        revision=state.revision + 1,
        operation_id=operation_id,
        by=by,
        at=at,
        into=target,
        groups={cluster: _media(state, rows) for cluster, rows in rows_of.items()},
        aliases={old: now for old, now in state.aliases.items() if now in rows_of},
    )
    labels = np.where(np.isin(state.labels, merged), target, state.labels).astype(np.int32)
    plan = _Plan(labels, state.next_cluster, named=[(rows_of[target], target)])
    return _correct(state, correction, plan, settings, cluster=target)


def plan_exclude(
    state: PetState,
    cluster: ClusterId,
    media_ids: Sequence[MediaId],
    *,
    settings: ClusterSettings,
    operation_id: str,
    by: str,
    at: datetime,
) -> tuple[Change, Corrected]:
    """Exclude items from a cluster: they become noise for now, and never rejoin the items that remain.

    Args:
        cluster: its id, or an alias of it.
        media_ids: some of its items, but not all; duplicates are ignored.

    Raises:
        UnknownCluster: the id is neither a cluster nor an alias.
        UnknownMedia: items that are not in the cluster.
        InvalidInput: no items, or all of the cluster's.
    """
    source = _living(state, cluster, "cluster_id")
    taken_out, members = _some_of(state, source, media_ids)
    remaining = np.setdiff1d(members, taken_out)
    correction = Exclusion(
        revision=state.revision + 1,
        operation_id=operation_id,
        by=by,
        at=at,
        source=source,
        media=_media(state, taken_out),
        remaining=_media(state, remaining),
    )
    labels = state.labels.copy()
    labels[taken_out] = NOISE
    plan = _Plan(labels, state.next_cluster, named=[(remaining, source)])
    return _correct(state, correction, plan, settings, cluster=None)


def plan_dismiss(
    state: PetState,
    media_ids: Sequence[MediaId],
    *,
    settings: ClusterSettings,
    operation_id: str,
    by: str,
    at: datetime,
) -> tuple[Change, Corrected]:
    """Dismiss items: whatever is computed later, they stay in no cluster.

    Args:
        media_ids: items of any clusters, or noise; duplicates, and items already dismissed, are ignored.

    Raises:
        UnknownMedia: items that the pet does not have.
        InvalidInput: no items, or all of them are already dismissed.
    """
    named = list(dict.fromkeys(media_ids))
    unknown = tuple(item for item in named if item not in state.rows)
    if unknown:
        raise UnknownMedia(pet=state.pet, media=unknown, where="any cluster or the noise")
    if not named:
        raise InvalidInput("media_ids", "is empty", "send the ids of the items to dismiss")
    rows = np.sort(np.array([state.rows[item] for item in named], dtype=np.intp))
    rows = rows[state.origins[rows] != Origin.DISMISSED]
    if not len(rows):
        raise InvalidInput("media_ids", "all items are already dismissed", "to restore them, undo the dismissal")
    correction = Dismissal(
        revision=state.revision + 1,
        operation_id=operation_id,
        by=by,
        at=at,
        groups={
            ClusterId(cluster): _media(state, rows[state.labels[rows] == cluster])
            for cluster in np.unique(state.labels[rows]).tolist()
        },
        aliases={old: now for old, now in state.aliases.items() if np.isin(_rows(state, now), rows).all()},
    )
    labels = state.labels.copy()
    labels[rows] = NOISE
    return _correct(state, correction, _Plan(labels, state.next_cluster), settings, cluster=None)


def plan_split(
    state: PetState,
    cluster: ClusterId,
    media_ids: Sequence[MediaId],
    *,
    settings: ClusterSettings,
    operation_id: str,
    by: str,
    at: datetime,
) -> tuple[Change, Corrected]:
    """Split items off into a new cluster: they stay together, and apart from the items that remain.

    Args:
        cluster: its id, or an alias of it.
        media_ids: some of its items, but not all; duplicates are ignored.

    Raises:
        UnknownCluster: the id is neither a cluster nor an alias.
        UnknownMedia: items that are not in the cluster.
        InvalidInput: no items, or all of the cluster's.
    """
    source = _living(state, cluster, "cluster_id")
    moved, members = _some_of(state, source, media_ids)
    remaining, created = np.setdiff1d(members, moved), state.next_cluster
    correction = Split(
        revision=state.revision + 1,
        operation_id=operation_id,
        by=by,
        at=at,
        source=source,
        created=created,
        moved=_media(state, moved),
        remaining=_media(state, remaining),
    )
    labels = state.labels.copy()
    labels[moved] = created
    plan = _Plan(labels, ClusterId(created + 1), named=[(moved, created), (remaining, source)])
    return _correct(state, correction, plan, settings, cluster=created)


def plan_undo(
    state: PetState, revision: int, *, settings: ClusterSettings, operation_id: str, by: str, at: datetime
) -> tuple[Change, Corrected]:
    """Undo the correction that made ``revision``, as far as no other correction in force demands the same.

    Items that are still where the correction put them return to where they came from: a merged cluster's old ids
    return, and split-off, excluded and dismissed items go back. Undoing an undo applies the correction again.

    Raises:
        UnknownRevision: it is not a correction, or is already undone.
    """
    undone = next((correction for correction in state.ledger if correction.revision == revision), None)
    if undone is None:
        raise UnknownRevision(pet=state.pet, revision=revision)
    if revision in taken_back(state.ledger):
        raise UnknownRevision(pet=state.pet, revision=revision, problem="is already undone")

    correction = Undo(revision=state.revision + 1, operation_id=operation_id, by=by, at=at, undone=revision)
    subject = _what_it_is_about(state.ledger, undone)
    is_in_force = subject in in_force((*state.ledger, correction))
    plan = _plan_again(state, subject) if is_in_force else _plan_back(state, subject)
    return _correct(state, correction, plan, settings, cluster=None)


def _what_it_is_about(ledger: Sequence[Correction], correction: Correction) -> Said:
    """Return the correction at the end of a chain of undos."""
    while isinstance(correction, Undo):
        undone = correction.undone
        correction = next(earlier for earlier in ledger if earlier.revision == undone)
    return correction


@dataclass(frozen=True, slots=True)
class _Plan:
    """The effect that a correction requests, before constraints and ids are resolved.

    Attributes:
        labels: (n,) the cluster of each row; rows of a cluster that must be divided still share a label.
        next_cluster: the next unused id.
        named: rows, and the id for the cluster that most of them end up in; of several ids for one cluster, a living
            one wins.
        returning: aliases -> the ids that they point to again.
    """

    labels: LabelVector
    next_cluster: ClusterId
    named: Sequence[tuple[Rows, ClusterId]] = ()
    returning: Mapping[ClusterId, ClusterId] = field(default_factory=dict)


def _correct(
    state: PetState, correction: Correction, plan: _Plan, settings: ClusterSettings, *, cluster: ClusterId | None
) -> tuple[Change, Corrected]:
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
            _given(state, plan, groups, takes_over=not isinstance(correction, Undo)),
            plan.next_cluster,
            plan.returning,
            ended={cluster: members for members, cluster in plan.named if cluster not in state.clusters},
        ),
    )
    # resolving a long ledger takes a while, and usually no correction in it yields
    known = resolve(state.ledger).overridden if constraints.overridden else ()
    overridden = tuple(sentence for sentence in constraints.overridden if sentence not in known)
    summary = {"n_moved": regrouped.n_moved, "overridden": list(overridden), **_told(correction)}
    change = regrouped.change(state, _kind(correction), by=correction.by, correction=correction, summary=summary)
    return change, Corrected(state.revision + 1, cluster, regrouped.n_moved, overridden, is_duplicate=False)


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


def _given(state: PetState, plan: _Plan, groups: LabelVector, *, takes_over: bool) -> dict[int, ClusterId]:
    """Return group -> the id that the plan requests.

    Args:
        takes_over: also assign the id where another cluster has more items in the group than the plan names. An undo
            must not do so: the items it names may be with others by now, and those keep their id.
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


def _plan_again(state: PetState, correction: Said) -> _Plan:
    """Plan to reapply a correction: enforcing it joins and separates its items; here its cluster gets its id back."""
    match correction:
        case Merge(into=cluster, groups=groups):
            merged = [item for media in groups.values() for item in media]
            return _Plan(state.labels, state.next_cluster, named=[(_there(state, merged), cluster)])
        case Split(created=created, moved=moved):
            source = state.aliases.get(correction.source, correction.source)
            labels = _without(state, moved, source, instead=created)
            names = [(_there(state, moved), created), (_there(state, correction.remaining), source)]
            return _Plan(labels, state.next_cluster, names)
        case Exclusion(source=source, media=taken_out):
            return _Plan(_without(state, taken_out, state.aliases.get(source, source)), state.next_cluster)
        case Dismissal():
            return _Plan(state.labels, state.next_cluster)
        case _:
            assert_never(correction)


def _there(state: PetState, media: Iterable[MediaId]) -> Rows:
    """Return the rows of those of these items that the pet still has."""
    return np.array([state.rows[item] for item in media if item in state.rows], dtype=np.intp)


def _plan_back(state: PetState, correction: Said) -> _Plan:
    """Plan to return items to where they were before a correction, if they are still where it put them."""
    match correction:
        case Merge():
            return _unmerged(state, correction)
        case Split():
            return _unsplit(state, correction)
        case Exclusion():
            return _reincluded(state, correction)
        case Dismissal(groups=groups, aliases=aliases):
            return _returned(state, groups, ended=groups.keys() - state.clusters.keys() - {NOISE}, returning=aliases)
        case _:
            assert_never(correction)


def _unmerged(state: PetState, merge: Merge) -> _Plan:
    """Plan to give each merged cluster its items and aliases back; later items join the one they resemble most."""
    now = state.aliases.get(merge.into, merge.into)
    is_merged = state.labels == now
    rows_of: dict[ClusterId, Rows] = {}
    for cluster, media in merge.groups.items():
        rows = _there(state, media)
        rows = rows[is_merged[rows]]
        if len(rows):
            rows_of[now if cluster == merge.into else cluster] = rows
    labels = state.labels.copy()
    for cluster, rows in rows_of.items():
        labels[rows], is_merged[rows] = cluster, False
    if rows_of and is_merged.any():
        later = np.flatnonzero(is_merged)
        labels[later] = most_similar(rows_of, state.vectors, later)
    named = [(rows, cluster) for cluster, rows in rows_of.items()]
    returning = {old: led for old, led in merge.aliases.items() if state.aliases.get(old) == now}
    return _Plan(labels, state.next_cluster, named, returning)


def _unsplit(state: PetState, split: Split) -> _Plan:
    """Plan to move split-off items back to the source, with their whole cluster if they are most of it."""
    created = state.aliases.get(split.created, split.created)
    source = state.aliases.get(split.source, split.source)
    if source not in state.clusters or created == source:
        return _Plan(state.labels, state.next_cluster)
    members = state.labels == created
    moved = np.zeros(state.n_media, dtype=np.bool_)
    moved[_there(state, split.moved)] = True
    moved &= members
    labels = state.labels.copy()
    labels[members if 2 * np.count_nonzero(moved) > np.count_nonzero(members) else moved] = source
    return _Plan(labels, state.next_cluster, [(np.flatnonzero(labels == source), source)])


def _reincluded(state: PetState, exclusion: Exclusion) -> _Plan:
    """Plan to move excluded items back: from noise, and from clusters in which they are the majority.

    Older corrections may have made such clusters.
    """
    source = state.aliases.get(exclusion.source, exclusion.source)
    if source not in state.clusters:
        return _Plan(state.labels, state.next_cluster)
    rows = _there(state, exclusion.media)
    labels = state.labels.copy()
    for cluster in np.unique(state.labels[rows]).tolist():
        its = rows[state.labels[rows] == cluster]
        if cluster == NOISE or 2 * len(its) > np.count_nonzero(state.labels == cluster):
            labels[its] = source
    return _Plan(labels, state.next_cluster, [(np.flatnonzero(labels == source), source)])


def _without(
    state: PetState, media: Sequence[MediaId], cluster: ClusterId, *, instead: ClusterId = NOISE
) -> LabelVector:
    """Return the labels with those of ``media`` that are in ``cluster`` moved to noise, or to another cluster."""
    labels = state.labels.copy()
    rows = _there(state, media)
    labels[rows[labels[rows] == cluster]] = instead
    return labels


def _returned(
    state: PetState,
    groups: Mapping[ClusterId, Sequence[MediaId]],
    *,
    ended: Collection[ClusterId] = (),
    returning: Mapping[ClusterId, ClusterId] | None = None,
) -> _Plan:
    """Plan to move items that are noise back to their former cluster, if it lives or lives again by them.

    Args:
        ended: clusters that live again with these items, unless their id is an alias by now.
        returning: aliases -> the ids that they point to again.
    """
    labels, named = state.labels.copy(), list[tuple[Rows, ClusterId]]()
    for cluster, media in groups.items():
        now = state.aliases.get(cluster, cluster)
        rows = _there(state, media)
        rows = rows[labels[rows] == NOISE]
        if len(rows) and (now in state.clusters or now in ended):
            labels[rows] = now
            named += [(rows, now)] if now in ended else []
    return _Plan(labels, state.next_cluster, named, returning or {})


def _some_of(state: PetState, cluster: ClusterId, media_ids: Sequence[MediaId]) -> tuple[Rows, Rows]:
    """Return the rows of the items that should leave a cluster, and the rows of all its items.

    Raises:
        UnknownMedia: items that are not in the cluster.
        InvalidInput: no items, or all of the cluster's.
    """
    named = list(dict.fromkeys(media_ids))
    members = _rows(state, cluster)
    elsewhere = [item for item in named if item not in state.rows or state.labels[state.rows[item]] != cluster]
    if elsewhere:
        raise UnknownMedia(pet=state.pet, media=tuple(elsewhere), where=f"cluster {cluster}")
    if not named:
        raise InvalidInput("media_ids", "is empty", f"send the ids of the items that should leave cluster {cluster}")
    if len(named) == len(members):
        raise InvalidInput(
            "media_ids",
            f"expected some items of cluster {cluster}, got all {len(members)}",
            "leave at least one item in the cluster, or dismiss the items",
        )
    return np.sort(np.array([state.rows[item] for item in named], dtype=np.intp)), members


def _living(state: PetState, cluster: ClusterId, field_name: str) -> ClusterId:
    """Return the living cluster that an id resolves to.

    Raises:
        UnknownCluster: it is neither a cluster nor an alias.
    """
    now = state.aliases.get(cluster, cluster)
    if now not in state.clusters:
        has_ended = 1 <= cluster < state.next_cluster
        raise UnknownCluster(pet=state.pet, cluster=cluster, field=field_name, has_ended=has_ended)
    return now


def _rows(state: PetState, cluster: ClusterId) -> Rows:
    return np.flatnonzero(state.labels == cluster)


def _media(state: PetState, rows: Rows) -> tuple[MediaId, ...]:
    return tuple(state.media[row] for row in rows.tolist())


def _kind(correction: Correction) -> ChangeKind:
    match correction:
        case Merge():
            return "merge"
        case Split():
            return "split"
        case Exclusion():
            return "exclude"
        case Dismissal():
            return "dismiss"
        case Undo():
            return "undo"
        case _:
            assert_never(correction)


def _told(correction: Correction) -> dict[str, object]:
    """Return the summary of a correction for the history; items appear as counts, because the ledger has their ids."""
    match correction:
        case Merge(into=into, groups=groups):
            return {"into": into, "merged": sorted(groups)}
        case Split(source=source, created=created, moved=moved):
            return {"source": source, "created": created, "n_split_off": len(moved)}
        case Exclusion(source=source, media=media):
            return {"source": source, "n_excluded": len(media)}
        case Dismissal():
            return {"n_dismissed": len(correction.media)}
        case Undo(undone=undone):
            return {"undone": undone}
        case _:
            assert_never(correction)
