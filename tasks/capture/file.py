"""The file format of captures, and the functions that write and read it.

A capture is a zip of these members:

    settings.json       the time of the capture, the settings and versions then, and the digest of the pet's labels
    pet.zip             the pet's export file, byte for byte; absent if there is no pet. In a raw capture, the keys of
                        the pet as they are (raw.py)
    jobs.jsonl          the pet's unfinished jobs, one per line
    dead_letters.jsonl  the pet's newest dead letters, or the one that was captured

Jobs and dead letters have the fields of their stream entries, as base64. If an entry is larger than a megabyte, only
its head is captured, except in the capture of a single dead letter. In a redacted capture, the fields are readable text
without embeddings; such a capture can only be inspected.
"""

from __future__ import annotations

import base64
import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import redis

from broker import DeadLetter, RedisStreamsBroker
from sploot_cluster.errors import InvalidInput, UnknownPet, UnreadableExport
from sploot_cluster.pet.models import PetId, PetState
from sploot_cluster.settings import PREFIX, ClusterSettings
from sploot_cluster.store import archives, export_file
from tasks.capture.raw import RAW, members_of
from tasks.capture.redaction import redacted_fields, redacted_text
from tasks.contracts import QUEUES
from tasks.observe.logs import without_payload
from tasks.queue_ops.dead_letters import message_id_of, pet_of
from tasks.queue_ops.entries import facts_of
from tasks.queue_ops.pet_index import find_jobs
from tasks.shards import queue_of, shards_of_all

if TYPE_CHECKING:
    from sploot_cluster.pet.whole import PetDump
    from sploot_cluster.store.port import PetStore
    from sploot_cluster.store.repairs import PetRepairs, RawPet

FORMAT: Final = 1
MOST_DEAD_LETTERS: Final = 100
LIBRARIES: Final = ("sploot-cluster", "numpy", "faiss-cpu")

SETTINGS: Final = "settings.json"
PET: Final = "pet.zip"
JOBS: Final = "jobs.jsonl"
DEAD_LETTERS: Final = "dead_letters.jsonl"

_SETTINGS_SHAPE: Final[archives.Shape] = {"redacted": bool, "labels": (str, None), "settings": dict}
_JOB_SHAPE: Final[archives.Shape] = {"state": str, "queue": frozenset(QUEUES), "fields": {str: str}}
_DEAD_LETTER_SHAPE: Final[archives.Shape] = {
    "dead_letter_id": str,
    "queue": frozenset(QUEUES),
    "died_at": str,
    "error": str,
    "n_bytes_cut": range(2**53),
    "fields": {str: str},
}

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CapturedJob:
    """An unfinished job: ``waiting``, ``in flight`` or ``delayed``."""

    state: str
    queue: str
    fields: Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class CapturedDeadLetter:
    """A dead letter; ``n_bytes_cut`` is its full size if only its head was captured, otherwise 0."""

    id: str
    queue: str
    died_at: datetime
    error: str
    n_bytes_cut: int
    fields: Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Capture:
    """A capture that was read from a file, with embeddings.

    Attributes:
        pet: the captured pet; None for the capture of a dead letter or of a pet without data.
        settings: the settings at the time of the capture.
    """

    pet: PetDump | None
    jobs: Sequence[CapturedJob]
    dead_letters: Sequence[CapturedDeadLetter]
    settings: ClusterSettings


def labels_digest(state: PetState) -> str:
    """Return a digest that depends only on which items are in which clusters, not on their order."""
    lines = sorted(f"{item}\0{label}" for item, label in zip(state.media, state.labels.tolist(), strict=True))
    return hashlib.sha256("\n".join(lines).encode(errors="surrogatepass")).hexdigest()[:16]


# -- writing -----------------------------------------------------------------------------------------------------------


def capture_pet(
    pet_id: int,
    *,
    store: PetStore,
    broker: RedisStreamsBroker,
    client: redis.Redis,
    settings: ClusterSettings,
    redact: bool = False,
) -> bytes:
    """Return the capture of a pet.

    Args:
        redact: leave embeddings out of items, jobs and dead letters.

    Raises:
        InvalidInput: the pet has no data, no jobs and no dead letters.
    """
    # read the pet last: an item whose job ends during the capture is then captured twice instead of lost
    jobs = list(_jobs(broker, client, pet_id, redact=redact))
    dead_letters = [_dead_letter_line(dead_letter, redact=redact) for dead_letter in _dead_letters_of(broker, pet_id)]
    try:
        pet = store.dump(PetId(pet_id))
    except UnknownPet:
        if not (jobs or dead_letters):
            problem = f"pet {pet_id} has no items, no jobs and no dead letters"
            raise InvalidInput("pet_id", problem, "capture another pet") from None
        pet = None
    return _packed(pet_id, pet, jobs, dead_letters, settings, redact=redact)


