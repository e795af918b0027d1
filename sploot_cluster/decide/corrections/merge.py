"""Merge: clusters become one, and their items stay together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Final

from sploot_cluster.decide.corrections.base import SAME_SUBJECT, Demands, LedgerRequest, Operation, Plan, Statement
from sploot_cluster.decide.corrections.facts import aliased, aliases_of, groups_of, items_in, named, renamed_in
from sploot_cluster.errors import InvalidInput
from sploot_cluster.fields import ID, ListOf, checked, given
from sploot_cluster.limits import MAX_CLUSTER_IDS
from sploot_cluster.pet.models import Change, ClusterId, Corrected, Correction, MediaId, Parts, PetState, Signature

if TYPE_CHECKING:
    from sploot_cluster.pet.vectors import Rows

# Maximum number of parts that a base may consist of. Each merge of a chain adds two, and the time to resolve a chain of
# k merges grows with k².
_MOST_PARTS: Final = 256


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
        bases, groups = _named_by_others(state, rows_of)
        merge = Merge(
            *planning.signature(self, state, operation),
            into=target,
            groups=groups,
            bases=bases,
            aliases={old: now for old, now in state.aliases.items() if now in rows_of},
        )
        labels = np.where(np.isin(state.labels, merged), target, state.labels).astype(np.int32)
        plan = Plan(labels, state.next_cluster, named=[(rows_of[target], target)])
        return planning.correct(state, merge, plan, operation.settings)


@dataclass(frozen=True, slots=True)
class Merge(Statement):
    """A merge of clusters. Their items are must-linked until the merge is undone or overridden.

    If several clusters are merged into the same one, one by one, a later merge does not list the items of the earlier
    ones again, but refers to its base. :func:`contents_of` returns all items of the merged clusters.

    Attributes:
        groups: the items of every merged cluster at that time, including ``into``, without those of its base.
        aliases: older ids -> the merged cluster that each resolved to.
        bases: merged cluster -> its *base*: the revision of an earlier merge whose items were all in the cluster.
    """

    kind: ClassVar[str] = MergeClusters.verb
    noun: ClassVar[str] = "merge"

    into: ClusterId
    groups: Mapping[ClusterId, tuple[MediaId, ...]]
    aliases: Mapping[ClusterId, ClusterId] = field(default_factory=dict)
    bases: Mapping[ClusterId, int] = field(default_factory=dict)

    @property
    def version(self) -> int:
        return 2 if self.bases else 1  # a reader that ignores bases would miss most of the items

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
        bases = {"bases": {str(cluster): base for cluster, base in self.bases.items()}} if self.bases else {}
        return {"into": self.into, "groups": named(self.groups)} | bases | aliased(self.aliases)

    @classmethod
    def read(cls, signature: Signature, facts: Mapping[str, Any]) -> Merge:
        bases = {ClusterId(int(cluster)): int(base) for cluster, base in facts.get("bases", {}).items()}
        return cls(*signature, ClusterId(int(facts["into"])), groups_of(facts["groups"]), aliases_of(facts), bases)

    def request(self, pet_id: int, left: Callable[[Sequence[MediaId]], Sequence[MediaId]]) -> MergeClusters | None:
        return MergeClusters(pet_id, tuple(self.groups), self.into, requested_by=self.by)

    def constrain(self, demands: Demands) -> None:
        # `into` first: where newer corrections divide the merged items, all others join its group if possible
        demands.merged(self, sorted(self.groups, key=lambda cluster: (cluster != self.into, cluster)))

    def demand_on(self, item: MediaId, *, n_mates: int | None) -> str:
        return f"together with the other merged items ({n_mates}), in the cluster that id {self.into} resolves to"

    def plan_again(self, state: PetState) -> Plan:
        from sploot_cluster.decide.corrections import lookup

        merged = chain.from_iterable(chain.from_iterable(contents_of(state.ledger)[self.revision].values()))
        names = [(lookup.present(state, merged), self.into)]  # the merged cluster gets the id ``into`` back
        return Plan(state.labels, state.next_cluster, names)

    def plan_back(self, state: PetState) -> Plan:
        """Plan to give each merged cluster its items and aliases back. Later items join the most similar cluster."""
        import numpy as np

        from sploot_cluster.decide.assignment import most_similar
        from sploot_cluster.decide.corrections import lookup

        now = state.aliases.get(self.into, self.into)
        is_merged = state.labels == now
        rows_of: dict[ClusterId, Rows] = {}
        for cluster, parts in contents_of(state.ledger)[self.revision].items():
            rows = lookup.present(state, chain.from_iterable(parts))
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


def contents_of(ledger: Iterable[Correction]) -> dict[int, dict[ClusterId, Parts]]:
    """Return the items of each merged cluster, by revision of the merge. Merges share parts with their bases."""
    contents: dict[int, dict[ClusterId, Parts]] = {}
    for one in ledger:
        if isinstance(one, Merge):
            # a damaged ledger may lack a base
            based_on = {cluster: contents.get(base, {}) for cluster, base in one.bases.items()}
            contents[one.revision] = {
                cluster: (*chain.from_iterable(based_on.get(cluster, {}).values()), media)
                for cluster, media in one.groups.items()
            }
    return contents


def _named_by_others(
    state: PetState, rows_of: Mapping[ClusterId, Rows]
) -> tuple[dict[ClusterId, int], dict[ClusterId, tuple[MediaId, ...]]]:
    """Return the base of each cluster that has a base, and each cluster's items that its base does not contain.

    Args:
        rows_of: cluster -> its rows.
    """
    from sploot_cluster.decide.corrections import lookup

    contents = {
        revision: [*chain.from_iterable(groups.values())] for revision, groups in contents_of(state.ledger).items()
    }
    bases: dict[ClusterId, int] = {}
    groups: dict[ClusterId, tuple[MediaId, ...]] = {}
    for cluster, rows in rows_of.items():
        members = dict.fromkeys(lookup.media_at(state, rows))
        merges = (
            one.revision
            for one in reversed(state.ledger)
            if isinstance(one, Merge) and state.aliases.get(one.into, one.into) == cluster
        )
        base = _newest_inside({revision: contents[revision] for revision in merges}, members)
        if base is not None and len(contents[base]) <= _MOST_PARTS:
            bases[cluster] = base
            for item in chain.from_iterable(contents[base]):
                members.pop(item, None)
        groups[cluster] = tuple(members)
    return bases, groups


def _newest_inside(contents: Mapping[int, Sequence[Sequence[MediaId]]], members: Collection[MediaId]) -> int | None:
    """Return the first revision in ``contents`` whose items are all in ``members``, or None if there is none."""
    is_inside: dict[int, bool] = {}
    for parts in contents.values():
        for part in parts:
            if id(part) not in is_inside:
                is_inside[id(part)] = all(map(members.__contains__, part))
    return next((revision for revision, parts in contents.items() if all(is_inside[id(part)] for part in parts)), None)
