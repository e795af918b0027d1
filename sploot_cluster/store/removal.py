"""The removal of items from a pet of any size, without its vectors in the memory of this process.

The rows that stay are copied inside Redis, in steps of up to ``STEP_BYTES``, to keys that expire. Rows never change, so
the copy grows with the pet and is still valid after a lost race. Everything else is small: it is read, decided and
written by this process. One script then puts the new keys in place, if the pet is still at the state that was decided
on. The vectors of a candidate model stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from sploot_cluster.errors import RevisionConflict, UnknownPet, UnreadablePet
from sploot_cluster.pet.models import MediaId, PetId
from sploot_cluster.pet.vectors import FloatMatrix, Rows
from sploot_cluster.pet.whole import PetDump
from sploot_cluster.refusals import REDIS_ERRORS
from sploot_cluster.store.keys import PetKeys
from sploot_cluster.store.values import MOST_ARGUMENTS

if TYPE_CHECKING:
    import redis

# Approximate size of the rows that one script copies, or one command reads, in about half a millisecond of the server's
# only thread.
STEP_BYTES: Final = 128 * 1024
STEP_ROWS: Final = MOST_ARGUMENTS // 2

# Lifetime of a copy. If the process dies, the copy expires after this time.
COPY_MS: Final = 15 * 60 * 1000

# Maximum size of a gap between two wanted rows that is read too, because a second command would cost more.
GAP_ROWS: Final = 16
READS_PER_TRIP: Final = 64

# The keys that are copied row by row.
_BY_ROW: Final = ("media", "rows", "vectors")


class RedisRemoval:
    """The removal of items from one pet; implements ``port.Removal``. Used by one thread."""

    def __init__(
        self,
        client: redis.Redis | redis.RedisCluster,
        pet: PetId,
        media: Collection[MediaId],
        *,
        outline: Callable[[], PetDump],
        copy_rows: Callable[..., Any],
        bring_back: Callable[[], bool],
        replace: Callable[[PetDump, PetDump, RedisRemoval, str | None], None],
    ) -> None:
        """
        Args:
            outline: reads the pet without its vectors.
            copy_rows: calls copy_rows.lua.
            bring_back: puts the vectors of a cold pet back in Redis, where they can be copied.
            replace: writes the keys that are not copied, and puts all in place.
        """
        self._client, self._pet, self._media = client, pet, list(media)
        self._outline, self._copy_rows, self._replace = outline, copy_rows, replace
        self._bring_back = bring_back
        self._keys, self._born = PetKeys.of(pet), ""
        self._before: PetDump | None = None
        self._n_rows = self._n_copied = 0
        name = token_hex(8)
        self.staged = PetKeys(*(f"{key}:new:{name}" for key in self._keys))

    @property
    def others(self) -> dict[str, str]:
        """Key of the pet -> key of its copy, for keys that are neither copied row by row nor kept in place."""
        stay = {self._keys.shadow, self._keys.shadow_vectors, *(getattr(self._keys, name) for name in _BY_ROW)}
        return {key: copy for key, copy in zip(self._keys, self.staged, strict=True) if key not in stay}

    @property
    def media(self) -> Sequence[MediaId]:
        """The items to remove."""
        return self._media

    def outline(self) -> PetDump:
        # rows first, because copying many takes seconds, and the pet may change during that time
        self._copy_new_rows()
        self._before = before = self._outline()
        return before

    def vectors(self, rows: Rows) -> FloatMatrix:
        """Return the vectors of the given rows of the newest outline; the rows are in ascending order.

        Raises:
            RevisionConflict: since then, the pet was replaced or deleted, or its vectors were moved out of Redis.
        """
        before = cast(PetDump, self._before)
        dim = before.state.dim or 0
        found = np.empty((len(rows), dim), dtype=np.float32)
        most = _rows_per_step(dim)
        runs = list(_runs(rows, most=most))
        per_trip = max(1, min(READS_PER_TRIP, 8 * STEP_BYTES // (4 * dim * most)))
        at = 0
        for start in range(0, len(runs), per_trip):
            pipe = self._client.pipeline(transaction=False)
            for first, last, _ in runs[start : start + per_trip]:
                pipe.lrange(self._keys.vectors, first, last)
            pipe.hmget(self._keys.meta, "born", "cold")
            *answers, (born, cold) = pipe.execute()
            if born is None or born.decode() != before.state.born or cold is not None:
                raise RevisionConflict(pet=self._pet, expected=before.state.revision, current=0)
            try:
                for (_, _, wanted), stored in zip(runs[start : start + per_trip], answers, strict=True):
                    for row in wanted:
                        found[at] = np.frombuffer(stored[row], dtype="<f4", count=dim)
                        at += 1
            except (ValueError, LookupError) as exc:
                raise UnreadablePet(pet=self._pet, problem=f"{type(exc).__name__}: {exc}") from exc
        return found

    def replace(self, after: PetDump, *, claimant: str | None = None) -> None:
        before = cast(PetDump, self._before)
        self._copy_new_rows()
        self._replace(before, after, self, claimant)

    def discard(self) -> None:
        """Delete what is left of the copy."""
        with suppress(*REDIS_ERRORS):  # the copy expires
            self._client.unlink(*self.staged)

    def _copy_new_rows(self) -> None:
        """Copy the rows that are not copied yet: all, if the pet was replaced; none, if it has no item to remove.

        Raises:
            UnknownPet: the pet has no data.
        """
        keys = self._keys
        while True:
            pipe = self._client.pipeline(transaction=False)
            pipe.hmget(keys.meta, "born", "n_media", "dim", "cold")
            for start in range(0, len(self._media), MOST_ARGUMENTS):
                some = self._media[start : start + MOST_ARGUMENTS]
                pipe.hmget(keys.rows, some)
                pipe.hmget(keys.quarantine, some)
            (born, n_media, dim, cold), *found = pipe.execute()
            if born is None:
                raise UnknownPet(pet=self._pet)
            is_there = any(value is not None for values in found for value in values)
            if dim is None or not is_there:
                return
            if cold is not None:
                self._bring_back()
            if born.decode() != self._born:
                self.discard()
                self._born, self._n_rows, self._n_copied = born.decode(), 0, 0
            gone = np.array(sorted(int(row) for rows in found[::2] for row in rows if row is not None), dtype=np.intp)
            if self._copied(int(n_media), gone, step=_rows_per_step(int(dim))):
                return
            self._born = ""

    def _copied(self, n_media: int, gone: Rows, *, step: int) -> bool:
        """Copy rows up to ``n_media``; return False if the copy has to start again."""
        keys, staged = self._keys, self.staged
        while self._n_rows < n_media:
            first, n_rows = self._n_rows, min(step, n_media - self._n_rows)
            left_out = gone[(gone >= first) & (gone < first + n_rows)]
            if len(left_out) < n_rows:
                n_copied = self._copy_rows(
                    keys=[keys.meta, keys.media, keys.vectors, staged.media, staged.rows, staged.vectors],
                    args=[self._born, first, n_rows, self._n_copied, COPY_MS, *left_out.tolist()],
                )
                if n_copied < 0:
                    return False
                self._n_copied = n_copied
            self._n_rows += n_rows
        return True


def _rows_per_step(dim: int) -> int:
    return max(1, min(STEP_ROWS, STEP_BYTES // (4 * max(1, dim))))


def _runs(rows: Rows, *, most: int) -> Iterator[tuple[int, int, Sequence[int]]]:
    """Yield ranges of up to ``most`` rows that cover ``rows``: first, last, and which of their rows are wanted."""
    first, wanted = -1, list[int]()
    for row in rows.tolist():
        if wanted and (row - first >= most or row - first - wanted[-1] > GAP_ROWS):
            yield first, first + wanted[-1], wanted
            wanted = []
        if not wanted:
            first = row
        wanted.append(row - first)
    if wanted:
        yield first, first + wanted[-1], wanted
