"""Contents of the queues, sampled into Redis and read at every scrape.

A gauge that an actor sets would exist only in its own process. Instead, the worker that takes a sample writes it to
Redis with its time, and every pod exposes the same numbers. ``periodic.py`` schedules a sample every ten seconds. If no
worker has taken a sample for half a minute, because all are gone or stuck, each scrape reads the queues itself.

    key            type  holds
    sploot:backlog hash  <queue>:<fact>           the last sample of every queue; this file names the facts
                         <shard>:of_shard         undelivered jobs of each shard of a divided queue
                         pending_at_ms            time when jobs were counted (server's clock)
                         lag_at_ms                time when ages were measured (server's clock)
                         ticked_at_ms             scheduled time of the scheduler's last send (its own clock)
                         <queue>:vanished_at_ms   time when entries were last found missing (server's clock)
    sploot:backlog:ids hash <queue> -> JSON        while ids are ahead of the clock: the last ids seen, with times

No key expires: an old sample is exposed with its time until the next one overwrites it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import redis
from dramatiq.errors import BrokerConnectionError
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from broker import QueueStats, RedisStreamsBroker
from broker.sharding.shards import shard_name
from broker.stats import total_of
from sploot_cluster.refusals import REDIS_ERRORS
from tasks.contracts import EMBEDDING_INGESTED, GROUP, QUEUES, stream_of
from tasks.observe.figures.noise import HIGH_NOISE, NOISE
from tasks.observe.history import note_backlog
from tasks.queue_limit import MAX_QUEUE_LENGTH, limit_from
from tasks.queue_ops.overdue import overdue_jobs
from tasks.shards import SHARDED

logger = logging.getLogger("sploot-cluster.queue")

BACKLOG: Final = "sploot:backlog"
SEEN_IDS: Final = "sploot:backlog:ids"
TICKED_AT: Final = "ticked_at_ms"

SAMPLE_EVERY_MS: Final = 10_000
OLD_AFTER_MS: Final = 30_000  # if the last sample is older than this, no worker takes samples

# The queues whose jobs run in batches. A process holds hundreds of their jobs for less than a second, which are not
# stuck. Jobs that are held for as long as the alert on lag allows no longer count as batched.
BATCHED: Final = frozenset({EMBEDDING_INGESTED})
BATCHED_FOR_MS: Final = 10_000
# maximum number of old pending jobs to count per shard, far above the level of their alert
MOST_OLD: Final = 1_000
# maximum number of samples to keep per queue, which lasts for over an hour; beyond it, every second one is dropped
MOST_SEEN_IDS: Final = 500


class BacklogSampler:
    """A sampler that writes the contents of every queue to Redis. Errors from broker and redis-py propagate."""

    def __init__(self, broker: RedisStreamsBroker, client: redis.Redis, *, max_queue_length: int = 0) -> None:
        """Args: ``max_queue_length`` is written with the samples, for every producer to obey; 0 means no limit."""
        self._broker = broker
        self._client = client
        self._max_queue_length = max_queue_length

    def read(self) -> dict[str, int]:
        """Return the current facts of both samples without writing them, because Redis may refuse writes."""
        return self._counts() | self._ages(writes=False)

    def sample_pending(self) -> None:
        """Count the jobs of every queue by state, and all jobs ever added."""
        sample = self._counts()
        self._write(sample)
        waiting = {f"{queue}:waiting": sample[f"{queue}:undelivered"] for queue in QUEUES}
        note_backlog(self._client, sample["pending_at_ms"], waiting)
        self._client.set(MAX_QUEUE_LENGTH, self._max_queue_length)

    def sample_lag(self) -> None:
        """Measure how long the oldest job of every queue has been pending, and how long ago it was added."""
        sample = self._ages()
        self._write(sample)
        oldest = {f"{queue}:oldest_ms": sample[f"{queue}:oldest_age_ms"] for queue in QUEUES}
        note_backlog(self._client, sample["lag_at_ms"], oldest)

    def _counts(self) -> dict[str, int]:
        sample = {"pending_at_ms": self._now_ms()}
        for queue in QUEUES:
            parts = self._broker.stats_of_shards(queue)
            stats = total_of(parts)
            sample |= self._ids_of(queue, stats)
            sample[f"{queue}:pending"] = stats.in_flight
            sample[f"{queue}:batched"] = self._n_batched(parts) if queue in BATCHED else 0
            sample[f"{queue}:undelivered"] = stats.undelivered
            sample[f"{queue}:delayed"] = stats.delayed
            sample[f"{queue}:orphaned"] = stats.orphaned
            sample[f"{queue}:dead"] = stats.dead
            sample[f"{queue}:overdue"] = sum(len(overdue_jobs(self._broker, part)) for part in parts)
            sample[f"{queue}:added"] = stats.entries_added
            sample[f"{queue}:paused"] = int(stats.paused)
            sample[f"{queue}:shards"] = len(parts)
            sample |= {f"{part.queue_name}:of_shard": part.undelivered for part in parts}
            counters = self._broker.counters(queue)
            sample[f"{queue}:cancelled"] = counters["cancelled"]
            sample[f"{queue}:dead_evicted"] = counters["dead_evicted"]
        return sample

    def _n_batched(self, parts: Sequence[QueueStats]) -> int:
        """Return the number of pending jobs that were delivered less than ``BATCHED_FOR_MS`` ago."""
        n = 0
        for part in parts:
            if part.in_flight:
                old = self._broker.inspector(part.queue_name).pending(MOST_OLD, idle_ms=BATCHED_FOR_MS)
                n += max(0, part.in_flight - len(old))
        return n

    def _ages(self, *, writes: bool = True) -> dict[str, int]:
        sample = {"lag_at_ms": self._now_ms()}
        for queue in QUEUES:
            parts = self._broker.stats_of_shards(queue)
            sample[f"{queue}:oldest_pending_ms"] = max(part.oldest_pending_idle_ms or 0 for part in parts)
            ages_ms = [self._oldest_age_ms(part.queue_name, part, writes=writes) for part in parts]
            sample[f"{queue}:oldest_age_ms"] = max(ages_ms)
        return sample

    def _ids_of(self, queue: str, stats: QueueStats) -> dict[str, int]:
        """Return facts about a stream's ids and counts that show whether programs do more than ``XADD key *`` to it."""
        stored = self._client.hmget(BACKLOG, [f"{queue}:removed_by_others", f"{queue}:vanished"])
        before, vanished = (int(value or 0) for value in cast("list[bytes | None]", stored))
        # a lower count means that the stream was created again
        n_new = max(0, stats.removed_by_others - before)
        facts = {
            f"{queue}:ids_ahead_ms": stats.ids_ahead_ms,
            f"{queue}:exhausted": int(stats.is_exhausted),
            f"{queue}:removed_by_others": stats.removed_by_others,
            f"{queue}:vanished": vanished + n_new,
        }
        return facts | ({f"{queue}:vanished_at_ms": stats.clock_ms} if n_new else {})

    def _oldest_age_ms(self, queue: str, stats: QueueStats, *, writes: bool) -> int:
        """Return the time since the oldest job was added, or 0 if there is none.

        If its id is ahead of the clock, return the time since the first sample with an id at least as high, plus ten
        seconds. The age of an entry that no worker takes thus rises, whatever its id claims.
        """
        if stats.first_id is None or stats.oldest_age_ms is not None:
            if writes:
                self._client.hdel(SEEN_IDS, queue)
            return stats.oldest_age_ms or 0
        stored = cast("bytes | None", self._client.hget(SEEN_IDS, queue))
        seen = [(int(at_ms), str(last_id)) for at_ms, last_id in json.loads(stored or b"[]")]
        seen = [(at_ms, last_id) for at_ms, last_id in seen if _order(last_id) >= _order(stats.first_id)]
        if not seen or seen[-1][1] != stats.last_id:
            seen.append((stats.clock_ms, stats.last_id))
        if len(seen) > MOST_SEEN_IDS:
            seen = [seen[0], *seen[2::2]]
        if writes:
            self._client.hset(SEEN_IDS, queue, json.dumps(seen))
        return max(0, stats.clock_ms - seen[0][0]) + SAMPLE_EVERY_MS

    def _now_ms(self) -> int:
        # called before the queues are read, so that the age of a slow sample counts from its start
        seconds, microseconds = self._client.time()
        return seconds * 1000 + microseconds // 1000

    def _write(self, sample: Mapping[str, int]) -> None:
        self._client.hset(BACKLOG, items=[part for pair in sample.items() for part in pair])


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number)


