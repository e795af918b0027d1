"""Hide and show: a hidden cluster, such as one of screenshots, still exists and takes in items, but is not shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from sploot_cluster.decide.corrections.base import ClusterMark, LedgerRequest, MarkClusters
from sploot_cluster.fields import ID, ListOf, checked, given
from sploot_cluster.limits import MAX_CLUSTER_IDS


@checked
class HideClusters(MarkClusters):
    """Hide clusters, such as those of screenshots. A hidden cluster is not shown, but still takes in similar items, so
    they do not form a new cluster. Its items do not count as noise.
    """

    verb: ClassVar[str] = "hide"
    actor_name: ClassVar[str] = "hide_clusters"
    title: ClassVar[str] = "Hide clusters"
    button: ClassVar[str] = "Hide"

    cluster_ids: Sequence[int] = given(ListOf(ID, MAX_CLUSTER_IDS), "Ids of clusters of the pet.", (3, 7))

    def marking(self) -> type[ClusterMark]:
        return Hiding


@checked
class ShowClusters(MarkClusters):
    """Show clusters that were hidden."""

    verb: ClassVar[str] = "show"
    actor_name: ClassVar[str] = "show_clusters"
    title: ClassVar[str] = "Show hidden clusters"
    button: ClassVar[str] = "Show"

    cluster_ids: Sequence[int] = given(ListOf(ID, MAX_CLUSTER_IDS), "Ids of hidden clusters of the pet.", (3, 7))

    def marking(self) -> type[ClusterMark]:
        return Showing


@dataclass(frozen=True, slots=True)
class Hiding(ClusterMark):
    """A correction that hides clusters. It demands nothing of items."""

    kind: ClassVar[str] = HideClusters.verb
    noun: ClassVar[str] = "hiding"
    mark: ClassVar[str] = "hidden"
    outcome: ClassVar[str] = "hidden"
    _request: ClassVar[Callable[..., LedgerRequest]] = HideClusters


@dataclass(frozen=True, slots=True)
class Showing(Hiding):
    """A correction that shows hidden clusters again."""

    kind: ClassVar[str] = ShowClusters.verb
    noun: ClassVar[str] = "showing"
    outcome: ClassVar[str] = "shown"
    _request: ClassVar[Callable[..., LedgerRequest]] = ShowClusters
