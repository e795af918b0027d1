"""Stable cluster ids across reclusters and corrections.

A group inherits the id of the cluster that it overlaps with. Ids are never reused. An id that ends becomes an alias of
the cluster that most of its items went to. Absorbed items do not affect ids, because they come and go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sploot_cluster.engine.matching import matching
from sploot_cluster.pet.diff import most_of, mostly
from sploot_cluster.pet.models import NOISE, ClusterCard, ClusterId, Origin, PetState
from sploot_cluster.pet.vectors import LabelVector, OriginVector, Rows
from sploot_cluster.settings import ClusterSettings


@dataclass(frozen=True, slots=True)
class Identities:
    """The cluster ids assigned to groups.

    Attributes:
        ids: group -> id.
        next_cluster: the next unused id.
    """

    ids: Mapping[int, ClusterId]
    next_cluster: ClusterId

    def label(self, groups: LabelVector) -> LabelVector:
        """Return (n,) int32 labels with each group replaced by its id. Noise stays noise."""
        known = sorted(self.ids)
        ids = np.array([*(self.ids[group] for group in known), NOISE], dtype=np.int32)
        return ids[_position(known, groups)]  # index -1 is the last element: NOISE


def match_ids(
    old_labels: LabelVector,
    old_origins: OriginVector,
    groups: LabelVector,
    origins: OriginVector,
    clusters: Mapping[ClusterId, ClusterCard],
    next_cluster: ClusterId,
    settings: ClusterSettings,
    *,
    given: Mapping[int, ClusterId] | None = None,
) -> Identities:
    """Return a cluster id for every group: the id of the old cluster that it is matched with, or a new id.

    All groups are matched at once, so that as many items as possible keep their cluster id (an assignment problem). An
    overlap is ignored if it is less than ``settings.overlap_ratio`` of the smaller of cluster and group. New ids are
    assigned in order of group size, largest first.

    Args:
        old_labels, old_origins: (n,) as stored.
        groups, origins: (n,) as planned; groups are any integers from 0, -1 = noise.
        clusters: the living clusters, whose ids groups can inherit.
        given: group -> its id, for groups whose id is already decided. Each id occurs at most once and is below
            ``next_cluster``.
    """
    given = given or {}
    numbers, sizes = np.unique(groups[groups != NOISE], return_counts=True)
    ids = {group: given[group] for group in numbers.tolist() if group in given}
    heirs = [group for group in numbers.tolist() if group not in ids]
    legacies = sorted(clusters.keys() - ids.values())

    old_counts, new_counts = old_origins != Origin.ABSORBED, origins != Origin.ABSORBED
    both = old_counts & new_counts
    overlap = _cross_table(old_labels[both], groups[both], legacies, heirs)
    old_sizes = _sizes(old_labels[old_counts], legacies)
    new_sizes = _sizes(groups[new_counts], heirs)
    overlap[overlap < settings.overlap_ratio * np.minimum.outer(old_sizes, new_sizes)] = 0
    for old, new in matching(overlap):
        ids[heirs[new]] = legacies[old]

    for group in numbers[np.lexsort((numbers, -sizes))].tolist():
        if group not in ids:
            ids[group] = next_cluster
            next_cluster = ClusterId(next_cluster + 1)
    return Identities(ids, next_cluster)


def aliases_after(
    state: PetState,
    labels: LabelVector,
    returning: Mapping[ClusterId, ClusterId] | None = None,
    ended: Mapping[ClusterId, Rows] | None = None,
) -> dict[ClusterId, ClusterId | None]:
    """Return the aliases to write when ``labels`` replace the labels of ``state``. A value of None removes the alias.

    A living id that ends becomes an alias of the cluster that got more than half of its items. Aliases always point
    directly to a living id, so one lookup is enough. When an id ends without a successor, its aliases end too.

    Args:
        returning: alias -> the id that it points to again, if that id is living or has a successor.
        ended: id that ended earlier -> the rows that it last held. It becomes an alias of the cluster that has more
            than half of these rows, as if it ended now.
    """
    returning, ended = returning or {}, ended or {}
    living = {ClusterId(label) for label in np.unique(labels[labels != NOISE]).tolist()}
    ending = state.clusters.keys() - living
    heir_of: dict[ClusterId, ClusterId | None] = dict.fromkeys(ending)
    heir_of |= mostly(state.labels, labels, ending, counts=state.origins != Origin.ABSORBED)
    heir_of |= {id_: most_of(labels[rows]) for id_, rows in ended.items() if id_ not in living}

    def leads_to(alias: ClusterId) -> ClusterId | None:
        if alias in heir_of:
            return heir_of[alias]
        for target in (returning.get(alias), state.aliases.get(alias)):
            if target in living:
                return target
            if target in heir_of:
                return heir_of[target]
        return None

    stored: dict[ClusterId, ClusterId | None] = {**state.aliases}
    after = {alias: leads_to(alias) for alias in (stored.keys() | returning.keys() | heir_of.keys()) - living}
    changed = {alias: after.get(alias) for alias in stored.keys() | after.keys()}
    return {alias: now for alias, now in changed.items() if now != stored.get(alias)}


def _cross_table(
    old: LabelVector, new: LabelVector, rows: Sequence[ClusterId], columns: Sequence[int]
) -> npt.NDArray[np.int64]:
    """Return a (rows, columns) table that counts the items with each pair of an old and a new label."""
    table = np.zeros((len(rows), len(columns)), dtype=np.int64)
    row_of, column_of = _position(rows, old), _position(columns, new)
    is_in = (row_of >= 0) & (column_of >= 0)
    np.add.at(table, (row_of[is_in], column_of[is_in]), 1)
    return table


def _sizes(labels: LabelVector, groups: Sequence[int]) -> npt.NDArray[np.int64]:
    where = _position(groups, labels)
    return np.bincount(where[where >= 0], minlength=len(groups)).astype(np.int64)


def _position(groups: Sequence[int], labels: LabelVector) -> npt.NDArray[np.intp]:
    """Return the index of each label in ``groups`` (ascending), or -1 if it is not there."""
    known = np.asarray(groups, dtype=np.int32)
    if not len(known):
        return np.full(len(labels), -1, dtype=np.intp)
    position = np.minimum(np.searchsorted(known, labels), len(known) - 1)
    return np.where(known[position] == labels, position, -1)
