"""Contents of the queues, sampled into Redis and exposed at every scrape."""

from __future__ import annotations

import json
import logging
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dramatiq
import pytest
import redis
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker import RedisStreamsBroker
from broker.stats import LAST_ID
from tasks.contracts import CLUSTER_FEEDBACK, CLUSTER_RECLUSTER, EMBEDDING_INGESTED, GROUP, QUEUES, stream_of
from tasks.observe.backlog import BACKLOG, SEEN_IDS, BacklogCollector, BacklogSampler
from tasks.observe.figures.noise import NOISE, NoiseWatch
from tests.support import eventually
from tests.tasks.observe.backlog_walk import Walk

FEEDBACK = stream_of(CLUSTER_FEEDBACK)
SAMPLED_AT = "media_cluster_backlog_sample_timestamp_seconds"

OF_GROUPS = ("media_cluster_pending_jobs", "media_cluster_batched_jobs", "media_cluster_stream_lag_seconds")
OF_SHARDS = "media_cluster_shard_undelivered_jobs"  # has series only for queues that are divided
OF_STREAMS = (
    "media_cluster_undelivered_jobs",
    "media_cluster_queue_paused",
    "media_cluster_delayed_jobs",
    "media_cluster_orphaned_jobs",
    "media_cluster_overdue_jobs",
    "media_cluster_dead_letters",
    "media_cluster_oldest_job_age_seconds",
    "media_cluster_entries_added_total",
    "media_cluster_cancelled_jobs_total",
    "media_cluster_dead_letters_evicted_total",
    "media_cluster_ids_ahead_seconds",
    "media_cluster_stream_exhausted",
    "media_cluster_entries_vanished_total",
)
TICKED_AT = "media_cluster_scheduler_tick_timestamp_seconds"
# metric -> field of the truth that the walk compares it with
COUNTS = {
    "pending_jobs": "pending",
    "undelivered_jobs": "undelivered",
    "orphaned_jobs": "orphaned",
    "delayed_jobs": "delayed",
    "dead_letters": "dead",
}
TIMES = {"oldest_job_age_seconds": "oldest_ms", "stream_lag_seconds": "oldest_idle_ms"}
LIMIT = "media_cluster_max_queue_length_jobs"
SINGLE = (SAMPLED_AT, TICKED_AT, LIMIT, "cluster_last_noise_count", "cluster_noise_high_streak")


@pytest.fixture
def broker(redis_client: redis.Redis) -> Iterator[RedisStreamsBroker]:
    broker = RedisStreamsBroker(client=redis_client, middleware=[], group=GROUP)
    for queue in QUEUES:
        broker.declare_queue(queue)
    yield broker
    broker.close()


@pytest.fixture
def sampler(broker: RedisStreamsBroker, redis_client: redis.Redis) -> BacklogSampler:
    return BacklogSampler(broker, redis_client)


@pytest.fixture
def registry(redis_client: redis.Redis) -> CollectorRegistry:
    """The registry of a pod."""
    registry = CollectorRegistry()
    registry.register(BacklogCollector(redis_client))
    return registry


def of_stream(registry: CollectorRegistry, name: str, queue: str = CLUSTER_FEEDBACK) -> float | None:
    labels = {"stream": stream_of(queue)} | ({"group": GROUP} if name in OF_GROUPS else {})
    return registry.get_sample_value(name, labels)


def send(broker: RedisStreamsBroker, n: int = 1, *, queue: str = CLUSTER_FEEDBACK, delay: int | None = None) -> None:
    for _ in range(n):
        broker.enqueue(dramatiq.Message(queue, "undo_feedback", (), {}, {}), delay=delay)


def of_feedback(registry: CollectorRegistry) -> dict[str, float]:
    samples = (sample for family in registry.collect() for sample in family.samples)
    return {sample.name: sample.value for sample in samples if sample.labels.get("stream") == FEEDBACK}


