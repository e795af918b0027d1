"""Exclude: items do not belong to a cluster. They may join any other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from sploot_cluster.decide.corrections.base import STRANGER, Demands, LedgerRequest, Operation, Plan, Statement
from sploot_cluster.decide.corrections.facts import media_of
from sploot_cluster.fields import ID, ListOf, Text, checked, given
from sploot_cluster.limits import MAX_MEDIA_IDS
from sploot_cluster.pet.models import NOISE, Change, ClusterId, Corrected, MediaId, PetState, Signature


@checked
class ExcludeMedia(LedgerRequest):
    """Exclude items from a cluster. They leave it, and rejoin the items that remain only if the exclusion is undone or
    a newer correction puts them there. A recluster may assign them to another cluster that they fit, but does not
    absorb them.
    """

    verb: ClassVar[str] = "exclude"
    actor_name: ClassVar[str] = "exclude_media"
    title: ClassVar[str] = "Exclude items from a cluster"
    button: ClassVar[str] = "Not this album"
    answers: ClassVar[Mapping[str, str]] = {STRANGER: "yes"}

    cluster_id: int = given(ID, "Id of the cluster that the items do not belong to.", 3)
    media_ids: Sequence[str] = given(
        ListOf(Text(), MAX_MEDIA_IDS), "The items of the cluster to exclude, but not all.", ("fox.jpg",)
    )

    def plan(self, state: PetState, operation: Operation) -> tuple[Change, Corrected]:
        import numpy as np

        from sploot_cluster.decide.corrections import lookup, planning

        source = lookup.living(state, self.cluster_id, "cluster_id")
        taken_out, members = lookup.some_of(state, source, self.media_ids)
        remaining = np.setdiff1d(members, taken_out)
        exclusion = Exclusion(
            *planning.signature(self, state, operation),
            source=source,
            excluded=lookup.media_at(state, taken_out),
            remaining=lookup.media_at(state, remaining),
        )
        labels = state.labels.copy()
        labels[taken_out] = NOISE
        plan = Plan(labels, state.next_cluster, named=[(remaining, source)])
        return planning.correct(state, exclusion, plan, operation.settings)


@dataclass(frozen=True, slots=True)
class Exclusion(Statement):
    """An exclusion of items from a cluster. They may join other clusters but not rejoin this one.

    It separates each excluded item from all items that remained, and puts none into a cluster. It overrides older
    corrections that kept excluded items together with items that remained.
    """

    kind: ClassVar[str] = ExcludeMedia.verb
    noun: ClassVar[str] = "exclusion"

    source: ClusterId
    excluded: tuple[MediaId, ...]
    remaining: tuple[MediaId, ...]

    def media(self) -> Sequence[MediaId]:
        return (*self.excluded, *self.remaining)

    def requested(self) -> Sequence[MediaId]:
        return self.excluded

    def renamed(self, name: Callable[[Sequence[MediaId]], tuple[MediaId, ...]]) -> Exclusion:
        return replace(self, excluded=name(self.excluded), remaining=name(self.remaining))

    def ids(self) -> Iterable[ClusterId]:
        return ()

    def summary(self) -> dict[str, object]:
        return {"source": self.source, "n_excluded": len(self.excluded)}

    def facts(self) -> dict[str, object]:
        return {"source": self.source, "excluded": list(self.excluded), "remaining": list(self.remaining)}

    @classmethod
    def read(cls, signature: Signature, facts: Mapping[str, Any]) -> Exclusion:
        return cls(
            *signature, ClusterId(int(facts["source"])), media_of(facts["excluded"]), media_of(facts["remaining"])
        )

    def request(self, pet_id: int, left: Callable[[Sequence[MediaId]], Sequence[MediaId]]) -> ExcludeMedia | None:
        media = left(self.excluded)
        return ExcludeMedia(pet_id, self.source, media, requested_by=self.by) if media else None

    def constrain(self, demands: Demands) -> None:
        demands.apart(self, self.excluded, self.remaining, is_leaving=True)
        demands.barred(self, self.excluded, self.source)

    def demand_on(self, item: MediaId, *, n_mates: int | None) -> str:
        if item not in self.excluded:
            return f"apart from the excluded items ({len(self.excluded)})"
        left = f"not in the cluster that id {self.source} resolves to"
        return f"{left}, nor with the items that remained in it ({len(self.remaining)})"

    def plan_again(self, state: PetState) -> Plan:
        from sploot_cluster.decide.corrections import lookup

        source = state.aliases.get(self.source, self.source)
        return Plan(lookup.without(state, self.excluded, source), state.next_cluster)

    def plan_back(self, state: PetState) -> Plan:
        """Plan to move excluded items back: from noise, and from clusters in which they are the majority.

        They can be the majority of a cluster because older corrections keep them together.
        """
        import numpy as np

        from sploot_cluster.decide.corrections import lookup

        source = state.aliases.get(self.source, self.source)
        if source not in state.clusters:
            return Plan(state.labels, state.next_cluster)
        rows = lookup.present(state, self.excluded)
        labels = state.labels.copy()
        for cluster in np.unique(state.labels[rows]).tolist():
            its = rows[state.labels[rows] == cluster]
            if cluster == NOISE or 2 * len(its) > np.count_nonzero(state.labels == cluster):
                labels[its] = source
        return Plan(labels, state.next_cluster, [(np.flatnonzero(labels == source), source)])
