"""Place: put items into a cluster, or into a new one, wherever they are now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from sploot_cluster.decide.corrections.base import (
    STRANGER,
    TWO_SUBJECTS,
    Demands,
    LedgerRequest,
    Operation,
    Plan,
    Statement,
)
from sploot_cluster.decide.corrections.facts import groups_of, items_in, media_of, named, renamed_in
from sploot_cluster.errors import AlreadyMade
from sploot_cluster.fields import ID, ListOf, Text, checked, given
from sploot_cluster.limits import MAX_MEDIA_IDS
from sploot_cluster.pet.models import NOISE, Change, ClusterId, Corrected, MediaId, Origin, PetState, Signature

if TYPE_CHECKING:
    from sploot_cluster.pet.vectors import Rows


@checked
class PlaceMedia(LedgerRequest):
    """Place items in a cluster, wherever they are now: in no cluster, in another cluster, in this cluster with low
    confidence, or dismissed. Until the placement is undone, they stay together with typical items of the cluster, and
    apart from typical items of the clusters that they come from. If no cluster is given, the items become a new one.
    """

    verb: ClassVar[str] = "place"
    actor_name: ClassVar[str] = "place_media"
    title: ClassVar[str] = "Place items in a cluster"
    button: ClassVar[str] = "Place"
    answers: ClassVar[Mapping[str, str]] = {STRANGER: "no", TWO_SUBJECTS: "no"}

    media_ids: Sequence[str] = given(
        ListOf(Text(), MAX_MEDIA_IDS), "Items of the pet, in any cluster or none.", ("beach.jpg",)
    )
    into: int | None = given(ID, "Id of the cluster that the items belong to; default: a new one.", 3, default=None)

    def check_news(self, state: PetState) -> None:
        from sploot_cluster.decide.corrections import lookup

        if self.into is None:
            return
        rows, into = lookup.rows_of_known(state, self.media_ids), lookup.living(state, self.into, "into")
        if ((state.labels[rows] == into) & (state.origins[rows] == Origin.CORRECTED)).all():
            problem = f"users have already placed all of them in cluster {into}"
            raise AlreadyMade("media_ids", problem, "send items that are elsewhere, or leave it as it is")

    def plan(self, state: PetState, operation: Operation) -> tuple[Change, Corrected]:
        import numpy as np

        from sploot_cluster.decide.corrections import lookup, planning

        self.check_news(state)
        rows = np.sort(lookup.rows_of_known(state, self.media_ids))
        into = state.next_cluster if self.into is None else lookup.living(state, self.into, "into")
        is_there = (state.labels[rows] == into) & (state.origins[rows] == Origin.CORRECTED)
        rows = rows[~is_there]
        groups = lookup.by_cluster(state, rows)
        placement = Placement(
            *planning.signature(self, state, operation),
            into=into,
            anchors=planning.anchors(state, into, without=rows),
            groups=groups,
            remaining={
                cluster: planning.anchors(state, cluster, without=rows)
                for cluster in groups
                if cluster not in (NOISE, into)
            },
        )
        labels = state.labels.copy()
        labels[rows] = into
        next_cluster = ClusterId(into + 1) if self.into is None else state.next_cluster
        plan = Plan(labels, next_cluster, named=[(np.flatnonzero(labels == into), into)])
        return planning.correct(state, placement, plan, operation.settings)


@dataclass(frozen=True, slots=True)
class Placement(Statement):
    """A placement of items in a cluster.

    The items are must-linked to the anchors of the cluster, and cannot-linked to the anchors of the clusters that they
    came from. *Anchors* stand for a cluster: some of the items that users placed in it, or else some of its most
    typical items.

    Attributes:
        anchors: the anchors of ``into``; empty if it was new.
        groups: the placed items by the cluster that each was in, including NOISE and ``into``.
        remaining: cluster that placed items came from -> its anchors.
    """

    kind: ClassVar[str] = PlaceMedia.verb
    noun: ClassVar[str] = "placement"

    into: ClusterId
    anchors: tuple[MediaId, ...]
    groups: Mapping[ClusterId, tuple[MediaId, ...]]
    remaining: Mapping[ClusterId, tuple[MediaId, ...]]

    @property
    def cluster(self) -> ClusterId | None:
        return self.into

    @property
    def placed(self) -> Sequence[MediaId]:
        return items_in(self.groups)

    def media(self) -> Sequence[MediaId]:
        return [*self.anchors, *self.placed, *items_in(self.remaining)]

    def renamed(self, name: Callable[[Sequence[MediaId]], tuple[MediaId, ...]]) -> Placement:
        return replace(
            self,
            anchors=name(self.anchors),
            groups=renamed_in(self.groups, name),
            remaining=renamed_in(self.remaining, name),
        )

    def ids(self) -> Iterable[ClusterId]:
        return (self.into,)

    def summary(self) -> dict[str, object]:
        return {"into": self.into, "n_placed": len(self.placed)}

    def facts(self) -> dict[str, object]:
        return {
            "into": self.into,
            "anchors": list(self.anchors),
            "groups": named(self.groups),
            "remaining": named(self.remaining),
        }

    @classmethod
    def read(cls, signature: Signature, facts: Mapping[str, Any]) -> Placement:
        anchors, groups, remaining = (
            media_of(facts["anchors"]),
            groups_of(facts["groups"]),
            groups_of(facts["remaining"]),
        )
        return cls(*signature, ClusterId(int(facts["into"])), anchors, groups, remaining)

    def request(self, pet_id: int, left: Callable[[Sequence[MediaId]], Sequence[MediaId]]) -> PlaceMedia | None:
        media = left(self.placed)
        into = self.into if self.anchors else None
        return PlaceMedia(pet_id, media, into, requested_by=self.by) if media else None

    def constrain(self, demands: Demands) -> None:
        for cluster, anchors in self.remaining.items():
            demands.apart(self, self.groups[cluster], anchors)
        came_from = {item: cluster for cluster, members in self.groups.items() if cluster != NOISE for item in members}
        cluster_of = {item: came_from.get(item, self.into) for item in (*self.anchors, *self.placed)}
        demands.together(self, [*self.anchors, *self.placed], cluster_of)
        # so that an item that an older split moved away returns without the other items of that split
        demands.released(self.placed)

    def demand_on(self, item: MediaId, *, n_mates: int | None) -> str:
        if n_mates is not None:
            return f"together with the other items ({n_mates}) of the cluster that id {self.into} resolves to"
        return "apart from items that were placed elsewhere"

    def plan_again(self, state: PetState) -> Plan:
        from sploot_cluster.decide.corrections import lookup

        into = state.aliases.get(self.into, self.into)
        labels = state.labels.copy()
        for cluster, members in self.groups.items():
            rows = lookup.present(state, members)
            labels[rows[labels[rows] == state.aliases.get(cluster, cluster)]] = into
        return Plan(labels, state.next_cluster, [(lookup.present(state, [*self.anchors, *self.placed]), into)])

    def plan_back(self, state: PetState) -> Plan:
        """Plan to move items that are still in ``into`` back to their former clusters, or to noise if those ended."""
        from sploot_cluster.decide.corrections import lookup

        into = state.aliases.get(self.into, self.into)
        labels = state.labels.copy()
        names: list[tuple[Rows, ClusterId]] = []
        for cluster, members in self.groups.items():
            rows = lookup.present(state, members)
            rows = rows[labels[rows] == into]
            home = state.aliases.get(cluster, cluster)
            if home != into:
                labels[rows] = home if home in state.clusters else NOISE
        if self.anchors:
            names = [(lookup.present(state, self.anchors), into)]
        return Plan(labels, state.next_cluster, names)
