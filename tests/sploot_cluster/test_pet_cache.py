"""Tests of the cache of pets: one thread at a time uses a pet, and the size of the cache is limited."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
import redis

from sploot_cluster import ClusterService
from sploot_cluster.pet.models import MediaId, PetId
from sploot_cluster.pet.rows import PetRows
from sploot_cluster.pet_cache import (
    BYTES_PER_ITEM,
    BYTES_PER_PET,
    LEAST_BYTES,
    PetCache,
    PetMemory,
    bytes_to_remember,
)
from sploot_cluster.store.redis import RedisPetStore
from tests.sploot_cluster.albums import PET, grouped, name
from tests.support import eventually

ONE_ITEM = 4 * 8 + BYTES_PER_ITEM
ROOM = 10 * ONE_ITEM + 3 * BYTES_PER_PET


def remember(memory: PetMemory, n: int) -> None:
    """Put n items with 8-dimensional vectors into the memory of a cached pet."""
    rows = PetRows([MediaId(f"m{i}") for i in range(n)], np.ones((n, 8), dtype=np.float32))
    memory.state = replace(
        memory.state,
        media=rows.media(n),
        rows=rows.index(n),
        vectors=rows.vectors(n),
        labels=np.zeros(n, dtype=np.int32),
        revision=1,
        dim=8,
        model="m@1",
    )


def remembered(cache: PetCache, *pets: int) -> list[int]:
    """Return the number of cached items of each pet. Opening a pet evicts others if the cache exceeds its limit."""
    found = []
    for pet in pets:
        with cache.open(PetId(pet)) as memory:
            found.append(memory.state.n_media)
    return found


def fill(cache: PetCache, pet: int, n: int) -> None:
    with cache.open(PetId(pet)) as memory:
        remember(memory, n)


def test_pet_stays_cached_until_its_next_use() -> None:
    cache = PetCache(max_bytes=ROOM)

    fill(cache, 1, 4)

    assert remembered(cache, 1) == [4]
    assert cache.n_bytes == 4 * ONE_ITEM + BYTES_PER_PET


def test_least_recently_used_pet_is_evicted_first() -> None:
    cache = PetCache(max_bytes=ROOM)
    for pet in (1, 2, 3):
        fill(cache, pet, 3)
    remembered(cache, 1)

    fill(cache, 4, 3)

    assert cache.n_bytes == 9 * ONE_ITEM + 3 * BYTES_PER_PET
    assert remembered(cache, 1, 3, 4, 2) == [3, 3, 3, 0]


def test_pet_larger_than_the_cache_is_kept_only_while_open() -> None:
    cache = PetCache(max_bytes=ROOM)

    fill(cache, 1, 50)

    assert cache.n_bytes == 0
    assert remembered(cache, 1) == [0]


def test_open_pet_is_not_evicted() -> None:
    cache = PetCache(max_bytes=ROOM)
    with cache.open(PetId(1)) as memory:
        remember(memory, 12)
        fill(cache, 2, 12)
        awaiting = Thread(target=remembered, args=(cache, 1))
        awaiting.start()

    awaiting.join()

    assert remembered(cache, 1) == [12]


def test_open_pet_is_not_evicted_for_another() -> None:
    cache = PetCache(max_bytes=ROOM)
    fill(cache, 1, 12)
    with cache.open(PetId(1)):
        fill(cache, 2, 12)

    assert remembered(cache, 1, 2) == [12, 0]


def test_threads_wait_for_each_other_only_for_the_same_pet() -> None:
    cache = PetCache(max_bytes=1_000)
    order: list[str] = []
    entered = Event()

    def second() -> None:
        entered.set()
        with cache.open(PetId(1)):
            order.append("second")

    with cache.open(PetId(1)):
        thread = Thread(target=second)
        thread.start()
        assert entered.wait(10)
        with cache.open(PetId(2)):
            order.append("another pet")
        order.append("first")
    thread.join()

    assert order == ["another pet", "first", "second"]


def test_pet_is_released_after_an_exception() -> None:
    cache = PetCache(max_bytes=1_000)

    with pytest.raises(RuntimeError), cache.open(PetId(1)):
        raise RuntimeError

    done: list[int] = []
    thread = Thread(target=lambda: done.extend(remembered(cache, 1)))
    thread.start()
    assert eventually(lambda: done) == [0]
    thread.join()


def test_cache_of_single_item_pets_stays_within_its_limit(redis_url: str) -> None:
    """The size includes each vector buffer's reserve for growth, which makes a one-item buffer eight times as large."""
    with redis.Redis.from_url(redis_url) as client:
        store, limit = RedisPetStore(client), 1_000_000
        service = ClusterService(store, cache_bytes=limit)
        service.assign(PetId(1_000), MediaId("m"), model="m@1", vector=np.ones(512))
        tracemalloc.start()
        try:
            for pet in range(1, 200):
                service.assign(PetId(pet), MediaId(f"{pet:036}"), model="m@1", vector=np.ones(512))
            taken, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert service.cached_bytes > limit // 2
    assert taken < 1.2 * limit


def test_cache_size_includes_the_corrections_of_a_pet(redis_url: str) -> None:
    """Each correction names all items of the cluster."""
    with redis.Redis.from_url(redis_url) as client:
        service = grouped(RedisPetStore(client), 1, range(80))
        (cluster,) = service.clusters(PET).clusters
        for number, item in enumerate(cluster.media_ids[:60]):
            service.exclude(PET, cluster.cluster_id, [item], operation_id=str(number), by="ada")
        stranger = ClusterService(RedisPetStore(client))
        tracemalloc.start()
        try:
            stranger.why(PET, name(0, 0))
            taken, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert taken < 1.5 * stranger.cached_bytes < 300_000


def test_empty_pets_are_evicted_too() -> None:
    cache = PetCache(max_bytes=ROOM)

    for pet in range(1, 1_000):
        remembered(cache, pet)

    assert 0 < len(cache) < 20


@pytest.mark.parametrize("limits", ["memory.max", "memory/memory.limit_in_bytes"])
def test_cache_limit_in_a_small_container_is_the_minimum(tmp_path: Path, limits: str) -> None:
    (tmp_path / limits).parent.mkdir(exist_ok=True)
    (tmp_path / limits).write_text(f"{2 << 30}\n")

    assert bytes_to_remember(tmp_path) == LEAST_BYTES


def test_cache_limits_of_all_processes_are_a_quarter_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 64 << 18, "SC_PAGE_SIZE": 4096}.__getitem__)
    monkeypatch.setattr("sploot_cluster.pet_cache.n_cores", lambda _: 4)

    assert bytes_to_remember(tmp_path) == 4 << 30
