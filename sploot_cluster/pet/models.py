"""The values of the domain: pets, media, clusters, corrections.

All of them are frozen. Arrays inside them are read-only by convention: who wants other values makes another array.
Cluster ids are decimal integers from 1, counted per pet and never used twice; noise is -1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from typing import Final, Literal, NewType

from sploot_cluster.pet.vectors import FloatMatrix, FloatVector, LabelVector, OriginVector

PetId = NewType("PetId", int)
MediaId = NewType("MediaId", str)
ClusterId = NewType("ClusterId", int)

NOISE: Final = ClusterId(-1)

Backend = Literal["faiss", "hdbscan_cpu", "hdbscan_gpu"]


class Origin(IntEnum):
    """How an item came to be where it is. Stored as one byte per item."""

    NOISE = 0
    CORE = 1  # the density of a recluster put it there
    ARRIVED = 2  # assigned when it arrived
    ABSORBED = 3  # noise drawn in to keep the noise budget: low confidence, outside centroids, thresholds and ids
    CORRECTED = 4  # a person put it there
    DISMISSED = 5  # a person dismissed it: in no cluster, whatever a machine computes later


@dataclass(frozen=True, slots=True)
class ClusterCard:
    """What is known of one cluster besides its members.

    Attributes:
        threshold: the lowest mean top-3 cosine similarity of a member to the other members, in [-1, 1];
            an arrival must reach it.
        since: the pet's revision at which the id was given out; of one that ended and came back, when it did.
        split_from: the id in which most of its media were just before; None for a cluster of media that were in none.
    """

    id: ClusterId
    threshold: float
    since: int
    split_from: ClusterId | None = None


@dataclass(frozen=True, slots=True)
class Merge:
    """A person says: these clusters are one. Its media are must-linked for ever, unless undone or overridden."""

    revision: int
    operation_id: str
    by: str
    at: datetime
    into: ClusterId
    groups: Mapping[ClusterId, tuple[MediaId, ...]]  # every merged cluster, ``into`` among them, as it was
    aliases: Mapping[ClusterId, ClusterId] = field(default_factory=dict)  # older ids -> the one of these they led to


@dataclass(frozen=True, slots=True)
class Split:
    """A person says: these media are another cluster. They are must-linked, and cannot-linked to the rest."""

    revision: int
    operation_id: str
    by: str
    at: datetime
    source: ClusterId
    created: ClusterId
    moved: tuple[MediaId, ...]
    remaining: tuple[MediaId, ...]


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A person says: not these in this cluster. Each may go elsewhere, and never back to what the cluster was.

    It parts each of ``media`` from all that remained, and places none. What an older correction said of them together
    with media that remained, it takes back.
    """

    revision: int
    operation_id: str
    by: str
    at: datetime
    source: ClusterId
    media: tuple[MediaId, ...]
    remaining: tuple[MediaId, ...]


@dataclass(frozen=True, slots=True)
class Dismissal:
    """A person says: these are nothing. They stay in no cluster for ever, unless it is undone."""

    revision: int
    operation_id: str
    by: str
    at: datetime
    groups: Mapping[ClusterId, tuple[MediaId, ...]]  # where they were, NOISE among the ids
    aliases: Mapping[ClusterId, ClusterId] = field(default_factory=dict)  # older ids -> clusters that ended with it

    @property
    def media(self) -> tuple[MediaId, ...]:
        return tuple(item for media in self.groups.values() for item in media)


@dataclass(frozen=True, slots=True)
class Undo:
    """A person takes back the correction that made revision ``undone``; an undo can be undone too."""

    revision: int
    operation_id: str
    by: str
    at: datetime
    undone: int


Said = Merge | Split | Exclusion | Dismissal  # what a correction can be besides an undo
Correction = Said | Undo


@dataclass(frozen=True, slots=True)
class PetState:
    """One pet at one revision. Row i of ``vectors``, ``labels`` and ``origins`` belongs to ``media[i]``.

    Attributes:
        revision: counts commits; 0 is a pet that has nothing yet.
        model: ``name@version`` of its vectors; None while it has none.
        dim: length of its vectors; None while it has none.
        vectors: (n, dim) float32 of unit norm; (0, 0) for a pet that has none.
        labels: (n,) int32 cluster ids, -1 = noise.
        origins: (n,) uint8, values of :class:`Standing`.
        rows: item -> row.
        clusters: the living clusters.
        aliases: ids that were merged away -> the id they became.
        ledger: every correction, oldest first.
        next_cluster: the next id to give out.
        n_at_recluster: media that the last recluster saw; 0 before the first.
        noise_arrivals: arrivals since the last recluster that found no cluster.
        relabelled_at: the revision that last moved media that were there; 0 if none did.
        version: the store's own name for exactly this state. A revision alone does not tell: after a failover that lost
            writes, or for a pet that was deleted and begun anew, two states can share one.
    """

    pet: PetId
    revision: int
    model: str | None
    dim: int | None
    media: Sequence[MediaId]
    rows: Mapping[MediaId, int]
    vectors: FloatMatrix
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
        return len(self.media)

    @property
    def born(self) -> str:
        """The part of ``version`` that all states of a pet share whose rows were only appended to."""
        return self.version.partition(".")[0]


