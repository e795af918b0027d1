"""Clusters from the density of vectors: HDBSCAN over Euclidean distances of unit vectors. The only module with hdbscan.

The spanning tree and the hierarchy are our own, exact and many times faster; what becomes of them, the condensed tree
and the choice of clusters, is hdbscan's (McInnes, Healy and Astels, 2017). Importing it takes a second and 100 MB,
because hdbscan brings scikit-learn along: a worker does so when it boots, nobody else. The function that is used is
hdbscan's own business, hence the pinned release, and a test that compares with ``hdbscan.HDBSCAN``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from hdbscan.hdbscan_ import _tree_to_labels

from sploot_cluster.errors import InvalidInput
from sploot_cluster.hierarchy import Linkage, linkage
from sploot_cluster.models import Backend
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.spanning_tree import SpanningTree, spanning_tree
from sploot_cluster.threads import n_cores
from sploot_cluster.vectors import FloatMatrix, FloatVector, LabelVector, Rows, as_vectors


@dataclass(frozen=True, slots=True)
class Density:
    """What density says of n vectors.

    Attributes:
        labels: (n,) int32 groups from 0, the one with the first row first; -1 = noise.
        probabilities: (n,) float32 in [0, 1]: how deep in its group a row lies, 0 for noise.
        backend: what computed it.
    """

    labels: LabelVector
    probabilities: FloatVector
    backend: Backend


def cluster_densely(
    x: npt.ArrayLike,
    *,
    min_cluster_size: int | None = None,
    min_samples: int | None = None,
    names: Rows | None = None,
    settings: ClusterSettings | None = None,
) -> Density:
    """The groups of dense regions among vectors; what lies between them is noise. The same input gives the same answer.

    With neither ``min_cluster_size`` nor ``min_samples`` it is what a recluster does; see :func:`density_of`. With
    either it is HDBSCAN as in hdbscan and scikit-learn, and beyond that one look only.

    Args:
        x: (n, d) real numbers, n ≥ 0; only directions count. Not modified.
        min_cluster_size: the smallest group, from 2; by default what ``settings.recluster_parameters`` says for n.
        min_samples: neighbours, without the point itself, that make a region dense, from 1; by default as above.
        names: (n,) different integers that decide between what is equally near; the row numbers by default. Where they
            go with the vectors, the order of rows has no say.
        settings: the defaults of :class:`ClusterSettings` otherwise.

    Raises:
        InvalidInput: not a matrix of finite numbers, a row of zeros, or a parameter out of range.

    Fewer vectors than the smallest group are noise. Vectors that are all the same are one group. O(n² · d) time and
    O(n · d) memory; see ``spanning_tree``.
    """
    settings = settings or ClusterSettings()
    vectors = as_vectors(x, field="x")
    n = len(vectors)
    default_size, default_samples = settings.recluster_parameters(n)
    size = default_size if min_cluster_size is None else min_cluster_size
    samples = default_samples if min_samples is None else min_samples
    if size < 2:
        raise InvalidInput("min_cluster_size", f"{size} is below 2", "send a whole number from 2")
    if samples < 1:
        raise InvalidInput("min_samples", f"{samples} is below 1", "send a whole number from 1")
    if n < 2:
        return all_noise(n)
    tree = spanning_tree(vectors, min(samples, n - 1), threads=settings.recluster_threads or n_cores())
    if min_cluster_size is None and min_samples is None:
        return density_of(tree, vectors, settings=settings, names=names)
    labels, probabilities = _select(linkage(tree, names), size)
    labels, probabilities = _one_look_instead(labels, probabilities, vectors, size, settings)
    return Density(_in_order_of_rows(labels), probabilities.astype(np.float32), "hdbscan_cpu")


def density_of(
    tree: SpanningTree, vectors: FloatMatrix, *, settings: ClusterSettings, names: Rows | None = None
) -> Density:
    """The groups of a recluster, from a spanning tree that is there already. O(n · d).

    They are HDBSCAN's, with three changes, each chosen by measurement (docs/quality.md):

    - Stability counts ``1 / distance ** settings.sharpness``. In hundreds of dimensions distances are much alike, and
      with 1 / distance a few groups that are far apart from each other are taken for one.
    - Between the groups, where all would be noise, smaller ones are looked for, of ``settings.small_group`` media.
    - A pet that is mostly noise may simply have one look: if its media are similar enough on median
      (``settings.one_look_similarity``), they are one group, without those that fall off. hdbscan's own
      ``allow_single_cluster`` is no help: with it two to six clear groups become one, and one look is 70 % noise.

    Args:
        tree: of all ``vectors``, for ``settings.recluster_parameters(n)``.
        vectors: (n, d) float32 of unit norm, n ≥ 2. Not modified.
        names: as for ``cluster_densely``.
    """
    n = tree.n
    size, _ = settings.recluster_parameters(n)
    hierarchy = linkage(tree, names)
    sharp = hierarchy.copy()
    sharp[:, 2] **= settings.sharpness
    labels, probabilities = _select(sharp, size)
    labels, probabilities = _one_look_instead(labels, probabilities, vectors, settings.small_group, settings)
    small, small_probabilities = _select(hierarchy, settings.small_group)
    free = np.bincount(small[small >= 0], weights=labels[small >= 0] < 0) == np.bincount(small[small >= 0])
    joins = (small >= 0) & np.append(free, False)[small]
    labels = np.where(joins, small + labels.max(initial=-1) + 1, labels)
    probabilities = np.where(joins, small_probabilities, probabilities)
    return Density(_in_order_of_rows(labels), probabilities.astype(np.float32), tree.backend)


def _select(hierarchy: Linkage, size: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """(n,) the most stable groups of at least ``size``, -1 = noise, and how deep in them each row lies."""
    n = len(hierarchy) + 1
    if n < size:
        return np.full(n, -1, dtype=np.intp), np.zeros(n)
    labels, probabilities, *_ = _tree_to_labels(None, hierarchy, size, cluster_selection_method="eom")
    return labels, probabilities


def _one_look_instead(
    labels: npt.NDArray[np.intp],
    probabilities: npt.NDArray[np.float64],
    vectors: FloatMatrix,
    size: int,
    settings: ClusterSettings,
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """One group of at least ``size`` where density found mostly noise and the vectors make up one look."""
    if 2 * np.count_nonzero(labels < 0) > len(labels):
        one_look = _one_look(vectors, settings.one_look_similarity)
        if np.count_nonzero(one_look) >= size:
            return np.where(one_look, 0, -1), one_look.astype(np.float64)
    return labels, probabilities


def all_noise(n: int) -> Density:
    """Of n vectors that are too few for a cluster."""
    return Density(np.full(n, -1, dtype=np.int32), np.zeros(n, dtype=np.float32), "hdbscan_cpu")


def _one_look(vectors: FloatMatrix, similarity: float) -> npt.NDArray[np.bool_]:
    """Which of the vectors make up one look; none if they are not that similar."""
    # float64: a sum of many float32 loses digits
    centre = vectors.sum(axis=0, dtype=np.float64)
    length = float(np.linalg.norm(centre))
    if length == 0:
        return np.zeros(len(vectors), dtype=np.bool_)
    to_centre = vectors @ (centre / length)
    lower, median, upper = np.quantile(to_centre, [0.25, 0.5, 0.75])
    # two media that are each c from the centre are about c² from each other
    if median <= 0 or median**2 < similarity:
        return np.zeros(len(vectors), dtype=np.bool_)
    is_inside: npt.NDArray[np.bool_] = to_centre >= lower - 1.5 * (upper - lower)  # Tukey's fence
    return is_inside


def _in_order_of_rows(labels: npt.NDArray[np.intp]) -> LabelVector:
    """The same groups, numbered by their first row, so that a label says nothing about hdbscan's tree."""
    groups, first = np.unique(labels, return_index=True)
    ordered = [int(group) for group in groups[np.argsort(first)] if group >= 0]
    renumbered = np.full(len(labels), -1, dtype=np.int32)
    for number, group in enumerate(ordered):
        renumbered[labels == group] = number
    return renumbered
