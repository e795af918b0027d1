"""The status of a job while it waits, runs, fails and ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import dramatiq
import pytest
import redis
from dramatiq.middleware import Retries
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker import Cancelled, RedisStreamsBroker
from sploot_cluster.jobs import JobStage, JobState, JobStatus
from tasks.client import ClusterTasks
from tasks.contracts import CLUSTER_FEEDBACK, CLUSTER_RECLUSTER, GROUP
from tasks.job_records import RECORD_TTL_S, How, JobOwner, JobRecords, TrackJobs, answer, refuse, stage
from tests.support import eventually

UNDO: Final = JobOwner(CLUSTER_FEEDBACK, "undo_feedback", 42)


@pytest.fixture
def tasks(redis_client: redis.Redis) -> Iterator[ClusterTasks]:
    with ClusterTasks(client=redis_client) as tasks:
        yield tasks


@pytest.fixture
def records(redis_client: redis.Redis) -> JobRecords:
    return JobRecords(redis_client)


@contextmanager
def working(
    client: redis.Redis, run: Callable[..., None], *, max_retries: int = 0, min_backoff: int = 1
) -> Iterator[RedisStreamsBroker]:
    """Run a worker whose ``undo_feedback`` is this function."""
    broker = RedisStreamsBroker(client=client, group=GROUP, middleware=[TrackJobs(JobRecords(client)), Retries()])
    dramatiq.actor(
        actor_name="undo_feedback",
        queue_name=CLUSTER_FEEDBACK,
        broker=broker,
        max_retries=max_retries,
        min_backoff=min_backoff,
    )(run)
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=50)
    worker.start()
    try:
        yield broker
    finally:
        worker.stop()
        broker.close()


def status(tasks: ClusterTasks, job_id: str) -> JobStatus:
    found = tasks.job(job_id)
    assert found is not None
    return found


def reaches(tasks: ClusterTasks, job_id: str, state: JobState) -> JobStatus:
    """Wait until the job has this state, and return its status."""
    eventually(lambda: status(tasks, job_id).state == state)
    return status(tasks, job_id)


def test_status_reports_that_no_worker_takes_the_job(tasks: ClusterTasks) -> None:
    job = tasks.undo(42, 17)

    job_status = status(tasks, job.job_id)

    assert (job_status.state, job_status.attempts, job_status.pet_id, job_status.actor) == (
        "queued",
        0,
        42,
        "undo_feedback",
    )
    assert job_status.reason == "no worker takes jobs of queue cluster.feedback; start one: sploot-cluster worker"
    assert job_status.enqueued_at is not None
    assert abs(job_status.enqueued_at - datetime.now(UTC)) < timedelta(minutes=1)


def test_status_reports_a_paused_queue(tasks: ClusterTasks, redis_client: redis.Redis) -> None:
    broker = RedisStreamsBroker(client=redis_client, group=GROUP, middleware=[])
    broker.pause(CLUSTER_FEEDBACK)

    job_status = status(tasks, tasks.undo(42, 17).job_id)

    assert job_status.reason.startswith("queue cluster.feedback is paused")
    broker.close()


def test_refused_job_has_its_reason_and_is_no_longer_listed_as_unfinished(
    tasks: ClusterTasks, redis_client: redis.Redis
) -> None:
    job = tasks.undo(42, 17)
    tasks.undo(43, 17)
    waiting = [status.job_id for status in tasks.unfinished(42)]

    with working(redis_client, lambda **_: refuse("revision 17 is already undone; undo its undo")):
        refused = reaches(tasks, job.job_id, "refused")

    assert refused.reason == "revision 17 is already undone; undo its undo; nothing was changed"
    assert refused.result is None
    assert (waiting, tasks.unfinished(42)) == ([job.job_id], [])


def test_status_reports_a_run_and_its_result(tasks: ClusterTasks, redis_client: redis.Redis) -> None:
    may_end = threading.Event()

    def undo(**_: Any) -> None:
        may_end.wait(10)
        answer(lambda: {"revision": 18})

    with working(redis_client, undo):
        job, behind = tasks.undo(42, 17), tasks.undo(42, 16)
        running = reaches(tasks, job.job_id, "running")
        waiting = status(tasks, behind.job_id)
        may_end.set()
        done = reaches(tasks, job.job_id, "succeeded")

    assert (running.attempts, running.finished_at) == (1, None)
    assert running.reason.startswith("attempt 1 is running in ")
    assert waiting.state == "queued"
    assert waiting.reason.endswith("are with workers")
    assert done.result == {"revision": 18}
    assert done.started_at is not None
    assert done.finished_at is not None
    assert done.started_at <= done.finished_at


def test_status_reports_the_stage_of_the_running_attempt_only(tasks: ClusterTasks, redis_client: redis.Redis) -> None:
    runs, goes_on = threading.Semaphore(0), threading.Semaphore(0)

    def undo(**_: Any) -> None:
        if not runs.acquire(blocking=False):  # the second attempt reports no stage
            stage(1, 2, "computes the density of 26,000 items")
        goes_on.acquire()
        if status(tasks, job.job_id).attempts == 1:
            raise RuntimeError("no luck")

    job = tasks.undo(42, 17)
    with working(redis_client, undo, max_retries=1):
        eventually(lambda: status(tasks, job.job_id).stage)
        first = status(tasks, job.job_id)
        runs.release()
        goes_on.release()
        eventually(lambda: status(tasks, job.job_id).attempts == 2 or None)
        second = status(tasks, job.job_id)
        goes_on.release()
        ended = reaches(tasks, job.job_id, "succeeded")

    assert first.stage == JobStage(1, 2, "computes the density of 26,000 items")
    assert first.reason.endswith(": it computes the density of 26,000 items")
    assert (second.state, second.stage, ended.stage) == ("running", None, None)


def test_status_reports_a_failed_attempt_and_the_time_of_the_next(
    tasks: ClusterTasks, redis_client: redis.Redis
) -> None:
    def undo(**_: Any) -> None:
        raise RuntimeError("pet 42 is busy")

    with working(redis_client, undo, max_retries=3, min_backoff=60_000):
        job_status = reaches(tasks, tasks.undo(42, 17).job_id, "retrying")

    assert job_status.attempts == 1
    assert job_status.reason.startswith("attempt 1 failed: RuntimeError: pet 42 is busy; next attempt at 2")
    (failure,) = job_status.failures
    assert (failure.attempt, failure.error) == (1, "RuntimeError: pet 42 is busy")
    assert abs(failure.failed_at - datetime.now(UTC)) < timedelta(minutes=2)
    assert job_status.due_at is not None
    assert job_status.due_at > datetime.now(UTC)


def test_failed_job_becomes_dead_and_shows_its_error(tasks: ClusterTasks, redis_client: redis.Redis) -> None:
    def undo(**_: Any) -> None:
        raise RuntimeError("no such revision")

    with working(redis_client, undo, max_retries=1) as broker:
        job_status = reaches(tasks, tasks.undo(42, 17).job_id, "dead")
        dead_letters = broker.dead_letters(CLUSTER_FEEDBACK).list()

    assert job_status.attempts == 2
    assert job_status.reason == "RuntimeError: no such revision"
    assert job_status.finished_at == dead_letters[0].died_at


def test_cancelled_job_that_waited_is_shown_as_cancelled(tasks: ClusterTasks) -> None:
    job, other = tasks.undo(42, 17), tasks.undo(42, 18)

    assert tasks.cancel(job.job_id) == "cancelled"
    assert tasks.cancel(job.job_id) == "not-found"

    job_status = status(tasks, job.job_id)
    assert (job_status.state, job_status.reason) == ("cancelled", "was cancelled")
    assert job_status.finished_at is not None
    assert status(tasks, other.job_id).state == "queued"


def test_cancelled_job_that_ran_is_shown_as_cancelled(tasks: ClusterTasks, redis_client: redis.Redis) -> None:
    interrupted = threading.Event()

    def undo(**_: Any) -> None:
        try:
            while True:  # in short steps, because an interrupt cannot end a wait
                threading.Event().wait(0.01)
        except Cancelled:
            interrupted.set()
            raise

    with working(redis_client, undo, max_retries=3):
        job = tasks.undo(42, 17)
        reaches(tasks, job.job_id, "running")
        assert tasks.cancel(job.job_id) == "requested"
        job_status = reaches(tasks, job.job_id, "cancelled")

    assert interrupted.is_set()
    assert job_status.attempts == 1


def test_cancel_finds_a_job_without_a_record_in_any_queue(tasks: ClusterTasks, redis_client: redis.Redis) -> None:
    job = tasks.recluster(42)
    redis_client.delete(f"sploot:{{jobs}}:record:{job.job_id}")

    assert tasks.cancel(job.job_id) == "cancelled"
    assert tasks.cancel("no-such-job") == "not-found"
    # the unique key of the job is free again
    assert not tasks.recluster(42).coalesced


def test_job_of_an_unknown_actor_has_the_state_dead(tasks: ClusterTasks, redis_client: redis.Redis) -> None:
    with working(redis_client, lambda **_: None):
        job_status = reaches(tasks, tasks.merge(42, [3, 7]).job_id, "dead")

    assert "merge_clusters" in job_status.reason


def test_job_of_a_dead_worker_is_not_shown_as_running(tasks: ClusterTasks, records: JobRecords) -> None:
    job = tasks.undo(42, 17)
    records.write(job.job_id, UNDO, state="running", how="start", worker="pod-1:7:0:dead")

    job_status = status(tasks, job.job_id)

    assert job_status.state == "queued"
    assert job_status.reason.startswith("its worker pod-1:7:0:dead died; no worker takes jobs")


def test_delay_in_the_past_is_not_reported_as_the_reason_for_waiting(records: JobRecords, tasks: ClusterTasks) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    recluster = JobOwner(CLUSTER_RECLUSTER, "recluster_pet", 42)
    records.write("a", recluster, state="delayed", due_at=past)
    records.write("b", recluster, state="retrying", due_at=past, error="E: x")

    assert status(tasks, "a").state == "queued"
    assert status(tasks, "a").due_at is None
    assert status(tasks, "b").reason.startswith("attempt 0 failed: E: x; no worker takes jobs")


def test_late_failure_does_not_revert_a_success(records: JobRecords, redis_client: redis.Redis) -> None:
    records.write("a", UNDO, state="succeeded")

    records.write("a", UNDO, state="retrying", error="RevisionConflict: pet 42 moved")
    records.write("a", UNDO, state="dead", how="known", error="RevisionConflict: pet 42 moved")

    record = records.find("a")
    assert record is not None
    assert (record.state, record.error) == ("succeeded", None)


def test_reused_job_id_starts_a_new_record(records: JobRecords) -> None:
    records.write("a", UNDO, state="succeeded", result={"revision": 1})

    records.write("a", UNDO, state="queued", how="new")

    record = records.find("a")
    assert record is not None
    assert (record.state, record.result) == ("queued", None)


def test_untracked_message_has_no_record(redis_client: redis.Redis) -> None:
    ran = threading.Event()

    with working(redis_client, lambda **_: ran.set()) as broker:
        broker.get_actor("undo_feedback").send(pet_id=42, revision=17)
        eventually(ran.is_set)
        broker.join(CLUSTER_FEEDBACK, timeout=10_000)

    assert list(redis_client.scan_iter("sploot:{jobs}:*")) == []


def test_tracked_message_of_an_actor_has_a_record(tasks: ClusterTasks, redis_client: redis.Redis) -> None:
    with working(redis_client, lambda **_: None) as broker:
        message = broker.get_actor("undo_feedback").send_with_options(kwargs={"pet_id": 42}, delay=60_000, tracked=True)
        job_status = status(tasks, message.message_id)

    assert (job_status.state, job_status.pet_id) == ("delayed", 42)


def test_job_runs_when_its_record_cannot_be_written(redis_client: redis.Redis) -> None:
    ran = threading.Event()
    unreachable = redis.Redis(port=1, retry=Retry(NoBackoff(), 0))
    broker = RedisStreamsBroker(client=redis_client, group=GROUP, middleware=[TrackJobs(JobRecords(unreachable))])
    actor = dramatiq.actor(actor_name="a", queue_name="q", broker=broker)(ran.set)
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=50)
    worker.start()

    actor.send_with_options(tracked=True)

    eventually(ran.is_set)
    broker.join("q", timeout=10_000)
    worker.stop()
    broker.close()


class RefusingRecords(JobRecords):
    """Records that cannot be written for a while."""

    is_away = False

    def write(self, job_id: str, owner: JobOwner, *, state: JobState, how: How = "change", **facts: object) -> None:
        if self.is_away:
            raise redis.ConnectionError("away")
        super().write(job_id, owner, state=state, how=how, **facts)


@pytest.mark.parametrize("ends", ["another job", "the worker stops"])
def test_final_record_that_could_not_be_written_is_written_later(
    redis_client: redis.Redis, tasks: ClusterTasks, ends: str
) -> None:
    records = RefusingRecords(redis_client)

    def undo(revision: int, **_: Any) -> None:
        records.is_away = revision < 3
        if revision == 2:
            refuse("nothing to undo")

    broker = RedisStreamsBroker(client=redis_client, group=GROUP, middleware=[TrackJobs(records)])
    dramatiq.actor(actor_name="undo_feedback", queue_name=CLUSTER_FEEDBACK, broker=broker)(undo)
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=50)
    worker.start()
    jobs = [tasks.undo(42, revision) for revision in (1, 2)]
    broker.join(CLUSTER_FEEDBACK, timeout=20_000)
    behind = [tasks.job(job.job_id) for job in jobs]
    if ends == "another job":
        # this message is not tracked
        broker.enqueue(dramatiq.Message(CLUSTER_FEEDBACK, "undo_feedback", (), {"revision": 3}, {}))
        broker.join(CLUSTER_FEEDBACK, timeout=20_000)
    records.is_away = False
    worker.stop()
    broker.close()

    after = [tasks.job(job.job_id) for job in jobs]
    assert [status and status.state for status in behind] == ["running", "queued"]
    assert [status and status.state for status in after] == ["succeeded", "refused"]


@pytest.mark.parametrize(
    "forged",
    [
        JobOwner("embedding.ingested", "cluster_embedding", 42),
        JobOwner(CLUSTER_FEEDBACK, "merge_clusters", 42),
        JobOwner(CLUSTER_FEEDBACK, "undo_feedback", 43),
        JobOwner(CLUSTER_FEEDBACK, "undo_feedback", None),
    ],
)
@pytest.mark.parametrize("how", ["start", "known", "change"])
def test_record_ignores_jobs_of_another_queue_actor_or_pet(
    records: JobRecords, tasks: ClusterTasks, forged: JobOwner, how: How
) -> None:
    job = tasks.undo(42, 17)
    before = records.find(job.job_id)

    records.write(job.job_id, forged, state="succeeded", how=how)

    assert records.find(job.job_id) == before
    assert records.ids_of(43) == []
    assert before is not None
    assert before.state == "queued"


def test_message_with_the_id_of_another_job_does_not_change_the_record(
    tasks: ClusterTasks, redis_client: redis.Redis
) -> None:
    job = tasks.merge(42, [3, 7])
    ran = threading.Event()

    with working(redis_client, lambda **_: ran.set()) as broker:
        reaches(tasks, job.job_id, "dead")  # this worker does not have the actor
        forged = broker.get_actor("undo_feedback").message_with_options(kwargs={"pet_id": 42}, tracked=True)
        forged = forged.copy(message_id=job.job_id)
        redis_client.xadd("streams:cluster.feedback", {"message": forged.encode()})
        eventually(ran.is_set)
        broker.join(CLUSTER_FEEDBACK, timeout=10_000)
        job_status = status(tasks, job.job_id)

    assert (job_status.state, job_status.actor) == ("dead", "merge_clusters")


def test_run_of_a_job_without_a_record_does_not_create_a_record(records: JobRecords) -> None:
    for how in ("start", "known"):
        records.write("nobody-s", UNDO, state="running", how=how)

    assert records.find("nobody-s") is None
    assert records.ids_of(42) == []


def test_records_of_a_pet_are_listed_until_a_day_after_their_last_change(
    records: JobRecords, redis_client: redis.Redis
) -> None:
    for job_id in ("expired", "changed", "new"):
        records.write(job_id, UNDO, state="queued", how="new")
    of_pet, now = "sploot:{jobs}:pet:42", redis_client.time()[0]
    redis_client.zadd(of_pet, {"expired": now - RECORD_TTL_S - 1, "changed": now - RECORD_TTL_S - 1})

    records.write("changed", UNDO, state="running", how="start")

    assert sorted(records.ids_of(42)) == ["changed", "new"]
    assert RECORD_TTL_S - 60 < redis_client.ttl(of_pet) <= RECORD_TTL_S


def test_deleted_record_is_no_longer_listed(records: JobRecords, redis_client: redis.Redis) -> None:
    records.write("a", UNDO, state="queued", how="new")

    records.forget(42, ["a"])

    assert records.find("a") is None
    assert records.ids_of(42) == []
