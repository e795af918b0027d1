"""Conversion of density groups into clusters: corrections are enforced, noise stays within its budget, ids are stable.

The conversion is a pure function of a pet's state and its density. It is cheap compared with computing the density, so
it is simply repeated when another writer commits first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from sploot_cluster.decide.assignment import Thresholds, reaches, similarity_to
from sploot_cluster.decide.constraints import FREE, RowConstraints, Sides, count_kept
from sploot_cluster.decide.corrections.lock import Locking
from sploot_cluster.decide.enforcing import enforce
from sploot_cluster.decide.learning import follow_named
from sploot_cluster.decide.presentation import locked_in
from sploot_cluster.decide.regrouping import IdRules, regroup
from sploot_cluster.decide.resolving import in_force, resolve
from sploot_cluster.engine.selection import Density
from sploot_cluster.pet.models import NOISE, Change, ClusterId, Origin, PetState, Reclustered
from sploot_cluster.pet.rows import follow
from sploot_cluster.pet.vectors import BoolVector, FloatVector, LabelVector, Rows
from sploot_cluster.settings import ClusterSettings

UNREACHABLE: Final = np.inf

# Maximum number of times to repeat a recluster of a pet with locks on its own result. Two are usually enough.
MOST_REPEATS: Final = 8


def plan_recluster(
    state: PetState, density: Density, *, settings: ClusterSettings, by: str
) -> tuple[Change, Reclustered]:
    """Return the change that reclusters the pet, and the report on it.

    1. Corrections are enforced on the density groups; items that joined a merged cluster later stay in it.
    2. Curated clusters, those with items that a user placed, are never joined automatically and keep their id. Locked
       clusters stay as they are, except that new items within their higher threshold join them.
    3. Items that no correction names follow the named items that they resemble, where a correction separates clusters.
    4. Items that arrived while density was computed are assigned like arrivals. So are items that a correction removes
       from their density group.
    5. Noise beyond the budget is absorbed, the most similar items first, as far as ``absorption_slack`` allows. Items
       that a user excluded from a cluster are not absorbed, and do not count towards the budget. If there are any,
       others are absorbed only as far as ``absorption_slack_excluded`` allows.
    6. Groups inherit the ids of the clusters that they overlap with.
    7. If the pet has locks, these steps are repeated on the result until nothing moves, so that another recluster would
       change nothing. One pass may not be enough, because a cluster that returns may be locked, and other items may
       resemble those that joined a cluster.

    Args:
        state: the newest state; ``density`` covers its first ``len(density.labels)`` items.
    """
    change, reclustered = _plan_once(state, density, settings=settings, by=by)
    if not any(isinstance(statement, Locking) for statement in in_force(state.ledger)):
        return change, reclustered
    for _ in range(MOST_REPEATS):
        # keep the revision, because both changes become one commit
        then = replace(follow(state, change, version=state.version), revision=state.revision)
        again, settled = _plan_once(then, density, settings=settings, by=by)
        if not (settled.n_moved or settled.n_new_ids or settled.n_retired_ids):
            break
        change, reclustered = _joined(state, change, again, settled)
    return change, reclustered


def _joined(state: PetState, change: Change, again: Change, settled: Reclustered) -> tuple[Change, Reclustered]:
    """Combine two changes into one, and return it with its report. ``settled`` is the report on the second change."""
    assert again.relabelling is not None
    labels = again.relabelling.labels
    living = {ClusterId(label) for label in np.unique(labels[labels != NOISE]).tolist()}
    reclustered = replace(
        settled,
        n_moved=int(np.count_nonzero(labels != state.labels)),
        n_kept_ids=len(living & state.clusters.keys()),
        n_new_ids=len(living - state.clusters.keys()),
        n_retired_ids=len(state.clusters.keys() - living),
    )
    cards = {**change.clusters, **again.clusters}
    aliases = {**change.aliases, **again.aliases}
    joined = replace(
        again,
        clusters={id_: card for id_, card in cards.items() if card is not None or id_ in state.clusters},
        aliases={old: now for old, now in aliases.items() if now is not None or old in state.aliases},
        summary=_summary_of(reclustered),
    )
    return joined, reclustered


def _plan_once(state: PetState, density: Density, *, settings: ClusterSettings, by: str) -> tuple[Change, Reclustered]:
    constraints = resolve(state.ledger)
    rows = constraints.by_row(state.rows)
    n_seen = len(density.labels)
    groups: LabelVector = np.full(state.n_media, NOISE, dtype=np.int32)
    groups[:n_seen] = density.labels
    dense = groups
    locked = _Locked(state)
    groups = locked.apart(groups, rows, settings)
    all_rows = np.ones(state.n_media, dtype=np.bool_)
    before = np.where(state.origins == Origin.ABSORBED, NOISE, state.labels).astype(np.int32)
    groups = enforce(groups, state.vectors, rows, counts=all_rows, before=before, fair_share=settings.overlap_ratio)
    given = _keep_curated(state, groups, rows, settings, locked.groups)
    groups = locked.kept(groups, follow_named(groups, state.vectors, rows, before=before))

    origins = np.where(groups == NOISE, Origin.NOISE, Origin.CORE).astype(np.uint8)
    origins[rows.placed] = Origin.CORRECTED
    origins[rows.dismissed] = Origin.DISMISSED
    thresholds = Thresholds(state, stale=locked.clusters)
    reaches = _Reaches(state, groups, rows, thresholds, locked.groups)
    is_late = (np.arange(state.n_media) >= n_seen) | (dense != NOISE)
    late = np.flatnonzero((groups == NOISE) & is_late & ~rows.dismissed)
    late_groups, late_reach = reaches.nearest(late)
    joins = reaches.admit(late, late_groups, np.flatnonzero(late_reach <= settings.arrival_slack))
    groups[late[joins]], origins[late[joins]] = late_groups[joins], Origin.ARRIVED

    noise = np.flatnonzero((groups == NOISE) & ~rows.dismissed & ~rows.taken_out)
    excess = len(noise) - settings.noise_budget(state.n_media)
    if excess > 0:
        noise_groups, noise_similarity, noise_reach = reaches.most_similar(noise)
        slack = settings.absorption_slack
        if rows.taken_out.any():
            slack = min(slack, settings.absorption_slack_excluded)
        within = np.flatnonzero(noise_reach <= slack)
        closest = within[np.argsort(-noise_similarity[within], kind="stable")][:excess]
        absorbed = reaches.admit(noise, noise_groups, closest)
        groups[noise[absorbed]], origins[noise[absorbed]] = noise_groups[absorbed], Origin.ABSORBED

    regrouped = regroup(state, groups, origins, rows, settings, ids=IdRules(given), thresholds=thresholds)
    labels = dict(zip(state.media, regrouped.labels.tolist(), strict=True))
    aliases = {old: now for old, now in {**state.aliases, **regrouped.aliases}.items() if now is not None}
    n_kept, total = count_kept(labels, constraints, aliases=aliases)
    reclustered = Reclustered(
        revision=state.revision + 1,
        backend=density.backend,
        n_media=state.n_media,
        n_clusters=len(set(labels.values()) - {NOISE}),
        n_noise=int(np.count_nonzero(regrouped.origins == Origin.NOISE)),
        n_dismissed=int(np.count_nonzero(rows.dismissed)),
        n_absorbed=int(np.count_nonzero(regrouped.origins == Origin.ABSORBED)),
        n_moved=regrouped.n_moved,
        n_kept_ids=regrouped.n_kept_ids,
        n_new_ids=regrouped.n_new_ids,
        n_retired_ids=regrouped.n_retired_ids,
        constraints_kept=n_kept,
        constraints=total,
        kept=f"constraints kept {n_kept} of {total}",
        overridden=constraints.overridden,
    )
    summary = _summary_of(reclustered)
    return regrouped.change(state, "recluster", by=by, summary=summary, is_recluster=True), reclustered


def _summary_of(reclustered: Reclustered) -> dict[str, object]:
    """Return the summary for the pet's history."""
    return {
        "n_media": reclustered.n_media,
        "n_clusters": reclustered.n_clusters,
        "n_noise": reclustered.n_noise,
        "n_dismissed": reclustered.n_dismissed,
        "n_absorbed": reclustered.n_absorbed,
        "n_moved": reclustered.n_moved,
        "constraints": f"{reclustered.constraints_kept} of {reclustered.constraints}",
    }


