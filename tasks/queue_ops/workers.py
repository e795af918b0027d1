"""The worker processes and the jobs that each one holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Final

from broker import RedisStreamsBroker
from broker.keys import HANDED_BACK
from broker.stats import ConsumerStats
from sploot_cluster.queues import HeldJob, JobProgress, QueueJob, Worker
from tasks.contracts import QUEUES
from tasks.queue_ops.listing import held_jobs
from tasks.shards import queue_of

# Maximum number of jobs to list per worker and queue, oldest first: a worker runs these, and may have more in its
# buffer.
JOBS_SHOWN: Final = 5
# Maximum number of workers whose jobs are listed.
MOST_LISTED: Final = 50
# Minimum time that a job must have run before its progress is read. Shorter jobs have nothing to report, and each read
# takes two round trips.
LONG_S: Final = 5.0
MOST_ASKED: Final = 20


def workers_of(broker: RedisStreamsBroker, *, now: datetime) -> Sequence[Worker]:
    """Return the live worker processes, then the dead ones that hold jobs.

    Reads the oldest jobs of the first 50 workers that hold any, in three round trips per worker and queue.
    """
    of_name: dict[str, dict[str, ConsumerStats]] = {}
    for part in (part for queue in QUEUES for part in broker.stats_of_shards(queue)):
        for one in part.consumers:
            if one.name != HANDED_BACK and (one.is_alive or one.pending):
                of_name.setdefault(one.name, {})[part.queue_name] = one
    order = sorted(of_name, key=lambda name: (not any(one.is_alive for one in of_name[name].values()), name))
    listed = [name for name in order if any(one.pending for one in of_name[name].values())][:MOST_LISTED]
    jobs = {name: _jobs_of(broker, name, of_name[name], now) for name in listed}
    progress = _progress_of(broker, [job for name in listed for job in jobs[name]], now)
    return [
        Worker(
            name=name,
            is_alive=any(one.is_alive for one in of_name[name].values()),
            heartbeat_age_s=_youngest(of_name[name].values()),
            queues=list(dict.fromkeys(map(queue_of, of_name[name]))),
            n_jobs=sum(one.pending for one in of_name[name].values()),
            jobs=[HeldJob(job, progress.get(job.job_id or "")) for job in jobs.get(name, ())],
        )
        for name in order
    ]


def _jobs_of(
    broker: RedisStreamsBroker, name: str, queues: dict[str, ConsumerStats], now: datetime
) -> Sequence[QueueJob]:
    return [
        job
        for queue, one in queues.items()
        if one.pending
        for job in held_jobs(broker.inspector(queue), queue, name, limit=JOBS_SHOWN, is_alive=one.is_alive, now=now)
    ]


def _progress_of(broker: RedisStreamsBroker, jobs: Sequence[QueueJob], now: datetime) -> dict[str, JobProgress]:
    """Return the progress that the longest-running jobs reported, by job id."""
    return dict(_reports(broker, sorted(jobs, key=lambda job: job.started_at or now)[:MOST_ASKED], now))


def _reports(broker: RedisStreamsBroker, jobs: Sequence[QueueJob], now: datetime) -> Iterator[tuple[str, JobProgress]]:
    for job in jobs:
        if job.job_id is None or job.started_at is None or (now - job.started_at).total_seconds() < LONG_S:
            continue
        found = broker.progress(job.queue, job.job_id)
        if found is not None:
            yield job.job_id, JobProgress(found.done, found.total, found.note, found.age_ms / 1_000)


def _youngest(consumers: Iterable[ConsumerStats]) -> float | None:
    ages = [one.heartbeat_age_ms for one in consumers if one.heartbeat_age_ms is not None]
    return min(ages) / 1_000 if ages else None
