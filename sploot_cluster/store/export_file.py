"""The file format of an exported pet.

The file is a zip of ``pet.json`` and the columns in their Redis format, little-endian, each with a checksum. Any
language can read it, nothing in it is executed, and exports of the same pet are identical. The stored spanning tree and
preview are left out, because they can be computed again.

A redacted file has everything except the vectors, and :func:`load` refuses it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from itertools import islice, pairwise
from typing import Any, Final, NamedTuple

import numpy as np

from sploot_cluster.decide.corrections import CHANGE_KINDS
from sploot_cluster.errors import UnreadableExport, UnreadablePet
from sploot_cluster.limits import MAX_TEXT
from sploot_cluster.pet import past
from sploot_cluster.pet.models import (
    NOISE,
    ClusterCard,
    ClusterId,
    Correction,
    HistoryEntry,
    MediaId,
    Origin,
    PetId,
    PetState,
)
from sploot_cluster.pet.rows import PetRows
from sploot_cluster.pet.shadow import Shadow
from sploot_cluster.pet.tally import Quarantined
from sploot_cluster.pet.times import TIMES, ms_of
from sploot_cluster.pet.vectors import FloatMatrix
from sploot_cluster.pet.whole import PetDump
from sploot_cluster.store import archives
from sploot_cluster.store import ledger_json as ledger

FORMAT: Final = 1

_FACTS: Final = "pet.json"
_COLUMNS: Final = ("vectors.f32le", "labels.i32le", "origins.u8", "occurred_at.i64le", "arrived.u32le")

# Number of JSON tokens that are encoded together, tens of kilobytes in total.
_TEXTS_PER_PART: Final = 2_000

# Maximum inflated size of each part of a record of overwritten labels: room for the ids of 131,072 aliases. For a pet
# with many items, the limit is nine bytes per item instead.
_MOST_BYTES_OF_ALIASES: Final = 1024**2

# Redis stores revisions as uint32 and cluster ids as int32. A file may use only half of each range, so that an imported
# pet can continue to grow: at a thousand revisions per second, the other half lasts for weeks.
_REVISION: Final = range(2**31)
_CLUSTER: Final = range(1, 2**30)
_SHAPE: Final[archives.Shape] = {
    "redacted": bool,
    "pet_id": range(1, 2**63),
    "revision": _REVISION[1:],
    "model": (str, None),
    "dim": (range(1, 2**31), None),
    "media": [str],
    "clusters": [{"id": _CLUSTER, "threshold": float, "since": _REVISION, "split_from": (_CLUSTER, None)}],
    "aliases": {str: _CLUSTER},
    "ledger": [{"revision": _REVISION[1:], "operation_id": str, "by": str, "at": str, "kind": str}],
    "next_cluster": _CLUSTER,
    "n_at_recluster": _REVISION,
    "noise_arrivals": _REVISION,
    "relabelled_at": _REVISION,
    "past_from": _REVISION,
    "history": [{"revision": _REVISION[1:], "kind": frozenset(CHANGE_KINDS), "at": str, "by": str, "summary": dict}],
    "quarantine": {str: {"model": str, "dim": range(2**31), "at": str, "occurred_at_ms": TIMES}},
    "ingested": range(2**53),
    "overflowed": range(2**53),
    "shadow": (
        {"model": str, "dim": range(1, 2**31), "begun_at": str, "by": str, "was_own": bool, "media": [str]},
        None,
    ),
    "sha256": {str: str},
}


def dump(pet: PetDump, *, redact: bool = False) -> bytes:
    """Return the pet as a file for :func:`load`, or without its vectors if ``redact``."""
    # a view, not a copy, because the vectors can take hundreds of megabytes
    rows = np.ascontiguousarray(pet.state.vectors, dtype="<f4").reshape(-1).view(np.uint8)
    vectors = None if redact else Vectors([rows.data] if rows.size else [], _pages_of(pet.shadow))
    return b"".join(stream(pet, vectors))


class Vectors(NamedTuple):
    """The vectors of a pet in the order in which a file stores them, in pages of any size.

    Attributes:
        own: the vectors of the rows, in order.
        shadow: pages of item ids and vectors of the shadow, in the order of the ids.
    """

    own: Iterable[bytes | memoryview]
    shadow: Iterable[tuple[Sequence[MediaId], bytes]]


def _pages_of(shadow: Shadow | None) -> Iterator[tuple[Sequence[MediaId], bytes]]:
    if shadow is not None:
        for item in sorted(shadow.vectors):
            yield [item], shadow.vectors[item].astype("<f4", copy=False).tobytes()


def stream(pet: PetDump, vectors: Vectors | None) -> Iterator[bytes]:
    """Yield the file of a pet in parts. ``pet.json`` is its last member, because it has the checksums of all others.

    Args:
        pet: the data to write, except vectors; its own vectors and those of its shadow are ignored.
        vectors: None leaves them out.
    """
    digests: dict[str, str] = {}
    in_shadow: list[MediaId] = []

    def member(name: str, most_bytes: int, parts: Iterable[bytes | memoryview]) -> archives.Member:
        def digested() -> Iterator[bytes | memoryview]:
            digest = sha256()
            for part in parts:
                digest.update(part)
                yield part
            digests[name] = digest.hexdigest()

        return name, most_bytes, digested()

    def shadow_rows(pages: Iterable[tuple[Sequence[MediaId], bytes]]) -> Iterator[bytes]:
        for items, rows in pages:
            in_shadow.extend(items)
            yield rows

    def members() -> Iterator[archives.Member]:
        state, shadow = pet.state, pet.shadow
        if vectors is not None:
            yield member("vectors.f32le", 4 * state.n_media * (state.dim or 0), vectors.own)
            if shadow is not None:
                most = 4 * (state.n_media + len(pet.quarantine)) * shadow.dim
                yield member("shadow.f32le", most, shadow_rows(vectors.shadow))
        for name, column in (
            ("labels.i32le", state.labels.astype("<i4", copy=False).tobytes()),
            ("origins.u8", state.origins.tobytes()),
            ("occurred_at.i64le", state.occurred_at_ms.astype("<i8", copy=False).tobytes()),
            ("arrived.u32le", pet.arrived.astype("<u4", copy=False).tobytes()),
        ):
            yield member(name, len(column), [column])
        for one in pet.overwritten:
            record = past.dump(one)
            yield member(f"overwritten/{one.revision}", len(record), [record])
        if shadow is not None and vectors is None:
            in_shadow.extend(sorted(shadow.vectors))
        yield _FACTS, 0, _encoded(_facts(pet, in_shadow, digests, redact=vectors is None))

    return archives.packed(members())


def _encoded(facts: Mapping[str, object]) -> Iterator[bytes]:
    """Yield JSON in parts, because an encoder that indents takes 200 bytes of memory per item of a list at once."""
    texts = json.JSONEncoder(ensure_ascii=False, indent=1).iterencode(facts)
    while part := "".join(islice(texts, _TEXTS_PER_PART)):
        yield part.encode()


def _facts(
    pet: PetDump, in_shadow: Sequence[MediaId], digests: Mapping[str, str], *, redact: bool
) -> dict[str, object]:
    state, shadow = pet.state, pet.shadow
    return {
        "format": FORMAT,
        "redacted": redact,
        "pet_id": state.pet,
        "revision": state.revision,
        "model": state.model,
        "dim": state.dim,
        "media": list(state.media),
        "clusters": [asdict(card) for _, card in sorted(state.clusters.items())],
        "aliases": {str(old): now for old, now in sorted(state.aliases.items())},
        "ledger": [json.loads(ledger.dumps(correction)) for correction in state.ledger],
        "next_cluster": state.next_cluster,
        "n_at_recluster": state.n_at_recluster,
        "noise_arrivals": state.noise_arrivals,
        "relabelled_at": state.relabelled_at,
        "past_from": pet.past_from,
        "history": [asdict(entry) | {"at": entry.at.isoformat()} for entry in pet.history],
        "quarantine": {item: asdict(why) | {"at": why.at.isoformat()} for item, why in sorted(pet.quarantine.items())},
        "ingested": pet.ingested,
        "overflowed": pet.overflowed,
        "shadow": None if shadow is None else _facts_of_shadow(shadow, in_shadow),
        "sha256": dict(digests),
    }


def _facts_of_shadow(shadow: Shadow, media: Sequence[MediaId]) -> dict[str, object]:
    return {
        "model": shadow.model,
        "dim": shadow.dim,
        "begun_at": shadow.begun_at.isoformat(),
        "by": shadow.by,
        "was_own": shadow.was_own,
        "media": list(media),
    }


def _shadow(facts: Mapping[str, Any] | None, columns: Mapping[str, bytes]) -> Shadow | None:
    if facts is None:
        return None
    vectors = np.frombuffer(columns["shadow.f32le"], dtype="<f4").astype(np.float32)
    rows = vectors.reshape(len(facts["media"]), facts["dim"])
    by_item = {MediaId(item): row for item, row in zip(facts["media"], rows, strict=True)}
    if len(by_item) != len(facts["media"]):
        raise ValueError(f"{_FACTS}.shadow.media has an item twice")
    begun_at = archives.time_of(facts["begun_at"])
    return Shadow(facts["model"], facts["dim"], begun_at, facts["by"], by_item, len(by_item), facts["was_own"])


def load(file: bytes, *, pet: PetId | None = None) -> PetDump:
    """Return the pet from a file, under its own id or the given one.

    Raises:
        UnreadableExport: the file is not an export, has an unknown format, or is damaged, redacted or inconsistent.
    """
    try:
        read = _read(*_unpacked(file), pet=pet)
        problem = next(problems(read), None)
    except UnreadablePet as exc:
        raise UnreadableExport(exc.problem) from exc
    except ValueError as exc:
        raise UnreadableExport(str(exc)) from exc
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as exc:
        raise UnreadableExport(f"{type(exc).__name__}: {exc}") from exc
    if problem is not None:
        raise UnreadableExport(problem)
    return read


def _unpacked(file: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the facts and columns of a file.

    Raises:
        KeyError, ValueError, RecursionError: the file is not an export, or is damaged.
        UnreadableExport: the format is unknown, the file is redacted, or it is not an export; the message explains the
            problem.
    """
    members = archives.unpack(file)
    if _FACTS not in members:
        raise UnreadableExport(f"it has no {_FACTS}")
    facts: dict[str, Any] = json.loads(members[_FACTS], parse_constant=_no_number)
    archives.check(facts, {"format": int}, name=_FACTS)
    if facts["format"] != FORMAT:
        raise UnreadableExport(f"expected format {FORMAT}, got {facts['format']!r}")
    archives.check(facts, _SHAPE, name=_FACTS)
    if (name := archives.unencodable(facts, name=_FACTS)) is not None:
        raise UnreadableExport(f"{name}: expected text that can be encoded as UTF-8")
    if facts["redacted"]:
        raise UnreadableExport("its vectors were left out, so it can only be inspected")
    missing = {*_COLUMNS, *facts["sha256"]} - members.keys()
    if missing:
        raise UnreadableExport(f"it has no {min(missing)}")
    columns = {name: members[name] for name in {**dict.fromkeys(_COLUMNS), **facts["sha256"]}}
    for name, column in columns.items():
        archives.check(facts, {"sha256": {name: str}}, name=_FACTS)
        if sha256(column).hexdigest() != facts["sha256"][name]:
            raise UnreadableExport(f"the checksum of {name} does not match")
    return facts, columns


