"""What a pet was: its labels at any revision that is kept.

Rows only arrive, and the revision at which they did is kept; labels of rows that were there are rewritten by reclusters
and corrections, and each such commit keeps what it overwrote, of aliases too. So an older revision is the newest one
with these put back, from the latest to the earliest, and without the rows that came later. The newest ``KEPT`` of them
are kept; each takes at most nine bytes per item that it moved, and eight per alias that it changed, before
compression.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from sploot_cluster.errors import UnknownRevision
from sploot_cluster.pet.diff import Snapshot
from sploot_cluster.pet.models import NOISE, Change, ClusterId, Origin, PetState
from sploot_cluster.pet.vectors import LabelVector, OriginVector, Rows

# Reclusters and corrections of a busy pet in about a month; at 50,000 media, a tenth of them moved each time, 10 MB.
KEPT: Final = 256

_VERSION: Final = b"\x01"


@dataclass(frozen=True, slots=True)
class Overwritten:
    """What the commit that made ``revision`` overwrote: the labels and origins of these rows before it.

    Attributes:
        aliases: those that it changed -> where they led before it; None for ids that led nowhere. Commits of releases
            that did not keep this tell of none.
    """

    revision: int
    rows: npt.NDArray[np.uint32]
    labels: LabelVector
    origins: OriginVector
    aliases: Mapping[ClusterId, ClusterId | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Past:
    """A pet and how it came to be.

    Attributes:
        state: its newest revision; vectors may be left out.
        arrived: (n,) uint32, the revision at which each row came; 0 for rows from before this was kept.
        overwritten: the newest first.
        since: the oldest revision that can be told.
    """

    state: PetState
    arrived: npt.NDArray[np.uint32]
    overwritten: Sequence[Overwritten]
    since: int

    def at(self, revision: int) -> Snapshot:
        """The pet as it was.

        Raises:
            UnknownRevision: it has not been, or is not kept any more.
        """
        pet = self.state.pet
        if not 0 <= revision <= self.state.revision:
            problem = f"is not there: pet {pet} is at revision {self.state.revision}"
            raise UnknownRevision(pet=pet, revision=revision, problem=problem, hint="choose one from the pet's history")
        if revision < self.since:
            problem = f"is not kept: the oldest that can be told is {self.since}"
            raise UnknownRevision(pet=pet, revision=revision, problem=problem, hint=f"choose one from {self.since}")
        labels, origins = self.state.labels.copy(), self.state.origins.copy()
        aliases: dict[ClusterId, ClusterId | None] = {**self.state.aliases}
        for one in self.overwritten:
            if one.revision <= revision:
                break
            labels[one.rows], origins[one.rows] = one.labels, one.origins
            aliases |= one.aliases
        n = int(np.searchsorted(self.arrived, revision, side="right"))
        led = {alias: target for alias, target in aliases.items() if target is not None}
        return Snapshot(revision, self.state.media[:n], labels[:n], origins[:n], led)

    def ended_since(self, revision: int) -> dict[ClusterId, Rows]:
        """Ids that lived at this revision or later and do not now -> the rows that counted in them last."""
        labels, origins = self.state.labels.copy(), self.state.origins.copy()
        known = {NOISE, *self.state.clusters}
        ended: dict[ClusterId, Rows] = {}
        for one in self.overwritten:
            if one.revision <= revision:
                break
            labels[one.rows], origins[one.rows] = one.labels, one.origins
            for id_ in map(ClusterId, np.unique(one.labels).tolist()):
                if id_ not in known:
                    known.add(id_)
                    ended[id_] = np.flatnonzero((labels == id_) & (origins != Origin.ABSORBED))
        return ended


def overwritten_by(state: PetState, change: Change) -> Overwritten | None:
    """What ``change`` overwrites in ``state``; None if it moves no item that is there, and changes no alias."""
    rows = np.empty(0, dtype=np.uint32)
    if change.relabelling is not None:
        labels, origins = change.relabelling.labels, change.relabelling.origins
        rows = np.flatnonzero((labels != state.labels) | (origins != state.origins)).astype(np.uint32)
    aliases = {old: state.aliases.get(old) for old, now in change.aliases.items() if state.aliases.get(old) != now}
    if not len(rows) and not aliases:
        return None
    return Overwritten(state.revision + 1, rows, state.labels[rows], state.origins[rows], aliases)


def newest(overwritten: Sequence[Overwritten], past_from: int) -> tuple[tuple[Overwritten, ...], int]:
    """As many as are kept, of these in the order of their revisions; and the oldest revision that they tell.

    Args:
        past_from: the oldest that all of them tell.
    """
    dropped = overwritten[: max(0, len(overwritten) - KEPT)]
    return tuple(overwritten[len(dropped) :]), dropped[-1].revision if dropped else past_from


def load(revision: int, stored: bytes) -> Overwritten:
    """What :func:`dump` wrote.

    Raises:
        ValueError: another form, or damaged.
    """
    if stored[:1] != _VERSION:
        raise ValueError(
            f"what revision {revision} overwrote is of form {stored[:1]!r}, this release knows {_VERSION!r}"
        )
    try:
        unpack = zlib.decompressobj()
        columns = unpack.decompress(stored[1:])
        pairs = zlib.decompress(unpack.unused_data) if unpack.unused_data else b""
    except zlib.error as exc:
        raise ValueError(f"what revision {revision} overwrote: {exc}") from exc
    n, rest = divmod(len(columns), 9)
    if not unpack.eof or rest or len(pairs) % 8:
        raise ValueError(f"what revision {revision} overwrote has {len(columns)} and {len(pairs)} bytes")
    return Overwritten(
        revision,
        rows=np.cumsum(np.frombuffer(columns, dtype="<u4", count=n), dtype=np.uint32),
        labels=np.frombuffer(columns, dtype="<i4", count=n, offset=4 * n).astype(np.int32),
        origins=np.frombuffer(columns, dtype=np.uint8, count=n, offset=8 * n).copy(),
        aliases={
            ClusterId(old): None if led == NOISE else ClusterId(led)
            for old, led in np.frombuffer(pairs, dtype="<i4").reshape(-1, 2).tolist()
        },
    )


def dump(one: Overwritten) -> bytes:
    """``one`` as bytes for :func:`load`."""
    rows = one.rows.astype("<u4")
    # differences of ascending rows are small numbers, which compress well
    columns = np.diff(rows, prepend=rows[:1] * 0).tobytes() + one.labels.astype("<i4").tobytes()
    packed = _VERSION + zlib.compress(columns + one.origins.tobytes())
    if one.aliases:
        # behind the end of what older releases read, which look no further: they do without
        pairs = [(old, NOISE if led is None else led) for old, led in sorted(one.aliases.items())]
        packed += zlib.compress(np.array(pairs, dtype="<i4").tobytes())
    return packed
