"""What people say about clusters: merge, split, exclude, dismiss, undo.

Each becomes an entry of the pet's ledger and is applied to the labels at once; :mod:`sploot_cluster.constraints` sees
to it that it holds from then on. These are pure functions of a pet's state: the same correction decided on the same
state is the same change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import assert_never

import numpy as np

from sploot_cluster.assignment import most_similar
from sploot_cluster.constraints import RowConstraints, enforce, in_force, resolve, taken_back
from sploot_cluster.errors import InvalidInput, UnknownCluster, UnknownMedia, UnknownRevision
from sploot_cluster.models import (
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
    PetState,
    Said,
    Split,
    Standing,
    Undo,
)
from sploot_cluster.regrouping import regroup
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.vectors import LabelVector, Rows, StandingVector


def find_operation(ledger: Sequence[Correction], operation_id: str) -> Correction | None:
    """The correction that was made by this operation; None if it is new."""
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
    """The clusters become one, and their media stay together. Ids that were merged away lead to it.

    Args:
        cluster_ids: at least two different ones, or aliases of such.
        into: which of them goes on; by default the one with most media, of equals the smallest id.

    Raises:
        UnknownCluster: an id is neither a cluster nor an alias.
        InvalidInput: fewer than two clusters, or ``into`` is not among them.
    """
    merged = sorted({_living(state, cluster, "cluster_ids") for cluster in cluster_ids})
    if len(merged) < 2:
        raise InvalidInput(
            "cluster_ids",
            f"{list(cluster_ids)} are not two different clusters of pet {state.pet}",
            "send at least two different clusters",
        )
    rows_of = {cluster: _rows(state, cluster) for cluster in merged}
    target = (
        min(merged, key=lambda cluster: (-len(rows_of[cluster]), cluster))
        if into is None
        else _living(state, into, "into")
    )
    if target not in rows_of:
        raise InvalidInput("into", f"cluster {into} is not one of those to merge", "choose one of cluster_ids")

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
    """These media leave a cluster, and never come back to those that remain. For now they are noise.

    Args:
        cluster: its id, or an alias of it.
        media_ids: some of its media, but not all; naming one twice is naming it once.

    Raises:
        UnknownCluster: the id is neither a cluster nor an alias.
        UnknownMedia: media that are not in the cluster.
        InvalidInput: no media, or all of the cluster's.
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
    """These media are in no cluster from now on, whatever is computed later.

    Args:
        media_ids: of any clusters, or noise; naming one twice, or one that is dismissed already, is no harm.

    Raises:
        UnknownMedia: media that the pet does not have.
        InvalidInput: no media, or all of them are dismissed already.
    """
    named = list(dict.fromkeys(media_ids))
    unknown = tuple(medium for medium in named if medium not in state.rows)
    if unknown:
        raise UnknownMedia(pet=state.pet, media=unknown, where="any cluster or the noise")
    if not named:
        raise InvalidInput("media_ids", "is empty", "name the media to dismiss")
    rows = np.sort(np.array([state.rows[medium] for medium in named], dtype=np.intp))
    rows = rows[state.standings[rows] != Standing.DISMISSED]
    if not len(rows):
        raise InvalidInput("media_ids", "are dismissed already", "undo the dismissal to have them back")
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
    """These media of a cluster become another one; they stay together, and apart from those that remain.

    Args:
        cluster: its id, or an alias of it.
        media_ids: some of its media, but not all; naming one twice is naming it once.

    Raises:
        UnknownCluster: the id is neither a cluster nor an alias.
        UnknownMedia: media that are not in the cluster.
        InvalidInput: no media, or all of the cluster's.
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
    """The correction that made ``revision`` is taken back, as far as no other one still in force demands the same.

    Media go back to where they came from, if they still are where the correction put them: a merge gives its old ids
    back, a split returns what it moved, and so do an exclusion and a dismissal. Undoing an undo does the correction
    again.

    Raises:
        UnknownRevision: it is not a correction, or is undone already.
    """
    undone = next((correction for correction in state.ledger if correction.revision == revision), None)
    if undone is None:
        raise UnknownRevision(pet=state.pet, revision=revision)
    if revision in taken_back(state.ledger):
        raise UnknownRevision(pet=state.pet, revision=revision, problem="is undone already")

    correction = Undo(revision=state.revision + 1, operation_id=operation_id, by=by, at=at, undone=revision)
    said = _what_it_is_about(state.ledger, undone)
    is_in_force = said in in_force((*state.ledger, correction))
    plan = _plan_again(state, said) if is_in_force else _plan_back(state, said)
    return _correct(state, correction, plan, settings, cluster=None)


def _what_it_is_about(ledger: Sequence[Correction], correction: Correction) -> Said:
    """What stands at the end of a chain of undos."""
    while isinstance(correction, Undo):
        undone = correction.undone
        correction = next(earlier for earlier in ledger if earlier.revision == undone)
    return correction


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a correction wants, before constraints and ids are settled.

    Attributes:
        labels: (n,) the cluster of each row; rows of a cluster that must be divided still share a label.
        next_cluster: the next id to give out.
        named: rows, and the id of the cluster that most of them end in; of several for one, that of one that lives.
        returning: aliases, and the ids that they lead to again.
    """

    labels: LabelVector
    next_cluster: ClusterId
    named: Sequence[tuple[Rows, ClusterId]] = ()
    returning: Mapping[ClusterId, ClusterId] = field(default_factory=dict)


