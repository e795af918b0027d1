"""Checks before a correction is enqueued: whether the clusters, items and revision that it names exist in the pet.

A request that does not fit is refused at once, with an error for its sender. One that fits may still be refused when it
runs, because the pet may change before that. Needs no vectors.
"""

from __future__ import annotations

from typing import Any

from sploot_cluster.decide.corrections import lookup
from sploot_cluster.decide.corrections.base import Request
from sploot_cluster.decide.corrections.cover import CoverCluster
from sploot_cluster.decide.corrections.restore import RestoreRevision
from sploot_cluster.decide.corrections.undo import UndoFeedback, check_undoable
from sploot_cluster.errors import InvalidInput, StaleRevision, UnknownPet
from sploot_cluster.pet.models import ClusterId, PetState
from sploot_cluster.pet.past import Past


def check_fit(request: Request[Any], past: Past) -> None:
    """Check a request against the newest state of its pet. The fields that verbs share are recognised by their names.

    Raises:
        UnknownPet, UnknownCluster, UnknownMedia, UnknownRevision: something that the request names does not exist.
        AlreadyUndone: the correction to undo is already undone.
        AlreadyMade: the correction would change nothing.
        StaleRevision: items were moved since the revision that the sender saw.
        InvalidInput: the verb needs more clusters than the request names, or fewer items.
    """
    state = past.state
    if not state.n_media:
        raise UnknownPet(pet=state.pet)
    check_page(state, request.expected_revision)
    if isinstance(request, UndoFeedback):
        check_undoable(state, request.revision)
    elif isinstance(request, RestoreRevision):
        past.at(request.revision)
    _check_clusters(request, state)
    if isinstance(request, CoverCluster):
        lookup.member(state, lookup.living(state, request.cluster_id, "cluster_id"), request.media_id)
    if (media := getattr(request, "media_ids", None)) is not None:
        if (cluster := getattr(request, "cluster_id", None)) is None:
            lookup.rows_of_known(state, media)
        else:
            lookup.some_of(state, lookup.living(state, cluster, "cluster_id"), media)
    request.check_news(state)


def check_page(state: PetState, expected_revision: int | None) -> None:
    """Check that no items were moved since ``expected_revision``. Arrivals that move no other items do not count.

    Raises:
        StaleRevision: items were moved.
    """
    if expected_revision is not None and state.relabelled_at > expected_revision:
        raise StaleRevision(pet=state.pet, expected=expected_revision, moved_at=state.relabelled_at)


def _check_clusters(request: Request[Any], state: PetState) -> None:
    for name in ("cluster_id", "into"):
        if (cluster := getattr(request, name, None)) is not None:
            lookup.living(state, cluster, name)
    asked = getattr(request, "cluster_ids", ())
    living: set[ClusterId] = {lookup.living(state, cluster, "cluster_ids") for cluster in asked}
    if len(asked) > 1 and len(living) < 2:
        problem = f"expected at least two different clusters of pet {state.pet}, got {list(asked)}"
        raise InvalidInput("cluster_ids", problem, "send the ids of clusters that are not merged yet")
