"""Pages of the unfinished jobs of a queue: jobs that wait, jobs that workers hold, and jobs that are not due."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

import redis

from broker import Inspector, PendingEntry, RedisStreamsBroker
from broker.keys import QueueKeys
from sploot_cluster.queues import JobsState, Page, QueueJob
from tasks.contracts import CLUSTER_EMBEDDING, NAMESPACE
from tasks.queue_ops.entries import EntryFacts, added_at, facts_of
from tasks.queue_ops.shards import page_of_all

# Maximum number of entries to read in full in one round trip.
READ_PAGE: Final = 100


def jobs_of(
    broker: RedisStreamsBroker,
    client: redis.Redis,
    shards: Sequence[str],
    state: JobsState,
    *,
    limit: int,
    now: datetime,
    cursor: str | None = None,
) -> Page[QueueJob]:
    """Return a page of jobs: waiting ones in the order of delivery, running ones oldest first, others by due time.

    Args:
        shards: the shards of one queue.
        cursor: the id of the last entry of the previous page; for delayed jobs, ``<number of jobs before>-0``.
    """

    def page_of(shard: str) -> Page[QueueJob]:
        inspector = broker.inspector(shard)
        if state == "waiting":
            return _waiting(inspector, shard, limit, cursor)
        alive = {consumer.name for consumer in broker.stats(shard).consumers if consumer.is_alive}
        return _running(inspector, shard, limit, cursor, alive=alive, now=now)

    if state != "delayed":
        return page_of_all([page_of(shard) for shard in shards], limit, id_of=lambda job: job.entry_id)
    if len(shards) == 1:
        return _delayed(client, shards[0], limit, cursor)
    start = _n_before(cursor)
    jobs = [job for shard in shards for job in _delayed(client, shard, start + limit + 1, None).records]
    page = sorted(jobs, key=lambda job: job.due_at or now)[start : start + limit]
    return Page(page, f"{start + limit}-0" if len(jobs) > start + limit else None)


def _waiting(inspector: Inspector, queue: str, limit: int, cursor: str | None) -> Page[QueueJob]:
    found = inspector.waiting(limit + 1, after=cursor)
    jobs = [_job(queue, "waiting", facts_of(fields), entry_id) for entry_id, fields in found[:limit]]
    if not jobs:
        return Page(jobs)
    last = found[len(jobs) - 1][0]
    # a page of large entries may be shorter than the limit
    has_more = len(found) > limit or bool(inspector.waiting(1, after=last))
    return Page(jobs, last if has_more else None)


def _running(
    inspector: Inspector, queue: str, limit: int, cursor: str | None, *, alive: set[str], now: datetime
) -> Page[QueueJob]:
    found = inspector.pending(limit + 1, after=cursor)
    page = found[:limit]
    return Page(_held(inspector, queue, page, alive, now), page[-1].id if len(found) > limit else None)


def held_jobs(
    inspector: Inspector, queue: str, worker: str, *, limit: int, is_alive: bool, now: datetime
) -> Sequence[QueueJob]:
    """Return the jobs that a worker holds, oldest first."""
    return _held(inspector, queue, inspector.pending(limit, consumer=worker), {worker} if is_alive else set(), now)


def _held(
    inspector: Inspector, queue: str, page: Sequence[PendingEntry], alive: set[str], now: datetime
) -> list[QueueJob]:
    jobs = []
    for entry, facts in zip(page, _facts(inspector, [entry.id for entry in page]), strict=True):
        is_handed_back = entry.is_handed_back
        held_ms = entry.idle_ms or 0
        jobs.append(
            _job(
                queue,
                "waiting" if is_handed_back else "running",
                facts or EntryFacts("unreadable", 0),
                entry.id,
                started_at=None if is_handed_back else now - timedelta(milliseconds=held_ms),
                worker=None if is_handed_back else entry.holder,
                is_worker_alive=None if is_handed_back else entry.holder in alive,
                deliveries=entry.deliveries,
            )
        )
    return jobs


def _delayed(client: redis.Redis, queue: str, limit: int, cursor: str | None) -> Page[QueueJob]:
    keys = QueueKeys(NAMESPACE, queue)
    start = _n_before(cursor)
    found = cast("list[tuple[bytes, float]]", client.zrange(keys.delayed, start, start + limit, withscores=True))
    jobs = delayed_jobs(client, queue, found[:limit])
    return Page(jobs, f"{start + limit}-0" if len(found) > limit else None)


def delayed_jobs(client: redis.Redis, queue: str, due: Sequence[tuple[bytes, float]]) -> list[QueueJob]:
    """Return delayed and retrying jobs, without those that were promoted meanwhile.

    Args:
        due: their names in the sorted set of delayed messages, with the time in ms at which each is due.
    """
    names = [name for name, _ in due]
    stored = cast(
        "list[bytes | None]", client.hmget(QueueKeys(NAMESPACE, queue).delayed_messages, names) if names else []
    )
    jobs = []
    for (_, due_ms), text in zip(due, stored, strict=True):
        if text is None:  # the job was promoted between the two reads
            continue
        options = _options(text)
        retries = options.get("retries")
        due_at = datetime.fromtimestamp(due_ms / 1000, tz=UTC)
        error = str(options.get("traceback") or "").strip().rpartition("\n")[2][:500] or None
        jobs.append(
            _job(
                queue,
                "retrying" if retries else "delayed",
                facts_of({b"message": text}),
                None,
                due_at=due_at,
                attempts=retries if isinstance(retries, int) else 0,
                error=error if retries else None,
            )
        )
    return jobs


def _n_before(cursor: str | None) -> int:
    return int((cursor or "0").partition("-")[0])


def _options(text: bytes) -> dict[str, Any]:
    try:
        options = json.loads(text).get("options")
    except (ValueError, AttributeError):
        return {}
    return options if isinstance(options, dict) else {}


def _facts(inspector: Inspector, entry_ids: Sequence[str]) -> Iterator[EntryFacts | None]:
    for start in range(0, len(entry_ids), READ_PAGE):
        for fields in inspector.entries(entry_ids[start : start + READ_PAGE]):
            yield None if fields is None else facts_of(fields)


def _job(queue: str, state: Any, facts: EntryFacts, entry_id: str | None, **more: Any) -> QueueJob:
    return QueueJob(
        queue=queue,
        state=state,
        job_id=facts.message_id,
        entry_id=entry_id,
        # a flat event does not name its actor, but its queue has only one actor
        actor=facts.actor or (CLUSTER_EMBEDDING if facts.form == "event" else None),
        pet_id=facts.pet_id,
        media_id=facts.media_id,
        added_at=None if entry_id is None else added_at(entry_id),
        **more,
    )