def _no_number(text: str) -> float:
    raise ValueError(f"{_FACTS}: {text} is not a number")


def _correction(number: int, facts: Mapping[str, Any], *, pet: PetId) -> Correction:
    """Parse a correction of the ledger; refuse one that Redis would store differently than the file does."""
    name = f"{_FACTS}.ledger[{number}]"
    try:
        correction = ledger.loads(json.dumps(facts), pet=pet)
        stored = json.loads(ledger.dumps(correction))
    except UnreadablePet as unreadable:
        raise ValueError(f"{name}: {unreadable.problem}") from unreadable
    for field, value in stored.items():
        if facts.get(field) != value:
            raise ValueError(f"{name}.{field}: expected what a release wrote, found another form of it")
        numbers = [value] if isinstance(value, int) else [*map(int, value)] if isinstance(value, dict) else []
        if not all(NOISE <= one < _REVISION.stop for one in numbers):
            raise ValueError(f"{name}.{field}: expected numbers from {NOISE} to {_REVISION.stop - 1}")
    return correction


def _cluster(text: str) -> ClusterId:
    if not (text.isascii() and text.isdigit() and text == str(int(text)) and int(text) in _CLUSTER):
        raise ValueError(f"{_FACTS}.aliases: {text!r} is not the id of a cluster")
    return ClusterId(int(text))


