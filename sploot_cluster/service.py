"""The use cases: an item arrives, a person corrects, a pet is reclustered, somebody looks.

Each loads what is new, decides by a pure function, and commits on the very state it decided on; if somebody else was
faster it decides again. So workers need no lock between them, and every use case may run twice: media are known by
their id, corrections by the id of their operation.

Reading needs numpy and redis alone; faiss, scipy and hdbscan are imported by the use cases that compute with them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Final, TypeVar, assert_never, cast
from uuid import uuid4

import numpy.typing as npt

from sploot_cluster.decide.assignment import decide, recluster_reason
from sploot_cluster.decide.model_switch import Switch, cluster_of, in_shadow, plan_switch
from sploot_cluster.decide.why import Why, explain, explain_quarantine
from sploot_cluster.errors import (
    DimensionMismatch,
    InvalidInput,
    ModelMismatch,
    PetClaimed,
    PetExists,
    RevisionConflict,
    StalePreview,
    StaleRevision,
    UnknownMedia,
    UnknownPet,
    UnreadablePet,
)
from sploot_cluster.jobs import ReclusterRequests
from sploot_cluster.pet.diff import Diff, Snapshot, compare
from sploot_cluster.pet.models import (
    NOISE,
    Arrival,
    Assigned,
    Change,
    ClusterId,
    Corrected,
    Correction,
    Deleted,
    Dismissal,
    Exclusion,
    HistoryEntry,
    MediaId,
    Merge,
    PetId,
    PetState,
    PetView,
    Reclustered,
    Restored,
    Split,
    Undo,
)
from sploot_cluster.pet.previews import Preview, Previewed
from sploot_cluster.pet.rows import PetRows, empty_state
from sploot_cluster.pet.shadow import Shadow
from sploot_cluster.pet.tally import PetTally, Quarantined, Totals
from sploot_cluster.pet.vectors import FloatVector, as_vector
from sploot_cluster.pet_cache import PetCache, PetMemory, bytes_to_remember
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.store import export_file as dumps
from sploot_cluster.store.port import CLAIM_MS, HISTORY_KEPT, PetStore

if TYPE_CHECKING:
    from sploot_cluster.engine.backends import Fallback
    from sploot_cluster.engine.selection import Density
    from sploot_cluster.engine.spanning_tree import SpanningTree
    from sploot_cluster.pet.whole import PetDump
    from sploot_cluster.pet_density import PetDensity


logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_MEDIA_ID: Final = 256

# An arrival is decided in a millisecond and wins soon; claiming at once would halve what three workers do on one pet.
ARRIVAL_CLAIMS_AFTER: Final = 3

# How long a change waits for others who have the right of way: one of them may have died with it.
LONGEST_WAIT_S: Final = 2 * CLAIM_MS / 1000


class ClusterService:
    """Everything one can do with pets, media and clusters. Safe to use from many threads and many processes.

    Every method may raise ``StoreUnavailable`` and ``UnreadablePet``; those that write may raise ``RevisionConflict``
    after ``settings.commit_attempts`` lost races, and trying again later is right. ``InvalidInput`` says that trying
    again is not. A correction with ``expected_revision`` raises ``StaleRevision`` if media were moved since.
    """

    def __init__(
        self,
        store: PetStore,
        *,
        settings: ClusterSettings | None = None,
        reclusters: ReclusterRequests | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        cache_bytes: int | None = None,
        on_fallback: Callable[[Fallback], None] = lambda _: None,
    ) -> None:
        """
        Args:
            store: where pets are.
            settings: what decisions depend on; the defaults of :class:`ClusterSettings` otherwise.
            reclusters: who is asked when a pet grew or drifted; without one, nobody is.
            clock: the time that corrections are stamped with, aware.
            cache_bytes: how much of pets to remember between two uses; None: as the machine has memory.
            on_fallback: hears of each tree that was wanted on a GPU and was built on the processor.
        """
        self._store = store
        self._settings = settings or ClusterSettings()
        self._reclusters = reclusters
        self._clock = clock
        self._cache = PetCache(bytes_to_remember() if cache_bytes is None else cache_bytes)
        self._on_fallback = on_fallback
        self._random = Random()  # noqa: S311  spreads retries, keeps no secret

    def assign(self, pet: PetId, media: MediaId, *, model: str, vector: npt.ArrayLike) -> Assigned:
        """Put an item that arrived into a cluster, or among the noise.

        An item that is known already stays where it is, whatever comes with it. O(n · dim) for a pet of n media, two
        round trips to Redis.

        Args:
            model: ``name@version`` of the embedding model; all media of a pet have the same.
            vector: (dim,) real numbers, of any length but zero; only its direction counts.

        Raises:
            InvalidInput: a field cannot be used; DimensionMismatch and ModelMismatch for a vector of another space,
                whose item is quarantined.
            PetTooLarge: the pet is full.
        """
        _check_ids(pet, media)
        query = as_vector(vector)
        _check_model(model, len(query), self._settings)

        with self._cache.open(pet) as memory:
            try:
                assigned = self._settle(
                    memory,
                    lambda state: self._arrive(state, memory, media, model, query),
                    claims_after=ARRIVAL_CLAIMS_AFTER,
                )
            except (ModelMismatch, DimensionMismatch) as mismatch:
                why = Quarantined(model, len(query), self._clock())
                return self._put_elsewhere(memory, media, query, why, mismatch)
            return assigned if assigned.is_duplicate else self._ask_for_recluster(memory, assigned)

    def merge(
        self,
        pet: PetId,
        cluster_ids: Sequence[ClusterId],
        *,
        into: ClusterId | None = None,
        operation_id: str,
        by: str,
        expected_revision: int | None = None,
    ) -> Corrected:
        """Make clusters one, for ever: ``into``, or the one that ``plan_merge`` prefers. Old ids lead to it.

        Raises:
            UnknownCluster: one of the ids is neither a cluster nor an alias.
            InvalidInput: fewer than two clusters, or ``into`` is not among them.
        """
        from sploot_cluster.decide import feedback

        at = self._clock()
        return self._correct(
            pet,
            operation_id,
            expected_revision,
            lambda state: feedback.plan_merge(
                state, cluster_ids, into, settings=self._settings, operation_id=operation_id, by=by, at=at
            ),
        )

    def split(
        self,
        pet: PetId,
        cluster: ClusterId,
        media_ids: Sequence[MediaId],
        *,
        operation_id: str,
        by: str,
        expected_revision: int | None = None,
    ) -> Corrected:
        """Make these media of a cluster another one, for ever apart from those that stay.

        Raises:
            UnknownCluster: no such cluster.
            UnknownMedia: media that are not in it.
            InvalidInput: no media, or all of the cluster's.
        """
        from sploot_cluster.decide import feedback

        at = self._clock()
        return self._correct(
            pet,
            operation_id,
            expected_revision,
            lambda state: feedback.plan_split(
                state, cluster, media_ids, settings=self._settings, operation_id=operation_id, by=by, at=at
            ),
        )

    def exclude(
        self,
        pet: PetId,
        cluster: ClusterId,
        media_ids: Sequence[MediaId],
        *,
        operation_id: str,
        by: str,
        expected_revision: int | None = None,
    ) -> Corrected:
        """Take media out of a cluster: "not this one". Each may go elsewhere, and never back to those that remain.

        Raises:
            UnknownCluster: no such cluster.
            UnknownMedia: media that are not in it.
            InvalidInput: no media, or all of the cluster's.
        """
        from sploot_cluster.decide import feedback

        at = self._clock()
        return self._correct(
            pet,
            operation_id,
            expected_revision,
            lambda state: feedback.plan_exclude(
                state, cluster, media_ids, settings=self._settings, operation_id=operation_id, by=by, at=at
            ),
        )

    def dismiss(
        self,
        pet: PetId,
        media_ids: Sequence[MediaId],
        *,
        operation_id: str,
        by: str,
        expected_revision: int | None = None,
    ) -> Corrected:
        """Have media in no cluster for ever: neither arrivals nor reclusters assign or absorb them.

        Raises:
            UnknownMedia: media that the pet does not have.
            InvalidInput: no media, or all of them are dismissed already.
        """
        from sploot_cluster.decide import feedback

        at = self._clock()
        return self._correct(
            pet,
            operation_id,
            expected_revision,
            lambda state: feedback.plan_dismiss(
                state, media_ids, settings=self._settings, operation_id=operation_id, by=by, at=at
            ),
        )

    def undo(
        self, pet: PetId, revision: int, *, operation_id: str, by: str, expected_revision: int | None = None
    ) -> Corrected:
        """Take back the correction that made ``revision``; an undo can be undone too.

        Raises:
            UnknownRevision: it is not a correction, or taken back already.
        """
        from sploot_cluster.decide import feedback

        at = self._clock()
        return self._correct(
            pet,
            operation_id,
            expected_revision,
            lambda state: feedback.plan_undo(
                state, revision, settings=self._settings, operation_id=operation_id, by=by, at=at
            ),
        )

    def recluster(self, pet: PetId, *, by: str = "machine") -> Reclustered:
        """Find the clusters anew from the density of all vectors; corrections and ids are kept.

        Density is computed once, over the media that are there when it starts; what follows from it is decided on the
        newest state, so that media and corrections may come in the meantime. A pet without media stays as it is.
        """
        seen, density = self._density(pet)
        if not seen.n_media:
            return _nothing_to_recluster(seen)
        with self._cache.open(pet) as memory:
            return self._settle(memory, lambda state: self._regroup(state, seen, density, by))

    def preview(self, pet: PetId) -> Previewed:
        """Compute what a recluster would do, and keep it to be applied; nothing changes.

        Raises:
            UnknownPet: it has no media.
        """
        seen, density = self._density(pet)
        if not seen.n_media:
            raise UnknownPet(pet=pet)
        for _ in range(self._settings.commit_attempts):
            with self._cache.open(pet) as memory:
                state = memory.state = self._store.load(pet, known=memory.state)
            change, result = self._regroup(state, seen, density, "machine")
            preview = Preview.of(state, change, result, at=self._clock())
            if self._store.keep_preview(preview):
                return Previewed(preview, preview.diff(state))
        raise RevisionConflict(pet=pet, expected=state.revision, current=self._store.revision(pet))

    def previewed(self, pet: PetId, token: str | None = None) -> Previewed:
        """The preview that waits for this pet, and what it would do.

        Args:
            token: of the preview that is meant; None takes the one that waits.

        Raises:
            StalePreview: it is gone, or the pet has moved since.
        """
        preview = self._waiting(pet, token)
        state = self._store.past(pet).state
        if state.version != preview.state_version:
            raise _moved_since(preview, state.revision)
        return Previewed(preview, preview.diff(state))

    def apply(self, pet: PetId, token: str, *, by: str) -> Reclustered:
        """Make of the pet exactly what the preview showed. Applying it twice is applying it once.

        Raises:
            StalePreview: it is gone, or the pet has moved since; nothing was written.
        """
        done = next((entry for entry in self._store.history(pet) if entry.summary.get("applied") == token), None)
        preview = self._waiting(pet, token)
        if done:
            return preview.result
        change = replace(preview.change, by=by, summary={**preview.change.summary, "applied": token})
        with self._cache.open(pet) as memory:
            state = memory.state = self._store.load(pet, known=memory.state)
            if state.version != preview.state_version:
                raise _moved_since(preview, state.revision)
            try:
                memory.state = self._store.commit(state, change)
            except RevisionConflict as moved:
                raise _moved_since(preview, moved.current) from moved
        return preview.result

    def _waiting(self, pet: PetId, token: str | None) -> Preview:
        preview = self._store.kept_preview(pet)
        if preview is None or token not in (None, preview.token):
            problem = "it is too old, or another one was made since"
            raise StalePreview(pet=pet, token=token or "", problem=problem)
        return preview

    def _regroup(self, state: PetState, seen: PetState, density: Density, by: str) -> tuple[Change, Reclustered]:
        """What a recluster makes of ``state``; ``density`` is of its first media, those of ``seen``."""
        from sploot_cluster.decide.recluster import plan_recluster

        if state.born != seen.born or state.media[: seen.n_media] != tuple(seen.media):
            # media deleted, another model, begun anew, or a failover lost media: the density is of others
            raise RevisionConflict(pet=state.pet, expected=seen.revision, current=state.revision)
        return plan_recluster(state, density, settings=self._settings, by=by)

    def restore(
        self, pet: PetId, revision: int, *, operation_id: str, by: str, expected_revision: int | None = None
    ) -> Restored:
        """Make the pet what it was at a revision, as a new one; see ``restoring`` for what corrections have to say.

        Raises:
            UnknownRevision: it has not been, or is not kept any more.
        """
        from sploot_cluster.decide.restoring import plan_restore

        _check_operation(operation_id)

        def put_back(state: PetState) -> tuple[Change | None, Restored]:
            history = self._store.history(pet, limit=HISTORY_KEPT)
            done = next((entry for entry in history if entry.summary.get("operation_id") == operation_id), None)
            if done:
                return None, _restored_before(done)
            _check_page(state, expected_revision)
            past = self._store.past(pet)
            if past.state.version != state.version:
                raise RevisionConflict(pet=pet, expected=state.revision, current=past.state.revision)
            return plan_restore(state, past, revision, settings=self._settings, operation_id=operation_id, by=by)

        with self._cache.open(pet) as memory:
            return self._settle(memory, put_back)

    def compare(self, pet: PetId, from_revision: int, to_revision: int) -> Diff:
        """What differs between two revisions.

        Raises:
            UnknownRevision: one has not been, or is not kept any more.
        """
        past = self._store.past(pet)
        return compare(past.at(from_revision), past.at(to_revision))

    def at(self, pet: PetId, revision: int) -> Snapshot:
        """Where every item was at a revision.

        Raises:
            UnknownRevision: it has not been, or is not kept any more.
        """
        return self._store.past(pet).at(revision)

    def why(self, pet: PetId, media: MediaId) -> Why:
        """Why an item is where it is, the quarantine included. Loads the pet's vectors; O(n · dim).

        Raises:
            UnknownMedia: it never came, or was deleted.
        """
        with self._cache.open(pet) as memory:
            state = memory.state = self._store.load(pet, known=memory.state)
        if media not in state.rows and (quarantined := self._store.tally(pet).quarantine.get(media)):
            return explain_quarantine(state, media, quarantined, self._store.shadow(pet))
        return explain(state, media)

    def clusters(self, pet: PetId) -> PetView:
        """The pet as it is now; an empty view of revision 0 for a pet that has nothing."""
        return self._store.view(pet)

    def revision(self, pet: PetId) -> int:
        """The pet's newest revision; 0 for a pet that has nothing."""
        return self._store.revision(pet)

    def moved_at(self, pet: PetId) -> int:
        """Return the revision at which a person, a recluster or a deletion last moved media that were there.

        0 if none did. A correction with an ``expected_revision`` before it raises ``StaleRevision``.
        """
        return self._store.moved_at(pet)

    def history(self, pet: PetId, *, limit: int = 100) -> Sequence[HistoryEntry]:
        """The newest reclusters and corrections, newest first."""
        return self._store.history(pet, limit=limit)

    def delete_media(self, pet: PetId, media_ids: Collection[MediaId], *, by: str) -> Deleted:
        """Have media gone, as if they had never come; nothing of them stays in the pet. It is written anew as a whole.

        Raises:
            UnknownMedia: none of them is there.
            RevisionConflict: the pet changed all the while.
        """
        from sploot_cluster.decide.deletion import without

        claimant = uuid4().hex
        with ExitStack() as claims:
            for attempt in count(1):
                before = self._store.dump(pet)
                there = [item for item in media_ids if item in before.state.rows or item in before.quarantine]
                if not there:
                    where = "any cluster, the noise or the quarantine"
                    raise UnknownMedia(pet=pet, media=tuple(media_ids), where=where)
                after = without(before, there, by=by, at=self._clock())
                try:
                    with self._cache.open(pet) as memory:
                        tree = self._pruned(memory, before.state, there)
                        memory.state = self._store.replace(before, after, claimant=claimant)
                        memory.n_kept = 0
                        if tree is not None:
                            memory.remember_tree(tree)
                            self._densities.keep(memory, memory.state, tree)
                except RevisionConflict:
                    if attempt == 1:
                        claims.callback(self._store.release, pet, claimant)
                    if attempt >= self._settings.commit_attempts:
                        raise
                else:
                    claims.pop_all()  # the claim is gone with all that was there
                    pairs = zip(before.state.ledger, after.state.ledger, strict=True)
                    return Deleted(len(there), sum(old != new for old, new in pairs), after.state.revision)
        raise AssertionError("count() does not end")

    def has_item(self, pet: PetId, media: MediaId) -> bool:
        """Whether the pet has the item, in a cluster or not, or quarantined."""
        return media in self._store.past(pet).state.rows or media in self._store.tally(pet).quarantine

    def delete_pet(self, pet: PetId) -> Deleted:
        """Delete the whole pet, with its corrections and history; also one that cannot be read, and is counted as 0.

        Raises:
            UnknownPet: it holds nothing.
        """
        try:
            deleted = Deleted(
                self._store.tally(pet).tally.ingested, len(self._store.past(pet).state.ledger), revision=0
            )
        except UnreadablePet:
            deleted = Deleted(0, 0, revision=0)
        with self._cache.open(pet) as memory:
            if not self._store.delete(pet):
                raise UnknownPet(pet=pet)
            memory.state = empty_state(pet)
        return deleted

    def export(self, pet: PetId) -> bytes:
        """The pet as one file, with everything that is kept of it; see ``store.export_file``.

        Raises:
            UnknownPet: it holds nothing.
        """
        return dumps.dump(self._store.dump(pet))

    def import_pet(self, file: bytes, *, pet: PetId | None = None) -> PetView:
        """Put the pet of a file into the store, as it was exported; under another id, if one is given.

        Raises:
            UnreadableExport: no pet can be made of the file.
            PetExists: the pet holds something already.
        """
        dump = dumps.load(file, pet=pet)
        try:
            self._store.replace(None, dump)
        except RevisionConflict as there:
            raise PetExists(pet=there.pet, revision=there.current) from there
        return self._store.view(dump.state.pet)

    def begin_model(self, pet: PetId, model: str, dim: int, *, by: str) -> Shadow:
        """Open a space for another model beside the pet's own: what comes in it from now on is kept there.

        Raises:
            UnknownPet: the pet has no media.
            InvalidInput: it is the pet's own model, or another one runs beside it already.
        """
        _check_model(model, dim, self._settings)
        state = self._store.past(pet).state
        if not state.n_media:
            raise UnknownPet(pet=pet)
        if model == state.model:
            raise InvalidInput("model", f"pet {pet} is embedded with {model!r}", "send the name of another model")
        shadow = Shadow(model, dim, self._clock(), by, {}, 0)
        if not self._store.begin_shadow(state, shadow):
            there = self._store.shadow(pet)
            told = f"{there.model!r} runs" if there else "another pet is"
            raise InvalidInput("model", f"{told} beside pet {pet} already", "switch to it or end it first")
        return shadow

    def shadow(self, pet: PetId) -> Shadow | None:
        """The space that is open beside the pet's own, without its vectors."""
        return self._store.shadow(pet)

    def only_in_shadow(self, pet: PetId) -> Sequence[MediaId]:
        """The items that only the space beside the pet's own has a vector of; they are quarantined. O(n)."""
        return self._store.only_in_shadow(pet)

    def end_model(self, pet: PetId) -> bool:
        """Close the space beside the pet's own, with its vectors; False if none was open.

        Items that only it had stay quarantined, until they are ingested again in the pet's model.
        """
        return self._store.end_shadow(pet)

    def preview_switch(self, pet: PetId) -> Switch:
        """What the pet would be in the space beside its own: every correction kept, under the old ids.

        Raises:
            UnknownPet: it holds nothing.
            InvalidInput: no space is open, or items have no vector in it and it is not the way back.
        """
        return self._plan_switch(self._store.dump(pet), by="machine")

    def switch_model(self, pet: PetId, token: str, *, by: str) -> Reclustered:
        """Make the pet what the preview showed; its old space is the one beside it then.

        Raises:
            StalePreview: the pet or its shadow changed since; nothing was written.
        """
        before = self._store.dump(pet)
        switch = self._plan_switch(before, by=by)
        if switch.token != token:
            problem = "the pet, its shadow or what is computed of them changed since"
            raise StalePreview(pet=pet, token=token, problem=problem)
        try:
            with self._cache.open(pet) as memory:
                memory.state = self._store.replace(before, switch.dump)
        except RevisionConflict as moved:
            problem = "the pet or its shadow changed since"
            raise StalePreview(pet=pet, token=token, problem=problem) from moved
        return switch.result

    def _plan_switch(self, pet: PetDump, *, by: str) -> Switch:
        from sploot_cluster.density import cluster_densely

        density = cluster_densely(in_shadow(pet).vectors, settings=self._settings)
        return plan_switch(pet, density, settings=self._settings, by=by, at=self._clock())

    def tally(self, pet: PetId) -> PetTally:
        """Where the pet's media are counted, and what is quarantined."""
        return self._store.tally(pet)

    def totals(self, pets: Sequence[PetId] | None = None) -> Totals:
        """Where the media of all pets, or of some, are counted; a round trip per 500 pets."""
        return self._store.totals(pets)

    def pets(self) -> Sequence[PetId]:
        """Every pet that has media, ascending."""
        return self._store.pets()

    @cached_property
    def _densities(self) -> PetDensity:
        # scipy takes a while to import: whoever only reads goes without
        from sploot_cluster.pet_density import PetDensity

        return PetDensity(self._store, self._settings, on_fallback=self._on_fallback)

    def _pruned(self, memory: PetMemory, state: PetState, gone: Collection[MediaId]) -> SpanningTree | None:
        """The pet's tree without media that are about to go; None where a recluster has to build it anew."""
        try:
            densities = self._densities
        except ImportError:  # a server without the engine: it deletes, and a worker builds
            return None
        return densities.pruned(memory, state, gone)

    def _density(self, pet: PetId) -> tuple[PetState, Density]:
        """The pet as it is when this begins, and its density. Others may use the pet while it is computed."""
        with self._cache.open(pet) as memory:
            seen = memory.state = self._store.load(pet, known=memory.state)
            remembered = self._densities.recall(memory, seen.n_media)
        tree = self._densities.tree_of(seen, seen.vectors, remembered)
        density = self._densities.density_of(tree, seen.media, seen.vectors)
        if tree is not None and tree is not remembered:
            with self._cache.open(pet) as memory:
                if PetRows.behind(memory.state) is PetRows.behind(seen):
                    memory.remember_tree(tree)
                self._densities.keep(memory, seen, tree)
        return seen, density

    def _put_elsewhere(
        self,
        memory: PetMemory,
        media: MediaId,
        vector: FloatVector,
        why: Quarantined,
        mismatch: ModelMismatch | DimensionMismatch,
    ) -> Assigned:
        """Put an arrival in another space than the pet's beside it, if a space is open for its model.

        An item that the pet has already stays where it is. Any other is quarantined.

        Raises:
            ModelMismatch, DimensionMismatch: ``mismatch``, or that with the open space of its model.
            RevisionConflict: the pet is another one by now, or the space was ended or made the pet's own.
        """
        state, shadow = memory.state, self._store.shadow(memory.pet)
        is_known, is_for_shadow = media in state.rows, shadow is not None and shadow.model == why.model
        if shadow is not None and is_for_shadow and shadow.dim != why.dim:
            mismatch = DimensionMismatch(pet=state.pet, expected=shadow.dim, got=why.dim)
        elif is_for_shadow:
            if not self._store.add_to_shadow(state, media, vector, why):
                raise RevisionConflict(pet=state.pet, expected=state.revision, current=self._store.revision(state.pet))
            return Assigned(media, cluster_of(state, media), None, "faiss", is_known, state.revision)
        elif is_known:
            return Assigned(media, cluster_of(state, media), None, "faiss", is_known, state.revision)
        if not self._store.quarantine(state, media, why):
            memory.state = self._store.load(state.pet, known=state)
            if memory.state.born != state.born:
                # another pet by now, perhaps of this very model: trying again shows it
                raise RevisionConflict(pet=state.pet, expected=state.revision, current=memory.state.revision)
            if media not in memory.state.rows:
                logger.warning("quarantine is full", extra={"pet_id": state.pet, "media_id": media})
        raise mismatch

    def _arrive(
        self, state: PetState, memory: PetMemory, media: MediaId, model: str, vector: FloatVector
    ) -> tuple[Change | None, Assigned]:
        """Where an arrival belongs in ``state``, which is the one that ``memory`` holds."""
        if media in state.rows and model == state.model:
            return None, _where(state, media)
        _check_space(state, model, dim=len(vector))
        if state.n_media < self._settings.exact_until:
            return self._arrive_exactly(state, memory, media, model, vector)
        # faiss is loaded by whoever assigns, not by whoever only reads
        from sploot_cluster.engine.neighbours import nearest

        neighbours = nearest(state.vectors, vector[None, :], self._settings.n_neighbours)
        decision = decide(neighbours, state.labels, state.origins, state.clusters, self._settings)
        change = Change(
            "arrival",
            next_cluster=state.next_cluster,
            n_at_recluster=state.n_at_recluster,
            noise_arrivals=state.noise_arrivals + (decision.cluster == NOISE),
            model=None if state.model else model,
            dim=None if state.dim else len(vector),
            arrivals=(Arrival(media, vector, decision.cluster, decision.origin),),
        )
        assigned = Assigned(
            media,
            decision.cluster,
            decision.similarity,
            backend="faiss",
            is_duplicate=False,
            revision=state.revision + 1,
        )
        return change, assigned

    def _arrive_exactly(
        self, state: PetState, memory: PetMemory, media: MediaId, model: str, vector: FloatVector
    ) -> tuple[Change, Assigned]:
        """As :meth:`_arrive`, deciding about everybody else too."""
        from sploot_cluster.decide.exact_arrival import plan_exact_arrival

        vectors = PetRows.behind(state).vectors_and(state.n_media, vector)
        remembered = self._densities.recall(memory, len(vectors))
        if remembered is not None:
            self._densities.keep(memory, state, remembered)
        tree = self._densities.tree_of(state, vectors, remembered)
        if tree is not None:
            memory.expect_tree(tree, media, vector)
        density = self._densities.density_of(tree, (*state.media, media), vectors)
        return plan_exact_arrival(state, media, vectors, density, model=model, settings=self._settings)

    def _ask_for_recluster(self, memory: PetMemory, assigned: Assigned) -> Assigned:
        """Ask for one if the pet grew or drifted; ``assigned`` with the reason."""
        state, now = memory.state, self._clock()
        reason = recluster_reason(state, self._settings)
        if reason is None:
            return assigned
        delay_ms = self._settings.recluster_delay_ms
        # one request waits anyway: asking at every arrival of a full album would only cost a round trip each
        is_asked = memory.asked is not None and (
            memory.asked[1] == state.n_at_recluster and now - memory.asked[0] < timedelta(milliseconds=delay_ms)
        )
        if self._reclusters is not None and not is_asked:
            try:
                self._reclusters.request_recluster(memory.pet, reason=reason, delay_ms=delay_ms)
            except Exception:
                # whatever a queue may raise: the item is in its place, and a later arrival asks again
                logger.warning("recluster could not be requested", extra={"pet_id": memory.pet}, exc_info=True)
            else:
                memory.asked = now, state.n_at_recluster
        return replace(assigned, recluster_reason=reason)

    def _correct(
        self,
        pet: PetId,
        operation_id: str,
        expected_revision: int | None,
        plan: Callable[[PetState], tuple[Change, Corrected]],
    ) -> Corrected:
        """Commit what ``plan`` says, unless the operation is in the ledger already."""
        from sploot_cluster.decide import feedback

        _check_operation(operation_id)

        def correct(state: PetState) -> tuple[Change | None, Corrected]:
            done = feedback.find_operation(state.ledger, operation_id)
            if done:
                return None, _done_before(state, done)
            _check_page(state, expected_revision)
            return plan(state)

        with self._cache.open(pet) as memory:
            return self._settle(memory, correct)

    def _settle(
        self, memory: PetMemory, decide_on: Callable[[PetState], tuple[Change | None, T]], *, claims_after: int = 0
    ) -> T:
        """Decide on the newest state until the commit finds exactly that state; what was answered then.

        Args:
            decide_on: the change to commit, None for none, and the answer. Called once per attempt.
            claims_after: lost races before it asks for the right of way at the next one it loses.
        """
        claimant = uuid4().hex
        gives_up_at = time.monotonic() + LONGEST_WAIT_S
        n_lost = 0
        with ExitStack() as claims:
            for attempt in count(1):
                state = memory.state = self._store.load(memory.pet, known=memory.state)
                change, answer = decide_on(state)
                if change is None:
                    return answer
                try:
                    memory.state = self._store.commit(
                        state, change, claimant=claimant if n_lost >= claims_after else None
                    )
                except PetClaimed:
                    if time.monotonic() > gives_up_at:
                        raise
                except RevisionConflict:
                    n_lost += 1
                    if n_lost == claims_after + 1:
                        claims.callback(self._store.release, memory.pet, claimant)
                    if n_lost >= self._settings.commit_attempts:
                        raise
                    if n_lost > claims_after:
                        continue  # nobody can be faster now, unless he claimed first
                else:
                    claims.pop_all()  # the commit ended the claim
                    return answer
                logger.debug("commit waits for another", extra={"pet_id": memory.pet, "attempt": attempt})
                # random, so that those who lost do not meet again
                time.sleep(self._random.uniform(0.5, 1.0) * min(0.001 * 1.5**attempt, 0.02))
        raise AssertionError("count() does not end")


