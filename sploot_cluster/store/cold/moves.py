"""Moves of vectors between Redis and the cold store, each safe to be killed at any moment.

    key                    type    holds
    sploot:cold:pets       zset    pets that have objects in the cold store, or may have some, scored by the time in
                                   milliseconds at which :meth:`ColdPets.tidy` looks at these objects
    sploot:cold:identity   string  random text that the object ``identity`` of the cold store has, too; followed by
                                   " new" until that object was written

A pet is cold if its ``meta`` names a place in the cold store and its ``vectors`` are missing. Everything else of it
stays in Redis. ``meta`` is the only truth about where vectors are; one script changes it together with ``vectors``.

- Out: the pet is entered in the set, its objects are written under a new name, read again and compared; only then does
  a script remove the vectors from Redis, and only if the pet has not been committed since.
- Back: the vectors are written to a temporary key; a script puts it in place. The objects stay for ``UNUSED_MS``, so
  that a Redis that loses its last second, or fails over to a replica that is behind, still finds them.

Nothing is written, deleted or taken for lost in a storage that has another identity: one of another Redis server, or
the empty directory below a file system that is not mounted.

An object belongs to one move and is never written again. A move that takes longer than ``LONGEST_MOVE_MS`` is void. So
an object of an older move that ``meta`` does not name has no use any more: it is left from a move that failed, or its
vectors were put back or deleted.
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
# Name of the object with the same text.
IDENTITY_OBJECT: Final = "identity"
# Folder of the objects that :meth:`ColdPets.probe` writes.
PROBES: Final = "probes"

# Maximum size of an object, in bytes of vectors, and of what one command reads from Redis or writes to it.
OBJECT_BYTES: Final = 8 * 1024 * 1024
STEP_BYTES: Final = 128 * 1024
STEPS_PER_TRIP: Final = 8

# A move that takes longer is void, so that objects older than this that nothing refers to are never referred to later.
LONGEST_MOVE_MS: Final = 60 * 60 * 1000
# Time for which objects are kept after their vectors were put back in Redis or deleted: longer than any failover, and
# than the time in which an operator restores the last copy of Redis.
UNUSED_MS: Final = 24 * LONGEST_MOVE_MS
# Time until the objects of a pet that stays cold are listed again: with four million cold pets, 93 a minute.
TIDY_AGAIN_MS: Final = 30 * UNUSED_MS
# Time until the objects of a pet are looked at again when some are missing, so that the error does not go unnoticed.
LOST_AGAIN_MS: Final = 5 * 60 * 1000
# Lifetime of the temporary key, if the process that writes it dies.
STAGED_MS: Final = 15 * 60 * 1000

# Number of pets whose idle time one round trip asks for: about a millisecond of the server's only thread.
PETS_PER_TRIP: Final = 500


class Moved(NamedTuple):
    """A move, or an attempt: ``direction`` is ``out`` or ``back``.

    Attempts are also reads of cold vectors (``back``), and looks for objects without a use (``out``).
    """

    direction: str
    n_bytes: int
    is_done: bool


class Place(NamedTuple):
    """Where the vectors of a cold pet are: the name of the move, and how many vectors each object but the last has."""

    move: str
    n_rows: int

    def __str__(self) -> str:
        return f"{self.move} {self.n_rows}"

    @classmethod
    def of(cls, text: bytes) -> Place:
        move, n_rows = text.decode().split(" ")
        return cls(move, int(n_rows))

    def name(self, pet: PetId, first: int) -> str:
        """Return the name of the object whose first vector is that of row ``first``."""
        return f"{pet}/{self.move}/{first}"


class ColdPets:
    """The cold pets of a Redis server. Errors of redis-py pass through untranslated."""

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
            vectors: None: no pet is moved out, and pets that are cold cannot be read.
            on_move: called for each move, and for each attempt that failed.
            object_bytes: maximum size of the vectors in one object.
            later_ms: is added to the server's time, to see in tests what will be done then.
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
            False if the pet has none, is cold already, or has changed meanwhile; nothing was removed then.

        Raises:
            ColdStoreUnavailable: the storage does not answer, returned something else than was written, or is another.
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
        """Check that the storage is the one that this Redis server moves vectors to; a new one becomes that.

        Args:
            doing: what the caller is about to do, for the error.

        Raises:
            ColdStoreUnavailable: it does not answer, or it is another storage.
        """
        vectors = self._storage(doing)
        known: bytes = self._identify(keys=[IDENTITY], args=["", f"{token_hex(16)} new"])
        own, _, is_new = known.partition(b" ")
        stored = _get(vectors, IDENTITY_OBJECT)
        if stored is None and is_new:
            vectors.put(IDENTITY_OBJECT, own)
            stored = _get(vectors, IDENTITY_OBJECT)
        if stored != own:
            problem = f"the storage is another one: its object {IDENTITY_OBJECT!r} is not that of this Redis"
            raise ColdStoreUnavailable(doing=doing, problem=problem)
        if is_new:
            self._identify(keys=[IDENTITY], args=[known, own])

    def pages(self, pet: PetId, place: Place, *, start: int, end: int, n_bytes: int) -> Iterator[bytes]:
        """Yield the vectors of rows ``start`` to ``end`` of a pet at a place, object by object.

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
        """Read all vectors of a cold pet; return whether it is one.

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
        """Return those of the pets that are cold."""
        found: list[PetId] = []
        for start in range(0, len(pets), PETS_PER_TRIP):
            batch, pipe = pets[start : start + PETS_PER_TRIP], self._client.pipeline(transaction=False)
            for pet in batch:
                pipe.hexists(PetKeys.of(pet).meta, "cold")
            # the meta of a damaged pet may be of another type
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
        """Return the names of objects that a pet refers to and the storage does not list; empty for any other pet.

        Raises:
            ColdStoreUnavailable: the storage does not answer, or is another one.
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
        """Yield the vector of each row of a cold pet that may be damaged; empty bytes for a missing one.

        Args:
            place, meta: the fields of the pet's meta, as they are stored.

        Raises:
            ColdStoreUnavailable: the storage does not answer, or is another one, so that nothing is known to be lost.
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
        """Return where the vectors of a cold pet are; None for a pet whose vectors are in Redis.

        Raises:
            UnreadablePet: the pet is damaged.
        """
        with _readable(pet):
            cold = cast("bytes | None", self._client.hget(PetKeys.of(pet).meta, "cold"))
            return None if cold is None else Place.of(cold)

    def will_delete(self, pet: PetId) -> Place | None:
        """Note that the objects of a pet are to be deleted, before the pet is. Return where its vectors are.

        So :meth:`tidy` deletes them if the process dies.

        Raises:
            ColdStoreUnavailable: they are in the cold store, and this process has none, so it could not delete them.
        """
        place = None
        try:
            place = self.place_of(pet)
        except UnreadablePet:  # tidy() deletes what it may have
            logger.warning("deleting a damaged pet", extra={"pet_id": pet}, exc_info=True)
        if place is not None:
            self._storage(f"delete pet {pet}")
        if self._vectors is not None:
            # a move that is running may still write objects; none may refer to them
            self._enter(pet, in_ms=3 * LONGEST_MOVE_MS)
        return place

    def bring_back(self, pet: PetId, *, known: tuple[Place, FloatMatrix] | None = None) -> bool:
        """Put the vectors of a cold pet back in Redis. Calling it for another pet changes nothing.

        Args:
            known: the vectors, shape (n, dim), if the caller has them, and the place that they had in the cold store;
                None: they are read from there.

        Returns:
            whether this call put them back.
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
        """Keep the objects of a pet that is cold for another ``UNUSED_MS``, because it will stop referring to them."""
        if self._vectors is None:
            return
        try:
            is_cold = self.place_of(pet) is not None
        except UnreadablePet:  # it is replaced because it is damaged
            is_cold = True
        if is_cold:
            self._enter(pet)

    def forget(self, pet: PetId, place: Place | None) -> None:
        """Delete the objects of a pet that was deleted; if the storage does not answer, :meth:`tidy` does it later.

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
        """Look at the objects of up to ``limit`` pets that are due, and delete those without a use.

        Returns:
            the number of these pets.
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
        """Return for how long each pet has had its present revision, as far as this method has seen it.

        It is 0 for a pet that is cold or has no items, and at the first call for a revision.
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
            # a full Redis refuses to note the revision of a pet; that of others is known
            found += [
                0 if isinstance(answer, Exception) else int(answer[1]) - int(answer[0])
                for answer in cast("list[Any]", pipe.execute(raise_on_error=False))
            ]
        return found

    def probe(self) -> None:
        """Write, read and delete an object.

        Raises:
            ColdStoreUnavailable: the storage does not answer, returned something else than was written, or is another.
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
        """Write the vectors of a pet as objects, and read each again; False if the pet does not have them any more."""
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
        """Return the vectors of rows; None if the pet does not have them any more."""
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
        except REDIS_ERRORS:  # it expires
            logger.debug("a temporary key is left to expire", exc_info=True)

    def _tidy(self, pet: PetId, *, due_ms: int) -> None:
        """Delete the objects of a pet that have no use, and enter its next time, unless another process did."""
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
        # after the place was read: who puts vectors back enters a later time first
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
    """Translate errors about keys and values that no release writes to ``UnreadablePet``."""
    try:
        yield
    except ValueError as error:
        raise UnreadablePet(pet=pet, problem=f"its meta cannot be read: {error}") from error
    except redis.ResponseError as error:
        if "WRONGTYPE" not in str(error):
            raise
        raise UnreadablePet(pet=pet, problem="one of its keys has another type than expected") from error


def _has_no_use(name: str, pet: PetId, place: Place | None, now_ms: int) -> bool:
    """Return whether nothing refers to an object, or can refer to it later, because its move is void."""
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
