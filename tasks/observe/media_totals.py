"""The sum of the tallies of all pets, sampled into Redis once a minute and read at every scrape.

    key            type  holds
    sploot:media   hash  ingested, clustered, noise, quarantined, dismissed   number of these items in all pets
                         pets, unconserved    pets with data, and pets whose counts do not add up
                         at_ms                time of the sample (server's clock)

Each sample overwrites the previous one, and its age is exposed too. ``sploot_cluster.pet.tally`` defines each count.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Final, Protocol, cast

import dramatiq
import redis
from dramatiq.middleware import TimeLimitExceeded
from periodiq import cron
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from sploot_cluster.errors import StoreUnavailable
from sploot_cluster.pet.tally import Totals
from tasks.contracts import CLUSTER_MAINTENANCE, EXPORT_MEDIA_TOTALS
from tasks.observe.periodic import PRIORITY, PeriodicActor
from tasks.retry_policy import POLICIES

logger = logging.getLogger("sploot-cluster.queue")

MEDIA: Final = "sploot:media"
PLACES: Final = ("clustered", "noise", "quarantined", "dismissed")


class Counts(Protocol):
    """Counts the items of all pets, such as ``ClusterService``."""

    def totals(self) -> Totals: ...


class MediaSampler:
    """Writes the totals of all pets' items to Redis."""

    def __init__(self, counts: Counts, client: redis.Redis) -> None:
        self._counts, self._client = counts, client

    def sample(self) -> None:
        """Count the items, in one round trip per 500 pets, and write the totals.

        Errors of the store and of redis-py pass through.
        """
        # read before the pets, so that the age of a slow sample counts from its start
        seconds, microseconds = self._client.time()
        totals = self._counts.totals()
        sample = {place: getattr(totals.tally, place) for place in ("ingested", *PLACES)}
        sample |= {"pets": totals.n_pets, "unconserved": len(totals.unconserved)}
        sample["at_ms"] = seconds * 1000 + microseconds // 1000
        self._client.hset(MEDIA, items=[part for pair in sample.items() for part in pair])


def declare_media_actor(broker: dramatiq.Broker, sampler: MediaSampler, client: redis.Redis) -> None:
    """Declare ``export_media_totals``, which periodiq sends every minute."""

    def export() -> None:
        try:
            sampler.sample()
        except (StoreUnavailable, redis.RedisError, TimeLimitExceeded):
            # the job does not fail: a dead letter per sample would show no more than the age of the last sample does
            logger.warning("could not count items", extra={"actor": EXPORT_MEDIA_TOTALS}, exc_info=True)

    dramatiq.actor(
        actor_class=partial(PeriodicActor, client=client),
        actor_name=EXPORT_MEDIA_TOTALS,
        queue_name=CLUSTER_MAINTENANCE,
        broker=broker,
        priority=PRIORITY,
        periodic=cron("* * * * *"),
        **POLICIES[EXPORT_MEDIA_TOTALS].actor_options(),
    )(export)


class MediaCollector(Collector):
    """The last sample as metrics, equal on every pod; before the first sample every metric is 0."""

    def __init__(self, client: redis.Redis) -> None:
        """Args: ``client`` bounds the duration of a scrape; give it short timeouts and few retries."""
        self._client = client

    def describe(self) -> Iterable[Metric]:
        """Return the families without samples, so that registering does not call Redis."""
        return _families()

    def collect(self) -> Iterator[Metric]:
        try:
            stored = cast("dict[bytes, bytes]", self._client.hgetall(MEDIA))
            sample = {name.decode(): int(value) for name, value in stored.items()}
        except (redis.RedisError, ValueError):
            logger.warning("could not read media totals from Redis; they are missing from this scrape", exc_info=True)
            return
        by_place, ingested, pets, unconserved, at = _families()
        for place in PLACES:
            by_place.add_metric([place], sample.get(place, 0))
        ingested.add_metric([], sample.get("ingested", 0))
        pets.add_metric([], sample.get("pets", 0))
        unconserved.add_metric([], sample.get("unconserved", 0))
        at.add_metric([], sample.get("at_ms", 0) / 1000)
        yield from (by_place, ingested, pets, unconserved, at)


def _families() -> tuple[GaugeMetricFamily, ...]:
    return (
        GaugeMetricFamily(
            "cluster_media",
            "Items of all pets by place: in a cluster, noise, quarantined because their vectors are of "
            "another model or dimension than their pet's, dismissed by a labeller; the sum is cluster_media_ingested.",
            labels=["outcome"],
        ),
        GaugeMetricFamily("cluster_media_ingested", "Items of all pets ever ingested, counted on arrival."),
        GaugeMetricFamily("cluster_pets", "Pets with data."),
        GaugeMetricFamily(
            "cluster_pets_unconserved",
            "Pets whose counts do not add up: ingested is not clustered + noise + quarantined + dismissed, or columns "
            "differ in length. Above 0: keys were changed by hand, or a bug; sploot-cluster tally names the pets.",
        ),
        GaugeMetricFamily(
            "cluster_media_sample_timestamp_seconds",
            "Time of the last media sample, on the clock of Redis; 0 before the first. More than two minutes ago: the "
            "scheduler stopped or no worker takes streams:cluster.maintenance.",
        ),
    )
