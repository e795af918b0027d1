"""Dismiss: items, such as blurred photos, belong to no cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from sploot_cluster.decide.corrections.base import Demands, LedgerRequest, Operation, Plan, Statement
from sploot_cluster.decide.corrections.facts import aliased, aliases_of, groups_of, items_in, named, renamed_in
from sploot_cluster.errors import AlreadyMade
from sploot_cluster.fields import ListOf, Text, checked, given
from sploot_cluster.limits import MAX_MEDIA_IDS
from sploot_cluster.pet.models import NOISE, Change, ClusterId, Corrected, MediaId, Origin, PetState, Signature

if TYPE_CHECKING:
    from sploot_cluster.pet.vectors import Rows


@checked
class DismissMedia(LedgerRequest):
    """Dismiss items: no arrival or recluster puts them into a cluster, until the dismissal is undone."""

    verb: ClassVar[str] = "dismiss"
    actor_name: ClassVar[str] = "dismiss_media"
    title: ClassVar[str] = "Dismiss items from all clusters"
    button: ClassVar[str] = "Dismiss"

    media_ids: Sequence[str] = given(
        ListOf(Text(), MAX_MEDIA_IDS), "Items of the pet, in any cluster or none.", ("blurred.jpg",)
    )

    def check_news(self, state: PetState) -> None:
        from sploot_cluster.decide.corrections import lookup

        if (state.origins[lookup.rows_of_known(state, self.media_ids)] == Origin.DISMISSED).all():
            hint = "to restore them, undo the dismissal"
            raise AlreadyMade("media_ids", "all items are already dismissed", hint)

    def plan(self, state: PetState, operation: Operation) -> tuple[Change, Corrected]:
        import numpy as np

        from sploot_cluster.decide.corrections import lookup, planning

        rows = lookup.rows_of_known(state, self.media_ids)
        self.check_news(state)
        rows = np.sort(rows[state.origins[rows] != Origin.DISMISSED])
        dismissal = Dismissal(
            *planning.signature(self, state, operation),
            groups=lookup.by_cluster(state, rows),
            aliases={old: now for old, now in state.aliases.items() if np.isin(lookup.rows_of(state, now), rows).all()},
        )
        labels = state.labels.copy()
        labels[rows] = NOISE
        return planning.correct(state, dismissal, Plan(labels, state.next_cluster), operation.settings)


@dataclass(frozen=True, slots=True)
class Dismissal(Statement):
    """A dismissal of items: they stay in no cluster until it is undone.

    Attributes:
        groups: the items by the cluster that each was in, including NOISE.
        aliases: older ids -> the cluster that each resolved to, if the dismissal ended that cluster.
    """

    kind: ClassVar[str] = DismissMedia.verb
    noun: ClassVar[str] = "dismissal"

    groups: Mapping[ClusterId, tuple[MediaId, ...]]
    aliases: Mapping[ClusterId, ClusterId] = field(default_factory=dict)

    def media(self) -> Sequence[MediaId]:
        return items_in(self.groups)

    def renamed(self, name: Callable[[Sequence[MediaId]], tuple[MediaId, ...]]) -> Dismissal:
        return replace(self, groups=renamed_in(self.groups, name))

    def ids(self) -> Iterable[ClusterId]:
        return ()

    def summary(self) -> dict[str, object]:
        return {"n_dismissed": len(self.media())}

    def facts(self) -> dict[str, object]:
        return {"groups": named(self.groups)} | aliased(self.aliases)

    @classmethod
    def read(cls, signature: Signature, facts: Mapping[str, Any]) -> Dismissal:
        return cls(*signature, groups_of(facts["groups"]), aliases_of(facts))

    def request(self, pet_id: int, left: Callable[[Sequence[MediaId]], Sequence[MediaId]]) -> DismissMedia | None:
        media = left(self.media())
        return DismissMedia(pet_id, media, requested_by=self.by) if media else None

    def constrain(self, demands: Demands) -> None:
        demands.nowhere(self, self.media())

    def demand_on(self, item: MediaId, *, n_mates: int | None) -> str:
        return "in no cluster"

    def plan_again(self, state: PetState) -> Plan:
        return Plan(state.labels, state.next_cluster)

    def plan_back(self, state: PetState) -> Plan:
        """Plan to move items that are noise now back to the clusters that their former cluster ids resolve to.

        A cluster that has ended is created again with its former id, unless that id has become an alias.
        """
        from sploot_cluster.decide.corrections import lookup

        ended = self.groups.keys() - state.clusters.keys() - {NOISE}
        labels = state.labels.copy()
        names: list[tuple[Rows, ClusterId]] = []
        for cluster, media in self.groups.items():
            now = state.aliases.get(cluster, cluster)
            rows = lookup.present(state, media)
            rows = rows[labels[rows] == NOISE]
            if len(rows) and (now in state.clusters or now in ended):
                labels[rows] = now
                names += [(rows, now)] if now in ended else []
        return Plan(labels, state.next_cluster, names, self.aliases)