def _moved_since(preview: Preview, now: int) -> StalePreview:
    problem = f"the pet moved from revision {preview.revision} to {now}"
    return StalePreview(pet=preview.pet, token=preview.token, problem=problem)


def _check_operation(operation_id: str) -> None:
    if not operation_id:
        raise InvalidInput("operation_id", "is empty", "send an id that is the same when the operation is repeated")


def _check_page(state: PetState, expected_revision: int | None) -> None:
    """Whether what a person looked at is still so. Arrivals make no page stale: they move no item that was there."""
    if expected_revision is not None and state.relabelled_at > expected_revision:
        raise StaleRevision(pet=state.pet, expected=expected_revision, moved_at=state.relabelled_at)


def _check_ids(pet: PetId, media: MediaId) -> None:
    if pet < 1:
        raise InvalidInput("pet_id", f"{pet} is not a pet", "send a number from 1")
    if not 1 <= len(media) <= MAX_MEDIA_ID:
        raise InvalidInput("media_id", f"has {len(media)} characters", f"send 1 to {MAX_MEDIA_ID}")
    if any("\ud800" <= character <= "\udfff" for character in media):
        raise InvalidInput("media_id", "holds half a character (a lone surrogate)", "send text that is UTF-8")


def _check_model(model: str, dim: int, settings: ClusterSettings) -> None:
    if not model:
        raise InvalidInput("model", "is empty", "send the name@version of the embedding model")
    if not settings.models:
        return
    if model not in settings.models:
        raise InvalidInput("model", f"{model!r} is not known", f"send one of: {', '.join(settings.models)}")
    if settings.models[model] != dim:
        raise InvalidInput(
            "dim", f"{model!r} makes vectors of {settings.models[model]} values, got {dim}", "send those"
        )


