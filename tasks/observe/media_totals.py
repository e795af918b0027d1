"""The sum of the tallies of all pets, sampled into Redis once a minute and read at every scrape.

    key            type  holds
    sploot:media   hash  ingested, clustered, noise, quarantined, dismissed   number of these items in all pets
                         overflowed           arrivals that found the quarantine of their pet full
                         pets, unconserved    pets with data, and pets whose counts do not add up
                         fullness_ppm         size of the largest pet's vectors, in millionths of what a pet can hold
                         cold, cold_bytes     pets whose vectors are in the cold store, and the size of these vectors
                         at_ms                time of the last sample (server's clock)
                         round                the unfinished count: JSON of the next page of pets, and its sums so far

A count of all pets may take several samples: each counts pets for at most ``BUDGET_S``, about 500,000, and the next one
continues. The metrics are those of the last finished count, but pets whose counts do not add up are shown immediately.
Pets that are added meanwhile may be counted or not. ``sploot_cluster.pet.tally`` defines each count.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Protocol, cast

import dramatiq
import redis
from dramatiq.middleware import TimeLimitExceeded
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from sploot_cluster.errors import StoreUnavailable
from sploot_cluster.pet.models import PetId
from sploot_cluster.pet.tally import Totals
from tasks.contracts import EXPORT_MEDIA_TOTALS
from tasks.observe.periodic import PRIORITY, every_minute
from tasks.observe.periodic_runs import recording_run

logger = logging.getLogger("sploot-cluster.queue")

MEDIA: Final = "sploot:media"
PLACES: Final = ("clustered", "noise", "quarantined", "dismissed")
SUMMED: Final = ("ingested", *PLACES, "overflowed", "pets", "unconserved")
FULLNESS: Final = "fullness_ppm"
COLD: Final = ("cold", "cold_bytes")
COUNTED: Final = (*SUMMED, FULLNESS, *COLD)

# Maximum time for which one sample counts pets: a third of its job's time limit. A thousand pets take about 40 ms.
BUDGET_S: Final = 20.0


class Counts(Protocol):
    """An object that counts the items of pets, such as a ``ClusterService``."""

    def pets_page(self, cursor: int) -> tuple[int, Sequence[PetId]]: ...

    def totals(self, pets: Sequence[PetId]) -> Totals: ...


class MediaSampler:
    """A sampler that writes the totals of all pets' items to Redis."""

    def __init__(self, counts: Counts, client: redis.Redis, *, budget_s: float = BUDGET_S) -> None:
        """Args: ``budget_s`` limits the time for which one sample counts pets; the next sample continues."""
        self._counts, self._client, self._budget_s = counts, client, budget_s

    def sample(self) -> None:
        """Count the items, in one round trip per 500 pets, and write the totals once all pets are counted.

        Errors from the store and from redis-py propagate.
        """
        # read before the pets, so that the age of a slow sample counts from its start
        seconds, microseconds = self._client.time()
        stored, unconserved = cast("list[bytes | None]", self._client.hmget(MEDIA, ["round", "unconserved"]))
        cursor, sums = _round(stored)
        until, seen = time.monotonic() + self._budget_s, set[PetId]()
        while True:
            cursor, page = self._counts.pets_page(cursor)
            pets = [pet for pet in dict.fromkeys(page) if pet not in seen]
            seen.update(pets)
            totals = self._counts.totals(pets)
            for name, n in _sums_of(totals).items():
                sums[name] += n
            sums[FULLNESS] = max(sums[FULLNESS], round(totals.fullness * 1_000_000))
            if not cursor or time.monotonic() >= until:
                break
        sample: dict[str, int | str] = {"at_ms": seconds * 1000 + microseconds // 1000}
        if cursor:
            sample["round"] = json.dumps({"cursor": cursor, "sums": sums})
            sample["unconserved"] = max(int(unconserved or 0), sums["unconserved"])
        else:
            sample |= sums
            sample["round"] = ""
        self._client.hset(MEDIA, items=[part for pair in sample.items() for part in pair])


def _round(stored: bytes | None) -> tuple[int, dict[str, int]]:
    """Return the page where an unfinished count continues, and its sums so far."""
    nothing = dict.fromkeys(COUNTED, 0)
    if not stored:
        return 0, nothing
    try:
        unfinished = json.loads(stored)
        return int(unfinished["cursor"]), nothing | {name: int(unfinished["sums"].get(name, 0)) for name in COUNTED}
    except (ValueError, KeyError, TypeError):
        return 0, nothing  # another program wrote this value


def _sums_of(totals: Totals) -> dict[str, int]:
    of_items = {name: getattr(totals.tally, name) for name in ("ingested", *PLACES, "overflowed")}
    of_pets = {"pets": totals.n_pets, "unconserved": len(totals.unconserved)}
    return of_items | of_pets | {"cold": totals.n_cold, "cold_bytes": totals.cold_bytes}


def declare_media_actor(broker: dramatiq.Broker, sampler: MediaSampler, client: redis.Redis) -> None:
    """Declare ``export_media_totals``, which periodiq sends every minute."""

    @every_minute(broker, EXPORT_MEDIA_TOTALS, client, priority=PRIORITY)
    def export() -> None:
        try:
            with recording_run(client, EXPORT_MEDIA_TOTALS):
                sampler.sample()
        except (StoreUnavailable, redis.RedisError, TimeLimitExceeded):
            # the job does not fail, because the age of the last sample already shows the problem
            logger.warning("could not count items", extra={"actor": EXPORT_MEDIA_TOTALS}, exc_info=True)


class MediaCollector(Collector):
    """A collector that exposes the last sample, equal on every pod; before the first sample every metric is 0."""

    def __init__(self, client: redis.Redis) -> None:
        """Args: ``client`` needs short timeouts and few retries, because it bounds the duration of a scrape."""
        self._client = client

    def describe(self) -> Iterable[Metric]:
        """Return the families without samples, so that registering does not call Redis."""
        return _families()

    def collect(self) -> Iterator[Metric]:
        try:
            stored = cast("dict[bytes, bytes]", self._client.hgetall(MEDIA))
            sample = {name.decode(): int(value) for name, value in stored.items() if name != b"round"}
        except (redis.RedisError, ValueError):
            logger.warning("could not read media totals from Redis; they are missing from this scrape", exc_info=True)
            return
        by_place, ingested, pets, unconserved, overflowed, fullest, cold, cold_bytes, at = _families()
        for place in PLACES:
            by_place.add_metric([place], sample.get(place, 0))
        ingested.add_metric([], sample.get("ingested", 0))
        pets.add_metric([], sample.get("pets", 0))
        unconserved.add_metric([], sample.get("unconserved", 0))
        overflowed.add_metric([], sample.get("overflowed", 0))
        fullest.add_metric([], sample.get(FULLNESS, 0) / 1_000_000)
        cold.add_metric([], sample.get("cold", 0))
        cold_bytes.add_metric([], sample.get("cold_bytes", 0))
        at.add_metric([], sample.get("at_ms", 0) / 1000)
        yield from (by_place, ingested, pets, unconserved, overflowed, fullest, cold, cold_bytes, at)


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
            "cluster_media_overflowed",
            "Arrivals of all pets that found the quarantine of their pet full, since the pet exists; each is a dead "
            "letter. They are not counted in cluster_media.",
        ),
        GaugeMetricFamily(
            "cluster_fullest_pet_ratio",
            "Size of the vectors of the largest pet, as a share of what one pet can hold: 512 MB, 262,144 items of 512 "
            "dimensions. At 1 its new items become dead letters; sploot-cluster tally names the pet.",
        ),
        GaugeMetricFamily("cluster_cold_pets", "Pets whose vectors are in the cold store instead of Redis."),
        GaugeMetricFamily("cluster_cold_bytes", "Size of the vectors that are in the cold store instead of Redis."),
        GaugeMetricFamily(
            "cluster_media_sample_timestamp_seconds",
            "Time of the last media sample, on the clock of Redis; 0 before the first. More than two minutes ago: the "
            "scheduler stopped or no worker takes streams:cluster.maintenance.",
        ),
    )
