"""The runs of periodic jobs: when the scheduler last sent each job, and how its last run ended.

key              type  holds                                                       ends
sploot:periodic  hash  <actor>: its last run as JSON (at_ms, ms, error)            overwritten
                       <actor>:sent: when the scheduler sent it last (ms)
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

import redis

from sploot_cluster.queues import PeriodicJob
from tasks.contracts import (
    CLUSTER_MAINTENANCE,
    EXPORT_MEDIA_TOTALS,
    EXPORT_PENDING_JOBS,
    EXPORT_STREAM_LAG,
    MOVE_COLD_PETS,
)

# Time between two samples: five seconds less than the maximum age of a sample, because a sample may have to wait for a
# worker thread.
STEP: Final = timedelta(seconds=10)
MINUTE: Final = timedelta(minutes=1)

RUNS: Final = "sploot:periodic"
EVERY: Final[Mapping[str, timedelta]] = {
    EXPORT_PENDING_JOBS: STEP,
    EXPORT_STREAM_LAG: STEP,
    EXPORT_MEDIA_TOTALS: MINUTE,
    MOVE_COLD_PETS: MINUTE,
}
# Jobs that are sent only if their feature is configured; otherwise they are not listed.
OPTIONAL: Final = (MOVE_COLD_PETS,)
# A scheduler that has sent nothing for this long counts as stopped, so no next run is expected.
SILENT: Final = timedelta(minutes=2)


def record_sending(client: redis.Redis, actor_name: str, sent_ms: int) -> None:
    """Record when the scheduler sent a periodic job. Errors propagate."""
    client.hset(RUNS, f"{actor_name}:sent", sent_ms)


@contextmanager
def recording_run(client: redis.Redis, actor_name: str) -> Iterator[None]:
    """Record a run of a periodic job with its outcome, in one round trip. Errors propagate."""
    at_ms, started = int(time.time() * 1_000), time.monotonic()

    def record(error: str | None) -> None:
        ms = round(1_000 * (time.monotonic() - started))
        client.hset(RUNS, actor_name, json.dumps({"at_ms": at_ms, "ms": ms, "error": error}))

    try:
        yield
    except BaseException as error:
        with suppress(redis.RedisError):
            record(f"{type(error).__name__}: {error}"[:500])
        raise
    record(None)


def periodic_jobs(client: redis.Redis, *, now: datetime) -> Sequence[PeriodicJob]:
    """Return the periodic jobs with their last and next runs. Errors from redis-py propagate."""
    stored = {name.decode(): text for name, text in cast("dict[bytes, bytes]", client.hgetall(RUNS)).items()}
    sent = [actor for actor in EVERY if actor not in OPTIONAL or f"{actor}:sent" in stored]
    return [_periodic_job(actor, EVERY[actor], stored, now) for actor in sent]


def _periodic_job(actor: str, every: timedelta, stored: Mapping[str, bytes], now: datetime) -> PeriodicJob:
    sent_at = _time_of(stored.get(f"{actor}:sent"))
    run: dict[str, Any] = json.loads(stored.get(actor, b"{}"))
    next_at = None
    if sent_at is not None and now - sent_at < SILENT:
        next_at = sent_at + every * max(1, (now - sent_at) // every + 1)
    return PeriodicJob(
        actor=actor,
        queue=CLUSTER_MAINTENANCE,
        every_s=every.seconds,
        last_sent_at=sent_at,
        next_at=next_at,
        last_run_at=_time_of(run.get("at_ms")),
        outcome=None if not run else "failed" if run["error"] else "succeeded",
        duration_s=run["ms"] / 1_000 if run else None,
        error=run.get("error"),
    )


def _time_of(ms: bytes | int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(int(ms) / 1_000, tz=UTC)
