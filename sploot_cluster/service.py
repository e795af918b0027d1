"""The use cases: arrivals, corrections, reclusters, and reads of pets.

Each use case loads the newest state, decides with a pure function, and commits on exactly that state; if another commit
came first, it decides again. So workers need no locks, and every use case may run twice: items are recognised by their
ids, and corrections by the ids of their operations.

Reads need only numpy and redis; faiss and the engine are imported by the use cases that compute with them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NotRequired, TypedDict, TypeVar, Unpack
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from sploot_cluster.decide.assignment import recluster_reason
from sploot_cluster.decide.corrections.base import Operation, Request, Signed
from sploot_cluster.decide.corrections.cover import CoverCluster
from sploot_cluster.decide.corrections.dismiss import DismissMedia
from sploot_cluster.decide.corrections.exclude import ExcludeMedia
from sploot_cluster.decide.corrections.fit import check_fit, check_page
from sploot_cluster.decide.corrections.hide import HideClusters, ShowClusters
from sploot_cluster.decide.corrections.keep_apart import KeepApart
from sploot_cluster.decide.corrections.lock import LockClusters, UnlockClusters
from sploot_cluster.decide.corrections.lookup import living
from sploot_cluster.decide.corrections.merge import MergeClusters
from sploot_cluster.decide.corrections.name import NameCluster
from sploot_cluster.decide.corrections.name_pet import NamePet
from sploot_cluster.decide.corrections.place import PlaceMedia
from sploot_cluster.decide.corrections.restore import RestoreRevision
from sploot_cluster.decide.corrections.split import SplitCluster
from sploot_cluster.decide.corrections.undo import UndoFeedback
from sploot_cluster.decide.model_switch import Switch, cluster_of, in_shadow, plan_switch
from sploot_cluster.decide.suggestions import doubtful, suggest
from sploot_cluster.decide.suggestions.values import DoubtfulItems, PetSuggestions
from sploot_cluster.decide.why import Why, explain, explain_quarantine
from sploot_cluster.engine.projection import PetMap, project
from sploot_cluster.errors import (
    ClusterError,
    DimensionMismatch,
    InvalidInput,
    ModelMismatch,
    PetClaimed,
    PetExists,
    PetTooLarge,
    RevisionConflict,
    StalePreview,
    UnknownMedia,
    UnknownPet,
    UnreadablePet,
)
from sploot_cluster.jobs import ReclusterRequests
from sploot_cluster.limits import MAX_TEXT
from sploot_cluster.pet.diff import PetDiff, Snapshot, compare
from sploot_cluster.pet.items import ItemPage, first_row
from sploot_cluster.pet.items import page_of as page_of_items
from sploot_cluster.pet.listing import PetOrder, PetPage, page_of
from sploot_cluster.pet.models import (
    Arrival,
    Assigned,
    Change,
    ClusterId,
    Corrected,
    Deleted,
    HistoryEntry,
    MediaId,
    PetId,
    PetState,
    PetSummary,
    PetView,
    PreviewBackend,
    Reclustered,
    Restored,
)
from sploot_cluster.pet.previews import Preview, Previewed
from sploot_cluster.pet.rows import empty_state
from sploot_cluster.pet.shadow import CandidateModel, PetModel, Shadow
from sploot_cluster.pet.tally import PetTally, Quarantined, Totals
from sploot_cluster.pet.times import ms_of
from sploot_cluster.pet.vectors import FloatVector, as_vector, as_vector_each
from sploot_cluster.pet_cache import PetCache, PetMemory, bytes_to_remember
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.store import export_file as dumps
from sploot_cluster.store.port import CLAIM_MS, HISTORY_KEPT, PetStore

if TYPE_CHECKING:
    from sploot_cluster.engine.backends import Fallback
    from sploot_cluster.engine.selection import Density
    from sploot_cluster.engine.spanning_tree import SpanningTree
    from sploot_cluster.pet.past import Past
    from sploot_cluster.pet.whole import PetDump
    from sploot_cluster.pet_density import PetDensity


logger = logging.getLogger(__name__)

A = TypeVar("A")

# Number of lost races after which an arrival claims the pet. An arrival takes a millisecond to decide, so it soon wins
# a race without a claim; claiming earlier would halve the throughput of three workers on one pet.
ARRIVAL_CLAIMS_AFTER: Final = 3

# Maximum number of attempts to commit the arrivals of a batch to one pet, if other commits come first. After that, each
# arrival is assigned individually.
BATCH_ATTEMPTS: Final = 3

# Number of these attempts that commit to all pets together. If another process works on the same pets, many of
# them lose a race, and a retry of each by itself takes two more round trips.
ATTEMPTS_TOGETHER: Final = 2

# Items are deleted without reading the whole pet if its vectors take more than this: 8,192 items of 512 dimensions.
BIG_PET_BYTES: Final = 16 * 1024 * 1024

# Number of history entries that are searched for answers to suggestions.
ANSWERS_READ: Final = 100

# Maximum time that a change waits for the claims of other changes. If the claiming process dies, its claim lasts for
# its full duration.
LONGEST_WAIT_S: Final = 2 * CLAIM_MS / 1000


class Call(TypedDict):
    """The arguments that all corrections take.

    Attributes:
        operation_id: an id that stays the same if the call is repeated. The correction is then made only once, and
            every call returns its result.
        by: the name of the requester, for the history.
        expected_revision: the call raises ``StaleRevision`` if items were moved since this revision.
    """

    operation_id: str
    by: str
    expected_revision: NotRequired[int | None]


class NewItem(NamedTuple):
    """An item to assign. The fields are the arguments of :meth:`ClusterService.assign`."""

    pet: PetId
    media: MediaId
    model: str
    vector: npt.ArrayLike
    occurred_at: datetime | None = None
    is_replacement: bool = False


# A function to call when a long computation enters a stage, with the stage's number (from 1), the number of stages, and
# the activity.
OnStage = Callable[[int, int, str], None]

# Minimum number of items for which a recluster or a preview reports stages. A smaller pet takes less than a second.
STAGES_FROM: Final = 1_000


def _no_stages(number: int, total: int, activity: str) -> None:
    """Ignore a stage."""


class ClusterService:
    """A service with all operations on pets, items and clusters. Safe to use from many threads and processes.

    Every method may raise ``StoreUnavailable`` and ``UnreadablePet``. Methods that write may raise ``RevisionConflict``
    after ``settings.commit_attempts`` lost races; retry those later. ``InvalidInput`` means that a retry will fail.
    """

    def __init__(
        self,
        store: PetStore,
        *,
        settings: ClusterSettings | None = None,
        reclusters: ReclusterRequests | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        cache_bytes: int | None = None,
        big_pet_bytes: int = BIG_PET_BYTES,
        on_fallback: Callable[[Fallback], None] = lambda _: None,
    ) -> None:
        """
        Args:
            store: where pets are stored.
            settings: the parameters of decisions. Default: those of :class:`ClusterSettings`.
            reclusters: receives requests to recluster pets that grew or drifted. None: no such requests are made.
            clock: returns the time to record with corrections, timezone-aware.
            cache_bytes: size limit of the pet cache. Default: derived from the machine's memory.
            big_pet_bytes: size of a pet's vectors above which items are deleted without reading the whole pet.
            on_fallback: called for each spanning tree that should have been built on a GPU but was built on the CPU.
        """
        self._store = store
        self._settings = settings or ClusterSettings()
        self._reclusters = reclusters
        self._clock = clock
        self._cache = PetCache(bytes_to_remember() if cache_bytes is None else cache_bytes)
        self._big_pet_bytes = big_pet_bytes
        self._on_fallback = on_fallback
        self._random = Random()  # noqa: S311  only spreads retries in time; not used for security

    @property
    def cached_bytes(self) -> int:
        """The estimated memory of the cached pets in bytes; at most ``cache_bytes`` while no pet is in use."""
        return self._cache.n_bytes

    def assign(
        self,
        pet: PetId,
        media: MediaId,
        *,
        model: str,
        vector: npt.ArrayLike,
        occurred_at: datetime | None = None,
        is_replacement: bool = False,
    ) -> Assigned:
        """Assign an arriving item to a cluster, or leave it as noise.

        An item that the pet has already stays where it is, unless the vector is a replacement. Takes O(n · dim) for a
        pet of n items, and two round trips to Redis.

        Args:
            model: ``name@version`` of the embedding model; the same for all items of a pet.
            vector: (dim,) real numbers of any non-zero norm; only its direction counts.
            occurred_at: timezone-aware, stored with the item to the millisecond. It does not affect the assignment.
            is_replacement: replace the vector of an item that the pet has with this model, and assign the item again
                unless corrections name it; see ``decide.replacement``. This rewrites the whole pet.

        Raises:
            InvalidInput: a field is invalid.
            DimensionMismatch, ModelMismatch: the dimension or model is not the pet's; the item was quarantined.
            PetTooLarge: the pet is full.
        """
        _check_ids(pet, media)
        query = as_vector(vector)
        _check_model(model, len(query), self._settings)
        arriving = Arrival(media, query, occurred_at_ms=ms_of(occurred_at))

        with self._cache.open(pet) as memory:
            if is_replacement and (replaced := self._replaced(memory, arriving, model)) is not None:
                return replaced
            try:
                assigned = self._settle(
                    memory,
                    lambda state: self._arrive(state, memory, arriving, model),
                    claims_after=ARRIVAL_CLAIMS_AFTER,
                )
            except (ModelMismatch, DimensionMismatch) as mismatch:
                why = Quarantined(model, len(query), self._clock(), arriving.occurred_at_ms)
                return self._put_elsewhere(memory, media, query, why, mismatch)
            return assigned if assigned.is_duplicate else self._ask_for_recluster(memory, assigned)

    def assign_many(self, items: Sequence[NewItem]) -> Sequence[Assigned | None]:
        """Assign arriving items of one or more pets, in order, as :meth:`assign` would, but in fewer round trips.

        The items of one pet are committed together, as one revision, and all pets in two round trips. A pet whose
        commit conflicts takes two more.

        Returns:
            The assignment of each item, in order, or None for an item that was not assigned here. Call :meth:`assign`
            for such an item: it assigns the item or raises the reason. Items are not assigned here if they are
            invalid, are replacements, or have a different model from their pet; or if their pet is claimed, damaged,
            full, busy, or small enough for exact arrivals (``exact_until``).

        Raises:
            StoreUnavailable: any of the items may have been assigned.
        """
        done: list[Assigned | None] = [None] * len(items)
        waiting = self._checked(items)
        with self._cache.open_many(list(waiting)) as opened:
            memories = {memory.pet: memory for memory in opened}
            for _ in range(ATTEMPTS_TOGETHER):
                if waiting:
                    waiting = self._assign_once(memories, waiting, done)
            for _ in range(BATCH_ATTEMPTS - ATTEMPTS_TOGETHER):
                # retry pet by pet, because the less time passes between load and commit, the fewer races are lost
                lost = [self._assign_once(memories, {pet: ours}, done) for pet, ours in waiting.items()]
                waiting = {pet: ours for one in lost for pet, ours in one.items()}
        return done

    def merge(
        self, pet: PetId, cluster_ids: Sequence[ClusterId], *, into: ClusterId | None = None, **call: Unpack[Call]
    ) -> Corrected:
        """Merge clusters into ``into``, by default the largest.

        Their items stay together until the merge is undone or overridden. This method and those for the other verbs
        create a request and pass it to :meth:`correct`.
        """
        return self.correct(MergeClusters(pet, cluster_ids, into, **_signed(call)), operation_id=call["operation_id"])

    def split(self, pet: PetId, cluster: ClusterId, media_ids: Sequence[MediaId], **call: Unpack[Call]) -> Corrected:
        """Split items off into a new cluster. They stay apart from the rest until the split is undone or overridden."""
        return self.correct(SplitCluster(pet, cluster, media_ids, **_signed(call)), operation_id=call["operation_id"])

    def keep_apart(self, pet: PetId, cluster_ids: Sequence[ClusterId], **call: Unpack[Call]) -> Corrected:
        """Keep clusters apart: no arrival or recluster mixes their items until this is undone or overridden."""
        return self.correct(KeepApart(pet, cluster_ids, **_signed(call)), operation_id=call["operation_id"])

    def place(
        self, pet: PetId, media_ids: Sequence[MediaId], *, into: ClusterId | None = None, **call: Unpack[Call]
    ) -> Corrected:
        """Place items in a cluster, or in a new one, wherever they are now.

        They stay there until the placement is undone or overridden.
        """
        return self.correct(PlaceMedia(pet, media_ids, into, **_signed(call)), operation_id=call["operation_id"])

    def exclude(self, pet: PetId, cluster: ClusterId, media_ids: Sequence[MediaId], **call: Unpack[Call]) -> Corrected:
        """Exclude items from a cluster. They may join other clusters.

        They do not rejoin this one until the exclusion is undone or overridden.
        """
        return self.correct(ExcludeMedia(pet, cluster, media_ids, **_signed(call)), operation_id=call["operation_id"])

    def dismiss(self, pet: PetId, media_ids: Sequence[MediaId], **call: Unpack[Call]) -> Corrected:
        """Dismiss items: put them in no cluster, until the dismissal is undone or overridden."""
        return self.correct(DismissMedia(pet, media_ids, **_signed(call)), operation_id=call["operation_id"])

    def name(self, pet: PetId, cluster: ClusterId, name: str, **call: Unpack[Call]) -> Corrected:
        """Name a cluster. The cluster keeps the name, whatever items join or leave it, until the naming is undone."""
        return self.correct(NameCluster(pet, cluster, name, **_signed(call)), operation_id=call["operation_id"])

    def cover(self, pet: PetId, cluster: ClusterId, media: MediaId, **call: Unpack[Call]) -> Corrected:
        """Choose the cover of a cluster. It applies while the item is in the cluster and the choice is not undone."""
        return self.correct(CoverCluster(pet, cluster, media, **_signed(call)), operation_id=call["operation_id"])

    def lock(self, pet: PetId, cluster_ids: Sequence[ClusterId], **call: Unpack[Call]) -> Corrected:
        """Lock clusters until :meth:`unlock` or an undo. Reclusters leave them alone. Only very similar items join."""
        return self.correct(LockClusters(pet, cluster_ids, **_signed(call)), operation_id=call["operation_id"])

    def unlock(self, pet: PetId, cluster_ids: Sequence[ClusterId], **call: Unpack[Call]) -> Corrected:
        """Unlock clusters that were locked."""
        return self.correct(UnlockClusters(pet, cluster_ids, **_signed(call)), operation_id=call["operation_id"])

    def hide(self, pet: PetId, cluster_ids: Sequence[ClusterId], **call: Unpack[Call]) -> Corrected:
        """Hide clusters until :meth:`show` or an undo. Similar items still join them."""
        return self.correct(HideClusters(pet, cluster_ids, **_signed(call)), operation_id=call["operation_id"])

    def show(self, pet: PetId, cluster_ids: Sequence[ClusterId], **call: Unpack[Call]) -> Corrected:
        """Show clusters that were hidden."""
        return self.correct(ShowClusters(pet, cluster_ids, **_signed(call)), operation_id=call["operation_id"])

    def name_pet(self, pet: PetId, name: str, **call: Unpack[Call]) -> Corrected:
        """Name a pet. Empty text removes its name."""
        return self.correct(NamePet(pet, name, **_signed(call)), operation_id=call["operation_id"])

    def undo(self, pet: PetId, revision: int, **call: Unpack[Call]) -> Corrected:
        """Undo the correction that created ``revision``. An undo can itself be undone."""
        return self.correct(UndoFeedback(pet, revision, **_signed(call)), operation_id=call["operation_id"])

    def restore(self, pet: PetId, revision: int, **call: Unpack[Call]) -> Restored:
        """Restore the labels of an earlier revision as a new revision. Corrections in force still hold."""
        return self.correct(RestoreRevision(pet, revision, **_signed(call)), operation_id=call["operation_id"])

    def correct(self, request: Request[A], *, operation_id: str) -> A:
        """Make the correction that a request describes; ``decide.corrections`` defines the requests.

        Args:
            operation_id: an id that stays the same if the request is repeated. The correction is then made only once,
                and every call returns its result.

        Returns:
            ``Restored`` for a restore, ``Corrected`` for all others.

        Raises:
            UnknownCluster, UnknownMedia, UnknownRevision: the pet has no such cluster, item or revision.
            StaleRevision: items were moved since ``request.expected_revision``.
            InvalidInput: a field does not fit the pet for another reason.
        """
        if not operation_id:
            hint = "send an id that is the same when the operation is repeated"
            raise InvalidInput("operation_id", "is empty", hint)
        pet = PetId(request.pet_id)
        operation = Operation(
            operation_id,
            self._clock(),
            self._settings,
            history=lambda: self._store.history(pet, limit=HISTORY_KEPT),
            past=self._past_of,
        )

        def decide_on(state: PetState) -> tuple[Change | None, A]:
            done = request.done_before(state, operation)
            if done is not None:
                return None, done
            check_page(state, request.expected_revision)
            change, result = request.plan(state, operation)
            return request.noted(change), result

        with self._cache.open(pet) as memory:
            return self._settle(memory, decide_on)

    def check(self, request: Request[Any]) -> None:
        """Check that a correction fits the pet as it is now, without making it. Takes O(n) and loads no vectors.

        Raises:
            InvalidInput: the request would be refused; see :func:`~.decide.corrections.fit.check_fit`.
        """
        check_fit(request, self._store.past(PetId(request.pet_id)))

    def recluster(self, pet: PetId, *, by: str = "machine", on_stage: OnStage = _no_stages) -> Reclustered:
        """Recompute the clusters from the density of all vectors. Corrections and cluster ids are kept.

        Density is computed once, from the items present at the start. The decisions are made on the newest state, so
        items and corrections may arrive during that computation. A pet without items is left unchanged.

        Args:
            on_stage: called for a pet of ``STAGES_FROM`` items or more when each of the stages begins.
        """
        seen, density = self._densities.of_newest(pet, self._cache, on_loaded=partial(_report, on_stage, 1))
        if not seen.n_media:
            return _nothing_to_recluster(seen)
        _report(on_stage, 2, seen)
        with self._cache.open(pet) as memory:
            return self._settle(memory, lambda state: self._regroup(state, seen, density, by))

    def preview(
        self, pet: PetId, *, backend: PreviewBackend | None = None, on_stage: OnStage = _no_stages
    ) -> Previewed:
        """Compute what a recluster would change, and store the result for :meth:`apply`. The pet is not changed.

        Args:
            backend: ``hdbscan_reference``: start from the groups that the package hdbscan finds, instead of ours.
            on_stage: called as by :meth:`recluster`.

        Raises:
            UnknownPet: the pet has no items.
            InvalidInput: the package is not installed, or the pet is too large for it.
        """
        seen, density = self._densities.of_newest(
            pet, self._cache, by_reference=backend is not None, on_loaded=partial(_report, on_stage, 1)
        )
        if not seen.n_media:
            raise UnknownPet(pet=pet)
        _report(on_stage, 2, seen)
        for _ in range(self._settings.commit_attempts):
            with self._cache.open(pet) as memory:
                state = memory.state = self._store.load(pet, known=memory.state)
            change, result = self._regroup(state, seen, density, "machine")
            preview = Preview.of(state, change, result, at=self._clock())
            if self._store.keep_preview(preview):
                return preview.against(state)
        raise RevisionConflict(pet=pet, expected=state.revision, current=self._store.revision(pet))

    def previewed(self, pet: PetId, token: str | None = None) -> Previewed:
        """Return the stored preview of a pet, and what it would change.

        Args:
            token: the token of the expected preview. None: return any preview.

        Raises:
            StalePreview: the preview is no longer stored, or the pet changed since.
        """
        preview = self._waiting(pet, token)
        state = self._store.past(pet).state
        if state.version != preview.state_version:
            raise _moved_since(preview, state.revision)
        return preview.against(state)

    def apply(self, pet: PetId, token: str, *, by: str) -> Reclustered:
        """Make exactly the changes that the preview showed. Applying it twice has the same effect as applying it once.

        Raises:
            StalePreview: the preview is no longer stored, or the pet changed since; nothing was written.
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

    def _past_of(self, state: PetState) -> Past:
        """Return the labels at earlier revisions of a pet whose newest state is ``state``.

        Raises:
            RevisionConflict: another commit came first.
        """
        past = self._store.past(state.pet)
        if past.state.version != state.version:
            raise RevisionConflict(pet=state.pet, expected=state.revision, current=past.state.revision)
        return past

    def _waiting(self, pet: PetId, token: str | None) -> Preview:
        preview = self._store.kept_preview(pet)
        if preview is None or token not in (None, preview.token):
            problem = "it expired or was replaced by a newer one"
            raise StalePreview(pet=pet, token=token or "", problem=problem)
        return preview

    def _regroup(self, state: PetState, seen: PetState, density: Density, by: str) -> tuple[Change, Reclustered]:
        """Plan a recluster of ``state``. ``density`` covers only its first items: the items of ``seen``."""
        from sploot_cluster.decide.recluster import plan_recluster

        if state.born != seen.born or state.media[: seen.n_media] != tuple(seen.media):
            # the density does not fit this state: items were deleted or lost in a failover, the model was switched, or
            # the pet was recreated
            raise RevisionConflict(pet=state.pet, expected=seen.revision, current=state.revision)
        return plan_recluster(state, density, settings=self._settings, by=by)

    def compare(self, pet: PetId, from_revision: int, to_revision: int) -> PetDiff:
        """Return the differences between two revisions.

        Raises:
            UnknownRevision: the pet never had one of the revisions, or it is no longer stored.
        """
        past = self._store.past(pet)
        return compare(past.at(from_revision), past.at(to_revision))

    def at(self, pet: PetId, revision: int) -> Snapshot:
        """Return the cluster of every item at a revision.

        Raises:
            UnknownRevision: the pet never had this revision, or it is no longer stored.
        """
        return self._store.past(pet).at(revision)

    def why(self, pet: PetId, media: MediaId) -> Why:
        """Explain why an item is where it is, or why it is quarantined. Loads the pet's vectors and takes O(n · dim).

        Raises:
            UnknownMedia: the item was never ingested, or was deleted.
        """
        with self._cache.open(pet) as memory:
            state = memory.state = self._store.load(pet, known=memory.state)
        if media not in state.rows and (quarantined := self._store.tally(pet).quarantine.get(media)):
            return explain_quarantine(state, media, quarantined, self._store.shadow(pet))
        return explain(state, media)

    def suggestions(self, pet: PetId, *, limit: int = 10) -> PetSuggestions:
        """Return the questions about a pet whose answers would help most. Loads the pet's vectors.

        Each answer is a correction (``Reply``). A question that a correction in force answers is not asked again. After
        three *no* in a row, a kind of question is not asked before the next recluster.
        """
        with self._cache.open(pet) as memory:
            state = memory.state = self._store.load(pet, known=memory.state)
        return suggest(state, self._store.history(pet, limit=ANSWERS_READ) if state.ledger else (), limit=limit)

    def doubtful(self, pet: PetId, cluster: ClusterId | None = None, *, limit: int = 100) -> DoubtfulItems:
        """Return up to 500 items that are least likely to belong to their cluster, the least likely first.

        Args:
            cluster: return only items of the cluster that this id resolves to. None: return items of all clusters that
                are not hidden.

        Raises:
            UnknownCluster: the pet has no such cluster.
        """
        with self._cache.open(pet) as memory:
            state = memory.state = self._store.load(pet, known=memory.state)
        return doubtful(state, None if cluster is None else living(state, cluster, "cluster_id"), limit=limit)

    def map(self, pet: PetId, *, limit: int = 5_000) -> PetMap:
        """Return up to ``limit`` items of a pet as points in two dimensions. Loads the pet's vectors."""
        with self._cache.open(pet) as memory:
            state = memory.state = self._store.load(pet, known=memory.state)
        return project(state, limit=limit)

    def clusters(self, pet: PetId) -> PetView:
        """Return the current clusters of a pet, or an empty view with revision 0 for a pet without data."""
        return self._store.view(pet)

    def items(self, pet: PetId, *, limit: int = 100, cursor: str | None = None) -> ItemPage:
        """Return a page of the items of a pet, in order of arrival; see ``pet.items``.

        Raises:
            InvalidInput: items were deleted since the cursor was given.
        """
        return page_of_items(pet, self._store.items(pet, start=first_row(cursor), limit=limit), cursor)

    def revision(self, pet: PetId) -> int:
        """Return the newest revision of a pet, or 0 for a pet without data."""
        return self._store.revision(pet)

    def moved_at(self, pet: PetId) -> int:
        """Return the revision at which a correction, recluster, deletion or exact arrival last moved other items.

        Returns 0 if there is none. A correction whose ``expected_revision`` is earlier raises ``StaleRevision``.
        """
        return self._store.moved_at(pet)

    def history(self, pet: PetId, *, limit: int = 100, before: int | None = None) -> Sequence[HistoryEntry]:
        """Return reclusters and corrections, newest first. If ``before`` is given, return only earlier revisions."""
        return self._store.history(pet, limit=limit, before=before)

    def delete_media(self, pet: PetId, media_ids: Collection[MediaId], *, by: str) -> Deleted:
        """Delete items, as if they had never arrived. The store writes the pet again without them.

        A pet of more than ``big_pet_bytes`` is not read into memory: its rows are copied inside the store.

        Raises:
            UnknownMedia: the pet has none of them.
            RevisionConflict: the pet changed during every attempt.
        """
        claimant = uuid4().hex
        attempts = self._removals(pet, media_ids, by=by) if self.is_big(pet) else self._rewrites(pet, media_ids, by=by)
        with ExitStack() as claims, attempts as attempt_with:
            for attempt in count(1):
                try:
                    deleted = attempt_with(claimant)
                except RevisionConflict:
                    if attempt == 1:
                        claims.callback(self._store.release, pet, claimant)
                    if attempt >= self._settings.commit_attempts:
                        raise
                else:
                    claims.pop_all()  # replacing the pet removed the claim
                    return deleted
        raise AssertionError("count() does not end")

    @contextmanager
    def _rewrites(self, pet: PetId, media_ids: Collection[MediaId], *, by: str) -> Iterator[Callable[[str], Deleted]]:
        """Yield a function that makes one attempt to delete the items, by writing the pet again from memory."""
        from sploot_cluster.decide.deletion import without

        def attempt(claimant: str) -> Deleted:
            before = self._store.dump(pet)
            present = _present(before, media_ids)
            after = without(before, present, by=by, at=self._clock())
            with self._cache.open(pet) as memory:
                tree = self._pruned(memory, before.state, present)
                memory.state = self._store.replace(before, after, claimant=claimant)
                memory.n_kept = 0
                if tree is not None:
                    self._densities.remember(memory, tree)
            return _deleted(before, after, present)

        yield attempt

    @contextmanager
    def _removals(self, pet: PetId, media_ids: Collection[MediaId], *, by: str) -> Iterator[Callable[[str], Deleted]]:
        """Yield a function that makes one attempt to delete the items, by copying all others inside the store."""
        from sploot_cluster.decide.deletion import without

        with self._store.removing(pet, media_ids) as removal:

            def attempt(claimant: str) -> Deleted:
                before = removal.outline()
                present = _present(before, media_ids)
                after = without(before, present, by=by, at=self._clock(), vectors_of=removal.vectors)
                removal.replace(after, claimant=claimant)
                with self._cache.open(pet) as memory:
                    memory.state = empty_state(pet)
                    memory.n_kept = 0
                return _deleted(before, after, present)

            yield attempt

    def has_item(self, pet: PetId, media: MediaId) -> bool:
        """Return whether the pet has the item: in a cluster, as noise, or quarantined."""
        return self._store.has(pet, media)

    def is_big(self, pet: PetId) -> bool:
        """Return whether the vectors of the pet take more than ``big_pet_bytes``, so that a deletion takes long."""
        return self._store.vector_bytes(pet) > self._big_pet_bytes

    def delete_pet(self, pet: PetId) -> Deleted:
        """Delete a pet with its corrections and history. For an unreadable pet, the returned counts are 0.

        Raises:
            UnknownPet: the pet has no data.
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
        """Return all data of a pet as one file; see ``store.export_file``.

        Raises:
            UnknownPet: the pet has no data.
            RevisionConflict: the pet was replaced during every attempt.
        """
        for _ in range(self._settings.commit_attempts - 1):
            with suppress(RevisionConflict):
                return b"".join(self.export_parts(pet))
        return b"".join(self.export_parts(pet))

    def export_parts(self, pet: PetId) -> Iterator[bytes]:
        """Yield the file of :meth:`export` in parts of about a megabyte, which are read as they are needed.

        Raises:
            UnknownPet: the pet has no data; raised before the first part.
            RevisionConflict: the pet was replaced since the first part, e.g. by a deletion of items or a switch of its
                model. The parts so far do not make a valid file; start again.
        """
        outline = self._store.outline(pet)
        vectors = dumps.Vectors(self._store.vector_pages(outline), self._store.shadow_pages(outline))
        yield from dumps.stream(outline, vectors)

    def import_pet(self, file: bytes, *, pet: PetId | None = None) -> PetView:
        """Import an exported pet, under another id if ``pet`` is given.

        Raises:
            UnreadableExport: the file is not a valid export.
            PetExists: a pet with this id exists.
        """
        dump = dumps.load(file, pet=pet)
        try:
            self._store.replace(None, dump)
        except RevisionConflict as conflict:
            raise PetExists(pet=conflict.pet, revision=conflict.current) from conflict
        return self._store.view(dump.state.pet)

    def begin_model(self, pet: PetId, model: str, dim: int, *, by: str) -> CandidateModel:
        """Start a candidate model: from now on, vectors of this model are stored in a second space of the pet.

        Raises:
            UnknownPet: the pet has no items.
            InvalidInput: it is the pet's own model, or the pet has a candidate model already.
        """
        _check_model(model, dim, self._settings)
        state = self._store.past(pet).state
        if not state.n_media:
            raise UnknownPet(pet=pet)
        if model == state.model:
            raise InvalidInput(
                "model", f"{model!r} is the model of pet {pet} already", "send the name of another model"
            )
        shadow = Shadow(model, dim, self._clock(), by, {}, 0)
        if not self._store.begin_shadow(state, shadow):
            existing = self._store.shadow(pet)
            if existing is None:
                raise InvalidInput("model", f"pet {pet} was deleted or recreated meanwhile", "send the request again")
            problem = f"pet {pet} already has the candidate model {existing.model!r}"
            raise InvalidInput("model", problem, "switch to it or end it first")
        return shadow.view(n_only_here=0)

    def model(self, pet: PetId) -> PetModel:
        """Return the embedding model of a pet and its candidate model, if any. O(n)."""
        view, shadow = self._store.view(pet), self._store.shadow(pet)
        candidate = None if shadow is None else shadow.view(n_only_here=len(self._store.only_in_shadow(pet)))
        return PetModel(pet, view.revision, view.model, view.dim, view.n_media, candidate)

    def end_model(self, pet: PetId) -> bool:
        """Delete the candidate model and its vectors. Return False if there was none.

        Items that had only a vector of the candidate model stay quarantined until they arrive with the pet's model.
        """
        return self._store.end_shadow(pet)

    def preview_switch(self, pet: PetId) -> Switch:
        """Compute the clusters of a pet after a switch to the candidate model, with corrections enforced and ids kept.

        Raises:
            UnknownPet: the pet has no data.
            InvalidInput: there is no candidate model, or items lack a vector of it and it is not the former model.
        """
        return self._plan_switch(self._store.dump(pet), by="machine")

    def switch_model(self, pet: PetId, token: str, *, by: str) -> Reclustered:
        """Switch to the candidate model exactly as previewed. The former model becomes the candidate.

        Raises:
            StalePreview: the pet or its candidate model changed since the preview; nothing was written.
        """
        before = self._store.dump(pet)
        switch = self._plan_switch(before, by=by)
        if switch.token != token:
            problem = "the pet, its candidate model or the computed result changed since"
            raise StalePreview(pet=pet, token=token, problem=problem)
        try:
            with self._cache.open(pet) as memory:
                memory.state = self._store.replace(before, switch.dump)
        except RevisionConflict as moved:
            problem = "the pet or its candidate model changed since"
            raise StalePreview(pet=pet, token=token, problem=problem) from moved
        return switch.result

    def _plan_switch(self, pet: PetDump, *, by: str) -> Switch:
        from sploot_cluster.density import cluster_densely

        density = cluster_densely(in_shadow(pet).vectors, settings=self._settings)
        return plan_switch(pet, density, settings=self._settings, by=by, at=self._clock())

    def tally(self, pet: PetId) -> PetTally:
        """Return the tally of a pet, and its quarantine."""
        return self._store.tally(pet)

    def totals(self, pets: Sequence[PetId] | None = None) -> Totals:
        """Return the summed tallies of all pets, or of the given pets. Takes one round trip per 500 pets."""
        return self._store.totals(pets)

    def pets_page(self, cursor: int) -> tuple[int, Sequence[PetId]]:
        """Return about a thousand pets that have data, and the cursor of the next page: 0 at the end. Start with 0."""
        return self._store.pets_page(cursor)

    def pets(self) -> Sequence[PetId]:
        """Return all pets that have data, ascending."""
        return self._store.pets()

    def page_of_pets(
        self, *, search: str = "", order: PetOrder = PetOrder.ID, limit: int = 100, cursor: str | None = None
    ) -> PetPage:
        """Return a page of the list of pets; see ``pet.listing.page_of``."""
        return page_of(self._store, search=search, order=order, limit=limit, cursor=cursor)

    def summaries(self, pets: Sequence[PetId]) -> Sequence[PetSummary]:
        """Return the name and counts of each of these pets that has data, in the given order."""
        return self._store.summaries(pets)

    @cached_property
    def _densities(self) -> PetDensity:
        # callers that only read do not need the engine
        from sploot_cluster.pet_density import PetDensity

        return PetDensity(self._store, self._settings, on_fallback=self._on_fallback)

    def _pruned(self, memory: PetMemory, state: PetState, gone: Collection[MediaId]) -> SpanningTree | None:
        """Return the pet's spanning tree without the items to delete, or None if the next recluster must build one."""
        try:
            densities = self._densities
        except ImportError:  # the engine is not installed on this server, so a worker builds the tree later
            return None
        return densities.pruned(memory, state, gone)

    def _replaced(self, memory: PetMemory, arriving: Arrival, model: str) -> Assigned | None:
        """Replace the vector of an item and return its assignment, or None if the pet lacks the item or the model.

        A repeated call changes nothing, because the item then has the vector already.

        Raises:
            DimensionMismatch: the pet's vectors of this model have another dimension.
            RevisionConflict: the pet changed during every attempt.
        """
        from sploot_cluster.decide.replacement import with_vector

        claimant = uuid4().hex
        with ExitStack() as claims:
            for attempt in count(1):
                state = memory.state = self._store.load(memory.pet, known=memory.state)
                row = state.rows.get(arriving.media)
                if row is None or state.model != model:
                    return None
                _check_space(state, model, dim=len(arriving.vector))
                if np.array_equal(state.vectors[row], arriving.vector):
                    return Assigned.before(state, arriving.media)
                before = self._store.dump(memory.pet)
                try:
                    if before.state.version != state.version:
                        raise RevisionConflict(pet=state.pet, expected=state.revision, current=before.state.revision)
                    after, assigned = with_vector(
                        before, arriving.media, arriving.vector, settings=self._settings, at=self._clock()
                    )
                    memory.state = self._store.replace(before, after, claimant=claimant)
                except RevisionConflict:
                    if attempt == 1:
                        claims.callback(self._store.release, memory.pet, claimant)
                    if attempt >= self._settings.commit_attempts:
                        raise
                else:
                    claims.pop_all()  # replacing the pet removed the claim
                    memory.n_kept = 0
                    return assigned
        raise AssertionError("count() does not end")

    def _put_elsewhere(
        self,
        memory: PetMemory,
        media: MediaId,
        vector: FloatVector,
        why: Quarantined,
        mismatch: ModelMismatch | DimensionMismatch,
    ) -> Assigned:
        """Store an arrival's vector with the candidate model if it is of that model, or else quarantine the item.

        For arrivals whose model or dimension is not the pet's. An item that the pet has already stays where it is.

        Raises:
            ModelMismatch, DimensionMismatch: ``mismatch``, or the mismatch with the candidate model.
            RevisionConflict: during this call, the pet was recreated, or its candidate model was ended or switched to.
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
                # the pet was recreated, perhaps with this model; a retry will load its new state
                raise RevisionConflict(pet=state.pet, expected=state.revision, current=memory.state.revision)
            if media not in memory.state.rows:
                logger.warning("quarantine is full", extra={"pet_id": state.pet, "media_id": media})
        raise mismatch

    def _arrive(
        self, state: PetState, memory: PetMemory, arriving: Arrival, model: str
    ) -> tuple[Change | None, Assigned]:
        """Return the change that adds an arrival to ``state``, and its assignment. ``memory`` holds ``state``."""
        media, vector = arriving.media, arriving.vector
        if media in state.rows and model == state.model:
            return None, Assigned.before(state, media)
        _check_space(state, model, dim=len(vector))
        if not self._room(state, len(vector)):
            raise PetTooLarge(pet=state.pet, n_media=state.n_media)  # check this before computing anything
        if state.n_media < self._settings.exact_until:
            return self._arrive_exactly(state, memory, arriving, model)
        # faiss is imported here, because callers that only read do not need it
        from sploot_cluster.decide.arrivals import plan_arrivals

        plan = plan_arrivals(state, [arriving], model=model, settings=self._settings)
        return plan.change, plan.assigned[0]

    def _checked(self, items: Sequence[NewItem]) -> dict[PetId, list[_Waiting]]:
        """Return the valid items by pet, each with its position in ``items``."""
        by_pet: dict[PetId, list[_Waiting]] = {}
        for at, (item, vector) in enumerate(zip(items, as_vector_each([item.vector for item in items]), strict=True)):
            if vector is None or item.is_replacement:
                continue
            try:
                _check_ids(item.pet, item.media)
                _check_model(item.model, len(vector), self._settings)
                arriving = Arrival(item.media, vector, occurred_at_ms=ms_of(item.occurred_at))
            except InvalidInput:
                continue
            by_pet.setdefault(item.pet, []).append(_Waiting(at, arriving, item.model))
        return by_pet

    def _assign_once(
        self,
        memories: Mapping[PetId, PetMemory],
        waiting: Mapping[PetId, list[_Waiting]],
        done: list[Assigned | None],
    ) -> dict[PetId, list[_Waiting]]:
        """Decide on the newest state of each pet and commit. Fill in ``done``, and return the pets that lost a race."""
        from sploot_cluster.decide.arrivals import Plan, plan_arrivals

        decided: list[tuple[PetState, list[_Waiting], Plan]] = []
        # a commit detects damage to its pet, so pets that will certainly get an item need not be checked before
        unchecked = {pet for pet, all_of_pet in waiting.items() if self._has_new(memories[pet].state, all_of_pet)}
        loaded = self._store.load_many([memories[pet].state for pet in waiting], unchecked=unchecked)
        for (pet, all_of_pet), state in zip(waiting.items(), loaded, strict=True):
            if isinstance(state, ClusterError):
                continue
            memories[pet].state = state
            ours = self._fitting(state, all_of_pet)
            if ours:
                arriving = [one.arriving for one in ours]
                plan = plan_arrivals(state, arriving, model=ours[0].model, settings=self._settings)
                decided.append((state, ours, plan))
        changes = [(state, plan.change) for state, _, plan in decided if plan.change is not None]
        committed = iter(self._store.commit_many(changes) if changes else ())
        lost: dict[PetId, list[_Waiting]] = {}
        for state, ours, plan in decided:
            after = state if plan.change is None else next(committed)
            if isinstance(after, RevisionConflict) and not isinstance(after, PetClaimed):
                lost[state.pet] = ours
            if isinstance(after, ClusterError):
                continue
            memories[state.pet].state = after
            for one, assigned in zip(ours, plan.assigned, strict=True):
                done[one.at] = assigned
            reason = next((one.recluster_reason for one in plan.assigned if one.recluster_reason), None)
            if reason is not None:
                self._request_recluster(memories[state.pet], reason)
        return lost

    def _fitting(self, state: PetState, waiting: Sequence[_Waiting]) -> list[_Waiting]:
        """Return the arrivals that can be assigned together. In a pet without items, the first one sets the model."""
        if state.n_media < self._settings.exact_until:
            return []
        model, dim = state.model or waiting[0].model, state.dim or len(waiting[0].arriving.vector)
        fitting, room = [], self._room(state, dim)
        for one in waiting:
            is_known = one.arriving.media in state.rows
            if one.model == model and (is_known or (len(one.arriving.vector) == dim and room > 0)):
                fitting.append(one)
                room -= not is_known
        return fitting

    def _has_new(self, state: PetState, waiting: Sequence[_Waiting]) -> bool:
        return any(one.arriving.media not in state.rows for one in self._fitting(state, waiting))

    def _room(self, state: PetState, dim: int) -> int:
        """Return how many more items the pet can hold."""
        return self._store.max_vector_bytes // (4 * dim) - state.n_media

    def _arrive_exactly(
        self, state: PetState, memory: PetMemory, arriving: Arrival, model: str
    ) -> tuple[Change, Assigned]:
        """Assign an arrival in a small pet as a recluster would. Other items may be reassigned too."""
        from sploot_cluster.decide.exact_arrival import plan_exact_arrival

        vectors, density = self._densities.with_arrival(memory, arriving.media, arriving.vector)
        return plan_exact_arrival(state, arriving, vectors, density, model=model, settings=self._settings)

    def _ask_for_recluster(self, memory: PetMemory, assigned: Assigned) -> Assigned:
        """Request a recluster if the pet grew or drifted, and return ``assigned`` with the reason."""
        reason = recluster_reason(memory.state, self._settings)
        if reason is None:
            return assigned
        self._request_recluster(memory, reason)
        return replace(assigned, recluster_reason=reason)

    def _request_recluster(self, memory: PetMemory, reason: str) -> None:
        """Request a recluster, unless this process has a request that still waits."""
        state, now = memory.state, self._clock()
        delay_ms = self._settings.recluster_wait_ms(state.n_media)
        # while a request of this process is waiting, another one at every arrival would only cost round trips
        is_asked = memory.asked is not None and (
            memory.asked[1] == state.n_at_recluster and now - memory.asked[0] < timedelta(milliseconds=delay_ms)
        )
        if self._reclusters is None or is_asked:
            return
        try:
            self._reclusters.request_recluster(memory.pet, reason=reason, delay_ms=delay_ms)
        except Exception:
            # do not fail, whatever the queue raises: the item is assigned, and a later arrival will request the
            # recluster again
            logger.warning("recluster could not be requested", extra={"pet_id": memory.pet}, exc_info=True)
        else:
            memory.asked = now, state.n_at_recluster

    def _settle(
        self, memory: PetMemory, decide_on: Callable[[PetState], tuple[Change | None, A]], *, claims_after: int = 0
    ) -> A:
        """Decide on the newest state and commit. Repeat this if another commit comes first. Return the result.

        Args:
            decide_on: returns the change to commit, or None, and the result. Called once per attempt.
            claims_after: number of races to lose before the change claims the pet at the next lost race.
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
                        continue  # retry at once: with the claim, only an older claim can come first
                else:
                    claims.pop_all()  # the commit ended the claim
                    return answer
                logger.debug("commit waits for another change", extra={"pet_id": memory.pet, "attempt": attempt})
                # a random pause, so that changes that lost the race do not collide again
                time.sleep(self._random.uniform(0.5, 1.0) * min(0.001 * 1.5**attempt, 0.02))
        raise AssertionError("count() does not end")


