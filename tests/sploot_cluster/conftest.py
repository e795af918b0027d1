from __future__ import annotations

import pytest

from sploot_cluster.memory_store import MemoryPetStore
from sploot_cluster.redis_store import RedisPetStore
from sploot_cluster.store import PetStore


@pytest.fixture(params=["redis", "memory"])
def store(request: pytest.FixtureRequest) -> PetStore:
    """An empty store of each kind."""
    if request.param == "memory":
        return MemoryPetStore()
    return RedisPetStore(request.getfixturevalue("redis_client"))
