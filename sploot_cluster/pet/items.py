"""Pages of a pet's items, in order of arrival. Reading a page takes the same time for a pet of any size.

A cursor consists of the number of items before the page, and the beginning of a random name (``PetState.born``) that
changes when rows of the pet move up. So a cursor from before a deletion is refused; the next page would otherwise leave
out items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

from sploot_cluster.answer_fields import described
from sploot_cluster.errors import InvalidInput
from sploot_cluster.pet.models import NOISE, ClusterId, MediaId, Origin, PetId
from sploot_cluster.pet.times import time_of

CURSOR: Final = "^[0-9]{1,10}-[0-9a-f]{8}$"


@dataclass(frozen=True, slots=True)
class PetItem:
    """An item, and the cluster that it is in."""

    media_id: MediaId
    cluster_id: ClusterId | None = field(metadata=described("Its cluster; null if it is noise or dismissed."))
    origin: str = field(metadata=described("Its origin: core, arrived, absorbed, corrected, noise or dismissed."))
    occurred_at: datetime | None = field(metadata=described("The time that its producer stated."))


@dataclass(frozen=True, slots=True)
class ItemPage:
    """A page of the items of a pet."""

    pet_id: PetId
    revision: int
    n_media: int
    items: tuple[PetItem, ...]
    next_cursor: str | None = field(metadata=described("Cursor of the next page; null on the last page."))


class ItemRows(NamedTuple):
    """Consecutive rows of a pet and the pet's ``born``, as a store returns them. Empty for a pet without data."""

    born: str
    revision: int
    n_media: int
    media: Sequence[MediaId]
    labels: Sequence[int]
    origins: Sequence[int]
    occurred_at_ms: Sequence[int]


def first_row(cursor: str | None) -> int:
    """Return the row at which the page for a cursor begins."""
    return 0 if cursor is None else int(cursor.partition("-")[0])


def page_of(pet: PetId, rows: ItemRows, cursor: str | None) -> ItemPage:
    """Return the page that begins at a cursor.

    Args:
        rows: the rows from :func:`first_row` on.

    Raises:
        InvalidInput: items were deleted since the cursor was given, or the pet was recreated.
    """
    if cursor is not None and cursor.partition("-")[2] != rows.born[:8]:
        problem = "items of the pet were deleted or replaced since, or the pet was recreated"
        raise InvalidInput("cursor", problem, "begin again without a cursor")
    columns = zip(rows.media, rows.labels, rows.origins, rows.occurred_at_ms, strict=True)
    items = tuple(
        PetItem(item, None if label == NOISE else ClusterId(label), Origin(origin).name.lower(), time_of(ms))
        for item, label, origin, ms in columns
    )
    end = first_row(cursor) + len(items)
    return ItemPage(pet, rows.revision, rows.n_media, items, f"{end}-{rows.born[:8]}" if end < rows.n_media else None)
