"""Read-only views of pets, computed from their columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np

from sploot_cluster.pet.models import NOISE, ClusterCard, ClusterId, ClusterView, MediaId, Origin, PetState, PetView
from sploot_cluster.pet.times import ItemOrder, time_of
from sploot_cluster.pet.vectors import OriginVector, Rows


@dataclass(frozen=True, slots=True)
class Presentation:
    """How users want a pet and its clusters presented.

    Attributes:
        pet_name: the name of the pet, if it has one.
        names: the names of a cluster, the one to show first; clusters without a name are left out.
        covers: the items that users chose as covers, each in its cluster.
        hidden, locked: the hidden and the locked clusters.
    """

    pet_name: str | None
    names: Mapping[ClusterId, Sequence[str]]
    covers: Mapping[ClusterId, MediaId]
    hidden: Set[ClusterId]
    locked: Set[ClusterId]


def view_of(state: PetState, presentation: Presentation) -> PetView:
    """Return the view of ``state`` for callers. Takes O(n log n) time and reads no vectors."""
    # a stable sort keeps the items of a cluster in order of arrival
    order = np.argsort(state.labels, kind="stable")
    labels, first = np.unique(state.labels[order], return_index=True)
    rows_of = dict(zip(labels.tolist(), np.split(order, first[1:]), strict=True)) if len(order) else {}
    no_rows = np.empty(0, dtype=order.dtype)

    def media(rows: Sequence[int]) -> tuple[MediaId, ...]:
        return tuple(state.media[row] for row in rows)

    merged_into: dict[ClusterId, list[ClusterId]] = {}
    for merged, into in state.aliases.items():
        merged_into.setdefault(into, []).append(merged)

    def cluster(card: ClusterCard) -> ClusterView:
        rows = rows_of.get(card.id, no_rows)
        name, *other_names = presentation.names.get(card.id, (None,))
        return ClusterView(
            card.id,
            name,
            tuple(other_names),
            cover=presentation.covers.get(card.id) or _derived_cover(state, card, rows),
            is_cover_chosen=card.id in presentation.covers,
            is_hidden=card.id in presentation.hidden,
            is_locked=card.id in presentation.locked,
            size=len(rows),
            media_ids=media(rows.tolist()),
            origins=_count(state.origins[rows]),
            threshold=card.threshold,
            since=card.since,
            split_from=card.split_from,
            merged_from=tuple(sorted(merged_into.get(card.id, []))),
        )

    nowhere = rows_of.get(NOISE, no_rows)
    is_dismissed = state.origins[nowhere] == Origin.DISMISSED
    clusters = sorted(map(cluster, state.clusters.values()), key=lambda view: (-view.size, view.cluster_id))
    return PetView(
        pet_id=state.pet,
        name=presentation.pet_name,
        revision=state.revision,
        model=state.model,
        dim=state.dim,
        n_media=state.n_media,
        n_noise=int(np.count_nonzero(~is_dismissed)),
        clusters=tuple(clusters),
        noise=media(nowhere[~is_dismissed].tolist()),
        dismissed=media(nowhere[is_dismissed].tolist()),
        aliases=dict(state.aliases),
        occurred_at={
            state.media[row]: time
            for row in np.flatnonzero(state.occurred_at_ms).tolist()
            if (time := time_of(int(state.occurred_at_ms[row]))) is not None
        },
    )


def named(view: PetView, name: str) -> PetView:
    """Return the view with only the clusters that have a name beginning with ``name``.

    The names of clusters that were merged into a cluster count too. Case is ignored. In the result, the lists of noise
    and dismissed items are empty.
    """
    if not name:
        return view
    start = name.casefold()
    clusters = tuple(
        cluster
        for cluster in view.clusters
        if any(one.casefold().startswith(start) for one in (cluster.name or "", *cluster.other_names))
    )
    shown = {item for cluster in clusters for item in cluster.media_ids}
    times = {item: time for item, time in view.occurred_at.items() if item in shown}
    return replace(view, clusters=clusters, noise=(), dismissed=(), occurred_at=times)


def ordered(view: PetView, order: ItemOrder) -> PetView:
    """Return the view with each of its lists of items in the given order."""
    if order == ItemOrder.ARRIVED:
        return view
    latest = max(view.occurred_at.values(), default=None)

    def sorted_(media: tuple[MediaId, ...]) -> tuple[MediaId, ...]:
        return tuple(sorted(media, key=lambda item: (item not in view.occurred_at, view.occurred_at.get(item, latest))))

    return replace(
        view,
        clusters=tuple(replace(cluster, media_ids=sorted_(cluster.media_ids)) for cluster in view.clusters),
        noise=sorted_(view.noise),
        dismissed=sorted_(view.dismissed),
    )


def _derived_cover(state: PetState, card: ClusterCard, rows: Rows) -> MediaId:
    """Return the item that stands for a cluster: its medoid, or its first accepted item if the medoid has left."""
    if card.medoid is not None and card.medoid < state.n_media and state.labels[card.medoid] == card.id:
        return state.media[card.medoid]
    accepted = rows[state.origins[rows] != Origin.ABSORBED]
    return state.media[int(accepted[0] if len(accepted) else rows[0])]


def _count(origins: OriginVector) -> dict[str, int]:
    values, counts = np.unique(origins, return_counts=True)
    return {Origin(value).word: count for value, count in zip(values.tolist(), counts.tolist(), strict=True)}
