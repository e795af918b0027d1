"""The suggestions that ask whether a cluster shows two subjects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from sploot_cluster.decide.corrections.base import TWO_SUBJECTS
from sploot_cluster.decide.corrections.place import PlaceMedia
from sploot_cluster.decide.corrections.split import SplitCluster
from sploot_cluster.decide.suggestions.scene import SHOWN, Scene, probability
from sploot_cluster.decide.suggestions.values import Reply, Suggestion
from sploot_cluster.limits import MAX_MEDIA_IDS
from sploot_cluster.pet.vectors import BoolVector, FloatMatrix, FloatVector, Rows

KIND: Final = TWO_SUBJECTS

# Weights of a logistic regression, fitted to the data sets of benchmarks.quality with seeds 1 to 4.
# `python -m benchmarks suggestions` measures its accuracy.
_WEIGHTS: Final = (1.0, -0.92, 2.24, -0.79)
_INTERCEPT: Final = -1.22
LEAST: Final = 0.4

_SMALLEST_CLUSTER: Final = 6
_SMALLEST_HALF: Final = 3
# Maximum number of clusters to try to cut, those with the largest spread first, and maximum number of members of each
# that determine the cut.
_MOST_CUTS: Final = 64
_MOST_MEMBERS: Final = 512
_NEIGHBOURS: Final = 5
_ROUNDS: Final = 30


@dataclass(frozen=True, slots=True)
class _Cut:
    """A cut of a cluster into two halves, as accepted rows, with the probability that it separates two subjects."""

    smaller: Rows
    larger: Rows
    centres: tuple[FloatVector, FloatVector]
    probability: float


def ask(scene: Scene) -> Iterator[Suggestion]:
    """Yield a question for each cluster that may show two subjects, unless corrections keep both together."""
    if not len(scene.clusters):
        return
    usual = float(np.median(scene.spreads))
    for at in np.argsort(-scene.spreads, kind="stable")[:_MOST_CUTS].tolist():
        if len(scene.members[at]) < _SMALLEST_CLUSTER or scene.clusters[at] in scene.locked:
            continue
        cut = _cut(scene, at, usual)
        if cut is None or cut.probability < LEAST or _is_known_as_one(scene, cut):
            continue
        question = _question(scene, at, cut)
        if question is not None:
            yield question


def _cut(scene: Scene, at: int, usual_spread: float) -> _Cut | None:
    """Return the best cut of a cluster, or None if one half would be too small."""
    members = scene.members[at]
    vectors = scene.state.vectors[members]
    centre = vectors.mean(axis=0)
    sample = np.linspace(0, len(members) - 1, num=min(_MOST_MEMBERS, len(members))).astype(np.intp)
    is_first = _halves(vectors[sample] - centre)
    if not is_first.any() or is_first.all():
        return None
    first, second = vectors[sample][is_first].mean(axis=0), vectors[sample][~is_first].mean(axis=0)
    in_first = vectors @ (first - second) > (first @ first - second @ second) / 2
    n_first = int(np.count_nonzero(in_first))
    if min(n_first, len(members) - n_first) < _SMALLEST_HALF:
        return None
    first, second = vectors[in_first].mean(axis=0), vectors[~in_first].mean(axis=0)
    share = n_first / len(members)
    within = share * (1 - float(first @ first)) + (1 - share) * (1 - float(second @ second))
    gap = float(((first - second) ** 2).sum())
    features = (
        float(np.log(gap / (within + 1e-6) + 1e-6)),
        float(np.log(_crossing(vectors[sample], in_first[sample]) / (2 * share * (1 - share)) + 0.02)),
        float(np.log((scene.spreads[at] + 1e-6) / (usual_spread + 1e-6))),
        float(np.log(len(members))),
    )
    chance = float(probability(_WEIGHTS, features, _INTERCEPT))
    if 2 * n_first <= len(members):
        return _Cut(members[in_first], members[~in_first], (first, second), chance)
    return _Cut(members[~in_first], members[in_first], (second, first), chance)


def _halves(vectors: FloatMatrix) -> BoolVector:
    """Return which of the centred vectors are in the first of two halves, by 2-means.

    It starts with the vectors divided along their principal direction.
    """
    direction = vectors[np.argmax(np.einsum("nd,nd->n", vectors, vectors))]
    for _ in range(_ROUNDS):
        direction = vectors.T @ (vectors @ direction)
        direction = direction / (np.linalg.norm(direction) + 1e-12)
    is_first: BoolVector = vectors @ direction > 0
    for _ in range(_ROUNDS):
        if is_first.all() or not is_first.any():
            break
        first, second = vectors[is_first].mean(axis=0), vectors[~is_first].mean(axis=0)
        now: BoolVector = vectors @ (first - second) > (first @ first - second @ second) / 2
        if (now == is_first).all():
            break
        is_first = now
    return is_first


def _crossing(vectors: FloatMatrix, is_first: BoolVector) -> float:
    """Return the share of all items' nearest neighbours that are in the other half than the item."""
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    k = min(_NEIGHBOURS, len(vectors) - 2)
    nearest = np.argpartition(-similarity, k, axis=1)[:, :k]
    return float((is_first[nearest] != is_first[:, None]).mean())


def _is_known_as_one(scene: Scene, cut: _Cut) -> bool:
    """Return whether corrections keep items of both halves together."""
    rows = scene.rows
    atoms = [{*rows.atoms[half[rows.placed[half]]].tolist()} for half in (cut.smaller, cut.larger)]
    return not atoms[0].isdisjoint(atoms[1])


def _question(scene: Scene, at: int, cut: _Cut) -> Suggestion | None:
    state, cluster = scene.state, scene.clusters[at]
    absorbed = np.setdiff1d(scene.all_rows(at), scene.members[at])
    smaller, larger = cut.centres
    nearer = absorbed[state.vectors[absorbed] @ (smaller - larger) > (smaller @ smaller - larger @ larger) / 2]
    moved = np.sort(np.concatenate([cut.smaller, nearer]))
    sides = (scene.typical(cut.smaller), scene.typical(cut.larger))
    is_open = ~scene.rows.placed[[state.rows[item] for side in sides for item in side]]
    if len(moved) > MAX_MEDIA_IDS or not is_open.any():
        return None
    return Suggestion(
        suggestion_id=f"{KIND}:{cluster}",
        kind=KIND,
        question=f"Does cluster {cluster} show two subjects?",
        cluster_ids=(cluster,),
        sides=sides,
        probability=cut.probability,
        gain=cut.probability * len(cut.smaller),
        yes=Reply(
            SplitCluster.verb,
            {
                "pet_id": state.pet,
                "cluster_id": cluster,
                "media_ids": [state.media[row] for row in moved.tolist()],
                "suggestion": KIND,
            },
        ),
        # *no* keeps the typical items of both halves together
        no=Reply(
            PlaceMedia.verb,
            {
                "pet_id": state.pet,
                "media_ids": [item for side in sides for item in side[:SHOWN]],
                "into": cluster,
                "suggestion": KIND,
            },
        ),
    )