def _keep_curated(
    state: PetState,
    groups: LabelVector,
    rows: RowConstraints,
    settings: ClusterSettings,
    locked: Mapping[int, ClusterId],
) -> dict[int, ClusterId]:
    """Reserve the ids of curated clusters, and move their items out of groups that belong to other clusters.

    Modifies ``groups``. A group can contain items that users placed in several clusters, or few placed items among many
    others. The cluster with the most placed items claims the group, if they are a fair share of it
    (``settings.overlap_ratio``) or if most of the group was in that cluster before. The placed items of other clusters
    leave the group, together with the other current members of their clusters.

    Args:
        locked: group -> id of the locked clusters, which stay as they are.

    Returns:
        The reserved ids: group -> id.
    """
    placed = np.flatnonzero(rows.placed & (state.labels != NOISE))
    claims: dict[int, Counter[int]] = {}
    for group, cluster in zip(groups[placed].tolist(), state.labels[placed].tolist(), strict=True):
        claims.setdefault(group, Counter())[cluster] += 1

    fresh = max(int(groups.max(initial=0)), 0)
    held: list[tuple[int, ClusterId, int]] = []  # number of placed items, cluster, group
    for group, n_placed in sorted(claims.items()):
        if group in locked:
            continue
        members = groups == group
        before = Counter(state.labels[members & (state.origins != Origin.ABSORBED)].tolist())
        before.pop(NOISE, None)
        ranked = sorted(n_placed, key=lambda cluster: (-n_placed[cluster], cluster))
        for rank, cluster in enumerate(ranked):
            is_fair = n_placed[cluster] >= settings.overlap_ratio * np.count_nonzero(members)
            was_most = 2 * before[cluster] > before.total()
            target = group
            if rank > 0 or not (is_fair or was_most):
                target = fresh = fresh + 1
                leaving = members & (state.labels == cluster) & (state.origins != Origin.ABSORBED)
                groups[leaving] = target
            held.append((n_placed[cluster], ClusterId(cluster), target))

    given: dict[int, ClusterId] = dict(locked)
    for _, cluster, group in sorted(held, key=lambda claim: (-claim[0], claim[1], claim[2])):
        if cluster not in given.values():
            given[group] = cluster
    return given


