"""Tests of moves of vectors out of Redis and back: what a reader sees, kills at every step, and lost races."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, cast

import numpy as np
import pytest
import redis

from sploot_cluster import ClusterService
from sploot_cluster.errors import ColdStoreUnavailable, PetIsCold, UnreadablePet
from sploot_cluster.pet.models import PetId
from sploot_cluster.pet.rows import empty_state
from sploot_cluster.pet.vectors import FloatMatrix
from sploot_cluster.store.cold.moves import COLD_PETS, UNUSED_MS, ColdPets, Moved
from sploot_cluster.store.cold.vectors import VectorStore
from sploot_cluster.store.keys import PetKeys
from sploot_cluster.store.redis import RedisPetStore
from sploot_cluster.store.repairs import PetRepairs
from sploot_cluster.store.salvage import salvage
from tests.sploot_cluster.albums import DIM, PET, grouped, name, take
from tests.sploot_cluster.days import Day
from tests.sploot_cluster.store.cold.stores import DictVectors
from tests.sploot_cluster.store.test_store import NOW
from tests.sploot_cluster.store.test_twin_stores import Mirrored, facts

# three vectors in an object, so that a pet has several, the last of them incomplete
OBJECT_BYTES = 3 * 4 * DIM
KEYS = PetKeys.of(PET)


class Killed(BaseException):
    """Stands for the death of the process: nothing after it runs."""


class Steps:
    """The steps of a process, before and after each call to Redis or to the storage; it dies at one of them."""

    def __init__(self, dies_at: int) -> None:
        self.n, self.dies_at = 0, dies_at

    def of(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            self.step()
            answer = call(*args, **options)
            self.step()
            return answer

        return counted

    def step(self) -> None:
        self.n += 1
        if self.n == self.dies_at:
            # a dead process sends nothing more, whatever its blocks "finally" would do
            self.dies_at = self.n + 1
            raise Killed


class MortalVectors:
    def __init__(self, vectors: VectorStore, steps: Steps) -> None:
        self.put, self.get = steps.of(vectors.put), steps.of(vectors.get)
        self.names, self.delete = steps.of(vectors.names), steps.of(vectors.delete)


class MortalRedis(redis.Redis):
    """A client whose process dies at one of its steps."""

    steps: Steps

    def execute_command(self, *args: Any, **options: Any) -> Any:
        return self.steps.of(super().execute_command)(*args, **options)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Any:
        pipe = super().pipeline(transaction, shard_hint)
        pipe.execute = self.steps.of(pipe.execute)  # type: ignore[method-assign]
        return pipe


@pytest.fixture
def vectors() -> DictVectors:
    return DictVectors()


@pytest.fixture
def cold(redis_client: redis.Redis, vectors: DictVectors) -> ColdPets:
    return ColdPets(redis_client, vectors, object_bytes=OBJECT_BYTES)


@pytest.fixture
def store(redis_client: redis.Redis, cold: ColdPets) -> RedisPetStore:
    return RedisPetStore(redis_client, cold=cold)


def in_redis(client: redis.Redis, pet: PetId = PET) -> int:
    """Return the number of the pet's vectors that are in Redis."""
    return client.llen(PetKeys.of(pet).vectors)


def rows_of(store: RedisPetStore, pet: PetId = PET) -> FloatMatrix:
    """Return the vectors of a pet, as a process reads them that has nothing of it in its memory."""
    return store.load(pet).vectors


def test_vectors_leave_redis_and_are_read_where_they_are(
    redis_client: redis.Redis, store: RedisPetStore, cold: ColdPets, vectors: DictVectors
) -> None:
    service = grouped(store, 2, range(5))
    before, version = rows_of(store), store.load(PET).version

    assert cold.move_out(PET)
    vectors.n_read = 0

    assert (in_redis(redis_client), len(vectors.of_pets)) == (0, 4)
    np.testing.assert_array_equal(rows_of(store), before)
    assert vectors.n_read == 4
    assert store.load(PET).version == version
    assert not cold.move_out(PET)
    totals = service.totals()
    assert (totals.unconserved, totals.n_cold, totals.cold_bytes) == ((), 1, before.nbytes)


