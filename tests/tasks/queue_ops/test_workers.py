"""The list of workers: idle and dead ones, what each does, and the progress of its jobs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from dramatiq import Worker

from broker.keys import QueueKeys
from tasks.contracts import CLUSTER_FEEDBACK, EMBEDDING_INGESTED, NAMESPACE
from tasks.queue_ops import workers as workers_module
from tests.support import eventually
from tests.tasks.queue_ops.desk import KEYS, STUCK, Desk


@pytest.fixture
def desk(redis_client: redis.Redis) -> Desk:
    return Desk(redis_client)


@pytest.fixture
def idle(desk: Desk) -> Iterator[None]:
    """A live worker of two queues, without jobs."""
    for queue in (EMBEDDING_INGESTED, CLUSTER_FEEDBACK):
        desk.broker.declare_queue(queue)
    worker = Worker(desk.broker, worker_timeout=50, worker_threads=1)
    worker.start()
    yield
    worker.stop()
    desk.broker.close()


def test_idle_worker_is_listed_as_one_process_with_all_its_queues(desk: Desk, idle: None) -> None:
    (worker,) = eventually(lambda: [one for one in desk.operations.workers() if len(one.queues) == 2])

    assert worker.is_alive
    assert (worker.n_jobs, list(worker.jobs)) == (0, [])
    assert list(worker.queues) == [EMBEDDING_INGESTED, CLUSTER_FEEDBACK]
    assert worker.heartbeat_age_s is not None


def test_dead_worker_is_listed_with_its_oldest_jobs(desk: Desk) -> None:
    desk.add(*range(workers_module.JOBS_SHOWN + 2), pet_id=42)
    desk.deliver()

    (worker,) = desk.operations.workers()

    assert (worker.name, worker.is_alive, worker.heartbeat_age_s) == (STUCK, False, None)
    assert worker.n_jobs == workers_module.JOBS_SHOWN + 2
    assert [held.job.media_id for held in worker.jobs] == [f"media-{n}" for n in range(workers_module.JOBS_SHOWN)]
    assert {(held.job.worker, held.job.is_worker_alive, held.progress) for held in worker.jobs} == {
        (STUCK, False, None)
    }


def test_handed_back_jobs_belong_to_no_worker(desk: Desk) -> None:
    desk.add(1)
    desk.deliver()
    desk.operations.act(desk.operations.plan_rescue("embedding", consumer=STUCK), by="test", via="test")

    assert list(desk.operations.workers()) == []


def test_long_job_is_listed_with_its_progress(desk: Desk) -> None:
    (entry,) = desk.add(1)
    desk.deliver()
    (held,) = desk.operations.workers()[0].jobs
    # as if it had been delivered a minute ago
    desk.client.xclaim(KEYS.stream, "cluster-workers", STUCK, 0, [entry], idle=60_000, justid=True)
    progress = QueueKeys(NAMESPACE, EMBEDDING_INGESTED).progress(str(held.job.job_id))
    desk.client.set(progress, '[3, 4, "items"]', px=3_600_000)

    (worker,) = desk.operations.workers()

    (held,) = worker.jobs
    assert held.progress is not None
    assert (held.progress.done, held.progress.total, held.progress.note) == (3, 4, "items")