def capture_raw(
    pet_id: int,
    *,
    repairs: PetRepairs,
    broker: RedisStreamsBroker,
    client: redis.Redis,
    settings: ClusterSettings,
    redact: bool = False,
) -> bytes:
    """Return a capture that holds the keys of a pet as they are, even if damaged, in place of its export file.

    Args:
        redact: leave embeddings out of keys, jobs and dead letters.

    Raises:
        InvalidInput: the pet has no data.
    """
    jobs = list(_jobs(broker, client, pet_id, redact=redact))
    dead_letters = [_dead_letter_line(dead_letter, redact=redact) for dead_letter in _dead_letters_of(broker, pet_id)]
    raw = repairs.read(PetId(pet_id), with_vectors=not redact)
    if not raw.keys:
        raise InvalidInput("pet_id", f"no key of pet {pet_id} exists", "capture another pet")
    return _packed(pet_id, None, jobs, dead_letters, settings, redact=redact, raw=raw)


def capture_dead_letter(dead_letter: DeadLetter, *, settings: ClusterSettings, redact: bool = False) -> bytes:
    """Return the capture of one dead letter."""
    lines = [_dead_letter_line(dead_letter, redact=redact)]
    return _packed(pet_of(dead_letter), None, [], lines, settings, redact=redact)


def write_capture(capture: bytes, file: Path) -> None:
    """Write a new file that only its owner may read.

    Raises:
        InvalidInput: the file exists already or cannot be written.
    """
    try:
        file.touch(mode=0o600, exist_ok=False)
        try:
            file.write_bytes(capture)
        except BaseException:
            file.unlink()  # an incomplete capture is worse than none
            raise
    except OSError as error:
        raise InvalidInput("--output", f"{file}: {error.strerror}", "name a new file in an existing folder") from None


def _packed(
    pet_id: int | None,
    pet: PetDump | None,
    jobs: Sequence[Line],
    dead_letters: Sequence[Line],
    settings: ClusterSettings,
    *,
    redact: bool,
    raw: RawPet | None = None,
) -> bytes:
    about = {
        "capture": FORMAT,
        "pet_id": pet_id,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "redacted": redact,
        "labels": None if pet is None else labels_digest(pet.state),
        "settings": _settings_as_json(settings),
        "versions": _versions(),
    }
    return archives.pack(
        {
            SETTINGS: json.dumps(about, indent=1).encode(),
            **({} if pet is None else {PET: export_file.dump(pet, redact=redact)}),
            **({} if raw is None else members_of(raw, redact=redact)),
            JOBS: _as_lines(jobs),
            DEAD_LETTERS: _as_lines(dead_letters),
        }
    )


def _as_lines(lines: Iterable[Line]) -> bytes:
    return "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()


def _jobs(broker: RedisStreamsBroker, client: redis.Redis, pet_id: int, *, redact: bool) -> Iterator[Line]:
    found, _ = find_jobs(broker, client, pet_id)
    for job in found:
        if job.entry_id is None:
            continue  # jobs outside the stream are yielded below, with their messages
        entry = broker.inspector(job.queue).entry(job.entry_id)
        if entry is not None:  # None if the job has ended since it was found
            yield {
                "state": job.state,
                "queue": queue_of(job.queue),
                "entry_id": job.entry_id,
                "fields": _written(entry, redact=redact),
            }
    for queue in {job.queue for job in found if job.entry_id is None}:
        for _, message in broker.inspector(queue).delayed():
            entry = {b"message": message}
            if facts_of(entry).pet_id == pet_id:
                yield {
                    "state": "delayed",
                    "queue": queue_of(queue),
                    "entry_id": None,
                    "fields": _written(entry, redact=redact),
                }


def _dead_letters_of(broker: RedisStreamsBroker, pet_id: int) -> Iterator[DeadLetter]:
    found = (
        dead_letter
        for queue in shards_of_all(broker)
        for dead_letter in broker.dead_letters(queue).find(where=lambda one: pet_of(one) == pet_id)
    )
    return islice(found, MOST_DEAD_LETTERS)


def _dead_letter_line(dead_letter: DeadLetter, *, redact: bool) -> Line:
    texts = {
        "reason": dead_letter.reason,
        "field": dead_letter.field,
        "actor": dead_letter.actor_name,
        "message_id": message_id_of(dead_letter),
    }
    long_texts = {"error": dead_letter.error, "hint": dead_letter.hint, "traceback": dead_letter.traceback}
    if redact:
        texts = {name: text and redacted_text(text) for name, text in texts.items()}
        long_texts = {name: text and without_payload(text) for name, text in long_texts.items()}
    return {
        "dead_letter_id": dead_letter.id,
        "queue": queue_of(dead_letter.queue_name),
        "died_at": dead_letter.died_at.isoformat(),
        "deliveries": dead_letter.deliveries,
        "n_bytes_cut": dead_letter.n_bytes_cut,
        **texts,
        **long_texts,
        "fields": _written(dead_letter.fields, redact=redact),
    }


