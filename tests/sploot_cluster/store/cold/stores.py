"""Stores of vectors for tests: one in memory, and a store of pets that moves every pet out before each call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sploot_cluster.errors import ColdStoreUnavailable
from sploot_cluster.store.cold.moves import ColdPets
from sploot_cluster.store.redis import RedisPetStore


class DictVectors:
    """A ``VectorStore`` in a dictionary, which can be made to fail.

    Attributes:
        is_away: whether every call raises ``ColdStoreUnavailable``.
        n_read: number of objects that were read.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.is_away, self.n_read = False, 0

    @property
    def of_pets(self) -> dict[str, bytes]:
        """The objects that hold vectors."""
        return {name: content for name, content in self.objects.items() if name[0].isdecimal()}

    def put(self, name: str, content: bytes) -> None:
        self._check()
        self.objects[name] = bytes(content)

    def get(self, name: str) -> bytes:
        self._check()
        self.n_read += 1
        return self.objects[name]

    def names(self, folder: str) -> Sequence[str]:
        self._check()
        return [name for name in self.objects if name.startswith(f"{folder}/")]

    def delete(self, names: Sequence[str]) -> None:
        self._check()
        for name in names:
            self.objects.pop(name, None)

    def _check(self) -> None:
        if self.is_away:
            raise ColdStoreUnavailable(doing="reach the storage", problem="it is away")


class AlwaysCold:
    """A store of pets that moves the vectors of all pets out of Redis before each call of the store behind it."""

    def __init__(self, store: RedisPetStore, cold: ColdPets) -> None:
        self._store, self._cold = store, cold

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        return self._after_moves(found) if callable(found) else found

    def _after_moves(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            for pet in self._store.pets():
                self._cold.move_out(pet)
            return method(*args, **options)

        return call
