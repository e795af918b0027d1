"""Moves of vectors between Redis and the cold store. A process can be killed at any point of a move without data loss.

    key                    type    holds
    sploot:cold:pets       zset    pets that have objects in the cold store, or may have some, scored by the time in
                                   milliseconds at which :meth:`ColdPets.tidy` next checks these objects
    sploot:cold:identity   string  random text, equal to the content of the object ``identity`` in the cold store;
                                   followed by " new" until that object has been written

A pet is cold if its ``meta`` names a place in the cold store and its ``vectors`` are missing. Its other keys stay in
Redis. Only ``meta`` determines where vectors are; one script changes it together with ``vectors``.

- Out: the pet is added to the set, its objects are written under a new name, read back and compared; only then does a
  script remove the vectors from Redis, and only if there was no commit to the pet in the meantime.
- Back: the vectors are written to a temporary key, which a script then renames. The objects stay for ``UNUSED_MS``, so
  that a Redis that loses its last second of writes, or fails over to a replica that lags, still finds them.

If the storage has a different identity, nothing is written to it or deleted from it, and no object counts as lost. Such
a storage belongs to another Redis server, or is the empty mount point of a file system that is not mounted.

An object belongs to one move and is never overwritten. A move that takes longer than ``LONGEST_MOVE_MS`` is void. So an
object of an older move that ``meta`` does not name is unused: its move failed, or its vectors were put back or deleted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from random import sample
from secrets import token_hex
from typing import Any, Final, NamedTuple, cast

import redis

from sploot_cluster.errors import ColdStoreUnavailable, UnreadablePet
from sploot_cluster.pet.models import PetId
from sploot_cluster.pet.vectors import FloatMatrix
from sploot_cluster.refusals import REDIS_ERRORS
from sploot_cluster.store.cold.vectors import VectorStore
from sploot_cluster.store.keys import PetKeys

logger = logging.getLogger(__name__)

COLD_PETS: Final = "sploot:cold:pets"

IDENTITY: Final = "sploot:cold:identity"
# Name of the object that contains the same text.
IDENTITY_OBJECT: Final = "identity"
# Folder of the objects that :meth:`ColdPets.probe` writes.
PROBES: Final = "probes"

# Maximum size of an object, and of the vectors that one command reads from Redis or writes to it, in bytes.
OBJECT_BYTES: Final = 8 * 1024 * 1024
STEP_BYTES: Final = 128 * 1024
STEPS_PER_TRIP: Final = 8

# A move that takes longer is void. So if an object is older than this and unreferenced, it will never be referenced.
LONGEST_MOVE_MS: Final = 60 * 60 * 1000
# Time for which objects are kept after their vectors were put back in Redis or deleted: longer than any failover, and
# long enough for an operator to restore the last backup of Redis.
UNUSED_MS: Final = 24 * LONGEST_MOVE_MS
# Time until the objects of a pet that stays cold are listed again: with four million cold pets, 93 a minute.
TIDY_AGAIN_MS: Final = 30 * UNUSED_MS
# Time until the objects of a pet are checked again if some are missing, so that the error is reported repeatedly.
LOST_AGAIN_MS: Final = 5 * 60 * 1000
# Lifetime of the temporary key, if the process that writes it dies.
STAGED_MS: Final = 15 * 60 * 1000

# Number of pets whose idle time one round trip reads, which takes about a millisecond of the server's only thread.
PETS_PER_TRIP: Final = 500


class Moved(NamedTuple):
    """A move, or a failed attempt; ``direction`` is ``out`` or ``back``.

    A failed read of cold vectors also counts as ``back``, and a failed search for unused objects as ``out``.
    """

    direction: str
    n_bytes: int
    is_done: bool


class Place(NamedTuple):
    """The place of a cold pet's vectors: the name of the move, and the number of vectors per object but the last."""

    move: str
    n_rows: int

    def __str__(self) -> str:
        return f"{self.move} {self.n_rows}"

    @classmethod
    def of(cls, text: bytes) -> Place:
        move, n_rows = text.decode().split(" ")
        return cls(move, int(n_rows))

    def name(self, pet: PetId, first: int) -> str:
        """Return the name of the object that begins with the vector of row ``first``."""
        return f"{pet}/{self.move}/{first}"


