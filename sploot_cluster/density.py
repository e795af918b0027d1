"""The public entry point to density-based clustering: HDBSCAN over Euclidean distances of unit vectors.

It works without a pet, a store or a queue.
"""

from __future__ import annotations

import numpy.typing as npt

from sploot_cluster.engine.selection import Density, all_noise, density_of, plain_density_of
from sploot_cluster.engine.spanning_tree import spanning_tree
from sploot_cluster.errors import InvalidInput
from sploot_cluster.pet.vectors import Rows, as_vectors
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.threads import n_cores


def cluster_densely(
    x: npt.ArrayLike,
    *,
    min_cluster_size: int | None = None,
    min_samples: int | None = None,
    names: Rows | None = None,
    settings: ClusterSettings | None = None,
) -> Density:
    """Group vectors by dense regions. Everything between the regions is noise. Deterministic.

    With neither ``min_cluster_size`` nor ``min_samples``, this is what a recluster does; see :func:`density_of`. With
    either, it is HDBSCAN as in hdbscan and scikit-learn, plus the fallback to a single cluster.

    Args:
        x: (n, d) real numbers, n ≥ 0. Only directions count. Not modified.
        min_cluster_size: size of the smallest group, from 2. Default: ``settings.recluster_parameters`` for n.
        min_samples: number of neighbours, without the point itself, that make a region dense, from 1. Default:
            ``settings.recluster_parameters`` for n.
        names: (n,) distinct integers that break ties. Default: the row numbers. If each vector keeps its name when rows
            are reordered, the order of rows does not affect the result.
        settings: the parameters of clustering. Default: those of :class:`ClusterSettings`.

    Raises:
        InvalidInput: ``x`` is not a matrix of finite numbers or has a row of zeros, or a parameter is out of range.

    If there are fewer vectors than the smallest group needs, all are noise. Identical vectors form one group. Takes
    O(n² · d) time and O(n · d) memory; see ``spanning_tree``.
    """
    settings = settings or ClusterSettings()
    vectors = as_vectors(x, field="x")
    n = len(vectors)
    default_size, default_samples = settings.recluster_parameters(n)
    size = default_size if min_cluster_size is None else min_cluster_size
    samples = default_samples if min_samples is None else min_samples
    if size < 2:
        raise InvalidInput("min_cluster_size", f"expected at least 2, got {size}", "send a whole number from 2")
    if samples < 1:
        raise InvalidInput("min_samples", f"expected at least 1, got {samples}", "send a whole number from 1")
    if n < 2:
        return all_noise(n)
    tree = spanning_tree(vectors, min(samples, n - 1), threads=settings.recluster_threads or n_cores())
    if min_cluster_size is None and min_samples is None:
        return density_of(tree, vectors, settings=settings, names=names)
    return plain_density_of(tree, vectors, size, settings=settings, names=names)
