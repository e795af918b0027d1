"""Totals of all pets' items as metrics: sampled by one actor, equal on every pod."""

from __future__ import annotations

import dramatiq
import pytest
import redis
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import CurrentMessage, Retries, TimeLimit
from periodiq import PeriodiqMiddleware
from prometheus_client import CollectorRegistry

from sploot_cluster import ClusterService
from sploot_cluster.errors import ModelMismatch
from sploot_cluster.pet.models import PetId
from sploot_cluster.store.keys import PETS, PetKeys
from sploot_cluster.store.redis import RedisPetStore
from tasks.contracts import CLUSTER_MAINTENANCE, EXPORT_MEDIA_TOTALS
from tasks.observe.media_totals import MEDIA, MediaCollector, MediaSampler, declare_media_actor
from tests.sploot_cluster.albums import DIM, PET, name, picture, take
from tests.system.events import free_port


@pytest.fixture
def registry(redis_client: redis.Redis) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(MediaCollector(redis_client))
    return registry


def exposed(registry: CollectorRegistry) -> dict[str, float | None]:
    places = {
        place: registry.get_sample_value("cluster_media", {"outcome": place})
        for place in ("clustered", "noise", "quarantined", "dismissed")
    }
    singles = ("cluster_media_ingested", "cluster_pets", "cluster_pets_unconserved")
    return places | {single: registry.get_sample_value(single) for single in singles}


def test_media_series_exist_before_the_first_sample(registry: CollectorRegistry) -> None:
    assert set(exposed(registry).values()) == {0}
    assert registry.get_sample_value("cluster_media_sample_timestamp_seconds") == 0


def test_items_are_counted_as_clustered_noise_quarantined_or_dismissed(
    redis_client: redis.Redis, registry: CollectorRegistry
) -> None:
    service = ClusterService(RedisPetStore(redis_client))
    for subject in range(2):
        take(service, subject, range(8))
    service.recluster(PET)
    service.dismiss(PET, [name(0, 0)], operation_id="1", by="ada")
    take(service, 0, range(3), pet=PetId(7))
    with pytest.raises(ModelMismatch):
        service.assign(PET, name(3, 0), model="clip@2", vector=picture(3, 0))
    broker = StubBroker(middleware=[CurrentMessage(), Retries(), TimeLimit(), PeriodiqMiddleware()])
    declare_media_actor(broker, MediaSampler(service, redis_client), redis_client)
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=50)
    worker.start()

    broker.get_actor(EXPORT_MEDIA_TOTALS).send()
    broker.join(CLUSTER_MAINTENANCE, timeout=20_000)
    worker.stop()

    assert exposed(registry) == {
        "clustered": 15,
        "noise": 3,
        "quarantined": 1,
        "dismissed": 1,
        "cluster_media_ingested": 20,
        "cluster_pets": 2,
        "cluster_pets_unconserved": 0,
    }
    at = registry.get_sample_value("cluster_media_sample_timestamp_seconds")
    assert at is not None
    assert redis_client.time()[0] - 60 < at


def test_metric_counts_pets_with_inconsistent_counts(redis_client: redis.Redis, registry: CollectorRegistry) -> None:
    service = ClusterService(RedisPetStore(redis_client))
    take(service, 0, range(3))
    redis_client.hincrby(PetKeys.of(PET).meta, "ingested", 1)

    MediaSampler(service, redis_client).sample()

    assert exposed(registry)["cluster_pets_unconserved"] == 1


def test_count_over_several_samples_shows_broken_pets_immediately(
    redis_client: redis.Redis, registry: CollectorRegistry
) -> None:
    service = ClusterService(RedisPetStore(redis_client))
    take(service, 0, range(3))
    redis_client.sadd(PETS, *range(10_000, 13_000))  # these pets are in the list but have no data
    redis_client.hset(MEDIA, "round", "not json")
    sampler = MediaSampler(service, redis_client, budget_s=0)  # each sample counts one page of pets
    redis_client.delete(PetKeys.of(PET).labels)

    seen: list[dict[str, float | None]] = []
    while not seen or redis_client.hget(MEDIA, "round"):
        sampler.sample()
        seen.append(exposed(registry))
        assert registry.get_sample_value("cluster_media_sample_timestamp_seconds") != 0

    assert len(seen) > 2
    assert [one["cluster_pets"] for one in seen] == [0] * (len(seen) - 1) + [3_001]
    broken = [one["cluster_pets_unconserved"] or 0 for one in seen]
    assert broken == sorted(broken)
    assert broken[-1] == 1
    assert service.pets() == [PET, *range(10_000, 13_000)]


def test_fullness_of_the_largest_pet_is_exposed(
    redis_client: redis.Redis, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sploot_cluster.store.redis.MAX_VECTOR_BYTES", 10 * 4 * DIM)
    service = ClusterService(RedisPetStore(redis_client))
    take(service, 0, range(3))
    take(service, 0, range(7), pet=PetId(7))

    MediaSampler(service, redis_client).sample()

    totals = service.totals()
    assert (totals.fullest, totals.fullness) == (7, 0.7)
    assert registry.get_sample_value("cluster_fullest_pet_ratio") == 0.7


def test_arrivals_at_a_full_quarantine_are_counted(
    redis_client: redis.Redis, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sploot_cluster.store.redis.MAX_QUARANTINED", 1)
    service = ClusterService(RedisPetStore(redis_client))
    take(service, 0, range(1))
    for number in range(3):
        with pytest.raises(ModelMismatch):
            service.assign(PET, name(3, number), model="clip@2", vector=picture(3, 0))

    MediaSampler(service, redis_client).sample()

    assert registry.get_sample_value("cluster_media_overflowed") == 2
    assert exposed(registry)["quarantined"] == 1


@pytest.mark.slow
def test_scrape_of_media_totals_without_redis_is_empty() -> None:
    registry = CollectorRegistry()
    with redis.Redis(port=free_port(), socket_connect_timeout=0.2) as unreachable:
        registry.register(MediaCollector(unreachable))

        assert registry.get_sample_value("cluster_media_ingested") is None
