"""Exact arrivals: one item is added, and all items are assigned again together, as in a recluster.

The result is the same as if the pet were reclustered after every upload, but every arrival takes as long as assigning
all items. See docs/adr/0009-small-pets-are-decided-anew.md.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import numpy as np

from sploot_cluster.decide.assignment import similarity_to
from sploot_cluster.decide.recluster import plan_recluster
from sploot_cluster.engine.selection import Density
from sploot_cluster.pet.models import NOISE, Arrival, Assigned, Change, ClusterId, MediaId, Origin, PetState
from sploot_cluster.pet.vectors import FloatMatrix
from sploot_cluster.settings import ClusterSettings


def plan_exact_arrival(
    state: PetState,
    arriving: Arrival,
    vectors: FloatMatrix,
    density: Density,
    *,
    model: str,
    settings: ClusterSettings,
) -> tuple[Change, Assigned]:
    """Return the commit that appends ``arriving`` to ``state`` and assigns all items as a recluster would.

    Args:
        vectors: (n + 1, d) the vectors of ``state`` and, as the last row, the vector of ``arriving``.
        density: the density of all these vectors.
    """
    n = state.n_media
    planned, reclustered = plan_recluster(_with(state, arriving, vectors), density, settings=settings, by="machine")
    assert planned.relabelling is not None
    labels, origins = planned.relabelling.labels, planned.relabelling.origins
    label, origin = ClusterId(int(labels[n])), Origin(int(origins[n]))
    stays = np.array_equal(labels[:n], state.labels) and np.array_equal(origins[:n], state.origins)
    change = replace(
        planned,
        kind="arrival",
        model=None if state.model else model,
        dim=None if state.dim else vectors.shape[1],
        arrivals=(replace(arriving, label=label, origin=origin),),
        relabelling=None if stays else replace(planned.relabelling, labels=labels[:n], origins=origins[:n]),
        summary={},
    )
    return change, Assigned(
        arriving.media,
        label,
        _similarity(vectors, labels == label) if label != NOISE else None,
        backend=reclustered.backend,
        is_duplicate=False,
        revision=state.revision + 1,
    )


def _with(state: PetState, arriving: Arrival, vectors: FloatMatrix) -> PetState:
    """Return the pet with ``arriving`` appended to it as noise."""
    return replace(
        state,
        media=(*state.media, arriving.media),
        # only used for lookups: a correction never names the item that is arriving
        rows=cast("Mapping[MediaId, int]", ChainMap({arriving.media: state.n_media}, state.rows)),  # type: ignore[arg-type]
        vectors=vectors,
        occurred_at_ms=np.append(state.occurred_at_ms, np.int64(arriving.occurred_at_ms)),
        labels=np.append(state.labels, np.int32(NOISE)),
        origins=np.append(state.origins, np.uint8(Origin.NOISE)),
    )


def _similarity(vectors: FloatMatrix, members: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> float | None:
    """Return the mean top-3 similarity of the last row to the other ``members``, or None if there are none."""
    others = vectors[:-1][members[:-1]]
    return float(similarity_to(others, vectors[-1:])[0]) if len(others) else None
