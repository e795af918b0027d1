"""Tests that a batch of arrivals has the same effects as single arrivals, or no effect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
import redis

from sploot_cluster import ClusterService
from sploot_cluster.errors import ClusterError, ModelMismatch, PetTooLarge, StoreUnavailable
from sploot_cluster.pet.models import NOISE, Assigned, Change, MediaId, Origin, PetId, PetState
from sploot_cluster.pet_cache import PetCache
from sploot_cluster.service import NewItem
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.store.keys import PetKeys
from sploot_cluster.store.memory import MemoryPetStore
from sploot_cluster.store.redis import RedisPetStore
from tests.sploot_cluster.albums import DIM, MODEL, PET, grouped, name, names, picture, taken_at

PETS = [PetId(pet) for pet in range(1, 7)]


def item(subject: int, number: int, *, pet: PetId = PET, model: str = MODEL, **changes: Any) -> NewItem:
    media = name(subject, number)
    return NewItem(pet, media, model, picture(subject, number), taken_at(media))._replace(**changes)


def traffic(seed: int, n: int) -> list[NewItem]:
    """Return items of several pets: subjects that overlap, noise, repeated items, and a few of another model."""
    rng, values = Random(seed), np.random.default_rng(seed)
    centres = np.random.default_rng(5).normal(size=(5, DIM))
    sent: list[NewItem] = []
    for number in range(n):
        if sent and rng.random() < 0.05:
            sent.append(rng.choice(sent[-40:]))
            continue
        # so that many arrivals are close to the threshold of a cluster
        vector = centres[rng.randrange(5)] + rng.choice([0.3, 0.5, 0.7, 2.0]) * values.normal(size=DIM)
        is_odd = rng.random() < 0.01
        sent.append(NewItem(rng.choice(PETS), MediaId(f"m-{seed}-{number}"), "other@1" if is_odd else MODEL, vector))
    return sent


def assign(service: ClusterService, one: NewItem) -> Assigned | None:
    """Assign a single item, as a job does."""
    try:
        return service.assign(one.pet, one.media, model=one.model, vector=one.vector, occurred_at=one.occurred_at)
    except ModelMismatch:
        return None


def assign_in_batches(service: ClusterService, sent: Sequence[NewItem], rng: Random) -> int:
    """Assign items in batches of random size, and those that a batch leaves out one by one. Return their number."""
    at, n_alone = 0, 0
    while at < len(sent):
        some = sent[at : at + rng.choice([1, 2, 7, 40, 120])]
        at += len(some)
        for one, done in zip(some, service.assign_many(some), strict=True):
            if done is None:
                n_alone += 1
                assign(service, one)
    return n_alone


def facts(store: MemoryPetStore | RedisPetStore, pet: PetId) -> dict[str, Any]:
    """Return everything that arrivals write, except revisions."""
    state, tally = store.load(pet), store.tally(pet)
    return {
        "media": list(state.media),
        "labels": state.labels.tolist(),
        "origins": state.origins.tolist(),
        "vectors": state.vectors.tobytes(),
        "times": state.occurred_at_ms.tolist(),
        "clusters": {id_: (card.threshold, card.split_from) for id_, card in state.clusters.items()},
        "counts": (state.n_at_recluster, state.noise_arrivals, state.next_cluster, state.model, state.dim),
        "tally": tally.tally,
        "quarantine": set(tally.quarantine),
    }


class Requests:
    """A recorder of the pets for which a recluster is requested."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str]] = []

    def request_recluster(self, pet_id: int, *, reason: str, delay_ms: int) -> None:
        self.asked.append((pet_id, reason))


class Moving(MemoryPetStore):
    """A store in which other writers commit to pets before the next batch does."""

    def __init__(self, *moves: Callable[[MemoryPetStore], object]) -> None:
        super().__init__()
        self.moves = list(moves)

    def commit_many(self, changes: Sequence[tuple[PetState, Change]]) -> Sequence[PetState | ClusterError]:
        if self.moves:
            self.moves.pop(0)(self)
        return super().commit_many(changes)


