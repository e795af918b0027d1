"""Replays of captures in memory.

Arrivals, corrections and the other changes of a pet are repeated in the same order, at the same revisions and with the
same clock, so the labels are the same on every machine. They can differ from the captured labels if a recluster ran
while items arrived, because that recluster saw fewer items; the items that differ are listed. By design, some changes
cannot be replayed and are listed by revision: arrivals and deletions of items that were deleted since, and switches of
the model, because everything is replayed with the vectors of the current model. All other changes are replayed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from sploot_cluster import ClusterService
from sploot_cluster.decide.corrections import ENTRIES
from sploot_cluster.decide.corrections.base import LedgerEntry
from sploot_cluster.decide.deletion import STAND_IN
from sploot_cluster.errors import ClusterError, InvalidInput, UnknownPet
from sploot_cluster.event import EmbeddingIngested
from sploot_cluster.jobs import ReclusterRequests
from sploot_cluster.pet.models import NOISE, Correction, HistoryEntry, MediaId, PetId, PetState
from sploot_cluster.pet.rows import empty_state
from sploot_cluster.pet.vectors import FloatVector
from sploot_cluster.pet.whole import PetDump
from sploot_cluster.settings import ClusterSettings, value_of
from sploot_cluster.store.memory import MemoryPetStore
from sploot_cluster.store.port import HISTORY_KEPT, PetStore
from tasks.capture.file import Capture, CapturedDeadLetter, labels_digest
from tasks.contracts import EMBEDDING_INGESTED

_LONG_AGO: Final = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Replayed:
    """The outcome of a replay.

    Attributes:
        labels: digest of the replayed labels; ``expected`` is the captured digest, None if the capture has no pet.
        moved: (item, captured cluster, replayed cluster) for each item whose cluster differs.
        differences: other deviations, as text.
        verdicts: for each dead letter, whether it would be accepted now.
    """

    labels: str
    expected: str | None
    n_media: int
    n_clusters: int
    n_noise: int
    moved: Sequence[tuple[str, int, int]] = ()
    differences: Sequence[str] = ()
    verdicts: Sequence[str] = ()

    @property
    def is_same(self) -> bool:
        return self.labels == self.expected


def settings_of(capture: Capture, changes: Mapping[str, str]) -> ClusterSettings:
    """Return the settings of a capture with the changes applied; values are written as in the environment.

    Raises:
        InvalidInput: a change names an unknown setting, or its value is invalid.
    """
    known = {setting.name for setting in fields(ClusterSettings)}
    settings = capture.settings
    for name, text in changes.items():
        if name not in known:
            raise InvalidInput("--set", f"{name} is not a setting", f"choose from {', '.join(sorted(known))}")
        changed: dict[str, Any] = {name: value_of(name, text, f"--set {name}")}
        settings = replace(settings, **changed)
    return settings


def replay(capture: Capture, settings: ClusterSettings) -> Replayed:
    """Replay a capture in memory."""
    captured = empty_state(PetId(1)) if capture.pet is None else capture.pet.state
    state, differences = (captured, ()) if capture.pet is None else _repeated(capture.pet, settings)
    labels = dict(zip(state.media, state.labels.tolist(), strict=True))
    return Replayed(
        labels=labels_digest(state),
        expected=None if capture.pet is None else labels_digest(captured),
        n_media=len(labels),
        n_clusters=len(set(labels.values()) - {NOISE}),
        n_noise=sum(label == NOISE for label in labels.values()),
        moved=tuple(
            (item, then, now)
            for item, then in zip(captured.media, captured.labels.tolist(), strict=True)
            if (now := labels.get(item, NOISE)) != then
        ),
        differences=differences,
        verdicts=tuple(_verdict(dead_letter, state) for dead_letter in capture.dead_letters),
    )


@dataclass(frozen=True, slots=True)
class _Arrival:
    revision: int
    media: MediaId
    vector: FloatVector


def _story(pet: PetDump) -> Sequence[_Arrival | Correction | HistoryEntry]:
    """Return the events of a pet, in order; the history entry of a correction follows the correction itself."""
    arrivals = map(_Arrival, pet.arrived.tolist(), pet.state.media, pet.state.vectors)
    # at the same revision, arrivals come first, because their items joined the pet at a switch
    return sorted([*arrivals, *pet.state.ledger, *pet.history], key=lambda event: event.revision)


class _Clock:
    def __init__(self) -> None:
        self.now = _LONG_AGO

    def __call__(self) -> datetime:
        return self.now


class _IgnoredRequests(ReclusterRequests):
    """A port that ignores requests for reclusters, because the history contains the reclusters that ran."""

    def request_recluster(self, pet_id: int, *, reason: str, delay_ms: int) -> None:
        pass


def _repeated(captured: PetDump, settings: ClusterSettings) -> tuple[PetState, tuple[str, ...]]:
    """Return the pet after the replay, and the differences as text."""
    pet, clock, differences = captured.state.pet, _Clock(), list[str]()
    store = MemoryPetStore(clock=clock)
    service = ClusterService(store, settings=settings, reclusters=_IgnoredRequests(), clock=clock)
    for event in _story(captured):
        revision, now = event.revision, store.load(pet).revision
        if now + 1 < revision:
            differences.append(_gap(now + 1, revision - 1, captured))
            _move_to(store, pet, revision - 1)
        try:
            match event:
                case _Arrival():
                    model = captured.state.model or ""
                    service.assign(pet, event.media, model=model, vector=event.vector)
                case HistoryEntry():
                    clock.now = event.at
                    differences += [f"revision {revision}: {problem}" for problem in _repeat(service, pet, event)]
                case LedgerEntry():
                    clock.now = event.at
                    differences += [f"revision {revision}: {problem}" for problem in _correct(service, pet, event)]
        except ClusterError as error:
            differences.append(f"revision {revision} was refused: {error}")
        if store.load(pet).revision != revision:
            # the event was refused or left out, or it is one of several items that joined the pet at a switch
            _move_to(store, pet, revision)
    return store.load(pet), tuple(differences)


def _gap(first: int, last: int, captured: PetDump) -> str:
    revisions = f"revision {first}" if first == last else f"revisions {first} to {last}"
    if len(captured.history) >= HISTORY_KEPT and first < captured.history[0].revision:
        return f"{revisions} cannot be replayed: the history does not reach back that far"
    return f"{revisions} cannot be replayed: the items that arrived there were deleted since"


def _move_to(store: PetStore, pet: PetId, revision: int) -> None:
    """Set the pet's revision, so that later corrections and restores refer to the right revisions."""
    try:
        before = store.dump(pet)
    except UnknownPet:
        nothing = PetDump(store.load(pet), np.empty(0, dtype=np.uint32), (), 0, (), {}, 0)
        store.replace(None, replace(nothing, state=replace(nothing.state, revision=revision)))
        return
    at_most = tuple(replace(one, revision=min(one.revision, revision)) for one in before.overwritten)
    state = replace(before.state, revision=revision, relabelled_at=min(before.state.relabelled_at, revision))
    store.replace(
        before, replace(before, state=state, arrived=np.minimum(before.arrived, revision), overwritten=at_most)
    )


