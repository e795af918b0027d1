"""A store that keeps pets in a dictionary, for tests and for use as a library without Redis."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Lock
from uuid import uuid4

import numpy as np

from sploot_cluster.decide.presentation import pet_name_of, presentation_of
from sploot_cluster.errors import ClusterError, NotConserved, PetClaimed, PetTooLarge, RevisionConflict, UnknownPet
from sploot_cluster.pet.items import ItemRows
from sploot_cluster.pet.models import (
    NOISE,
    Change,
    HistoryEntry,
    KeptTree,
    MediaId,
    Origin,
    PetId,
    PetState,
    PetSummary,
    PetView,
)
from sploot_cluster.pet.past import KEPT, Overwritten, Past, overwritten_by
from sploot_cluster.pet.previews import Preview
from sploot_cluster.pet.rows import PetRows, check, empty_state, follow
from sploot_cluster.pet.shadow import Shadow
from sploot_cluster.pet.tally import MAX_QUARANTINED, PetTally, Quarantined, Tally, Totals, counts_after
from sploot_cluster.pet.vectors import FloatMatrix, FloatVector, Rows
from sploot_cluster.pet.views import view_of
from sploot_cluster.pet.whole import PetDump
from sploot_cluster.store.port import CLAIM_MS, HISTORY_KEPT, MAX_VECTOR_BYTES, Removal


@dataclass(slots=True)
class _Pet:
    state: PetState
    history: deque[HistoryEntry] = field(default_factory=lambda: deque(maxlen=HISTORY_KEPT))
    arrived: list[int] = field(default_factory=list)
    overwritten: deque[Overwritten] = field(default_factory=deque)
    past_from: int = 0
    claimant: str | None = None
    claimed_until_s: float = 0.0
    tree: KeptTree | None = None
    preview: Preview | None = None
    quarantine: dict[MediaId, Quarantined] = field(default_factory=dict)
    ingested: int = 0
    overflowed: int = 0
    shadow: Shadow | None = None


class MemoryPetStore:
    """A :class:`~sploot_cluster.store.port.PetStore` in the memory of one process."""

    def __init__(
        self,
        *,
        max_vector_bytes: int = MAX_VECTOR_BYTES,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Create an empty store.

        Args:
            max_vector_bytes: size limit of the vectors of one pet.
            clock: returns the time of history entries.
        """
        self._max_vector_bytes, self._clock = max_vector_bytes, clock
        self._pets: dict[PetId, _Pet] = {}
        self._lock = Lock()

    @property
    def max_vector_bytes(self) -> int:
        return self._max_vector_bytes

    def load(self, pet: PetId, *, known: PetState | None = None) -> PetState:
        with self._lock:
            held = self._pets.get(pet)
            return held.state if held else empty_state(pet)

    def commit(self, state: PetState, change: Change, *, claimant: str | None = None) -> PetState:
        check(state, change)
        pet = state.pet
        with self._lock:
            held = self._pets.get(pet) or _Pet(empty_state(pet))
            now_s = time.monotonic()
            is_claimed = held.claimant not in (None, claimant) and now_s < held.claimed_until_s
            if held.state.version != state.version:
                if claimant and held.state.revision and not is_claimed:
                    held.claimant, held.claimed_until_s = claimant, now_s + CLAIM_MS / 1000
                raise RevisionConflict(pet=pet, expected=state.revision, current=held.state.revision)
            if is_claimed:
                left_ms = round((held.claimed_until_s - now_s) * 1000)
                raise PetClaimed(pet=pet, revision=held.state.revision, for_ms=left_ms)
            if (
                sum(arrival.vector.nbytes for arrival in change.arrivals) + state.vectors.nbytes
                > self._max_vector_bytes
            ):
                raise PetTooLarge(pet=pet, n_media=state.n_media)
            back = [arrival.media for arrival in change.arrivals if arrival.media in held.quarantine]
            ingested = held.ingested + len(change.arrivals) - len(back)
            clustered, noise, dismissed = counts_after(state, change)
            tally = Tally(ingested, clustered, noise, len(held.quarantine) - len(back), dismissed)
            if not tally.is_conserved:
                raise NotConserved(pet=pet, problem=str(tally))
            held.ingested = ingested
            for item in back:
                del held.quarantine[item]
            revision, was = state.revision + 1, overwritten_by(state, change)
            held.arrived += [revision] * len(change.arrivals)
            if was:
                held.overwritten.append(was)
                if len(held.overwritten) > KEPT:
                    held.past_from = held.overwritten.popleft().revision
            held.state = follow(state, change, version=f"{state.born or uuid4().hex}.{uuid4().hex}")
            held.claimant = None
            if change.kind != "arrival":
                entry = HistoryEntry(held.state.revision, change.kind, self._clock(), change.by, dict(change.summary))
                held.history.append(entry)
            self._pets[pet] = held
            return held.state

    def load_many(
        self, known: Sequence[PetState], *, unchecked: Collection[PetId] = ()
    ) -> Sequence[PetState | ClusterError]:
        return [self.load(state.pet, known=state) for state in known]

    def commit_many(self, changes: Sequence[tuple[PetState, Change]]) -> Sequence[PetState | ClusterError]:
        for state, change in changes:
            check(state, change)
        return [self._committed(state, change) for state, change in changes]

    def _committed(self, state: PetState, change: Change) -> PetState | ClusterError:
        try:
            return self.commit(state, change)
        except ClusterError as refused:
            return refused

    def release(self, pet: PetId, claimant: str) -> None:
        with self._lock:
            held = self._pets.get(pet)
            if held and held.claimant == claimant:
                held.claimant = None

    def keep_tree(self, pet: PetId, tree: KeptTree) -> None:
        with self._lock:
            held = self._pets.get(pet)
            if held is None or held.state.born != tree.born:
                return
            if held.tree is None or held.tree.born != tree.born or held.tree.n <= tree.n:
                held.tree = tree

    def kept_tree(self, pet: PetId) -> KeptTree | None:
        with self._lock:
            held = self._pets.get(pet)
            return held.tree if held else None

    def keep_preview(self, preview: Preview) -> bool:
        with self._lock:
            held = self._pets.get(preview.pet)
            if held is None or held.state.version != preview.state_version:
                return False
            held.preview = preview
            return True

    def kept_preview(self, pet: PetId) -> Preview | None:
        with self._lock:
            held = self._pets.get(pet)
            is_there = held is not None and held.preview is not None and self._clock() < held.preview.expires_at
            return held.preview if held and is_there else None

    def view(self, pet: PetId) -> PetView:
        state = self.load(pet)
        return view_of(state, presentation_of(state))

    def items(self, pet: PetId, *, start: int, limit: int) -> ItemRows:
        state, rows = self.load(pet), slice(start, start + limit)
        return ItemRows(
            state.born,
            state.revision,
            state.n_media,
            state.media[rows],
            state.labels[rows].tolist(),
            state.origins[rows].tolist(),
            state.occurred_at_ms[rows].tolist(),
        )

    def revision(self, pet: PetId) -> int:
        return self.load(pet).revision

    def moved_at(self, pet: PetId) -> int:
        return self.load(pet).relabelled_at

    def history(self, pet: PetId, *, limit: int = 100, before: int | None = None) -> Sequence[HistoryEntry]:
        with self._lock:
            held = self._pets.get(pet)
            entries = list(held.history) if held else []
        return [entry for entry in entries if before is None or entry.revision < before][: -limit - 1 : -1]

    def quarantine(self, state: PetState, media: MediaId, why: Quarantined) -> bool:
        with self._lock:
            held = self._pets.get(state.pet)
            if held is None or held.state.born != state.born or media in held.state.rows:
                return False
            if media not in held.quarantine:
                if len(held.quarantine) >= MAX_QUARANTINED:
                    held.overflowed += 1
                    return False
                held.ingested += 1
            held.quarantine[media] = why
            return True

    def tally(self, pet: PetId) -> PetTally:
        with self._lock:
            held = self._pets.get(pet) or _Pet(empty_state(pet))
            return PetTally(_tally(held), dict(held.quarantine))

    def totals(self, pets: Sequence[PetId] | None = None) -> Totals:
        with self._lock:
            tallies = {pet: _tally(held) for pet, held in sorted(self._pets.items()) if pets is None or pet in pets}
        unconserved = tuple(pet for pet, tally in tallies.items() if not tally.is_conserved)
        with self._lock:
            sizes = [(held.state.vectors.nbytes, pet) for pet, held in self._pets.items() if pet in tallies]
        n_bytes, fullest = max(sizes, default=(0, None))
        fullness = n_bytes / self._max_vector_bytes
        return Totals(
            sum(tallies.values(), start=Tally()),
            len(tallies),
            unconserved,
            fullest=fullest,
            fullness=fullness,
            vector_bytes=sum(n for n, _ in sizes),
        )

    def past(self, pet: PetId) -> Past:
        with self._lock:
            held = self._pets.get(pet) or _Pet(empty_state(pet))
            arrived = np.array(held.arrived, dtype=np.uint32)
            return Past(held.state, arrived, list(reversed(held.overwritten)), held.past_from)

    def dump(self, pet: PetId) -> PetDump:
        with self._lock:
            held = self._pets.get(pet)
            if held is None:
                raise UnknownPet(pet=pet)
            return PetDump(
                held.state,
                np.array(held.arrived, dtype=np.uint32),
                tuple(held.overwritten),
                held.past_from,
                tuple(held.history),
                dict(held.quarantine),
                held.ingested,
                held.shadow,
                held.overflowed,
            )

    def outline(self, pet: PetId) -> PetDump:
        return self.dump(pet)

    def vector_pages(self, outline: PetDump) -> Iterator[bytes]:
        yield outline.state.vectors.astype("<f4", copy=False).tobytes()

    def shadow_pages(self, outline: PetDump) -> Iterator[tuple[Sequence[MediaId], bytes]]:
        if outline.shadow is not None:
            for item in sorted(outline.shadow.vectors):
                yield [item], outline.shadow.vectors[item].astype("<f4", copy=False).tobytes()

    def replace(self, before: PetDump | None, after: PetDump, *, claimant: str | None = None) -> PetState:
        pet = after.state.pet
        state = empty_state(pet) if before is None else before.state
        with self._lock:
            held = self._pets.get(pet) or _Pet(empty_state(pet))
            if held.state.version != state.version:
                now_s = time.monotonic()
                if claimant and held.state.revision and (held.claimant is None or held.claimed_until_s < now_s):
                    held.claimant, held.claimed_until_s = claimant, now_s + CLAIM_MS / 1000
                raise RevisionConflict(pet=pet, expected=state.revision, current=held.state.revision)
            if before is not None and _side_state(before.shadow, before.quarantine) != _side_state(
                held.shadow, held.quarantine
            ):
                raise RevisionConflict(pet=pet, expected=state.revision, current=held.state.revision)
            self._pets[pet] = _Pet(
                dataclasses.replace(after.state, version=f"{uuid4().hex}.{uuid4().hex}"),
                history=deque(after.history, maxlen=HISTORY_KEPT),
                arrived=after.arrived.tolist(),
                overwritten=deque(after.overwritten),
                past_from=after.past_from,
                quarantine=dict(after.quarantine),
                ingested=after.ingested,
                overflowed=after.overflowed,
                shadow=after.shadow,
            )
            return self._pets[pet].state

    @contextmanager
    def removing(self, pet: PetId, media: Collection[MediaId]) -> Iterator[Removal]:
        yield _Removal(self, pet)

    def has(self, pet: PetId, media: MediaId) -> bool:
        with self._lock:
            held = self._pets.get(pet)
            return held is not None and (media in held.state.rows or media in held.quarantine)

    def vector_bytes(self, pet: PetId) -> int:
        return self.load(pet).vectors.nbytes

    def delete(self, pet: PetId) -> bool:
        with self._lock:
            return self._pets.pop(pet, None) is not None

    def shadow(self, pet: PetId) -> Shadow | None:
        with self._lock:
            held = self._pets.get(pet)
            shadow = held.shadow if held else None
            return None if shadow is None else dataclasses.replace(shadow, vectors={})

    def begin_shadow(self, state: PetState, shadow: Shadow) -> bool:
        with self._lock:
            held = self._pets.get(state.pet)
            if held is None or held.state.born != state.born or held.shadow is not None:
                return False
            held.shadow = shadow
            return True

    def only_in_shadow(self, pet: PetId) -> Sequence[MediaId]:
        with self._lock:
            held = self._pets.get(pet)
            return sorted(held.shadow.vectors.keys() - held.state.rows.keys()) if held and held.shadow else []

    def add_to_shadow(self, state: PetState, media: MediaId, vector: FloatVector, why: Quarantined) -> bool:
        with self._lock:
            held = self._pets.get(state.pet)
            if held is None or held.state.born != state.born or held.shadow is None or held.shadow.model != why.model:
                return False
            vectors = {media: vector, **held.shadow.vectors}
            held.shadow = dataclasses.replace(held.shadow, vectors=vectors, n_vectors=len(vectors))
            if media not in held.state.rows:
                held.ingested += media not in held.quarantine
                held.quarantine[media] = why
            return True

    def end_shadow(self, pet: PetId) -> bool:
        with self._lock:
            held = self._pets.get(pet)
            if held is None or held.shadow is None:
                return False
            held.shadow = None
            return True

    def summaries(self, pets: Sequence[PetId]) -> Sequence[PetSummary]:
        with self._lock:
            found = [held for pet in pets if (held := self._pets.get(pet)) is not None]
        return [
            PetSummary(
                held.state.pet,
                pet_name_of(held.state.ledger),
                held.state.revision,
                held.state.model,
                held.state.n_media,
                len(held.state.clusters),
                _tally(held).noise,
            )
            for held in found
        ]

    def find_by_name(self, beginning: str, *, limit: int) -> Sequence[PetId]:
        start = beginning.casefold()
        with self._lock:
            names = {pet: pet_name_of(held.state.ledger) or "" for pet, held in sorted(self._pets.items())}
        return [pet for pet, name in names.items() if name and name.casefold().startswith(start)][:limit]

    def pets_page(self, cursor: int) -> tuple[int, Sequence[PetId]]:
        return 0, self.pets()

    def pets_in_order(self, last: PetId | None, *, rising: bool, limit: int) -> tuple[int, Sequence[PetId]]:
        pets = self.pets() if rising else self.pets()[::-1]
        following = [pet for pet in pets if last is None or (pet > last if rising else pet < last)]
        return len(pets), following[:limit]

    def pets(self) -> Sequence[PetId]:
        with self._lock:
            return sorted(self._pets)


