"""Where the media of all pets are, once a minute: sampled into Redis, read from there at every scrape.

    key            type  holds
    sploot:media   hash  ingested, clustered, noise, quarantined, dismissed   media of all pets, by where they are
                         pets, unconserved    pets that hold something, and those whose media do not add up
                         at_ms                when that was sampled (server's clock)

It is overwritten by the next sample; its age is exposed too. ``sploot_cluster.pet.tally`` defines each count.
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
    """Where the media of all pets are counted, such as ``ClusterService``."""

    def totals(self) -> Totals: ...


class MediaSampler:
    """Writes where the media of all pets are to Redis."""

    def __init__(self, counts: Counts, client: redis.Redis) -> None:
        self._counts, self._client = counts, client

    def sample(self) -> None:
        """Count, a round trip per 500 pets, and write. Errors of the store and of redis-py pass through."""
        # before the pets are read: a sample that took long is as old as its first number
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
            # no failure of the job: a dead letter per sample would tell on-call nothing that its age does not
            logger.warning("media not counted", extra={"actor": EXPORT_MEDIA_TOTALS}, exc_info=True)

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
    """The last sample as metrics, the same from every pod; each exists, with 0, before the first sample."""

    def __init__(self, client: redis.Redis) -> None:
        """``client`` bounds how long a scrape takes: give it short timeouts and few retries."""
        self._client = client

    def describe(self) -> Iterable[Metric]:
        """The families without samples: registering asks nothing of Redis."""
        return _families()

    def collect(self) -> Iterator[Metric]:
        try:
            stored = cast("dict[bytes, bytes]", self._client.hgetall(MEDIA))
            sample = {name.decode(): int(value) for name, value in stored.items()}
        except (redis.RedisError, ValueError):
            logger.warning("media totals not read from Redis, they are missing from this scrape", exc_info=True)
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
            "Media of all pets by where they are: in a cluster, noise, quarantined because their vectors are of "
            "another model or dimension than their pet's, dismissed by a person; in all cluster_media_ingested.",
            labels=["outcome"],
        ),
        GaugeMetricFamily("cluster_media_ingested", "Media of all pets that came, counted one by one as they did."),
        GaugeMetricFamily("cluster_pets", "Pets that hold something."),
        GaugeMetricFamily(
            "cluster_pets_unconserved",
            "Pets whose media do not add up: ingested is not clustered + noise + quarantined + dismissed, or columns "
            "are of different lengths. Above 0: keys were changed by hand, or a bug; sploot-cluster tally names them.",
        ),
        GaugeMetricFamily(
            "cluster_media_sample_timestamp_seconds",
            "When the media were counted, on the clock of Redis; 0 when never. More than two minutes ago: the "
            "scheduler stopped or no worker takes streams:cluster.maintenance.",
        ),
    )
