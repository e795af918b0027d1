"""Hide and show: a hidden cluster, such as one of screenshots, still exists and takes in items, but is not shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from sploot_cluster.decide.corrections.base import ClusterMark, LedgerRequest, Operation
from sploot_cluster.errors import AlreadyMade
from sploot_cluster.fields import ID, ListOf, checked, given
from sploot_cluster.limits import MAX_CLUSTER_IDS
from sploot_cluster.pet.models import Change, ClusterId, Corrected, PetState


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
        AlreadyMade: it would change none.
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
class Hiding(ClusterMark):
    """A correction that hides clusters. It demands nothing of items."""

    kind: ClassVar[str] = HideClusters.verb
    noun: ClassVar[str] = "hiding"
    is_hidden: ClassVar[bool] = True
    _request: ClassVar[Callable[..., LedgerRequest]] = HideClusters


@dataclass(frozen=True, slots=True)
class Showing(Hiding):
    """A correction that shows hidden clusters again."""

    kind: ClassVar[str] = ShowClusters.verb
    noun: ClassVar[str] = "showing"
    is_hidden: ClassVar[bool] = False
    _request: ClassVar[Callable[..., LedgerRequest]] = ShowClusters
