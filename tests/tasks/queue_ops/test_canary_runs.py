"""Canaries in the background: progress, the ways in which they end, and their bounds."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import redis

from sploot_cluster.queues import CanaryRun, CarefulRequeue, DeadLetterFilter, Plan
from tasks.queue_ops.canary_runs import CANARIES, MOST_AT_ONCE
from tests.support import eventually, refusal
from tests.tasks.queue_ops.desk import Desk, worker_that_refuses

FAST = CarefulRequeue(per_s=100.0, wait_s=30.0, stop_after=2)


@pytest.fixture
def desk(redis_client: redis.Redis) -> Iterator[Desk]:
    desk = Desk(redis_client)
    yield desk
    desk.operations.close()


def plan_of_all(desk: Desk) -> Plan:
    return desk.operations.plan_requeue("embedding", matching=DeadLetterFilter())


def start(desk: Desk, how: CarefulRequeue = FAST) -> CanaryRun:
    return desk.operations.start_canary(plan_of_all(desk), how, by="ada", via="test", note="INC-7")


def ended(desk: Desk) -> CanaryRun:
    """Wait until the newest canary has ended, and return it."""

    def look() -> CanaryRun | None:
        run = desk.operations.canaries()[0]
        return None if run.state == "running" else run

    run = eventually(look, within_s=60)
    assert run is not None
    return run


def test_canary_runs_in_the_background_and_is_audited(desk: Desk, redis_client: redis.Redis) -> None:
    desk.bury(*range(5))

    with worker_that_refuses(redis_client):
        begun = start(desk)
        run = ended(desk)

    assert (begun.state, begun.n_planned, begun.by) == ("running", 5, "ada")
    assert (run.plan_id, run.state, run.n_requeued, run.n_died) == (begun.plan_id, "succeeded", 5, 0)
    assert run.reason == "5 requeued, none failed again"
    (record,) = desk.operations.audit().records
    assert (record.plan_id, record.state, record.note, record.n_done) == (run.plan_id, "done", "INC-7", 5)


def test_canary_stops_if_its_first_job_fails_again(desk: Desk, redis_client: redis.Redis) -> None:
    desk.bury(*range(5))

    with worker_that_refuses(redis_client, "media-0"):
        start(desk)
        run = ended(desk)

    assert (run.state, run.n_requeued) == ("stopped", 1)
    assert "the first one failed again" in run.reason
    assert len(desk.dead_letter_ids()) == 5


def test_canary_is_stopped_on_request(desk: Desk) -> None:
    desk.bury(*range(5))
    begun = start(desk)  # no worker runs its first job

    other_server = Desk(desk.client).operations
    assert other_server.stop_canary(begun.plan_id) is not None
    run = ended(desk)

    assert (run.state, run.n_requeued) == ("stopped", 1)
    assert run.reason.startswith("an operator stopped it")
    assert len(desk.dead_letter_ids()) == 4
    assert other_server.stop_canary("p-unknown") is None


def test_canary_stops_with_its_server(desk: Desk) -> None:
    desk.bury(1, 2)
    start(desk)

    desk.operations.close()

    run = ended(desk)
    assert run.state == "stopped"
    assert run.reason.startswith("the server shuts down")


def test_canary_of_a_lost_server_is_interrupted(desk: Desk) -> None:
    desk.bury(1, 2)
    begun = start(desk)
    desk.operations.close()
    ended(desk)
    stored = json.loads(desk.client.hget(CANARIES, begun.plan_id))
    stored |= {"state": "running", "changed_at": "2026-11-30T12:00:00+00:00"}
    desk.client.hset(CANARIES, begun.plan_id, json.dumps(stored))

    (run,) = desk.operations.canaries()

    assert run.state == "interrupted"
    assert "still a dead letter" in run.reason


def test_canary_is_refused_for_a_pause_and_if_too_many_are_running(desk: Desk) -> None:
    pause = desk.operations.plan_pause("embedding")
    plans = [desk.operations.plan_requeue("embedding", dead_letter_ids=[one]) for one in desk.bury(*range(5))]
    assert len(plans) == MOST_AT_ONCE + 1

    def begin(plan: Plan) -> CanaryRun:
        return desk.operations.start_canary(plan, FAST, by="ada", via="test")

    for plan in plans[:-1]:
        begin(plan)

    assert refusal(lambda: begin(plans[-1])).field == "plan_id"
    assert refusal(lambda: begin(pause)).field == "canary"
