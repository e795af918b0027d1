"""A pet or a dead letter in one file, to inspect elsewhere, replay offline, or send to staging.

A capture is JSON lines. The first names its subject, the settings and versions it was taken under, and the digest of
the labels. Then follow, in the order in which they happened, the pet's items and changes, and last its unfinished jobs
and its dead letters, as they are in their streams.

    {"capture": 1, "pet_id": 42, "revision": 31, "model": "clip@1", "dim": 512, "labels": "…", "settings": {…}, …}
    {"item": "beach.jpg", "revision": 1, "label": 3, "embedding": "<base64-f32le>"}
    {"done": "recluster", "revision": 17, "by": "ada", "at": "…", "summary": {…}, "correction": {…}}
    {"job": "waiting", "queue": "embedding.ingested", "entry_id": "…", "fields": {"<name>": "<base64>"}}
    {"dead_letter": "…", "queue": "…", "reason": "…", "error": "…", "fields": {"<name>": "<base64>"}}

:func:`replay` repeats the changes in memory, in the same order, at the same revisions and with the same clock: the
labels are the same on every machine. They can differ where a recluster ran while items arrived, because it saw fewer of
them; the differing items are listed. Some changes cannot be replayed, by design, and are listed by revision: arrivals
and deletions of items deleted since, and a switch, because a capture has no vectors of the former model. The rest is
replayed. A capture without embeddings can only be inspected.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import redis

from broker import DeadLetter, RedisStreamsBroker
from sploot_cluster.decide.corrections import CHANGE_KINDS
from sploot_cluster.decide.corrections.base import LedgerEntry
from sploot_cluster.decide.corrections.restore import RestoreRevision
from sploot_cluster.decide.deletion import STAND_IN
from sploot_cluster.errors import ClusterError, InvalidInput, UnknownPet
from sploot_cluster.jobs import ReclusterRequests
from sploot_cluster.pet.models import (
    HistoryEntry,
    MediaId,
    PetId,
    PetState,
)
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.store import ledger_json as ledger
from tasks.contracts import EMBEDDING_INGESTED, QUEUES
from tasks.encodings import to_base64
from tasks.observe.logs import without_payload
from tasks.queue_ops.dead_letters import pet_of, view_of
from tasks.queue_ops.entries import EMBEDDING, facts_of, without_embedding
from tasks.queue_ops.pet_index import find_jobs

if TYPE_CHECKING:
    from sploot_cluster import ClusterService
    from sploot_cluster.store.port import PetStore

FORMAT: Final = 1
MOST_DEAD_LETTERS: Final = 100
MOST_HISTORY: Final = 1_000_000
LIBRARIES: Final = ("sploot-cluster", "numpy", "faiss-cpu", "hdbscan", "scikit-learn")

Line = dict[str, Any]


# -- capturing ---------------------------------------------------------------------------------------------------------


def capture_pet(
    pet_id: int,
    *,
    store: PetStore,
    broker: RedisStreamsBroker,
    client: redis.Redis,
    settings: ClusterSettings,
    redact: bool = False,
) -> Iterator[Line]:
    """Yield the lines of a pet's capture.

    Args:
        redact: leave embeddings out of items, jobs and dead letters.

    Raises:
        InvalidInput: the pet has no items, no jobs and no dead letters.
    """
    pet = PetId(pet_id)
    while True:
        state, past, history = store.load(pet), store.past(pet), store.history(pet, limit=MOST_HISTORY)
        if past.state.version == state.version:
            break  # else there was a commit in between
    jobs = list(_jobs(broker, client, pet_id, redact=redact))
    dead_letters = list(_dead_letters(broker, pet_id, redact=redact))
    if not (state.n_media or jobs or dead_letters):
        raise InvalidInput("pet_id", f"pet {pet_id} has no items, no jobs and no dead letters", "capture another pet")
    yield _header(state, settings, redact=redact)
    yield from _story(state, [int(revision) for revision in past.arrived], history, redact=redact)
    yield from jobs
    yield from dead_letters


def capture_dead_letter(dead_letter: DeadLetter, *, settings: ClusterSettings, redact: bool = False) -> Iterator[Line]:
    """Yield the lines of a capture of one dead letter."""
    yield {
        "capture": FORMAT,
        "pet_id": pet_of(dead_letter),
        "redacted": redact,
        "settings": _settings_as_json(settings),
        "versions": _versions(),
    }
    yield _dead_letter_line(dead_letter, redact=redact)


def write_capture(lines: Iterable[Line], file: Path) -> int:
    """Write a new file that only its owner may read, and return the number of lines.

    Raises:
        InvalidInput: the file exists already or cannot be written.
    """
    n = 0
    try:
        file.touch(mode=0o600, exist_ok=False)
        with file.open("w", encoding="utf-8") as output:
            for line in lines:
                output.write(json.dumps(line, separators=(",", ":")) + "\n")
                n += 1
    except OSError as error:
        raise InvalidInput("--output", f"{file}: {error.strerror}", "name a new file in an existing folder") from None
    except BaseException:
        file.unlink(missing_ok=True)  # half a capture is worse than none
        raise
    return n


def labels_digest(media: Sequence[str], labels: Iterable[int]) -> str:
    """Return a digest that is equal for the same items in the same clusters, in any order."""
    lines = sorted(f"{item}\0{int(label)}" for item, label in zip(media, labels, strict=True))
    return hashlib.sha256("\n".join(lines).encode(errors="surrogatepass")).hexdigest()[:16]


def _header(state: PetState, settings: ClusterSettings, *, redact: bool) -> Line:
    return {
        "capture": FORMAT,
        "pet_id": int(state.pet),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": state.revision,
        "model": state.model,
        "dim": state.dim,
        "n_media": state.n_media,
        "labels": labels_digest(state.media, state.labels.tolist()),
        "redacted": redact,
        "settings": _settings_as_json(settings),
        "versions": _versions(),
    }


def _story(state: PetState, arrived: Sequence[int], history: Sequence[HistoryEntry], *, redact: bool) -> Iterator[Line]:
    """Yield items and changes in the order of their revisions."""
    corrections = {correction.revision: correction for correction in state.ledger}
    story: list[tuple[int, Line]] = []
    for row, (item, revision, label) in enumerate(zip(state.media, arrived, state.labels.tolist(), strict=True)):
        line: Line = {"item": item, "revision": revision, "label": label}
        if not redact:
            line["embedding"] = to_base64(state.vectors[row].astype("<f4").tobytes())
        story.append((revision, line))
    for entry in history:
        line = {
            "done": entry.kind,
            "revision": entry.revision,
            "by": entry.by,
            "at": entry.at.isoformat(),
            "summary": dict(entry.summary),
        }
        if (correction := corrections.get(entry.revision)) is not None:
            line["correction"] = json.loads(ledger.dumps(correction))
        story.append((entry.revision, line))
    yield from (line for _, line in sorted(story, key=lambda pair: pair[0]))


def _jobs(broker: RedisStreamsBroker, client: redis.Redis, pet_id: int, *, redact: bool) -> Iterator[Line]:
    found, _ = find_jobs(broker, client, pet_id)
    for job in found:
        if job.entry_id is None:
            continue  # a job outside the stream follows below, with its message
        entry = broker.inspector(job.queue).entry(job.entry_id)
        if entry is not None:  # else it ended meanwhile
            yield {"job": job.state, "queue": job.queue, "entry_id": job.entry_id, "fields": _fields(entry, redact)}
    for queue in {job.queue for job in found if job.entry_id is None}:
        for message in broker.inspector(queue).delayed():
            entry = {b"message": message}
            if facts_of(entry).pet_id == pet_id:
                yield {"job": "delayed", "queue": queue, "entry_id": None, "fields": _fields(entry, redact)}


def _dead_letters(broker: RedisStreamsBroker, pet_id: int, *, redact: bool) -> Iterator[Line]:
    n = 0
    for queue in QUEUES:
        before: str | None = None
        while n < MOST_DEAD_LETTERS and (page := broker.dead_letters(queue).list(500, before=before)):
            for dead_letter in page:
                if pet_of(dead_letter) == pet_id and n < MOST_DEAD_LETTERS:
                    n += 1
                    yield _dead_letter_line(dead_letter, redact=redact)
            before = page[-1].id


def _dead_letter_line(dead_letter: DeadLetter, *, redact: bool) -> Line:
    view = view_of(dead_letter)
    return {
        "dead_letter": dead_letter.id,
        "queue": dead_letter.queue_name,
        "died_at": dead_letter.died_at.isoformat(),
        "reason": dead_letter.reason,
        "error": without_payload(dead_letter.error) if redact else dead_letter.error,
        "field": dead_letter.field,
        "hint": dead_letter.hint,
        "actor": dead_letter.actor_name,
        "message_id": view.message_id,
        "deliveries": dead_letter.deliveries,
        "traceback": without_payload(dead_letter.traceback or "") if redact else dead_letter.traceback,
        "fields": _fields(dead_letter.fields, redact),
    }


def _fields(entry: Mapping[bytes, bytes], redact: bool) -> dict[str, str]:
    if not redact:
        return {name.decode(errors="replace"): base64.b64encode(value).decode() for name, value in entry.items()}
    readable = without_embedding(entry)
    return {
        name: base64.b64encode((value if isinstance(value, str) else json.dumps(value)).encode()).decode()
        for name, value in readable.items()
    }


def _settings_as_json(settings: ClusterSettings) -> dict[str, Any]:
    values = {setting.name: getattr(settings, setting.name) for setting in fields(ClusterSettings)}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "not installed"
    return found


# -- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Capture:
    """A capture that was read from a file.

    Attributes:
        header: its first line.
        story: items and changes, in order.
        jobs, dead letters: with their fields as bytes.
    """

    header: Line
    story: Sequence[Line]
    jobs: Sequence[Line]
    dead_letters: Sequence[Line]

    @property
    def is_redacted(self) -> bool:
        return bool(self.header.get("redacted"))

    @property
    def media(self) -> Sequence[Line]:
        return [line for line in self.story if "item" in line]


def read_capture(file: Path) -> Capture:
    """Return the capture in a file. Raises InvalidInput if it is unreadable or has an unknown format."""
    try:
        with file.open(encoding="utf-8") as lines:
            read = [cast(Line, json.loads(line)) for line in lines if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise InvalidInput("FILE", f"{file}: {problem}", "name a file written by sploot-cluster capture") from None
    except ValueError as error:
        raise InvalidInput("FILE", f"{file} is not JSON lines: {error}", "name a complete capture") from None
    if not read or not isinstance(cast(object, read[0]), dict) or read[0].get("capture") != FORMAT:
        hint = "name a file written by sploot-cluster capture"
        raise InvalidInput("FILE", f"{file} is not a capture of format {FORMAT}", hint)
    header, *rest = read
    for line in rest:
        if "done" in line and line["done"] not in CHANGE_KINDS:
            hint = "replay it with the release that captured it"
            raise InvalidInput("FILE", f"{file} contains a change of unknown kind {line['done']!r}", hint)
        if "fields" in line:
            line["fields"] = _bytes_of(line["fields"])
    return Capture(
        header=header,
        story=[line for line in rest if "item" in line or "done" in line],
        jobs=[line for line in rest if "job" in line],
        dead_letters=[line for line in rest if "dead_letter" in line],
    )


def _bytes_of(encoded: Mapping[str, str]) -> dict[bytes, bytes]:
    try:
        return {name.encode(): base64.b64decode(value, validate=True) for name, value in encoded.items()}
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(
            "FILE", f"the fields of an entry cannot be read: {error}", "name a complete capture"
        ) from None


# -- replaying ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Replayed:
    """The outcome of a replay.

    Attributes:
        labels: digest of the labels; ``expected`` is that of the capture.
        moved: items that ended elsewhere than in the capture: item, cluster then, cluster now.
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
    """Return the settings of a capture, with changes written as in the environment.

    Raises:
        InvalidInput: a change names no setting, or its value is invalid.
    """
    known = {setting.name for setting in fields(ClusterSettings)}
    values = {name: value for name, value in capture.header.get("settings", {}).items() if name in known}
    for name, text in changes.items():
        if name not in known:
            raise InvalidInput("--set", f"{name} is not a setting", f"choose from {', '.join(sorted(known))}")
        try:
            values[name] = getattr(ClusterSettings.from_env({f"SPLOOT_CLUSTERING_{name.upper()}": text}), name)
        except ValueError as refused:
            raise InvalidInput("--set", str(refused), "see sploot-cluster config show") from None
    return ClusterSettings(**values)


