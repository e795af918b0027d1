"""The values of the domain: pets, items, clusters, corrections, and the results of use cases.

All of them are frozen, and their arrays are read-only by convention. Cluster ids are integers from 1, counted per pet
and never reused; noise is -1.

This module imports only the standard library, because producers import the correction requests, which import it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NewType, Self, TypeAlias

from sploot_cluster.answer_fields import INTERNAL, described
from sploot_cluster.pet.times import UNKNOWN

if TYPE_CHECKING:
    from sploot_cluster.pet.vectors import FloatMatrix, FloatVector, LabelVector, OriginVector, TimeVector

PetId = NewType("PetId", int)
MediaId = NewType("MediaId", str)
ClusterId = NewType("ClusterId", int)

# Items as a sequence of tuples. Successive merges into one cluster share the tuples that contain most of its items.
Parts: TypeAlias = tuple[tuple[MediaId, ...], ...]

NOISE: Final = ClusterId(-1)

Backend = Literal["faiss", "hdbscan_cpu", "hdbscan_gpu", "hdbscan_reference"]
# the package hdbscan, which a preview can use in place of our own engine
REFERENCE: Final = "hdbscan_reference"
PreviewBackend = Literal["hdbscan_reference"]


class Origin(IntEnum):
    """The reason why an item is in its cluster, or in none. Stored as one byte per item."""

    NOISE = 0
    CORE = 1  # grouped by density in a recluster
    ARRIVED = 2  # assigned when it arrived, or left in its cluster by a correction
    ABSORBED = 3  # absorbed to keep noise within its budget: low confidence; similarities, thresholds and ids ignore it
    CORRECTED = 4  # put into its cluster by a user
    DISMISSED = 5  # dismissed by a user: in no cluster, whatever is computed later

    @property
    def word(self) -> str:
        """The origin in responses, such as ``core``."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class ClusterCard:
    """The metadata of a cluster: everything but its members.

    Attributes:
        threshold: the lowest mean top-3 cosine similarity of a member to the other members, in [-1, 1], or a higher one
            if the cluster is locked; an arrival must reach it.
        since: the revision at which the id was assigned, or assigned again after the cluster had ended.
        split_from: the cluster that more than half of its items were in just before, or None if there was none.
        medoid: the row of the item that was its most typical one when it last gained or lost items in other ways than
            by arrivals, or None if unknown.
    """

    id: ClusterId
    threshold: float
    since: int
    split_from: ClusterId | None = None
    medoid: int | None = None


# The fields that all corrections share, in the order of :class:`Correction`.
Signature = tuple[int, str, str, datetime]


@dataclass(frozen=True, slots=True)
class Correction(ABC):
    """A correction in a pet's ledger. The kinds of corrections are in ``decide.corrections``.

    Attributes:
        kind: the verb of the request that made it, used in the ledger, the history and responses.
        revision: the revision that it created.
        operation_id: a repeated operation has the same id, and takes effect once.
        by: who made it.
        at: when it was made, timezone-aware.
    """

    kind: ClassVar[str]

    revision: int
    operation_id: str
    by: str
    at: datetime

    @property
    def version(self) -> int:
        """The oldest version of the ledger's format that can express it."""
        return 1

    @property
    def cluster(self) -> ClusterId | None:
        """The cluster that the correction created or chose, by its id at that time, or None if it did neither."""
        return None

    def undoes(self) -> int | None:
        """Return the revision of the correction that this one undoes, or None if it is not an undo."""
        return None

    @abstractmethod
    def media(self) -> Sequence[MediaId]:
        """Return every item that the correction names, in any role."""

    def requested(self) -> Sequence[MediaId]:
        """Return the items that the user named; the correction may also name those that should stay where they are."""
        return self.media()

    @abstractmethod
    def renamed(self, name: Callable[[Sequence[MediaId]], tuple[MediaId, ...]]) -> Self:
        """Return the correction with its items renamed by ``name``, which returns the new ids in the same order."""

    @abstractmethod
    def ids(self) -> Iterable[ClusterId]:
        """Return the cluster ids that the correction assigned or retired. None of them may be assigned again."""

    @abstractmethod
    def summary(self) -> dict[str, object]:
        """Return the facts for the pet's history. Items appear as counts, because the ledger has their ids."""

    @abstractmethod
    def facts(self) -> dict[str, object]:
        """Return its contents as JSON values, from which :meth:`read` restores the correction."""

    @classmethod
    @abstractmethod
    def read(cls, signature: Signature, facts: Mapping[str, Any]) -> Self:
        """Return the correction that :meth:`facts` described.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: a fact is missing or has the wrong type.
        """