class _Waiting(NamedTuple):
    """A valid item of a batch, and its position in the batch."""

    at: int
    arriving: Arrival
    model: str


def _present(pet: PetDump, media_ids: Collection[MediaId]) -> list[MediaId]:
    """Return only the items that the pet has.

    Raises:
        UnknownMedia: it has none of them.
    """
    present = [item for item in media_ids if item in pet.state.rows or item in pet.quarantine]
    if not present:
        where = "any cluster, the noise or the quarantine"
        raise UnknownMedia(pet=pet.state.pet, media=tuple(media_ids), where=where)
    return present


def _deleted(before: PetDump, after: PetDump, present: Collection[MediaId]) -> Deleted:
    pairs = zip(before.state.ledger, after.state.ledger, strict=True)
    return Deleted(len(present), sum(old != new for old, new in pairs), after.state.revision)


def _moved_since(preview: Preview, now: int) -> StalePreview:
    problem = f"the pet moved from revision {preview.revision} to {now}"
    return StalePreview(pet=preview.pet, token=preview.token, problem=problem)


def _signed(call: Call) -> Signed:
    return {"requested_by": call["by"], "expected_revision": call.get("expected_revision")}


def _check_ids(pet: PetId, media: MediaId) -> None:
    if pet < 1:
        raise InvalidInput("pet_id", f"expected a positive integer, got {pet}", "send a number from 1")
    if not 1 <= len(media) <= MAX_TEXT:
        raise InvalidInput("media_id", f"has {len(media)} characters", f"send 1 to {MAX_TEXT} characters")
    if not media.isascii() and any("\ud800" <= character <= "\udfff" for character in media):
        raise InvalidInput("media_id", "contains an unpaired surrogate", "send text that can be encoded as UTF-8")


def _check_model(model: str, dim: int, settings: ClusterSettings) -> None:
    if not model:
        raise InvalidInput("model", "is empty", "send the name@version of the embedding model")
    if not settings.models:
        return
    if model not in settings.models:
        raise InvalidInput("model", f"{model!r} is not a known model", f"send one of: {', '.join(settings.models)}")
    if settings.models[model] != dim:
        raise InvalidInput(
            "dim",
            f"expected {settings.models[model]} dimensions for {model!r}, got {dim}",
            "send vectors of that model",
        )


def _check_space(state: PetState, model: str, *, dim: int) -> None:
    if state.model is not None and state.model != model:
        raise ModelMismatch(pet=state.pet, expected=state.model, got=model)
    if state.dim is not None and state.dim != dim:
        raise DimensionMismatch(pet=state.pet, expected=state.dim, got=dim)


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


_STAGES: Final = ("computes the density of {n} items", "finds the clusters of {n} items and enforces corrections")


def _report(on_stage: OnStage, number: int, state: PetState) -> None:
    """Report a stage of a recluster, unless the pet is so small that it ends at once."""
    if state.n_media >= STAGES_FROM:
        on_stage(number, len(_STAGES), _STAGES[number - 1].format(n=f"{state.n_media:,}"))
