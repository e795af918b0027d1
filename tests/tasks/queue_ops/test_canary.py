"""A careful requeue: one dead letter first, then the rest, without a flood of jobs that fail again."""

from __future__ import annotations

import pytest
import redis

from sploot_cluster.queues import CarefulRequeue, DeadLetterFilter
from tasks.queue_ops.canary import Canary, Requeued
from tests.support import eventually
from tests.tasks.queue_ops.desk import KEYS, Desk, worker_that_refuses


@pytest.fixture
def desk(redis_client: redis.Redis) -> Desk:
    return Desk(redis_client)


def careful(desk: Desk, *, wait_s: float = 30.0, stop_after: int = 3) -> Requeued:
    plan = desk.operations.plan_requeue("embedding", matching=DeadLetterFilter())
    return Canary(desk.broker, CarefulRequeue(50.0, wait_s, stop_after)).requeue(plan)


def test_canary_requeues_all_when_the_cause_is_fixed(desk: Desk, redis_client: redis.Redis) -> None:
    desk.bury(*range(20))

    with worker_that_refuses(redis_client) as ran:
        done = careful(desk)

    assert (done.n_requeued, done.n_died, done.n_left, done.is_good) == (20, 0, 0, True)
    assert sorted(ran) == sorted(f"media-{number}" for number in range(20))
    assert desk.dead_letter_ids() == []


def test_canary_stops_when_the_first_dead_letter_fails_again(desk: Desk, redis_client: redis.Redis) -> None:
    desk.bury(*range(20))

    with worker_that_refuses(redis_client, "media-0") as ran:
        done = careful(desk)

    assert (done.n_requeued, done.n_died, done.n_left, done.is_good) == (1, 1, 19, False)
    assert "still broken" in done.reason
    assert ran == ["media-0"]
    assert len(desk.dead_letter_ids()) == 20  # the first one is a dead letter again


def test_canary_stops_when_later_dead_letters_fail_again(desk: Desk, redis_client: redis.Redis) -> None:
    desk.bury(*range(500))
    plan = desk.operations.plan_requeue("embedding", matching=DeadLetterFilter())

    def until_all_have_run(_: float) -> None:
        eventually(lambda: redis_client.xlen(KEYS.stream) == 0, within_s=60)

    with worker_that_refuses(redis_client, *(f"media-{number}" for number in range(1, 500))) as ran:
        done = Canary(desk.broker, CarefulRequeue(wait_s=30, stop_after=3), sleep=until_all_have_run).requeue(plan)

    # one that succeeded and three that failed
    assert (done.n_requeued, done.n_died, done.n_left, done.is_good) == (4, 3, 496, False)
    assert ran == ["media-0", "media-1", "media-2", "media-3"]


def test_canary_stops_when_no_worker_runs_the_first_dead_letter(desk: Desk) -> None:
    desk.bury(1, 2)
    desk.operations.act(desk.operations.plan_pause("embedding"), by="ada", via="test")

    done = careful(desk, wait_s=0.3)

    assert (done.n_requeued, done.n_left, done.is_good) == (1, 1, False)
    assert "its queue is paused" in done.reason
    assert len(desk.dead_letter_ids()) == 1


def test_canary_succeeds_when_dead_letters_are_gone(desk: Desk) -> None:
    desk.bury(1)
    plan = desk.operations.plan_requeue("embedding", matching=DeadLetterFilter())
    desk.broker.dead_letters("embedding.ingested").purge_all()

    assert Canary(desk.broker, CarefulRequeue()).requeue(plan) == Requeued(
        0, 0, 0, True, "all of them were already gone"
    )


@pytest.mark.parametrize(("is_first", "n_requeued", "n_left"), [(True, 0, 2), (False, 1, 1)])
def test_canary_skips_dead_letters_whose_unique_key_is_held(
    desk: Desk, redis_client: redis.Redis, is_first: bool, n_requeued: int, n_left: int
) -> None:
    desk.broker.enqueue(desk.message(9, unique_key="k"), delay=3_600_000)
    if not is_first:
        desk.bury(1)
    held = desk.bury_with_unique_key(2)
    if is_first:
        desk.bury(1)

    with worker_that_refuses(redis_client):
        done = careful(desk)

    assert (done.n_requeued, done.n_died, done.n_left, done.is_good) == (n_requeued, 0, n_left, False)
    assert "a job with the same unique key waits" in done.reason
    assert held[0] in desk.dead_letter_ids()


@pytest.mark.parametrize(("is_first", "n_requeued", "n_left"), [(True, 0, 4), (False, 3, 1)])
def test_canary_skips_dead_letters_that_are_too_large(
    desk: Desk, redis_client: redis.Redis, is_first: bool, n_requeued: int, n_left: int
) -> None:
    if is_first:
        large = desk.bury_too_large()
    desk.bury(1)
    if not is_first:
        large = desk.bury_too_large()
    desk.bury(2, 3)

    with worker_that_refuses(redis_client):
        done = careful(desk)

    assert (done.n_requeued, done.n_died, done.n_left, done.is_good) == (n_requeued, 0, n_left, False)
    assert "max_message_bytes" in done.reason
    assert large in desk.dead_letter_ids()
