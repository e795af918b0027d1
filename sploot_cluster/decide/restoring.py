"""Restore of a pet: the labels of an earlier revision become a new revision, as far as corrections in force allow.

A restore reverts what machines did, and the side effects of corrections; it does not revert a correction itself. Items
that a correction in force holds elsewhere stay there, and are counted. To remove a correction, undo it. Items that
arrived after the restored revision join the restored cluster of the items that they share a cluster with now.

Ids keep their meaning. A group gets the first of these ids that applies:

1. its current id, if users made the cluster after the restored revision: they know it by this id;
2. the id of the restored cluster that has more of its items in the group than in any other group: it is that cluster
   again. An id that users have since merged into another cluster is not used; it now refers to the merged cluster;
3. the id of the living cluster, or else of one that ended since, that has more of its items in the group than in any
   other group;
4. a new id, recorded as split from the cluster that its items were in just before.

For 2 and 3 the overlap must be sufficient, as in a recluster (``settings.overlap_ratio``). If there were no corrections
since the restored revision, only 2 applies, and all ids are those of that revision.

An id without a group becomes an alias of the cluster that has more than half of the items that the id held last. An id
that was already an alias at the restored revision follows the id that it pointed to then.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sploot_cluster.decide.assignment import let_count, most_similar
from sploot_cluster.decide.constraints import Constraints, count_kept
from sploot_cluster.decide.corrections.merge import Merge
from sploot_cluster.decide.corrections.planning import origins_after
from sploot_cluster.decide.enforcing import enforce
from sploot_cluster.decide.regrouping import IdRules, regroup
from sploot_cluster.decide.resolving import in_force, resolve
from sploot_cluster.pet.models import NOISE, Change, ClusterId, Correction, Origin, PetState, Restored
from sploot_cluster.pet.past import Past
from sploot_cluster.pet.vectors import BoolVector, LabelVector, Rows
from sploot_cluster.settings import ClusterSettings


def plan_restore(
    state: PetState, past: Past, revision: int, *, settings: ClusterSettings, operation_id: str, by: str
) -> tuple[Change, Restored]:
    """Return the change that restores the labels and ids of a revision, as far as corrections in force allow.

    Args:
        past: the earlier revisions of the pet, up to ``state``.

    Raises:
        UnknownRevision: the pet never had this revision, or it is no longer stored.
    """
    then, ended = past.at(revision), past.ended_since(revision)
    n_then, n_later = len(then.labels), state.n_media - len(then.labels)
    labels = np.append(then.labels, np.full(n_later, NOISE, dtype=np.int32))
    origins = np.append(let_count(then.labels, then.origins), state.origins[n_then:])
    counts = origins != Origin.ABSORBED
    clusters = _members(labels, counts=counts)
    _bring_later(labels, state, clusters, settings, n_then=n_then, counts=counts)

    constraints = resolve(state.ledger)
    rows = constraints.by_row(state.rows)
    groups = enforce(labels, state.vectors, rows, counts=counts | rows.placed)
    origins = origins_after(origins, groups, rows)
    ledger_then = tuple(correction for correction in state.ledger if correction.revision <= revision)
    merged = _merged_since(state.ledger, ledger_then)
    given: dict[int, ClusterId] = {}
    for meant in (
        _made_since(state, constraints, resolve(ledger_then)),
        {id_: members for id_, members in clusters.items() if id_ not in merged},
        _members(state.labels, counts=state.origins != Origin.ABSORBED),
        {id_: members for id_, members in ended.items() if id_ not in merged},
    ):
        _claim(given, meant, groups, settings, counts=origins != Origin.ABSORBED)
    ids = IdRules(given, returning=then.aliases, ended=ended)
    regrouped = regroup(state, groups, origins, rows, settings, ids=ids)
    cluster_of = dict(zip(state.media, regrouped.labels.tolist(), strict=True))
    aliases = {old: now for old, now in {**state.aliases, **regrouped.aliases}.items() if now is not None}
    n_kept, total = count_kept(cluster_of, constraints, aliases=aliases)
    restored = Restored(
        revision=state.revision + 1,
        restored=revision,
        n_moved=regrouped.n_moved,
        n_held=int(np.count_nonzero(regrouped.labels[:n_then] != then.labels)),
        n_later=n_later,
        constraints_kept=n_kept,
        constraints=total,
        kept=f"constraints kept {n_kept} of {total}",
        overridden=constraints.overridden,
    )
    summary = {
        "restored": revision,
        "operation_id": operation_id,
        "n_moved": restored.n_moved,
        "n_held": restored.n_held,
        "n_later": restored.n_later,
        "constraints": f"{n_kept} of {total}",
    }
    return regrouped.change(state, "restore", by=by, summary=summary), restored


def _members(labels: LabelVector, *, counts: BoolVector) -> dict[ClusterId, Rows]:
    """Return the rows of each cluster, without rows that do not count."""
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
    """Move each item that arrived later to the restored cluster of the items that now share its cluster.

    Modifies ``labels``. If several restored clusters overlap sufficiently with the item's current cluster, it joins the
    one that it is most similar to. If none does, or if it is noise now, it becomes noise.
    """
    for now, counting in _members(state.labels, counts=state.origins != Origin.ABSORBED).items():
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
    """Return, for each cluster, its rows that are in a :class:`Together` constraint of ``now`` but not of ``then``."""
    before = {(group.revision, group.media) for group in then.together}
    media = {item for group in now.together if (group.revision, group.media) not in before for item in group.media}
    rows = np.array(sorted(state.rows[item] for item in media if item in state.rows), dtype=np.intp)
    is_placed = np.zeros(state.n_media, dtype=np.bool_)
    is_placed[rows] = True
    return _members(np.where(is_placed, state.labels, NOISE).astype(np.int32), counts=is_placed)


def _merged_since(ledger: tuple[Correction, ...], ledger_then: tuple[Correction, ...]) -> set[ClusterId]:
    """Return the ids of the clusters in merges that are in force in ``ledger`` but not in ``ledger_then``."""
    before = {correction.revision for correction in in_force(ledger_then)}
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
    """Add ids to ``given`` for groups without one. Each id goes to the group that has most of its items.

    Args:
        meant: id -> the rows that counted in its cluster.
        counts: (n,) bool, which rows count in ``groups``.
    """
    claims: list[tuple[int, ClusterId, int]] = []
    for id_, members in meant.items():
        candidates, n = np.unique(groups[members[(groups[members] != NOISE) & counts[members]]], return_counts=True)
        if len(candidates):
            group, common = int(candidates[n.argmax()]), int(n.max())
            if common >= settings.overlap_ratio * min(len(members), int(np.count_nonzero((groups == group) & counts))):
                claims.append((-common, id_, group))
    for _, id_, group in sorted(claims):
        if group not in given and id_ not in given.values():
            given[group] = id_