def _check_space(state: PetState, model: str, *, dim: int) -> None:
    if state.model is not None and state.model != model:
        raise ModelMismatch(pet=state.pet, expected=state.model, got=model)
    if state.dim is not None and state.dim != dim:
        raise DimensionMismatch(pet=state.pet, expected=state.dim, got=dim)


def _where(state: PetState, media: MediaId) -> Assigned:
    """The answer to an item that came before."""
    cluster = ClusterId(int(state.labels[state.rows[media]]))
    return Assigned(media, cluster, None, backend="faiss", is_duplicate=True, revision=state.revision)


def _done_before(state: PetState, done: Correction) -> Corrected:
    """The answer to an operation that came before; its cluster is the one that the id leads to now."""
    match done:
        case Merge(into=cluster) | Split(created=cluster):
            now = state.aliases.get(cluster, cluster)
            return Corrected(done.revision, now, n_moved=0, overridden=(), is_duplicate=True)
        case Exclusion() | Dismissal() | Undo():
            return Corrected(done.revision, None, n_moved=0, overridden=(), is_duplicate=True)
        case _:
            assert_never(done)


def _restored_before(done: HistoryEntry) -> Restored:
    """The answer to a restoration that came before."""
    return Restored(
        revision=done.revision,
        restored=cast("int", done.summary["restored"]),
        n_moved=0,
        n_held=0,
        n_later=0,
        constraints_kept=0,
        constraints=0,
        kept="",
        overridden=(),
        is_duplicate=True,
    )


def _nothing_to_recluster(state: PetState) -> Reclustered:
    return Reclustered(
        revision=state.revision,
        backend="hdbscan_cpu",
        n_media=0,
        n_clusters=0,
        n_noise=0,
        n_dismissed=0,
        n_absorbed=0,
        n_moved=0,
        n_kept_ids=0,
        n_new_ids=0,
        n_retired_ids=0,
        constraints_kept=0,
        constraints=0,
        kept="constraints kept 0 of 0",
        overridden=(),
    )
