"""What the service needs of a store of pets: load, commit, look back.

``redis_store.RedisPetStore`` is the real one, ``memory_store.MemoryPetStore`` keeps pets in a dictionary for tests and
for use as a library; both pass the same contract suite (tests/sploot_cluster/test_store.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sploot_cluster.models import Change, HistoryEntry, PetId, PetState


class PetStore(Protocol):
    """Pets by id, each with a revision that grows by one with every commit. Safe to use from many threads."""

    def load(self, pet: PetId, *, known: PetState | None = None) -> PetState:
        """The pet at its newest revision; an empty state of revision 0 for a pet that has nothing.

        Args:
            known: an older state of this pet, whose arrays are reused so that only what is new travels.
        """
        ...

    def commit(self, state: PetState, change: Change) -> PetState:
        """Write ``change``, which was decided on ``state``, in one atomic step; the state that follows.

        Raises:
            RevisionConflict: the stored revision is not ``state.revision``; nothing was written.
            PetTooLarge: the pet cannot hold the arrivals; nothing was written.
        """
        ...

    def history(self, pet: PetId, *, limit: int = 100) -> Sequence[HistoryEntry]:
        """The newest revisions that were more than plain arrivals, newest first."""
        ...

    def pets(self) -> Sequence[PetId]:
        """Every pet that holds something, ascending."""
        ...
