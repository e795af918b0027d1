"""A pet of three clusters, for tests that correct or explain it."""

from __future__ import annotations

import pytest

from sploot_cluster import ClusterService
from sploot_cluster.store.memory import MemoryPetStore
from tests.sploot_cluster.albums import grouped


@pytest.fixture
def store() -> MemoryPetStore:
    return MemoryPetStore()


@pytest.fixture
def service(store: MemoryPetStore) -> ClusterService:
    """A service whose clusters 1, 2 and 3 have twelve items each, of subjects 0, 1 and 2 respectively."""
    return grouped(store, 3, range(12))