class _Locked:
    """The locked clusters of a pet during a recluster.

    Attributes:
        clusters: their ids.
        groups: group number -> the id of the locked cluster that is this group; filled by :meth:`apart`.
    """

    def __init__(self, state: PetState) -> None:
        self._state = state
        self.clusters = locked_in(state)
        self.groups: dict[int, ClusterId] = {}
        self._is_in: BoolVector = np.isin(state.labels, sorted(self.clusters))

    def apart(self, groups: LabelVector, rows: RowConstraints, settings: ClusterSettings) -> LabelVector:
        """Return the groups with each locked cluster as a group of its own.

        A noise item that arrived since the last recluster joins a locked cluster if it is within the threshold and in
        no other density group, unless a correction names it. Older noise does not join, so that repeating a recluster
        changes nothing. The rest of a density group that contained a locked cluster becomes noise if it is too small
        for a group.
        """
        if not self.clusters:
            return groups
        state, apart = self._state, groups.copy()
        is_new = np.arange(state.n_media) >= state.n_at_recluster
        is_free = is_new & (state.labels == NOISE) & (rows.atoms < 0) & ~rows.dismissed
        fresh = max(int(groups.max(initial=0)), 0)
        for cluster in sorted(self.clusters):
            fresh += 1
            members = state.labels == cluster
            self.groups[fresh] = cluster
            around = np.unique(groups[members & (groups != NOISE)])
            is_near = np.isin(groups, [*around.tolist(), NOISE]) & (apart == groups)
            near = np.flatnonzero(is_near & is_free)
            counted = np.flatnonzero(members & (state.origins != Origin.ABSORBED))
            likeness = similarity_to(state.vectors[counted], state.vectors[near])
            apart[near[reaches(likeness, state.clusters[cluster].threshold) <= 1]] = fresh
            apart[members] = fresh
        for group in np.unique(groups[self._is_in & (groups != NOISE)]).tolist():
            rest = apart == group
            if np.count_nonzero(rest) < settings.small_group:
                apart[rest] = NOISE
        return apart

    def kept(self, before: LabelVector, after: LabelVector) -> LabelVector:
        """Return the groups ``after`` a step, except that items that left or joined a locked cluster move back."""
        if not self.clusters:
            return after
        locked = list(self.groups)
        return np.where(np.isin(before, locked) | np.isin(after, locked), before, after).astype(np.int32)


