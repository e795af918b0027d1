"""Density clustering: the groups that a recluster starts from. HDBSCAN over Euclidean distances of unit vectors.

The spanning tree, the hierarchy and the condensed tree are our own, exact and many times faster than those of the
package hdbscan, with the same results (McInnes, Healy and Astels, 2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sploot_cluster.engine.condensed_tree import Selection, select
from sploot_cluster.engine.copies import pictures
from sploot_cluster.engine.hierarchy import linkage
from sploot_cluster.engine.spanning_tree import DoubleVector, SpanningTree
from sploot_cluster.pet.models import Backend
from sploot_cluster.pet.vectors import BoolVector, FloatMatrix, FloatVector, LabelVector, Rows
from sploot_cluster.settings import ClusterSettings

# Groups are clear if the distances within them, divided by those around them, are less than this (see `are_clear` and
# `Selection.contrasts`). Measured: .66 to .72 for subjects among unrelated items, whatever these have in common, and
# .72 to .87 for parts of one class of digits.
_CLEAR: Final = 0.72

# Minimum share of a group's rows that are in smaller, clear groups if these replace it.
_FILLED: Final = 0.8

# Minimum number of near copies that count as one item. Two make no difference, because a row's core distance is the
# distance to its second neighbour or a farther one.
_COPIES: Final = 3


@dataclass(frozen=True, slots=True)
class Density:
    """The density clustering of n vectors.

    Attributes:
        labels: (n,) int32 groups from 0, numbered by their first row; -1 = noise.
        probabilities: (n,) float32 in [0, 1]: how deep in its group a row lies, 0 for noise.
        backend: the backend that computed the result.
    """

    labels: LabelVector
    probabilities: FloatVector
    backend: Backend


def density_of(
    tree: SpanningTree, vectors: FloatMatrix, *, settings: ClusterSettings, names: Rows | None = None
) -> Density:
    """Return the groups that a recluster starts from, given a spanning tree. O(n · d).

    The groups are HDBSCAN's, with five changes, each chosen by measurement (docs/explanation/quality.md):

    - Near copies count as one item; see ``copies``. A picture with at least as many copies as a group needs items is a
      group of its own if it is in no other group.
    - Stability is computed with a density of ``1 / distance ** settings.sharpness``. In hundreds of dimensions all
      distances are similar, so with 1 / distance, a few groups that are far apart from each other would be merged into
      one.
    - Smaller groups, of at least ``settings.small_group`` items, are searched for in what would otherwise be noise.
    - A large group that consists almost only of smaller groups that are clear is replaced by these. Otherwise, several
      subjects with fewer items than a large group needs would be one group.
    - If a pet is mostly noise, without clear groups, all its items may simply look alike. If the median similarity of
      its items is high enough (``settings.single_cluster_similarity``), all except outliers form one group. hdbscan's
      own ``allow_single_cluster`` does not help: with it, two to six clear groups become one, and 70 % of the items of
      a pet whose items all look alike are noise.

    Args:
        tree: the spanning tree of all ``vectors``, for ``settings.recluster_parameters(n)``.
        vectors: (n, d) float32 of unit norm, n ≥ 2. Not modified.
        names: as for :func:`~sploot_cluster.engine.hierarchy.linkage`.
    """
    size, _ = settings.recluster_parameters(tree.n)
    picture = pictures(tree, vectors, names)
    n_copies = np.bincount(picture)[picture]
    part = _parts(picture, n_copies)
    hierarchy = linkage(tree, names, parts=part)
    sharp = hierarchy.copy()
    sharp[:, 2] **= settings.sharpness
    large = _Groups.of(select(sharp, size)).of_rows(part)
    selection = select(hierarchy, settings.small_group)
    small = _Groups.of(selection).of_rows(part).of_pictures(picture, settings.small_group)
    large = large.or_smaller(small, is_clear=selection.contrasts[part] * _CLEAR > 1)
    groups = large.with_free(small)
    if large.are_mostly_noise and not groups.are_clear(tree.core, counts=n_copies == 1):
        groups = large.or_single(vectors, settings.small_group, settings).with_free(small)
    is_series = n_copies >= size
    series = _Groups(np.where(is_series, picture, -1), is_series.astype(np.float64))
    return groups.with_free(series).density(tree.backend)


def _parts(picture: Rows, n_copies: Rows) -> Rows:
    """Return the pictures, with pairs of copies split into single items, because a pair is not unusually dense."""
    n = len(picture)
    _, parts = np.unique(np.where(n_copies >= _COPIES, picture, n + np.arange(n)), return_inverse=True)
    return parts


def plain_density_of(
    tree: SpanningTree, vectors: FloatMatrix, size: int, *, settings: ClusterSettings, names: Rows | None = None
) -> Density:
    """Return HDBSCAN's groups of at least ``size`` items, or a single group. Arguments: see :func:`density_of`."""
    groups = _Groups.of(select(linkage(tree, names), size))
    if groups.are_mostly_noise and not groups.are_clear(tree.core, counts=np.ones(tree.n, dtype=np.bool_)):
        groups = groups.or_single(vectors, size, settings)
    return groups.density(tree.backend)


def all_noise(n: int) -> Density:
    """Return the result for n vectors that are too few for a cluster."""
    return Density(np.full(n, -1, dtype=np.int32), np.zeros(n, dtype=np.float32), "hdbscan_cpu")