class _Removal:
    """The removal of items from one pet."""

    def __init__(self, store: MemoryPetStore, pet: PetId) -> None:
        self._store, self._pet = store, pet
        self._before = PetDump(empty_state(pet), np.empty(0, dtype=np.uint32), (), 0, (), {}, 0)

    def outline(self) -> PetDump:
        self._before = self._store.dump(self._pet)
        return self._before

    def vectors(self, rows: Rows) -> FloatMatrix:
        vectors: FloatMatrix = self._before.state.vectors[rows]
        return vectors

    def replace(self, after: PetDump, *, claimant: str | None = None) -> None:
        before, state = self._before.state, after.state
        vectors = before.vectors[[before.rows[item] for item in state.media]]
        rows = PetRows(state.media, vectors, state.occurred_at_ms)
        n = state.n_media
        state = dataclasses.replace(state, media=rows.media(n), rows=rows.index(n), vectors=rows.vectors(n))
        self._store.replace(self._before, dataclasses.replace(after, state=state), claimant=claimant)


def _side_state(shadow: Shadow | None, quarantine: Mapping[MediaId, Quarantined]) -> tuple[datetime | None, int, int]:
    begun_at, n_vectors = (None, 0) if shadow is None else (shadow.begun_at, len(shadow.vectors))
    return begun_at, n_vectors, len(quarantine)


def _tally(held: _Pet) -> Tally:
    state = held.state
    clustered = int(np.count_nonzero(state.labels != NOISE))
    dismissed = int(np.count_nonzero(state.origins == Origin.DISMISSED))
    noise = state.n_media - clustered - dismissed
    return Tally(held.ingested, clustered, noise, len(held.quarantine), dismissed, held.overflowed)