def _repeat(service: ClusterService, pet: PetId, entry: HistoryEntry) -> Iterator[str]:
    """Repeat a change that is not a correction; yield a sentence on each part that cannot be repeated."""
    summary = entry.summary
    match entry.kind:
        case "recluster":
            service.recluster(pet, by=entry.by)
        case "restore":
            restored = summary.get("restored")
            if type(restored) is int:
                service.restore(pet, restored, operation_id=str(summary.get("operation_id")), by=entry.by)
            else:
                yield "the restore cannot be replayed: its revision is missing"
        case "delete":
            yield f"the deletion of {summary.get('n_deleted')} items cannot be replayed: no data of them is left"
        case "replace":
            yield "the replacement of a vector cannot be replayed: the former vector is not in the file"
        case "switch":
            yield (
                f"the switch from {summary.get('from')} to {summary.get('to')} cannot be replayed: "
                "everything is replayed with the vectors of the present model"
            )
        case "repair":
            yield "the repair of damaged keys cannot be replayed: the damage is not in the file"
        case kind:
            assert kind == "arrival" or kind in ENTRIES, kind  # other changes have their own events in the story


def _correct(service: ClusterService, pet: PetId, correction: LedgerEntry) -> Iterator[str]:
    """Repeat a correction for its items that still exist; yield a sentence on each part that cannot be repeated."""
    named: list[MediaId] = []

    def left(media: Sequence[MediaId]) -> Sequence[MediaId]:
        named.extend(media)
        return [item for item in media if not item.startswith(STAND_IN)]

    request = correction.request(pet, left)
    if request is not None:
        service.correct(request, operation_id=correction.operation_id)
    if n_gone := sum(item.startswith(STAND_IN) for item in named):
        yield f"{n_gone} of the {len(named)} items that it names cannot be replayed: they were deleted since"


def _verdict(dead_letter: CapturedDeadLetter, state: PetState) -> str:
    """State whether a dead letter would be accepted now and, if not, why."""
    which, entry = f"dead letter {dead_letter.id}", dead_letter.fields
    if dead_letter.queue != EMBEDDING_INGESTED:
        return f"{which}: {dead_letter.error} (only events of items can be checked offline)"
    if dead_letter.n_bytes_cut:
        return f"{which}: {dead_letter.error} (only the head of its {dead_letter.n_bytes_cut} bytes was captured)"
    try:
        if b"message" in entry:
            event = EmbeddingIngested.from_kwargs(json.loads(entry[b"message"])["kwargs"])
        else:
            event = EmbeddingIngested.from_fields(entry)
    except InvalidInput as refused:
        return f"{which}: refused again: {refused}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{which}: cannot be read: {type(error).__name__}: {error}"
    if state.dim is not None and (event.model, event.dim) != (state.model, state.dim):
        return (
            f"{which}: refused again: the pet has vectors of {state.model} with {state.dim} dimensions, "
            f"this is {event.model} with {event.dim}"
        )
    return f"{which}: would be accepted now; it failed with {dead_letter.error}"