@dataclass(frozen=True, slots=True)
class PetState:
    """One pet at one revision. In ``vectors``, ``labels``, ``origins`` and ``occurred_at_ms``, row i is ``media[i]``.

    Attributes:
        revision: the number of commits; 0 for a pet without data.
        model: ``name@version`` of its vectors; None while it has none.
        dim: length of its vectors; None while it has none.
        vectors: (n, dim) float32 of unit norm; (0, 0) if the pet has none.
        labels: (n,) int32 cluster ids, -1 = noise.
        origins: (n,) uint8, values of :class:`Origin`.
        occurred_at_ms: (n,) the time that the producer stated for each item; see ``times``.
        rows: item -> row.
        clusters: the living clusters.
        aliases: ids that were merged away -> the id they resolve to.
        ledger: every correction, oldest first.
        next_cluster: the next id to assign.
        n_at_recluster: number of items at the last recluster; 0 before the first.
        noise_arrivals: number of arrivals that became noise since the last recluster.
        relabelled_at: the revision that last moved existing items, or 0 if none did.
        version: the store's unique name for exactly this state. A revision is not unique: after a failover that lost
            writes, or if a pet was deleted and recreated, two states can have the same revision.
    """

    pet: PetId
    revision: int
    model: str | None
    dim: int | None
    media: Sequence[MediaId]
    rows: Mapping[MediaId, int]
    vectors: FloatMatrix
    occurred_at_ms: TimeVector
    labels: LabelVector
    origins: OriginVector
    clusters: Mapping[ClusterId, ClusterCard]
    aliases: Mapping[ClusterId, ClusterId]
    ledger: tuple[Correction, ...]
    next_cluster: ClusterId
    n_at_recluster: int = 0
    noise_arrivals: int = 0
    relabelled_at: int = 0
    version: str = ""

    @property
    def n_media(self) -> int:
        return len(self.labels)  # faster than the length of ``media``, and an arrival needs it a dozen times

    @property
    def born(self) -> str:
        """The part of ``version`` that states share as long as rows are only appended."""
        return self.version.partition(".")[0]


@dataclass(frozen=True, slots=True)
class KeptTree:
    """A spanning tree in the form in which a store keeps it with its pet; see ``kept_tree``.

    Attributes:
        born: ``PetState.born`` of its pet.
        n: the number of rows that it covers, from the pet's first.
        body: the encoded tree, for ``kept_tree.load``.
    """

    born: str
    n: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Arrival:
    """An item to append to a pet, with its label and origin. The item is noise until it has been assigned."""

    media: MediaId
    vector: FloatVector
    label: ClusterId = NOISE
    origin: Origin = Origin.NOISE
    occurred_at_ms: int = UNKNOWN


@dataclass(frozen=True, slots=True)
class Relabelling:
    """New labels and origins for all existing rows, in row order."""

    labels: LabelVector
    origins: OriginVector


# The kind of a commit: one of ``decide.corrections.CHANGE_KINDS``.
ChangeKind = str