class BacklogCollector(Collector):
    """A collector that exposes the last sample as metrics, equal on every pod.

    Every series exists from the first scrape, with 0 before the first sample, because alerts need it. While Redis does
    not answer, no series exists, because old numbers would look current.
    """

    def __init__(self, client: redis.Redis, sampler: BacklogSampler | None = None) -> None:
        """
        Args:
            client: needs short timeouts and few retries, because it bounds the duration of a scrape.
            sampler: reads the queues if the last sample is older than ``OLD_AFTER_MS``; None means that the old sample
                is exposed.
        """
        self._client, self._sampler = client, sampler

    def describe(self) -> Iterable[Metric]:
        """Return the families without samples, so that registering does not call Redis."""
        return [*(row.family() for row in _OF_STREAMS), _of_shards({}), *(row.family() for row in _SINGLE)]

    def collect(self) -> Iterator[Metric]:
        try:
            families = self._families()
        except (*REDIS_ERRORS, BrokerConnectionError, ValueError):
            # ValueError: another program has written to the hashes
            logger.warning(
                "could not read the backlog from Redis; its metrics are missing from this scrape", exc_info=True
            )
            return
        yield from families

    def _families(self) -> list[Metric]:
        pipe = self._client.pipeline(transaction=False)
        pipe.hgetall(BACKLOG)
        pipe.hgetall(NOISE)
        pipe.get(MAX_QUEUE_LENGTH)
        pipe.time()
        *hashes, limit, (seconds, _) = cast("tuple[Any, ...]", pipe.execute())
        sample, noise = ({name.decode(): int(value) for name, value in stored.items()} for stored in hashes)
        if self._sampler is not None and _sampled_at_ms(sample) < 1000 * seconds - OLD_AFTER_MS:
            sample |= self._sampler.read()
        families: list[Metric] = []
        for row in _OF_STREAMS:
            family = row.family()
            for queue in QUEUES:
                labels = {"stream": stream_of(queue), "group": GROUP}
                value = sample.get(f"{queue}:{row.fact}", 0) / row.per_unit
                family.add_metric([labels[name] for name in row.labels], value)
            families.append(family)
        families.append(_of_shards(sample))
        values = {
            "last_count": noise.get("last_count", 0),
            "high_streak": noise.get("high_streak", 0),
            "sampled_at_ms": _sampled_at_ms(sample),
            TICKED_AT: sample.get(TICKED_AT, 0),
            "max_queue_length": limit_from(limit),
        }
        for row in _SINGLE:
            family = row.family()
            family.add_metric([], values[row.fact] / row.per_unit)
            families.append(family)
        return families