@dataclass(frozen=True, slots=True)
class KeptTree:
    """A spanning tree as a store holds it beside a pet; see ``kept_tree``.

    Attributes:
        born: ``PetState.born`` of the pet that it is of.
        n: it is of so many of its first rows.
        body: what ``kept_tree.load`` reads.
    """

    born: str
    n: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Arrival:
    """An item to append: where :func:`~sploot_cluster.decide.assignment.decide` put it."""

    media: MediaId
    vector: FloatVector
    label: ClusterId
    origin: Origin


@dataclass(frozen=True, slots=True)
class Relabelling:
    """New labels and origins for the rows that exist, in row order, as long as the state it was decided on."""

    labels: LabelVector
    origins: OriginVector


ChangeKind = Literal[
    "arrival", "recluster", "merge", "split", "exclude", "dismiss", "undo", "restore", "delete", "switch"
]


@dataclass(frozen=True, slots=True)
class Change:
    """What one commit writes. Fields left at their default keep what is stored.

    Attributes:
        model, dim: written with the first arrival of a pet.
        arrivals: media to append after the rows that exist.
        relabelling: for the rows that exist; None = unchanged.
        clusters: cards to write; a value of None removes the card.
        aliases: aliases to write; a value of None removes the alias.
        correction: to append to the ledger.
        by: who made the change, for the history; ``machine`` for arrivals and reclusters nobody asked for.
        summary: facts for the pet's history, JSON values only; no entry is written for a plain arrival.
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
    """One revision of a pet that was more than a plain arrival."""

    revision: int
    kind: ChangeKind
    at: datetime
    by: str
    summary: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ClusterView:
    """A cluster as readers see it.

    Attributes:
        media: in the order of their arrival.
        origins: how many of its media came to it in which way; ways that nobody came are left out.
        threshold, since, split_from: as in :class:`ClusterCard`.
        merged_from: ids that lead to it, ascending.
    """

    id: ClusterId
    media: tuple[MediaId, ...]
    origins: Mapping[Origin, int]
    threshold: float
    since: int
    split_from: ClusterId | None
    merged_from: tuple[ClusterId, ...]

    @property
    def size(self) -> int:
        return len(self.media)


@dataclass(frozen=True, slots=True)
class PetView:
    """A pet as readers see it, at one revision.

    Attributes:
        clusters: the largest first, then by id.
        noise: media in no cluster, in the order of their arrival, without those that a person dismissed.
        dismissed: these, in the same order.
        aliases: ids that were merged away -> the id they became.
    """

    pet: PetId
    revision: int
    model: str | None
    dim: int | None
    n_media: int
    clusters: tuple[ClusterView, ...]
    noise: tuple[MediaId, ...]
    dismissed: tuple[MediaId, ...]
    aliases: Mapping[ClusterId, ClusterId]

    @property
    def n_noise(self) -> int:
        return len(self.noise)


@dataclass(frozen=True, slots=True)
class Assigned:
    """Where an arrival ended.

    Attributes:
        cluster: its cluster, or NOISE.
        similarity: mean top-3 cosine similarity to that cluster, or to the nearest one when it is noise;
            None where the pet has no cluster yet.
        backend: what computed it.
        is_duplicate: the item was there already, and nothing was written.
        revision: the pet's revision that holds it.
    """

    media: MediaId
    cluster: ClusterId
    similarity: float | None
    backend: Backend
    is_duplicate: bool
    revision: int
    recluster_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Corrected:
    """What a correction did.

    Attributes:
        cluster: the cluster the media are in now: ``into`` of a merge, the new one of a split, None for all others.
        overridden: descriptions of older corrections that this one contradicts; they yield where they meet it.
        is_duplicate: the operation was in the ledger already, and nothing was written.
    """

    revision: int
    cluster: ClusterId | None
    n_moved: int
    overridden: tuple[str, ...]
    is_duplicate: bool


@dataclass(frozen=True, slots=True)
class Reclustered:
    """What a recluster did.

    Attributes:
        n_kept_ids: clusters that kept their id; ``n_new_ids`` got a new one; ``n_retired_ids`` ended.
        n_moved: media whose cluster changed, noise included.
        n_noise: media in no cluster, without the ``n_dismissed`` that a person dismissed.
        constraints_kept, constraints: accepted constraints that hold in the result, of all accepted ones;
            they are equal, and the result says so because people ask.
        kept: the same in words: "constraints kept n of n".
        overridden: corrections that a newer one contradicts.
    """

    revision: int
    backend: Backend
    n_media: int
    n_clusters: int
    n_noise: int
    n_dismissed: int
    n_absorbed: int
    n_moved: int
    n_kept_ids: int
    n_new_ids: int
    n_retired_ids: int
    constraints_kept: int
    constraints: int
    kept: str
    overridden: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of a pet that was to be as it was.

    Attributes:
        restored: the revision that it was to be as; ``revision`` is the new one.
        n_moved: media whose cluster changed, noise included.
        n_held: media that are not where they were then, because corrections in force hold them elsewhere.
        n_later: media that came since then: with those of then with whom they were just now, or noise.
        constraints_kept, constraints, kept, overridden: as of :class:`Reclustered`.
        is_duplicate: the operation was done already, and nothing was written.
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
    """What was deleted.

    Attributes:
        n_media: with a row, or quarantined.
        n_corrections: that named one of them, and name a stand-in now; all of a pet that was deleted.
        revision: the pet's now; 0 when the whole pet is gone.
    """

    n_media: int
    n_corrections: int
    revision: int
