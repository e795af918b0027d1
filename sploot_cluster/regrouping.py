"""From groups of rows to what a commit writes: ids, cards, aliases.

Whoever decides about groups, a person or a recluster, ends here, so that both give ids and thresholds alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from sploot_cluster.assignment import Thresholds, let_count
from sploot_cluster.constraints import RowConstraints
from sploot_cluster.diff import mostly
from sploot_cluster.identity import aliases_after, match_ids
from sploot_cluster.models import (
    NOISE,
    Change,
    ChangeKind,
    ClusterCard,
    ClusterId,
    Correction,
    PetState,
    Relabelling,
    Standing,
)
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.vectors import LabelVector, Rows, StandingVector


@dataclass(frozen=True, slots=True)
class Regrouped:
    """Groups that became clusters.

    Attributes:
        labels, standings: (n,) of the pet from now on.
        clusters, aliases: cards and aliases to write; None removes one.
        n_moved: media whose cluster changed, noise included.
        n_kept_ids, n_new_ids, n_retired_ids: living ids before and after; an id that came back counts as new.
    """

    labels: LabelVector
    standings: StandingVector
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
        """The commit of it on ``state``; a recluster starts the count of arrivals anew."""
        return Change(
            kind,
            next_cluster=self.next_cluster,
            n_at_recluster=state.n_media if is_recluster else state.n_at_recluster,
            noise_arrivals=0 if is_recluster else state.noise_arrivals,
            relabelling=Relabelling(self.labels, self.standings),
            clusters=self.clusters,
            aliases=self.aliases,
            correction=correction,
            by=by,
            summary=summary,
        )


def regroup(
    state: PetState,
    groups: LabelVector,
    standings: StandingVector,
    rows: RowConstraints,
    settings: ClusterSettings,
    *,
    given: Mapping[int, ClusterId] | None = None,
    next_cluster: ClusterId | None = None,
    returning: Mapping[ClusterId, ClusterId] | None = None,
    ended: Mapping[ClusterId, Rows] | None = None,
    thresholds: Thresholds | None = None,
) -> Regrouped:
    """Ids, thresholds and aliases for groups that take the place of the pet's clusters.

    Args:
        groups: (n,) int32, any numbers from 0, -1 = noise.
        standings: (n,) as they shall become. In a group of absorbed media alone they count from now on: somebody must.
        rows: what to obey; media that a person took out of a cluster leave the group that inherits its id.
        given: group -> the id that it must have; see :func:`~sploot_cluster.identity.match_ids`.
        next_cluster: the next id to give out; the pet's own by default.
        returning: aliases, and the ids that they lead to again; see :func:`~sploot_cluster.identity.aliases_after`.
        ended: ids that ended before, and the rows that they held last; see there.
        thresholds: those of ``state``, if somebody has them already.
    """
    standings = let_count(groups, standings)
    identities = match_ids(
        state.labels,
        state.standings,
        groups,
        standings,
        state.clusters,
        state.next_cluster if next_cluster is None else next_cluster,
        settings,
        given=given,
    )
    labels, aliases = _kept_out(state, identities.label(groups), rows, returning or {}, ended or {})
    standings[labels != identities.label(groups)] = Standing.NOISE
    standings = let_count(labels, standings)
    living = {ClusterId(label) for label in np.unique(labels[labels != NOISE]).tolist()}
    return Regrouped(
        labels,
        standings,
        clusters=_cards(state, labels, standings, living, thresholds or Thresholds(state)),
        aliases=aliases,
        next_cluster=identities.next_cluster,
        n_moved=int(np.count_nonzero(labels != state.labels)),
        n_kept_ids=len(living & state.clusters.keys()),
        n_new_ids=len(living - state.clusters.keys()),
        n_retired_ids=len(state.clusters.keys() - living),
    )


def _kept_out(
    state: PetState,
    labels: LabelVector,
    rows: RowConstraints,
    returning: Mapping[ClusterId, ClusterId],
    ended: Mapping[ClusterId, Rows],
) -> tuple[LabelVector, dict[ClusterId, ClusterId | None]]:
    """The labels without media in clusters that they are barred from, and the aliases that go with them."""
    labels = labels.copy()
    while True:
        aliases = aliases_after(state, labels, returning, ended)
        leads_to = {**state.aliases, **aliases}
        barred = [row for row, cluster in rows.barred if labels[row] == (leads_to.get(cluster) or cluster)]
        if not barred:
            return labels, aliases
        labels[barred] = NOISE  # who leaves may change where an alias leads


def _cards(
    state: PetState,
    labels: LabelVector,
    standings: StandingVector,
    living: set[ClusterId],
    thresholds: Thresholds,
) -> dict[ClusterId, ClusterCard | None]:
    """The cards to write: of clusters that are new, changed or gone. A threshold is what counting members reach."""
    counts = standings != Standing.ABSORBED
    cards: dict[ClusterId, ClusterCard | None] = dict.fromkeys(state.clusters.keys() - living)
    split_from = mostly(labels, state.labels, living - state.clusters.keys(), counts=counts)
    for cluster in sorted(living):
        before = state.clusters.get(cluster) or ClusterCard(cluster, 0, state.revision + 1, split_from.get(cluster))
        card = replace(before, threshold=thresholds.of(np.flatnonzero((labels == cluster) & counts)))
        if card != state.clusters.get(cluster):
            cards[cluster] = card
    return cards
