"""The history of the last 24 hours: what is counted, what is kept, and how much memory it takes."""

from __future__ import annotations

import pytest
import redis

from sploot_cluster.queues import QueueHistory
from tasks.contracts import CLUSTER_RECLUSTER, EMBEDDING_INGESTED, QUEUES
from tasks.observe.history import EDGES_MS, PREFIX, STEP_S, KeepHistory, note_backlog, read_history

NOW = 1_800_000_000.0  # the beginning of a step


def of(client: redis.Redis, queue: str, *, now: float = NOW, n_steps: int = 2) -> QueueHistory:
    return next(one for one in read_history(client, now=now, n_steps=n_steps).queues if one.queue == queue)


def test_attempts_of_all_processes_are_added_up_by_step(redis_client: redis.Redis) -> None:
    now = [NOW - STEP_S]
    first, second = (KeepHistory(redis_client, clock=lambda: now[0]) for _ in range(2))

    first.count(EMBEDDING_INGESTED, is_success=True, duration_s=0.02)
    first.flush()
    now[0] = NOW
    for keeper in (first, second):
        keeper.count(EMBEDDING_INGESTED, is_success=True, duration_s=0.2)
        keeper.count(EMBEDDING_INGESTED, is_success=False, duration_s=1_000.0)
        keeper.flush()
        keeper.flush()

    history = of(redis_client, EMBEDDING_INGESTED)
    assert (history.done, history.failed) == ([1, 2], [0, 2])
    assert history.p50_s[0] == pytest.approx(0.02)
    assert history.p50_s[1] == pytest.approx(0.3)
    assert history.p95_s[1] == pytest.approx(273, abs=1)
    assert of(redis_client, CLUSTER_RECLUSTER).p50_s == [None, None]


def test_largest_backlog_of_a_step_is_kept(redis_client: redis.Redis) -> None:
    for waiting in (3, 70, 5):
        note_backlog(redis_client, int(1_000 * NOW), {f"{EMBEDDING_INGESTED}:waiting": waiting})

    history = of(redis_client, EMBEDDING_INGESTED)

    assert (history.waiting, history.oldest_s) == ([None, 70], [None, None])


def test_counts_survive_an_outage_of_redis(redis_client: redis.Redis) -> None:
    away = redis.Redis(port=1)
    keeper = KeepHistory(away, clock=lambda: NOW)
    keeper.count(EMBEDDING_INGESTED, is_success=True, duration_s=0.2)
    keeper.flush()

    away.connection_pool = redis_client.connection_pool
    keeper.flush()

    assert of(redis_client, EMBEDDING_INGESTED).done == [0, 1]


def test_history_of_a_time_step_expires_and_takes_little_memory(redis_client: redis.Redis) -> None:
    keeper = KeepHistory(redis_client, clock=lambda: NOW)
    for queue in QUEUES:
        for edge in EDGES_MS:
            for is_success in (True, False):
                keeper.count(queue, is_success=is_success, duration_s=edge / 1_000)
    keeper.flush()
    note_backlog(
        redis_client,
        int(1_000 * NOW),
        {f"{queue}:{fact}": 10**9 for queue in QUEUES for fact in ("waiting", "oldest_ms")},
    )
    key = f"{PREFIX}{int(NOW) // STEP_S}"

    assert 24 * 3_600 < redis_client.ttl(key) <= 25 * 3_600
    assert 500 < (redis_client.memory_usage(key) or 0) < 3_000
