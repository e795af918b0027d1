"""The encoding of a pet's keys: shadows, quarantined items, cards and history entries.

It includes the commands that write a whole pet. ``keys.py`` documents the schema.

Functions named ``load_…`` raise ValueError, LookupError, TypeError or AttributeError for a value that they cannot read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sploot_cluster.decide.presentation import pet_name_of
from sploot_cluster.pet.models import NOISE, ClusterCard, ClusterId, HistoryEntry, MediaId, Origin
from sploot_cluster.pet.past import dump as dump_overwritten
from sploot_cluster.pet.shadow import Shadow
from sploot_cluster.pet.tally import Quarantined
from sploot_cluster.pet.whole import PetDump
from sploot_cluster.store import ledger_json as ledger
from sploot_cluster.store.keys import FORMAT, PetKeys


def dump_shadow(shadow: Shadow) -> tuple[str | int, ...]:
    """Return the shadow as the fields and values of its hash."""
    at = shadow.begun_at.isoformat()
    was_own = int(shadow.was_own)
    return ("model", shadow.model, "dim", shadow.dim, "begun_at", at, "by", shadow.by, "was_own", was_own)


def load_shadow(
    facts: Mapping[bytes, bytes], vectors: Mapping[bytes, bytes], *, n_vectors: int | None = None
) -> Shadow | None:
    """Return the shadow; ``n_vectors``: its number of vectors, if ``vectors`` were not read."""
    if not facts:
        return None
    by_item = {
        MediaId(item.decode()): np.frombuffer(row, dtype="<f4").astype(np.float32) for item, row in vectors.items()
    }
    at = datetime.fromisoformat(facts[b"begun_at"].decode())
    model, by = facts[b"model"].decode(), facts[b"by"].decode()
    was_own = facts[b"was_own"] == b"1"
    return Shadow(model, int(facts[b"dim"]), at, by, by_item, len(by_item) if n_vectors is None else n_vectors, was_own)


def dump_quarantined(why: Quarantined) -> str:
    return as_json(asdict(why) | {"at": why.at.isoformat()})


def load_quarantined(text: bytes) -> Quarantined:
    facts = json.loads(text)
    return Quarantined(**facts | {"at": datetime.fromisoformat(facts["at"])})


def dump_card(card: ClusterCard) -> str:
    facts: dict[str, object] = {"threshold": card.threshold, "since": card.since}
    optional = {"split_from": card.split_from, "medoid": card.medoid}
    return as_json(facts | {name: value for name, value in optional.items() if value is not None})


def load_card(id_: ClusterId, text: bytes) -> ClusterCard:
    facts = json.loads(text)
    split_from = ClusterId(int(facts["split_from"])) if "split_from" in facts else None
    medoid = int(facts["medoid"]) if "medoid" in facts else None
    return ClusterCard(id_, float(facts["threshold"]), int(facts["since"]), split_from, medoid)


def load_entry(id_: bytes, fields: Mapping[bytes, bytes]) -> HistoryEntry:
    return HistoryEntry(
        revision=revision_of(id_),
        kind=fields[b"kind"].decode(),
        at=datetime.fromtimestamp(int(fields[b"at_ms"]) / 1000, UTC),
        by=fields[b"by"].decode(),
        summary=json.loads(fields[b"summary"]),
    )


def revision_of(id_: bytes) -> int:
    """Return the revision that the id of a stream entry contains."""
    return int(id_.partition(b"-")[0])


# Maximum number, and approximate maximum size in bytes, of the arguments of one command that writes a pet. Redis runs
# such a command in a millisecond or two; many more arguments would not fit on Lua's stack. The number is even, so that
# fields stay with their values.
MOST_ARGUMENTS: Final = 2_000
MOST_BYTES: Final = 256 * 1024

Command = tuple[str, str, Sequence[Any]]
"""The name of a command, the pet's key that it writes (a field of ``PetKeys``), and its other arguments."""


def flat(keys: PetKeys, commands: Iterable[Command]) -> Iterator[Any]:
    """Yield commands in the format of replace.lua and rewrite.lua."""
    number = {key: at for at, key in enumerate(keys, start=1)}
    for name, key, arguments in commands:
        yield from (len(arguments), name, number[key], *arguments)


