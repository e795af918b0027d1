"""Cold pets in the worker: the periodic job that moves them, and arrivals that wait while the storage is away."""

from __future__ import annotations

from collections.abc import Iterator

import dramatiq
import pytest
import redis
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import CurrentMessage, Retries, TimeLimit
from periodiq import PeriodiqMiddleware

from sploot_cluster import ClusterService
from sploot_cluster.event import EmbeddingIngested
from sploot_cluster.store.cold.moves import ColdPets
from sploot_cluster.store.cold.rounds import ColdRounds
from sploot_cluster.store.keys import PetKeys
from sploot_cluster.store.redis import RedisPetStore
from tasks.actors import declare_actors
from tasks.cold_pets import WaitForColdStore, declare_cold_actor
from tasks.composition import build_worker
from tasks.contracts import CLUSTER_EMBEDDING, CLUSTER_MAINTENANCE, EMBEDDING_INGESTED, MOVE_COLD_PETS
from tasks.observe.periodic_runs import periodic_jobs
from tasks.settings import Settings
from tests.sploot_cluster.albums import MODEL, PET, picture, take
from tests.sploot_cluster.store.cold.stores import DictVectors
from tests.sploot_cluster.store.test_store import NOW
from tests.support import eventually, refusal

VECTORS = PetKeys.of(PET).vectors


class World:
    """A pet of six items, and a worker with the actors."""

    def __init__(self, client: redis.Redis) -> None:
        self.client, self.vectors = client, DictVectors()
        self.cold = ColdPets(client, self.vectors)
        self.service = ClusterService(RedisPetStore(client, cold=self.cold))
        self.broker = StubBroker(
            middleware=[CurrentMessage(), Retries(), WaitForColdStore(), TimeLimit(), PeriodiqMiddleware()]
        )
        declare_actors(self.broker, self.service)
        rounds = ColdRounds(client, self.cold, self.service.pets_page, idle_days=0)
        declare_cold_actor(self.broker, rounds, client)
        take(self.service, 0, range(6))


@pytest.fixture
def world(redis_client: redis.Redis) -> Iterator[World]:
    world = World(redis_client)
    worker = dramatiq.Worker(world.broker, worker_threads=1, worker_timeout=50)
    worker.start()
    yield world
    worker.stop()
    world.broker.close()


def test_periodic_job_moves_idle_pets(world: World) -> None:
    before = [job.actor for job in periodic_jobs(world.client, now=NOW)]
    world.broker.get_actor(MOVE_COLD_PETS).send()
    world.broker.join(CLUSTER_MAINTENANCE, timeout=20_000)

    assert not world.client.exists(VECTORS)
    assert MOVE_COLD_PETS not in before  # it is listed once a scheduler sends it


def test_periodic_job_survives_a_storage_that_is_away(world: World) -> None:
    world.vectors.is_away = True

    world.broker.get_actor(MOVE_COLD_PETS).send()
    world.broker.join(CLUSTER_MAINTENANCE, timeout=20_000)

    assert world.client.llen(VECTORS) == 6
    assert world.broker.dead_letters == []


def test_arrival_waits_until_the_storage_is_back(world: World) -> None:
    world.cold.move_out(PET)
    fresh = ClusterService(RedisPetStore(world.client, cold=world.cold))
    broker = StubBroker(middleware=[CurrentMessage(), Retries(), WaitForColdStore(), TimeLimit()])
    declare_actors(broker, fresh)
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=50)
    worker.start()
    world.vectors.is_away = True
    actor = broker.get_actor(CLUSTER_EMBEDDING)
    n_tries: list[int] = []
    attempt = world.vectors.get

    def count(name: str) -> bytes:
        n_tries.append(1)
        return attempt(name)

    world.vectors.get = count  # type: ignore[method-assign]
    arriving = EmbeddingIngested.of(pet_id=PET, media_id="new", model=MODEL, embedding=picture(0, 7))
    # as after many failed attempts: one more would be the last for any other error
    actor.send_with_options(kwargs=arriving.to_kwargs(), retries=7, min_backoff=1, max_backoff=2)

    eventually(lambda: len(n_tries) > 3)
    assert broker.dead_letters == []
    world.vectors.is_away = False
    broker.join(EMBEDDING_INGESTED, timeout=20_000)

    assert fresh.clusters(PET).n_media == 7
    worker.stop()
    broker.close()


@pytest.mark.parametrize("is_set", [False, True])
def test_worker_declares_the_job_only_with_a_cold_store(redis_url: str, is_set: bool) -> None:
    broker = build_worker(Settings(redis_url=redis_url, cold_store="file:///var/lib/vectors" if is_set else ""))

    assert (MOVE_COLD_PETS in broker.actors) is is_set
    broker.close()


def test_url_of_the_cold_store_is_checked() -> None:
    assert refusal(lambda: Settings(cold_store="/var/lib")).field == "SPLOOT_COLD_STORE"