# -- the same effects ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_batches_leave_the_same_pets_as_single_arrivals(seed: int) -> None:
    singly, together = MemoryPetStore(), MemoryPetStore()
    services = [ClusterService(store) for store in (singly, together)]
    rng, n_alone = Random(seed), 0
    for day in range(2):
        sent = traffic(10 * seed + day, 500)
        for one in sent:
            assign(services[0], one)
        n_alone += assign_in_batches(services[1], sent, rng)
        origins = Counter(origin for pet in PETS for origin in together.load(pet).origins.tolist())
        for pet in PETS:
            assert facts(together, pet) == facts(singly, pet), f"seed {seed}, day {day}, pet {pet}"
            for service in services:
                service.recluster(pet)

    assert 0 < n_alone < 100  # the items of another model
    assert origins[Origin.ARRIVED] > 100
    assert origins[Origin.NOISE] > 100
    assert max(together.load(pet).revision for pet in PETS) < min(singly.load(pet).revision for pet in PETS)


def test_batches_leave_the_same_pets_in_redis_as_single_arrivals(redis_client: redis.Redis) -> None:
    singly, together = MemoryPetStore(), RedisPetStore(redis_client)
    sent = traffic(3, 300)

    for one in sent:
        assign(ClusterService(singly), one)
    assign_in_batches(ClusterService(together), sent, Random(3))

    for pet in PETS:
        assert facts(together, pet) == facts(singly, pet)


def test_batch_returns_the_same_results_as_single_arrivals() -> None:
    asked = [Requests(), Requests()]
    singly, together = MemoryPetStore(), MemoryPetStore()
    services = []
    for store, requests in zip((singly, together), asked, strict=True):
        grouped(store, 3, range(8))
        services.append(ClusterService(store, reclusters=requests))
    sent = [item(n % 3, 50 + n) for n in range(9)] + [item(0, 50), item(0, 1), item(7, 7)]

    one_by_one = [assign(services[0], one) for one in sent]
    at_once = services[1].assign_many(sent)

    assert [(a.media, a.cluster, a.similarity, a.is_duplicate, a.recluster_reason) for a in at_once if a] == [
        (a.media, a.cluster, a.similarity, a.is_duplicate, a.recluster_reason) for a in one_by_one if a
    ]
    assert [a.is_duplicate for a in at_once if a] == [False] * 9 + [True, True, False]
    assert len(asked[0].asked) == 1
    assert asked[1].asked == asked[0].asked
    assert together.load(PET).revision == singly.load(PET).revision - 9


def test_batch_creates_one_revision_of_a_pet(redis_client: redis.Redis) -> None:
    store = RedisPetStore(redis_client)
    service = grouped(store, 2, range(6))
    before = store.load(PET).revision

    done = service.assign_many([item(0, 9), item(1, 9), item(0, 10)])

    assert [one and one.revision for one in done] == [before + 1] * 3
    assert store.load(PET).revision == before + 1
    assert store.past(PET).arrived.tolist()[-3:] == [before + 1] * 3
    assert [len(service.at(PET, revision).media) for revision in (before, before + 1)] == [12, 15]


def test_batch_creates_new_pets(redis_client: redis.Redis) -> None:
    store = RedisPetStore(redis_client)
    done = ClusterService(store).assign_many([item(0, n, pet=pet) for n in range(2) for pet in (PetId(8), PetId(9))])

    assert [one and one.cluster for one in done] == [NOISE] * 4
    assert store.pets() == [8, 9]
    assert [list(store.load(pet).media) for pet in store.pets()] == [["s0-0", "s0-1"]] * 2


# -- what a batch leaves to single arrivals --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        item(0, 9, model="other@1"),
        item(0, 9, vector=[1.0, 2.0]),
        item(0, 9, vector=[0.0] * DIM),
        item(0, 9, vector=[[1.0]]),
        item(0, 9, vector=["x"]),
        item(0, 9, pet=PetId(0)),
        item(0, 9, media=MediaId("")),
        item(0, 9, model=""),
    ],
    ids=lambda bad: f"{bad.pet} {bad.media} {bad.model} {len(bad.vector)}",
)
def test_batch_leaves_out_an_unusual_item_and_assigns_the_others(bad: NewItem) -> None:
    store = MemoryPetStore()
    service = grouped(store, 2, range(6))

    first, left_out, last = service.assign_many([item(0, 7), bad, item(1, 7)])

    assert first is not None
    assert last is not None
    assert left_out is None
    assert set(store.load(PET).media) == names(0, range(6)) | names(1, range(6)) | {name(0, 7), name(1, 7)}
    assert store.tally(PET).quarantine == {}