def test_corrections_and_reclusters_leave_a_cold_pet_cold(
    redis_client: redis.Redis, store: RedisPetStore, cold: ColdPets
) -> None:
    grouped(store, 2, range(5))
    cold.move_out(PET)
    service = ClusterService(store)

    service.merge(PET, [1, 2], operation_id="m", by="ada")  # type: ignore[list-item]
    service.recluster(PET)
    service.name_pet(PET, "Rex", operation_id="n", by="ada")
    service.why(PET, name(0, 0))

    assert in_redis(redis_client) == 0
    assert len(service.clusters(PET).clusters) == 1


@pytest.mark.parametrize("is_cached", [False, True])
def test_arrival_brings_vectors_back(
    redis_client: redis.Redis, store: RedisPetStore, cold: ColdPets, vectors: DictVectors, is_cached: bool
) -> None:
    service = grouped(store, 2, range(5))
    before = rows_of(store)
    cold.move_out(PET)
    vectors.n_read = 0

    take(service if is_cached else ClusterService(store), 0, range(5, 6))

    assert in_redis(redis_client) == 11
    assert vectors.n_read == (0 if is_cached else 4)
    np.testing.assert_array_equal(rows_of(store)[:10], before)
    assert cold.place_of(PET) is None
    assert redis_client.ttl(KEYS.vectors) == -1


def test_batch_leaves_a_cold_pet_out(store: RedisPetStore, cold: ColdPets) -> None:
    service = grouped(store, 2, range(5))
    cold.move_out(PET)

    (loaded,) = store.load_many([empty_state(PET)])

    assert isinstance(loaded, PetIsCold)
    assert service.tally(PET).tally.ingested == 10


def test_storage_that_is_away_loses_nothing(redis_client: redis.Redis, vectors: DictVectors) -> None:
    moves: list[Moved] = []
    cold = ColdPets(redis_client, vectors, on_move=moves.append, object_bytes=OBJECT_BYTES)
    store = RedisPetStore(redis_client, cold=cold)
    service = grouped(store, 2, range(5))
    vectors.is_away = True
    with pytest.raises(ColdStoreUnavailable):
        cold.move_out(PET)
    assert in_redis(redis_client) == 10

    vectors.is_away = False
    cold.move_out(PET)
    vectors.is_away = True

    with pytest.raises(ColdStoreUnavailable):
        take(ClusterService(store), 0, range(5, 6))
    assert service.clusters(PET).n_media == 10
    assert [(move.direction, move.is_done) for move in moves] == [("out", False), ("out", True), ("back", False)]
    vectors.is_away = False
    take(ClusterService(store), 0, range(5, 6))
    assert in_redis(redis_client) == 11


def test_process_without_a_cold_store_refuses_to_read_or_delete_a_cold_pet(
    redis_client: redis.Redis, store: RedisPetStore, cold: ColdPets
) -> None:
    grouped(store, 2, range(5))
    cold.move_out(PET)
    other = ClusterService(RedisPetStore(redis_client))

    for call in (lambda: take(other, 0, range(5, 6)), lambda: other.delete_pet(PET), lambda: other.export(PET)):
        with pytest.raises(ColdStoreUnavailable):
            call()

    assert other.clusters(PET).n_media == 10