def check_walk(client: redis.Redis, broker: RedisStreamsBroker, *, n_states: int, seed: int) -> Counter[str]:
    """Walk, compare every gauge with the truth after each step, and count the operations and states of the walk."""
    walk, sampler = Walk(client, broker, random.Random(seed)), BacklogSampler(broker, client)
    registry = CollectorRegistry()
    registry.register(BacklogCollector(client))
    met: Counter[str] = Counter()
    for number in range(n_states):
        step = walk.step()
        sampler.sample_pending()
        sampler.sample_lag()
        exposed = of_feedback(registry)
        truth = walk.truth()

        where = f"state {number} of seed {seed}, after {step}: {truth}"
        gauges = {name: exposed[f"media_cluster_{name}"] for name in (*COUNTS, *TIMES)}
        assert {COUNTS[name]: gauges[name] for name in COUNTS} == {
            name: getattr(truth, name) for name in COUNTS.values()
        }, where
        for name, fact in TIMES.items():
            # the expected values are read after the sample, so their ages are greater
            behind_s = (getattr(truth, fact) or 0) / 1_000 - gauges[name]
            assert 0 <= behind_s < 5, f"{name} says {gauges[name]} in {where}"
        met[step] += 1
        met["lag is nil"] += not truth.is_lag_known
        met["orphans"] += truth.orphaned > 0
        met["pending"] += truth.pending > 0
    return met


def unreachable() -> redis.Redis:
    return redis.Redis(port=1, retry=Retry(NoBackoff(), 0))


def test_series_are_zero_before_the_first_sample(registry: CollectorRegistry) -> None:
    families = text_string_to_metric_families(generate_latest(registry).decode())

    gauges = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }

    stream = {queue: ("stream", stream_of(queue)) for queue in QUEUES}
    expected = {(name, frozenset({stream[queue], ("group", GROUP)})) for name in OF_GROUPS for queue in QUEUES}
    expected |= {(name, frozenset({stream[queue]})) for name in OF_STREAMS for queue in QUEUES}
    expected |= {(name, frozenset()) for name in SINGLE}
    assert gauges.keys() == expected
    assert set(gauges.values()) == {0.0}


def test_only_totals_are_counters(registry: CollectorRegistry) -> None:
    kinds = {family.name: family.type for family in registry.collect()}

    assert {name for name, kind in kinds.items() if kind == "counter"} == {
        "media_cluster_cancelled_jobs",
        "media_cluster_dead_letters_evicted",
        "media_cluster_entries_added",
        "media_cluster_entries_vanished",
    }
    assert {name for name, kind in kinds.items() if kind == "gauge"} == {
        name for name in (*OF_GROUPS, *OF_STREAMS, *SINGLE, OF_SHARDS) if not name.endswith("_total")
    }


def test_queue_limit_is_exposed_once_it_is_sampled(
    broker: RedisStreamsBroker, redis_client: redis.Redis, registry: CollectorRegistry
) -> None:
    BacklogSampler(broker, redis_client, max_queue_length=5_000).sample_pending()

    assert registry.get_sample_value(LIMIT) == 5_000


def test_every_metric_has_a_help_text(registry: CollectorRegistry) -> None:
    assert all(len(family.documentation) > 50 for family in registry.collect())


def test_jobs_are_counted_by_state(
    broker: RedisStreamsBroker, sampler: BacklogSampler, registry: CollectorRegistry
) -> None:
    send(broker, 5)
    send(broker, 2, delay=60_000)
    cancelled = broker.enqueue(dramatiq.Message(CLUSTER_FEEDBACK, "merge_clusters", (), {}, {}), delay=60_000)
    broker.cancel(cancelled.message_id, CLUSTER_FEEDBACK)
    consumer = broker.consume(CLUSTER_FEEDBACK, prefetch=3, timeout=5_000)
    first, second = next(consumer), next(consumer)
    assert first is not None
    assert second is not None
    first.fail()
    consumer.nack(first)
    eventually(lambda: broker.stats(CLUSTER_FEEDBACK).dead == 1)

    sampler.sample_pending()

    # the consumer has read as many as it may hold
    assert of_stream(registry, "media_cluster_pending_jobs") == 2
    assert of_stream(registry, "media_cluster_undelivered_jobs") == 2
    assert of_stream(registry, "media_cluster_delayed_jobs") == 2
    assert of_stream(registry, "media_cluster_dead_letters") == 1
    assert of_stream(registry, "media_cluster_cancelled_jobs_total") == 1
    assert of_stream(registry, "media_cluster_orphaned_jobs") == 0
    assert of_stream(registry, "media_cluster_entries_added_total") == 5
    consumer.ack(second)
    consumer.close()


