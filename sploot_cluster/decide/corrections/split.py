"""Split: some items of a cluster become a cluster of their own, and stay apart from the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from sploot_cluster.decide.corrections.base import TWO_SUBJECTS, Demands, LedgerRequest, Operation, Plan, Statement
from sploot_cluster.decide.corrections.facts import media_of
from sploot_cluster.fields import ID, ListOf, Text, checked, given
from sploot_cluster.limits import MAX_MEDIA_IDS
from sploot_cluster.pet.models import Change, ClusterId, Corrected, MediaId, PetState, Signature


@checked
class SplitCluster(LedgerRequest):
    """Split items off into a new cluster. They stay together, and separate from the items that remain, in every later
    recluster until the split is undone.
    """

    verb: ClassVar[str] = "split"
    actor_name: ClassVar[str] = "split_cluster"
    title: ClassVar[str] = "Split items off into a new cluster"
    button: ClassVar[str] = "Split off"
    answers: ClassVar[Mapping[str, str]] = {TWO_SUBJECTS: "yes"}

    cluster_id: int = given(ID, "Id of the cluster that the items leave.", 3)
    media_ids: Sequence[str] = given(
        ListOf(Text(), MAX_MEDIA_IDS), "The items of the cluster to split off, but not all.", ("beach.jpg", "sofa.jpg")
    )

    def plan(self, state: PetState, operation: Operation) -> tuple[Change, Corrected]:
        import numpy as np

        from sploot_cluster.decide.corrections import lookup, planning

        source = lookup.living(state, self.cluster_id, "cluster_id")
        moved, members = lookup.some_of(state, source, self.media_ids)
        remaining, created = np.setdiff1d(members, moved), state.next_cluster
        split = Split(
            *planning.signature(self, state, operation),
            source=source,
            created=created,
            moved=lookup.media_at(state, moved),
            remaining=lookup.media_at(state, remaining),
        )
        labels = state.labels.copy()
        labels[moved] = created
        plan = Plan(labels, ClusterId(created + 1), named=[(moved, created), (remaining, source)])
        return planning.correct(state, split, plan, operation.settings)


@dataclass(frozen=True, slots=True)
class Split(Statement):
    """A split of items from a cluster. The items are must-linked, and cannot-linked to the items that remained."""

    kind: ClassVar[str] = SplitCluster.verb
    noun: ClassVar[str] = "split"

    source: ClusterId
    created: ClusterId
    moved: tuple[MediaId, ...]
    remaining: tuple[MediaId, ...]

    @property
    def cluster(self) -> ClusterId | None:
        return self.created

    def media(self) -> Sequence[MediaId]:
        return (*self.moved, *self.remaining)

    def requested(self) -> Sequence[MediaId]:
        return self.moved

    def renamed(self, name: Callable[[Sequence[MediaId]], tuple[MediaId, ...]]) -> Split:
        return replace(self, moved=name(self.moved), remaining=name(self.remaining))

    def ids(self) -> Iterable[ClusterId]:
        return (self.created,)

    def summary(self) -> dict[str, object]:
        return {"source": self.source, "created": self.created, "n_split_off": len(self.moved)}

    def facts(self) -> dict[str, object]:
        return {
            "source": self.source,
            "created": self.created,
            "moved": list(self.moved),
            "remaining": list(self.remaining),
        }

    @classmethod
    def read(cls, signature: Signature, facts: Mapping[str, Any]) -> Split:
        moved, remaining = media_of(facts["moved"]), media_of(facts["remaining"])
        return cls(*signature, ClusterId(int(facts["source"])), ClusterId(int(facts["created"])), moved, remaining)

    def request(self, pet_id: int, left: Callable[[Sequence[MediaId]], Sequence[MediaId]]) -> SplitCluster | None:
        media = left(self.moved)
        return SplitCluster(pet_id, self.source, media, requested_by=self.by) if media else None

    def constrain(self, demands: Demands) -> None:
        demands.apart(self, self.moved, self.remaining)
        demands.together(self, self.moved)

    def demand_on(self, item: MediaId, *, n_mates: int | None) -> str:
        if item not in self.moved:
            return f"apart from the items that moved away ({len(self.moved)})"
        apart = f"apart from the items that remained ({len(self.remaining)})"
        return f"{apart}, together with the others that moved ({n_mates or 0})"

    def plan_again(self, state: PetState) -> Plan:
        from sploot_cluster.decide.corrections import lookup

        source = state.aliases.get(self.source, self.source)
        labels = lookup.without(state, self.moved, source, instead=self.created)
        names = [(lookup.present(state, self.moved), self.created), (lookup.present(state, self.remaining), source)]
        return Plan(labels, state.next_cluster, names)

    def plan_back(self, state: PetState) -> Plan:
        """Plan to move split-off items back to the source, with their whole cluster if they are the majority of it."""
        import numpy as np

        from sploot_cluster.decide.corrections import lookup

        created = state.aliases.get(self.created, self.created)
        source = state.aliases.get(self.source, self.source)
        if source not in state.clusters or created == source:
            return Plan(state.labels, state.next_cluster)
        members = state.labels == created
        moved = np.zeros(state.n_media, dtype=np.bool_)
        moved[lookup.present(state, self.moved)] = True
        moved &= members
        labels = state.labels.copy()
        labels[members if 2 * np.count_nonzero(moved) > np.count_nonzero(members) else moved] = source
        return Plan(labels, state.next_cluster, [(np.flatnonzero(labels == source), source)])