def test_object_that_is_not_stored_as_written_leaves_vectors_in_redis(
    redis_client: redis.Redis,
    store: RedisPetStore,
    cold: ColdPets,
    vectors: DictVectors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grouped(store, 2, range(5))
    cold.probe()
    monkeypatch.setattr(vectors, "put", lambda name, content: vectors.objects.__setitem__(name, content[:-1]))

    with pytest.raises(ColdStoreUnavailable, match="not stored as written"):
        cold.move_out(PET)

    assert in_redis(redis_client) == 10


@pytest.mark.parametrize("act", ["arrive", "correct", "delete an item", "delete", "bring back"])
def test_pet_that_changes_during_a_move_stays_readable(
    redis_client: redis.Redis, store: RedisPetStore, cold: ColdPets, vectors: DictVectors, act: str
) -> None:
    service = grouped(store, 2, range(5))
    acts: dict[str, Callable[[], object]] = {
        "arrive": lambda: take(service, 0, range(5, 6)),
        "correct": lambda: service.merge(PET, [1, 2], operation_id="m", by="ada"),  # type: ignore[list-item]
        "delete an item": lambda: service.delete_media(PET, [name(0, 0)], by="ada"),
        "delete": lambda: service.delete_pet(PET),
        "bring back": lambda: cold.bring_back(PET),
    }

    class Overtaken(DictVectors):
        def put(self, name: str, content: bytes) -> None:
            vectors.put(name, content)
            if not name.endswith("/0"):
                return
            acts[act]()

        def get(self, name: str) -> bytes:
            return vectors.get(name)

    moved = ColdPets(redis_client, Overtaken(), object_bytes=OBJECT_BYTES).move_out(PET)

    assert moved is (act == "bring back")
    n = {"arrive": 11, "delete an item": 9, "delete": 0}.get(act, 10)
    assert len(rows_of(store)) == n
    assert store.revision(PET) == 0 or service.totals().unconserved == ()


def killed_at_each_step(
    client: redis.Redis,
    vectors: DictVectors,
    store: RedisPetStore,
    move: Callable[[ColdPets], object],
    after: FloatMatrix,
) -> int:
    """Let processes die at each step of a move, check that all vectors can be read, and return the number of steps."""
    pool = client.connection_pool
    for dies_at in count(1):
        steps = Steps(dies_at)
        mortal = MortalRedis(connection_pool=pool)
        mortal.steps = steps
        try:
            move(ColdPets(mortal, MortalVectors(vectors, steps), object_bytes=OBJECT_BYTES))
        except Killed:
            np.testing.assert_array_equal(rows_of(store), after, err_msg=f"killed at step {dies_at}")
        else:
            np.testing.assert_array_equal(rows_of(store), after)
            return dies_at
    raise AssertionError("count() does not end")


def test_kill_at_any_step_of_a_move_leaves_every_vector_readable(
    redis_client: redis.Redis, store: RedisPetStore, cold: ColdPets, vectors: DictVectors
) -> None:
    service = grouped(store, 2, range(4))
    before = rows_of(store)

    def out(mortal: ColdPets) -> None:
        cold.bring_back(PET)
        mortal.move_out(PET)

    def back(mortal: ColdPets) -> None:
        cold.move_out(PET)
        mortal.bring_back(PET)

    assert killed_at_each_step(redis_client, vectors, store, out, before) > 20
    assert killed_at_each_step(redis_client, vectors, store, back, before) > 15
    assert service.totals().unconserved == ()

    # after a day, only the objects of the present place remain
    cold.move_out(PET)
    place = cold.place_of(PET)
    later = ColdPets(redis_client, vectors, object_bytes=OBJECT_BYTES, later_ms=2 * UNUSED_MS)

    def tidy(mortal: ColdPets) -> None:
        later.tidy(limit=10)

    assert place is not None
    assert len(vectors.of_pets) > 3
    tidy(later)
    assert sorted(vectors.of_pets) == [place.name(PET, row) for row in (0, 3, 6)]
    np.testing.assert_array_equal(rows_of(store), before)


def test_tidying_is_as_safe_as_moves_when_it_is_killed(
    redis_client: redis.Redis, store: RedisPetStore, cold: ColdPets, vectors: DictVectors
) -> None:
    grouped(store, 2, range(4))
    before = rows_of(store)
    for _ in range(3):
        cold.move_out(PET)
        cold.bring_back(PET)
    cold.move_out(PET)

    for dies_at in count(1):
        steps = Steps(dies_at)
        mortal = MortalRedis(connection_pool=redis_client.connection_pool)
        mortal.steps = steps
        later = ColdPets(mortal, MortalVectors(vectors, steps), later_ms=2 * UNUSED_MS)
        try:
            later.tidy(limit=10)
        except Killed:
            np.testing.assert_array_equal(rows_of(store), before)
        else:
            break

    assert len(vectors.of_pets) == 3
    assert redis_client.zscore(COLD_PETS, str(PET)) is not None


def test_objects_of_a_running_move_are_not_tidied(
    redis_client: redis.Redis, store: RedisPetStore, cold: ColdPets
) -> None:
    grouped(store, 2, range(4))
    before = rows_of(store)
    inner = DictVectors()

    class Tidied(DictVectors):
        def put(self, name: str, content: bytes) -> None:
            inner.put(name, content)
            redis_client.zadd(COLD_PETS, {str(PET): 0})
            ColdPets(redis_client, inner).tidy(limit=10)

        def get(self, name: str) -> bytes:
            return inner.get(name)

    assert ColdPets(redis_client, Tidied(), object_bytes=OBJECT_BYTES).move_out(PET)

    reader = RedisPetStore(redis_client, cold=ColdPets(redis_client, inner))
    np.testing.assert_array_equal(rows_of(reader), before)


def test_objects_remain_for_a_day_after_vectors_were_put_back(
    redis_client: redis.Redis, store: RedisPetStore, cold: ColdPets, vectors: DictVectors
) -> None:
    grouped(store, 2, range(4))
    cold.move_out(PET)
    dump = {key: redis_client.dump(key) for key in redis_client.scan_iter("{pet:*")}
    before = rows_of(store)
    cold.bring_back(PET)

    ColdPets(redis_client, vectors, later_ms=UNUSED_MS - 60_000).tidy(limit=10)

    # Redis loses its last writes, as in a failover to a replica that is behind
    redis_client.delete(*redis_client.scan_iter("{pet:*"))
    for key, content in dump.items():
        redis_client.restore(key, 0, cast(bytes, content))
    np.testing.assert_array_equal(rows_of(store), before)


@pytest.mark.parametrize("is_away", [False, True])
def test_deleting_a_cold_pet_deletes_its_objects(
    redis_client: redis.Redis, store: RedisPetStore, cold: ColdPets, vectors: DictVectors, is_away: bool
) -> None:
    service = grouped(store, 2, range(4))
    cold.move_out(PET)
    vectors.is_away = is_away

    service.delete_pet(PET)

    assert len(vectors.of_pets) == (3 if is_away else 0)
    vectors.is_away = False
    ColdPets(redis_client, vectors, later_ms=UNUSED_MS).tidy(limit=10)
    assert (vectors.of_pets, redis_client.zcard(COLD_PETS)) == ({}, 0)


@pytest.mark.parametrize("big_pet_bytes", [0, 1 << 20])
def test_item_of_a_cold_pet_is_deleted_from_the_cold_store_too(
    redis_client: redis.Redis, store: RedisPetStore, cold: ColdPets, vectors: DictVectors, big_pet_bytes: int
) -> None:
    grouped(store, 2, range(4))
    cold.move_out(PET)
    before = rows_of(store)

    ClusterService(store, big_pet_bytes=big_pet_bytes).delete_media(PET, [name(0, 1)], by="ada")

    np.testing.assert_array_equal(rows_of(store), np.delete(before, 1, axis=0))
    assert in_redis(redis_client) == 7
    ColdPets(redis_client, vectors, later_ms=2 * UNUSED_MS).tidy(limit=10)
    assert vectors.of_pets == {}


def test_cold_pet_is_exported_without_coming_back_and_imported(
    redis_client: redis.Redis, store: RedisPetStore, cold: ColdPets
) -> None:
    service = grouped(store, 2, range(5))
    hot = service.export(PET)
    cold.move_out(PET)

    assert service.export(PET) == hot
    service.import_pet(hot, pet=PetId(7))

    assert (in_redis(redis_client), in_redis(redis_client, PetId(7))) == (0, 10)
    np.testing.assert_array_equal(rows_of(store, PetId(7)), rows_of(store))


@pytest.mark.parametrize("is_lost", [False, True])
def test_damaged_cold_pet_is_repaired_with_the_vectors_that_are_left(
    redis_client: redis.Redis, store: RedisPetStore, cold: ColdPets, vectors: DictVectors, is_lost: bool
) -> None:
    service = grouped(store, 2, range(5))
    cold.move_out(PET)
    before = rows_of(store)
    redis_client.delete(KEYS.clusters)
    if is_lost:
        del vectors.objects[sorted(vectors.of_pets)[0]]
    repairs = PetRepairs(redis_client, cold=cold)
    with pytest.raises(UnreadablePet):
        store.load(PET)

    raw = repairs.read(PET)
    repairs.rewrite(raw, salvage(raw, by="ada", at=NOW).pet)

    np.testing.assert_array_equal(rows_of(store), before[3 * is_lost :])
    assert service.tally(PET).tally.quarantined == 3 * is_lost
    assert repairs.damage(PET) is None


def test_missing_object_is_reported_and_changes_nothing(redis_client: redis.Redis, vectors: DictVectors) -> None:
    moves: list[Moved] = []
    cold = ColdPets(redis_client, vectors, on_move=moves.append, object_bytes=OBJECT_BYTES)
    store = RedisPetStore(redis_client, cold=cold)
    grouped(store, 2, range(5))
    cold.move_out(PET)
    before = rows_of(store)
    assert cold.lost(PET) == ()
    name_of_lost = sorted(vectors.of_pets)[-1]
    content = vectors.objects.pop(name_of_lost)

    for act in (
        lambda: store.load(PET),
        lambda: take(ClusterService(store), 0, range(5, 6)),
        lambda: ClusterService(store).recluster(PET),
        lambda: ClusterService(store).export(PET),
    ):
        with pytest.raises(UnreadablePet, match="missing or damaged"):
            act()

    assert cold.lost(PET) == [name_of_lost]
    moves.clear()
    ColdPets(redis_client, vectors, on_move=moves.append, later_ms=2 * UNUSED_MS).tidy(limit=10)
    assert moves == [Moved("back", 0, is_done=False)]
    assert redis_client.zscore(COLD_PETS, str(PET)) is not None
    vectors.objects[name_of_lost] = content
    np.testing.assert_array_equal(rows_of(store), before)


@pytest.mark.parametrize("identity", [None, b"of another server"])
def test_storage_of_another_redis_is_refused_by_every_access(
    redis_client: redis.Redis, store: RedisPetStore, cold: ColdPets, vectors: DictVectors, identity: bytes | None
) -> None:
    grouped(store, 2, range(5))
    take(ClusterService(store), 0, range(5), pet=PetId(7))
    cold.move_out(PET)
    others = DictVectors()
    others.objects = {} if identity is None else {"identity": identity, "1/1-a/0": b"vectors of another server"}
    stored = dict(others.objects)
    wrong = ColdPets(redis_client, others, later_ms=2 * UNUSED_MS)
    service = ClusterService(RedisPetStore(redis_client, cold=wrong))

    for act in (
        lambda: service.recluster(PET),
        lambda: take(service, 0, range(5, 6)),
        lambda: wrong.move_out(PetId(7)),
        lambda: wrong.tidy(limit=10),
        lambda: wrong.lost(PET),
        lambda: wrong.probe(),
        lambda: PetRepairs(redis_client, cold=wrong).read(PET),
    ):
        with pytest.raises(ColdStoreUnavailable, match="a different one"):
            act()

    service.delete_pet(PET)
    assert others.objects == stored
    assert in_redis(redis_client, PetId(7)) == 5
    ColdPets(redis_client, vectors, later_ms=3 * UNUSED_MS).tidy(limit=10)
    assert vectors.of_pets == {}


def test_storage_of_another_server_is_never_taken_over(redis_client: redis.Redis, store: RedisPetStore) -> None:
    grouped(store, 2, range(5))
    theirs = DictVectors()
    theirs.objects = {"identity": b"of another server"}

    with pytest.raises(ColdStoreUnavailable, match="a different one"):
        ColdPets(redis_client, theirs).move_out(PET)

    assert theirs.objects == {"identity": b"of another server"}
    assert in_redis(redis_client) == 10


def test_state_in_memory_needs_no_storage_for_a_correction(
    store: RedisPetStore, cold: ColdPets, vectors: DictVectors
) -> None:
    grouped(store, 2, range(5))
    cached = ClusterService(store)
    cached.recluster(PET)
    cold.move_out(PET)
    ClusterService(store).name_pet(PET, "Rex", operation_id="n", by="ada")
    vectors.is_away = True

    cached.merge(PET, [1, 2], operation_id="m", by="ada")  # type: ignore[list-item]

    assert (cached.clusters(PET).name, len(cached.clusters(PET).clusters)) == ("Rex", 1)


def test_deletion_that_is_killed_at_any_step_leaves_no_object(
    redis_client: redis.Redis, store: RedisPetStore, cold: ColdPets, vectors: DictVectors
) -> None:
    for dies_at in count(1):
        grouped(store, 2, range(4))
        cold.move_out(PET)
        before = rows_of(store)
        steps = Steps(dies_at)
        mortal = MortalRedis(connection_pool=redis_client.connection_pool)
        mortal.steps = steps
        dying = ColdPets(mortal, MortalVectors(vectors, steps), object_bytes=OBJECT_BYTES)
        is_killed = False
        try:
            RedisPetStore(mortal, cold=dying).delete(PET)
        except Killed:
            is_killed = True
        if store.revision(PET):
            np.testing.assert_array_equal(rows_of(store), before, err_msg=f"killed at step {dies_at}")
            assert store.delete(PET)
        ColdPets(redis_client, vectors, later_ms=4 * 60 * 60 * 1000).tidy(limit=10)
        assert vectors.of_pets == {}, f"killed at step {dies_at}"
        if not is_killed:
            assert dies_at > 10
            return


def test_deletion_finds_objects_without_an_entry_in_the_set(
    redis_client: redis.Redis, store: RedisPetStore, cold: ColdPets, vectors: DictVectors
) -> None:
    service = grouped(store, 2, range(4))
    cold.move_out(PET)
    redis_client.delete(COLD_PETS)  # e.g. the node of a Cluster that had the set has lost its last writes

    service.delete_pet(PET)

    assert vectors.of_pets == {}


@pytest.mark.parametrize("field", ["cold", "dim", "n_media"])
def test_damaged_pet_keeps_its_objects_and_holds_nothing_up(
    redis_client: redis.Redis, store: RedisPetStore, cold: ColdPets, vectors: DictVectors, field: str
) -> None:
    grouped(store, 2, range(4))
    take(ClusterService(store), 0, range(5), pet=PetId(7))
    cold.move_out(PET)
    cold.move_out(PetId(7))
    cold.bring_back(PetId(7))
    value = redis_client.hget(KEYS.meta, field)
    redis_client.hset(KEYS.meta, field, "x")
    for act in (lambda: rows_of(store), lambda: cold.bring_back(PET)):
        with pytest.raises(UnreadablePet):
            act()

    assert ColdPets(redis_client, vectors, later_ms=2 * UNUSED_MS).tidy(limit=10) == 2
    assert {name.split("/")[0] for name in vectors.of_pets} == {str(PET)}

    redis_client.hset(KEYS.meta, field, value)
    assert len(rows_of(store)) == 8


def test_vectors_move_out_of_a_full_redis(redis_client: redis.Redis, store: RedisPetStore, cold: ColdPets) -> None:
    grouped(store, 2, range(5))
    before = rows_of(store)
    redis_client.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.ResponseError, match="maxmemory"):
            redis_client.set("x", "y")
        assert cold.idle_ms([PET]) == [0]
        assert cold.move_out(PET)
        with pytest.raises(redis.ResponseError, match="maxmemory"):
            cold.bring_back(PET)
    finally:
        redis_client.config_set("maxmemory", 0)
    np.testing.assert_array_equal(rows_of(store), before)


