"""Density clustering: HDBSCAN over Euclidean distances of unit vectors. The only module that imports hdbscan.

The spanning tree and the hierarchy are our own, exact and many times faster. The condensed tree and the choice of
clusters are hdbscan's (McInnes, Healy and Astels, 2017). Only hdbscan's module of compiled tree functions is loaded:
the whole package would import scikit-learn, which takes a second and 45 MB in every worker process. The module is not
part of hdbscan's documented interface, so the release is pinned, and a test compares the results with those of the
whole package.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from sploot_cluster.engine.hierarchy import Linkage, linkage
from sploot_cluster.engine.spanning_tree import SpanningTree
from sploot_cluster.pet.models import Backend
from sploot_cluster.pet.vectors import FloatMatrix, FloatVector, LabelVector, Rows
from sploot_cluster.settings import ClusterSettings


def _hdbscan_module(name: str) -> Any:
    """Import one module of hdbscan without importing the package."""
    package = find_spec("hdbscan")
    spec = PathFinder.find_spec(f"hdbscan.{name}", package.submodule_search_locations) if package is not None else None
    if spec is None or spec.loader is None:
        raise ImportError(f"hdbscan has no module {name}; install the release that setup.cfg pins", name="hdbscan")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_trees = _hdbscan_module("_hdbscan_tree")


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

    The groups are HDBSCAN's, with three changes, each chosen by measurement (docs/explanation/quality.md):

    - Stability counts ``1 / distance ** settings.sharpness``. In hundreds of dimensions all distances are similar, so
      with 1 / distance, a few groups that are far apart from each other would be merged into one.
    - Smaller groups, of at least ``settings.small_group`` items, are searched for in what would otherwise be noise.
    - A pet that is mostly noise may simply have a single appearance. If the median similarity of its items is high
      enough (``settings.single_cluster_similarity``), all except outliers form one group. hdbscan's own
      ``allow_single_cluster`` does not help: with it, two to six clear groups become one, and 70 % of the items with a
      single appearance are noise.

    Args:
        tree: the spanning tree of all ``vectors``, for ``settings.recluster_parameters(n)``.
        vectors: (n, d) float32 of unit norm, n ≥ 2. Not modified.
        names: as for :func:`~sploot_cluster.engine.hierarchy.linkage`.
    """
    n = tree.n
    size, _ = settings.recluster_parameters(n)
    hierarchy = linkage(tree, names)
    sharp = hierarchy.copy()
    sharp[:, 2] **= settings.sharpness
    labels, probabilities = select(sharp, size)
    labels, probabilities = single_cluster_instead(labels, probabilities, vectors, settings.small_group, settings)
    small, small_probabilities = select(hierarchy, settings.small_group)
    free = np.bincount(small[small >= 0], weights=labels[small >= 0] < 0) == np.bincount(small[small >= 0])
    joins = (small >= 0) & np.append(free, False)[small]
    labels = np.where(joins, small + labels.max(initial=-1) + 1, labels)
    probabilities = np.where(joins, small_probabilities, probabilities)
    return Density(in_order_of_rows(labels), probabilities.astype(np.float32), tree.backend)


def select(hierarchy: Linkage, size: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Return (n,) labels of the most stable groups of ``size`` items or more, -1 = noise, and (n,) probabilities."""
    n = len(hierarchy) + 1
    if n < size:
        return np.full(n, -1, dtype=np.intp), np.zeros(n)
    condensed = _trees.condense_tree(hierarchy, size)
    labels, probabilities, _ = _trees.get_clusters(condensed, _trees.compute_stability(condensed), "eom")
    return labels, probabilities


def single_cluster_instead(
    labels: npt.NDArray[np.intp],
    probabilities: npt.NDArray[np.float64],
    vectors: FloatMatrix,
    size: int,
    settings: ClusterSettings,
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Return a single group if ``labels`` are mostly noise and at least ``size`` vectors look alike; else the input."""
    if 2 * np.count_nonzero(labels < 0) > len(labels):
        single_cluster = _single_cluster(vectors, settings.single_cluster_similarity)
        if np.count_nonzero(single_cluster) >= size:
            return np.where(single_cluster, 0, -1), single_cluster.astype(np.float64)
    return labels, probabilities


def all_noise(n: int) -> Density:
    """Return the result for n vectors that are too few for a cluster."""
    return Density(np.full(n, -1, dtype=np.int32), np.zeros(n, dtype=np.float32), "hdbscan_cpu")


def _single_cluster(vectors: FloatMatrix, similarity: float) -> npt.NDArray[np.bool_]:
    """Return a mask of the vectors that share one appearance; all False if the vectors are not similar enough."""
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


def in_order_of_rows(labels: npt.NDArray[np.intp]) -> LabelVector:
    """Renumber the groups by their first row, so that labels do not depend on hdbscan's tree."""
    groups, first = np.unique(labels, return_index=True)
    ordered = [int(group) for group in groups[np.argsort(first)] if group >= 0]
    renumbered = np.full(len(labels), -1, dtype=np.int32)
    for number, group in enumerate(ordered):
        renumbered[labels == group] = number
    return renumbered
