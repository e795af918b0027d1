"""Conversion of groups of rows into the data that a commit writes: ids, cards and aliases.

Corrections and reclusters both end here, so ids and thresholds follow the same rules for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from sploot_cluster.decide.assignment import Thresholds, let_count, medoid_of, tightened
from sploot_cluster.decide.cluster_ids import aliases_after, match_ids
from sploot_cluster.decide.constraints import RowConstraints
from sploot_cluster.decide.presentation import locked_in
from sploot_cluster.pet.diff import mostly
from sploot_cluster.pet.models import (
    NOISE,
    Change,
    ChangeKind,
    ClusterCard,
    ClusterId,
    Correction,
    Origin,
    PetState,
    Relabelling,
)
from sploot_cluster.pet.vectors import LabelVector, OriginVector, Rows
from sploot_cluster.settings import ClusterSettings


@dataclass(frozen=True, slots=True)
class Regrouped:
    """The clusters formed from the groups, ready to commit.

    Attributes:
        labels, origins: (n,) the pet's new labels and origins.
        clusters, aliases: cards and aliases to write; a value of None removes the card or alias.
        n_moved: number of items whose cluster changed, including to and from noise.
        n_kept_ids, n_new_ids, n_retired_ids: numbers of ids that are living before and after, only after, and only
            before; a restored id counts as new.
    """

    labels: LabelVector
    origins: OriginVector
    clusters: Mapping[ClusterId, ClusterCard | None]
    aliases: Mapping[ClusterId, ClusterId | None]
    next_cluster: ClusterId
    n_moved: int
    n_kept_ids: int
    n_new_ids: int
    n_retired_ids: int

    def change(
        self,
        state: PetState,
        kind: ChangeKind,
        *,
        by: str,
        summary: Mapping[str, object],
        correction: Correction | None = None,
        is_recluster: bool = False,
    ) -> Change:
        """Return the change that commits these clusters to ``state``.

        Args:
            is_recluster: also restart the counts of new items and of noise arrivals.
        """
        return Change(
            kind,
            next_cluster=self.next_cluster,
            n_at_recluster=state.n_media if is_recluster else state.n_at_recluster,
            noise_arrivals=0 if is_recluster else state.noise_arrivals,
            relabelling=Relabelling(self.labels, self.origins),
            clusters=self.clusters,
            aliases=self.aliases,
            correction=correction,
            by=by,
            summary=summary,
        )


@dataclass(frozen=True, slots=True)
class IdRules:
    """The ids that groups must have, and what earlier ids refer to.

    Attributes:
        given: group -> the id that it must have; see :func:`~sploot_cluster.decide.cluster_ids.match_ids`.
        next_cluster: the next unused id. Default: the pet's own.
        returning: alias -> the id that it points to again; see
            :func:`~sploot_cluster.decide.cluster_ids.aliases_after`.
        ended: id that ended earlier -> the rows that it last held; see
            :func:`~sploot_cluster.decide.cluster_ids.aliases_after`.
    """

    given: Mapping[int, ClusterId] = field(default_factory=dict)
    next_cluster: ClusterId | None = None
    returning: Mapping[ClusterId, ClusterId] = field(default_factory=dict)
    ended: Mapping[ClusterId, Rows] = field(default_factory=dict)


NO_RULES: Final = IdRules()


def regroup(
    state: PetState,
    groups: LabelVector,
    origins: OriginVector,
    rows: RowConstraints,
    settings: ClusterSettings,
    *,
    ids: IdRules = NO_RULES,
    thresholds: Thresholds | None = None,
) -> Regrouped:
    """Compute ids, thresholds and aliases for groups that replace the pet's clusters.

    Args:
        groups: (n,) int32, any integers from 0; -1 = noise.
        origins: (n,) as planned. If a group has only absorbed items, they count from now on, because every cluster
            needs a counted member.
        rows: the constraints; items that were excluded from a cluster leave the group that inherits its id.
        ids: rules for the ids of groups.
        thresholds: the cache of thresholds of ``state``, if the caller has one.
    """
    origins = let_count(groups, origins)
    identities = match_ids(
        state.labels,
        state.origins,
        groups,
        origins,
        state.clusters,
        state.next_cluster if ids.next_cluster is None else ids.next_cluster,
        settings,
        given=ids.given,
    )
    labels, aliases = _kept_out(state, identities.label(groups), rows, ids.returning, ids.ended)
    origins[labels != identities.label(groups)] = Origin.NOISE
    origins = let_count(labels, origins)
    living = {ClusterId(label) for label in np.unique(labels[labels != NOISE]).tolist()}
    was_locked, locked = locked_in(state), _locked_after(state, labels, aliases, living)
    return Regrouped(
        labels,
        origins,
        clusters=_cards(state, labels, origins, living, locked, thresholds or Thresholds(state, stale=was_locked)),
        aliases=aliases,
        next_cluster=identities.next_cluster,
        n_moved=int(np.count_nonzero(labels != state.labels)),
        n_kept_ids=len(living & state.clusters.keys()),
        n_new_ids=len(living - state.clusters.keys()),
        n_retired_ids=len(state.clusters.keys() - living),
    )


def _locked_after(
    state: PetState, labels: LabelVector, aliases: Mapping[ClusterId, ClusterId | None], living: set[ClusterId]
) -> Set[ClusterId]:
    """Return the clusters that are locked once the new labels and aliases are committed."""
    leads_to = {old: now for old, now in {**state.aliases, **aliases}.items() if now is not None}
    cards = {id_: state.clusters.get(id_) or ClusterCard(id_, 0, state.revision + 1) for id_ in living}
    return locked_in(replace(state, labels=labels, aliases=leads_to, clusters=cards))


def _kept_out(
    state: PetState,
    labels: LabelVector,
    rows: RowConstraints,
    returning: Mapping[ClusterId, ClusterId],
    ended: Mapping[ClusterId, Rows],
) -> tuple[LabelVector, dict[ClusterId, ClusterId | None]]:
    """Return the labels, with items removed from clusters that they are barred from, and the resulting aliases."""
    labels = labels.copy()
    while True:
        aliases = aliases_after(state, labels, returning, ended)
        leads_to = {**state.aliases, **aliases}
        barred = [row for row, cluster in rows.barred if labels[row] == (leads_to.get(cluster) or cluster)]
        if not barred:
            return labels, aliases
        labels[barred] = NOISE  # a removal may change where an alias points, so check again


def _cards(
    state: PetState,
    labels: LabelVector,
    origins: OriginVector,
    living: set[ClusterId],
    locked: Set[ClusterId],
    thresholds: Thresholds,
) -> dict[ClusterId, ClusterCard | None]:
    """Return the cards of new and changed clusters, computed from their counted members, and None for ended ones."""
    counts = origins != Origin.ABSORBED
    cards: dict[ClusterId, ClusterCard | None] = dict.fromkeys(state.clusters.keys() - living)
    split_from = mostly(labels, state.labels, living - state.clusters.keys(), counts=counts)
    for cluster in sorted(living):
        before = state.clusters.get(cluster) or ClusterCard(cluster, 0, state.revision + 1, split_from.get(cluster))
        members = np.flatnonzero((labels == cluster) & counts)
        threshold = thresholds.of(members)
        card = replace(before, threshold=tightened(threshold) if cluster in locked else threshold)
        has_medoid = card.medoid is None or labels[card.medoid] == cluster
        if card != state.clusters.get(cluster) or not has_medoid:
            cards[cluster] = replace(card, medoid=int(members[medoid_of(state.vectors[members])]))
    return cards
