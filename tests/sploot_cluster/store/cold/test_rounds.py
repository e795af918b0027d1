"""Tests of the rounds that move idle pets out of Redis."""

from __future__ import annotations

import pytest
import redis

from sploot_cluster import ClusterService
from sploot_cluster.errors import ColdStoreUnavailable
from sploot_cluster.pet.models import PetId
from sploot_cluster.store.cold.moves import ColdPets
from sploot_cluster.store.cold.rounds import ROUND, ColdRounds, Run
from sploot_cluster.store.keys import PetKeys
from sploot_cluster.store.redis import RedisPetStore
from tests.sploot_cluster.albums import take
from tests.sploot_cluster.store.cold.stores import DictVectors

PETS = [PetId(pet) for pet in range(1, 6)]


class World:
    """Five pets of two items, and the rounds as they would run after some days."""

    def __init__(self, client: redis.Redis) -> None:
        self.client, self.vectors = client, DictVectors()
        self.store = RedisPetStore(client, cold=ColdPets(client, self.vectors))
        self.service = ClusterService(self.store)
        for pet in PETS:
            take(self.service, 0, range(2), pet=pet)

    def run(self, *, budget_s: float = 60) -> Run:
        cold = ColdPets(self.client, self.vectors)
        return ColdRounds(self.client, cold, self.store.pets_page, idle_days=3, budget_s=budget_s).run()

    def pass_days(self, n: int) -> None:
        """Make the store believe that the pets have had their current revisions for ``n`` more days."""
        self.client.delete(ROUND)
        for pet in PETS:
            idle = self.client.hget(PetKeys.of(pet).meta, "idle")
            if idle is not None:
                revision, since_ms = idle.split()
                text = f"{int(revision)} {int(since_ms) - n * 86_400_000}"
                self.client.hset(PetKeys.of(pet).meta, "idle", text)

    def cold(self) -> list[int]:
        return [pet for pet in PETS if not self.client.exists(PetKeys.of(pet).vectors)]


@pytest.fixture
def world(redis_client: redis.Redis) -> World:
    return World(redis_client)


def test_pets_move_after_days_without_a_commit(world: World) -> None:
    assert world.run() == Run(0, is_last=True)
    world.pass_days(2)
    assert world.run().n_moved == 0
    take(world.service, 0, range(2, 3), pet=PETS[1])
    world.pass_days(2)

    assert world.run() == Run(4, is_last=True)

    assert world.cold() == [1, 3, 4, 5]
    assert world.service.totals().n_cold == 4
    assert world.service.totals().unconserved == ()


def test_pet_that_came_back_is_idle_from_then_on(world: World) -> None:
    world.run()
    world.pass_days(4)
    world.run()
    take(world.service, 0, range(2, 3), pet=PETS[0])
    world.pass_days(4)

    assert world.run().n_moved == 0
    world.pass_days(4)
    assert world.run().n_moved == 1


def test_run_ends_in_time_and_the_next_one_continues(world: World) -> None:
    world.run()
    world.pass_days(4)

    assert world.run(budget_s=0) == Run(0, is_last=False)
    assert world.run() == Run(5, is_last=True)
    assert world.run() == Run(0, is_last=True)


def test_damaged_pet_is_passed_over(world: World) -> None:
    world.run()
    world.pass_days(4)
    world.client.delete(PetKeys.of(PETS[2]).labels)

    assert world.run() == Run(4, is_last=True)
    assert world.client.exists(PetKeys.of(PETS[2]).vectors)


def test_storage_that_is_away_ends_the_run(world: World) -> None:
    world.run()
    world.pass_days(4)
    world.vectors.is_away = True

    with pytest.raises(ColdStoreUnavailable):
        world.run()

    assert world.cold() == []
    world.vectors.is_away = False
    assert world.run().n_moved == 5