def _medoid(card: Mapping[str, Any], n: int) -> int | None:
    """Return the medoid on a card, or None for a file of an older release, which has no medoids."""
    medoid = card.get("medoid")
    archives.check({"medoid": medoid}, {"medoid": (range(n), None)}, name=_FACTS)
    return medoid


def _read(facts: Mapping[str, Any], columns: Mapping[str, bytes], *, pet: PetId | None) -> PetDump:
    pet = pet or PetId(facts["pet_id"])
    media = [MediaId(item) for item in facts["media"]]
    n, dim = len(media), facts["dim"]
    vectors = np.frombuffer(columns["vectors.f32le"], dtype="<f4").astype(np.float32)
    vectors = vectors.reshape(n, dim) if dim is not None else np.empty((0, 0), dtype=np.float32)
    times = np.frombuffer(columns["occurred_at.i64le"], dtype="<i8").astype(np.int64)
    if len(times) != n:
        raise ValueError(f"occurred_at.i64le has {len(times)} times of {n} items")
    rows = PetRows(media, vectors, times)
    if len({card["id"] for card in facts["clusters"]}) != len(facts["clusters"]):
        raise ValueError(f"{_FACTS}.clusters has a cluster twice")
    cards = [
        ClusterCard(ClusterId(card["id"]), card["threshold"], card["since"], card["split_from"], _medoid(card, n))
        for card in facts["clusters"]
    ]
    # one byte more than the limit, so that a part of exactly the maximum size is read to its end
    most_bytes = max(9 * n, _MOST_BYTES_OF_ALIASES) + 1
    overwritten = [
        past.load(int(name.removeprefix("overwritten/")), column, most_bytes=most_bytes)
        for name, column in columns.items()
        if name.startswith("overwritten/")
    ]
    return PetDump(
        PetState(
            pet=pet,
            revision=facts["revision"],
            model=facts["model"],
            dim=dim,
            media=rows.media(n),
            rows=rows.index(n),
            vectors=rows.vectors(n),
            occurred_at_ms=rows.occurred_at_ms(n),
            labels=np.frombuffer(columns["labels.i32le"], dtype="<i4").astype(np.int32),
            origins=np.frombuffer(columns["origins.u8"], dtype=np.uint8).copy(),
            clusters={card.id: card for card in cards},
            aliases={_cluster(old): ClusterId(now) for old, now in facts["aliases"].items()},
            ledger=tuple(_correction(number, one, pet=pet) for number, one in enumerate(facts["ledger"])),
            next_cluster=ClusterId(facts["next_cluster"]),
            n_at_recluster=facts["n_at_recluster"],
            noise_arrivals=facts["noise_arrivals"],
            relabelled_at=facts["relabelled_at"],
        ),
        arrived=np.frombuffer(columns["arrived.u32le"], dtype="<u4").astype(np.uint32),
        overwritten=tuple(sorted(overwritten, key=lambda one: one.revision)),
        past_from=facts["past_from"],
        history=tuple(
            HistoryEntry(entry["revision"], entry["kind"], archives.time_of(entry["at"]), entry["by"], entry["summary"])
            for entry in facts["history"]
        ),
        quarantine={
            MediaId(item): Quarantined(why["model"], why["dim"], archives.time_of(why["at"]), why["occurred_at_ms"])
            for item, why in facts["quarantine"].items()
        },
        ingested=facts["ingested"],
        overflowed=facts["overflowed"],
        shadow=_shadow(facts["shadow"], columns),
    )