def commands_of(keys: PetKeys, dump: PetDump, *, born: str, commit: str) -> Iterator[Command]:
    """Yield the commands that write a pet into empty keys. ``meta`` comes first."""
    state = dump.state
    clustered = int(np.count_nonzero(state.labels != NOISE))
    dismissed = int(np.count_nonzero(state.origins == Origin.DISMISSED))
    meta = {
        "format": FORMAT,
        "born": born,
        "commit": commit,
        "revision": state.revision,
        "model": state.model,
        "dim": state.dim,
        "name": pet_name_of(state.ledger),
        "n_media": state.n_media,
        "next_cluster": state.next_cluster,
        "n_at_recluster": state.n_at_recluster,
        "noise_arrivals": state.noise_arrivals,
        "relabelled_at": state.relabelled_at,
        "recarded_at": state.revision,
        "past_from": dump.past_from,
        "ingested": dump.ingested,
        "n_clustered": clustered,
        "n_noise": state.n_media - clustered - dismissed,
        "n_dismissed": dismissed,
        "n_clusters": len(state.clusters),
        "n_aliases": len(state.aliases),
        "n_corrections": len(state.ledger),
        "n_history": len(dump.history),
        "n_overwritten": len(dump.overwritten),
        "n_quarantined": len(dump.quarantine),
        "n_overflowed": dump.overflowed,
        "n_shadow": None if dump.shadow is None else len(dump.shadow.vectors),
    }

    def command(name: str, key: str, arguments: Iterable[Any], *, each_bytes: int = 0) -> Iterator[Command]:
        most = min(MOST_ARGUMENTS, max(2, MOST_BYTES // max(1, each_bytes) // 2 * 2))
        left = iter(arguments)
        while batch := tuple(islice(left, most)):
            yield name, key, batch

    def column(key: str, values: npt.NDArray[Any], dtype: str) -> Iterator[Command]:
        # written in one command, because a string that grows by APPEND takes more memory than it needs
        if state.n_media:
            yield "SET", key, (values.astype(dtype, copy=False).tobytes(),)

    yield from command("HSET", keys.meta, (item for pair in meta.items() if pair[1] is not None for item in pair))
    yield from command("RPUSH", keys.media, state.media)
    yield from command("HSET", keys.rows, (part for row, item in enumerate(state.media) for part in (item, row)))
    rows = (row.astype("<f4", copy=False).tobytes() for row in state.vectors)
    yield from command("RPUSH", keys.vectors, rows, each_bytes=4 * (state.dim or 0))
    yield from column(keys.labels, state.labels, "<i4")
    yield from column(keys.origins, state.origins, "u1")
    yield from column(keys.occurred_at, state.occurred_at_ms, "<i8")
    yield from column(keys.arrived, dump.arrived, "<u4")
    yield from command(
        "HSET", keys.clusters, (item for id_, card in state.clusters.items() for item in (id_, dump_card(card)))
    )
    yield from command("HSET", keys.aliases, (item for pair in state.aliases.items() for item in pair))
    yield from command("RPUSH", keys.ledger, (ledger.dumps(correction) for correction in state.ledger))
    for entry in dump.history:
        at_ms = round(entry.at.timestamp() * 1000)
        facts = ("kind", entry.kind, "by", entry.by, "at_ms", at_ms, "summary", as_json(entry.summary))
        yield "XADD", keys.history, (f"{entry.revision}-0", *facts)
    for one in dump.overwritten:
        yield "XADD", keys.overwritten, (f"{one.revision}-0", "was", dump_overwritten(one))
    if dump.shadow is not None:
        vectors = dump.shadow.vectors.items()
        yield "HSET", keys.shadow, dump_shadow(dump.shadow)
        parts = (part for item, row in vectors for part in (item, row.astype("<f4").tobytes()))
        yield from command("HSET", keys.shadow_vectors, parts, each_bytes=4 * dump.shadow.dim)
    quarantine = dump.quarantine.items()
    yield from command(
        "HSET", keys.quarantine, (part for item, why in quarantine for part in (item, dump_quarantined(why)))
    )


def pairs_of(items: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the (field, value) pairs of a hash as a script returns it."""
    return zip(items[::2], items[1::2], strict=True)


def as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
