"""The suggestions that ask whether two clusters show the same subject."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from sploot_cluster.decide.corrections.base import SAME_SUBJECT
from sploot_cluster.decide.corrections.keep_apart import KeepApart
from sploot_cluster.decide.corrections.merge import MergeClusters
from sploot_cluster.decide.suggestions.scene import Scene, probability
from sploot_cluster.decide.suggestions.values import Reply, Suggestion
from sploot_cluster.pet.vectors import FloatMatrix

KIND: Final = SAME_SUBJECT

# Weights of a logistic regression, fitted to the data sets of benchmarks.quality with seeds 1 to 4.
# `python -m benchmarks suggestions` measures its accuracy.
_WEIGHTS: Final = (10.3, -1.8, 1.18, 0.09, -1.49)
_INTERCEPT: Final = -1.7
LEAST: Final = 0.35


def ask(scene: Scene) -> Iterator[Suggestion]:
    """Yield a question for each pair of clusters that may show one subject, and that no correction keeps apart.

    The best evidence is that the centres of the two clusters are similar beyond what all clusters of the pet have in
    common, and more similar to each other than to other centres. O(c² · d) for c clusters.
    """
    n = len(scene.clusters)
    if n < 2:
        return
    chance = _chances(scene)
    for one, other in zip(*np.nonzero(np.triu(chance, k=1) >= LEAST), strict=True):
        if scene.sides(int(one)).conflict(scene.sides(int(other))):
            continue
        yield _question(scene, int(one), int(other), float(chance[one, other]))


def _chances(scene: Scene) -> FloatMatrix:
    """Return the (c, c) probability that two clusters show one subject."""
    n = len(scene.clusters)
    common = (scene.centres * scene.sizes[:, None]).sum(axis=0) / scene.sizes.sum()
    own = scene.centres - common
    own /= np.linalg.norm(own, axis=1, keepdims=True) + 1e-9
    likeness = own @ own.T
    np.fill_diagonal(likeness, -np.inf)
    best = likeness.argmax(axis=1)
    first = likeness[np.arange(n), best]
    second = np.partition(likeness, -2, axis=1)[:, -2] if n > 2 else np.full(n, -1, dtype=np.float32)
    # (row, column): the likeness of the row's cluster to the most similar cluster other than the column's
    rival = np.where(np.arange(n)[None, :] == best[:, None], second[:, None], first[:, None])
    np.fill_diagonal(likeness, -1)
    lead = np.maximum(likeness - rival, (likeness - rival).T)
    squares = np.einsum("cd,cd->c", scene.centres, scene.centres, dtype=np.float64)
    gap = np.maximum(squares[:, None] + squares[None, :] - 2 * (scene.centres @ scene.centres.T), 0)
    apart = np.log(gap / (scene.spreads[:, None] + scene.spreads[None, :] + 1e-6) + 1e-6)
    smaller = np.log(np.minimum(scene.sizes[:, None], scene.sizes[None, :]))
    return probability(_WEIGHTS, (likeness, lead, apart, smaller, float(np.log(n))), _INTERCEPT)


def _question(scene: Scene, one: int, other: int, chance: float) -> Suggestion:
    ids = tuple(sorted((scene.clusters[one], scene.clusters[other])))
    body = {"pet_id": scene.state.pet, "cluster_ids": list(ids), "suggestion": KIND}
    return Suggestion(
        suggestion_id=f"{KIND}:{ids[0]}:{ids[1]}",
        kind=KIND,
        question=f"Do clusters {ids[0]} and {ids[1]} show the same subject?",
        cluster_ids=ids,
        sides=(scene.typical(scene.members[one]), scene.typical(scene.members[other])),
        probability=chance,
        gain=chance * float(min(scene.sizes[one], scene.sizes[other])),
        yes=Reply(MergeClusters.verb, body),
        no=Reply(KeepApart.verb, body),
    )
