"""A process's cache of pets, which holds the last state and spanning tree of each.

It saves loading whole pets and is never authoritative: before each use, newer commits are loaded into the cached state.
The threads of a process take turns using a pet, because if two decided at the same time, one of them would fail to
commit.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from threading import Lock, RLock
from typing import TYPE_CHECKING, Final

import numpy as np

from sploot_cluster.pet.models import (
    Correction,
    MediaId,
    PetId,
    PetState,
)
from sploot_cluster.pet.rows import PetRows, empty_state
from sploot_cluster.pet.vectors import FloatVector
from sploot_cluster.threads import n_cores

if TYPE_CHECKING:
    from sploot_cluster.engine.spanning_tree import SpanningTree

# Minimum size limit of the cache. A pet of 50,000 items takes 115 MB at 512 dimensions when loaded, and up to 170 MB as
# it grows. 80 to 115 pets of 2,000 items fit.
LEAST_BYTES: Final = 512 * 1024 * 1024
# Share of the machine's memory for the caches of all processes in total, assuming one process per core.
SHARE: Final = 1 / 4

# Size of an id of 36 characters: the string, its place in the list and its entry in the dictionary; measured with
# tracemalloc on Python 3.11.
BYTES_PER_ITEM: Final = 250
# Fixed overhead per pet, measured with tracemalloc; it matters because most pets are small.
BYTES_PER_PET: Final = 2_500
# Size of a correction without the ids of its items, because these strings are shared with the pet.
BYTES_PER_CORRECTION: Final = 1_000


def bytes_to_remember(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the cache limit of one process, if one runs per core: 512 MB, or more on machines with much memory.

    Args:
        cgroup: directory with the container's limits.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # the file is missing or contains "max"
            memory = min(memory, int((cgroup / name).read_text(encoding="ascii")))
    return max(LEAST_BYTES, int(SHARE * memory) // n_cores(cgroup))


class PetMemory:
    """One pet as this process last saw it. Only the thread that opened it may use it.

    Attributes:
        state: the newest state seen; revision 0 if the pet was never loaded.
        n_kept: number of rows of the spanning tree that this process last stored.
        asked: when this process last requested a recluster, and the number of items that the pet had at its last
            recluster before this request.
    """

    def __init__(self, pet: PetId) -> None:
        self.pet = pet
        self.state: PetState = empty_state(pet)
        self.n_kept = 0
        self.asked: tuple[datetime, int] | None = None
        self._tree: SpanningTree | None = None
        self._tree_rows: PetRows | None = None
        self._expected: tuple[SpanningTree, MediaId, FloatVector] | None = None
        self._ledger: tuple[Correction, ...] = ()
        self._ledger_bytes = 0

    def tree(self) -> SpanningTree | None:
        """Return the remembered spanning tree of the first rows of ``state``, or None if there is none."""
        state = self.state
        if self._tree_rows is not PetRows.behind(state):
            self._tree = self._expected = None
        if self._expected is not None:
            tree, media, vector = self._expected
            row = tree.n - 1
            if state.n_media >= tree.n and state.media[row] == media and np.array_equal(state.vectors[row], vector):
                self._tree, self._expected = tree, None
        return self._tree if self._tree is not None and self._tree.n <= state.n_media else None

    def remember_tree(self, tree: SpanningTree) -> None:
        """Remember the tree of the first rows of ``state``."""
        self._tree, self._tree_rows, self._expected = tree, PetRows.behind(self.state), None

    def expect_tree(self, tree: SpanningTree, media: MediaId, vector: FloatVector) -> None:
        """Remember the tree of all rows of ``state`` and one new row, for use if that row is the next one committed."""
        if self._tree_rows is not PetRows.behind(self.state):
            self._tree, self._tree_rows = None, PetRows.behind(self.state)
        self._expected = tree, media, vector

    @property
    def n_bytes(self) -> int:
        """The estimated size in bytes: vectors including their reserve for growth, items, ledger and tree."""
        tree = 0 if self._tree is None else self._tree.n_bytes
        vectors = PetRows.behind(self.state).vector_bytes
        # arrivals, and loads without new corrections, do not change the ledger
        if self._ledger is not self.state.ledger:
            self._ledger = self.state.ledger
            self._ledger_bytes = sum(BYTES_PER_CORRECTION + 8 * len(correction.media()) for correction in self._ledger)
        return BYTES_PER_PET + vectors + self.state.n_media * BYTES_PER_ITEM + self._ledger_bytes + tree


class _Place:
    """A cached ``PetMemory`` with its lock and the number of threads that hold the lock or wait for it."""

    __slots__ = ("lock", "memory", "n_bytes", "n_threads")

    def __init__(self, pet: PetId) -> None:
        # reentrant, because only a reentrant lock knows whether this thread holds it
        self.memory, self.lock, self.n_threads, self.n_bytes = PetMemory(pet), RLock(), 0, 0


class PetCache:
    """A cache of pets with a size limit. The least recently used pets are evicted first."""

    def __init__(self, max_bytes: int) -> None:
        """
        Args:
            max_bytes: size limit of the cache; a pet that alone exceeds it is cached only while it is open.
        """
        self.max_bytes = max_bytes
        self._places: OrderedDict[PetId, _Place] = OrderedDict()
        self._n_bytes = 0
        self._lock = Lock()

    @contextmanager
    def open(self, pet: PetId) -> Iterator[PetMemory]:
        """Yield the cached data of ``pet`` for the exclusive use of this thread until the block ends."""
        place = self._enter(pet)
        try:
            with place.lock:
                yield place.memory
        finally:
            self._leave(place)

    @contextmanager
    def open_many(self, pets: Sequence[PetId]) -> Iterator[list[PetMemory]]:
        """Yield the cached data of several different pets, in this order, for the exclusive use of this thread.

        A thread that has a pet open may not open another, because that could deadlock. This method locks the pets in
        the order of their ids, whatever order it is given.
        """
        places = [self._enter(pet) for pet in pets]
        try:
            for place in sorted(places, key=lambda place: place.memory.pet):
                place.lock.acquire()
            yield [place.memory for place in places]
        finally:
            for place in places:
                with suppress(RuntimeError):  # a time limit or other interrupt came before this lock was taken
                    place.lock.release()
                self._leave(place)

    @property
    def n_bytes(self) -> int:
        return self._n_bytes

    def __len__(self) -> int:
        """Return the number of pets that are remembered or open."""
        return len(self._places)

    def _enter(self, pet: PetId) -> _Place:
        with self._lock:
            place = self._places.get(pet)
            if place is None:
                place = self._places[pet] = _Place(pet)
            self._places.move_to_end(pet)
            place.n_threads += 1
            return place

    def _leave(self, place: _Place) -> None:
        with self._lock:
            place.n_threads -= 1
            now = place.memory.n_bytes
            self._n_bytes += now - place.n_bytes
            place.n_bytes = now
            while self._n_bytes > self.max_bytes and (pet := self._unused_for_longest()) is not None:
                self._n_bytes -= self._places.pop(pet).n_bytes

    def _unused_for_longest(self) -> PetId | None:
        # a pet in use is never evicted, because the next thread would get a different lock for it
        return next((pet for pet, place in self._places.items() if not place.n_threads), None)