def test_batch_leaves_out_known_items_of_a_damaged_pet(redis_client: redis.Redis) -> None:
    service = grouped(RedisPetStore(redis_client), 2, range(6))
    redis_client.delete(PetKeys.of(PET).aliases, PetKeys.of(PET).origins)

    assert service.assign_many([item(0, 0), item(1, 1)]) == [None, None]
    assert service.assign_many([item(0, 0), item(1, 9)]) == [None, None]


def test_full_pet_refuses_arrivals_without_computing_their_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryPetStore(max_vector_bytes=5 * 4 * DIM)
    service = ClusterService(store)
    items = [NewItem(PET, name(0, number), MODEL, picture(0, number)) for number in range(7)]

    done = service.assign_many(items)
    again = service.assign_many(items)
    monkeypatch.delattr("sploot_cluster.decide.arrivals.plan_arrivals")  # no assignment is computed
    with pytest.raises(PetTooLarge, match="pet 42 has 5 items"):
        service.assign(PET, items[6].media, model=MODEL, vector=items[6].vector)

    assert [one is not None for one in done] == [True] * 5 + [False] * 2
    assert [one is not None and one.is_duplicate for one in again[:5]] == [True] * 5
    assert service.totals().fullness == 1.0
    assert service.assign(PET, items[0].media, model=MODEL, vector=items[0].vector).is_duplicate


def test_batch_leaves_out_items_of_a_pet_with_exact_arrivals() -> None:
    service = ClusterService(MemoryPetStore(), settings=ClusterSettings(exact_until=100))

    assert service.assign_many([item(0, 1), item(0, 2)]) == [None, None]


def test_batch_that_lost_a_race_is_planned_again_on_the_newer_state() -> None:
    store = Moving()
    service = grouped(store, 2, range(6))
    store.moves.append(lambda store: ClusterService(store).assign_many([item(0, 7), item(0, 8)]))

    (done,) = service.assign_many([item(0, 7)])

    assert done is not None
    assert done.is_duplicate
    assert list(store.load(PET).media)[12:] == [name(0, 7), name(0, 8)]


def test_batch_leaves_out_items_of_a_pet_that_loses_every_race() -> None:
    other = PetId(43)
    store = Moving()
    service = grouped(store, 2, range(6))

    def move(n: int) -> Callable[[MemoryPetStore], object]:
        return lambda store: assign(ClusterService(store), item(1, n))

    store.moves += [move(20), move(21), move(22), move(23)]

    busy, calm = service.assign_many([item(0, 7), item(0, 7, pet=other)])

    assert busy is None
    assert calm is not None
    assert name(0, 7) not in store.load(PET).rows
    assert name(0, 7) in store.load(other).rows
    assert len(store.moves) == 1


def test_outage_is_raised_and_a_repeat_recognises_written_items() -> None:
    def fail(store: MemoryPetStore) -> None:
        MemoryPetStore.commit_many(store, store.seen)  # type: ignore[attr-defined]
        raise StoreUnavailable(doing="commit", problem="no reply")

    class Failing(Moving):
        def commit_many(self, changes: Sequence[tuple[PetState, Change]]) -> Sequence[PetState | ClusterError]:
            self.seen = changes
            return super().commit_many(changes)

    store = Failing()
    service = grouped(store, 2, range(6))
    store.moves.append(fail)
    sent = [item(0, 7), item(1, 7)]

    with pytest.raises(StoreUnavailable):
        service.assign_many(sent)

    assert [one and one.is_duplicate for one in service.assign_many(sent)] == [True, True]
    assert store.load(PET).n_media == 14


# -- pets of a batch in the cache ------------------------------------------------------------------------------------


class TimeIsUp(BaseException):
    """An exception that, like Dramatiq's time limit, is not an ``Exception``."""


def test_interrupted_batch_releases_its_pets() -> None:
    cache = PetCache(10**9)

    def work() -> None:
        with cache.open_many([PetId(3), PetId(1), PetId(2)]) as memories:
            assert [memory.pet for memory in memories] == [3, 1, 2]
            raise TimeIsUp

    with pytest.raises(TimeIsUp):
        work()

    for pet in (PetId(1), PetId(2), PetId(3)):
        with cache.open(pet) as memory:
            assert memory.pet == pet