@dataclass(frozen=True, slots=True)
class Change:
    """The changes of one commit. A field left at its default changes nothing.

    Attributes:
        model, dim: written with the first arrival of a pet.
        arrivals: items to append after the existing rows.
        relabelling: new labels and origins of the existing rows; None = unchanged.
        clusters: cards to write by cluster; None removes the card.
        aliases: aliases to write by old id; None removes the alias.
        correction: the correction to append to the ledger.
        by: the requester, for the history; ``machine`` for arrivals and automatic reclusters.
        summary: facts for the pet's history, as JSON values. Arrivals get no history entry.
    """

    kind: ChangeKind
    next_cluster: ClusterId
    n_at_recluster: int
    noise_arrivals: int
    model: str | None = None
    dim: int | None = None
    arrivals: tuple[Arrival, ...] = ()
    relabelling: Relabelling | None = None
    clusters: Mapping[ClusterId, ClusterCard | None] = field(default_factory=dict)
    aliases: Mapping[ClusterId, ClusterId | None] = field(default_factory=dict)
    correction: Correction | None = None
    by: str = "machine"
    summary: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A recluster, a correction or another change in the history of a pet, but not an arrival."""

    revision: int
    kind: ChangeKind
    at: datetime
    by: str = field(metadata=described("The requester: the name of a token, `loopback` or `machine`."))
    summary: Mapping[str, object] = field(metadata=described("Facts about the change, such as numbers of items."))


@dataclass(frozen=True, slots=True)
class ClusterView:
    """A cluster at one revision of its pet."""

    cluster_id: ClusterId
    name: str | None = field(metadata=described("The name that a user gave the cluster."))
    other_names: tuple[str, ...] = field(
        metadata=described("Names of clusters that were merged into it, newest first.")
    )
    cover: MediaId = field(
        metadata=described("The item that stands for the cluster: a user's choice, or else the most typical item.")
    )
    is_cover_chosen: bool = field(metadata=described("Whether a user chose the cover."))
    is_hidden: bool = field(metadata=described("Whether a user hid the cluster."))
    is_locked: bool = field(metadata=described("Whether a user locked the cluster."))
    size: int
    media_ids: tuple[MediaId, ...] = field(metadata=described("The cluster's items, in the requested order."))
    origins: Mapping[str, int] = field(
        metadata=described(
            "Number of its items by the origin of their membership: core, arrived, absorbed, corrected; origins "
            "without items are left out."
        )
    )
    threshold: float = field(metadata=described("The mean top-3 cosine similarity that an arriving item must reach."))
    since: int = field(
        metadata=described("The revision at which the id was assigned, or assigned again after the cluster had ended.")
    )
    split_from: ClusterId | None = field(
        metadata=described("The cluster that most of its items were in at that revision.")
    )
    merged_from: tuple[ClusterId, ...] = field(
        metadata=described("Ids of clusters that were merged into it, ascending.")
    )


_NAME_OF_PET: Final = described("The name that a user gave the pet.")


@dataclass(frozen=True, slots=True)
class PetView:
    """The clusters of a pet at one revision. A pet without data has revision 0."""

    pet_id: PetId
    name: str | None = field(metadata=_NAME_OF_PET)
    revision: int
    model: str | None
    dim: int | None
    n_media: int
    n_noise: int
    clusters: tuple[ClusterView, ...] = field(metadata=described("Clusters, largest first, then by id."))
    noise: tuple[MediaId, ...] = field(metadata=described("Noise items, in the requested order."))
    dismissed: tuple[MediaId, ...] = field(
        metadata=described("Items that a user dismissed. They stay in no cluster until the dismissal is undone.")
    )
    aliases: Mapping[ClusterId, ClusterId] = field(
        metadata=described("Ids that were merged away, with the cluster that each resolves to.")
    )
    occurred_at: Mapping[MediaId, datetime] = field(
        metadata=described("The times that producers stated, by item. Items without a time are left out.")
    )


@dataclass(frozen=True, slots=True)
class PetSummary:
    """The name and counts of a pet, for a list of pets."""

    pet_id: PetId
    name: str | None = field(metadata=_NAME_OF_PET)
    revision: int
    model: str | None
    n_media: int = field(metadata=described("Number of the pet's items, without those in quarantine."))
    n_clusters: int
    n_noise: int = field(metadata=described("Number of its items that are in no cluster and were not dismissed."))


@dataclass(frozen=True, slots=True)
class Assigned:
    """The result of an arrival.

    Attributes:
        cluster: the cluster of the item, or NOISE.
        similarity: mean top-3 cosine similarity to that cluster or, for noise, to the nearest one; None if the pet has
            no cluster yet.
        backend: the backend that computed the result.
        is_duplicate: whether the pet already had the item, so that nothing was written.
        revision: the revision of the pet that contains the item.
    """

    media: MediaId
    cluster: ClusterId
    similarity: float | None
    backend: Backend
    is_duplicate: bool
    revision: int
    recluster_reason: str | None = None

    @classmethod
    def before(cls, state: PetState, media: MediaId) -> Self:
        """Return the result for an item that the pet already has."""
        cluster = ClusterId(int(state.labels[state.rows[media]]))
        return cls(media, cluster, None, backend="faiss", is_duplicate=True, revision=state.revision)


@dataclass(frozen=True, slots=True)
class Corrected:
    """The result of a correction.

    Attributes:
        cluster: the cluster of the items now: ``into`` for a merge or placement, the new one for a split, else None.
        n_moved: number of items whose cluster changed, including to and from noise.
        overridden: descriptions of older corrections that this one overrides where they conflict.
        is_duplicate: whether the operation was already in the ledger, so that nothing was written.
        n_also_moved: number of moved items that the user did not name. For example, if it overrides an older
            correction, a still older one that the older correction had overridden may apply again.
    """

    revision: int
    cluster: ClusterId | None
    n_moved: int
    overridden: tuple[str, ...]
    is_duplicate: bool
    n_also_moved: int = 0


@dataclass(frozen=True, slots=True)
class Reclustered:
    """The changes that a recluster made or would make."""

    revision: int = field(metadata=described("The revision that the recluster created or would create."))
    backend: Backend = field(metadata=INTERNAL)
    n_media: int
    n_clusters: int
    n_noise: int = field(metadata=described("Items that are in no cluster and were not dismissed."))
    n_dismissed: int
    n_absorbed: int
    n_moved: int = field(metadata=described("Items whose cluster changed, including to and from noise."))
    n_kept_ids: int = field(metadata=described("Clusters that kept their id."))
    n_new_ids: int = field(metadata=described("Clusters with a new id."))
    n_retired_ids: int = field(metadata=described("Clusters that ended."))
    constraints_kept: int = field(metadata=described("Accepted constraints that hold in the result: always all."))
    constraints: int = field(metadata=described("All accepted constraints."))
    kept: str = field(metadata=described("Summary, such as `constraints kept 3 of 3`."))
    overridden: tuple[str, ...] = field(metadata=described("Older corrections that newer ones override."))


@dataclass(frozen=True, slots=True)
class Restored:
    """The result of a restore.

    Attributes:
        restored: the revision that was restored; ``revision`` is the new one.
        n_moved: number of items whose cluster changed, including to and from noise.
        n_held: number of items that could not be restored, because corrections in force hold them elsewhere.
        n_later: number of items that arrived after that revision; each joined the items that shared its cluster just
            before the restore, or became noise.
        constraints_kept, constraints, kept, overridden: as in :class:`Reclustered`.
        is_duplicate: whether the operation had been done before, so that nothing was written.
    """

    revision: int
    restored: int
    n_moved: int
    n_held: int
    n_later: int
    constraints_kept: int
    constraints: int
    kept: str
    overridden: tuple[str, ...]
    is_duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Deleted:
    """The result of deleting items or a pet.

    Attributes:
        n_media: number of deleted items, including quarantined ones.
        n_corrections: number of corrections that named these items and now name stand-ins; if the pet was deleted, the
            number of all its corrections.
        revision: the new revision of the pet, or 0 if the whole pet was deleted.
    """

    n_media: int
    n_corrections: int
    revision: int