def problems(pet: PetDump) -> Iterator[str]:
    state = pet.state
    n = state.n_media
    yield from _problems_of_texts(pet)
    lengths = len(state.labels), len(state.origins), len(pet.arrived), len(state.occurred_at_ms)
    if lengths != (n, n, n, n):
        yield f"it has {n} items, but {lengths} labels, origins, arrivals and times"
    if n and (state.occurred_at_ms.min() < TIMES[0] or state.occurred_at_ms.max() > TIMES[-1]):
        yield "a time of an item is out of range"
    if len(set(state.media)) != n or set(state.media) & pet.quarantine.keys():
        yield "it contains an item twice"
    if set(np.unique(state.labels).tolist()) - {NOISE} != set(state.clusters):
        yield "its labels do not match its clusters"
    if pet.shadow is not None and pet.shadow.vectors.keys() - set(state.media) - pet.quarantine.keys():
        yield "items that only its candidate model has are not quarantined"
    if pet.ingested != n + len(pet.quarantine):
        yield f"it ingested {pet.ingested} items, but has {n} and {len(pet.quarantine)} quarantined"
    if n and (state.model is None or state.dim is None):
        yield "it has items but no model"
    if any(len(one.rows) and int(one.rows.max()) >= n for one in pet.overwritten):
        yield "its past refers to items that it does not have"
    if (np.diff(pet.arrived.astype(np.int64)) < 0).any() or (n and int(pet.arrived[-1]) > state.revision):
        yield "its arrivals are not in order"
    spaces = [state.vectors] if pet.shadow is None else [state.vectors, np.array([*pet.shadow.vectors.values()])]
    if not all(len(vectors) == 0 or _is_of_unit_norm(vectors) for vectors in spaces) or len(state.vectors) != n:
        yield "its vectors do not have unit norm"
    if n and int(state.origins.max()) > max(Origin):
        yield "it has an origin of an unknown kind"
    if not np.array_equal(state.labels == NOISE, np.isin(state.origins, (Origin.NOISE, Origin.DISMISSED))):
        yield "its origins do not match its labels"
    if state.aliases.keys() & state.clusters.keys() or set(state.aliases.values()) - state.clusters.keys():
        yield "its aliases do not resolve to its clusters"
    if state.next_cluster <= max(assigned_ids(pet), default=0):
        yield f"its next cluster id, {state.next_cluster}, was assigned already"
    yield from _problems_of_revisions(pet)