@dataclass(frozen=True, slots=True)
class _Groups:
    """Groups of n rows, as (n,) labels (any numbers from 0, -1 = noise) and (n,) probabilities."""

    labels: Rows
    probabilities: DoubleVector

    @classmethod
    def of(cls, selection: Selection) -> _Groups:
        return cls(selection.labels, selection.probabilities)

    def of_rows(self, picture: Rows) -> _Groups:
        """Convert groups of pictures to groups of rows."""
        return _Groups(self.labels[picture], self.probabilities[picture])

    def of_pictures(self, picture: Rows, size: int) -> _Groups:
        """Return the groups that show at least ``size`` different pictures."""
        is_first = np.zeros(len(picture), dtype=np.bool_)
        is_first[np.unique(picture, return_index=True)[1]] = True
        n_pictures = np.bincount(self.labels[is_first & (self.labels >= 0)], minlength=self.labels.max(initial=-1) + 1)
        return self.without(self.are_in(n_pictures < size))

    def with_free(self, others: _Groups) -> _Groups:
        """Return these groups together with each group of ``others`` that overlaps with none of them."""
        is_grouped = others.labels >= 0
        n_free = np.bincount(others.labels[is_grouped], weights=self.labels[is_grouped] < 0)
        joins = others.are_in(n_free == others.n_rows)
        return _Groups(
            np.where(joins, others.labels + self.labels.max(initial=-1) + 1, self.labels),
            np.where(joins, others.probabilities, self.probabilities),
        )

    def or_smaller(self, others: _Groups, *, is_clear: BoolVector) -> _Groups:
        """Replace each group that consists almost only of smaller, clear groups by these.

        Args:
            others: groups of the same hierarchy, in which groups that overlap contain each other.
            is_clear: (n,) whether the row's group in ``others`` is clear.
        """
        n_rows = self.n_rows
        is_inside = (self.labels >= 0) & (others.labels >= 0) & is_clear
        is_inside[is_inside] = others.n_rows[others.labels[is_inside]] < n_rows[self.labels[is_inside]]
        n_inside = np.bincount(self.labels[is_inside], minlength=len(n_rows))
        is_replaced = self.are_in(n_inside >= _FILLED * n_rows)
        return self.without(is_replaced).with_free(others.without(~is_inside))

    def without(self, is_out: BoolVector) -> _Groups:
        """Return the groups with these rows as noise. Shape (n,)."""
        return _Groups(np.where(is_out, -1, self.labels), np.where(is_out, 0.0, self.probabilities))

    def are_in(self, is_chosen: BoolVector) -> BoolVector:
        """Return, for each row, whether its group is chosen, given that for each group from 0; False for noise."""
        in_group: BoolVector = np.append(is_chosen, False)[self.labels]
        return in_group

    @property
    def n_rows(self) -> Rows:
        """The number of rows of each group from 0 to the highest."""
        return np.bincount(self.labels[self.labels >= 0])

    @property
    def are_mostly_noise(self) -> bool:
        return bool(2 * np.count_nonzero(self.labels < 0) > len(self.labels))

    def are_clear(self, core: DoubleVector, *, counts: BoolVector) -> bool:
        """Return whether the groups are much denser than the noise around them, given the core distances of all rows.

        A component that all vectors of a model have in common does not affect the result.
        """
        is_grouped = (self.labels >= 0) & counts
        is_noise = (self.labels < 0) & counts
        if not self.are_mostly_noise or not is_grouped.any() or not is_noise.any():
            return False
        return bool(np.median(core[is_grouped]) < _CLEAR * np.median(core[is_noise]))

    def or_single(self, vectors: FloatMatrix, size: int, settings: ClusterSettings) -> _Groups:
        """Return a single group of the vectors that look alike if there are at least ``size``, else these groups."""
        is_inside = _single_cluster(vectors, settings.single_cluster_similarity)
        if np.count_nonzero(is_inside) < size:
            return self
        return _Groups(np.where(is_inside, 0, -1), is_inside.astype(np.float64))

    def density(self, backend: Backend) -> Density:
        return Density(_in_order_of_rows(self.labels), self.probabilities.astype(np.float32), backend)


def _single_cluster(vectors: FloatMatrix, similarity: float) -> npt.NDArray[np.bool_]:
    """Return a mask of the vectors that look alike. It is all False if the vectors are not similar enough."""
    # float64, because a float32 sum of many values loses digits
    centre = vectors.sum(axis=0, dtype=np.float64)
    length = float(np.linalg.norm(centre))
    if length == 0:
        return np.zeros(len(vectors), dtype=np.bool_)
    to_centre = vectors @ (centre / length)
    lower, median, upper = np.quantile(to_centre, [0.25, 0.5, 0.75])
    # two items whose similarity to the centre is c have a similarity of about c² to each other
    if median <= 0 or median**2 < similarity:
        return np.zeros(len(vectors), dtype=np.bool_)
    is_inside: npt.NDArray[np.bool_] = to_centre >= lower - 1.5 * (upper - lower)  # Tukey's fence
    return is_inside


def _in_order_of_rows(labels: Rows) -> LabelVector:
    """Renumber the groups by their first row, so that labels do not depend on the condensed tree."""
    groups, first, of = np.unique(labels, return_index=True, return_inverse=True)
    first[groups < 0] = -1
    numbers = np.empty(len(groups), dtype=np.int32)
    numbers[np.argsort(first)] = np.arange(len(groups)) - np.count_nonzero(groups < 0)
    return numbers[of]
