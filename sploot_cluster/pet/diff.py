"""Comparison of two labellings of a pet: of two revisions, or of a revision and a preview."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import SupportsInt

import numpy as np

from sploot_cluster.answer_fields import described
from sploot_cluster.pet.models import NOISE, ClusterId, MediaId, Origin, PetState
from sploot_cluster.pet.vectors import BoolVector, LabelVector, OriginVector


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The labels of a pet's items at a revision. Row i of ``labels`` and ``origins`` belongs to ``media[i]``.

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
class MovedItem:
    """An item whose cluster differs between two labellings of its pet, or that is in only one of them."""

    media_id: MediaId
    before: ClusterId | None = field(
        metadata=described("Its cluster in the earlier revision; null if it was noise or not yet present.", name="from")
    )
    after: ClusterId | None = field(
        metadata=described("Its cluster in the later revision; null for noise, or if it is not in the pet.", name="to")
    )


@dataclass(frozen=True, slots=True)
class PetDiff:
    """The differences between two revisions of a pet, or between its newest revision and a preview."""

    from_revision: int | None
    to_revision: int | None = field(metadata=described("null for a preview."))
    n_same: int = field(metadata=described("Items with the same cluster id in both, or noise in both."))
    n_moved: int = field(metadata=described("Items that moved from one cluster to another."))
    n_new_noise: int = field(metadata=described("Items that were in a cluster and are noise now."))
    n_from_noise: int = field(metadata=described("Items that were noise and are in a cluster now."))
    n_arrived: int = field(metadata=described("Items that the earlier revision does not have."))
    moved: tuple[MovedItem, ...] = field(
        metadata=described("Items whose cluster differs or that one revision lacks, up to the limit.")
    )
    is_truncated: bool = field(metadata=described("Whether `moved` was truncated at the limit."))
    merged: Mapping[ClusterId, ClusterId] = field(
        metadata=described("Retired ids, with the cluster that most of their items are in now.")
    )
    split: Mapping[ClusterId, ClusterId] = field(
        metadata=described("New ids, with the cluster that most of their items come from.")
    )
    kept_ids: tuple[ClusterId, ...] = field(metadata=described("Ids in both revisions, ascending."))
    new_ids: tuple[ClusterId, ...] = field(metadata=described("Ids only in the later revision, ascending."))
    ended_ids: tuple[ClusterId, ...] = field(metadata=described("Ids only in the earlier revision, ascending."))

    def up_to(self, limit: int) -> PetDiff:
        """Return the differences with at most ``limit`` moved items."""
        return self if len(self.moved) <= limit else replace(self, moved=self.moved[:limit], is_truncated=True)


def compare(before: Snapshot, after: Snapshot) -> PetDiff:
    """Return the differences between two labellings of a pet. O(n log n).

    The items of one must be the first items of the other, because items are only appended.
    """
    n = min(len(before.labels), len(after.labels))
    old, new = before.labels[:n], after.labels[:n]
    old_ids, new_ids = _ids(before.labels), _ids(after.labels)
    was_noise, is_noise = old == NOISE, new == NOISE
    return PetDiff(
        before.revision,
        after.revision,
        n_same=int(np.count_nonzero(old == new)),
        n_moved=int(np.count_nonzero((old != new) & ~was_noise & ~is_noise)),
        n_new_noise=int(np.count_nonzero(~was_noise & is_noise)),
        n_from_noise=int(np.count_nonzero(was_noise & ~is_noise)),
        n_arrived=len(after.labels) - n,
        moved=tuple(_moves(before, after, n)),
        is_truncated=False,
        merged=mostly(old, new, old_ids - new_ids, counts=before.origins[:n] != Origin.ABSORBED),
        split=mostly(new, old, new_ids - old_ids, counts=after.origins[:n] != Origin.ABSORBED),
        kept_ids=tuple(sorted(old_ids & new_ids)),
        new_ids=tuple(sorted(new_ids - old_ids)),
        ended_ids=tuple(sorted(old_ids - new_ids)),
    )


def _moves(before: Snapshot, after: Snapshot, n: int) -> Iterator[MovedItem]:
    for row in np.flatnonzero(before.labels[:n] != after.labels[:n]).tolist():
        yield MovedItem(before.media[row], cluster_or_none(before.labels[row]), cluster_or_none(after.labels[row]))
    for row in range(n, len(before.labels)):
        yield MovedItem(before.media[row], cluster_or_none(before.labels[row]), None)
    for row in range(n, len(after.labels)):
        yield MovedItem(after.media[row], None, cluster_or_none(after.labels[row]))


def cluster_or_none(label: SupportsInt) -> ClusterId | None:
    """Return the cluster of a label, or None for noise."""
    return None if label == NOISE else ClusterId(int(label))


def _ids(labels: LabelVector) -> set[ClusterId]:
    return {ClusterId(label) for label in np.unique(labels[labels != NOISE]).tolist()}


def mostly(
    before: LabelVector, after: LabelVector, ids: Iterable[ClusterId], *, counts: BoolVector
) -> dict[ClusterId, ClusterId]:
    """Return, for each of ``ids``, the id that more than half of its items have in ``after``, if there is one.

    Args:
        before, after: (n,) labels of the same items; ``ids`` are from ``before``.
        counts: (n,) bool, which items count.
    """
    most = {id_: most_of(after[(before == id_) & counts]) for id_ in sorted(ids)}
    return {id_: went for id_, went in most.items() if went is not None}


def most_of(labels: LabelVector) -> ClusterId | None:
    """Return the cluster of more than half of these labels, or None if there is none or most are noise."""
    values, n = np.unique(labels, return_counts=True)
    if not len(values) or values[n.argmax()] == NOISE or 2 * n.max() <= n.sum():
        return None
    return ClusterId(int(values[n.argmax()]))
