"""Rows of the last 24 hours of the queues, for `queue history`: sums and largest values of consecutive steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from sploot_cluster.queues import History, QueueHistory


class Row(NamedTuple):
    """The activity of a queue in a few consecutive steps.

    Attributes:
        done, failed, dead: sums.
        p50_s, p95_s, waiting, oldest_s: the largest values of the steps, or None if there are none.
    """

    at: datetime
    queue: str
    done: int
    per_minute: float
    failed: int
    dead: int
    p50_s: float | None
    p95_s: float | None
    waiting: int | None
    oldest_s: float | None


def rows_of(history: History, queues: Sequence[str], n_steps: int) -> Iterator[Row]:
    """Yield the rows of these queues in order of time, leaving out those in which a queue did nothing and held no job.

    Each row begins at a multiple of ``n_steps`` steps since the epoch, and the first and the last one may be shorter.
    """
    length_s = n_steps * history.step_s
    for start_s in sorted({time - time % length_s for time in history.times}):
        steps = [at for at, time in enumerate(history.times) if start_s <= time < start_s + length_s]
        for queue in history.queues:
            if queue.queue in queues and (row := _row(queue, steps, start_s, history.step_s)) is not None:
                yield row


def starts_of(history: History) -> Sequence[tuple[datetime, int]]:
    """Return when worker processes started, and how many."""
    return [(datetime.fromtimestamp(time, UTC), n) for time, n in zip(history.times, history.starts, strict=True) if n]


def _row(queue: QueueHistory, steps: Sequence[int], start_s: int, step_s: int) -> Row | None:
    done, failed, dead = (sum(counts[at] for at in steps) for counts in (queue.done, queue.failed, queue.dead))
    waiting = _largest(queue.waiting[at] for at in steps)
    if not (done or failed or dead or waiting):
        return None
    return Row(
        at=datetime.fromtimestamp(start_s, UTC),
        queue=queue.queue,
        done=done,
        per_minute=round(done * 60 / (len(steps) * step_s), 1),
        failed=failed,
        dead=dead,
        p50_s=_largest(queue.p50_s[at] for at in steps),
        p95_s=_largest(queue.p95_s[at] for at in steps),
        waiting=None if waiting is None else int(waiting),
        oldest_s=_largest(queue.oldest_s[at] for at in steps),
    )


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
