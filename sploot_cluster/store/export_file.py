"""The file format of an exported pet.

The file is a zip of ``pet.json`` and the columns in their Redis format, little-endian, each with a checksum. Any
language can read it, nothing in it is executed, and exports of the same pet are identical. The stored spanning tree and
preview are left out, because they can be computed again.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from hashlib import sha256
from typing import Any, Final

import numpy as np

from sploot_cluster.errors import UnreadableExport
from sploot_cluster.pet import past
from sploot_cluster.pet.models import (
    NOISE,
    ClusterCard,
    ClusterId,
    HistoryEntry,
    MediaId,
    Origin,
    PetId,
    PetState,
)
from sploot_cluster.pet.rows import PetRows
from sploot_cluster.pet.shadow import Shadow
from sploot_cluster.pet.tally import Quarantined
from sploot_cluster.pet.vectors import FloatMatrix
from sploot_cluster.pet.whole import PetDump
from sploot_cluster.store import ledger_json as ledger

FORMAT: Final = 1

_FACTS: Final = "pet.json"
_OLDEST: Final = (
    1980,
    1,
    1,
    0,
    0,
    0,
)  # the earliest date of a zip; constant, so that exports of the same pet are identical


def dump(pet: PetDump) -> bytes:
    """Return the pet as a file for :func:`load`."""
    state = pet.state
    columns = {
        "vectors.f32le": state.vectors.astype("<f4", copy=False).tobytes(),
        "labels.i32le": state.labels.astype("<i4", copy=False).tobytes(),
        "origins.u8": state.origins.tobytes(),
        "arrived.u32le": pet.arrived.astype("<u4", copy=False).tobytes(),
        **({} if pet.shadow is None else {"shadow.f32le": _stacked(pet.shadow)}),
        **{f"overwritten/{one.revision}": past.dump(one) for one in pet.overwritten},
    }
    facts = {
        "format": FORMAT,
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
        "shadow": None
        if pet.shadow is None
        else {
            "model": pet.shadow.model,
            "dim": pet.shadow.dim,
            "begun_at": pet.shadow.begun_at.isoformat(),
            "by": pet.shadow.by,
            "was_own": pet.shadow.was_own,
            "media": sorted(pet.shadow.vectors),
        },
        "sha256": {name: sha256(column).hexdigest() for name, column in columns.items()},
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in {_FACTS: json.dumps(facts, ensure_ascii=False, indent=1).encode(), **columns}.items():
            packed.writestr(zipfile.ZipInfo(name, _OLDEST), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def _stacked(shadow: Shadow) -> bytes:
    return b"".join(shadow.vectors[item].astype("<f4", copy=False).tobytes() for item in sorted(shadow.vectors))


def _shadow(facts: Mapping[str, Any] | None, columns: Mapping[str, bytes]) -> Shadow | None:
    if facts is None:
        return None
    vectors = np.frombuffer(columns["shadow.f32le"], dtype="<f4").astype(np.float32)
    rows = vectors.reshape(len(facts["media"]), facts["dim"])
    by_item = {MediaId(item): row for item, row in zip(facts["media"], rows, strict=True)}
    begun_at = datetime.fromisoformat(facts["begun_at"])
    return Shadow(facts["model"], facts["dim"], begun_at, facts["by"], by_item, len(by_item), facts["was_own"])


def load(file: bytes, *, pet: PetId | None = None) -> PetDump:
    """Return the pet of a file, under its own id or another one.

    Raises:
        UnreadableExport: the file is not an export, has another format, is damaged, or is inconsistent.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(file)) as packed:
            facts: dict[str, Any] = json.loads(packed.read(_FACTS))
            if facts["format"] != FORMAT:
                raise UnreadableExport(f"expected format {FORMAT}, got {facts['format']!r}")
            columns = {name: packed.read(name) for name in facts["sha256"]}
        for name, column in columns.items():
            if sha256(column).hexdigest() != facts["sha256"][name]:
                raise UnreadableExport(f"the checksum of {name} does not match")
        read = _read(facts, columns, pet or PetId(facts["pet_id"]))
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError) as exc:
        raise UnreadableExport(f"{type(exc).__name__}: {exc}") from exc
    for problem in _problems(read):
        raise UnreadableExport(problem)
    return read


