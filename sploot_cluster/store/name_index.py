"""The index of pets by name, for searches by the beginning of a name. ``keys.py`` documents its key.

The index is in a different slot from the pets, so no script can write both. A name is added before the commit that
gives the pet this name, and former names are removed afterwards. If a process dies between the two, an outdated name
stays in the index; a search compares each entry that it finds with the pet's own name, and removes outdated ones. After
a write, the pet is read again, because two processes may change names at the same time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

import redis

from sploot_cluster.pet.models import PetId
from sploot_cluster.store.keys import NAMES, PetKeys

# A byte that is greater than every byte of UTF-8 text.
_LAST: Final = b"\xff"

# Number of pets whose names are read in one round trip, which occupies the server's only thread for about a
# millisecond.
_PER_TRIP: Final = 500


class NameIndex:
    """The index of pets by name on a Redis server. Errors from redis-py propagate untranslated."""

    def __init__(self, client: redis.Redis | redis.RedisCluster) -> None:
        self._client: Any = client

    def add(self, pet: PetId, name: str) -> None:
        """Add an entry for a name that a pet is about to get. Searches ignore it until the pet has the name."""
        self._client.zadd(NAMES, {_entry(pet, name): 0})

    def settle(self, pet: PetId, *, former: Collection[str | None] = ()) -> None:
        """Make the index agree with the pet's name.

        Args:
            former: names that the index may have for this pet.
        """
        known = {_entry(pet, name) for name in former if name}
        (name,) = self.names_of([pet])
        while True:
            entries = {_entry(pet, name)} if name else set()
            if name:
                self.add(pet, name)
            if gone := known - entries:
                self._client.zrem(NAMES, *gone)
            (now,) = self.names_of([pet])
            if now == name:
                return
            known, name = known | entries, now

    def find(self, beginning: str, *, limit: int) -> Sequence[PetId]:
        """Return the pets whose name begins with this text, ignoring case, by ascending id, or only some of many.

        Args:
            limit: maximum number of index entries to read.
        """
        start = _folded(beginning)
        read = self._client.zrangebylex(NAMES, b"[" + start, b"[" + start + _LAST, 0, limit)
        entries = [(PetId(int(pet)), entry) for entry in read for _, _, pet in [entry.rpartition(b"\0")]]
        found = set()
        for (pet, entry), name in zip(entries, self.names_of([pet for pet, _ in entries]), strict=True):
            if name and entry == _entry(pet, name):
                found.add(pet)
            else:
                self._client.zrem(NAMES, entry)
                self.settle(pet)  # the pet may have received this name since
        return sorted(found)

    def missing(self, pets: Sequence[PetId]) -> Iterator[PetId]:
        """Yield the pets that a search by name does not find."""
        for pet, name in zip(pets, self.names_of(pets), strict=True):
            if name and self._client.zscore(NAMES, _entry(pet, name)) is None:
                yield pet

    def names_of(self, pets: Sequence[PetId]) -> Sequence[str | None]:
        """Return the names that the pets themselves store, without using the index."""
        names: list[str | None] = []
        for start in range(0, len(pets), _PER_TRIP):
            pipe = self._client.pipeline(transaction=False)
            for pet in pets[start : start + _PER_TRIP]:
                pipe.hget(PetKeys.of(pet).meta, "name")
            names += map(_text, pipe.execute(raise_on_error=False))
        return names


def _text(stored: object) -> str | None:
    if isinstance(stored, bytes):
        return stored.decode(errors="replace")
    if isinstance(stored, Exception) and "WRONGTYPE" not in str(stored):
        raise stored
    return None  # the pet has no name, or is damaged and must still be deletable


def _entry(pet: PetId, name: str) -> bytes:
    return _folded(name) + b"\0%d" % pet


def _folded(name: str) -> bytes:
    return name.casefold().encode(errors="replace")
