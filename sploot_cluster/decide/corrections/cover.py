"""Cover: a chosen item stands for a cluster in lists, even after the cluster was merged or its id has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from sploot_cluster.decide.corrections.base import LedgerRequest, Mark, Operation
from sploot_cluster.decide.corrections.facts import media_of
from sploot_cluster.errors import AlreadyMade
from sploot_cluster.fields import ID, Text, checked, given
from sploot_cluster.pet.models import Change, ClusterId, Corrected, MediaId, PetState, Signature


@checked
class CoverCluster(LedgerRequest):
    """Choose the item that stands for a cluster, its cover. It stays the cover as long as it is in the cluster. A
    merged cluster has the cover of the cluster that was kept, or else the newest cover of the others. Without a chosen
    cover, the most typical item stands for a cluster.
    """

    verb: ClassVar[str] = "cover"
    actor_name: ClassVar[str] = "cover_cluster"
    title: ClassVar[str] = "Choose the cover of a cluster"
    button: ClassVar[str] = "Cover"

    cluster_id: int = given(ID, "Id of the cluster.", 3)
    media_id: str = given(Text(), "The item to show for the cluster, one of its items.", "beach.jpg")

    def check_news(self, state: PetState) -> None:
        from sploot_cluster.decide.corrections import lookup
        from sploot_cluster.decide.presentation import covers_in

        cluster = lookup.living(state, self.cluster_id, "cluster_id")
        if covers_in(state).get(cluster) == self.media_id:
            hint = "send another item, or leave it as it is"
            raise AlreadyMade("media_id", f"is the chosen cover of cluster {cluster} already", hint)

    def plan(self, state: PetState, operation: Operation) -> tuple[Change, Corrected]:
        from sploot_cluster.decide.corrections import lookup, planning

        cluster = lookup.living(state, self.cluster_id, "cluster_id")
        item = lookup.member(state, cluster, self.media_id)
        self.check_news(state)
        covering = Covering(
            *planning.signature(self, state, operation),
            covered=cluster,
            item=item,
            anchors=planning.anchors(state, cluster),
        )
        return planning.record(state, covering)


@dataclass(frozen=True, slots=True)
class Covering(Mark):
    """The choice of a cluster's cover. It demands nothing of items.

    Attributes:
        covered: the cluster, by its id at that time.
        anchors: typical items of the cluster; if its id has ended, the cluster with most of these items has the cover.
    """

    kind: ClassVar[str] = CoverCluster.verb
    noun: ClassVar[str] = "cover"

    covered: ClusterId
    item: MediaId
    anchors: tuple[MediaId, ...]

    @property
    def cluster(self) -> ClusterId | None:
        return self.covered

    def media(self) -> Sequence[MediaId]:
        return (self.item, *self.anchors)

    def renamed(self, name: Callable[[Sequence[MediaId]], tuple[MediaId, ...]]) -> Covering:
        return replace(self, item=name((self.item,))[0], anchors=name(self.anchors))

    def summary(self) -> dict[str, object]:
        return {"cluster": self.covered}

    def facts(self) -> dict[str, object]:
        return {"cluster": self.covered, "item": self.item, "anchors": list(self.anchors)}

    @classmethod
    def read(cls, signature: Signature, facts: Mapping[str, Any]) -> Covering:
        (item,) = media_of([facts["item"]])
        return cls(*signature, ClusterId(int(facts["cluster"])), item, media_of(facts["anchors"]))

    def request(self, pet_id: int, left: Callable[[Sequence[MediaId]], Sequence[MediaId]]) -> CoverCluster | None:
        return CoverCluster(pet_id, self.covered, self.item, requested_by=self.by) if left((self.item,)) else None