@pytest.mark.parametrize("seed", range(3))
def test_random_changes_and_moves_leave_equal_pets(
    redis_client: redis.Redis, store: RedisPetStore, cold: ColdPets, vectors: DictVectors, seed: int
) -> None:
    mirrored = Mirrored(store)
    day = Day(seed, upheavals=True, store=mirrored)
    day.deeds |= {day.delete: 8, day.switch: 4, day.recluster: 4}
    random = np.random.default_rng(seed)
    later = ColdPets(redis_client, vectors, object_bytes=OBJECT_BYTES, later_ms=2 * UNUSED_MS)
    moves: list[Callable[[], object]] = [
        lambda: cold.move_out(PET),
        lambda: cold.move_out(PET),
        lambda: cold.bring_back(PET),
        lambda: later.tidy(limit=10),
        lambda: None,
    ]

    for step in range(25):
        moves[random.integers(len(moves))]()
        happened = day.go_on()
        moves[random.integers(len(moves))]()
        if store.load(PET).revision:
            cold_facts, hot_facts = facts(store), facts(mirrored)
            del cold_facts["totals"], hot_facts["totals"]
            assert cold_facts == hot_facts, f"seed {seed}, step {step}: {happened}"
            np.testing.assert_array_equal(rows_of(store), mirrored.load(PET).vectors)
            assert store.totals().unconserved == ()
