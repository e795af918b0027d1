"""Salvage: rebuild a consistent pet from the keys of a damaged one.

Much of a pet is stored twice or follows from other keys, so most damage loses nothing: ids are in two keys, counts and
cards are computed, and an item without its vector is quarantined until it is sent again. Other data is stored only
once; where it is damaged it is dropped, and every loss is listed. Corrections come first: if the ledger is damaged, the
items that users placed or dismissed, which are marked in another key, are placed and dismissed again.

:func:`salvage` is a pure function of the keys as they were read, and writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, ParamSpec, TypeVar
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from sploot_cluster.decide.assignment import let_count, threshold_of
from sploot_cluster.decide.corrections import CHANGE_KINDS, ENTRIES
from sploot_cluster.decide.corrections.dismiss import Dismissal
from sploot_cluster.decide.corrections.merge import Merge
from sploot_cluster.decide.corrections.place import Placement
from sploot_cluster.decide.resolving import in_force, resolve
from sploot_cluster.errors import InvalidInput, UnreadablePet
from sploot_cluster.pet.models import (
    NOISE,
    ClusterCard,
    ClusterId,
    Correction,
    HistoryEntry,
    MediaId,
    Origin,
    PetState,
)
from sploot_cluster.pet.past import Overwritten
from sploot_cluster.pet.past import load as load_overwritten
from sploot_cluster.pet.rows import PetRows
from sploot_cluster.pet.shadow import Shadow
from sploot_cluster.pet.tally import Quarantined
from sploot_cluster.pet.times import TIMES, UNKNOWN
from sploot_cluster.pet.vectors import BoolVector, LabelVector, OriginVector, Rows
from sploot_cluster.pet.whole import PetDump
from sploot_cluster.store import ledger_json
from sploot_cluster.store.export_file import assigned_ids
from sploot_cluster.store.keys import FORMAT
from sploot_cluster.store.repairs import RawPet
from sploot_cluster.store.values import load_card, load_entry, load_quarantined, load_shadow, revision_of

T = TypeVar("T", bound=np.generic)
R = TypeVar("R")
P = ParamSpec("P")

# The errors that reading a damaged value raises.
_DAMAGED: Final = (ValueError, LookupError, TypeError, AttributeError, OverflowError, OSError, UnreadablePet)

_LISTED: Final = 5


@dataclass(frozen=True, slots=True)
class Salvaged:
    """The result of salvaging a pet: the pet that a repair would write, and how it dealt with the damage.

    Attributes:
        pet: the pet after the repair, one revision later, or several if corrections had to be made again.
        derived: one sentence for each part of the pet that the repair computes from other keys.
        lost: one sentence for each part of the pet that the repair cannot restore.
    """

    pet: PetDump
    derived: tuple[str, ...]
    lost: tuple[str, ...]


def salvage(raw: RawPet, *, by: str, at: datetime, model: str | None = None) -> Salvaged:
    """Return the pet that can be rebuilt from these keys, with lists of what was derived and lost.

    Args:
        by, at: the requester and the time, for the history.
        model: the model of the pet's vectors, for a pet whose keys no longer name it.

    Raises:
        InvalidInput: the model is unknown, or a newer release wrote the pet.
    """
    notes = _Notes()
    meta = _Meta(raw, notes)
    rows = _rows(raw, meta, notes)
    if (rows.n or rows.without) and meta.model is None and model is None:
        raise InvalidInput(
            "model",
            f"no key of pet {raw.pet} names the model of its vectors any more",
            "give it with --model NAME@VERSION",
        )
    model = meta.model or model
    membership = _membership(raw, rows, notes)
    ledger, is_ledger_whole = _ledger(raw, meta, notes)
    shadow = _shadow(raw, meta, notes)
    quarantine = _quarantine(raw, meta, rows, shadow, notes, missing=Quarantined(model or "", rows.dim or 0, at))
    arrived, are_arrivals_known = _column(raw, "arrived", np.uint32, rows, notes, what="revisions of arrival", fill=0)
    overwritten = _overwritten(raw)
    history = _history(raw, meta, ledger, notes)
    revision = max(
        meta.number("revision"),
        int(arrived[are_arrivals_known].max(initial=0)),
        *(correction.revision for correction in ledger),
        *(record.revision for record in overwritten),
        *(entry.revision for entry in history),
    )
    clusters = _clusters(raw, meta, rows, membership, revision, notes)
    aliases = _aliases(raw, meta, ledger, clusters, notes)
    if not are_arrivals_known.all():
        arrived = np.where(are_arrivals_known, arrived, revision).astype(np.uint32)
    arrived = np.minimum(np.maximum.accumulate(arrived), revision).astype(np.uint32)

    again = [] if is_ledger_whole else _made_again(rows, membership, ledger, revision, by=by, at=at)
    if again:
        notes.derived.append(_again_text(again))
    ledger, revision = (*ledger, *again), revision + len(again) + 1
    is_past_whole = not notes.is_past_broken and len(overwritten) == meta.given("n_overwritten")
    if not is_past_whole:
        notes.lost.append("the labels of earlier revisions, which could be shown and restored")
        overwritten = ()
    entries = [
        *history,
        *(HistoryEntry(one.revision, one.kind, at, by, one.summary()) for one in again),
        HistoryEntry(revision, "repair", at, by, {"n_media": rows.n, "n_quarantined": len(rows.without)}),
    ]
    n = rows.n
    pet = PetDump(
        PetState(
            pet=raw.pet,
            revision=revision,
            model=model if rows.dim else None,
            dim=rows.dim if model else None,
            media=rows.stored.media(n),
            rows=rows.stored.index(n),
            vectors=rows.stored.vectors(n),
            occurred_at_ms=rows.stored.occurred_at_ms(n),
            labels=membership.labels,
            origins=membership.origins,
            clusters=clusters,
            aliases=aliases,
            ledger=ledger,
            next_cluster=ClusterId(1),
            n_at_recluster=min(meta.number("n_at_recluster"), n) if membership.is_whole else 0,
            noise_arrivals=min(meta.number("noise_arrivals"), int(np.count_nonzero(membership.labels == NOISE))),
            relabelled_at=revision,
        ),
        arrived=arrived,
        overwritten=overwritten,
        past_from=meta.number("past_from") if is_past_whole else revision,
        history=tuple(entries),
        quarantine=quarantine,
        ingested=n + len(quarantine),
        shadow=shadow,
        overflowed=meta.number("n_overflowed"),
    )
    next_cluster = max(meta.number("next_cluster"), max(assigned_ids(pet), default=0) + 1)
    return Salvaged(
        replace(pet, state=replace(pet.state, next_cluster=ClusterId(next_cluster))),
        tuple(notes.derived),
        tuple(notes.lost),
    )


@dataclass(slots=True)
class _Notes:
    """Notes about the damage, collected while a pet is salvaged."""

    derived: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    is_past_broken: bool = False


class _Meta:
    """The fields of meta that can be read."""

    def __init__(self, raw: RawPet, notes: _Notes) -> None:
        self._fields = raw.pairs("meta")
        format_ = self._fields.get(b"format", b"%d" % FORMAT)
        if format_ != b"%d" % FORMAT and format_.isdigit():
            raise InvalidInput(
                "pet_id",
                f"pet {raw.pet} has format {format_.decode()}, expected {FORMAT}",
                "run the release that wrote it, or a newer one",
            )
        missing = [name for name in _NUMBERS if self.given(name) is None]
        missing += [name for name in ("model",) if self.model is None]
        if missing:
            notes.derived.append(f"of meta: {', '.join(missing) if len(missing) < len(_NUMBERS) else 'all fields'}")

    @property
    def model(self) -> str | None:
        """The model of the pet's vectors, if it is known."""
        return _read(self._fields.get(b"model", b"").decode) or None

    def given(self, name: str) -> int | None:
        """Return a field as a count, or None if it is missing or not a count."""
        value = self._fields.get(name.encode(), b"")
        return int(value) if value.isdigit() and len(value) < 16 else None

    def number(self, name: str) -> int:
        """Return a field as a count, or 0 if it is missing or not a count."""
        return self.given(name) or 0


