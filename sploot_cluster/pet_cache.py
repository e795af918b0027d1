"""What a process remembers of pets between two uses: their last state, and its spanning tree.

It saves travel and never answers for the store: whoever opens a memory loads what is new into it first. Threads of one
process take turns at a pet, because two of them deciding at once would only make one of the commits fail.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final, assert_never

import numpy as np

from sploot_cluster.models import (
    Correction,
    Dismissal,
    Exclusion,
    MediaId,
    Merge,
    PetId,
    PetState,
    Split,
    Undo,
)
from sploot_cluster.rows import PetRows, empty_state
from sploot_cluster.threads import n_cores
from sploot_cluster.vectors import FloatVector

if TYPE_CHECKING:
    from sploot_cluster.spanning_tree import SpanningTree

# A pet of 50,000 media takes 115 MB at 512 dimensions as it is read, and up to 170 as it grows; this much holds 80 to
# 115 pets of 2,000.
LEAST_BYTES: Final = 512 * 1024 * 1024
# Of the memory of all, for all processes together, where they are as many as cores.
SHARE: Final = 1 / 4

# An id of 36 characters as text, in the list and in the dictionary; measured with tracemalloc on Python 3.11.
BYTES_PER_MEDIUM: Final = 250
# What a pet takes besides, measured likewise: there are more pets of a few media than others.
BYTES_PER_PET: Final = 2_500
BYTES_PER_CORRECTION: Final = 1_000


def bytes_to_remember(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """What one of as many processes as there are cores may remember: 512 MB, more where there is much memory.

    Args:
        cgroup: where a container's limits stand.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # absent, or "max"
            memory = min(memory, int((cgroup / name).read_text(encoding="ascii")))
    return max(LEAST_BYTES, int(SHARE * memory) // n_cores(cgroup))


class PetMemory:
    """One pet as this process saw it last. Only the thread that opened it may touch it.

    Attributes:
        state: the newest state seen; revision 0 of a pet that was never loaded.
        n_kept: rows of the spanning tree that this process last had the store keep.
        asked: when a recluster was last asked for, and how many media the recluster before it had seen.
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
        """The spanning tree of the first rows of ``state``, as far as anybody has told; None where nobody has."""
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
        """Remember the tree of all rows of ``state`` and one more, should that become the next."""
        if self._tree_rows is not PetRows.behind(self.state):
            self._tree, self._tree_rows = None, PetRows.behind(self.state)
        self._expected = tree, media, vector

    @property
    def n_bytes(self) -> int:
        """About what it takes: the vectors with the room that they grow into, the media, the ledger, and the tree."""
        tree = 0 if self._tree is None else self._tree.n_bytes
        vectors = PetRows.behind(self.state).vector_bytes
        if self._ledger is not self.state.ledger:  # an arrival, or a load without corrections, leaves it as it is
            self._ledger = self.state.ledger
            self._ledger_bytes = sum(BYTES_PER_CORRECTION + 8 * _n_named(said) for said in self._ledger)
        return BYTES_PER_PET + vectors + self.state.n_media * BYTES_PER_MEDIUM + self._ledger_bytes + tree


def _n_named(said: Correction) -> int:
    """How many media a correction names. Their names are those of the pet's media, so that each is a reference."""
    match said:
        case Merge() | Dismissal():
            return sum(map(len, said.groups.values()))
        case Split():
            return len(said.moved) + len(said.remaining)
        case Exclusion():
            return len(said.media) + len(said.remaining)
        case Undo():
            return 0
        case _:
            assert_never(said)


class _Place:
    """A memory with the lock of its turns, and how many threads hold or await it."""

    __slots__ = ("lock", "memory", "n_bytes", "n_threads")

    def __init__(self, pet: PetId) -> None:
        self.memory, self.lock, self.n_threads, self.n_bytes = PetMemory(pet), Lock(), 0, 0


class PetCache:
    """Memories of pets, up to a number of bytes; those unused for longest are forgotten first."""

    def __init__(self, max_bytes: int) -> None:
        """``max_bytes``: a pet that is larger alone is remembered only while it is open."""
        self.max_bytes = max_bytes
        self._places: OrderedDict[PetId, _Place] = OrderedDict()
        self._n_bytes = 0
        self._lock = Lock()

    @contextmanager
    def open(self, pet: PetId) -> Iterator[PetMemory]:
        """The memory of ``pet``, for this thread alone until the block ends."""
        place = self._enter(pet)
        try:
            with place.lock:
                yield place.memory
        finally:
            self._leave(place)

    @property
    def n_bytes(self) -> int:
        return self._n_bytes

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
        # one that is in use stays, or the next thread would get another lock for the same pet
        return next((pet for pet, place in self._places.items() if not place.n_threads), None)