def _correct(
    state: PetState, correction: Correction, plan: _Plan, settings: ClusterSettings, *, cluster: ClusterId | None
) -> tuple[Change, Corrected]:
    """The change that appends ``correction`` and brings the labels to what all corrections demand."""
    constraints = resolve((*state.ledger, correction))
    rows = constraints.by_row(state.rows)
    groups = enforce(plan.labels, state.vectors, rows, counts=(state.standings != Standing.ABSORBED) | rows.placed)
    regrouped = regroup(
        state,
        groups,
        standings_after(state.standings, groups, rows),
        rows,
        settings,
        given=_given(state, plan, groups, takes_over=not isinstance(correction, Undo)),
        next_cluster=plan.next_cluster,
        returning=plan.returning,
        ended={cluster: members for members, cluster in plan.named if cluster not in state.clusters},
    )
    # a long ledger takes a while to resolve, and mostly nothing in it yields
    known = resolve(state.ledger).overridden if constraints.overridden else ()
    overridden = tuple(said for said in constraints.overridden if said not in known)
    summary = {"n_moved": regrouped.n_moved, "overridden": list(overridden), **_told(correction)}
    change = regrouped.change(state, _kind(correction), by=correction.by, correction=correction, summary=summary)
    return change, Corrected(state.revision + 1, cluster, regrouped.n_moved, overridden, is_duplicate=False)


def standings_after(standings: StandingVector, groups: LabelVector, rows: RowConstraints) -> StandingVector:
    """CORRECTED is who a correction in force put there, and nobody else; the rest came as it came."""
    standings = standings.copy()
    standings[np.isin(standings, (Standing.CORRECTED, Standing.NOISE, Standing.DISMISSED))] = Standing.ARRIVED
    standings[rows.placed] = Standing.CORRECTED
    standings[groups == NOISE] = Standing.NOISE
    standings[rows.dismissed] = Standing.DISMISSED
    return standings


def _given(state: PetState, plan: _Plan, groups: LabelVector, *, takes_over: bool) -> dict[int, ClusterId]:
    """Group -> the id that the plan says.

    Args:
        takes_over: also where more of the group is of another cluster than is meant. Who takes something back means
            media that may be with others by now, and these keep the id that they have.
    """
    given: dict[int, ClusterId] = {}
    counts = (state.standings != Standing.ABSORBED) & (state.labels != NOISE)
    for rows, cluster in sorted(plan.named, key=lambda name: name[1] not in state.clusters):
        there, n = np.unique(groups[rows[groups[rows] != NOISE]], return_counts=True)
        if not len(there):
            continue
        group = int(there[n.argmax()])
        others = np.setdiff1d(np.flatnonzero((groups == group) & counts), rows)
        of_others = Counter(state.labels[others].tolist())
        is_theirs = all(of_others[other] <= n.max() for other in of_others.keys() - {cluster, *given.values()})
        if (is_theirs or takes_over) and group not in given and cluster not in given.values():
            given[group] = cluster
    return given


def _plan_again(state: PetState, correction: Said) -> _Plan:
    """A correction that is in force again: enforcing it joins and parts what it names; its cluster gets its id back."""
    match correction:
        case Merge(into=cluster, groups=groups):
            merged = [medium for media in groups.values() for medium in media]
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
    """The rows of those of these media that the pet still has."""
    return np.array([state.rows[medium] for medium in media if medium in state.rows], dtype=np.intp)


def _plan_back(state: PetState, correction: Said) -> _Plan:
    """Media where they were before a correction, as far as they are still where it put them."""
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
    """Every merged cluster gets its media back, and its aliases; who came later goes with the one it resembles most."""
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
    """What was moved returns to the source, and with it the whole cluster if that is most of it."""
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
    """Who was taken out returns: from the noise, and from clusters mostly theirs, which older corrections made."""
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
    """The labels, with those of these media that are in a cluster as noise, or in another cluster."""
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
    """Media that are in no cluster go back to where they were, if that still lives and nobody bars them from it.

    Args:
        ended: clusters that live again by them, unless their id leads elsewhere by now.
        returning: aliases, and the ids that they lead to again.
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
    """The rows of some media of a cluster that shall leave it, and of all that are in it."""
    named = list(dict.fromkeys(media_ids))
    members = _rows(state, cluster)
    elsewhere = [medium for medium in named if medium not in state.rows or state.labels[state.rows[medium]] != cluster]
    if elsewhere:
        raise UnknownMedia(pet=state.pet, media=tuple(elsewhere), where=f"cluster {cluster}")
    if not named:
        raise InvalidInput("media_ids", "is empty", f"name the media that leave cluster {cluster}")
    if len(named) == len(members):
        raise InvalidInput(
            "media_ids",
            f"are all {len(members)} media of cluster {cluster}",
            "leave at least one medium in the cluster, or dismiss them",
        )
    return np.sort(np.array([state.rows[medium] for medium in named], dtype=np.intp)), members


def _living(state: PetState, cluster: ClusterId, field_name: str) -> ClusterId:
    """The cluster that an id leads to."""
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
    """What the history says of a correction; media are told by their number, the ledger has their names."""
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
