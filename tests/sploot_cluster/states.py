"""Pet states as values, for tests of decisions without a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sploot_cluster.pet.models import NOISE, ClusterCard, ClusterId, Correction, MediaId, Origin, PetId, PetState
from sploot_cluster.pet.vectors import FloatMatrix


def pet_state(
    labels: Sequence[int],
    vectors: FloatMatrix,
    *,
    origins: Sequence[Origin] | None = None,
    thresholds: Mapping[int, float] | None = None,
    aliases: Mapping[int, int] | None = None,
    ledger: Sequence[Correction] = (),
) -> PetState:
    """Return a pet with items ``m0``, ``m1``, … in these clusters. Default: CORE items and thresholds of .9."""
    media = tuple(MediaId(f"m{row}") for row in range(len(labels)))
    origin = origins or [Origin.NOISE if label == NOISE else Origin.CORE for label in labels]
    clusters = {
        ClusterId(id_): ClusterCard(ClusterId(id_), (thresholds or {}).get(id_, 0.9), since=1)
        for id_ in sorted(set(labels) - {NOISE})
    }
    return PetState(
        pet=PetId(1),
        revision=len(media) + len(ledger),
        model="clip@1",
        dim=vectors.shape[1],
        media=media,
        rows={item: row for row, item in enumerate(media)},
        vectors=vectors,
        occurred_at_ms=np.zeros(len(media), dtype=np.int64),
        labels=np.array(labels, dtype=np.int32),
        origins=np.array(origin, dtype=np.uint8),
        clusters=clusters,
        aliases={ClusterId(old): ClusterId(new) for old, new in (aliases or {}).items()},
        ledger=tuple(ledger),
        next_cluster=ClusterId(max([0, *clusters, *(aliases or {})]) + 1),
        version="test",
    )


def looks(*counts: int, spread: float = 0.05, dim: int = 8, seed: int = 1) -> FloatMatrix:
    """Return unit vectors close to axes, in order: ``counts[0]`` vectors close to axis 0, and so on."""
    rng = np.random.default_rng(seed)
    axes = np.repeat(np.arange(len(counts)), counts)
    x = rng.normal(scale=spread, size=(len(axes), dim))
    x[np.arange(len(axes)), axes] += 1
    unit: FloatMatrix = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return unit
