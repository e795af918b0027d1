"""Jobs that a live worker holds beyond their time limit. No other check finds them: the worker keeps its lease.

A worker interrupts a job at its limit, so a job held for longer either hangs or waits in its process behind others. It
cannot wait longer than the longest limit of any actor, so a job held beyond that certainly hangs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from broker import QueueStats, RedisStreamsBroker, UndecodableEntry
from broker.keys import HANDED_BACK
from tasks.retry_policy import LIMIT_GRACE_S, LONGEST_LIMIT_MS, POLICIES, limit_ms

# Maximum number of entries that one call reads. The list may be incomplete, because operators need only some jobs to
# find the workers that hang.
MOST_READ: Final = 100
MOST_NAMED: Final = 3

_LEAST_LIMIT_S: Final = min(policy.time_limit_ms for policy in POLICIES.values()) / 1000


@dataclass(frozen=True, slots=True)
class OverdueJob:
    """A job held beyond its time limit.

    Attributes:
        held_s: time since its delivery.
        limit_s: its time limit.
    """

    entry_id: str
    actor: str | None
    holder: str
    held_s: float
    limit_s: float

    @property
    def is_certain(self) -> bool:
        """Whether the job certainly hangs, and does not merely wait behind other jobs of its process."""
        return self.held_s > self.limit_s + LONGEST_LIMIT_MS / 1000 + LIMIT_GRACE_S


def overdue_jobs(broker: RedisStreamsBroker, stats: QueueStats) -> list[OverdueJob]:
    """Return the overdue jobs of a queue, longest held first.

    Raises:
        BrokerConnectionError: Redis does not answer.
    """
    alive = {one.name for one in stats.consumers if one.is_alive and one.name != HANDED_BACK}
    if not alive or (stats.oldest_pending_idle_ms is None and not stats.in_flight):
        return []
    inspector = broker.inspector(stats.queue_name)
    found = []
    for entry in inspector.pending(MOST_READ, idle_ms=int(1000 * (_LEAST_LIMIT_S + LIMIT_GRACE_S))):
        if entry.holder not in alive:
            continue
        actor, limit_s = _actor_and_limit(broker, stats.queue_name, entry.id)
        held_s = (entry.idle_ms or 0) / 1000
        if held_s > limit_s + LIMIT_GRACE_S:
            found.append(OverdueJob(entry.id, actor, entry.holder, held_s, limit_s))
    return sorted(found, key=lambda job: -job.held_s)


def effect_of(jobs: Sequence[OverdueJob]) -> str:
    """Describe overdue jobs for an operator, in one clause."""
    first = jobs[0]
    holders = list(dict.fromkeys(job.holder for job in jobs))
    more = f" and {len(holders) - MOST_NAMED} more" if len(holders) > MOST_NAMED else ""
    what = "it hangs" if first.is_certain else "it hangs, or waits behind longer jobs"
    return (
        f"{len(jobs)} held beyond {'its' if len(jobs) == 1 else 'their'} time limit, for {first.held_s:.0f} s of "
        f"{first.limit_s:.0f} s, by {', '.join(holders[:MOST_NAMED])}{more}: {what}"
    )


def command_that_frees(queue: str, jobs: Sequence[OverdueJob]) -> str:
    """Return the command that returns the jobs to the queue for other workers."""
    return f"sploot-cluster queue rescue {queue} {' '.join(job.entry_id for job in jobs)} --even-if-alive --yes"


def _actor_and_limit(broker: RedisStreamsBroker, queue: str, entry_id: str) -> tuple[str | None, float]:
    inspector = broker.inspector(queue)
    fields = inspector.entry(entry_id)
    if fields is not None:
        try:
            message = inspector.decode(entry_id, fields)
        except UndecodableEntry:
            pass
        else:
            return message.actor_name, limit_ms(message) / 1000
    return None, LONGEST_LIMIT_MS / 1000
