"""The protocol of a store of pets.

``redis.RedisPetStore`` is the production store; ``memory.MemoryPetStore`` keeps pets in a dictionary, for tests and for
use as a library. Both pass the same contract suite (tests/sploot_cluster/store/test_store.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol

from sploot_cluster.errors import ClusterError
from sploot_cluster.pet.items import ItemRows
from sploot_cluster.pet.models import Change, HistoryEntry, KeptTree, MediaId, PetId, PetState, PetSummary, PetView
from sploot_cluster.pet.past import Past
from sploot_cluster.pet.previews import Preview
from sploot_cluster.pet.shadow import Shadow
from sploot_cluster.pet.tally import PetTally, Quarantined, Totals
from sploot_cluster.pet.vectors import FloatMatrix, FloatVector, Rows
from sploot_cluster.pet.whole import PetDump

# Duration of a claim: long enough to plan a recluster of 50,000 items, and short enough that the claim of a dead
# process does little harm.
CLAIM_MS: Final = 2_000

# Maximum size of the vectors of a pet: 262,144 items of 512 dimensions. A worker holds all vectors in memory, sometimes
# twice, and a recluster of a larger pet would take half an hour.
MAX_VECTOR_BYTES: Final = 512 * 1024 * 1024

# Approximate number of history entries to keep per pet.
HISTORY_KEPT: Final = 10_000


class Removal(Protocol):
    """The removal of items from one pet, without its vectors in the memory of this process; see ``PetStore.removing``.

    Rows that stay are copied inside the store. If a race is lost, the next attempt copies only what is new.
    """

    def outline(self) -> PetDump:
        """Return all data of the pet at one revision; a store may leave out the vectors, even those of the shadow.

        Raises:
            UnknownPet: the pet has no data.
        """
        ...

    def vectors(self, rows: Rows) -> FloatMatrix:
        """Return the vectors of rows of the newest outline, given in ascending order.

        Raises:
            RevisionConflict: the pet was replaced or deleted since.
        """
        ...

    def replace(self, after: PetDump, *, claimant: str | None = None) -> None:
        """Atomically replace the newest outline with ``after``, an outline without the items to remove.

        Args:
            claimant: as in ``PetStore.replace``.

        Raises:
            RevisionConflict: the pet, its shadow or its quarantine differs from the outline; nothing was written.
        """
        ...


class PetStore(Protocol):
    """A store of pets by id. Every commit increments the revision of a pet. Safe to use from many threads.

    Every method may raise ``StoreUnavailable``. For a pet with inconsistent keys, every method that reads or writes it
    raises ``UnreadablePet`` and writes nothing, except :meth:`delete`.
    """

    @property
    def max_vector_bytes(self) -> int:
        """The size limit of the vectors of one pet. Arrivals beyond it raise ``PetTooLarge``."""
        ...

    def load(self, pet: PetId, *, known: PetState | None = None) -> PetState:
        """Return the pet at its newest revision, or an empty state with revision 0 for a pet without data.

        Args:
            known: an older state of this pet; its arrays are reused, so only newer data is transferred.
        """
        ...

    def commit(self, state: PetState, change: Change, *, claimant: str | None = None) -> PetState:
        """Atomically write a change that was decided on ``state``, and return the new state.

        Args:
            claimant: a unique name for a change that has lost races. If it loses another one, it claims the pet: until
                it commits or releases the pet, for at most ``CLAIM_MS``, commits of other changes raise ``PetClaimed``.
                So a change that takes long to decide eventually succeeds. An existing claim is not replaced.

        Raises:
            RevisionConflict: the pet is not at ``state`` any more; nothing was written.
            PetClaimed: another claimant holds the pet; nothing was written.
            PetTooLarge: the pet cannot hold the arrivals; nothing was written.
            NotConserved: some items would be missing from the counts; nothing was written.
            ValueError: the change does not fit the state; this is a bug in the caller.
        """
        ...

    def load_many(
        self, known: Sequence[PetState], *, unchecked: Collection[PetId] = ()
    ) -> Sequence[PetState | ClusterError]:
        """Return the pets of older states at their newest revisions, in one round trip if the store has round trips.

        Args:
            unchecked: pets that the caller commits next. If such a pet has not changed, a store may leave it to the
                commit to find damage, because checking twice doubles the work of the server.

        Returns:
            for each state, in order, the result of :meth:`load`, or the error that concerns this pet alone.
            The error is ``PetIsCold`` if the vectors would have to be fetched from the cold store first.
        """
        ...

    def commit_many(self, changes: Sequence[tuple[PetState, Change]]) -> Sequence[PetState | ClusterError]:
        """Write changes of different pets, in one round trip if the store has round trips. Each write is atomic.

        Returns:
            for each change, in order, the result of :meth:`commit`, or the error that concerns this pet alone. If this
            method raises ``StoreUnavailable``, any of the changes may have been written.

        Raises:
            ValueError: a change does not fit its state; nothing was written.
        """
        ...

    def release(self, pet: PetId, claimant: str) -> None:
        """End the claim of a claimant, if it holds the pet."""
        ...

    def keep_tree(self, pet: PetId, tree: KeptTree) -> None:
        """Store a spanning tree, unless the pet was recreated since, or a larger tree is stored.

        It saves time later, but nothing depends on it.
        """
        ...

    def kept_tree(self, pet: PetId) -> KeptTree | None:
        """Return the stored spanning tree, if any; ``kept_tree.load`` checks whether it fits the pet."""
        ...

    def keep_preview(self, preview: Preview) -> bool:
        """Store a preview for the duration ``previews.KEPT_FOR``; it replaces an older one.

        Returns:
            False if the pet has changed since the preview was computed; nothing is stored then.
        """
        ...

    def kept_preview(self, pet: PetId) -> Preview | None:
        """Return the stored preview, if it has not expired."""
        ...

    def view(self, pet: PetId) -> PetView:
        """Return the view of the pet at its newest revision."""
        ...

    def items(self, pet: PetId, *, start: int, limit: int) -> ItemRows:
        """Return up to ``limit`` rows from row ``start`` on, without vectors. Costs the same in a pet of any size."""
        ...

    def revision(self, pet: PetId) -> int:
        """Return the newest revision of a pet, or 0 for a pet without data."""
        ...

    def moved_at(self, pet: PetId) -> int:
        """Return the revision that last moved existing items, or 0 if none did."""
        ...

    def history(self, pet: PetId, *, limit: int = 100, before: int | None = None) -> Sequence[HistoryEntry]:
        """Return history entries, newest first; with ``before``, only those of earlier revisions."""
        ...

    def quarantine(self, state: PetState, media: MediaId, why: Quarantined) -> bool:
        """Quarantine an item whose model or dimension is not the pet's, until it arrives with the pet's own.

        Returns:
            False if the pet was recreated since ``state``, has the item, or has ``tally.MAX_QUARANTINED`` items in
            quarantine; in the last case the arrival is counted as overflowed.
        """
        ...

    def tally(self, pet: PetId) -> PetTally:
        """Return the tally of a pet, and its quarantine."""
        ...

    def totals(self, pets: Sequence[PetId] | None = None) -> Totals:
        """Return the sum of the tallies of all pets, or of the given ones, and list the unreadable pets."""
        ...

    def past(self, pet: PetId) -> Past:
        """Return the pet without its vectors, with what is needed to compute its earlier revisions."""
        ...

    def dump(self, pet: PetId) -> PetDump:
        """Return all data of the pet, at one revision.

        Raises:
            UnknownPet: the pet has no data.
        """
        ...

    def outline(self, pet: PetId) -> PetDump:
        """Return all data of the pet at one revision; a store may leave out the vectors, even those of the shadow.

        Raises:
            UnknownPet: the pet has no data.
        """
        ...

    def vector_pages(self, outline: PetDump) -> Iterator[bytes]:
        """Yield the vectors of an outline as float32 little-endian, row by row, in pages of about a megabyte.

        The pet may change in the meantime, but must not be replaced.

        Raises:
            RevisionConflict: the pet was replaced or deleted since.
        """
        ...

    def shadow_pages(self, outline: PetDump) -> Iterator[tuple[Sequence[MediaId], bytes]]:
        """Yield the items of the outline's shadow in the order of their ids, with their vectors, in pages.

        Raises:
            RevisionConflict: since then, the shadow was ended, or the pet was switched to it.
        """
        ...

    def replace(self, before: PetDump | None, after: PetDump, *, claimant: str | None = None) -> PetState:
        """Atomically replace ``before`` with ``after``, and return the new state. It has a new ``born``.

        The stored spanning tree and preview are deleted; they can be computed again.

        Args:
            before: the result of :meth:`dump`; None for a pet without data.
            claimant: as in :meth:`commit`, but the first lost race claims the pet.

        Raises:
            RevisionConflict: the pet, its shadow or its quarantine differs from ``before``; nothing was written.
        """
        ...

    def removing(self, pet: PetId, media: Collection[MediaId]) -> AbstractContextManager[Removal]:
        """Prepare the removal of these items from a pet of any size. Nothing changes until ``Removal.replace``."""
        ...

    def has(self, pet: PetId, media: MediaId) -> bool:
        """Return whether the pet has the item, or has it in quarantine. Costs the same in a pet of any size."""
        ...

    def vector_bytes(self, pet: PetId) -> int:
        """Return the size of the vectors of a pet."""
        ...

    def delete(self, pet: PetId) -> bool:
        """Delete all data of the pet; return False if there was none."""
        ...

    def shadow(self, pet: PetId) -> Shadow | None:
        """Return the open shadow without its vectors, if any."""
        ...

    def begin_shadow(self, state: PetState, shadow: Shadow) -> bool:
        """Open a shadow; return False if the pet was recreated since ``state``, or has an open shadow."""
        ...

    def only_in_shadow(self, pet: PetId) -> Sequence[MediaId]:
        """Return the items that have a vector only in the shadow, ascending. O(n)."""
        ...

    def add_to_shadow(self, state: PetState, media: MediaId, vector: FloatVector, why: Quarantined) -> bool:
        """Add a vector of ``why.model`` to the open shadow. Repeating the call changes nothing.

        If the item has no vector of the pet's own model, it is also quarantined, even if the quarantine is full.

        Returns:
            False if the pet was recreated since ``state``, or no shadow of this model is open.
        """
        ...

    def end_shadow(self, pet: PetId) -> bool:
        """Delete the shadow and its vectors; return False if none was open.

        Items that had a vector only in the shadow stay quarantined.
        """
        ...

    def summaries(self, pets: Sequence[PetId]) -> Sequence[PetSummary]:
        """Return the summary of each of these pets that has data, in order. Does not check whether pets are damaged."""
        ...

    def find_by_name(self, beginning: str, *, limit: int) -> Sequence[PetId]:
        """Return up to ``limit`` pets whose name begins with this text, ignoring case, by ascending id."""
        ...

    def pets_page(self, cursor: int) -> tuple[int, Sequence[PetId]]:
        """Return about a thousand of the pets that have data, and where to continue.

        Args:
            cursor: 0 for the first page, then the cursor that the last call returned.

        Returns:
            The next cursor (0 after the last page), and pets in no particular order. A pet that has data throughout is
            returned at least once, and perhaps twice if the set of pets is resized while it is read.
        """
        ...

    def pets_in_order(self, last: PetId | None, *, rising: bool, limit: int) -> tuple[int, Sequence[PetId]]:
        """Return how many pets have data, and up to ``limit`` of those after ``last``, in the order of their ids.

        Costs the same for any number of pets.

        Args:
            last: None to begin with the first.
            rising: whether the order is ascending.
        """
        ...

    def pets(self) -> Sequence[PetId]:
        """Return all pets that have data, ascending."""
        ...