def _problems_of_texts(pet: PetDump) -> Iterator[str]:
    state, shadow = pet.state, pet.shadow
    in_shadow: Collection[MediaId] = () if shadow is None else shadow.vectors
    for name, items in (("media", state.media), ("quarantine", pet.quarantine), ("shadow.media", in_shadow)):
        if any(not 1 <= len(item) <= MAX_TEXT for item in items):
            yield f"{name}: expected ids of 1 to {MAX_TEXT} characters"
    models = [state.model, *(why.model for why in pet.quarantine.values()), *([shadow.model] if shadow else [])]
    if "" in models:
        yield "a model has no name"
    times = [*(entry.at for entry in pet.history), *(correction.at for correction in state.ledger)]
    times += [why.at for why in pet.quarantine.values()] + ([shadow.begun_at] if shadow else [])
    if any(not 0 <= ms_of(time) <= TIMES[-1] for time in times):
        yield "it has a change before 1970"


def _problems_of_revisions(pet: PetDump) -> Iterator[str]:
    state = pet.state
    for name, revisions in (
        ("history", [entry.revision for entry in pet.history]),
        ("ledger", [correction.revision for correction in state.ledger]),
        ("overwritten", [record.revision for record in pet.overwritten]),
    ):
        if any(later <= earlier for earlier, later in pairwise([0, *revisions])):
            yield f"{name}: its revisions are not in ascending order from 1"
        if revisions and revisions[-1] > state.revision:
            yield f"{name}: revision {revisions[-1]} is later than that of the pet, {state.revision}"
    if max(state.relabelled_at, pet.past_from) > state.revision:
        yield "relabelled_at or past_from is later than the revision of the pet"
    if any(not -1 <= card.threshold <= 1 for card in state.clusters.values()):
        yield "clusters: expected thresholds from -1 to 1"
    if any(id_ < 1 for id_ in assigned_ids(pet)):
        yield "it has a cluster with an id below 1"


def _is_of_unit_norm(vectors: FloatMatrix) -> bool:
    # NaN fails this comparison too
    norms = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return bool((np.abs(norms - 1) < 1e-3).all())


def assigned_ids(pet: PetDump) -> Iterator[ClusterId]:
    yield from pet.state.clusters
    yield from pet.state.aliases
    for correction in pet.state.ledger:
        yield from correction.ids()
    for one in pet.overwritten:
        yield from map(ClusterId, np.unique(one.labels[one.labels != NOISE]).tolist())
        yield from one.aliases
