"""A map of a pet: its items as points in two dimensions, to be shown to users.

The axes are the two directions in which the vectors differ most (principal components). They depend only on the items,
so corrections and reclusters do not move points.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from sploot_cluster.answer_fields import described
from sploot_cluster.pet.models import MediaId, PetId, PetState

# Maximum number of items from which the axes are computed: 2,048 rows of 512 values take 20 ms.
MOST_FOR_AXES: Final = 2_048


@dataclass(frozen=True, slots=True)
class PetMap:
    """A pet's items as points on a map, at one revision. Position i of every list belongs to the same item."""

    pet_id: PetId
    revision: int
    n_media: int = field(metadata=described("Number of the pet's items. The map shows an even sample of them."))
    media_ids: tuple[MediaId, ...]
    x: tuple[float, ...] = field(metadata=described("From 0 to 1, left to right."))
    y: tuple[float, ...] = field(metadata=described("From 0 to 1, bottom to top, in the same unit as x."))


def project(state: PetState, *, limit: int) -> PetMap:
    """Return a map of at most ``limit`` items, evenly chosen in the order of arrival. O(limit · dim)."""
    rows = _evenly(state.n_media, limit)
    points = _points(np.asarray(state.vectors, dtype=np.float32)[rows], n_axes=2)
    return PetMap(
        state.pet,
        state.revision,
        state.n_media,
        tuple(state.media[row] for row in rows.tolist()),
        tuple(points[:, 0].round(4).tolist()),
        tuple(points[:, 1].round(4).tolist()),
    )


def _evenly(n: int, limit: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.unique(np.linspace(0, n - 1, min(n, limit)).round().astype(np.int64)) if n else np.zeros(0, np.int64)


def _points(
    vectors: np.ndarray[tuple[int, int], np.dtype[np.float32]], *, n_axes: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return the coordinates of vectors on their principal axes, shifted into [0, 1] and scaled equally on all axes."""
    n, dim = vectors.shape
    if n < 2 or dim == 0:
        return np.full((n, n_axes), 0.5)
    sample = vectors[_evenly(n, MOST_FOR_AXES)].astype(np.float64)
    centre = sample.mean(axis=0)
    _, _, axes = np.linalg.svd(sample - centre, full_matrices=False)
    axes = axes[:n_axes]
    # the sign of an axis is arbitrary; without a rule, the map could be mirrored when an item arrives
    axes *= np.where(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)] < 0, -1, 1)[:, None]
    points = np.zeros((n, n_axes))
    points[:, : len(axes)] = (vectors - centre) @ axes.T
    low, high = points.min(axis=0), points.max(axis=0)
    span = float((high - low).max()) or 1.0
    points[:] = np.clip(0.5 + (points - (low + high) / 2) / span, 0, 1)
    return points