def test_pending_jobs_count_as_batched_until_they_are_ten_seconds_old(
    broker: RedisStreamsBroker, sampler: BacklogSampler, registry: CollectorRegistry, redis_client: redis.Redis
) -> None:
    for queue in (CLUSTER_FEEDBACK, EMBEDDING_INGESTED):
        send(broker, 3, queue=queue)
    read: dict[str, Any] = {}
    for queue in (CLUSTER_FEEDBACK, EMBEDDING_INGESTED):
        redis_client.xgroup_create(stream_of(queue), GROUP, "0")
        answer: Any = redis_client.xreadgroup(GROUP, "other", {stream_of(queue): ">"})
        read[queue] = [entry_id for entry_id, _ in answer[0][1]]
    redis_client.xclaim(
        stream_of(EMBEDDING_INGESTED), GROUP, "other", 0, read[EMBEDDING_INGESTED][:1], idle=10_000, justid=True
    )

    sampler.sample_pending()

    assert of_stream(registry, "media_cluster_pending_jobs", EMBEDDING_INGESTED) == 3
    assert of_stream(registry, "media_cluster_batched_jobs", EMBEDDING_INGESTED) == 2
    assert of_stream(registry, "media_cluster_batched_jobs", CLUSTER_FEEDBACK) == 0


def test_gauges_match_redis_after_every_step_of_a_random_walk(
    broker: RedisStreamsBroker, redis_client: redis.Redis
) -> None:
    met = check_walk(redis_client, broker, n_states=150, seed=7)

    # ``make ops-verify`` walks more steps
    assert met["lag is nil"] > 7
    assert met["orphans"] > 7


def test_gauges_are_separate_per_queue(
    broker: RedisStreamsBroker, sampler: BacklogSampler, registry: CollectorRegistry
) -> None:
    send(broker, 3, queue=EMBEDDING_INGESTED)
    send(broker, 1, queue=CLUSTER_RECLUSTER)

    sampler.sample_pending()

    counts = {queue: of_stream(registry, "media_cluster_undelivered_jobs", queue) for queue in QUEUES}
    assert counts == dict.fromkeys(QUEUES, 0) | {EMBEDDING_INGESTED: 3, CLUSTER_RECLUSTER: 1}


def test_job_acknowledged_by_hand_counts_as_orphan(
    broker: RedisStreamsBroker, sampler: BacklogSampler, registry: CollectorRegistry, redis_client: redis.Redis
) -> None:
    send(broker)
    redis_client.xgroup_create(FEEDBACK, GROUP, "0")
    read: Any = redis_client.xreadgroup(GROUP, "by-hand", {FEEDBACK: ">"}, count=1)
    redis_client.xack(FEEDBACK, GROUP, read[0][1][0][0])

    sampler.sample_pending()

    assert of_stream(registry, "media_cluster_orphaned_jobs") == 1
    assert of_stream(registry, "media_cluster_undelivered_jobs") == 0
    assert of_stream(registry, "media_cluster_pending_jobs") == 0


def test_lag_is_the_idle_time_of_the_oldest_pending_job(
    broker: RedisStreamsBroker, sampler: BacklogSampler, registry: CollectorRegistry, redis_client: redis.Redis
) -> None:
    send(broker, 2)
    redis_client.xgroup_create(FEEDBACK, GROUP, "0")
    read: Any = redis_client.xreadgroup(GROUP, "by-hand", {FEEDBACK: ">"}, count=1)
    # XCLAIM can set the idle time of an entry
    redis_client.xclaim(FEEDBACK, GROUP, "by-hand", 0, [read[0][1][0][0]], idle=90_000)

    sampler.sample_lag()

    lag_s = of_stream(registry, "media_cluster_stream_lag_seconds")
    assert lag_s is not None
    assert 90 <= lag_s < 120
    assert of_stream(registry, "media_cluster_stream_lag_seconds", CLUSTER_RECLUSTER) == 0


