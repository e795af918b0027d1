"""Lock and unlock: a cluster is right as it is, so no recluster takes items out of it, and no doubtful items join."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from sploot_cluster.decide.corrections.base import ClusterMark, LedgerRequest, MarkClusters
from sploot_cluster.fields import ID, ListOf, checked, given
from sploot_cluster.limits import MAX_CLUSTER_IDS


@checked
class LockClusters(MarkClusters):
    """Lock clusters that are correct. No recluster divides, joins or ends a locked cluster, or takes items out of it.
    New items join it only if they are nearer than its threshold requires. Users can still correct it.
    """

    verb: ClassVar[str] = "lock"
    actor_name: ClassVar[str] = "lock_clusters"
    title: ClassVar[str] = "Lock clusters"
    button: ClassVar[str] = "Lock"

    cluster_ids: Sequence[int] = given(ListOf(ID, MAX_CLUSTER_IDS), "Ids of clusters of the pet.", (3, 7))

    def marking(self) -> type[ClusterMark]:
        return Locking


@checked
class UnlockClusters(MarkClusters):
    """Unlock clusters that were locked. From then on, arrivals and reclusters treat them like others."""

    verb: ClassVar[str] = "unlock"
    actor_name: ClassVar[str] = "unlock_clusters"
    title: ClassVar[str] = "Unlock clusters"
    button: ClassVar[str] = "Unlock"

    cluster_ids: Sequence[int] = given(ListOf(ID, MAX_CLUSTER_IDS), "Ids of locked clusters of the pet.", (3, 7))

    def marking(self) -> type[ClusterMark]:
        return Unlocking


@dataclass(frozen=True, slots=True)
class Locking(ClusterMark):
    """A correction that locks clusters. Reclusters leave them as they are, so it demands nothing of single items."""

    kind: ClassVar[str] = LockClusters.verb
    noun: ClassVar[str] = "lock"
    mark: ClassVar[str] = "locked"
    outcome: ClassVar[str] = "locked"
    _request: ClassVar[Callable[..., LedgerRequest]] = LockClusters


@dataclass(frozen=True, slots=True)
class Unlocking(Locking):
    """A correction that unlocks clusters."""

    kind: ClassVar[str] = UnlockClusters.verb
    noun: ClassVar[str] = "unlock"
    outcome: ClassVar[str] = "unlocked"
    _request: ClassVar[Callable[..., LedgerRequest]] = UnlockClusters
