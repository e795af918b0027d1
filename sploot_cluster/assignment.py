"""Where an arrival belongs, how far a cluster reaches, and when a pet wants a recluster.

A medium is as similar to a cluster as the mean of its three highest cosine similarities to members of it: three, so
that one odd member does not draw in strangers, and not all, because a cluster may be long. It joins if the cluster
reaches so far. Absorbed media are members that do not count: they keep the noise low, and need not fit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from sploot_cluster.models import NOISE, ClusterCard, ClusterId, PetState, Standing
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.vectors import FloatMatrix, FloatVector, LabelVector, Rows, StandingVector

if TYPE_CHECKING:
    # who only reads pets imports this module and needs no faiss
    from sploot_cluster.neighbours import Neighbours

TOP: Final = 3

# Similarities of the same vectors differ by so much with the order of summation in float32.
ROUNDING: Final = 1e-5

# Comparing with a member of an enum costs ten times as much, sixty-four times an arrival.
_ABSORBED: Final = int(Standing.ABSORBED)

# Members whose spread is looked at: 2,048 × 50,000 × 512 are half a second on one core.
_MOST_PROBES: Final = 2_048
_BLOCK: Final = 512


@dataclass(frozen=True, slots=True)
class Decision:
    """Where an arrival belongs.

    Attributes:
        cluster: its cluster, or NOISE.
        standing: ARRIVED, or NOISE.
        similarity: to that cluster, or to the nearest one when it is noise; None when no cluster is near.
    """

    cluster: ClusterId
    standing: Standing
    similarity: float | None


def decide(
    neighbours: Neighbours,
    labels: LabelVector,
    standings: StandingVector,
    clusters: Mapping[ClusterId, ClusterCard],
    settings: ClusterSettings,
) -> Decision:
    """The most similar of the clusters that reach an arrival, or NOISE.

    A cluster can take it only if three of its members are among the neighbours (all, if it has fewer): of others
    the mean is not known, only that it is low.

    Args:
        neighbours: of one query, over the rows of ``labels``.
        labels, standings: (n,) of the pet.
        clusters: the living clusters, with their thresholds.

    O(n) for the sizes of small clusters, else O(k).
    """
    ids = neighbours.ids[0]
    if len(ids) and ids[-1] < 0:
        ids = ids[ids >= 0]
    # sixty-four pairs: lists are faster than arrays
    tops: dict[int, list[float]] = {}
    for label, standing, similarity in zip(
        labels.take(ids).tolist(), standings.take(ids).tolist(), neighbours.similarity[0].tolist(), strict=False
    ):
        if standing == _ABSORBED:
            continue
        top = tops.get(label)
        if top is None:
            tops[label] = [similarity]
        elif len(top) < TOP:  # closest first
            top.append(similarity)
    tops.pop(NOISE, None)

    nearest: float | None = None
    best: tuple[float, ClusterId] | None = None
    for label, top in sorted(tops.items()):
        cluster = ClusterId(label)
        mean = sum(top) / len(top)
        nearest = mean if nearest is None else max(nearest, mean)
        # ids ascend, and a later one must be better: of equals the smallest wins
        if (
            (best is None or mean > best[0])
            and reach(mean, clusters[cluster].threshold) <= settings.arrival_slack
            and (len(top) == TOP or len(top) == _count(labels, standings, cluster))
        ):
            best = mean, cluster
    if best is None:
        return Decision(NOISE, Standing.NOISE, nearest)
    return Decision(best[1], Standing.ARRIVED, best[0])


def reach(similarity: float, threshold: float) -> float:
    """How far a cluster would have to reach for a medium, as a multiple of how far it does: at most 1 is within.

    Both are turned into distances, 1 − similarity, so that it means the same at every level of similarity.
    """
    far = np.float32(1) - np.float32(similarity) - np.float32(ROUNDING)
    return max(0.0, float(far / np.float32(max(1 - threshold, ROUNDING))))


def reaches(similarity: FloatVector, threshold: float) -> FloatVector:
    """(m,) :func:`reach` for each of m media."""
    far: FloatVector = np.maximum(0, 1 - similarity - np.float32(ROUNDING)) / np.float32(max(1 - threshold, ROUNDING))
    return far


def threshold_of(vectors: FloatMatrix) -> float:
    """The similarity that a cluster's own members reach: the lowest of a member to the others, in [-1, 1].

    A member far below the rest does not count, or one stray medium would open the cluster to strangers: below the lower
    quartile by more than 1.5 times the distance between the quartiles, which is Tukey's fence. For one member alone
    it is 1: nothing is known to belong to it but its like.

    Args:
        vectors: (n, d) float32 of unit norm, n ≥ 1: the members, without absorbed ones.

    O(n² · d) up to 2,048 members, beyond that 2,048 evenly spread ones are compared with all.
    """
    if len(vectors) == 1:
        return 1.0
    own = own_similarity(vectors)
    lower, upper = np.quantile(own, [0.25, 0.75])
    return float(np.clip(own[own >= lower - 1.5 * (upper - lower)].min(), -1, 1))


class Thresholds:
    """:func:`threshold_of` of groups of a pet, computed once for the same members.

    Where they are those of a cluster that nobody joined by its threshold since, the cluster's card tells.
    """

    def __init__(self, state: PetState) -> None:
        self._state = state
        self._counts = state.standings != Standing.ABSORBED
        self._sizes = Counter(state.labels[self._counts].tolist())
        self._told: dict[bytes, float] = {}

    def of(self, members: Rows) -> float:
        """Of the members that count: rows of the pet, ascending, at least one."""
        key = members.tobytes()
        if key not in self._told:
            card = self._card(members)
            self._told[key] = threshold_of(self._state.vectors[members]) if card is None else card.threshold
        return self._told[key]

    def _card(self, members: Rows) -> ClusterCard | None:
        state, label = self._state, ClusterId(int(self._state.labels[members[0]]))
        is_as_before = (
            self._sizes[label] == len(members)
            and self._counts[members].all()
            and (state.labels[members] == label).all()
            and (state.standings[members] != Standing.ARRIVED).all()
        )
        return state.clusters.get(label) if is_as_before else None


def own_similarity(vectors: FloatMatrix) -> FloatVector:
    """(m,) float32: how similar members are to the others, mean top-3 each; m ≤ 2,048 evenly spread ones of n ≥ 2."""
    n = len(vectors)
    probes = np.linspace(0, n - 1, num=min(n, _MOST_PROBES)).astype(np.intp)
    own = np.empty(len(probes), dtype=np.float32)
    for start in range(0, len(probes), _BLOCK):
        rows = probes[start : start + _BLOCK]
        similarity = vectors[rows] @ vectors.T
        similarity[np.arange(len(rows)), rows] = -np.inf
        own[start : start + _BLOCK] = _mean_top(similarity, min(TOP, n - 1))
    return own


def similarity_to(members: FloatMatrix, queries: FloatMatrix) -> FloatVector:
    """(m,) float32: mean top-3 similarity of each of m ``queries`` to ``members``, of which there is at least one."""
    similarity = np.empty(len(queries), dtype=np.float32)
    for start in range(0, len(queries), _BLOCK):
        block = queries[start : start + _BLOCK] @ members.T
        similarity[start : start + _BLOCK] = _mean_top(block, min(TOP, len(members)))
    return similarity


def most_similar(clusters: Mapping[ClusterId, Rows], vectors: FloatMatrix, media: Rows) -> LabelVector:
    """(m,) int32: the cluster that each of ``media`` is most similar to, of equals the first.

    Args:
        clusters: their members, at least one each; ``media`` and they are rows of ``vectors``.
    """
    likeness = [similarity_to(vectors[members], vectors[media]) for members in clusters.values()]
    chosen: LabelVector = np.array(list(clusters), dtype=np.int32)[np.argmax(likeness, axis=0)]
    return chosen


def let_count(labels: LabelVector, standings: StandingVector) -> StandingVector:
    """The standings, where absorbed media that are alone in their cluster count: somebody must."""
    counts = standings != Standing.ABSORBED
    is_alone = ~counts & (labels != NOISE) & ~np.isin(labels, labels[counts])
    return np.where(is_alone, Standing.ARRIVED, standings).astype(np.uint8)


def recluster_reason(state: PetState, settings: ClusterSettings) -> str | None:
    """Why the pet wants a recluster, in words for a log; None if it does not."""
    n_new = state.n_media - state.n_at_recluster
    if n_new >= max(settings.growth_min, settings.growth_ratio * state.n_at_recluster):
        return f"growth: {n_new} media since a recluster of {state.n_at_recluster}"
    if state.noise_arrivals >= max(settings.drift_min, settings.drift_ratio * n_new):
        return f"drift: {state.noise_arrivals} of {n_new} media since the last recluster found no cluster"
    return None


def _count(labels: LabelVector, standings: StandingVector, cluster: ClusterId) -> int:
    return int(np.count_nonzero((labels == cluster) & (standings != Standing.ABSORBED)))


def _mean_top(similarity: FloatMatrix, k: int) -> FloatVector:
    mean: FloatVector = np.partition(similarity, -k, axis=1)[:, -k:].mean(axis=1)
    return mean