def test_age_of_the_oldest_job_counts_from_when_it_was_added(
    sampler: BacklogSampler, registry: CollectorRegistry, redis_client: redis.Redis
) -> None:
    seconds, _ = redis_client.time()
    redis_client.xadd(FEEDBACK, {"message": b"{}"}, id=f"{(seconds - 600) * 1000}-0")

    sampler.sample_lag()

    age_s = of_stream(registry, "media_cluster_oldest_job_age_seconds")
    assert age_s is not None
    assert 599 <= age_s < 660
    assert of_stream(registry, "media_cluster_stream_lag_seconds") == 0  # no worker holds the job


def test_emptied_queue_is_reported_as_empty(
    broker: RedisStreamsBroker, sampler: BacklogSampler, registry: CollectorRegistry
) -> None:
    send(broker, 4)
    sampler.sample_pending()
    sampler.sample_lag()
    broker.flush(CLUSTER_FEEDBACK)

    sampler.sample_pending()
    sampler.sample_lag()

    assert of_stream(registry, "media_cluster_undelivered_jobs") == 0
    assert of_stream(registry, "media_cluster_oldest_job_age_seconds") == 0
    assert of_stream(registry, "media_cluster_entries_added_total") == 4


def test_sample_time_is_the_older_time_of_its_two_parts(
    sampler: BacklogSampler, registry: CollectorRegistry, redis_client: redis.Redis
) -> None:
    sampler.sample_pending()
    only_one = registry.get_sample_value(SAMPLED_AT)
    sampler.sample_lag()
    both = registry.get_sample_value(SAMPLED_AT)
    redis_client.hincrby(BACKLOG, "lag_at_ms", -45_000)
    one_stopped = registry.get_sample_value(SAMPLED_AT)

    assert only_one == 0
    assert both is not None
    assert one_stopped is not None
    assert abs(both - time.time()) < 30
    assert 44 < both - one_stopped <= 45


def test_scrape_reads_old_queues_itself_even_if_redis_refuses_writes(
    broker: RedisStreamsBroker, sampler: BacklogSampler, redis_client: redis.Redis
) -> None:
    registry = CollectorRegistry()
    registry.register(BacklogCollector(redis_client, sampler))
    sampler.sample_pending()
    sampler.sample_lag()
    send(broker, 3)
    broker.pause(CLUSTER_FEEDBACK)
    fresh = of_feedback(registry)

    redis_client.hincrby(BACKLOG, "lag_at_ms", -31_000)
    stored = redis_client.hgetall(BACKLOG)
    redis_client.config_set("min-replicas-to-write", 1)
    try:
        old = of_feedback(registry)
    finally:
        redis_client.config_set("min-replicas-to-write", 0)

    assert (fresh["media_cluster_undelivered_jobs"], fresh["media_cluster_queue_paused"]) == (0, 0)
    assert (old["media_cluster_undelivered_jobs"], old["media_cluster_queue_paused"]) == (3, 1)
    assert old["media_cluster_entries_added_total"] == 3
    assert old["media_cluster_oldest_job_age_seconds"] > 0
    sampled_at = registry.get_sample_value(SAMPLED_AT)
    assert sampled_at is not None
    assert abs(sampled_at - time.time()) < 30
    assert redis_client.hgetall(BACKLOG) == stored, "a scrape writes no sample"


def test_all_pods_expose_the_same_numbers(
    broker: RedisStreamsBroker, sampler: BacklogSampler, redis_url: str, redis_client: redis.Redis
) -> None:
    send(broker, 3)
    sampler.sample_pending()
    sampler.sample_lag()
    NoiseWatch(redis_client).note(31)

    answers = []
    for _ in range(2):
        with redis.Redis.from_url(redis_url) as pod:
            registry = CollectorRegistry()
            registry.register(BacklogCollector(pod))
            answers.append(generate_latest(registry))

    assert answers[0] == answers[1]
    assert b'media_cluster_undelivered_jobs{stream="streams:cluster.feedback"} 3.0' in answers[0]


