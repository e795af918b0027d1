"""The groups that the package hdbscan finds, for comparison with ours. Only this module imports hdbscan."""

from __future__ import annotations

from typing import Final

import numpy as np

from sploot_cluster.engine.selection import Density
from sploot_cluster.errors import InvalidInput
from sploot_cluster.pet.models import REFERENCE
from sploot_cluster.pet.vectors import FloatMatrix
from sploot_cluster.settings import ClusterSettings

# Maximum number of items, because the package holds the interpreter lock while it builds its tree: 5,000 items of 512
# dimensions take 20 s on one core.
MOST_ITEMS: Final = 5_000


def reference_density_of(vectors: FloatMatrix, *, settings: ClusterSettings) -> Density:
    """Return the groups that the package finds with the parameters of a recluster, without our own changes to them.

    Args:
        vectors: (n, d) float32 of unit norm, n up to ``MOST_ITEMS``. Not modified.

    Raises:
        InvalidInput: the package is not installed, or there are too many vectors.
    """
    n = len(vectors)
    if n > MOST_ITEMS:
        raise InvalidInput("backend", f"{REFERENCE} takes at most {MOST_ITEMS:,} items, got {n:,}", "leave it out")
    try:
        from hdbscan import HDBSCAN
    except ImportError:
        hint = "where the workers run: pip install 'sploot-cluster[reference]'"
        raise InvalidInput("backend", f"{REFERENCE} needs the package hdbscan", hint) from None
    size, samples = settings.recluster_parameters(n)
    if n < max(size, 2):
        return Density(np.full(n, -1, dtype=np.int32), np.zeros(n, dtype=np.float32), REFERENCE)
    found = HDBSCAN(min_cluster_size=size, min_samples=min(samples, n - 1)).fit(vectors.astype(np.float64))
    return Density(found.labels_.astype(np.int32), found.probabilities_.astype(np.float32), REFERENCE)
