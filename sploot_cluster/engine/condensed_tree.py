"""The condensed tree of a single-linkage hierarchy, and the most stable groups in it.

Seen from the root down, a component of the hierarchy stays the same *group* of the condensed tree while only small
parts leave it. Where it breaks into two parts that are both large, the group ends, and each part begins a new group.
A group is stable if its rows stay in it over a wide range of density, which is 1 / distance. Of groups that contain
each other, those with the greatest total stability are chosen (Campello, Moulavi and Sander, 2013). The results equal
those of the package hdbscan; tests compare them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sploot_cluster.engine.hierarchy import Linkage
from sploot_cluster.pet.vectors import Rows

DoubleVector = npt.NDArray[np.float64]

_ROOT: Final = 0


@dataclass(frozen=True, slots=True)
class CondensedTree:
    """The groups of a hierarchy of n rows. Group 0 is the root, and a parent has a lower number than its children.

    Attributes:
        parents: the group that each group is a part of; -1 for the root.
        births: density at which each group begins; 0 for the root.
        sizes: number of rows with which each group begins.
        groups: (n,) the last group that each row is in.
        densities: (n,) density at which each row leaves that group; infinite for identical vectors.
    """

    parents: list[int]
    births: DoubleVector
    sizes: DoubleVector
    groups: Rows
    densities: DoubleVector

    @classmethod
    def of(cls, hierarchy: Linkage, size: int) -> CondensedTree:
        """Return the tree in which every group except the root has at least ``size`` rows. O(n · log n)."""
        n = len(hierarchy) + 1
        halves = hierarchy[:, :2].astype(np.intp)
        n_rows = np.append(np.ones(n, dtype=np.intp), hierarchy[:, 3].astype(np.intp))
        with np.errstate(divide="ignore"):
            density = 1 / hierarchy[:, 2]
        above = np.empty(2 * n - 1, dtype=np.intp)
        above[halves.ravel()] = np.repeat(np.arange(n, 2 * n - 1), 2)
        above[-1] = 2 * n - 2
        is_large = n_rows >= size
        is_large[-1] = True  # the root is a group, however small it is
        # the steps at which a group ends, in descending order of distance: both halves are large
        ends = np.flatnonzero(is_large[n:] & is_large[halves].all(axis=1))[::-1]
        begins = halves[ends].ravel()
        numbers = np.arange(2 * n - 1)
        # the large component that each row is in until it leaves its group
        left = _ends_of(np.where(is_large, numbers, above))[:n]
        # the large component at which the group of each component begins
        above[begins] = begins
        begun = _ends_of(np.where(is_large, above, numbers))
        number = np.full(2 * n - 1, _ROOT)
        number[begins] = np.arange(1, len(begins) + 1)
        group = number[begun]
        return cls(
            [-1, *np.repeat(group[n + ends], 2).tolist()],
            np.append(0.0, np.repeat(density[ends], 2)),
            np.append(n, n_rows[begins]).astype(np.float64),
            group[left],
            density[left - n],
        )

    def chosen(self) -> list[int]:
        """Return, for each group, the chosen group that it is or is part of, or -1 if there is none."""
        n_groups = len(self.parents)
        parents = np.array(self.parents[1:], dtype=np.intp)
        # the difference of two infinite densities, in a group of identical vectors, is not a number
        with np.errstate(invalid="ignore"):
            of_rows = np.bincount(self.groups, self.densities - self.births[self.groups], minlength=n_groups)
            of_parts = (self.births[1:] - self.births[parents]) * self.sizes[1:]
            stability = (of_rows + np.bincount(parents, of_parts, minlength=n_groups)).tolist()
        of_children = [0.0] * n_groups
        has_children = set(self.parents)
        is_stable = [False] * n_groups
        for group in range(n_groups - 1, _ROOT, -1):
            if group in has_children and of_children[group] > stability[group]:
                stability[group] = of_children[group]
            else:
                is_stable[group] = True
            of_children[self.parents[group]] += stability[group]
        chosen = [-1] * n_groups
        for group in range(1, n_groups):
            above = chosen[self.parents[group]]
            chosen[group] = above if above >= 0 else group if is_stable[group] else -1
        return chosen


def _ends_of(leads: Rows) -> Rows:
    """Return the root of each node of a forest, given each node's parent. The parent of a root is the root itself.

    O(n · log n), because the steps double.
    """
    while True:
        farther = leads[leads]
        if np.array_equal(farther, leads):
            return leads
        leads = farther


@dataclass(frozen=True, slots=True)
class Selection:
    """The most stable groups of a hierarchy of n rows.

    Attributes:
        labels: (n,) numbers of the groups, in no particular order; -1 = noise.
        probabilities: (n,) how deep in its group a row lies: the density at which it leaves the group, as a share of
            the highest density at which any row or part of the group leaves. 0 for noise.
        contrasts: (n,) how clearly a row's group stands out: the distance at which the group joins other rows, divided
            by the median distance at which its own rows join it. At least 1, and 0 for noise.
    """

    labels: Rows
    probabilities: DoubleVector
    contrasts: DoubleVector


def select(hierarchy: Linkage, size: int) -> Selection:
    """Return the most stable groups of at least ``size`` rows. O(n · log n)."""
    n = len(hierarchy) + 1
    if n < size:
        return Selection(np.full(n, -1, dtype=np.intp), np.zeros(n), np.zeros(n))
    tree = CondensedTree.of(hierarchy, size)
    labels = np.array(tree.chosen(), dtype=np.intp)[tree.groups]
    is_grouped = labels >= 0
    highest = np.zeros(len(tree.parents))
    np.maximum.at(highest, tree.groups, tree.densities)
    np.maximum.at(highest, np.array(tree.parents[1:], dtype=np.intp), tree.births[1:])
    of_label = highest[labels]
    with np.errstate(invalid="ignore", divide="ignore"):
        depth = np.where(np.isinf(tree.densities), 1.0, np.minimum(tree.densities, of_label) / of_label)
        contrasts = _medians(labels[is_grouped], tree.densities[is_grouped])[labels] / tree.births[labels]
    return Selection(labels, np.where(is_grouped, depth, 0.0), np.where(is_grouped, contrasts, 0.0))


def _medians(groups: Rows, values: DoubleVector) -> DoubleVector:
    """Return the lower median of the values of each group from 0 to the highest; 0 for a group without values."""
    medians = np.zeros(groups.max(initial=0) + 1)
    order = np.lexsort((values, groups))
    present, first, n = np.unique(groups[order], return_index=True, return_counts=True)
    medians[present] = values[order][first + (n - 1) // 2]
    return medians