def _of_shards(sample: Mapping[str, int]) -> GaugeMetricFamily:
    """Return the metric for the shards of divided queues. A queue that is not divided has no samples."""
    family = GaugeMetricFamily(
        "media_cluster_shard_undelivered_jobs",
        "Jobs of one shard that no worker has taken yet, for queues that are divided into shards. One shard with far "
        "more than the others: a pet with many items, or producers that do not know the shards.",
        labels=("stream", "shard"),
    )
    for queue in SHARDED:
        n = sample.get(f"{queue}:shards", 1)
        for number in range(n) if n > 1 else ():
            value = sample.get(f"{shard_name(queue, number)}:of_shard", 0)
            family.add_metric([stream_of(queue), str(number)], value)
    return family


def _sampled_at_ms(sample: Mapping[str, int]) -> int:
    # the older of the two times, so that it falls behind if either actor stops
    return min(sample.get("pending_at_ms", 0), sample.get("lag_at_ms", 0))


@dataclass(frozen=True, slots=True)
class _Row:
    """A metric: name, help text, the fact that it exposes, labels, and the number by which the fact is divided."""

    name: str
    documentation: str
    fact: str
    labels: tuple[str, ...] = ()
    per_unit: int = 1

    def family(self) -> GaugeMetricFamily | CounterMetricFamily:
        kind = CounterMetricFamily if self.name.endswith("_total") else GaugeMetricFamily
        return kind(self.name, self.documentation, labels=self.labels)


_MS_PER_S: Final = 1000

