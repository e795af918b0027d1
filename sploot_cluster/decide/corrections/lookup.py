"""Lookup of the clusters and items that a correction names. Needs only numpy, so that a server can check a request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from sploot_cluster.errors import InvalidInput, UnknownCluster, UnknownMedia
from sploot_cluster.pet.models import NOISE, ClusterId, MediaId, PetState
from sploot_cluster.pet.vectors import LabelVector, Rows


def without(
    state: PetState, media: Sequence[MediaId], cluster: ClusterId, *, instead: ClusterId = NOISE
) -> LabelVector:
    """Return a copy of the pet's labels with the given items of ``cluster`` moved to the cluster ``instead``."""
    labels = state.labels.copy()
    rows = present(state, media)
    labels[rows[labels[rows] == cluster]] = instead
    return labels


def some_of(state: PetState, cluster: ClusterId, media_ids: Sequence[str]) -> tuple[Rows, Rows]:
    """Return the rows of the items that should leave a cluster, and the rows of all its items.

    Raises:
        UnknownMedia: some of the items are not in the cluster.
        InvalidInput: no item would remain in the cluster.
    """
    media, members = [MediaId(item) for item in media_ids], rows_of(state, cluster)
    elsewhere = [item for item in media if item not in state.rows or state.labels[state.rows[item]] != cluster]
    if elsewhere:
        raise UnknownMedia(pet=state.pet, media=tuple(elsewhere), where=f"cluster {cluster}")
    if len(media) == len(members):
        raise InvalidInput(
            "media_ids",
            f"expected some items of cluster {cluster}, got all {len(members)}",
            "leave at least one item in the cluster, or dismiss the items",
        )
    return np.sort(present(state, media)), members


def member(state: PetState, cluster: ClusterId, media_id: str) -> MediaId:
    """Return an item of a cluster.

    Raises:
        UnknownMedia: the item is not in the cluster.
    """
    item = MediaId(media_id)
    if item not in state.rows or state.labels[state.rows[item]] != cluster:
        raise UnknownMedia(pet=state.pet, media=(item,), where=f"cluster {cluster}", field="media_id")
    return item


def living(state: PetState, cluster: int, field_name: str) -> ClusterId:
    """Return the living cluster that an id resolves to.

    Raises:
        UnknownCluster: the id is neither a living cluster nor an alias.
    """
    now = state.aliases.get(ClusterId(cluster), ClusterId(cluster))
    if now not in state.clusters:
        has_ended = 1 <= cluster < state.next_cluster
        raise UnknownCluster(pet=state.pet, cluster=cluster, field=field_name, has_ended=has_ended)
    return now


def rows_of(state: PetState, cluster: ClusterId) -> Rows:
    """Return the rows of a cluster's items."""
    return np.flatnonzero(state.labels == cluster)


def media_at(state: PetState, rows: Rows) -> tuple[MediaId, ...]:
    """Return the items in the given rows."""
    return tuple(state.media[row] for row in rows.tolist())


def rows_of_known(state: PetState, media_ids: Iterable[str]) -> Rows:
    """Return the rows of the given items.

    Raises:
        UnknownMedia: the pet does not have some of the items.
    """
    media = [MediaId(item) for item in media_ids]
    unknown = tuple(item for item in media if item not in state.rows)
    if unknown:
        raise UnknownMedia(pet=state.pet, media=unknown, where="any cluster or the noise")
    return present(state, media)


def by_cluster(state: PetState, rows: Rows) -> dict[ClusterId, tuple[MediaId, ...]]:
    """Return the items in the given rows, grouped by their current cluster, including NOISE."""
    clusters: list[ClusterId] = np.unique(state.labels[rows]).tolist()
    return {cluster: media_at(state, rows[state.labels[rows] == cluster]) for cluster in clusters}


def present(state: PetState, media: Iterable[MediaId]) -> Rows:
    """Return the rows of the given items, without items that the pet no longer has."""
    return np.array([state.rows[item] for item in media if item in state.rows], dtype=np.intp)
