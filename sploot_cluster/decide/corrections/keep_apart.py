"""Keep apart: clusters show different subjects, so no arrival or recluster puts their items together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from sploot_cluster.decide.corrections.base import SAME_SUBJECT, Demands, LedgerRequest, Operation, Plan, Statement
from sploot_cluster.decide.corrections.facts import groups_of, items_in, named, renamed_in
from sploot_cluster.errors import InvalidInput
from sploot_cluster.fields import ID, ListOf, checked, given
from sploot_cluster.limits import MAX_APART
from sploot_cluster.pet.models import Change, ClusterId, Corrected, MediaId, PetState, Signature


@checked
class KeepApart(LedgerRequest):
    """Keep clusters apart as a precaution: no arrival or recluster puts items of different clusters together, until
    this is undone or a user merges the clusters.
    """

    verb: ClassVar[str] = "keep_apart"
    actor_name: ClassVar[str] = "keep_clusters_apart"
    title: ClassVar[str] = "Keep clusters apart"
    button: ClassVar[str] = "Keep apart"
    answers: ClassVar[Mapping[str, str]] = {SAME_SUBJECT: "no"}

    cluster_ids: Sequence[int] = given(
        ListOf(ID, MAX_APART, shortest=2), "Ids of at least two clusters of the pet.", (3, 7)
    )

    def plan(self, state: PetState, operation: Operation) -> tuple[Change, Corrected]:
        from sploot_cluster.decide.corrections import lookup, planning

        clusters = sorted({lookup.living(state, cluster, "cluster_ids") for cluster in self.cluster_ids})
        if len(clusters) < 2:
            problem = f"expected at least two different clusters of pet {state.pet}, got {list(self.cluster_ids)}"
            raise InvalidInput("cluster_ids", problem, "send the ids of the clusters to keep apart")
        groups = {cluster: lookup.media_at(state, lookup.rows_of(state, cluster)) for cluster in clusters}
        separation = Separation(*planning.signature(self, state, operation), groups=groups)
        return planning.correct(state, separation, Plan(state.labels, state.next_cluster), operation.settings)


@dataclass(frozen=True, slots=True)
class Separation(Statement):
    """A separation of clusters: items of different groups are cannot-linked until it is undone or overridden.

    Attributes:
        groups: the items of each cluster at that time.
    """

    kind: ClassVar[str] = KeepApart.verb
    noun: ClassVar[str] = "separation"

    groups: Mapping[ClusterId, tuple[MediaId, ...]]

    def media(self) -> Sequence[MediaId]:
        return items_in(self.groups)

    def renamed(self, name: Callable[[Sequence[MediaId]], tuple[MediaId, ...]]) -> Separation:
        return replace(self, groups=renamed_in(self.groups, name))

    def ids(self) -> Iterable[ClusterId]:
        return ()

    def summary(self) -> dict[str, object]:
        return {"kept_apart": sorted(self.groups)}

    def facts(self) -> dict[str, object]:
        return {"groups": named(self.groups)}

    @classmethod
    def read(cls, signature: Signature, facts: Mapping[str, Any]) -> Separation:
        return cls(*signature, groups_of(facts["groups"]))

    def request(self, pet_id: int, left: Callable[[Sequence[MediaId]], Sequence[MediaId]]) -> KeepApart | None:
        return KeepApart(pet_id, tuple(self.groups), requested_by=self.by)

    def constrain(self, demands: Demands) -> None:
        groups = [self.groups[cluster] for cluster in sorted(self.groups)]
        for at, group in enumerate(groups[:-1], start=1):
            demands.apart(self, group, [item for other in groups[at:] for item in other])

    def demand_on(self, item: MediaId, *, n_mates: int | None) -> str:
        n_others = sum(len(group) for group in self.groups.values() if item not in group)
        return f"apart from the items of the other clusters ({n_others})"

    def plan_again(self, state: PetState) -> Plan:
        return Plan(state.labels, state.next_cluster)

    def plan_back(self, state: PetState) -> Plan:
        return Plan(state.labels, state.next_cluster)
