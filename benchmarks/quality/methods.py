"""The compared clustering methods. Each takes unit vectors and returns labels, -1 for noise."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sploot_cluster.decide.recluster import plan_recluster
from sploot_cluster.density import cluster_densely
from sploot_cluster.pet.models import NOISE, MediaId, Origin, PetId, PetState
from sploot_cluster.pet.rows import PetRows, empty_state
from sploot_cluster.pet.vectors import FloatMatrix
from sploot_cluster.settings import ClusterSettings

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Found:
    """The labels that one method gave one data set.

    Attributes:
        labels: (n,), -1 = noise.
        absorbed: (n,) whether an item was put in a group with low confidence; only our engine reports it.
    """

    labels: Labels
    absorbed: npt.NDArray[np.bool_]


def recluster(vectors: FloatMatrix, settings: ClusterSettings) -> Found:
    """Recluster a new pet with these vectors, without a queue or a store."""
    rows = PetRows([MediaId(f"m{row:06d}") for row in range(len(vectors))], vectors)
    n, empty = len(vectors), empty_state(PetId(1))
    state = PetState(
        pet=empty.pet,
        revision=1,
        model="any@1",
        dim=vectors.shape[1],
        media=rows.media(n),
        rows=rows.index(n),
        vectors=rows.vectors(n),
        occurred_at_ms=rows.occurred_at_ms(n),
        labels=np.full(n, NOISE, dtype=np.int32),
        origins=np.zeros(n, dtype=np.uint8),
        clusters={},
        aliases={},
        ledger=(),
        next_cluster=empty.next_cluster,
    )
    density = cluster_densely(vectors, settings=settings)
    change, _ = plan_recluster(state, density, settings=settings, by="machine")
    assert change.relabelling is not None
    origins = change.relabelling.origins
    return Found(change.relabelling.labels.astype(np.int64), origins == Origin.ABSORBED)


def ours(vectors: FloatMatrix) -> Found:
    return recluster(vectors, ClusterSettings())


def before(vectors: FloatMatrix) -> Found:
    """Run our engine's previous default: HDBSCAN's stability at one granularity, with the parameters used then."""
    from sploot_cluster.decide.assignment import similarity_to, threshold_of

    n = len(vectors)
    size, samples = (3, 2) if n < 150 else (5, 1) if n < 1_000 else (8, 1)
    labels = cluster_densely(vectors, min_cluster_size=size, min_samples=samples).labels.astype(np.int64)
    noise, absorbed = np.flatnonzero(labels < 0), np.zeros(n, dtype=np.bool_)
    excess = len(noise) - max(12, int(0.03 * n))
    if excess > 0 and labels.max() >= 0:
        groups = [np.flatnonzero(labels == group) for group in range(labels.max() + 1)]
        reach = np.stack(
            [
                (1 - similarity_to(vectors[members], vectors[noise])) / max(1 - threshold_of(vectors[members]), 1e-5)
                for members in groups
            ]
        )
        nearest = reach.min(axis=0)
        chosen = np.argsort(nearest, kind="stable")[:excess]
        chosen = chosen[nearest[chosen] <= 1.3]
        labels[noise[chosen]], absorbed[noise[chosen]] = reach.argmin(axis=0)[chosen], True
    return Found(labels, absorbed)


def hdbscan_default(vectors: FloatMatrix) -> Found:
    import hdbscan

    return _plain(hdbscan.HDBSCAN(algorithm="generic", approx_min_span_tree=False).fit(vectors.astype(np.float64)))


def sklearn_default(vectors: FloatMatrix) -> Found:
    from sklearn.cluster import HDBSCAN

    return _plain(HDBSCAN(algorithm="brute", copy=True).fit(vectors))


def average_linkage(vectors: FloatMatrix) -> Found:
    """Run average linkage, cut at cosine similarity 0.5; groups of one item are noise."""
    from scipy.cluster.hierarchy import fcluster, linkage

    apart = np.maximum(0, 1 - vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    groups = fcluster(linkage(apart, "average"), 0.5, "distance").astype(np.int64)
    alone = np.bincount(groups)[groups] < 2
    return Found(np.where(alone, -1, groups), np.zeros(len(groups), dtype=np.bool_))


def immich(vectors: FloatMatrix) -> Found:
    """Run Immich's face clustering: DBSCAN with cosine distance 0.5 and at least 3 faces around a core point.

    The 3 faces include the core point itself.
    """
    from sklearn.cluster import DBSCAN

    return _plain(DBSCAN(eps=1.0, min_samples=3).fit(vectors))  # cosine distance 0.5 is Euclidean distance 1


def photoprism(vectors: FloatMatrix) -> Found:
    """Run PhotoPrism's face clustering: DBSCAN with distance 0.64 and at least 4 faces around a core point.

    The 4 faces include the core point itself.
    """
    from sklearn.cluster import DBSCAN

    return _plain(DBSCAN(eps=0.64, min_samples=4).fit(vectors))


def _plain(fitted: object) -> Found:
    labels: Labels = np.asarray(fitted.labels_, dtype=np.int64)  # type: ignore[attr-defined]  # scikit-learn sets it in fit
    return Found(labels, np.zeros(len(labels), dtype=np.bool_))


METHODS: Final[Mapping[str, Callable[[FloatMatrix], Found]]] = {
    "ours": ours,
    "ours, as it was": before,
    "hdbscan, default": hdbscan_default,
    "scikit-learn HDBSCAN, default": sklearn_default,
    "average linkage, cosine .5": average_linkage,
    "Immich's threshold": immich,
    "PhotoPrism's threshold": photoprism,
}

warnings.filterwarnings("ignore", category=FutureWarning)
