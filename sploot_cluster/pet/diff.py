"""Comparison of two labellings of a pet, for previews and for what happened between two revisions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sploot_cluster.pet.models import NOISE, ClusterId, MediaId, Origin, PetState
from sploot_cluster.pet.vectors import BoolVector, LabelVector, OriginVector


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The places of a pet's items at a revision; row i of ``labels`` and ``origins`` belongs to ``media[i]``.

    Attributes:
        revision: None for a labelling that is not committed.
        aliases: as in :class:`~sploot_cluster.pet.models.PetState`, at that revision.
    """

    revision: int | None
    media: Sequence[MediaId]
    labels: LabelVector
    origins: OriginVector
    aliases: Mapping[ClusterId, ClusterId] = field(default_factory=dict)

    @classmethod
    def of(cls, state: PetState) -> Snapshot:
        return cls(state.revision, state.media, state.labels, state.origins, state.aliases)


@dataclass(frozen=True, slots=True)
class Move:
    """An item whose cluster changed, or that only one side has; NOISE stands for none, None for absent."""

    media: MediaId
    before: ClusterId | None
    after: ClusterId | None


@dataclass(frozen=True, slots=True)
class Diff:
    """The differences between two labellings.

    Attributes:
        from_revision, to_revision: None for a labelling that is not committed.
        n_same: items of both that are in a cluster of the same id, or noise in both.
        moved: items of both whose cluster differs, including noise; and items that only one labelling has.
        merged: ids that ended -> the id in which more than half of their items are now.
        split: ids that began -> the id in which more than half of their items were.
        kept_ids, new_ids, ended_ids: ids in both, only in the later, only in the earlier labelling; ascending.
    """

    from_revision: int | None
    to_revision: int | None
    n_same: int
    moved: tuple[Move, ...]
    merged: Mapping[ClusterId, ClusterId]
    split: Mapping[ClusterId, ClusterId]
    kept_ids: tuple[ClusterId, ...]
    new_ids: tuple[ClusterId, ...]
    ended_ids: tuple[ClusterId, ...]

    @property
    def n_moved(self) -> int:
        """The number of items that moved from one cluster to another."""
        return sum(move.before not in (None, NOISE) and move.after not in (None, NOISE) for move in self.moved)

    @property
    def n_new_noise(self) -> int:
        """The number of items that left a cluster and became noise."""
        return sum(move.before not in (None, NOISE) and move.after == NOISE for move in self.moved)

    @property
    def n_from_noise(self) -> int:
        """The number of items that were noise and joined a cluster."""
        return sum(move.before == NOISE and move.after not in (None, NOISE) for move in self.moved)

    @property
    def n_arrived(self) -> int:
        """The number of items that only the later labelling has."""
        return sum(move.before is None for move in self.moved)


def compare(before: Snapshot, after: Snapshot) -> Diff:
    """Return the differences. Items of one labelling must be a prefix of the other's, as items are only appended. O(n
    log n)."""
    n = min(len(before.labels), len(after.labels))
    old, new = before.labels[:n], after.labels[:n]
    old_ids, new_ids = _ids(before.labels), _ids(after.labels)
    return Diff(
        before.revision,
        after.revision,
        n_same=int(np.count_nonzero(old == new)),
        moved=tuple(_moves(before, after, n)),
        merged=mostly(old, new, old_ids - new_ids, counts=before.origins[:n] != Origin.ABSORBED),
        split=mostly(new, old, new_ids - old_ids, counts=after.origins[:n] != Origin.ABSORBED),
        kept_ids=tuple(sorted(old_ids & new_ids)),
        new_ids=tuple(sorted(new_ids - old_ids)),
        ended_ids=tuple(sorted(old_ids - new_ids)),
    )


def _moves(before: Snapshot, after: Snapshot, n: int) -> Iterator[Move]:
    for row in np.flatnonzero(before.labels[:n] != after.labels[:n]).tolist():
        yield Move(before.media[row], ClusterId(int(before.labels[row])), ClusterId(int(after.labels[row])))
    for row in range(n, len(before.labels)):
        yield Move(before.media[row], ClusterId(int(before.labels[row])), None)
    for row in range(n, len(after.labels)):
        yield Move(after.media[row], None, ClusterId(int(after.labels[row])))


def _ids(labels: LabelVector) -> set[ClusterId]:
    return {ClusterId(label) for label in np.unique(labels[labels != NOISE]).tolist()}


def mostly(
    before: LabelVector, after: LabelVector, ids: Iterable[ClusterId], *, counts: BoolVector
) -> dict[ClusterId, ClusterId]:
    """Map each of ``ids`` to the id in ``after`` that more than half of its items have; omit ids without one.

    Args:
        before, after: (n,) labels of the same items; ``ids`` are from ``before``.
        counts: (n,) bool, which items count.
    """
    most = {id_: most_of(after[(before == id_) & counts]) for id_ in sorted(ids)}
    return {id_: went for id_, went in most.items() if went is not None}


def most_of(labels: LabelVector) -> ClusterId | None:
    """Return the cluster of more than half of these labels; None if there is none, or most are noise."""
    values, n = np.unique(labels, return_counts=True)
    if not len(values) or values[n.argmax()] == NOISE or 2 * n.max() <= n.sum():
        return None
    return ClusterId(int(values[n.argmax()]))
