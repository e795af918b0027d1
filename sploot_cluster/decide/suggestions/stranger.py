"""The suggestions that ask whether an item belongs to its cluster. Their estimate also orders the doubtful items."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

import numpy as np

from sploot_cluster.decide.assignment import TOP, own_similarity, similarity_to
from sploot_cluster.decide.corrections.base import STRANGER
from sploot_cluster.decide.corrections.exclude import ExcludeMedia
from sploot_cluster.decide.corrections.place import PlaceMedia
from sploot_cluster.decide.suggestions.scene import SMALLEST, Scene, probability
from sploot_cluster.decide.suggestions.values import DoubtfulItem, Reply, Suggestion
from sploot_cluster.pet.models import ClusterId, Origin
from sploot_cluster.pet.vectors import FloatVector, Rows

KIND: Final = STRANGER

# Weights of a logistic regression, fitted to the data sets of benchmarks.quality with seeds 1 to 4.
# `python -m benchmarks suggestions` measures its accuracy.
_WEIGHTS: Final = (2.4, 1.58, 0.68)
_INTERCEPT: Final = -2.1
LEAST: Final = 0.5

# Maximum number of items to compare with all clusters: those that are farthest from the centre of their own cluster.
_MOST_ITEMS: Final = 500
_RIVALS: Final = 3


def ask(scene: Scene) -> Iterator[Suggestion]:
    """Yield a question for each item that is more likely a stranger in its cluster than not."""
    for item in doubtful_items(scene):
        if item.probability < LEAST:
            return
        if item.cluster_id in scene.locked:
            continue
        pet, media, cluster = scene.state.pet, [item.media_id], item.cluster_id
        at = scene.clusters.index(cluster)
        yield Suggestion(
            suggestion_id=f"{KIND}:{cluster}:{item.media_id}",
            kind=KIND,
            question=f"Is {item.media_id} a stranger in cluster {cluster}?",
            cluster_ids=(cluster,),
            sides=((item.media_id,), scene.typical(scene.members[at])),
            probability=item.probability,
            gain=item.probability,
            yes=Reply(
                ExcludeMedia.verb, {"pet_id": pet, "cluster_id": cluster, "media_ids": media, "suggestion": KIND}
            ),
            no=Reply(PlaceMedia.verb, {"pet_id": pet, "media_ids": media, "into": cluster, "suggestion": KIND}),
        )


def doubtful_items(scene: Scene, cluster: ClusterId | None = None) -> list[DoubtfulItem]:
    """Return up to 500 items that are least likely to belong to their cluster, the least likely first.

    Items that a user placed are certain. An item is doubtful if its distance from its cluster is large compared with
    the distances of other members and with its distance from other clusters, or if it was absorbed. O(n · d) for n
    items, and O(c · d) for c clusters and each of the 500 items that are farthest from the centre of their cluster.

    Args:
        cluster: return only items of this cluster. Default: of all clusters.
    """
    state = scene.state
    rows, at = _farthest(scene, cluster)
    if not len(rows):
        return []
    own, usual = _similarity_to_own(scene, rows, at)
    second, best = _rivals(scene, rows, at)
    far = 1 - own + SMALLEST
    is_absorbed = (state.origins[rows] == Origin.ABSORBED).astype(np.float32)
    features = (np.log(far / (1 - usual + SMALLEST)), np.log(far / (1 - best + SMALLEST)), is_absorbed)
    doubt = probability(_WEIGHTS, features, _INTERCEPT)
    return [
        DoubtfulItem(
            media_id=state.media[rows[i]],
            cluster_id=(own_id := scene.clusters[at[i]]),
            origin=Origin(int(state.origins[rows[i]])).word,
            similarity=float(own[i]),
            threshold=state.clusters[own_id].threshold,
            second_cluster_id=scene.clusters[second[i]] if second[i] >= 0 else None,
            second_similarity=float(best[i]) if second[i] >= 0 else None,
            probability=float(doubt[i]),
        )
        for i in np.argsort(-doubt, kind="stable").tolist()
    ]


def _farthest(scene: Scene, cluster: ClusterId | None) -> tuple[Rows, Rows]:
    """Return the rows of the items to examine, and for each the position of its cluster in ``scene.clusters``."""
    state = scene.state
    rows: list[Rows] = []
    places: list[Rows] = []
    distances: list[FloatVector] = []
    for at, (id_, centre) in enumerate(zip(scene.clusters, scene.centres, strict=True)):
        if cluster not in (None, id_) or len(scene.members[at]) < 2:
            continue
        members = scene.all_rows(at)
        far = 1 - state.vectors[members] @ (centre / (np.linalg.norm(centre) + 1e-9))
        usual = np.median(far)
        is_open = ~scene.rows.placed[members]
        rows.append(members[is_open])
        places.append(np.full(np.count_nonzero(is_open), at, dtype=np.intp))
        distances.append(((far + SMALLEST) / (usual + SMALLEST))[is_open])
    if not rows:
        return np.empty(0, dtype=np.intp), np.empty(0, dtype=np.intp)
    farthest = np.argsort(-np.concatenate(distances), kind="stable")[:_MOST_ITEMS]
    return np.concatenate(rows)[farthest], np.concatenate(places)[farthest]


def _similarity_to_own(scene: Scene, rows: Rows, at: Rows) -> tuple[FloatVector, FloatVector]:
    """Return, for each row, its similarity to its own cluster, and the median similarity of the cluster's members."""
    vectors = scene.state.vectors
    own, usual = np.empty(len(rows), dtype=np.float32), np.empty(len(rows), dtype=np.float32)
    for cluster in np.unique(at).tolist():
        members, here = scene.some_of(cluster), np.flatnonzero(at == cluster)
        similarity = vectors[rows[here]] @ vectors[members].T
        similarity[rows[here][:, None] == members[None, :]] = -np.inf
        top = np.sort(similarity, axis=1)[:, ::-1][:, : min(TOP, len(members) - 1)]
        own[here] = top.mean(axis=1)
        usual[here] = np.median(own_similarity(vectors[members]))
    return own, usual


def _rivals(scene: Scene, rows: Rows, at: Rows) -> tuple[Rows, FloatVector]:
    """Return, for each row, the position (or -1) of the most similar other cluster, and the similarity to it."""
    vectors = scene.state.vectors
    second, best = np.full(len(rows), -1, dtype=np.intp), np.full(len(rows), -1, dtype=np.float32)
    n = len(scene.clusters)
    if n < 2:
        return second, best
    to_centres = vectors[rows] @ (scene.centres / (np.linalg.norm(scene.centres, axis=1, keepdims=True) + 1e-9)).T
    to_centres[np.arange(len(rows)), at] = -np.inf
    rows_of: dict[int, list[int]] = defaultdict(list)
    for i, nearest in enumerate(np.argsort(-to_centres, axis=1)[:, : min(_RIVALS, n - 1)].tolist()):
        for rival in nearest:
            rows_of[rival].append(i)
    for rival, items in rows_of.items():
        similarity = similarity_to(vectors[scene.some_of(rival)], vectors[rows[items]])
        for i, value in zip(items, similarity.tolist(), strict=True):
            if value > best[i]:
                second[i], best[i] = rival, value
    return second, best