_OF_STREAMS: Final = (
    _Row(
        "media_cluster_pending_jobs",
        "Jobs that workers hold: entries pending in the consumer group, as XPENDING counts them. Bounded by the "
        "workers' prefetch; jobs that still wait are in media_cluster_undelivered_jobs.",
        "pending",
        ("stream", "group"),
    ),
    _Row(
        "media_cluster_batched_jobs",
        "Pending jobs of a stream whose jobs run in batches that workers took less than ten seconds ago. Alerts on "
        "media_cluster_pending_jobs subtract them: they are not stuck; 0 for streams without batches.",
        "batched",
        ("stream", "group"),
    ),
    _Row(
        "media_cluster_stream_lag_seconds",
        "Idle time of the oldest pending job, as XPENDING shows it: how long a worker has held it; 0 when none is "
        "pending. High: a job hangs, or its worker died and no other took over.",
        "oldest_pending_ms",
        ("stream", "group"),
        _MS_PER_S,
    ),
    _Row(
        "media_cluster_undelivered_jobs",
        "Jobs that no worker has taken yet. Growing: too few workers, none at all, or the queue is paused.",
        "undelivered",
        ("stream",),
    ),
    _Row(
        "media_cluster_queue_paused",
        "1 while an operator has paused the queue; sploot-cluster queue audit shows who. Producers continue.",
        "paused",
        ("stream",),
    ),
    _Row(
        "media_cluster_delayed_jobs",
        "Jobs that are not due yet: retries, reclusters that wait for more items, the next samples. Growing: jobs "
        "keep failing; see cluster_job_retries_total.",
        "delayed",
        ("stream",),
    ),
    _Row(
        "media_cluster_orphaned_jobs",
        "Delivered jobs in no pending list, e.g. after a manual XACK or XGROUP DELCONSUMER. Workers put "
        "them back to work within seconds; if they stay, no worker takes jobs of this stream.",
        "orphaned",
        ("stream",),
    ),
    _Row(
        "media_cluster_overdue_jobs",
        "Jobs that live workers hold for at least a minute beyond their time limit: their threads hang, or the jobs "
        "wait in their process behind longer ones. sploot-cluster queue status shows the workers.",
        "overdue",
        ("stream",),
    ),
    _Row(
        "media_cluster_dead_letters",
        "Jobs that failed permanently and wait for review. XREVRANGE {<stream>}:dead + - COUNT 10 shows the latest, "
        "with reason and error.",
        "dead",
        ("stream",),
    ),
    _Row(
        "media_cluster_oldest_job_age_seconds",
        "Time since the oldest job of the stream was added, taken or not: how far the workers are behind; 0 when the "
        "stream is empty. If its entry id is ahead of the clock, time since a sample first saw it.",
        "oldest_age_ms",
        ("stream",),
        _MS_PER_S,
    ),
    _Row(
        "media_cluster_entries_added_total",
        "Jobs ever added to the stream, including retries that became due. No increase: no uploads, or producers do "
        "not reach Redis.",
        "added",
        ("stream",),
    ),
    _Row(
        "media_cluster_cancelled_jobs_total",
        "Jobs of the stream that operators or producers cancelled. They are neither failures nor dead letters; "
        "sploot-cluster queue audit shows who cancelled them.",
        "cancelled",
        ("stream",),
    ),
    _Row(
        "media_cluster_dead_letters_evicted_total",
        "Dead letters of the stream that were deleted before their time, because the queue had more than "
        "SPLOOT_MAX_DEAD_LETTERS or SPLOOT_MAX_DEAD_LETTERS_MB: the only copy of failed jobs.",
        "dead_evicted",
        ("stream",),
    ),
    _Row(
        "media_cluster_ids_ahead_seconds",
        "How far the last entry id of the stream is ahead of the clock of Redis; 0 when it is not. A producer chose an "
        "id of its own, or the server's clock was ahead: every later id is at least as far ahead.",
        "ids_ahead_ms",
        ("stream",),
        _MS_PER_S,
    ),
    _Row(
        "media_cluster_stream_exhausted",
        "1 when the stream has no ids left, because a producer used the highest: no job can be added.",
        "exhausted",
        ("stream",),
    ),
    _Row(
        "media_cluster_entries_vanished_total",
        "Jobs that left the stream unprocessed: removed by XADD with MAXLEN, XTRIM or XDEL. Exact from "
        "Redis 7.0 on; on 6.2 only those that workers held and missed.",
        "vanished",
        ("stream",),
    ),
)

_SINGLE: Final = (
    _Row(
        "media_cluster_backlog_sample_timestamp_seconds",
        "Time of the last sample of the other media_cluster metrics, by Redis's clock; 0 before it. If workers take "
        "none for half a minute, each scrape does; more than a minute ago: scrapes cannot read the queues either.",
        "sampled_at_ms",
        per_unit=_MS_PER_S,
    ),
    _Row(
        "media_cluster_scheduler_tick_timestamp_seconds",
        "When the scheduler last sent its jobs, by its own clock; 0 if never. It does so every minute: more than two "
        "minutes ago means that it stopped or cannot reach Redis.",
        TICKED_AT,
        per_unit=_MS_PER_S,
    ),
    _Row(
        "media_cluster_max_queue_length_jobs",
        "How many jobs a queue may hold before producers are refused, as SPLOOT_MAX_QUEUE_LENGTH of the workers sets "
        "it; 0: no limit.",
        "max_queue_length",
    ),
    _Row(
        "cluster_last_noise_count",
        "Items that the last recluster of any pet left as noise.",
        "last_count",
    ),
    _Row(
        "cluster_noise_high_streak",
        f"Consecutive reclusters of one pet, or of all, that left more than {HIGH_NOISE} items as noise. Three or "
        "more: embeddings have changed, or the clustering settings do not fit them.",
        "high_streak",
    ),
)
