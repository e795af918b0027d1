"""Arrivals: the assignment of one or more new items of a pet, as one change.

The items are assigned in order. The result is the same, to the last bit, as if each had been committed before the next:
an item may join earlier items of the same change, and an item that occurs twice in it is a duplicate. Importing this
module loads faiss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sploot_cluster.decide.assignment import Decision, decide, why_recluster
from sploot_cluster.engine.neighbours import nearest, nearest_in_turn
from sploot_cluster.pet.models import NOISE, Arrival, Assigned, Change, PetState
from sploot_cluster.settings import ClusterSettings


@dataclass(frozen=True, slots=True)
class Plan:
    """The change that adds arrivals to a pet, and their assignments.

    Attributes:
        change: the change to commit, or None if the pet already has all the items.
        assigned: the result to report for each arrival once the change is committed.
    """

    change: Change | None
    assigned: Sequence[Assigned]


def plan_arrivals(state: PetState, arriving: Sequence[Arrival], *, model: str, settings: ClusterSettings) -> Plan:
    """Return the change that adds the arrivals to the pet, and their assignments.

    An item that the pet already has stays where it is. O(n · dim) per arrival for a pet of n items.

    Args:
        arriving: the items in the order in which they are assigned. Their vectors must be of the pet's model and
            dimension, if it has any yet.
        model: the model of their vectors.
    """
    new: dict[str, Arrival] = {}
    for arrival in arriving:
        if arrival.media not in state.rows:
            new.setdefault(arrival.media, arrival)
    if not new:
        return Plan(None, [Assigned.before(state, arrival.media) for arrival in arriving])
    taken = _decided(state, list(new.values()), settings)
    change = Change(
        "arrival",
        next_cluster=state.next_cluster,
        n_at_recluster=state.n_at_recluster,
        noise_arrivals=state.noise_arrivals + sum(arrival.label == NOISE for arrival, _ in taken),
        model=None if state.model else model,
        dim=None if state.dim else len(arriving[0].vector),
        arrivals=tuple(arrival for arrival, _ in taken),
    )
    return Plan(change, _assigned(state, arriving, taken, settings))


def _decided(state: PetState, new: Sequence[Arrival], settings: ClusterSettings) -> list[tuple[Arrival, float | None]]:
    """Return each arrival with its label and origin set, and the similarity on which the decision was based."""
    n = state.n_media
    if len(new) == 1:
        neighbours = nearest(state.vectors, new[0].vector[None], settings.n_neighbours)
        return [_with(new[0], decide(neighbours, state.labels, state.origins, state.clusters, settings))]
    labels, origins = np.empty(n + len(new), dtype=np.int32), np.empty(n + len(new), dtype=np.uint8)
    labels[:n], origins[:n] = state.labels, state.origins
    queries = np.stack([arrival.vector for arrival in new])
    taken = []
    for row, (arrival, neighbours) in enumerate(
        zip(new, nearest_in_turn(state.vectors, queries, settings.n_neighbours), strict=True), start=n
    ):
        decision = decide(neighbours, labels[:row], origins[:row], state.clusters, settings)
        labels[row], origins[row] = decision.cluster, decision.origin
        taken.append(_with(arrival, decision))
    return taken


def _with(arrival: Arrival, decision: Decision) -> tuple[Arrival, float | None]:
    decided = Arrival(
        arrival.media, arrival.vector, decision.cluster, decision.origin, occurred_at_ms=arrival.occurred_at_ms
    )
    return decided, decision.similarity


def _assigned(
    state: PetState,
    arriving: Sequence[Arrival],
    taken: Sequence[tuple[Arrival, float | None]],
    settings: ClusterSettings,
) -> list[Assigned]:
    revision, n_noise = state.revision + 1, state.noise_arrivals
    open_, assigned = {arrival.media: (arrival, similarity) for arrival, similarity in taken}, list[Assigned]()
    clusters = {arrival.media: arrival.label for arrival, _ in taken}
    n_media = state.n_media
    for one in arriving:
        if one.media not in clusters:
            assigned.append(Assigned.before(state, one.media))
        elif one.media in open_:
            arrival, similarity = open_.pop(one.media)
            n_media, n_noise = n_media + 1, n_noise + (arrival.label == NOISE)
            reason = why_recluster(n_media, state.n_at_recluster, n_noise, settings)
            assigned.append(
                Assigned(one.media, arrival.label, similarity, "faiss", False, revision, recluster_reason=reason)
            )
        else:
            assigned.append(Assigned(one.media, clusters[one.media], None, "faiss", True, revision))
    return assigned