def replay(capture: Capture, settings: ClusterSettings) -> Replayed:
    """Replay a capture in memory.

    Raises:
        InvalidInput: its embeddings were left out.
    """
    if capture.is_redacted and capture.media:
        raise InvalidInput("FILE", "the capture has no embeddings", "capture the pet again without --redact")
    pet = PetId(int(capture.header.get("pet_id") or 1))
    service, clock, store = _in_memory(settings)
    differences: list[str] = []
    for line in capture.story:
        revision, now = int(line["revision"]), store.load(pet).revision
        if now + 1 < revision:
            gone = f"revision {now + 1}" if now + 2 == revision else f"revisions {now + 1} to {revision - 1}"
            differences.append(f"{gone} cannot be replayed: the items that arrived there were deleted since")
            _move_to(store, pet, revision - 1)
        try:
            if "item" in line:
                embedding = _vector(line["embedding"])
                model = str(capture.header["model"])
                service.assign(pet, MediaId(line["item"]), model=model, vector=embedding)
            else:
                clock.now = datetime.fromisoformat(line["at"])
                differences += [f"revision {revision}: {problem}" for problem in _do(service, pet, line)]
        except ClusterError as error:
            differences.append(f"revision {revision}: {line.get('done', 'arrival')} was refused: {error}")
        if store.load(pet).revision != revision:
            # refused, left out, or one of several items that joined the pet at a switch
            _move_to(store, pet, revision)
    state = store.load(pet)
    labels = dict(zip(state.media, state.labels.tolist(), strict=True))
    moved = [
        (line["item"], line["label"], labels.get(MediaId(line["item"]), -1))
        for line in capture.media
        if labels.get(MediaId(line["item"])) != line["label"]
    ]
    return Replayed(
        labels=labels_digest(list(labels), labels.values()),
        expected=capture.header.get("labels"),
        n_media=len(labels),
        n_clusters=len(set(labels.values()) - {-1}),
        n_noise=sum(label == -1 for label in labels.values()),
        moved=tuple(moved),
        differences=tuple(differences),
        verdicts=tuple(_verdict(dead_letter, state) for dead_letter in capture.dead_letters),
    )