def _written(entry: Mapping[bytes, bytes], *, redact: bool) -> dict[str, Any]:
    if redact:
        return redacted_fields(entry)
    return {
        name.decode(errors="surrogateescape"): base64.b64encode(value).decode("ascii") for name, value in entry.items()
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


def read_capture(file: Path) -> Capture:
    """Read a capture from a file.

    Raises:
        InvalidInput: the file cannot be read, is not a capture, is damaged, or has no embeddings.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise _unreadable(f"{file}: {error.strerror}") from None
    try:
        return _read(archives.unpack(content))
    except UnreadableExport as error:
        raise _unreadable(f"{file}: {PET}: {error.problem}") from error
    except (ValueError, RecursionError) as error:
        raise _unreadable(f"{file} is not a complete capture: {error}") from error


def pet_in(file: bytes) -> bytes:
    """Return the export file in a capture, or the file itself if it is not a capture.

    Raises:
        InvalidInput: the capture is damaged, or has no pet.
    """
    if not archives.has_member(file, SETTINGS):
        return file
    try:
        members = archives.unpack(file)
    except ValueError as error:
        raise _unreadable(f"the capture is damaged: {error}") from error
    if PET not in members:
        raise InvalidInput("FILE", "the capture has no pet", "name a capture of a pet")
    return members[PET]


def _unreadable(problem: str) -> InvalidInput:
    return InvalidInput("FILE", problem, "name an unmodified file written by `sploot-cluster capture`")


def _read(members: Mapping[str, bytes]) -> Capture:
    about = json.loads(_member(members, SETTINGS))
    archives.check(about, {"capture": int}, name=SETTINGS)
    if about["capture"] != FORMAT:
        raise ValueError(f"expected format {FORMAT}, got {about['capture']}")
    archives.check(about, _SETTINGS_SHAPE, name=SETTINGS)
    if about["redacted"]:
        raise InvalidInput(
            "FILE", "the capture has no embeddings, so it can only be inspected", "capture again without --redact"
        )
    if RAW in members:
        hint = "import it into a spare Redis, repair the pet there, and capture it again"
        raise InvalidInput("FILE", "the capture has the keys of a pet as they were, which cannot be replayed", hint)
    pet = export_file.load(members[PET]) if PET in members else None
    if about["labels"] != (None if pet is None else labels_digest(pet.state)):
        raise ValueError(f"the labels of its pet are not those of {SETTINGS}")
    return Capture(
        pet=pet,
        jobs=[
            CapturedJob(line["state"], line["queue"], _bytes_of(line["fields"]))
            for line in _lines_of(members, JOBS, _JOB_SHAPE)
        ],
        dead_letters=[
            CapturedDeadLetter(
                line["dead_letter_id"],
                line["queue"],
                archives.time_of(line["died_at"]),
                line["error"],
                line["n_bytes_cut"],
                _bytes_of(line["fields"]),
            )
            for line in _lines_of(members, DEAD_LETTERS, _DEAD_LETTER_SHAPE)
        ],
        settings=_settings_of(about["settings"]),
    )


def _member(members: Mapping[str, bytes], name: str) -> bytes:
    if name not in members:
        raise ValueError(f"it has no {name}")
    return members[name]


def _lines_of(members: Mapping[str, bytes], name: str, shape: archives.Shape) -> Iterator[Line]:
    for number, text in enumerate(_member(members, name).splitlines(), start=1):
        line = json.loads(text)
        archives.check(line, shape, name=f"{name}, line {number}")
        yield line


def _bytes_of(encoded: Mapping[str, str]) -> dict[bytes, bytes]:
    return {
        name.encode(errors="surrogateescape"): base64.b64decode(value, validate=True) for name, value in encoded.items()
    }


def _settings_of(values: Mapping[str, object]) -> ClusterSettings:
    """Return settings from their JSON values; settings that this release does not have are ignored."""
    known = {setting.name for setting in fields(ClusterSettings)}
    try:
        return ClusterSettings.from_env(
            {f"{PREFIX}{name.upper()}": _as_text(value) for name, value in values.items() if name in known}
        )
    except InvalidInput as invalid:
        raise ValueError(f"{SETTINGS}: {invalid.field}: {invalid.problem}") from None


def _as_text(value: object) -> str:
    return ",".join(f"{model}={dim}" for model, dim in value.items()) if isinstance(value, dict) else str(value)
