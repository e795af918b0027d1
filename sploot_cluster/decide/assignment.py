"""Assignment of arrivals to clusters, the thresholds of clusters, and the decision to request a recluster.

The similarity of an item to a cluster is the mean of its three highest cosine similarities to the cluster's members. If
only the highest counted, a single odd member could attract unrelated items; if all counted, an elongated cluster would
refuse its own members. An item joins if this similarity reaches the cluster's threshold. Absorbed items are members but
are ignored in all comparisons: they were added to keep the noise low, and need not fit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from sploot_cluster.pet.models import NOISE, ClusterCard, ClusterId, Origin, PetState
from sploot_cluster.pet.vectors import FloatMatrix, FloatVector, LabelVector, OriginVector, Rows
from sploot_cluster.settings import ClusterSettings

if TYPE_CHECKING:
    # processes that only read pets import this module and do not need faiss
    from sploot_cluster.engine.neighbours import Neighbours

TOP: Final = 3

# The float32 similarity of two vectors varies by up to this much with the order of summation.
ROUNDING: Final = 1e-5

# An int, because comparing with an enum member takes ten times as long, and an arrival makes sixty-four comparisons.
_ABSORBED: Final = int(Origin.ABSORBED)

# Number of nearest neighbours to try before all others are considered.
_FIRST: Final = 8

# Maximum number of members to compare with all others when a threshold is computed: comparing 2,048 members with 50,000
# in 512 dimensions takes half a second on one core.
_MOST_PROBES: Final = 2_048
_BLOCK: Final = 512
# Number of similarities to compute per block if a cluster has few members.
_BLOCK_VALUES: Final = 1 << 17


@dataclass(frozen=True, slots=True)
class Decision:
    """The assignment of an arrival.

    Attributes:
        cluster: the cluster that the arrival joins, or NOISE.
        origin: ARRIVED, or NOISE.
        similarity: similarity to that cluster or, for noise, to the nearest one; None if no neighbour is in a cluster.
    """

    cluster: ClusterId
    origin: Origin
    similarity: float | None


def decide(
    neighbours: Neighbours,
    labels: LabelVector,
    origins: OriginVector,
    clusters: Mapping[ClusterId, ClusterCard],
    settings: ClusterSettings,
) -> Decision:
    """Return the most similar cluster whose threshold an arrival reaches, or NOISE.

    A cluster is eligible only if three of its members (all of them, if it has fewer) are among the neighbours. The mean
    similarity to an ineligible cluster is unknown, but it can only be low.

    Args:
        neighbours: the neighbours of one query among the rows of ``labels``.
        labels, origins: (n,) the pet's labels and origins.
        clusters: the living clusters, with their thresholds.

    O(k) for k neighbours, or O(n) if the members of a small cluster must be counted.
    """
    ids, similarity = neighbours.ids[0], neighbours.similarity[0]
    if len(ids) and ids[-1] < 0:
        ids = ids[ids >= 0]
    if len(ids) > _FIRST:
        # in most cases, the nearest few neighbours are enough to decide
        first = _tops(ids[:_FIRST], similarity, labels, origins)
        leader = _leader(first, similarity[_FIRST])
        if leader is not None and reach(leader[0], clusters[leader[1]].threshold) <= settings.arrival_slack:
            return Decision(leader[1], Origin.ARRIVED, leader[0])
    tops = _tops(ids, similarity, labels, origins)

    # the most similar cluster first, and equally similar clusters by ascending id
    by_similarity = sorted([(-sum(top) / len(top), label) for label, top in tops.items()])
    for negative, label in by_similarity:
        cluster, n_top = ClusterId(label), len(tops[label])
        if reach(-negative, clusters[cluster].threshold) <= settings.arrival_slack and (
            n_top == TOP or n_top == _count(labels, origins, cluster)
        ):
            return Decision(cluster, Origin.ARRIVED, -negative)
    return Decision(NOISE, Origin.NOISE, -by_similarity[0][0] if by_similarity else None)


def _tops(
    ids: npt.NDArray[np.int64], similarity: FloatVector, labels: LabelVector, origins: OriginVector
) -> dict[int, list[float]]:
    """Return up to three similarities for each cluster, highest first. ``ids`` are the neighbours, closest first."""
    tops: dict[int, list[float]] = {}
    # for 64 neighbours, a loop over lists is faster than numpy
    for label, origin, one in zip(
        labels.take(ids).tolist(), origins.take(ids).tolist(), similarity[: len(ids)].tolist(), strict=True
    ):
        if origin == _ABSORBED:
            continue
        top = tops.get(label)
        if top is None:
            tops[label] = [one]
        elif len(top) < TOP:
            top.append(one)
    tops.pop(NOISE, None)
    return tops


def _leader(tops: Mapping[int, Sequence[float]], next_similarity: float) -> tuple[float, ClusterId] | None:
    """Return the similarity and the id of the most similar cluster, or None if further neighbours may still change it.

    Further neighbours can only lower the mean of a cluster that has fewer than three neighbours so far, and the mean of
    a cluster that has none is at most the next similarity.

    Args:
        next_similarity: the similarity of the first neighbour that is not in ``tops``.
    """
    best, leader = float(next_similarity), None
    for label, top in tops.items():
        mean = sum(top) / len(top)
        if mean > best:
            best, leader = mean, (label if len(top) == TOP else None)
        elif mean == best:
            leader = None
    return None if leader is None else (best, ClusterId(leader))


def reach(similarity: float, threshold: float) -> float:
    """Return an item's distance from a cluster as a multiple of the distance that the cluster's threshold allows.

    At 1 or below, the item is within the threshold. Similarities are converted to distances (1 − similarity), so that a
    multiple means the same at every similarity.
    """
    far = np.float32(1) - np.float32(similarity) - np.float32(ROUNDING)
    return max(0.0, float(far / np.float32(max(1 - threshold, ROUNDING))))


def reaches(similarity: FloatVector, threshold: float) -> FloatVector:
    """Return the :func:`reach` of each of m items, as (m,) float32."""
    far: FloatVector = np.maximum(0, 1 - similarity - np.float32(ROUNDING)) / np.float32(max(1 - threshold, ROUNDING))
    return far


def threshold_of(vectors: FloatMatrix) -> float:
    """Return a cluster's threshold: the lowest similarity of a member to the other members, in [-1, 1].

    Outliers are ignored, because a single stray item would otherwise open the cluster to unrelated ones. An outlier is
    a member whose similarity is below the lower quartile by more than 1.5 times the interquartile range (Tukey's
    fence). The threshold of a cluster with one member is 1, because only identical items are known to belong to it.

    Args:
        vectors: (n, d) float32 of unit norm, n ≥ 1: the members, without absorbed ones.

    O(n² · d) up to 2,048 members; beyond that, 2,048 evenly spaced members are compared with all.
    """
    if len(vectors) == 1:
        return 1.0
    own = own_similarity(vectors)
    lower, upper = _quartiles(own)
    # a plain float would be rounded to float32 before it is compared
    fence = np.float64(lower - 1.5 * (upper - lower))
    return max(-1.0, min(1.0, float(own[own >= fence].min())))


# Maximum reach of an item that may join a locked cluster. Measured: docs/explanation/quality.md.
LOCKED_REACH: Final = 0.95


def tightened(threshold: float) -> float:
    """Return the threshold that a cluster has while it is locked, given the threshold computed from its members."""
    return 1 - LOCKED_REACH * (1 - threshold)


def medoid_of(vectors: FloatMatrix) -> int:
    """Return the position of the vector that is most similar to all others on average."""
    return int((vectors @ vectors.sum(axis=0)).argmax())


class Thresholds:
    """A cache of thresholds (:func:`threshold_of`) by group of rows.

    If a group consists of exactly the counted members of a cluster, and none of them has the origin ARRIVED, the
    threshold on the cluster's card is still valid, so it is used instead of being computed again.
    """

    def __init__(self, state: PetState, *, stale: Set[ClusterId] = frozenset()) -> None:
        """
        Args:
            stale: clusters whose card does not have the threshold computed from their members, such as locked ones.
        """
        self._state, self._stale = state, stale
        self._counts = state.origins != Origin.ABSORBED
        self._sizes = Counter(state.labels[self._counts].tolist())
        self._thresholds: dict[bytes, float] = {}

    def of(self, members: Rows) -> float:
        """Return the threshold of a group, given as the ascending rows of its counted members (at least one)."""
        key = members.tobytes()
        if key not in self._thresholds:
            card = self._card(members)
            self._thresholds[key] = threshold_of(self._state.vectors[members]) if card is None else card.threshold
        return self._thresholds[key]

    def _card(self, members: Rows) -> ClusterCard | None:
        state, label = self._state, ClusterId(int(self._state.labels[members[0]]))
        is_as_before = (
            label not in self._stale
            and self._sizes[label] == len(members)
            and self._counts[members].all()
            and (state.labels[members] == label).all()
            and (state.origins[members] != Origin.ARRIVED).all()
        )
        return state.clusters.get(label) if is_as_before else None


def own_similarity(vectors: FloatMatrix) -> FloatVector:
    """Return the mean top-3 similarity of each of m members to the other members, as (m,) float32.

    Args:
        vectors: (n, d) float32 of unit norm, n ≥ 2: the members. If n > 2,048, only m = 2,048 of them are measured,
            evenly spaced; else m = n.
    """
    n = len(vectors)
    if n <= _BLOCK:
        # numpy computes half of the product of a matrix with itself, because it is symmetric
        similarity = vectors @ vectors.T
        np.fill_diagonal(similarity, -np.inf)
        return _mean_top(similarity, min(TOP, n - 1))
    probes = np.arange(n) if n <= _MOST_PROBES else np.linspace(0, n - 1, num=_MOST_PROBES).astype(np.intp)
    own = np.empty(len(probes), dtype=np.float32)
    for start in range(0, len(probes), _BLOCK):
        rows = probes[start : start + _BLOCK]
        similarity = vectors[rows] @ vectors.T
        similarity[np.arange(len(rows)), rows] = -np.inf
        own[start : start + _BLOCK] = _mean_top(similarity, min(TOP, n - 1))
    return own


def similarity_to(members: FloatMatrix, queries: FloatMatrix) -> FloatVector:
    """Return the mean top-3 similarity of each of m ``queries`` to ``members`` (at least one), as (m,) float32."""
    similarity = np.empty(len(queries), dtype=np.float32)
    step = max(_BLOCK, _BLOCK_VALUES // len(members))
    for start in range(0, len(queries), step):
        block = queries[start : start + step] @ members.T
        similarity[start : start + step] = _mean_top(block, min(TOP, len(members)))
    return similarity


def most_similar(clusters: Mapping[ClusterId, Rows], vectors: FloatMatrix, media: Rows) -> LabelVector:
    """Return, as (m,) int32, the cluster that each of m items is most similar to. Ties go to the first cluster.

    Args:
        clusters: cluster -> its members, at least one, as rows of ``vectors``.
        media: the items, as rows of ``vectors``.
    """
    likeness = [similarity_to(vectors[members], vectors[media]) for members in clusters.values()]
    chosen: LabelVector = np.array(list(clusters), dtype=np.int32)[np.argmax(likeness, axis=0)]
    return chosen


def let_count(labels: LabelVector, origins: OriginVector) -> OriginVector:
    """Return the origins, with ABSORBED replaced by ARRIVED in clusters that have only absorbed members."""
    counts = origins != Origin.ABSORBED
    is_alone = ~counts & (labels != NOISE) & ~np.isin(labels, labels[counts])
    return np.where(is_alone, Origin.ARRIVED, origins).astype(np.uint8)


def recluster_reason(state: PetState, settings: ClusterSettings) -> str | None:
    """Return why the pet needs a recluster, as text for a log, or None if it does not."""
    return why_recluster(state.n_media, state.n_at_recluster, state.noise_arrivals, settings)


def why_recluster(n_media: int, n_at_recluster: int, noise_arrivals: int, settings: ClusterSettings) -> str | None:
    """Return the :func:`recluster_reason` for a pet with these counts."""
    n_new = n_media - n_at_recluster
    if n_new >= max(settings.growth_min, settings.growth_ratio * n_at_recluster):
        return f"growth: {n_new} new items since the last recluster, which covered {n_at_recluster}"
    if noise_arrivals >= max(settings.drift_min, settings.drift_ratio * n_new):
        return f"drift: {noise_arrivals} of {n_new} new items since the last recluster found no cluster"
    return None


def _count(labels: LabelVector, origins: OriginVector, cluster: ClusterId) -> int:
    return int(np.count_nonzero((labels == cluster) & (origins != Origin.ABSORBED)))


def _quartiles(values: FloatVector) -> tuple[float, float]:
    """Return the lower and upper quartile. Equal to ``np.quantile``, but 20 times as fast for few values."""
    ordered = np.sort(values)
    last = len(ordered) - 1

    def at(position: float) -> float:
        below = int(position)
        one, other, share = ordered[below], ordered[min(below + 1, last)], position - below
        gap = float(other - one)
        return float(one) + gap * share if share < 0.5 else float(other) - gap * (1 - share)

    return at(0.25 * last), at(0.75 * last)


def _mean_top(similarity: FloatMatrix, k: int) -> FloatVector:
    mean: FloatVector = np.partition(similarity, -k, axis=1)[:, -k:].mean(axis=1)
    return mean