class _Clock:
    def __init__(self) -> None:
        self.now = datetime(2000, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


class _Nobody(ReclusterRequests):
    """Ignores requests for reclusters: the story contains those that ran."""

    def request_recluster(self, pet_id: int, *, reason: str, delay_ms: int) -> None:
        pass


def _in_memory(settings: ClusterSettings) -> tuple[ClusterService, _Clock, PetStore]:
    from sploot_cluster import ClusterService
    from sploot_cluster.store.memory import MemoryPetStore

    clock = _Clock()
    store = MemoryPetStore(clock=clock)
    return ClusterService(store, settings=settings, reclusters=_Nobody(), clock=clock), clock, store


def _move_to(store: PetStore, pet: PetId, revision: int) -> None:
    """Set the pet's revision, so that later corrections and restores refer to the right revisions."""
    import numpy as np

    from sploot_cluster.pet.whole import PetDump

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


def _do(service: ClusterService, pet: PetId, line: Line) -> Iterator[str]:
    """Repeat the change of a line; yield what cannot be repeated."""
    kind, by, summary = line["done"], str(line["by"]), line["summary"]
    match kind:
        case "arrival":
            pass  # its item has a line of its own
        case "recluster":
            service.recluster(pet, by=by)
        case "restore":
            request = RestoreRevision(pet, int(summary["restored"]), requested_by=by)
            service.correct(request, operation_id=str(summary["operation_id"]))
        case "delete":
            yield f"the deletion of {summary['n_deleted']} items cannot be replayed: no data of them is left"
        case "switch":
            yield (
                f"the switch from {summary['from']} to {summary['to']} cannot be replayed: "
                f"vectors of {summary['from']} are not captured; everything is replayed with those of {summary['to']}"
            )
        case _:
            yield from _correct(service, pet, ledger.loads(json.dumps(line["correction"]), pet=pet))


def _correct(service: ClusterService, pet: PetId, correction: LedgerEntry) -> Iterator[str]:
    """Repeat a correction with the items that are left; yield what cannot be repeated."""
    n_named = n_gone = 0

    def left(media: Sequence[MediaId]) -> Sequence[MediaId]:
        nonlocal n_named, n_gone
        kept = [item for item in media if not item.startswith(STAND_IN)]
        n_named, n_gone = n_named + len(media), n_gone + len(media) - len(kept)
        return kept

    request = correction.request(pet, left)
    if request is not None:
        service.correct(request, operation_id=correction.operation_id)
    if n_gone:
        yield f"{n_gone} of the {n_named} items that it names cannot be replayed: they were deleted since"


def _vector(text: str) -> Any:
    import numpy as np

    return np.frombuffer(base64.b64decode(text), dtype="<f4")


def _verdict(dead_letter: Line, state: PetState) -> str:
    """Return whether a dead letter would be accepted now, and why not."""
    from tasks.contracts import EmbeddingIngested

    which, entry = f"dead letter {dead_letter['dead_letter']}", dead_letter["fields"]
    if dead_letter["queue"] != EMBEDDING_INGESTED:
        return f"{which}: {dead_letter['error']} (only events of items can be checked offline)"
    try:
        if b"message" in entry:
            event = EmbeddingIngested.from_kwargs(json.loads(entry[b"message"])["kwargs"])
        else:
            event = EmbeddingIngested.from_fields(entry)
    except InvalidInput as refused:
        return f"{which}: refused again: {refused}"
    except (ValueError, KeyError, TypeError) as error:
        return f"{which}: cannot be read: {type(error).__name__}: {error}"
    if state.dim is not None and (event.model, event.dim) != (state.model, state.dim):
        return (
            f"{which}: refused again: the pet has vectors of {state.model} with {state.dim} dimensions, "
            f"this is {event.model} with {event.dim}"
        )
    return f"{which}: would be accepted now; it failed with {dead_letter['error']}"


def event_fields(line: Line, header: Line) -> dict[str, Any]:
    """Return an item of a capture as arguments for ``EmbeddingIngested.of``."""
    return {
        "pet_id": int(header["pet_id"]),
        "media_id": line["item"],
        "model": header["model"],
        EMBEDDING: line["embedding"],
        "encoding": "base64-f32le",
    }
