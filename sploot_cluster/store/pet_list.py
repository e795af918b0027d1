"""The list of all pets, and the same list in the order of their ids. ``keys.py`` documents the two keys.

Both are in different slots from the pets, so no script can write them together with a pet: ``RedisPetStore`` adds a pet
before its first commit and checks afterwards. The sorted list is an index: if it does not have as many pets as the
other, a reader repairs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, Final, cast

import redis

from sploot_cluster.pet.models import PetId
from sploot_cluster.store.keys import PETS, SORTED_PETS

# Approximate number of pets that one command lists, in less than a millisecond.
PETS_PER_PAGE: Final = 1_000

# Number of pets that one command adds to the sorted list or removes from it, in about a millisecond.
PETS_PER_WRITE: Final = 250


class PetList:
    """The list of pets on a Redis server. Errors from redis-py propagate untranslated."""

    def __init__(self, client: redis.Redis | redis.RedisCluster) -> None:
        self._client: Any = client

    def add(self, pet: PetId) -> None:
        pipe = self._client.pipeline(transaction=False)
        pipe.sadd(PETS, pet)
        pipe.zadd(SORTED_PETS, {_entry(pet): 0})
        pipe.execute()

    def remove(self, pet: PetId) -> None:
        pipe = self._client.pipeline(transaction=False)
        pipe.srem(PETS, pet)
        pipe.zrem(SORTED_PETS, _entry(pet))
        pipe.execute()

    def scan(self, cursor: int) -> tuple[int, Sequence[PetId]]:
        """Return about a thousand pets in no particular order, and the next cursor: 0 at the end, as at the start."""
        following, ids = cast("tuple[int, list[bytes]]", self._client.sscan(PETS, cursor=cursor, count=PETS_PER_PAGE))
        return int(following), [PetId(int(id_)) for id_ in ids]

    def all(self) -> set[PetId]:
        # in pages, because SMEMBERS of a million pets blocks Redis for half a second
        cursor, found = self.scan(0)
        pets = {*found}
        while cursor:
            cursor, found = self.scan(cursor)
            pets |= {*found}
        return pets

    def in_order(self, last: PetId | None, *, rising: bool, limit: int) -> tuple[int, Sequence[PetId]]:
        """Return the number of all pets, and up to ``limit`` of those after ``last``, in the order of their ids."""
        pipe = self._client.pipeline(transaction=False)
        pipe.scard(PETS)
        pipe.zcard(SORTED_PETS)
        n, n_sorted = pipe.execute()
        if n != n_sorted:
            self._sort_again()
        bound = ("-" if rising else "+") if last is None else f"({_entry(last)}"
        if rising:
            entries = self._client.zrangebylex(SORTED_PETS, bound, "+", 0, limit)
        else:
            entries = self._client.zrevrangebylex(SORTED_PETS, bound, "-", 0, limit)
        return int(n), [PetId(int(entry)) for entry in entries]

    def forget_order(self) -> None:
        """Delete the sorted list; the next reader writes it again."""
        self._client.unlink(SORTED_PETS)

    def _sort_again(self) -> None:
        listed, entries, bound = self.all(), set[PetId](), "-"
        while page := self._client.zrangebylex(SORTED_PETS, bound, "+", 0, PETS_PER_PAGE):
            entries.update(PetId(int(entry)) for entry in page)
            bound = f"({page[-1].decode()}"
        added, gone = iter(listed - entries), iter(entries - listed)
        while some := list(islice(added, PETS_PER_WRITE)):
            self._client.zadd(SORTED_PETS, dict.fromkeys(map(_entry, some), 0))
        while some := list(islice(gone, PETS_PER_WRITE)):
            self._client.zrem(SORTED_PETS, *map(_entry, some))


def _entry(pet: PetId) -> str:
    """Return the id with leading zeros, so that ids sort as text in numeric order."""
    return f"{pet:019d}"
