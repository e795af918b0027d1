"""Enforcement of constraints: labels are changed so that every accepted constraint holds.

No atom is ever divided, and two atoms in conflict are never put into one cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from operator import or_
from typing import Final

import numpy as np

from sploot_cluster.decide.constraints import FREE, Forest, RowConstraints, Sides
from sploot_cluster.limits import SMALLEST_NORM
from sploot_cluster.pet.models import NOISE
from sploot_cluster.pet.vectors import BoolVector, FloatMatrix, FloatVector, LabelVector, Rows

# Number of neighbours to which an unconstrained item is tied when its group is divided. A few more would not change the
# results.
_TIES: Final = 8
_BLOCK: Final = 512


def enforce(
    labels: LabelVector,
    vectors: FloatMatrix,
    rows: RowConstraints,
    *,
    counts: BoolVector,
    before: LabelVector | None = None,
    fair_share: float = 1.0,
) -> LabelVector:
    """Return a copy of ``labels`` that satisfies every accepted constraint, changed only where one was violated.

    1. Dismissed items become noise.
    2. Each placed atom that lies in several groups, or in noise, is gathered in the group that holds more than half of
       it. A group moves with the atom if the atom makes up more than half of the group. If no group holds more than
       half of the atom, the atom is gathered in one of the groups that move with it. If there is none, it becomes a
       group of its own, and the other items of its former groups stay.
    3. Excluded items leave, one by one, the groups that contain items from which they were excluded.
    4. Each group with atoms in conflict is divided: items follow the side to which similarity ties them.

    Args:
        labels: (n,) int32 groups, -1 = noise. Not modified.
        vectors: (n, dim) float32 of unit norm.
        rows: the constraints.
        counts: (n,) bool, which rows count towards the size of a group; absorbed rows do not.
        before: (n,) int32 clusters that ``labels`` replace, with absorbed rows as noise. If given, a group also moves
            with an atom if most of the group was in the atom's cluster before, and the group holds a fair share of a
            cluster that users merged. So items that joined a merged cluster later stay in it, even where density finds
            two groups and the later items outnumber the merged ones. But a foreign group is not pulled in because one
            of its items was in the cluster by mistake. This rule does not apply to groups that could be gathered into
            one that contains atoms in conflict: that group would be divided, so the next recluster would see a
            different ``before`` and could move items again, even without new ones.
        fair_share: the fair share of a cluster that users merged, in (0, 1].

    Returns:
        (n,) int32; new groups get numbers above all those in ``labels``. An item that ends up alone in a group becomes
        noise, unless a user put it there.

    O(n) where nothing is violated; dividing a group of m items, f of them on no side, is O(m · f · dim).
    """
    obeying = labels.copy()
    obeying[rows.dismissed] = NOISE
    if (rows.atoms >= 0).any():
        _gather(obeying, rows, counts, before, fair_share)
        _release(obeying, rows)
        _divide(obeying, vectors, rows, counts)
    return obeying


def _gather(
    labels: LabelVector, rows: RowConstraints, counts: BoolVector, before: LabelVector | None, fair_share: float
) -> None:
    """Move each placed atom into one group. Modifies ``labels``."""
    placed = np.flatnonzero(rows.placed)
    size_of = _counted(labels[counts])
    fresh = max(int(labels.max()), 0)
    scattered = [
        members
        for members in _split_by(rows.atoms[placed], placed)
        if labels[members[0]] == NOISE or (labels[members] != labels[members[0]]).any()
    ]
    quarrelling = _quarrelling(labels, rows) if scattered and before is not None else set()
    homes: list[tuple[Rows, int]] = []
    followers: list[tuple[int, int]] = []
    for members in scattered:
        votes = _counted(labels[members[counts[members]]])
        stayed: dict[int, int] = {}
        if before is not None and votes.keys().isdisjoint(quarrelling) and (clusters := _counted(before[members])):
            cluster = max(clusters, key=lambda cluster: (clusters[cluster], -cluster))
            stayed = _counted(labels[counts & (before == cluster)])
        following = [
            group
            for group, n in votes.items()
            if 2 * n > size_of[group]
            or (
                2 * stayed.get(group, 0) > size_of[group]
                and any(
                    np.count_nonzero(labels[cluster] == group) >= fair_share * len(cluster)
                    for cluster in rows.clusters.get(int(rows.atoms[members[0]]), ())
                )
            )
        ]
        favourite = max(votes, key=lambda group: (votes[group], -group), default=NOISE)
        if 2 * votes.get(favourite, 0) > len(members):
            home = favourite
        elif following:
            home = max(following, key=lambda group: (votes[group], -group))
        else:
            home = fresh = fresh + 1
        homes.append((members, home))
        followers.extend((home, group) for group in following)
    for members, home in homes:
        labels[members] = home
    forest = Forest([FREE] * (fresh + 1))
    for home, group in followers:
        forest.union(home, group)
    for group in {group for pair in followers for group in pair}:
        labels[labels == group] = forest.find(group)


def _quarrelling(labels: LabelVector, rows: RowConstraints) -> set[int]:
    """Return the groups that gathering could combine into a group with atoms in conflict."""
    sided = np.flatnonzero((rows.atoms >= 0) & (labels != NOISE))
    joined = Forest([FREE] * (max(int(labels.max()), 0) + 1))
    for members in _split_by(rows.atoms[sided], sided):
        if rows.placed[members[0]]:
            for label in np.unique(labels[members]).tolist():
                joined.union(int(labels[members[0]]), label)
    roots = np.array([joined.find(label) for label in labels[sided].tolist()], dtype=np.int32)
    found: set[int] = set()
    for gathered in _split_by(roots, sided):
        if _has_conflict(rows.sides[atom] for atom in np.unique(rows.atoms[gathered]).tolist()):
            found.update(np.unique(labels[gathered]).tolist())
    return found


def _release(labels: LabelVector, rows: RowConstraints) -> None:
    """Turn excluded items into noise if their group still contains items from which they were excluded.

    Modifies ``labels``. The other members stay, because they were not excluded. A single item that is left over becomes
    noise too, unless a user placed it.
    """
    left: set[int] = set()
    remaining_in: dict[int, int] = {}
    for row, bits in rows.leaving.items():
        group = int(labels[row])
        if group == NOISE:
            continue
        if group not in remaining_in:
            remaining_in[group] = rows.sides_of(np.flatnonzero(labels == group)).remaining
        if bits & remaining_in[group]:
            labels[row] = NOISE
            left.add(group)
    for group in left:
        members = np.flatnonzero(labels == group)
        if len(members) == 1 and not rows.placed[members[0]]:
            labels[members] = NOISE


def _divide(labels: LabelVector, vectors: FloatMatrix, rows: RowConstraints, counts: BoolVector) -> None:
    """Divide every group that contains atoms in conflict. Modifies ``labels``."""
    sided = np.flatnonzero((rows.atoms >= 0) & (labels != NOISE))
    fresh = max(int(labels.max()), 0)
    for members in _split_by(labels[sided], sided):
        if not _has_conflict(rows.sides[atom] for atom in np.unique(rows.atoms[members]).tolist()):
            continue
        parts = _parts(np.flatnonzero(labels == labels[members[0]]), vectors, rows)
        parts.sort(key=lambda part: (-np.count_nonzero(counts[part]), part[0]))
        for number, part in enumerate(parts):
            is_nothing = len(part) == 1 or not counts[part].any()
            if is_nothing and not rows.placed[part].any():
                labels[part] = NOISE
            elif number:  # the largest part keeps the label
                labels[part] = fresh = fresh + 1


def _has_conflict(sides_of_atoms: Iterable[Sides]) -> bool:
    n_of = Counter(sides_of_atoms)
    everything = reduce(or_, n_of, FREE)
    if not everything.moved & everything.remaining:
        return False
    # an atom on both sides of a split is not in conflict with itself, only with another such atom
    return any(one.conflict(other) for one, other in combinations(n_of, 2)) or any(
        sides.conflict(sides) and n > 1 for sides, n in n_of.items()
    )


def _parts(members: Rows, vectors: FloatMatrix, rows: RowConstraints) -> list[Rows]:
    """Divide one group into parts, no two of which could be joined without a conflict.

    Items on the same sides start as one node, because they share a group and no correction separates them. Items on no
    side are tied to their nearest neighbours. Ties are applied strongest first, except those that would cause a
    conflict.
    """
    nodes, sides = _nodes(members, rows)
    forest = Forest(sides)
    is_free = np.array([not side for side in sides])
    for one, other in _ties(vectors[members], np.flatnonzero(is_free[nodes])):
        forest.union(int(nodes[one]), int(nodes[other]))

    roots = np.array([forest.find(node) for node in range(len(sides))])
    components = _split_by(roots[nodes], np.arange(len(members)))
    sides_of = [forest.sides_of(int(nodes[component[0]])) for component in components]
    centres = [vectors[members[component]].sum(axis=0) for component in components]
    # components on a side come first; each of the others then joins the part that it resembles most
    order = sorted(range(len(components)), key=lambda i: (not sides_of[i], -len(components[i]), components[i][0]))
    parts: list[_Part] = []
    for i in order:
        fitting = [part for part in parts if not part.sides.conflict(sides_of[i])]
        if fitting:
            part = max(fitting, key=lambda part: part.resemblance(centres[i]))
            part.components.append(components[i])
            part.sides |= sides_of[i]
            part.centre = part.centre + centres[i]
        else:
            parts.append(_Part([components[i]], sides_of[i], centres[i]))
    return [np.sort(members[np.concatenate(part.components)]) for part in parts]


@dataclass(slots=True)
class _Part:
    """A part of a group under construction."""

    components: list[Rows]
    sides: Sides
    centre: FloatVector

    def resemblance(self, centre: FloatVector) -> float:
        return float(self.centre @ centre) / max(float(np.linalg.norm(self.centre)), SMALLEST_NORM)


def _nodes(members: Rows, rows: RowConstraints) -> tuple[Rows, list[Sides]]:
    """Return the node of each member, and the sides of each node."""
    nodes = np.empty(len(members), dtype=np.intp)
    sides: list[Sides] = []
    node_of: dict[object, int] = {}
    for position, (row, atom) in enumerate(zip(members.tolist(), rows.atoms[members].tolist(), strict=True)):
        its_sides = rows.sides[atom] if atom >= 0 else FREE
        alike: object = its_sides
        if not its_sides or its_sides.conflict(its_sides):
            # a separate node: items on no side need not belong together, and atoms on both sides of a split conflict
            alike = ("atom", atom) if atom >= 0 else ("row", row)
        if alike not in node_of:
            node_of[alike] = len(sides)
            sides.append(its_sides)
        nodes[position] = node_of[alike]
    return nodes, sides


def _ties(vectors: FloatMatrix, free: Rows) -> list[tuple[int, int]]:
    """Return pairs of rows, most similar first: each free row with its nearest neighbours.

    Pairs of equal similarity are ordered by row, so that the result is deterministic.
    """
    k = min(_TIES, len(vectors) - 1)
    ends: list[Rows] = []
    similarities: list[FloatVector] = []
    for start in range(0, len(free), _BLOCK):
        block = free[start : start + _BLOCK]
        similarity = vectors[block] @ vectors.T
        similarity[np.arange(len(block)), block] = -np.inf
        nearest = np.argpartition(similarity, -k, axis=1)[:, -k:]
        similarities.append(np.take_along_axis(similarity, nearest, axis=1).ravel())
        ends.append(np.stack([np.repeat(block, k), nearest.ravel()], axis=1))
    if not ends:
        return []
    pairs = np.concatenate(ends)
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -np.concatenate(similarities)))
    return [(one, other) for one, other in pairs[order].tolist()]


def _counted(labels: LabelVector) -> dict[int, int]:
    """Return the number of rows in each group, without noise."""
    groups, n = np.unique(labels[labels != NOISE], return_counts=True)
    return dict(zip(groups.tolist(), n.tolist(), strict=True))


def _split_by(keys: LabelVector | Rows, values: Rows) -> list[Rows]:
    """Return ``values`` grouped by equal keys, in ascending key order. The values of a group keep their order."""
    if not len(values):
        return []
    order = np.argsort(keys, kind="stable")
    return np.split(values[order], np.flatnonzero(np.diff(keys[order])) + 1)
