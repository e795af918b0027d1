"""Pages of the list of pets, with search and sorting. Each page continues after the last pet of the previous one.

If pets are sorted by id, only the pets of the page are read, however many there are. To sort by a count, the counts of
all matching pets are read, so this is refused if more than ``MAX_SORTED`` pets match. A search that is not a number
reads only pets whose name matches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from sploot_cluster.answer_fields import described
from sploot_cluster.errors import InvalidInput
from sploot_cluster.pet.models import PetId, PetSummary

# Maximum number of pets to sort. Redis returns about 50,000 per second.
MAX_SORTED: Final = 20_000

MAX_PETS: Final = 1_000

# A cursor: the id of the last pet. If pets are sorted by a count, that pet's count and a colon precede it.
CURSOR: Final = "^([0-9]{1,10}:)?[1-9][0-9]{0,18}$"


class PetOrder(StrEnum):
    """The order of a list of pets. Pets with equal values are in ascending order of their ids."""

    ID = "id"
    NEWEST = "newest"  # by descending id, because most applications assign ascending ids
    NOISE = "noise"
    ITEMS = "items"


@dataclass(frozen=True, slots=True)
class PetPage:
    """A page of the list of pets."""

    pets: Sequence[PetSummary]
    n_matching: int = field(metadata=described("Number of pets that match the search, on all pages."))
    next_cursor: str | None = field(metadata=described("The cursor of the next page; null on the last page."))


class ListedPets(Protocol):
    """A source of the pets for a list, such as a ``PetStore``, which documents the methods."""

    def pets(self) -> Sequence[PetId]: ...

    def pets_in_order(self, last: PetId | None, *, rising: bool, limit: int) -> tuple[int, Sequence[PetId]]: ...

    def summaries(self, pets: Sequence[PetId]) -> Sequence[PetSummary]: ...

    def find_by_name(self, beginning: str, *, limit: int) -> Sequence[PetId]: ...


def page_of(
    listed: ListedPets,
    *,
    search: str = "",
    order: PetOrder = PetOrder.ID,
    limit: int = 100,
    cursor: str | None = None,
) -> PetPage:
    """Return a page of the list of pets.

    Args:
        search: digits that the id contains, or the beginning of the name, in any case. Empty: list all pets.
        limit: number of pets, 1 to ``MAX_PETS``.
        cursor: ``next_cursor`` of the previous page.

    Raises:
        InvalidInput: the cursor is invalid, too many pets match to be sorted in this order, or too many have a name
            with this beginning.
    """
    if cursor is not None and not re.fullmatch(CURSOR, cursor):
        raise InvalidInput("cursor", "is not a cursor of this list", "send next_cursor of the previous page unchanged")
    after, last = _position(cursor)
    by_count = order in (PetOrder.NOISE, PetOrder.ITEMS)
    if not search:
        # one more, to know whether another page follows
        n_pets, ids = listed.pets_in_order(last, rising=order != PetOrder.NEWEST, limit=limit + 1)
        if not by_count:
            return PetPage(listed.summaries(ids[:limit]), n_pets, str(ids[limit - 1]) if len(ids) > limit else None)
        _check_sortable(n_pets, order)
    matching, summaries = _matching(listed, search), listed.summaries
    if not by_count:
        rising = order == PetOrder.ID
        inside = matching if last is None else [pet for pet in matching if (pet > last if rising else pet < last)]
        page = (inside if rising else inside[::-1])[:limit]
        next_cursor = str(page[-1]) if len(inside) > len(page) else None
        return PetPage(summaries(page), len(matching), next_cursor)
    _check_sortable(len(matching), order)

    def place(pet: PetSummary) -> tuple[int, PetId]:
        return (-pet.n_noise if order == PetOrder.NOISE else -pet.n_media), pet.pet_id

    found = sorted(summaries(matching), key=place)
    if last is not None:
        found = [pet for pet in found if place(pet) > (-after, last)]
    shown = found[:limit]
    end = place(shown[-1]) if len(found) > len(shown) else None
    return PetPage(shown, len(matching), None if end is None else f"{-end[0]}:{end[1]}")


def _check_sortable(n_pets: int, order: PetOrder) -> None:
    if n_pets > MAX_SORTED:
        problem = f"cannot be {order} for {n_pets} pets; at most {MAX_SORTED} can be sorted"
        raise InvalidInput("order", problem, "narrow the search, or choose id or newest")


def _matching(listed: ListedPets, search: str) -> Sequence[PetId]:
    """Return the pets that match a search, ascending."""
    if not search:
        return listed.pets()
    found = listed.find_by_name(search, limit=MAX_SORTED + 1)
    if len(found) > MAX_SORTED:
        raise InvalidInput("search", f"more than {MAX_SORTED} pets have such a name", "send more of the name")
    if not search.isdecimal():
        return found
    return sorted({*found, *(pet for pet in listed.pets() if search in str(pet))})


def _position(cursor: str | None) -> tuple[int, PetId | None]:
    number, _, pet = (cursor or "").rpartition(":")
    return int(number or 0), PetId(int(pet)) if pet else None
