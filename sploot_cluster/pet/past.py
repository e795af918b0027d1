"""The past of a pet: its labels at every revision that can still be computed.

Rows are only appended, and the revision at which each arrived is stored. Reclusters and corrections rewrite labels of
existing rows, and each such commit stores a record of the labels and aliases that it overwrote. So an earlier revision
is computed from the newest one: put the overwritten values back, from the latest record to the earliest, and leave out
rows that arrived later. The newest ``KEPT`` records are stored. Each takes at most nine bytes per moved item and eight
per changed alias, before compression.
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

# Maximum number of records to store: about a month of reclusters and corrections of a busy pet. They take 10 MB if each
# moves a tenth of 50,000 items.
KEPT: Final = 256

_VERSION: Final = b"\x01"


@dataclass(frozen=True, slots=True)
class Overwritten:
    """A record of what the commit of ``revision`` overwrote: the labels and origins of ``rows``, and aliases.

    Attributes:
        aliases: changed aliases -> the id that each resolved to before, or None if it was not an alias.
    """

    revision: int
    rows: npt.NDArray[np.uint32]
    labels: LabelVector
    origins: OriginVector
    aliases: Mapping[ClusterId, ClusterId | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Past:
    """A pet at its newest revision, with the records from which earlier revisions are computed.

    Attributes:
        state: the newest revision; vectors may be left out.
        arrived: (n,) uint32, the revision at which each row arrived.
        overwritten: newest first.
        since: the oldest revision that can be computed.
    """

    state: PetState
    arrived: npt.NDArray[np.uint32]
    overwritten: Sequence[Overwritten]
    since: int

    def at(self, revision: int) -> Snapshot:
        """Return the labels of the pet at a revision.

        Raises:
            UnknownRevision: the pet never had this revision, or it is no longer stored.
        """
        pet = self.state.pet
        if not 0 <= revision <= self.state.revision:
            problem = f"does not exist: the newest is {self.state.revision}"
            raise UnknownRevision(pet=pet, revision=revision, problem=problem, hint="choose one from the pet's history")
        if revision < self.since:
            problem = f"is no longer stored: the oldest is {self.since}"
            raise UnknownRevision(
                pet=pet, revision=revision, problem=problem, hint=f"choose revision {self.since} or later"
            )
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
        """Return the clusters that ended after a revision: id -> the rows that last counted in the cluster."""
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
    """Return what ``change`` overwrites in ``state``, or None if it moves no existing items and changes no aliases."""
    if change.relabelling is None and not change.aliases:
        return None  # true of nearly every commit
    rows = np.empty(0, dtype=np.uint32)
    if change.relabelling is not None:
        labels, origins = change.relabelling.labels, change.relabelling.origins
        rows = np.flatnonzero((labels != state.labels) | (origins != state.origins)).astype(np.uint32)
    aliases = {old: state.aliases.get(old) for old, now in change.aliases.items() if state.aliases.get(old) != now}
    if not len(rows) and not aliases:
        return None
    return Overwritten(state.revision + 1, rows, state.labels[rows], state.origins[rows], aliases)


def newest(overwritten: Sequence[Overwritten], past_from: int) -> tuple[tuple[Overwritten, ...], int]:
    """Return the newest ``KEPT`` of these records, and the oldest revision that can be computed from them.

    Args:
        overwritten: oldest first.
        past_from: the oldest revision that can be computed from all of them.
    """
    dropped = overwritten[: max(0, len(overwritten) - KEPT)]
    return tuple(overwritten[len(dropped) :]), dropped[-1].revision if dropped else past_from


def load(revision: int, stored: bytes, *, most_bytes: int = 0) -> Overwritten:
    """Return the record that :func:`dump` encoded.

    Args:
        most_bytes: limit for each of the record's two parts after decompression; 0 means no limit, for records from
            Redis.

    Raises:
        ValueError: the record has a different format, is damaged, or exceeds ``most_bytes``.
    """
    if stored[:1] != _VERSION:
        raise ValueError(
            f"the overwritten labels of revision {revision} have format {stored[:1]!r}, expected {_VERSION!r}"
        )
    try:
        unpack, unpack_pairs = zlib.decompressobj(), zlib.decompressobj()
        columns = unpack.decompress(stored[1:], most_bytes)
        pairs = unpack_pairs.decompress(unpack.unused_data, most_bytes)
    except zlib.error as exc:
        raise ValueError(f"the overwritten labels of revision {revision}: {exc}") from exc
    n, rest = divmod(len(columns), 9)
    has_pairs = bool(unpack.unused_data)
    is_whole = unpack.eof and unpack_pairs.eof is has_pairs and not unpack_pairs.unused_data
    if not is_whole or rest or len(pairs) % 8:
        raise ValueError(f"the overwritten labels of revision {revision} have {len(columns)} and {len(pairs)} bytes")
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
    """Return ``one`` encoded for :func:`load`."""
    rows = one.rows.astype("<u4")
    # differences of ascending rows are small numbers, which compress well
    columns = np.diff(rows, prepend=rows[:1] * 0).tobytes() + one.labels.astype("<i4").tobytes()
    packed = _VERSION + zlib.compress(columns + one.origins.tobytes())
    if one.aliases:
        # aliases follow in a second zlib stream, which is absent if there are none
        pairs = [(old, NOISE if led is None else led) for old, led in sorted(one.aliases.items())]
        packed += zlib.compress(np.array(pairs, dtype="<i4").tobytes())
    return packed
