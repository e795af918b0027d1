"""Hide and show: clusters that people do not want to see, such as those of screenshots, continue and are not shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from sploot_cluster.decide.corrections.base import LedgerRequest, Mark, Operation
from sploot_cluster.decide.corrections.facts import groups_of, items_in, named, renamed_in
from sploot_cluster.errors import AlreadyMade
from sploot_cluster.fields import ID, ListOf, checked, given
from sploot_cluster.limits import MAX_CLUSTER_IDS
from sploot_cluster.pet.models import Change, ClusterId, Corrected, MediaId, PetState, Signature


@checked
class HideClusters(LedgerRequest):
    """Hide clusters, such as those of screenshots. A hidden cluster is not shown, and still takes in similar items, so
    that they form no new cluster. Its items do not count as noise.
    """

    verb: ClassVar[str] = "hide"
    actor_name: ClassVar[str] = "hide_clusters"
    title: ClassVar[str] = "Hide clusters"
    button: ClassVar[str] = "Hide"

    cluster_ids: Sequence[int] = given(ListOf(ID, MAX_CLUSTER_IDS), "Ids of clusters of the pet.", (3, 7))

    def check_news(self, state: PetState) -> None:
        _changed(state, self.cluster_ids, Hiding)

    def plan(self, state: PetState, operation: Operation) -> tuple[Change, Corrected]:
        return _plan(self, state, operation, self.cluster_ids, Hiding)


@checked
class ShowClusters(LedgerRequest):
    """Show clusters that were hidden."""

    verb: ClassVar[str] = "show"
    actor_name: ClassVar[str] = "show_clusters"
    title: ClassVar[str] = "Show hidden clusters"
    button: ClassVar[str] = "Show"

    cluster_ids: Sequence[int] = given(ListOf(ID, MAX_CLUSTER_IDS), "Ids of hidden clusters of the pet.", (3, 7))

    def check_news(self, state: PetState) -> None:
        _changed(state, self.cluster_ids, Showing)

    def plan(self, state: PetState, operation: Operation) -> tuple[Change, Corrected]:
        return _plan(self, state, operation, self.cluster_ids, Showing)


def _changed(state: PetState, cluster_ids: Sequence[int], kind: type[Hiding]) -> list[ClusterId]:
    """Return the clusters that the correction changes.

    Raises:
        AlreadyMade: there are none.
    """
    from sploot_cluster.decide.corrections import lookup
    from sploot_cluster.decide.presentation import hidden_in

    hidden = hidden_in(state)
    clusters = {lookup.living(state, cluster, "cluster_ids") for cluster in cluster_ids}
    changed = sorted(cluster for cluster in clusters if (cluster in hidden) is not kind.is_hidden)
    if not changed:
        problem = f"all of them are {'hidden' if kind.is_hidden else 'shown'} already"
        raise AlreadyMade("cluster_ids", problem, "send other clusters, or leave it as it is")
    return changed


def _plan(
    request: LedgerRequest, state: PetState, operation: Operation, cluster_ids: Sequence[int], kind: type[Hiding]
) -> tuple[Change, Corrected]:
    from sploot_cluster.decide.corrections import planning

    anchors = {cluster: planning.anchors(state, cluster) for cluster in _changed(state, cluster_ids, kind)}
    return planning.record(state, kind(*planning.signature(request, state, operation), anchors=anchors))


@dataclass(frozen=True, slots=True)
class Hiding(Mark):
    """A wish to hide clusters. It demands nothing of items.

    Attributes:
        anchors: cluster -> its typical items; if its id has ended, the cluster with most of these items is hidden.
    """

    kind: ClassVar[str] = HideClusters.verb
    noun: ClassVar[str] = "hiding"
    is_hidden: ClassVar[bool] = True
    _request: ClassVar[type[HideClusters | ShowClusters]] = HideClusters

    anchors: Mapping[ClusterId, tuple[MediaId, ...]]

    def media(self) -> Sequence[MediaId]:
        return items_in(self.anchors)

    def renamed(self, name: Callable[[Sequence[MediaId]], tuple[MediaId, ...]]) -> Hiding:
        return replace(self, anchors=renamed_in(self.anchors, name))

    def summary(self) -> dict[str, object]:
        return {"clusters": sorted(self.anchors)}

    def facts(self) -> dict[str, object]:
        return {"anchors": named(self.anchors)}

    @classmethod
    def read(cls, signature: Signature, facts: Mapping[str, Any]) -> Hiding:
        return cls(*signature, groups_of(facts["anchors"]))

    def request(self, pet_id: int, left: Callable[[Sequence[MediaId]], Sequence[MediaId]]) -> LedgerRequest:
        return self._request(pet_id, tuple(self.anchors), requested_by=self.by)


@dataclass(frozen=True, slots=True)
class Showing(Hiding):
    """A wish to show clusters that were hidden."""

    kind: ClassVar[str] = ShowClusters.verb
    noun: ClassVar[str] = "showing"
    is_hidden: ClassVar[bool] = False
    _request: ClassVar[type[HideClusters | ShowClusters]] = ShowClusters