class _Reaches:
    """A calculator of items' :func:`~sploot_cluster.decide.assignment.reach` from the groups of a recluster."""

    def __init__(
        self,
        state: PetState,
        groups: LabelVector,
        rows: RowConstraints,
        thresholds: Thresholds,
        locked: Collection[int],
    ) -> None:
        self._vectors, self._rows = state.vectors, rows
        self._members: list[Rows] = [np.flatnonzero(groups == group) for group in np.unique(groups[groups != NOISE])]
        self._groups = [int(groups[members[0]]) for members in self._members]
        self._numbers = np.array(self._groups or [NOISE], dtype=np.int32)
        self._thresholds = [thresholds.of(members) for members in self._members]
        self._is_locked = [group in locked for group in self._groups]
        self._sides: list[Sides] = [rows.sides_of(members) for members in self._members]

    def nearest(self, media: Rows) -> tuple[LabelVector, FloatVector]:
        """Return the group that each of ``media`` would join as an arrival, and its reach from that group.

        The group is the most similar of those whose threshold the item reaches, or else the one with the lowest reach.
        The reach is infinite where corrections forbid all groups.
        """
        # for each item: the most similar group within reach, and the group with the lowest reach
        within, likeness = np.full(len(media), -1), np.full(len(media), -np.inf, dtype=np.float32)
        lowest, reach = np.zeros(len(media), dtype=np.intp), np.full(len(media), UNREACHABLE, dtype=np.float32)
        reach_within = reach.copy()
        for at, (similarity, far) in enumerate(self._measured(media)):
            is_better = (far <= 1) & (similarity > likeness)
            within[is_better], likeness[is_better], reach_within[is_better] = at, similarity[is_better], far[is_better]
            is_lower = far < reach
            lowest[is_lower], reach[is_lower] = at, far[is_lower]
        chosen = np.where(within >= 0, within, lowest)
        return self._numbers[chosen], np.where(within >= 0, reach_within, reach)

    def most_similar(self, media: Rows) -> tuple[LabelVector, FloatVector, FloatVector]:
        """Return, for each of ``media``, the most similar group, the similarity to it, and the reach from it.

        Groups that corrections forbid are left out; the reach is infinite where they forbid all.
        """
        chosen, likeness = np.zeros(len(media), dtype=np.intp), np.full(len(media), -np.inf, dtype=np.float32)
        reach = np.full(len(media), UNREACHABLE, dtype=np.float32)
        for at, (similarity, far) in enumerate(self._measured(media)):
            is_better = (far < UNREACHABLE) & (similarity > likeness)
            chosen[is_better], likeness[is_better], reach[is_better] = at, similarity[is_better], far[is_better]
        return self._numbers[chosen], likeness, reach

    def _measured(self, media: Rows) -> Iterator[tuple[FloatVector, FloatVector]]:
        """Yield, for each group, the similarity of ``media`` to it and their reach from it, as float32.

        Groups are processed one by one, because in a pet with many small groups and much noise, a matrix of both would
        take gigabytes. The reach is UNREACHABLE where corrections forbid a group, and for locked clusters.
        """
        sides = [self._rows.sides[atom] if atom >= 0 else FREE for atom in self._rows.atoms[media].tolist()]
        queries = self._vectors[media]
        for members, threshold, its_sides, is_locked in zip(
            self._members, self._thresholds, self._sides, self._is_locked, strict=True
        ):
            similarity = similarity_to(self._vectors[members], queries)
            far = np.full(len(media), UNREACHABLE, dtype=np.float32) if is_locked else reaches(similarity, threshold)
            if its_sides:
                far[[its_sides.conflict(its_own) for its_own in sides]] = UNREACHABLE
            yield similarity, far

    def admit(self, media: Rows, groups: LabelVector, candidates: Rows) -> Rows:
        """Return the ``candidates`` that may join their group.

        Candidates are admitted one by one, because two of them may be kept apart from each other without being kept
        apart from any present member of the group.

        Args:
            candidates: positions in ``media`` and ``groups``.
        """
        admitted, at_of = [], {group: at for at, group in enumerate(self._groups)}
        for candidate in candidates.tolist():
            atom = int(self._rows.atoms[media[candidate]])
            sides, at = self._rows.sides[atom] if atom >= 0 else FREE, at_of[int(groups[candidate])]
            if not self._sides[at].conflict(sides):
                self._sides[at] |= sides
                admitted.append(candidate)
        return np.array(admitted, dtype=np.intp)
