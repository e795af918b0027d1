"""The rows of a pet in memory: append-only, and shared by successive states.

A pet of 50,000 items holds 100 MB of vectors, and every arrival creates a new
:class:`~sploot_cluster.pet.models.PetState`. So states do not own rows; they share the first n of a
:class:`PetRows`, and an arrival costs O(dim). Labels and origins are five bytes per item and are copied.

:func:`follow` defines the effect of a commit, for all stores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from threading import Lock
from typing import TypeVar, overload

import numpy as np
import numpy.typing as npt

from sploot_cluster.pet.models import Change, ClusterId, MediaId, PetId, PetState
from sploot_cluster.pet.times import UNKNOWN
from sploot_cluster.pet.vectors import FloatMatrix, FloatVector, TimeVector

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T", bound=np.generic)


class PetRows:
    """The unchanging data of a pet's items, by row: id, vector and time. Safe to read and extend from many threads."""

    def __init__(
        self,
        media: Sequence[MediaId] = (),
        vectors: FloatMatrix | None = None,
        occurred_at_ms: TimeVector | None = None,
    ) -> None:
        """Start with these rows. The arrays are neither copied nor written to. Without times, all times are unknown."""
        self._media = list(media)
        self._row_of = {item: row for row, item in enumerate(self._media)}
        self._vectors = vectors if vectors is not None else np.empty((0, 0), dtype=np.float32)
        self._times = occurred_at_ms if occurred_at_ms is not None else _unknown(len(self._media))
        self._lock = Lock()

    @classmethod
    def behind(cls, state: PetState) -> PetRows:
        """Return the rows that ``state`` shares, or new rows if it is not from :func:`follow` or from a store."""
        if isinstance(state.media, MediaView):
            return state.media.rows
        return cls(state.media, state.vectors, state.occurred_at_ms)

    @property
    def vector_bytes(self) -> int:
        """The size of the vectors, including space reserved for growth."""
        return self._vectors.nbytes

    def media(self, n: int) -> MediaView:
        return MediaView(self, self._media, n)

    def index(self, n: int) -> RowIndex:
        return RowIndex(self._media, self._row_of, n)

    def vectors(self, n: int) -> FloatMatrix:
        """Return the first n vectors as a read-only (n, dim) array, or a (0, 0) array if the pet has none."""
        first: FloatMatrix = self._vectors[:n]
        first.flags.writeable = False
        return first

    def occurred_at_ms(self, n: int) -> TimeVector:
        """Return the first n times as a read-only (n,) array."""
        first: TimeVector = self._times[:n]
        first.flags.writeable = False
        return first

    def vectors_and(self, n: int, vector: FloatVector) -> FloatMatrix:
        """Return the first n vectors and ``vector`` as one read-only array, which is valid until rows are appended."""
        with self._lock:
            if len(self._media) != n:
                return np.concatenate([self._vectors[:n], vector[None]])
            self._make_room_for_vectors(n + 1, len(vector))
            self._vectors[n] = vector
            first: FloatMatrix = self._vectors[: n + 1]
        first.flags.writeable = False
        return first

    def extended(
        self, n: int, media: Sequence[MediaId], vectors: FloatMatrix, occurred_at_ms: TimeVector | None = None
    ) -> PetRows:
        """Return the first n rows followed by new rows for ``media``: this object if it can be extended, or a new one.

        A new object is needed if other rows already follow the first n. That happens if two states followed the same
        state and only one was committed, or if a Redis failover lost rows that this process still has.
        """
        times = occurred_at_ms if occurred_at_ms is not None else _unknown(len(media))
        with self._lock:
            n_known = min(len(self._media) - n, len(media))
            if self._media[n : n + n_known] == list(media[:n_known]):
                self._append(media[n_known:], vectors[n_known:], times[n_known:])
                return self
        branch = PetRows(self._media[:n], self._vectors[:n], self._times[:n])
        branch._append(media, vectors, times)
        return branch

    def _append(self, media: Sequence[MediaId], vectors: FloatMatrix, times: TimeVector) -> None:
        if not media:
            return
        n, m = len(self._media), len(self._media) + len(media)
        self._make_room_for_vectors(m, vectors.shape[1])
        self._times = _with_room(self._times, n, m)
        self._vectors[n:m], self._times[n:m] = vectors, times
        # vectors and times first, so that a thread that sees an item also finds them
        self._media.extend(media)
        self._row_of.update(zip(media, range(n, m), strict=True))

    def _make_room_for_vectors(self, m: int, dim: int) -> None:
        if self._vectors.shape[1] != dim:
            self._vectors = np.empty((0, dim), dtype=np.float32)
        self._vectors = _with_room(self._vectors, len(self._media), m)


