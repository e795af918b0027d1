"""Lock and unlock: a cluster is right as it is, so no recluster takes items out of it, and no doubtful items join."""

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
class LockClusters(LedgerRequest):
    """Lock clusters that are right. No recluster divides, joins or ends a locked cluster, or takes an item out of it.
    New items join it only if they are nearer than its threshold would require. People can still correct it.
    """

    verb: ClassVar[str] = "lock"
    actor_name: ClassVar[str] = "lock_clusters"
    title: ClassVar[str] = "Lock clusters"
    button: ClassVar[str] = "Lock"

    cluster_ids: Sequence[int] = given(ListOf(ID, MAX_CLUSTER_IDS), "Ids of clusters of the pet.", (3, 7))

    def check_news(self, state: PetState) -> None:
        _changed(state, self.cluster_ids, Locking)

    def plan(self, state: PetState, operation: Operation) -> tuple[Change, Corrected]:
        return _plan(self, state, operation, self.cluster_ids, Locking)


@checked
class UnlockClusters(LedgerRequest):
    """Unlock clusters that were locked. From then on, arrivals and reclusters treat them like others."""

    verb: ClassVar[str] = "unlock"
    actor_name: ClassVar[str] = "unlock_clusters"
    title: ClassVar[str] = "Unlock clusters"
    button: ClassVar[str] = "Unlock"

    cluster_ids: Sequence[int] = given(ListOf(ID, MAX_CLUSTER_IDS), "Ids of locked clusters of the pet.", (3, 7))

    def check_news(self, state: PetState) -> None:
        _changed(state, self.cluster_ids, Unlocking)

    def plan(self, state: PetState, operation: Operation) -> tuple[Change, Corrected]:
        return _plan(self, state, operation, self.cluster_ids, Unlocking)


def _changed(state: PetState, cluster_ids: Sequence[int], kind: type[Locking]) -> list[ClusterId]:
    """Return the clusters that the correction changes.

    Raises:
        AlreadyMade: it would change none.
    """
    from sploot_cluster.decide.corrections import lookup
    from sploot_cluster.decide.presentation import locked_in

    locked = locked_in(state)
    clusters = {lookup.living(state, cluster, "cluster_ids") for cluster in cluster_ids}
    changed = sorted(cluster for cluster in clusters if (cluster in locked) is not kind.is_locked)
    if not changed:
        problem = f"all of them are {'locked' if kind.is_locked else 'unlocked'} already"
        raise AlreadyMade("cluster_ids", problem, "send other clusters, or leave it as it is")
    return changed


def _plan(
    request: LedgerRequest, state: PetState, operation: Operation, cluster_ids: Sequence[int], kind: type[Locking]
) -> tuple[Change, Corrected]:
    from sploot_cluster.decide.corrections import planning

    anchors = {cluster: planning.anchors(state, cluster) for cluster in _changed(state, cluster_ids, kind)}
    return planning.record(state, kind(*planning.signature(request, state, operation), anchors=anchors))


@dataclass(frozen=True, slots=True)
class Locking(ClusterMark):
    """A correction that locks clusters. Reclusters leave them as they are, so it demands nothing of single items."""

    kind: ClassVar[str] = LockClusters.verb
    noun: ClassVar[str] = "lock"
    is_locked: ClassVar[bool] = True
    _request: ClassVar[Callable[..., LedgerRequest]] = LockClusters


@dataclass(frozen=True, slots=True)
class Unlocking(Locking):
    """A correction that unlocks clusters."""

    kind: ClassVar[str] = UnlockClusters.verb
    noun: ClassVar[str] = "unlock"
    is_locked: ClassVar[bool] = False
    _request: ClassVar[Callable[..., LedgerRequest]] = UnlockClusters
