"""Replacement of an item's vector, because its picture was edited and embedded again under the same id.

The item keeps its row, its time and its corrections. An item that corrections name stays where they put it; any other
is assigned again, as if it arrived now. The former vector is not kept, so a replacement cannot be undone: restoring an
earlier revision restores only the item's cluster.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import numpy as np

from sploot_cluster.decide.assignment import Thresholds, decide
from sploot_cluster.decide.presentation import locked_in
from sploot_cluster.decide.regrouping import IdRules, regroup
from sploot_cluster.decide.resolving import resolve
from sploot_cluster.engine.neighbours import nearest
from sploot_cluster.pet.models import NOISE, Assigned, ClusterId, HistoryEntry, MediaId, PetState
from sploot_cluster.pet.past import newest, overwritten_by
from sploot_cluster.pet.rows import PetRows, follow
from sploot_cluster.pet.vectors import FloatVector
from sploot_cluster.pet.whole import PetDump
from sploot_cluster.settings import ClusterSettings

KIND = "replace"


def with_vector(
    pet: PetDump, media: MediaId, vector: FloatVector, *, settings: ClusterSettings, at: datetime
) -> tuple[PetDump, Assigned]:
    """Return the pet with a new vector for one of its items, at the next revision, and the item's assignment.

    Rewrites the whole pet, like a deletion. O(n · d).
    """
    row = pet.state.rows[media]
    state = _with_vector(pet.state, row, vector)
    rows = resolve(state.ledger).by_row(state.rows)
    own = ClusterId(int(state.labels[row]))
    labels, origins, similarity = state.labels.copy(), state.origins.copy(), None
    if rows.atoms[row] < 0 and not rows.dismissed[row]:
        others = np.flatnonzero(np.arange(state.n_media) != row)
        neighbours = nearest(state.vectors[others], vector[None], settings.n_neighbours)
        decided = decide(neighbours, labels[others], origins[others], state.clusters, settings)
        labels[row], origins[row], similarity = decided.cluster, decided.origin, decided.similarity
    regrouped = regroup(
        state,
        labels,
        origins,
        rows,
        settings,
        ids=IdRules({int(id_): ClusterId(int(id_)) for id_ in np.unique(labels[labels != NOISE])}),
        # the threshold on a card is out of date if the vector of a member changed
        thresholds=Thresholds(state, stale=locked_in(state) | {own, ClusterId(int(labels[row]))}),
    )
    change = regrouped.change(state, KIND, by="machine", summary={"n_replaced": 1, "n_moved": regrouped.n_moved})
    after = follow(state, change, version="")
    was = overwritten_by(state, change)
    overwritten, past_from = newest([*pet.overwritten, *([was] if was else [])], pet.past_from)
    entry = HistoryEntry(after.revision, KIND, at, "machine", change.summary)
    replaced = replace(pet, state=after, overwritten=overwritten, past_from=past_from, history=(*pet.history, entry))
    cluster = ClusterId(int(after.labels[row]))
    return replaced, Assigned(media, cluster, similarity, "faiss", is_duplicate=False, revision=after.revision)


def _with_vector(state: PetState, row: int, vector: FloatVector) -> PetState:
    vectors = state.vectors.copy()
    vectors[row] = vector
    rows = PetRows(list(state.media), vectors, state.occurred_at_ms.copy())
    n = state.n_media
    return replace(
        state,
        media=rows.media(n),
        rows=rows.index(n),
        vectors=rows.vectors(n),
        occurred_at_ms=rows.occurred_at_ms(n),
    )