class ColdPets:
    """The cold pets of a Redis server. Errors from redis-py propagate untranslated."""

    def __init__(
        self,
        client: redis.Redis | redis.RedisCluster,
        vectors: VectorStore | None,
        *,
        on_move: Callable[[Moved], None] = lambda _: None,
        object_bytes: int = OBJECT_BYTES,
        later_ms: int = 0,
    ) -> None:
        """
        Args:
            vectors: the cold store; with None, no pet is moved out and cold pets cannot be read.
            on_move: called for each move, and for each failed attempt.
            object_bytes: maximum size of the vectors in one object.
            later_ms: added to the server's time, so that tests can check what happens later.
        """
        self._client, self._vectors, self._on_move, self._object_bytes = client, vectors, on_move, object_bytes
        self._later_ms = later_ms
        scripts = files("sploot_cluster.store")

        def script(name: str) -> str:
            return scripts.joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")

        self._move_out = client.register_script(script("whole") + script("move_out"))
        self._bring_back = client.register_script(script("bring_back"))
        self._idle_since = client.register_script(script("idle_since"))
        self._enter_at = client.register_script(script("enter"))
        self._leave_out = client.register_script(script("leave_out"))
        self._identify = client.register_script(script("identify"))

    def move_out(self, pet: PetId) -> bool:
        """Move the vectors of a pet to the cold store.

        Returns:
            False if the pet has none, is already cold, or changed in the meantime; nothing is removed then.

        Raises:
            ColdStoreUnavailable: the storage does not answer, did not return what was written, or is a different one.
            UnreadablePet: the pet is damaged; it stays in Redis.
        """
        keys, began_ms = PetKeys.of(pet), self._now_ms()
        with _readable(pet):
            born, commit, n_media, dim, cold = cast(
                "list[bytes | None]", self._client.hmget(keys.meta, "born", "commit", "n_media", "dim", "cold")
            )
            n, n_bytes = int(n_media or 0), 4 * int(dim or 0)
        if n <= 0 or n_bytes <= 0 or born is None or commit is None or cold is not None:
            return False
        place = Place(f"{began_ms}-{token_hex(8)}", max(1, self._object_bytes // n_bytes))
        try:
            self.verify(f"move pet {pet} out")
            self._enter(pet)
            if not self._write(pet, place, n, n_bytes):
                return False
        except ColdStoreUnavailable:
            self._on_move(Moved("out", 0, is_done=False))
            raise
        answer = self._move_out(keys=keys, args=[born, commit, str(place), began_ms, LONGEST_MOVE_MS])
        if isinstance(answer, list):
            _, key, expected, found = (part.decode(errors="replace") for part in answer)
            raise UnreadablePet.of_key(pet=pet, key=key, expected=expected, found=found)
        if answer:
            self._on_move(Moved("out", n * n_bytes, is_done=True))
        return bool(answer)

    def verify(self, doing: str) -> None:
        """Check that the storage has the identity that this Redis server recorded, or record that of a new storage.

        Args:
            doing: what the caller is about to do, for the error.

        Raises:
            ColdStoreUnavailable: the storage does not answer, or is a different one.
        """
        vectors = self._storage(doing)
        known: bytes = self._identify(keys=[IDENTITY], args=["", f"{token_hex(16)} new"])
        own, _, is_new = known.partition(b" ")
        stored = _get(vectors, IDENTITY_OBJECT)
        if stored is None and is_new:
            vectors.put(IDENTITY_OBJECT, own)
            stored = _get(vectors, IDENTITY_OBJECT)
        if stored != own:
            problem = f"the storage is a different one: its object {IDENTITY_OBJECT!r} does not match this Redis"
            raise ColdStoreUnavailable(doing=doing, problem=problem)
        if is_new:
            self._identify(keys=[IDENTITY], args=[known, own])

    def pages(self, pet: PetId, place: Place, *, start: int, end: int, n_bytes: int) -> Iterator[bytes]:
        """Yield the vectors of rows ``start`` to ``end`` (exclusive) from a pet's objects at a place, object by object.

        Args:
            n_bytes: size of one vector.

        Raises:
            UnreadablePet: an object is missing or damaged.
        """
        vectors = self._storage(f"read the vectors of pet {pet}")
        for first in range(start - start % place.n_rows, end, place.n_rows) if start < end else ():
            name = place.name(pet, first)
            try:
                try:
                    content = vectors.get(name)
                except (KeyError, ValueError) as error:
                    self.verify(f"read the vectors of pet {pet}")
                    problem = f"{name} of the cold store is missing or damaged; first see docs/how-to/cold-pets.md"
                    raise UnreadablePet(pet=pet, problem=problem) from error
            except (UnreadablePet, ColdStoreUnavailable):
                self._on_move(Moved("back", 0, is_done=False))
                raise
            part = content[max(0, start - first) * n_bytes : (end - first) * n_bytes]
            if len(part) != (min(end, first + place.n_rows) - max(start, first)) * n_bytes:
                raise UnreadablePet(pet=pet, problem=f"{name} in the cold store has another number of vectors")
            yield part

    def check(self, pet: PetId) -> bool:
        """Read all vectors of a cold pet to check them; return False if the pet is not cold.

        Raises:
            UnreadablePet: an object is missing or damaged.
        """
        with _readable(pet):
            n_media, dim, cold = cast(
                "list[bytes | None]", self._client.hmget(PetKeys.of(pet).meta, "n_media", "dim", "cold")
            )
            if cold is None:
                return False
            place, n, n_bytes = Place.of(cold), int(n_media or 0), 4 * int(dim or 0)
        for _ in self.pages(pet, place, start=0, end=n, n_bytes=n_bytes):
            pass
        return True

    def cold_among(self, pets: Sequence[PetId]) -> list[PetId]:
        """Return the cold pets among these pets."""
        found: list[PetId] = []
        for start in range(0, len(pets), PETS_PER_TRIP):
            batch, pipe = pets[start : start + PETS_PER_TRIP], self._client.pipeline(transaction=False)
            for pet in batch:
                pipe.hexists(PetKeys.of(pet).meta, "cold")
            # the meta key of a damaged pet may have another type
            answers = cast("list[Any]", pipe.execute(raise_on_error=False))
            found += [pet for pet, is_cold in zip(batch, answers, strict=True) if is_cold in (1, True)]
        return found

    def some(self, n: int) -> list[PetId]:
        """Return up to ``n`` random pets that have objects in the cold store, or may have some."""
        n_all = self._client.zcard(COLD_PETS)
        ranks = sample(range(n_all), min(n, n_all))
        found = [cast("list[bytes]", self._client.zrange(COLD_PETS, rank, rank)) for rank in ranks]
        return [PetId(int(pet)) for at_rank in found for pet in at_rank]

    def lost(self, pet: PetId) -> Sequence[str]:
        """Return the names of a cold pet's objects that the storage does not list; empty for a pet that is not cold.

        Raises:
            ColdStoreUnavailable: the storage does not answer, or is a different one.
            UnreadablePet: the pet is damaged.
        """
        with _readable(pet):
            n_media, cold = cast("list[bytes | None]", self._client.hmget(PetKeys.of(pet).meta, "n_media", "cold"))
            if cold is None:
                return ()
            place, n = Place.of(cold), int(n_media or 0)
        missing = self._missing(pet, place, n, self._storage(f"list the vectors of pet {pet}").names(str(pet)))
        if missing:
            self.verify(f"list the vectors of pet {pet}")
        # the pet may have been deleted since
        return missing if missing and self.place_of(pet) == place else ()

    def salvaged(self, pet: PetId, place: bytes, meta: Mapping[bytes, bytes]) -> Iterator[bytes]:
        """Yield the vector of each row of a possibly damaged cold pet; empty bytes for a missing vector.

        Args:
            place: the field ``cold`` of the pet's meta, as stored.
            meta: the other fields, as stored.

        Raises:
            ColdStoreUnavailable: the storage does not answer or is a different one, so missing vectors may not be lost.
        """
        try:
            found, n, n_bytes = Place.of(place), int(meta[b"n_media"]), 4 * int(meta[b"dim"])
        except (ValueError, KeyError):
            return
        self.verify(f"read the vectors of pet {pet}")
        vectors = self._storage(f"read the vectors of pet {pet}")
        for first in range(0, n, found.n_rows):
            n_rows = min(n - first, found.n_rows)
            content = _get(vectors, found.name(pet, first)) or b""
            yield from (content[row * n_bytes : (row + 1) * n_bytes] for row in range(n_rows))

    def place_of(self, pet: PetId) -> Place | None:
        """Return the place of a cold pet's vectors, or None for a pet whose vectors are in Redis.

        Raises:
            UnreadablePet: the pet is damaged.
        """
        with _readable(pet):
            cold = cast("bytes | None", self._client.hget(PetKeys.of(pet).meta, "cold"))
            return None if cold is None else Place.of(cold)

    def will_delete(self, pet: PetId) -> Place | None:
        """Record that the objects of a pet will be unused, and return their place. Call this before deleting the pet.

        If the process dies before it deletes the objects, :meth:`tidy` deletes them.

        Raises:
            ColdStoreUnavailable: the pet is cold, but this process has no cold store to delete objects from.
        """
        place = None
        try:
            place = self.place_of(pet)
        except UnreadablePet:  # tidy() deletes its objects, if any
            logger.warning("deleting a damaged pet", extra={"pet_id": pet}, exc_info=True)
        if place is not None:
            self._storage(f"delete pet {pet}")
        if self._vectors is not None:
            # a running move may still write objects, to which nothing will refer
            self._enter(pet, in_ms=3 * LONGEST_MOVE_MS)
        return place

    def bring_back(self, pet: PetId, *, known: tuple[Place, FloatMatrix] | None = None) -> bool:
        """Put the vectors of a cold pet back in Redis. Calling it for another pet changes nothing.

        Args:
            known: the place of the vectors and the vectors themselves, shape (n, dim), if the caller has them; None
                reads them from the cold store.

        Returns:
            Whether this call put them back.
        """
        keys = PetKeys.of(pet)
        with _readable(pet):
            n_media, dim, cold = cast("list[bytes | None]", self._client.hmget(keys.meta, "n_media", "dim", "cold"))
            if cold is None or n_media is None or dim is None:
                return False
            place, n, n_bytes = Place.of(cold), int(n_media), 4 * int(dim)
        if known is not None and known[0] == place and len(known[1]) == n:
            pages = _pages_of(known[1], place.n_rows)
        else:
            pages = self.pages(pet, place, start=0, end=n, n_bytes=n_bytes)
        staged = f"{keys.vectors}:new:{token_hex(8)}"
        try:
            for page in pages:
                self._stage(staged, page, n_bytes)
            self._enter(pet)
            is_back = bool(self._bring_back(keys=[keys.meta, keys.vectors, staged], args=[str(place)]))
        finally:
            self._discard(staged)
        if is_back:
            self._on_move(Moved("back", n * n_bytes, is_done=True))
        return is_back

    def will_replace(self, pet: PetId) -> None:
        """Keep a cold pet's objects for another ``UNUSED_MS``. Call this before replacing the pet with one in Redis."""
        if self._vectors is None:
            return
        try:
            is_cold = self.place_of(pet) is not None
        except UnreadablePet:  # it is replaced because it is damaged
            is_cold = True
        if is_cold:
            self._enter(pet)

    def forget(self, pet: PetId, place: Place | None) -> None:
        """Delete the objects of a deleted pet; if the storage does not answer, :meth:`tidy` deletes them later.

        Args:
            place: where the vectors were before the deletion, as :meth:`will_delete` returned it.
        """
        if self._vectors is None:
            return
        try:
            self.verify(f"delete cold vectors of pet {pet}")
            now_ms, stored = self._now_ms(), self._vectors.names(str(pet))
            own = () if place is None else [name for name in stored if name.startswith(f"{pet}/{place.move}/")]
            self._vectors.delete([*own, *(name for name in stored if _has_no_use(name, pet, None, now_ms))])
        except (ColdStoreUnavailable, *REDIS_ERRORS):
            logger.warning("cold vectors of a deleted pet will be deleted later", extra={"pet_id": pet}, exc_info=True)

    def tidy(self, *, limit: int) -> int:
        """Check the objects of up to ``limit`` pets whose check is due, and delete unused objects.

        Returns:
            The number of pets checked.
        """
        now_ms = self._now_ms()
        due = cast(
            "list[tuple[bytes, float]]",
            self._client.zrangebyscore(COLD_PETS, "-inf", now_ms, start=0, num=limit, withscores=True),
        )
        try:
            if due:
                self.verify("delete cold vectors without a use")
            for pet, due_ms in due:
                self._tidy(PetId(int(pet)), due_ms=int(due_ms))
        except ColdStoreUnavailable:
            self._on_move(Moved("out", 0, is_done=False))
            raise
        return len(due)

    def idle_ms(self, pets: Sequence[PetId]) -> list[int]:
        """Return the time in milliseconds since this method first saw each pet at its current revision.

        It is 0 for a cold pet, for a pet without items, and on the first call for a revision.
        """
        found: list[int] = []
        for start in range(0, len(pets), PETS_PER_TRIP):
            pipe = self._client.pipeline(transaction=False)
            for pet in pets[start : start + PETS_PER_TRIP]:
                if isinstance(self._client, redis.RedisCluster):
                    # cluster pipelines support neither EVALSHA nor the method eval
                    pipe.execute_command("EVAL", self._idle_since.script, 1, PetKeys.of(pet).meta)
                else:
                    self._idle_since(keys=[PetKeys.of(pet).meta], client=pipe)
            # a full Redis refuses to store the revision of a pet that has changed; the other pets still get an answer
            found += [
                0 if isinstance(answer, Exception) else int(answer[1]) - int(answer[0])
                for answer in cast("list[Any]", pipe.execute(raise_on_error=False))
            ]
        return found

    def probe(self) -> None:
        """Check the storage by writing, reading and deleting an object.

        Raises:
            ColdStoreUnavailable: the storage does not answer, did not return what was written, or is a different one.
        """
        self.verify("use the cold store")
        vectors, name = self._storage("use the cold store"), f"{PROBES}/{token_hex(8)}/0"
        vectors.put(name, name.encode())
        stored = _get(vectors, name)
        vectors.delete([name])
        if stored != name.encode():
            raise ColdStoreUnavailable(doing="use the cold store", problem=f"{name} was not stored as written")

    def _storage(self, doing: str) -> VectorStore:
        if self._vectors is None:
            raise ColdStoreUnavailable(doing=doing, problem="this process has no cold store")
        return self._vectors

    def _now_ms(self) -> int:
        seconds, microseconds = self._client.time()
        return int(seconds) * 1000 + int(microseconds) // 1000 + self._later_ms

    def _enter(self, pet: PetId, *, in_ms: int = UNUSED_MS) -> None:
        self._enter_at(keys=[COLD_PETS], args=[str(pet), self._now_ms() + in_ms])

    def _write(self, pet: PetId, place: Place, n: int, n_bytes: int) -> bool:
        """Write the vectors of a pet as objects and read each back; return False if Redis no longer has the vectors."""
        vectors = self._storage(f"move pet {pet} out")
        for first in range(0, n, place.n_rows):
            with _readable(pet):
                content = self._read(pet, first, min(n, first + place.n_rows), n_bytes=n_bytes)
            if content is None:
                return False
            name = place.name(pet, first)
            vectors.put(name, content)
            if _get(vectors, name) != content:
                raise ColdStoreUnavailable(doing=f"move pet {pet} out", problem=f"{name} was not stored as written")
        return True

    def _read(self, pet: PetId, first: int, end: int, *, n_bytes: int) -> bytes | None:
        """Return the vectors of rows ``first`` to ``end``, or None if Redis no longer has them."""
        keys, step, parts = PetKeys.of(pet), max(1, STEP_BYTES // n_bytes), list[bytes]()
        per_trip = step * STEPS_PER_TRIP
        for start in range(first, end, per_trip):
            pipe = self._client.pipeline(transaction=False)
            for at in range(start, min(end, start + per_trip), step):
                pipe.lrange(keys.vectors, at, min(at + step, end) - 1)
            for rows in cast("list[list[bytes]]", pipe.execute()):
                if {*map(len, rows)} != {n_bytes}:
                    return None
                parts += rows
        content = b"".join(parts)
        return content if len(content) == (end - first) * n_bytes else None

    def _stage(self, staged: str, page: bytes, n_bytes: int) -> None:
        step = max(1, STEP_BYTES // n_bytes) * n_bytes
        for start in range(0, len(page), step * STEPS_PER_TRIP):
            pipe = self._client.pipeline(transaction=False)
            for at in range(start, min(len(page), start + step * STEPS_PER_TRIP), step):
                end = min(len(page), at + step)
                pipe.rpush(staged, *[page[row : row + n_bytes] for row in range(at, end, n_bytes)])
            pipe.pexpire(staged, STAGED_MS)
            pipe.execute()

    def _discard(self, staged: str) -> None:
        try:
            self._client.unlink(staged)
        except REDIS_ERRORS:  # the key expires
            logger.debug("a temporary key is left to expire", exc_info=True)

    def _tidy(self, pet: PetId, *, due_ms: int) -> None:
        """Delete the unused objects of a pet, and schedule its next check, unless another process rescheduled it."""
        vectors, now_ms = self._storage(f"delete cold vectors of pet {pet}"), self._now_ms()
        stored = vectors.names(str(pet))
        try:
            place, lost = self.place_of(pet), self.lost(pet)
        except UnreadablePet:
            logger.warning("objects of a damaged pet stay in the cold store", extra={"pet_id": pet}, exc_info=True)
            self._leave_out(keys=[COLD_PETS], args=[str(pet), due_ms, now_ms + UNUSED_MS])
            return
        if lost:
            logger.error("objects of a cold pet are missing", extra={"pet_id": pet, "objects": lost[:10]})
            self._on_move(Moved("back", 0, is_done=False))
        unused = [name for name in stored if _has_no_use(name, pet, place, now_ms)]
        # check this after reading the place: a process that puts vectors back first schedules a later check
        if self._client.zscore(COLD_PETS, str(pet)) != due_ms:
            return
        vectors.delete(unused)
        is_left = place is not None or len(unused) < len(stored)
        again_ms = now_ms + (LOST_AGAIN_MS if lost else TIDY_AGAIN_MS) if is_left else 0
        self._leave_out(keys=[COLD_PETS], args=[str(pet), due_ms, again_ms])

    @staticmethod
    def _missing(pet: PetId, place: Place, n: int, stored: Sequence[str]) -> list[str]:
        found = set(stored)
        return [name for first in range(0, n, place.n_rows) if (name := place.name(pet, first)) not in found]


@contextmanager
def _readable(pet: PetId) -> Iterator[None]:
    """Translate errors caused by damaged keys or values to ``UnreadablePet``."""
    try:
        yield
    except ValueError as error:
        raise UnreadablePet(pet=pet, problem=f"its meta cannot be read: {error}") from error
    except redis.ResponseError as error:
        if "WRONGTYPE" not in str(error):
            raise
        raise UnreadablePet(pet=pet, problem="one of its keys has another type than expected") from error


def _has_no_use(name: str, pet: PetId, place: Place | None, now_ms: int) -> bool:
    """Return whether an object is unused: its pet does not refer to it and never will, because its move is void."""
    move = name.split("/")[1]
    began_ms = move.partition("-")[0]
    is_void = not began_ms.isdecimal() or now_ms - int(began_ms) > 2 * LONGEST_MOVE_MS
    return is_void and (place is None or move != place.move)


def _pages_of(rows: FloatMatrix, n_rows: int) -> Iterator[bytes]:
    for first in range(0, len(rows), n_rows):
        yield rows[first : first + n_rows].astype("<f4", copy=False).tobytes()


def _get(vectors: VectorStore, name: str) -> bytes | None:
    try:
        return vectors.get(name)
    except (KeyError, ValueError):
        return None