_NUMBERS: Final = (
    *("revision", "dim", "n_media", "next_cluster", "n_at_recluster", "noise_arrivals", "relabelled_at", "past_from"),
    *("recarded_at", "ingested", "n_clustered", "n_noise", "n_dismissed", "n_overflowed", "n_clusters", "n_aliases"),
    *("n_corrections", "n_history", "n_overwritten", "n_quarantined"),
)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows that have an id and a vector.

    Attributes:
        kept: the former positions of these rows.
        n_before: the number of rows before the damage, as far as the keys still show it.
        dim: the dimension of the vectors, or None if it is unknown.
        without: the items whose vector is lost, with the time that their producer stated.
    """

    stored: PetRows
    kept: Rows
    n_before: int
    dim: int | None
    without: Mapping[MediaId, int]

    @property
    def n(self) -> int:
        return len(self.kept)


def _rows(raw: RawPet, meta: _Meta, notes: _Notes) -> _Rows:
    names = _names(raw, notes)
    stored = raw.items("vectors")
    sizes = [len(raw.text(name)) // width for name, width in (("labels", 4), ("origins", 1), ("arrived", 4))]
    n_before = max(meta.given("n_media") or max([len(names), *sizes]), len(names))
    dim = meta.number("dim") or _dim_of(stored)
    n_vectors = len(stored) if dim else 0
    vectors = np.zeros((n_vectors, dim), dtype=np.float32)
    for row, content in enumerate(stored[:n_vectors]):
        if len(content) == 4 * dim:
            vectors[row] = np.frombuffer(content, dtype="<f4")
    is_unit = _is_unit(vectors)
    kept = np.array(
        [row for row, name in enumerate(names) if name is not None and row < n_vectors and is_unit[row]], dtype=np.intp
    )
    is_kept = set(kept.tolist())
    times = _times(raw, n_before)
    without = {name: int(times[row]) for row, name in enumerate(names) if name is not None and row not in is_kept}
    media = [name for row in kept.tolist() if (name := names[row]) is not None]
    if without:
        notes.derived.append(
            f"{_items(len(without))} whose vectors are lost are quarantined until they are sent again: "
            f"{_shown(sorted(without))}"
        )
    if n_unnamed := max(0, n_before - sum(name is not None for name in names)):
        notes.lost.append(f"{_items(n_unnamed)}, whose ids are in no key")
    if n_unknown := int(np.count_nonzero(times[kept] == UNKNOWN) if _is_cut(raw, "occurred_at", 8, n_before) else 0):
        notes.lost.append(f"the times that producers stated for {_items(n_unknown)}, at most")
    notes.is_past_broken |= len(kept) < n_before
    return _Rows(PetRows(media, vectors[kept], times[kept]), kept, n_before, dim or None, without)


def _names(raw: RawPet, notes: _Notes) -> list[MediaId | None]:
    """Return the id of each row, from ``media`` or else from ``rows``, or None where neither has one."""
    by_row = {row: name for name, at in raw.pairs("rows").items() if (row := _number(at)) is not None}
    listed = raw.items("media")
    n = max(len(listed), max(by_row, default=-1) + 1)
    names: list[MediaId | None] = []
    seen: set[str] = set()
    for row in range(n):
        candidates = (*listed[row : row + 1], by_row.get(row, b""))
        decoded = (_read(one.decode) for one in candidates)
        name = next((one for one in decoded if one and one not in seen), None)
        names.append(None if name is None else MediaId(name))
        seen |= set() if name is None else {name}
    if n > len(listed):
        notes.derived.append(f"{_items(n - len(listed))} of media, from rows")
    if by_row != {row: name.encode() for row, name in enumerate(names) if name is not None}:
        notes.derived.append("rows, from media")
    return names


def _dim_of(vectors: Sequence[bytes]) -> int:
    """Return the dimension that most vectors have, or 0 if these do not have unit norm."""
    lengths = Counter(len(content) for content in vectors if content and len(content) % 4 == 0)
    for length, _ in lengths.most_common(1):
        rows = [np.frombuffer(content, dtype="<f4") for content in vectors if len(content) == length]
        return length // 4 if _is_unit(np.array(rows)).mean() > 0.5 else 0
    return 0


def _is_unit(vectors: npt.NDArray[Any]) -> BoolVector:
    norms = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    is_unit: BoolVector = np.abs(norms - 1) < 1e-3
    return is_unit


def _times(raw: RawPet, n: int) -> npt.NDArray[np.int64]:
    times = np.full(n, UNKNOWN, dtype=np.int64)
    stored = raw.text("occurred_at")
    known = np.frombuffer(stored, dtype="<i8", count=len(stored) // 8)[:n]
    times[: len(known)] = np.where((known < TIMES[0]) | (known > TIMES[-1]), UNKNOWN, known)
    return times


def _is_cut(raw: RawPet, name: str, width: int, n: int) -> bool:
    return len(raw.text(name)) != width * n


def _column(
    raw: RawPet, name: str, dtype: type[T], rows: _Rows, notes: _Notes, *, what: str, fill: int
) -> tuple[npt.NDArray[T], BoolVector]:
    """Return a column of the kept rows, and a mask of the values that are known; the others are ``fill``."""
    stored, width = raw.text(name), np.dtype(dtype).itemsize
    values = np.full(max(rows.n_before, int(rows.kept.max(initial=-1)) + 1), fill, dtype=dtype)
    known = np.frombuffer(stored, dtype=np.dtype(dtype).newbyteorder("<"), count=len(stored) // width)[: len(values)]
    values[: len(known)] = known
    is_known: BoolVector = rows.kept < len(known)
    if n_unknown := int(np.count_nonzero(~is_known)):
        notes.lost.append(f"the {what} of {_items(n_unknown)}")
        notes.is_past_broken = True
    return values[rows.kept], is_known


@dataclass(frozen=True, slots=True)
class _Membership:
    """Consistent labels and origins of the rows; ``is_whole`` states whether all labels are known."""

    labels: LabelVector
    origins: OriginVector
    is_whole: bool


def _membership(raw: RawPet, rows: _Rows, notes: _Notes) -> _Membership:
    labels, has_label = _column(raw, "labels", np.int32, rows, notes, what="clusters", fill=NOISE)
    origins, has_origin = _column(raw, "origins", np.uint8, rows, notes, what="origins", fill=Origin.NOISE)
    is_strange = (labels == 0) | (labels < NOISE)
    has_label &= ~is_strange
    labels = np.where(has_label, labels, NOISE).astype(np.int32)
    has_origin &= origins <= max(Origin)
    is_out = np.isin(origins, (Origin.NOISE, Origin.DISMISSED)) | ~has_origin
    origins = np.where((labels != NOISE) & is_out, Origin.ARRIVED, np.where(has_origin, origins, Origin.NOISE))
    is_in = (labels == NOISE) & ~np.isin(origins, (Origin.NOISE, Origin.DISMISSED))
    origins = let_count(labels, np.where(is_in, Origin.NOISE, origins).astype(np.uint8))
    if is_strange.any():
        notes.lost.append(f"the clusters of {_items(int(np.count_nonzero(is_strange)))}, which were not ids")
        notes.is_past_broken = True
    if not has_label.all():
        n_unknown = int(np.count_nonzero(~has_label))
        notes.derived.append(f"clusters of {_items(n_unknown)}, by a recluster after the repair")
    return _Membership(labels, origins, bool(has_label.all()))


def _clusters(
    raw: RawPet, meta: _Meta, rows: _Rows, membership: _Membership, revision: int, notes: _Notes
) -> dict[ClusterId, ClusterCard]:
    stored = {
        ClusterId(id_): card
        for field_, text in raw.pairs("clusters").items()
        if (id_ := _number(field_)) and (card := _read(load_card, ClusterId(id_), text))
    }
    labels, counts = membership.labels, membership.origins != Origin.ABSORBED
    vectors, cards, computed = rows.stored.vectors(rows.n), dict[ClusterId, ClusterCard](), []
    for id_ in map(ClusterId, np.unique(labels[labels != NOISE]).tolist()):
        if (card := stored.get(id_)) is None:
            computed.append(id_)
            card = ClusterCard(id_, threshold_of(vectors[(labels == id_) & counts]), revision)
        has_medoid = card.medoid is None or (card.medoid < rows.n and labels[card.medoid] == id_)
        cards[id_] = card if has_medoid else replace(card, medoid=None)
    if computed:
        notes.derived.append(f"the cards of {len(computed)} clusters, from their items: {_shown(computed)}")
    ended = stored.keys() - cards.keys()
    if ended:
        notes.lost.append(f"{len(ended)} clusters without items: {_shown(sorted(ended))}")
    return cards


def _aliases(
    raw: RawPet, meta: _Meta, ledger: Sequence[Correction], clusters: Collection[ClusterId], notes: _Notes
) -> dict[ClusterId, ClusterId]:
    """Return the stored aliases; if some are missing, add those that merges in force created."""
    pairs = ((_number(old), _number(now)) for old, now in raw.pairs("aliases").items())
    stored = {ClusterId(old): ClusterId(now) for old, now in pairs if old and now}
    missing = (meta.given("n_aliases") or 0) - len(stored) if meta.given("n_aliases") is not None else None
    led = dict(stored)
    if missing != 0:
        notes.is_past_broken = True
        for merge in reversed([one for one in in_force(ledger) if isinstance(one, Merge)]):
            merged = {*merge.groups, *merge.aliases} - {merge.into, *stored}
            led |= dict.fromkeys(merged, merge.into)
    ends = {old: _end_of(led, old) for old in led if old not in clusters}
    found = {old: now for old, now in ends.items() if now is not None and now in clusters}
    if new := sorted(found.keys() - stored.keys()):
        notes.derived.append(f"aliases of merged clusters, from the ledger: {_shown(new)}")
    if missing is not None and (n_lost := missing - len(new)) > 0:
        notes.lost.append(f"{n_lost} aliases of ended clusters")
    notes.is_past_broken |= found != stored
    return found


def _end_of(led: Mapping[ClusterId, ClusterId], start: ClusterId) -> ClusterId | None:
    """Return the id at which a chain of aliases ends, or None if the chain is a cycle."""
    now, steps = start, 0
    while now in led and steps <= len(led):
        now, steps = led[now], steps + 1
    return None if now in led else now


def _ledger(raw: RawPet, meta: _Meta, notes: _Notes) -> tuple[tuple[Correction, ...], bool]:
    """Return the corrections that can be read, and whether none is missing."""
    by_revision: dict[int, Correction] = {}
    for text in raw.items("ledger"):
        correction = _read(ledger_json.loads, text, pet=raw.pet)
        if correction is not None:
            by_revision.setdefault(correction.revision, correction)
    known = [by_revision[revision] for revision in sorted(by_revision)]
    named = [entry for entry in _entries(raw) if entry.kind in ENTRIES and entry.revision not in by_revision]
    lost = [f"the {entry.kind} of revision {entry.revision} by {entry.by}" for entry in named]
    n_lost = max(0, meta.number("n_corrections") - len(known), len(named))
    if n_lost:
        listed = f": {_shown(lost)}" if lost else ""
        notes.lost.append(f"{n_lost} correction{'s' if n_lost > 1 else ''} of the ledger{listed}")
    return tuple(known), not n_lost


def _made_again(
    rows: _Rows,
    membership: _Membership,
    ledger: Sequence[Correction],
    revision: int,
    *,
    by: str,
    at: datetime,
) -> list[Correction]:
    """Return new corrections that keep items where users put them, for items whose own corrections were lost."""
    index = rows.stored.index(rows.n)
    constrained = resolve(ledger).by_row(index)
    media = rows.stored.media(rows.n)
    placed = np.flatnonzero((membership.origins == Origin.CORRECTED) & ~constrained.placed)
    dismissed = np.flatnonzero((membership.origins == Origin.DISMISSED) & ~constrained.dismissed)
    again: list[Correction] = []

    def signature() -> tuple[int, str, str, datetime]:
        return revision + len(again) + 1, f"repair-{uuid4().hex}", by, at

    for id_ in map(ClusterId, np.unique(membership.labels[placed]).tolist()):
        items = tuple(media[row] for row in placed[membership.labels[placed] == id_].tolist())
        again.append(Placement(*signature(), into=id_, anchors=(), groups={id_: items}, remaining={}))
    if len(dismissed):
        again.append(Dismissal(*signature(), groups={NOISE: tuple(media[row] for row in dismissed.tolist())}))
    return again


def _again_text(again: Sequence[Correction]) -> str:
    n_items = sum(len(one.media()) for one in again)
    return (
        f"{len(again)} corrections that keep {_items(n_items)} where users put them; what else the lost corrections "
        "demanded, such as clusters kept apart and names, is not known"
    )


def _entries(raw: RawPet) -> list[HistoryEntry]:
    """Return the history entries that can be read, ordered by revision."""
    by_revision: dict[int, HistoryEntry] = {}
    for id_, fields in raw.entries("history"):
        entry = _read(load_entry, id_, fields)
        if entry is not None and entry.kind in CHANGE_KINDS and isinstance(entry.summary, dict):
            by_revision.setdefault(entry.revision, entry)
    return [by_revision[revision] for revision in sorted(by_revision)]


def _history(raw: RawPet, meta: _Meta, ledger: Sequence[Correction], notes: _Notes) -> list[HistoryEntry]:
    """Return the history, with missing entries of corrections taken from the ledger."""
    entries = {entry.revision: entry for entry in _entries(raw)}
    missing = meta.number("n_history") - len(entries)
    oldest = min(entries, default=0)
    made = [
        HistoryEntry(one.revision, one.kind, one.at, one.by, one.summary())
        for one in ledger
        # older entries than the oldest stored one do not count as missing, because the history has a limited length
        if one.revision not in entries and (one.revision > oldest or missing > 0)
    ]
    if made:
        notes.derived.append(f"{len(made)} entries of the history, from the ledger")
    if (n_lost := missing - len(made)) > 0:
        notes.lost.append(f"{n_lost} entries of the history")
    entries |= {entry.revision: entry for entry in made}
    return [entries[revision] for revision in sorted(entries)]


def _overwritten(raw: RawPet) -> tuple[Overwritten, ...]:
    records = (_read(_record, id_, fields) for id_, fields in raw.entries("overwritten"))
    return tuple(record for record in records if record is not None)


def _record(id_: bytes, fields: Mapping[bytes, bytes]) -> Overwritten:
    return load_overwritten(revision_of(id_), fields[b"was"])


def _shadow(raw: RawPet, meta: _Meta, notes: _Notes) -> Shadow | None:
    facts, stored = raw.pairs("shadow"), raw.pairs("shadow_vectors")
    known = _read(load_shadow, facts, {}) if facts else None
    if known is None:
        if facts or stored or meta.given("n_shadow") is not None:
            notes.lost.append(f"the candidate model and its {len(stored)} vectors: begin it again")
        return None
    vectors: dict[MediaId, npt.NDArray[np.float32]] = {}
    for item, text in stored.items():
        row = np.frombuffer(text, dtype="<f4").astype(np.float32) if len(text) == 4 * known.dim else None
        name = _read(item.decode)
        if name and row is not None and _is_unit(row[None])[0]:
            vectors[MediaId(name)] = row
    n_lost = meta.number("n_shadow") - len(vectors)
    if n_lost > 0:
        notes.lost.append(f"{n_lost} vectors of the candidate model {known.model}")
    return replace(known, vectors=vectors, n_vectors=len(vectors))


def _quarantine(
    raw: RawPet, meta: _Meta, rows: _Rows, shadow: Shadow | None, notes: _Notes, *, missing: Quarantined
) -> dict[MediaId, Quarantined]:
    """Return the quarantine, including items whose vectors are lost and items that only the candidate model has."""
    index = rows.stored.index(rows.n)
    quarantine: dict[MediaId, Quarantined] = {}
    for item, text in raw.pairs("quarantine").items():
        name, why = _read(item.decode), _read(load_quarantined, text)
        if name and why is not None and name not in index:
            quarantine[MediaId(name)] = why
    only_there = [item for item in (shadow.vectors if shadow else ()) if item not in index and item not in quarantine]
    if shadow and only_there:
        notes.derived.append(f"{_items(len(only_there))} of the quarantine, from the candidate model")
        quarantine |= {item: replace(missing, model=shadow.model, dim=shadow.dim) for item in only_there}
    n_lost = meta.number("n_quarantined") - len(quarantine)
    if n_lost > 0:
        notes.lost.append(f"{n_lost} quarantined items: their producers must send them again")
    return quarantine | {item: replace(missing, occurred_at_ms=time) for item, time in rows.without.items()}


def _read(read: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R | None:
    """Call ``read`` with these arguments and return the result, or None if the value is damaged."""
    try:
        return read(*arguments, **options)
    except _DAMAGED:
        return None


def _number(text: bytes) -> int | None:
    return int(text) if text.isdigit() and len(text) < 11 else None


def _items(n: int) -> str:
    return "1 item" if n == 1 else f"{n:,} items"


def _shown(names: Sequence[object]) -> str:
    return ", ".join(map(str, names[:_LISTED])) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