def _with_room(column: npt.NDArray[T], n: int, m: int) -> npt.NDArray[T]:
    """Return the column, or a copy of its first n rows, as a writable array of at least m rows."""
    if m <= len(column) and column.flags.writeable:
        return column
    # grow by half, so that n appends copy O(n) rows in total. States keep using the old array.
    grown = np.empty((m + m // 2 + 8, *column.shape[1:]), dtype=column.dtype)
    grown[:n] = column[:n]
    return grown


def _unknown(n: int) -> TimeVector:
    return np.full(n, UNKNOWN, dtype=np.int64)


class MediaView(Sequence[MediaId]):
    """The first n items of :class:`PetRows`, in row order."""

    __slots__ = ("_media", "_n", "rows")

    def __init__(self, rows: PetRows, media: list[MediaId], n: int) -> None:
        self.rows, self._media, self._n = rows, media, n

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[MediaId]:
        return islice(self._media, self._n)

    @overload
    def __getitem__(self, at: int) -> MediaId: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[MediaId, ...]: ...
    def __getitem__(self, at: int | slice) -> MediaId | tuple[MediaId, ...]:
        if isinstance(at, slice):
            return tuple(self._media[: self._n][at])
        return self._media[range(self._n)[at]]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (MediaView, list, tuple)):
            return tuple(self) == tuple(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # equal to lists, which are not hashable either

    def __repr__(self) -> str:
        return f"MediaView({list(self)!r})"


class RowIndex(Mapping[MediaId, int]):
    """A mapping from item to row for the first n items of :class:`PetRows`."""

    __slots__ = ("_media", "_n", "_row_of")

    def __init__(self, media: list[MediaId], row_of: dict[MediaId, int], n: int) -> None:
        self._media, self._row_of, self._n = media, row_of, n

    def __getitem__(self, item: MediaId) -> int:
        row = self._row_of[item]
        if row >= self._n:
            raise KeyError(item)
        return row

    def __contains__(self, item: object) -> bool:
        # without this method, Mapping would raise and catch an error for each new item, four times per arrival
        row = self._row_of.get(item)  # type: ignore[call-overload]  # any object may be looked for
        return row is not None and row < self._n

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[MediaId]:
        # iterate over the list, because a dictionary cannot be iterated while another thread adds to it
        return islice(self._media, self._n)


def empty_state(pet: PetId) -> PetState:
    """Return a pet without data, at revision 0."""
    rows = PetRows()
    return PetState(
        pet=pet,
        revision=0,
        model=None,
        dim=None,
        media=rows.media(0),
        rows=rows.index(0),
        vectors=rows.vectors(0),
        occurred_at_ms=rows.occurred_at_ms(0),
        labels=np.empty(0, dtype=np.int32),
        origins=np.empty(0, dtype=np.uint8),
        clusters={},
        aliases={},
        ledger=(),
        next_cluster=ClusterId(1),
    )


def follow(state: PetState, change: Change, *, version: str) -> PetState:
    """Return the state after ``change`` is committed to ``state``, without modifying ``state``.

    Takes O(dim) per arrival, and copies the n labels and origins.

    Args:
        version: the version of the new state.
    """
    arrivals = change.arrivals
    labels = state.labels if change.relabelling is None else change.relabelling.labels
    origins = state.origins if change.relabelling is None else change.relabelling.origins
    media, index, vectors, times = state.media, state.rows, state.vectors, state.occurred_at_ms
    if arrivals:
        rows = PetRows.behind(state).extended(
            state.n_media,
            [arrival.media for arrival in arrivals],
            arrivals[0].vector[None] if len(arrivals) == 1 else np.stack([arrival.vector for arrival in arrivals]),
            np.array([arrival.occurred_at_ms for arrival in arrivals], dtype=np.int64),
        )
        n = state.n_media + len(arrivals)
        media, index, vectors, times = rows.media(n), rows.index(n), rows.vectors(n), rows.occurred_at_ms(n)
    moves = labels is not state.labels and not (
        np.array_equal(labels, state.labels) and np.array_equal(origins, state.origins)
    )
    labels = _appended(labels, np.int32, [arrival.label for arrival in arrivals])
    origins = _appended(origins, np.uint8, [arrival.origin for arrival in arrivals])
    return replace(
        state,
        revision=state.revision + 1,
        version=version,
        model=change.model or state.model,
        dim=change.dim or state.dim,
        media=media,
        rows=index,
        vectors=vectors,
        occurred_at_ms=times,
        labels=labels,
        origins=origins,
        clusters=_merged(state.clusters, change.clusters),
        aliases=_merged(state.aliases, change.aliases),
        ledger=state.ledger if change.correction is None else (*state.ledger, change.correction),
        next_cluster=change.next_cluster,
        n_at_recluster=change.n_at_recluster,
        noise_arrivals=change.noise_arrivals,
        relabelled_at=state.revision + 1 if moves else state.relabelled_at,
    )


def check(state: PetState, change: Change) -> None:
    """Check that a change fits the state that it was decided on.

    Raises:
        ValueError: it does not fit. This is a bug in the caller, never caused by user input.
    """
    dim = change.dim or state.dim
    if (change.dim is None) != (change.model is None) or (
        change.dim is not None and state.dim not in (None, change.dim)
    ):
        raise ValueError(f"model {change.model!r} and dim {change.dim} do not fit {state.model!r} and {state.dim}")
    if change.arrivals:
        media = [arrival.media for arrival in change.arrivals]
        if len(set(media)) < len(media) or any(item in state.rows for item in media):
            raise ValueError(f"one of {len(media)} arrivals is in pet {state.pet} already, or is repeated")
        if dim is None or any(arrival.vector.shape != (dim,) for arrival in change.arrivals):
            raise ValueError(f"a vector of an arrival does not have shape ({dim},)")
    if change.relabelling is not None:
        lengths = len(change.relabelling.labels), len(change.relabelling.origins)
        if lengths != (state.n_media, state.n_media):
            raise ValueError(f"expected a relabelling of {state.n_media} rows, got {lengths}")
    if change.correction is not None and change.correction.revision != state.revision + 1:
        raise ValueError(f"expected a correction of revision {state.revision + 1}, got {change.correction.revision}")


def _appended(column: npt.NDArray[T], dtype: type[T], items: Sequence[int]) -> npt.NDArray[T]:
    """Return a read-only copy of a column with one more row for each item."""
    n = len(column)
    longer = np.empty(n + len(items), dtype=dtype)
    longer[:n], longer[n:] = column, items
    longer.flags.writeable = False
    return longer


def _merged(stored: Mapping[K, V], written: Mapping[K, V | None]) -> Mapping[K, V]:
    if not written:
        return stored
    merged = dict(stored)
    for key, value in written.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged
