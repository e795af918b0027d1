"""Reading damaged pets in Redis as they are, and replacing them with what could be salvaged.

:class:`RedisPetStore` refuses a damaged pet, so that nothing more is lost. This module reads and writes pets whose keys
are missing, truncated or of the wrong type. It also compares the set of all pets, and the index of their names, with
the keys that exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, Final, Literal, NamedTuple, cast
from uuid import uuid4

import redis

from sploot_cluster.errors import RevisionConflict, UnreadablePet
from sploot_cluster.pet.models import PetId
from sploot_cluster.pet.whole import PetDump
from sploot_cluster.store import export_file
from sploot_cluster.store.cold.moves import ColdPets
from sploot_cluster.store.keys import PETS, PetKeys
from sploot_cluster.store.name_index import NameIndex
from sploot_cluster.store.pet_list import PetList
from sploot_cluster.store.redis import RedisPetStore, translated
from sploot_cluster.store.values import commands_of, flat, pairs_of

Kind = Literal["string", "list", "hash", "stream"]

# Names of the keys that contain embeddings.
OF_VECTORS: Final = ("vectors", "shadow_vectors")

_KEY: Final = re.compile(rb"\{pet:([1-9][0-9]{0,18})\}:[a-z_:]+")
# Number of keys that one SCAN examines, and of pets that one command lists, each in less than a millisecond.
_PAGE: Final = 1_000


@dataclass(frozen=True, slots=True)
class RawKey:
    """A key of a pet as it is in Redis.

    Attributes:
        kind: the Redis type of the key. If no key of a pet has this type, ``value`` is empty.
        value: the bytes of a string; the items of a list; alternating fields and values of a hash; (id, [field, value,
            …]) for each entry of a stream.
    """

    kind: str
    value: Any


@dataclass(frozen=True, slots=True)
class RawPet:
    """The keys of a pet as they are in Redis, whole or damaged, at one moment.

    Attributes:
        keys: the existing keys by their names in :class:`PetKeys`.
        sizes: a string that changes whenever the pet changes; see sizes.lua.
    """

    pet: PetId
    keys: Mapping[str, RawKey]
    sizes: str = ""

    def text(self, name: str) -> bytes:
        """Return the bytes of a string, or none if the key is missing or has another type."""
        return cast("bytes", self._value(name, "string", b""))

    def items(self, name: str) -> list[bytes]:
        """Return the items of a list key, or none if the key is missing or has another type."""
        return cast("list[bytes]", self._value(name, "list", []))

    def pairs(self, name: str) -> dict[bytes, bytes]:
        """Return the fields of a hash, or none if the key is missing or has another type."""
        return dict(pairs_of(self._value(name, "hash", [])))

    def entries(self, name: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """Return the entries of a stream, or none if the key is missing or has another type."""
        return [(id_, dict(pairs_of(fields))) for id_, fields in self._value(name, "stream", [])]

    def _value(self, name: str, kind: Kind, nothing: Any) -> Any:
        key = self.keys.get(name)
        return nothing if key is None or key.kind != kind else key.value


class Lists(NamedTuple):
    """The errors in the set of all pets and in the index of their names.

    Attributes:
        unlisted: pets that have data but are not in the set.
        gone: pets in the set that have no data.
        unnamed: pets that a search for their name does not find.
    """

    unlisted: Sequence[PetId]
    gone: Sequence[PetId]
    unnamed: Sequence[PetId]


class PetRepairs:
    """A reader of raw pets, whole or damaged, that can also replace damaged ones."""

    def __init__(self, client: redis.Redis | redis.RedisCluster, *, cold: ColdPets | None = None) -> None:
        """The arguments are those of :class:`RedisPetStore`; the Redis user must be allowed to write pets."""
        self._client, self._names, self._cold = client, NameIndex(client), cold or ColdPets(client, None)
        self._store = RedisPetStore(client, cold=cold)
        scripts = files(__package__)

        def script(name: str) -> str:
            return scripts.joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")

        self._raw = client.register_script(script("sizes") + script("raw"))
        self._rewrite = client.register_script(script("sizes") + script("rewrite"))

    def damage(self, pet: PetId) -> str | None:
        """Return a description of the damage to a pet, or None if all of its data is readable and consistent.

        Raises:
            UnknownPet: the pet has no data.
        """
        try:
            dump = self._store.dump(pet)
            tally = self._store.tally(pet).tally
        except UnreadablePet as damaged:
            return damaged.problem
        return next(export_file.problems(dump), None) or (None if tally.is_conserved else f"its counts: {tally}")

    def read(self, pet: PetId, *, with_vectors: bool = True) -> RawPet:
        """Return all keys of a pet; no keys for a pet without data.

        A cold pet is returned as if its vectors were in Redis: vectors that are missing or damaged in the cold store
        are empty, and ``meta`` lacks the field ``cold``.

        Raises:
            ColdStoreUnavailable: the pet is cold, and the cold store does not answer.
        """
        keys = PetKeys.of(pet)
        with translated(f"read the keys of pet {pet}"):
            sizes, *answer = self._raw(keys=keys, args=[int(with_vectors)])
        kinds = [kind.decode() for kind in answer[::2]]
        found = zip(PetKeys._fields, kinds, answer[1::2], strict=True)
        raw = RawPet(pet, {name: RawKey(kind, value) for name, kind, value in found if kind != "none"}, sizes.decode())
        return self._warm(raw, with_vectors=with_vectors)

    def _warm(self, raw: RawPet, *, with_vectors: bool) -> RawPet:
        """Return a cold pet as if its vectors were in Redis, and any other pet as it is."""
        meta = raw.pairs("meta")
        if b"cold" not in meta or "vectors" in raw.keys:
            return raw
        place = meta.pop(b"cold")
        fields = RawKey("hash", [part for pair in meta.items() for part in pair])
        vectors = list(self._cold.salvaged(raw.pet, place, meta)) if with_vectors else []
        return replace(raw, keys={**raw.keys, "meta": fields, "vectors": RawKey("list", vectors)})

    def rewrite(self, raw: RawPet, dump: PetDump) -> None:
        """Atomically replace a pet, however damaged it is, with ``dump``.

        Args:
            raw: the pet as :meth:`read` returned it.

        Raises:
            RevisionConflict: the pet has changed since it was read; nothing was written.
        """
        born, commit = uuid4().hex, uuid4().hex
        keys = PetKeys.of(raw.pet)
        self._write(raw, commit, flat(keys, commands_of(keys, dump, born=born, commit=commit)))

    def put_back(self, raw: RawPet) -> None:
        """Write back the keys of a pet that has no data now, exactly as ``raw`` holds them, even if they are damaged.

        Raises:
            RevisionConflict: the pet has data; nothing was written.
        """
        empty = self.read(raw.pet)
        if empty.keys.keys() - {"tree", "preview"}:
            raise RevisionConflict(pet=raw.pet, expected=0, current=self._store.revision(raw.pet))
        self._write(RawPet(raw.pet, raw.keys, empty.sizes), "", _commands_of_raw(raw))

    def _write(self, raw: RawPet, commit: str, commands: Iterator[Any]) -> None:
        with translated(f"write the keys of pet {raw.pet}"):
            self._cold.will_replace(raw.pet)
            is_written = self._rewrite(keys=PetKeys.of(raw.pet), args=[raw.sizes, commit, *commands])
            self._client.sadd(PETS, raw.pet)
            self._names.settle(raw.pet)
        if not is_written:
            raise RevisionConflict(pet=raw.pet, expected=0, current=0)

    def compare_lists(self) -> Lists:
        """Return the errors in the set of all pets and in the index of their names.

        Scans all keys of the server, a thousand at a time, and then reads the names of all pets.
        """
        with translated("list the keys of all pets"):
            names = self._client.scan_iter(match="{pet:*", count=_PAGE)
            stored = {PetId(int(found[1])) for name in names if (found := _KEY.fullmatch(name))}
        listed = set(self._store.pets())
        gone = [pet for pet in sorted(listed - stored) if not self._exists(pet)]
        with translated("read the names of all pets"):
            unnamed = list(self._names.missing(sorted(stored)))
        return Lists(sorted(stored - listed), gone, unnamed)

    def relist(self, found: Lists) -> None:
        """Repair the set of all pets and the index of their names. Repeating the call changes nothing."""
        added = found.unlisted
        with translated("write the set of all pets"):
            for start in range(0, len(added), _PAGE):
                self._client.sadd(PETS, *added[start : start + _PAGE])
            for pet in found.gone:
                self._client.srem(PETS, pet)
                if self._exists(pet):  # another process has created the pet since
                    self._client.sadd(PETS, pet)
            for pet in found.unnamed:
                self._names.settle(pet)
            PetList(self._client).forget_order()

    def _exists(self, pet: PetId) -> bool:
        with translated(f"look for pet {pet}"):
            return bool(self._client.exists(*PetKeys.of(pet)))


def _commands_of_raw(raw: RawPet) -> Iterator[Any]:
    """Yield the commands with which rewrite.lua writes keys as they were."""
    number = {name: at for at, name in enumerate(PetKeys._fields, start=1)}
    for name, key in raw.keys.items():
        match key.kind:
            case "string":
                yield from (1, "SET", number[name], key.value)
            case "list" | "hash":
                command = "RPUSH" if key.kind == "list" else "HSET"
                for start in range(0, len(key.value), 5_000):
                    batch = key.value[start : start + 5_000]
                    yield from (len(batch), command, number[name], *batch)
            case "stream":
                for id_, fields in key.value:
                    yield from (1 + len(fields), "XADD", number[name], id_, *fields)
