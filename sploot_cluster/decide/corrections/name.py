"""Name: a cluster has a name, which stays with it through merges, splits, reclusters and model switches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from sploot_cluster.decide.corrections.base import LedgerRequest, Mark, Operation
from sploot_cluster.decide.corrections.facts import media_of
from sploot_cluster.errors import AlreadyMade
from sploot_cluster.fields import ID, Text, checked, given
from sploot_cluster.limits import MAX_NAME
from sploot_cluster.pet.models import Change, ClusterId, Corrected, MediaId, PetState, Signature


@checked
class NameCluster(LedgerRequest):
    """Name a cluster, or give it another name. The name stays with the cluster, whatever items join or leave it. A
    merged cluster has the name of the cluster that was kept, or else the newest name of the others. To remove a name,
    undo the naming.
    """

    verb: ClassVar[str] = "name"
    actor_name: ClassVar[str] = "name_cluster"
    title: ClassVar[str] = "Name a cluster"
    button: ClassVar[str] = "Name"

    cluster_id: int = given(ID, "Id of the cluster.", 3)
    name: str = given(Text(longest=MAX_NAME, is_trimmed=True), "The name of the cluster.", "Rex on the beach")

    def check_news(self, state: PetState) -> None:
        from sploot_cluster.decide.corrections import lookup
        from sploot_cluster.decide.presentation import names_of

        cluster = lookup.living(state, self.cluster_id, "cluster_id")
        if self.name in names_of(state).get(cluster, ())[:1]:
            raise AlreadyMade("name", f"cluster {cluster} has this name already", "send another, or leave it as it is")

    def plan(self, state: PetState, operation: Operation) -> tuple[Change, Corrected]:
        from sploot_cluster.decide.corrections import lookup, planning

        self.check_news(state)
        cluster = lookup.living(state, self.cluster_id, "cluster_id")
        naming = Naming(
            *planning.signature(self, state, operation),
            named=cluster,
            name=self.name,
            anchors=planning.anchors(state, cluster),
        )
        return planning.record(state, naming)


@dataclass(frozen=True, slots=True)
class Naming(Mark):
    """A correction that names a cluster. It demands nothing of items.

    Attributes:
        named: the cluster, by its id at that time.
        anchors: typical items of the cluster; if its id has ended, the cluster with most of these items has the name.
    """

    kind: ClassVar[str] = NameCluster.verb
    noun: ClassVar[str] = "naming"

    named: ClusterId
    name: str
    anchors: tuple[MediaId, ...]

    @property
    def cluster(self) -> ClusterId | None:
        return self.named

    def media(self) -> Sequence[MediaId]:
        return self.anchors

    def renamed(self, name: Callable[[Sequence[MediaId]], tuple[MediaId, ...]]) -> Naming:
        return replace(self, anchors=name(self.anchors))

    def summary(self) -> dict[str, object]:
        return {"cluster": self.named, "name": self.name}

    def facts(self) -> dict[str, object]:
        return {"cluster": self.named, "name": self.name, "anchors": list(self.anchors)}

    @classmethod
    def read(cls, signature: Signature, facts: Mapping[str, Any]) -> Naming:
        return cls(*signature, ClusterId(int(facts["cluster"])), str(facts["name"]), media_of(facts["anchors"]))

    def request(self, pet_id: int, left: Callable[[Sequence[MediaId]], Sequence[MediaId]]) -> NameCluster | None:
        return NameCluster(pet_id, self.named, self.name, requested_by=self.by)
