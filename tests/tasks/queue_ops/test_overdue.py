"""Jobs that a live worker holds beyond their time limit are reported by every view."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import redis

from sploot_cluster.queues import QueueStatus
from tasks.contracts import CLUSTER_EMBEDDING, EMBEDDING_INGESTED, GROUP
from tasks.doctor import Finding, Installation, diagnose
from tasks.job_records import JobRecord, status_of
from tasks.observe.backlog import BACKLOG, BacklogSampler
from tasks.retry_policy import LIMIT_GRACE_S, LONGEST_LIMIT_MS, POLICIES
from tasks.settings import Settings
from tests.tasks.queue_ops.desk import KEYS, STUCK, Desk

LIMIT_S = POLICIES[CLUSTER_EMBEDDING].time_limit_ms / 1000
WITHIN_S = LIMIT_S + LIMIT_GRACE_S - 20
BEYOND_S = LIMIT_S + LIMIT_GRACE_S + 60
CERTAIN_S = LONGEST_LIMIT_MS / 1000 + BEYOND_S
ALIVE = "alive"


@pytest.fixture
def desk(redis_client: redis.Redis) -> Desk:
    return Desk(redis_client)


def hold(desk: Desk, consumer: str, *, for_s: float) -> str:
    """Let a consumer hold a job that was delivered ``for_s`` seconds ago; return its entry id."""
    (entry_id,) = desk.add(1)
    desk.deliver(consumer)
    desk.client.xclaim(KEYS.stream, GROUP, consumer, 0, [entry_id], idle=int(1000 * for_s), retrycount=1, justid=True)
    return entry_id


def live(desk: Desk) -> None:
    desk.client.zadd(KEYS.consumers, {ALIVE: desk.client.time()[0] * 1_000 + 60_000})


def status(desk: Desk) -> QueueStatus:
    (found,) = [one for one in desk.operations.queues() if one.queue == EMBEDDING_INGESTED]
    return found


def findings(desk: Desk, url: str) -> list[Finding]:
    installation = Installation(Settings(redis_url=url), os.environ, desk.client, desk.broker)
    return [one for one in diagnose(installation) if one.check == EMBEDDING_INGESTED and "time limit" in one.seen]


@pytest.mark.parametrize(("held_s", "level"), [(WITHIN_S, None), (BEYOND_S, "warning"), (CERTAIN_S, "wrong")])
def test_doctor_reports_overdue_jobs_of_live_workers(
    desk: Desk, redis_url: str, held_s: float, level: str | None
) -> None:
    entry_id = hold(desk, ALIVE, for_s=held_s)
    live(desk)

    found = findings(desk, redis_url)

    assert [one.level for one in found] == ([] if level is None else [level])
    assert all(ALIVE in one.seen and entry_id in one.hint for one in found)
    assert status(desk).overdue == len(found)


def test_status_names_holder_and_fix_of_overdue_jobs(desk: Desk) -> None:
    entry_id = hold(desk, ALIVE, for_s=CERTAIN_S)
    live(desk)

    reason = status(desk).reason

    assert "1 held beyond its time limit" in reason
    assert (
        f"by {ALIVE}: it hangs; sploot-cluster queue rescue {EMBEDDING_INGESTED} {entry_id} --even-if-alive" in reason
    )


def test_jobs_of_dead_workers_are_not_overdue(desk: Desk) -> None:
    hold(desk, STUCK, for_s=CERTAIN_S)
    live(desk)

    assert status(desk).overdue == 0


def test_rescue_plan_warns_that_excluded_jobs_hang(desk: Desk) -> None:
    hold(desk, ALIVE, for_s=CERTAIN_S)
    live(desk)

    careful = desk.operations.plan_rescue(EMBEDDING_INGESTED, idle_s=60)

    assert careful.entries == ()
    assert "--even-if-alive" in careful.warnings[0]
    assert "held beyond its time limit" in careful.warnings[1]


def test_sample_counts_overdue_jobs(desk: Desk) -> None:
    hold(desk, ALIVE, for_s=BEYOND_S)
    live(desk)

    BacklogSampler(desk.broker, desk.client).sample_pending()

    assert desk.client.hget(BACKLOG, f"{EMBEDDING_INGESTED}:overdue") == b"1"


def test_job_status_reports_a_run_beyond_its_limit(desk: Desk) -> None:
    hold(desk, ALIVE, for_s=BEYOND_S)
    live(desk)
    now = datetime.now(UTC)
    record = JobRecord("j", "running", EMBEDDING_INGESTED, CLUSTER_EMBEDDING, attempts=1, worker=ALIVE)

    def reason(runs_s: float) -> str:
        begun = replace(record, started_at=now - timedelta(seconds=runs_s))
        return status_of(begun, desk.broker.stats, now=now).reason

    assert reason(WITHIN_S) == f"attempt 1 is running in {ALIVE}"
    assert f"in {ALIVE}; its time limit is {LIMIT_S:.0f} s, so it hangs" in reason(BEYOND_S)
    assert f"rescue {EMBEDDING_INGESTED} --consumer {ALIVE} --even-if-alive" in reason(BEYOND_S)


def test_status_of_a_waiting_job_reports_an_overdue_job_of_its_queue(desk: Desk) -> None:
    hold(desk, ALIVE, for_s=CERTAIN_S)
    live(desk)
    record = JobRecord("j", "queued", EMBEDDING_INGESTED, CLUSTER_EMBEDDING)

    job = status_of(record, desk.broker.stats, now=datetime.now(UTC))

    assert "beyond any time limit" in job.reason