def test_scrape_without_redis_is_empty_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    registry = CollectorRegistry()
    registry.register(BacklogCollector(unreachable()))

    with caplog.at_level(logging.WARNING):
        families = list(registry.collect())

    assert families == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "could not read the backlog from Redis" in caplog.text


@pytest.mark.parametrize("spoil", [("hset", BACKLOG, "cluster.feedback:dead", "many"), ("set", NOISE, "7")])
def test_invalid_sample_hash_does_not_fail_the_scrape(
    registry: CollectorRegistry, redis_client: redis.Redis, spoil: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    redis_client.execute_command(*spoil)

    assert list(registry.collect()) == []

    assert "could not read the backlog from Redis" in caplog.text


def test_sample_raises_when_it_cannot_be_written(broker: RedisStreamsBroker) -> None:
    sampler = BacklogSampler(broker, unreachable())

    with pytest.raises(redis.ConnectionError):
        sampler.sample_pending()


def test_noise_streak_grows_until_a_recluster_with_little_noise(
    registry: CollectorRegistry, redis_client: redis.Redis
) -> None:
    watch = NoiseWatch(redis_client)

    streaks = [watch.note(n_noise) for n_noise in (31, 400, 30, 0, 31)]

    assert streaks == [1, 2, 0, 0, 1]
    assert registry.get_sample_value("cluster_last_noise_count") == 31
    assert registry.get_sample_value("cluster_noise_high_streak") == 1
    assert abs(int(redis_client.hget(NOISE, "at_ms") or 0) / 1000 - time.time()) < 30


def test_noise_streak_of_one_pet_is_not_ended_by_other_pets(redis_client: redis.Redis) -> None:
    watch = NoiseWatch(redis_client)

    streaks = [
        watch.note(n_noise, pet_id=pet_id, n_media=200)
        for n_noise, pet_id in ((31, 7), (2, 8), (31, 7), (31, 9), (0, 8), (31, 7), (5, 9), (30, 7))
    ]

    assert streaks == [1, 1, 2, 2, 2, 3, 3, 0]


def test_noise_within_the_budget_of_a_large_pet_does_not_count_as_high(redis_client: redis.Redis) -> None:
    watch = NoiseWatch(redis_client)

    streaks = []
    for n_noise in (60, 60, 60, 61):
        streaks.append(watch.note(n_noise, pet_id=7, n_media=2_000))
        watch.note(0, pet_id=8, n_media=100)

    assert streaks[-1] == 1
    assert watch.note(0, pet_id=7, n_media=2_000) == 0


def test_noise_streak_ends_with_its_pet_or_after_a_day(redis_client: redis.Redis) -> None:
    watch = NoiseWatch(redis_client)
    for pet_id in (7, 7, 7, 8, 8):
        watch.note(40, pet_id=pet_id, n_media=100)
    watch.note(0, pet_id=9, n_media=100)

    watch.forget(7)
    assert redis_client.hget(NOISE, "high_streak") == b"2"
    (noisy,) = redis_client.keys("sploot:noise:seen:*")
    redis_client.zadd(noisy, {"8": 1})  # last noisy more than a day ago
    assert watch.note(0, pet_id=9, n_media=100) == 0
    assert redis_client.keys("sploot:noise:*") == []


def test_noise_streak_counts_concurrent_reclusters(redis_client: redis.Redis) -> None:
    with ThreadPoolExecutor(8) as pool:
        streaks = list(pool.map(lambda _: NoiseWatch(redis_client).note(31), range(100)))

    assert sorted(streaks) == list(range(1, 101))


# -- ids that producers choose -----------------------------------------------------------------------------------------


def ahead(client: Any, hours: int = 1) -> str:
    return f"{1000 * (client.time()[0] + 3_600 * hours)}-0"


@pytest.mark.parametrize("id_of", [ahead, lambda _: LAST_ID], ids=["an hour ahead", "the greatest"])
def test_age_of_an_id_ahead_of_the_clock_counts_from_its_first_sample(
    broker: RedisStreamsBroker, sampler: BacklogSampler, registry: CollectorRegistry, redis_client: Any, id_of: Any
) -> None:
    redis_client.xadd(FEEDBACK, {"a": "b"}, id=id_of(redis_client))
    assert broker.stats(CLUSTER_FEEDBACK).oldest_age_ms is None

    sampler.sample_lag()
    first = of_stream(registry, "media_cluster_oldest_job_age_seconds")
    (seen,) = [json.loads(stored) for stored in redis_client.hvals(SEEN_IDS)]
    # as if a quarter of an hour had passed
    redis_client.hset(SEEN_IDS, CLUSTER_FEEDBACK, json.dumps([[at - 900_000, last] for at, last in seen]))
    sampler.sample_lag()
    later = of_stream(registry, "media_cluster_oldest_job_age_seconds")

    assert first is not None
    assert later is not None
    assert 0 < first < 60
    assert 900 < later < 960


def test_age_of_later_entries_counts_from_the_first_sample_that_saw_them(
    broker: RedisStreamsBroker, sampler: BacklogSampler, registry: CollectorRegistry, redis_client: Any
) -> None:
    odd = redis_client.xadd(FEEDBACK, {"a": "b"}, id=ahead(redis_client))
    sampler.sample_lag()
    send(broker)  # this entry gets an id ahead of the clock as well
    sampler.sample_lag()
    seen = json.loads(redis_client.hget(SEEN_IDS, CLUSTER_FEEDBACK))
    assert len(seen) == 2
    redis_client.hset(
        SEEN_IDS, CLUSTER_FEEDBACK, json.dumps([[seen[0][0] - 900_000, seen[0][1]], [seen[1][0] - 300_000, seen[1][1]]])
    )

    redis_client.xdel(FEEDBACK, odd)
    sampler.sample_lag()

    age = of_stream(registry, "media_cluster_oldest_job_age_seconds")
    assert age is not None
    assert 300 < age < 360
    redis_client.delete(FEEDBACK)
    sampler.sample_lag()
    assert of_stream(registry, "media_cluster_oldest_job_age_seconds") == 0
    assert not redis_client.exists(SEEN_IDS)


def test_ids_ahead_of_the_clock_and_exhausted_streams_have_gauges(
    sampler: BacklogSampler, registry: CollectorRegistry, redis_client: Any
) -> None:
    redis_client.xadd(FEEDBACK, {"a": "b"}, id=ahead(redis_client))
    sampler.sample_pending()
    n_ahead, is_exhausted = (
        of_stream(registry, f"media_cluster_{name}") for name in ("ids_ahead_seconds", "stream_exhausted")
    )
    redis_client.xadd(FEEDBACK, {"a": "b"}, id=LAST_ID)
    sampler.sample_pending()

    assert n_ahead is not None
    assert 3_500 < n_ahead <= 3_600
    assert is_exhausted == 0
    assert of_stream(registry, "media_cluster_stream_exhausted") == 1


def test_only_unprocessed_entries_count_as_vanished(
    broker: RedisStreamsBroker, sampler: BacklogSampler, registry: CollectorRegistry, redis_client: Any
) -> None:
    vanished = "media_cluster_entries_vanished_total"
    consumer = broker.consume(CLUSTER_FEEDBACK, prefetch=4, timeout=5_000)
    send(broker, 4)
    done, failed, again, _ = (next(consumer) for _ in range(4))
    assert done is not None
    assert failed is not None
    assert again is not None
    consumer.ack(done)
    consumer.nack(failed)
    eventually(lambda: redis_client.xlen(FEEDBACK) == 2)
    sampler.sample_pending()
    assert of_stream(registry, vanished) == 0

    send(broker, 3)
    redis_client.xtrim(FEEDBACK, maxlen=1, approximate=False)
    sampler.sample_pending()
    assert of_stream(registry, vanished) == 4

    send(broker, 2)
    broker.flush(CLUSTER_FEEDBACK)
    sampler.sample_pending()
    assert of_stream(registry, vanished) == 4
    consumer.close()