def _read(facts: Mapping[str, Any], columns: Mapping[str, bytes], pet: PetId) -> PetDump:
    media = [MediaId(item) for item in facts["media"]]
    n, dim = len(media), facts["dim"]
    vectors = np.frombuffer(columns["vectors.f32le"], dtype="<f4").astype(np.float32)
    rows = PetRows(media, vectors.reshape(n, dim) if dim is not None else np.empty((0, 0), dtype=np.float32))
    cards = [
        ClusterCard(ClusterId(card["id"]), card["threshold"], card["since"], card.get("split_from"))
        for card in facts["clusters"]
    ]
    overwritten = [
        past.load(int(name.removeprefix("overwritten/")), column)
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
            labels=np.frombuffer(columns["labels.i32le"], dtype="<i4").astype(np.int32),
            origins=np.frombuffer(columns["origins.u8"], dtype=np.uint8).copy(),
            clusters={card.id: card for card in cards},
            aliases={ClusterId(int(old)): ClusterId(now) for old, now in facts["aliases"].items()},
            ledger=tuple(ledger.loads(json.dumps(correction), pet=pet) for correction in facts["ledger"]),
            next_cluster=ClusterId(facts["next_cluster"]),
            n_at_recluster=facts["n_at_recluster"],
            noise_arrivals=facts["noise_arrivals"],
            relabelled_at=facts["relabelled_at"],
        ),
        arrived=np.frombuffer(columns["arrived.u32le"], dtype="<u4").astype(np.uint32),
        overwritten=tuple(sorted(overwritten, key=lambda one: one.revision)),
        past_from=facts["past_from"],
        history=tuple(
            HistoryEntry(**{**entry, "at": datetime.fromisoformat(entry["at"])}) for entry in facts["history"]
        ),
        quarantine={
            MediaId(item): Quarantined(why["model"], why["dim"], datetime.fromisoformat(why["at"]))
            for item, why in facts["quarantine"].items()
        },
        ingested=facts["ingested"],
        overflowed=facts["overflowed"],
        shadow=_shadow(facts["shadow"], columns),
    )


def _problems(pet: PetDump) -> Iterator[str]:
    state = pet.state
    n, lengths = state.n_media, (len(state.labels), len(state.origins), len(pet.arrived))
    if lengths != (n, n, n):
        yield f"it has {n} items, but {lengths} labels, origins and arrivals"
    if len(set(state.media)) != n or set(state.media) & pet.quarantine.keys():
        yield "it contains an item twice"
    if set(np.unique(state.labels).tolist()) - {NOISE} != set(state.clusters):
        yield "its labels do not match its clusters"
    if pet.shadow is not None and pet.shadow.vectors.keys() - set(state.media) - pet.quarantine.keys():
        yield "items that only its candidate model has are not quarantined"
    if pet.ingested != n + len(pet.quarantine):
        yield f"it ingested {pet.ingested} items, but has {n} and {len(pet.quarantine)} quarantined"
    if any(len(one.rows) and int(one.rows[-1]) >= n for one in pet.overwritten):
        yield "its past refers to items that it does not have"
    if (np.diff(pet.arrived.astype(np.int64)) < 0).any() or (n and int(pet.arrived[-1]) > state.revision):
        yield "its arrivals are not in order"
    spaces = [state.vectors] if pet.shadow is None else [state.vectors, np.array([*pet.shadow.vectors.values()])]
    if not all(len(vectors) == 0 or _is_of_unit_norm(vectors) for vectors in spaces) or len(state.vectors) != n:
        yield "its vectors do not have unit norm"
    if not np.array_equal(state.labels == NOISE, np.isin(state.origins, (Origin.NOISE, Origin.DISMISSED))):
        yield "its origins do not match its labels"
    if state.aliases.keys() & state.clusters.keys() or set(state.aliases.values()) - state.clusters.keys():
        yield "its aliases do not resolve to its clusters"
    if state.next_cluster <= max(_assigned_ids(pet), default=0):
        yield f"its next cluster id, {state.next_cluster}, was assigned already"


def _is_of_unit_norm(vectors: FloatMatrix) -> bool:
    # NaN fails this comparison too
    norms = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return bool((np.abs(norms - 1) < 1e-3).all())


def _assigned_ids(pet: PetDump) -> Iterator[ClusterId]:
    yield from pet.state.clusters
    yield from pet.state.aliases
    for correction in pet.state.ledger:
        yield from correction.ids()
    for one in pet.overwritten:
        yield ClusterId(int(one.labels.max(initial=0)))
        yield from one.aliases
