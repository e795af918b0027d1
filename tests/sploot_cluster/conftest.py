from __future__ import annotations

import pytest

from sploot_cluster.store.memory import MemoryPetStore
from sploot_cluster.store.port import PetStore
from sploot_cluster.store.redis import RedisPetStore


@pytest.fixture(params=["redis", "memory"])
def store(request: pytest.FixtureRequest) -> PetStore:
    """An empty store; every test runs once with each kind of store."""
    if request.param == "memory":
        return MemoryPetStore()
    return RedisPetStore(request.getfixturevalue("redis_client"))
