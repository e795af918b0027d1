"""Merge: clusters become one, and their items stay together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from sploot_cluster.decide.corrections.base import SAME_SUBJECT, Demands, LedgerRequest, Operation, Plan, Statement
from sploot_cluster.decide.corrections.facts import aliased, aliases_of, groups_of, items_in, named, renamed_in
from sploot_cluster.errors import InvalidInput
from sploot_cluster.fields import ID, ListOf, checked, given
from sploot_cluster.limits import MAX_CLUSTER_IDS
from sploot_cluster.pet.models import Change, ClusterId, Corrected, MediaId, PetState, Signature

if TYPE_CHECKING:
    from sploot_cluster.pet.vectors import Rows


@checked
class MergeClusters(LedgerRequest):
    """Merge clusters into one. Their items stay together in every later recluster, until the merge is undone. The ids
    of the other clusters resolve to the one that is kept.
    """

    verb: ClassVar[str] = "merge"
    actor_name: ClassVar[str] = "merge_clusters"
    title: ClassVar[str] = "Merge clusters"
    button: ClassVar[str] = "Merge"
    answers: ClassVar[Mapping[str, str]] = {SAME_SUBJECT: "yes"}

    cluster_ids: Sequence[int] = given(
        ListOf(ID, MAX_CLUSTER_IDS, shortest=2), "Ids of at least two clusters of the pet.", (3, 7)
    )
    into: int | None = given(
        ID, "Id of the cluster to keep, one of `cluster_ids`; default: the largest.", 3, default=None
    )

    def check(self) -> None:
        if self.into is not None and self.into not in self.cluster_ids:
            problem = f"cluster {self.into} is not one of cluster_ids"
            raise InvalidInput("into", problem, "send one of them, or leave it out")

    def plan(self, state: PetState, operation: Operation) -> tuple[Change, Corrected]:
        import numpy as np

        from sploot_cluster.decide.corrections import lookup, planning

        merged = sorted({lookup.living(state, cluster, "cluster_ids") for cluster in self.cluster_ids})
        if len(merged) < 2:
            problem = f"expected at least two different clusters of pet {state.pet}, got {list(self.cluster_ids)}"
            raise InvalidInput("cluster_ids", problem, "send the ids of the clusters to merge")
        rows_of = {cluster: lookup.rows_of(state, cluster) for cluster in merged}
        if self.into is None:
            target = min(merged, key=lambda cluster: (-len(rows_of[cluster]), cluster))
        else:
            target = lookup.living(state, self.into, "into")
        merge = Merge(
            *planning.signature(self, state, operation),
            into=target,
            groups={cluster: lookup.media_at(state, rows) for cluster, rows in rows_of.items()},
            aliases={old: now for old, now in state.aliases.items() if now in rows_of},
        )
        labels = np.where(np.isin(state.labels, merged), target, state.labels).astype(np.int32)
        plan = Plan(labels, state.next_cluster, named=[(rows_of[target], target)])
        return planning.correct(state, merge, plan, operation.settings)


@dataclass(frozen=True, slots=True)
class Merge(Statement):
    """A merge of clusters. Their items are must-linked until the merge is undone or overridden.

    Attributes:
        groups: the items of every merged cluster at that time, including ``into``.
        aliases: older ids -> the merged cluster that each resolved to.
    """

    kind: ClassVar[str] = MergeClusters.verb
    noun: ClassVar[str] = "merge"

    into: ClusterId
    groups: Mapping[ClusterId, tuple[MediaId, ...]]
    aliases: Mapping[ClusterId, ClusterId] = field(default_factory=dict)

    @property
    def cluster(self) -> ClusterId | None:
        return self.into

    def media(self) -> Sequence[MediaId]:
        return items_in(self.groups)

    def renamed(self, name: Callable[[Sequence[MediaId]], tuple[MediaId, ...]]) -> Merge:
        return replace(self, groups=renamed_in(self.groups, name))

    def ids(self) -> Iterable[ClusterId]:
        return self.groups

    def summary(self) -> dict[str, object]:
        return {"into": self.into, "merged": sorted(self.groups)}

    def facts(self) -> dict[str, object]:
        return {"into": self.into, "groups": named(self.groups)} | aliased(self.aliases)

    @classmethod
    def read(cls, signature: Signature, facts: Mapping[str, Any]) -> Merge:
        return cls(*signature, ClusterId(int(facts["into"])), groups_of(facts["groups"]), aliases_of(facts))

    def request(self, pet_id: int, left: Callable[[Sequence[MediaId]], Sequence[MediaId]]) -> MergeClusters | None:
        return MergeClusters(pet_id, tuple(self.groups), self.into, requested_by=self.by)

    def constrain(self, demands: Demands) -> None:
        # `into` first: where newer corrections divide the merged items, all others join its group if possible
        order = sorted(self.groups, key=lambda cluster: (cluster != self.into, cluster))
        media = [item for cluster in order for item in self.groups[cluster]]
        cluster_of = {item: cluster for cluster, members in self.groups.items() for item in members}
        demands.together(self, media, cluster_of)

    def demand_on(self, item: MediaId, *, n_mates: int | None) -> str:
        return f"together with the other merged items ({n_mates}), in the cluster that id {self.into} resolves to"

    def plan_again(self, state: PetState) -> Plan:
        from sploot_cluster.decide.corrections import lookup

        names = [(lookup.present(state, self.media()), self.into)]  # the merged cluster gets the id ``into`` back
        return Plan(state.labels, state.next_cluster, names)

    def plan_back(self, state: PetState) -> Plan:
        """Plan to give each merged cluster its items and aliases back; later items join the most similar cluster."""
        import numpy as np

        from sploot_cluster.decide.assignment import most_similar
        from sploot_cluster.decide.corrections import lookup

        now = state.aliases.get(self.into, self.into)
        is_merged = state.labels == now
        rows_of: dict[ClusterId, Rows] = {}
        for cluster, media in self.groups.items():
            rows = lookup.present(state, media)
            rows = rows[is_merged[rows]]
            if len(rows):
                rows_of[now if cluster == self.into else cluster] = rows
        labels = state.labels.copy()
        for cluster, rows in rows_of.items():
            labels[rows], is_merged[rows] = cluster, False
        if rows_of and is_merged.any():
            later = np.flatnonzero(is_merged)
            labels[later] = most_similar(rows_of, state.vectors, later)
        names = [(rows, cluster) for cluster, rows in rows_of.items()]
        returning = {old: led for old, led in self.aliases.items() if state.aliases.get(old) == now}
        return Plan(labels, state.next_cluster, names, returning)
