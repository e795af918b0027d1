"""Learning from corrections: a correction also affects similar items that it does not name.

If a user separated two clusters, density alone would mix their later items again, or leave them as noise, because it
cannot distinguish look-alikes as the user did. So an item within reach of such a cluster stays in it if it is already
there. Otherwise it goes to the cluster whose *named items* (the items that corrections name) it resembles most.
"""

from __future__ import annotations

from itertools import accumulate
from operator import or_
from typing import Final

import numpy as np

from sploot_cluster.decide.assignment import reaches, similarity_to, threshold_of
from sploot_cluster.decide.constraints import FREE, RowConstraints
from sploot_cluster.pet.models import NOISE
from sploot_cluster.pet.vectors import BoolVector, FloatMatrix, LabelVector, Rows

# Maximum number of named items per group that other items are compared with. Comparing 512 of them with 50,000 items
# of 512 dimensions takes 0.3 s.
MOST_NAMED: Final = 512


def follow_named(
    groups: LabelVector, vectors: FloatMatrix, rows: RowConstraints, *, before: LabelVector
) -> LabelVector:
    """Return a copy of ``groups`` in which unnamed items follow the named items that they resemble most.

    Only groups that a correction separates from another group attract items: the *separated groups*. The target of an
    item within reach of their named items is the separated group whose named items come mostly from the item's cluster,
    or else the most similar one. The item moves to its target if it is noise or in another separated group. A group
    without named items is divided among the separated groups if at least half of its items are within reach: each item
    joins its target, and items out of reach join the group that most of the others join.

    Args:
        groups: (n,) int32, -1 = noise, as :func:`~sploot_cluster.decide.enforcing.enforce` returns them.
        vectors: (n, dim) float32 of unit norm.
        rows: the constraints.
        before: (n,) int32 clusters that ``groups`` replace, with absorbed rows as noise.

    Applying the function to its own result changes nothing.
    O(k · n · dim) for k named items, at most ``MOST_NAMED`` in each separated group.
    """
    taught = _separated(groups, rows)
    free = np.flatnonzero((rows.atoms < 0) & ~rows.dismissed)
    if not taught or not len(free):
        return groups
    similarity = np.full((len(taught), len(free)), -np.inf, dtype=np.float32)
    for at, (group, named) in enumerate(taught.items()):
        likeness = similarity_to(vectors[named], vectors[free])
        is_within = reaches(likeness, threshold_of(vectors[named])) <= 1
        similarity[at, is_within] = likeness[is_within]
        clusters, n = np.unique(before[named], return_counts=True)
        is_home = (before[free] == clusters[n.argmax()]) & (before[free] != NOISE)
        similarity[at, is_home & (is_within | (groups[free] == group))] = np.inf
    nearest = np.array(list(taught), dtype=np.int32)[similarity.argmax(axis=0)]
    nearest[similarity.max(axis=0) == -np.inf] = NOISE
    return _joined(groups, free, nearest, taught=np.isin(groups[free], list(taught)), rows=rows)


def _joined(
    groups: LabelVector, free: Rows, nearest: LabelVector, *, taught: BoolVector, rows: RowConstraints
) -> LabelVector:
    """Return the groups after unnamed items have moved. ``nearest`` is the target group of each ``free`` row."""
    joined = groups.copy()
    moves = (nearest != NOISE) & (taught | (groups[free] == NOISE))
    joined[free[moves]] = nearest[moves]
    has_named = np.unique(groups[rows.atoms >= 0])
    for group in np.setdiff1d(np.unique(groups[free[nearest != NOISE]]), [*has_named, NOISE]).tolist():
        members = groups[free] == group
        wanted = nearest[members]
        within = wanted[wanted != NOISE]
        if 2 * len(within) >= len(wanted):
            found, n = np.unique(within, return_counts=True)
            joined[free[members]] = np.where(wanted == NOISE, found[n.argmax()], wanted)
    return joined


def _separated(groups: LabelVector, rows: RowConstraints) -> dict[int, Rows]:
    """Return the named rows of each group that a correction separates from another group, by group.

    If a group has more than ``MOST_NAMED`` of them, only that many are returned, evenly spaced.
    """
    named = np.flatnonzero((rows.atoms >= 0) & (groups != NOISE))
    order = named[np.argsort(groups[named], kind="stable")]
    found, starts = np.unique(groups[order], return_index=True)
    members_of = dict(zip(found.tolist(), np.split(order, starts[1:]), strict=True)) if len(order) else {}
    sides = [rows.sides_of(members) for members in members_of.values()]
    # the combined sides of the groups before each group, and of the groups after it
    before, after = [*accumulate(sides, or_, initial=FREE)], [*accumulate(reversed(sides), or_, initial=FREE)][::-1]
    return {
        group: members[np.linspace(0, len(members) - 1, num=min(len(members), MOST_NAMED)).astype(np.intp)]
        for at, (group, members) in enumerate(members_of.items())
        if sides[at].conflict(before[at] | after[at + 1])
    }
