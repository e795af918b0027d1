"""What the service needs of a store of pets: load, commit, look back.

``redis_store.RedisPetStore`` is the real one, ``memory_store.MemoryPetStore`` keeps pets in a dictionary for tests and
for use as a library; both pass the same contract suite (tests/sploot_cluster/store/test_store.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from sploot_cluster.pet.models import Change, HistoryEntry, KeptTree, MediaId, PetId, PetState, PetView
from sploot_cluster.pet.past import Past
from sploot_cluster.pet.previews import Preview
from sploot_cluster.pet.shadow import Shadow
from sploot_cluster.pet.tally import PetTally, Quarantined, Totals
from sploot_cluster.pet.vectors import FloatVector
from sploot_cluster.pet.whole import PetDump

# Long enough to plan a recluster of 50,000 media; short enough that a claimant who died is hardly noticed.
CLAIM_MS: Final = 2_000

# Entries of a pet's history that are kept, or a few more.
HISTORY_KEPT: Final = 10_000


class PetStore(Protocol):
    """Pets by id, each with a revision that grows by one with every commit. Safe to use from many threads.

    What Redis cannot do now raises ``StoreUnavailable``. A pet whose keys do not fit together raises ``UnreadablePet``
    at every call that reads or writes it, and nothing of it is written; only :meth:`delete` takes it.
    """

    def load(self, pet: PetId, *, known: PetState | None = None) -> PetState:
        """The pet at its newest revision; an empty state of revision 0 for a pet that has nothing.

        Args:
            known: an older state of this pet, whose arrays are reused so that only what is new travels.
        """
        ...

    def commit(self, state: PetState, change: Change, *, claimant: str | None = None) -> PetState:
        """Write ``change``, which was decided on ``state``, in one atomic step; the state that follows.

        Args:
            claimant: a name for whoever lost the race before. If it loses again, it gets the right of way: for
                ``CLAIM_MS``, or until it commits or releases, everybody else's commit raises ``PetClaimed``. So a
                change that takes long to decide is not overtaken for ever. The first claim holds.

        Raises:
            RevisionConflict: the pet is not at ``state`` any more; nothing was written.
            PetClaimed: another claimant has the right of way; nothing was written.
            PetTooLarge: the pet cannot hold the arrivals; nothing was written.
            NotConserved: media would not be accounted for; nothing was written.
            ValueError: the change does not fit the state: a mistake of whoever decided it.
        """
        ...

    def release(self, pet: PetId, claimant: str) -> None:
        """End the right of way of a claimant who changes nothing after all; nothing happens if it has none."""
        ...

    def keep_tree(self, pet: PetId, tree: KeptTree) -> None:
        """Keep a spanning tree for whoever needs one next. Nothing happens if the pet is another one by now, or if a
        larger tree is kept: it is a matter of speed alone."""
        ...

    def kept_tree(self, pet: PetId) -> KeptTree | None:
        """The spanning tree that was kept last, if any; whether it fits is for ``kept_tree.load`` to say."""
        ...

    def keep_preview(self, preview: Preview) -> bool:
        """Keep a preview beside its pet for ``previews.KEPT_FOR``, in place of an older one.

        Returns:
            False if the pet has moved on; nothing is kept then.
        """
        ...

    def kept_preview(self, pet: PetId) -> Preview | None:
        """The preview that was kept last, if it is still there."""
        ...

    def view(self, pet: PetId) -> PetView:
        """The pet at its newest revision for readers, without its vectors."""
        ...

    def revision(self, pet: PetId) -> int:
        """The pet's newest revision; 0 for a pet that has nothing."""
        ...

    def moved_at(self, pet: PetId) -> int:
        """Return the revision that last moved media that were there; 0 if none did. Arrivals move nothing."""
        ...

    def history(self, pet: PetId, *, limit: int = 100) -> Sequence[HistoryEntry]:
        """The newest revisions that were more than plain arrivals, newest first."""
        ...

    def quarantine(self, state: PetState, media: MediaId, why: Quarantined) -> bool:
        """Take down an item whose vector is of another space than the pet's, until one of its own comes.

        Returns:
            False if the pet is another one by now, has the item, or has taken down ``tally.MAX_QUARANTINED``; the last
            is counted as overflowed.
        """
        ...

    def tally(self, pet: PetId) -> PetTally:
        """Where the pet's media are counted."""
        ...

    def totals(self, pets: Sequence[PetId] | None = None) -> Totals:
        """The tally of all pets, or of some; a round trip per 500 of them. Damaged pets are part of the answer."""
        ...

    def past(self, pet: PetId) -> Past:
        """The pet without its vectors, and what it was at every revision that is kept."""
        ...

    def dump(self, pet: PetId) -> PetDump:
        """Everything that is kept of the pet, at one revision.

        Raises:
            UnknownPet: it holds nothing.
        """
        ...

    def replace(self, before: PetDump | None, after: PetDump, *, claimant: str | None = None) -> PetState:
        """Put ``after`` in the place of ``before``, in one atomic step; the state of it, under another ``born``.

        What is kept beside a pet and can be computed again, its tree and a preview, is gone afterwards.

        Args:
            before: as :meth:`dump` told it; None for a pet that holds nothing.
            claimant: as of :meth:`commit`; the first lost race makes the claim.

        Raises:
            RevisionConflict: the pet, its shadow or its quarantine is not as ``before`` any more; nothing was written.
        """
        ...

    def delete(self, pet: PetId) -> bool:
        """Remove everything of the pet; False if there was nothing."""
        ...

    def shadow(self, pet: PetId) -> Shadow | None:
        """The space that is open beside the pet's own, without its vectors."""
        ...

    def begin_shadow(self, state: PetState, shadow: Shadow) -> bool:
        """Open a space beside the pet's own; False if the pet is another one by now, or has one open."""
        ...

    def only_in_shadow(self, pet: PetId) -> Sequence[MediaId]:
        """The items that have a vector in the space beside the pet's own and none in its own, ascending. O(n)."""
        ...

    def add_to_shadow(self, state: PetState, media: MediaId, vector: FloatVector, why: Quarantined) -> bool:
        """Put a vector of ``why.model`` into the space that is open for it. Again changes nothing.

        An item without a vector in the pet's own space is quarantined as well, however many are.

        Returns:
            False if the pet is another one by now, or no space is open for this model.
        """
        ...

    def end_shadow(self, pet: PetId) -> bool:
        """Close the space beside the pet's own, with its vectors; False if none was open.

        Items that only it had stay quarantined.
        """
        ...

    def pets(self) -> Sequence[PetId]:
        """Every pet that holds something, ascending."""
        ...
