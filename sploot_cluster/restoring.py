"""A pet as it was: old labels as a new revision, and what people said since then still holds.

Restoring takes back what machines did, and what corrections moved besides; it takes back no correction. Media that a
correction in force holds elsewhere stay there, and are counted. Who wants a correction gone undoes it. Media that came
later stay with those of then with whom they are now.

What an id means, it goes on meaning. The id of a group is, in this order,

1. the one that it has now, if people made it since then: whoever merged or split it knows it by that one;
2. that of the cluster of then of which more is here than in any other group: it is that cluster, back again. Not an id
   that people merged into another since: it means what it was merged into;
3. that of the living cluster, and else of one that ended since, of which more is here than in any other group;
4. a new one, split from where its media just were.

For the second and third it must be enough, as in a recluster (``settings.overlap_ratio``). Where nobody said anything
since, the second alone is at work, and all ids are those of then.

An id that no group has leads to the cluster that has more than half of the media which it held last. One that ended
before the revision that is restored leads to where the id is to which it led then.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sploot_cluster.assignment import let_count, most_similar
from sploot_cluster.constraints import Constraints, count_kept, enforce, in_force, resolve
from sploot_cluster.feedback import standings_after
from sploot_cluster.models import NOISE, Change, ClusterId, Correction, Merge, PetState, Restored, Standing
from sploot_cluster.past import Past
from sploot_cluster.regrouping import regroup
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.vectors import BoolVector, LabelVector, Rows


def plan_restore(
    state: PetState, past: Past, revision: int, *, settings: ClusterSettings, operation_id: str, by: str
) -> tuple[Change, Restored]:
    """The labels of a revision, with their ids, as far as corrections in force allow.

    Args:
        past: of ``state``.

    Raises:
        UnknownRevision: it has not been, or is not kept any more.
    """
    then, ended = past.at(revision), past.ended_since(revision)
    n_then, n_later = len(then.labels), state.n_media - len(then.labels)
    labels = np.append(then.labels, np.full(n_later, NOISE, dtype=np.int32))
    standings = np.append(let_count(then.labels, then.standings), state.standings[n_then:])
    counts = standings != Standing.ABSORBED
    clusters = _members(labels, counts=counts)
    _bring_later(labels, state, clusters, settings, n_then=n_then, counts=counts)

    constraints = resolve(state.ledger)
    rows = constraints.by_row(state.rows)
    groups = enforce(labels, state.vectors, rows, counts=counts | rows.placed)
    standings = standings_after(standings, groups, rows)
    said = tuple(correction for correction in state.ledger if correction.revision <= revision)
    merged = _merged_since(state.ledger, said)
    given: dict[int, ClusterId] = {}
    for meant in (
        _made_since(state, constraints, resolve(said)),
        {id_: members for id_, members in clusters.items() if id_ not in merged},
        _members(state.labels, counts=state.standings != Standing.ABSORBED),
        {id_: members for id_, members in ended.items() if id_ not in merged},
    ):
        _claim(given, meant, groups, settings, counts=standings != Standing.ABSORBED)
    regrouped = regroup(state, groups, standings, rows, settings, given=given, returning=then.aliases, ended=ended)
    told = dict(zip(state.media, regrouped.labels.tolist(), strict=True))
    aliases = {old: now for old, now in {**state.aliases, **regrouped.aliases}.items() if now is not None}
    kept, total = count_kept(told, constraints, aliases=aliases)
    restored = Restored(
        revision=state.revision + 1,
        restored=revision,
        n_moved=regrouped.n_moved,
        n_held=int(np.count_nonzero(regrouped.labels[:n_then] != then.labels)),
        n_later=n_later,
        constraints_kept=kept,
        constraints=total,
        kept=f"constraints kept {kept} of {total}",
        overridden=constraints.overridden,
    )
    summary = {
        "restored": revision,
        "operation_id": operation_id,
        "n_moved": restored.n_moved,
        "n_held": restored.n_held,
        "n_later": restored.n_later,
        "constraints": f"{kept} of {total}",
    }
    return regrouped.change(state, "restore", by=by, summary=summary), restored


def _members(labels: LabelVector, *, counts: BoolVector) -> dict[ClusterId, Rows]:
    """Cluster -> those of its rows that count."""
    ids = np.unique(labels[labels != NOISE]).tolist()
    return {ClusterId(id_): np.flatnonzero((labels == id_) & counts) for id_ in ids}


def _bring_later(
    labels: LabelVector,
    state: PetState,
    clusters: Mapping[ClusterId, Rows],
    settings: ClusterSettings,
    *,
    n_then: int,
    counts: BoolVector,
) -> None:
    """Put media that came later, in place, where those are with whom they are now.

    Of several clusters of then that make up much of the one that they are in now, it is the one that they resemble
    most. Where there is none, or they are in none now, they are noise.
    """
    for now, counting in _members(state.labels, counts=state.standings != Standing.ABSORBED).items():
        later = np.flatnonzero(state.labels[n_then:] == now) + n_then
        if not len(later):
            continue
        were, n = np.unique(labels[counting[counts[counting]]], return_counts=True)
        homes = {
            ClusterId(id_): clusters[ClusterId(id_)]
            for id_, common in zip(were.tolist(), n.tolist(), strict=True)
            if id_ != NOISE and common >= settings.overlap_ratio * min(len(clusters[ClusterId(id_)]), len(counting))
        }
        if homes:
            labels[later] = most_similar(homes, state.vectors, later) if len(homes) > 1 else next(iter(homes))


def _made_since(state: PetState, now: Constraints, then: Constraints) -> dict[ClusterId, Rows]:
    """Clusters -> the rows in them that people placed since, or that a change of mind since made a cluster of."""
    before = set(then.together)
    media = {medium for group in now.together if group not in before for medium in group.media}
    rows = np.array(sorted(state.rows[medium] for medium in media if medium in state.rows), dtype=np.intp)
    is_placed = np.zeros(state.n_media, dtype=np.bool_)
    is_placed[rows] = True
    return _members(np.where(is_placed, state.labels, NOISE).astype(np.int32), counts=is_placed)


def _merged_since(ledger: tuple[Correction, ...], said: tuple[Correction, ...]) -> set[ClusterId]:
    """The ids of clusters that people merged, where that is in force and was not when they had said so much."""
    before = {correction.revision for correction in in_force(said)}
    since = (correction for correction in in_force(ledger) if correction.revision not in before)
    return {id_ for correction in since if isinstance(correction, Merge) for id_ in correction.groups}


def _claim(
    given: dict[int, ClusterId],
    meant: Mapping[ClusterId, Rows],
    groups: LabelVector,
    settings: ClusterSettings,
    *,
    counts: BoolVector,
) -> None:
    """Give ids, in place, to the groups that have more of their media than any other, as far as these have none yet.

    Args:
        meant: id -> the rows that counted in its cluster.
        counts: (n,) bool, which rows count in ``groups``.
    """
    claims: list[tuple[int, ClusterId, int]] = []
    for id_, members in meant.items():
        there, n = np.unique(groups[members[(groups[members] != NOISE) & counts[members]]], return_counts=True)
        if len(there):
            group, common = int(there[n.argmax()]), int(n.max())
            if common >= settings.overlap_ratio * min(len(members), int(np.count_nonzero((groups == group) & counts))):
                claims.append((-common, id_, group))
    for _, id_, group in sorted(claims):
        if group not in given and id_ not in given.values():
            given[group] = id_
