"""Value objects for the statistics of a queue and its consumers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .keys import HANDED_BACK

# Greatest possible entry id. A stream with this last id accepts no more entries.
LAST_ID = f"{2**64 - 1}-{2**64 - 1}"


@dataclass(frozen=True, slots=True)
class ConsumerStats:
    """The statistics of one of a queue's consumers.

    Attributes:
        name: ``host:pid:birth:random``, or :data:`~broker.keys.HANDED_BACK` for the owner of handed-back entries.
        pending: the number of entries in its pending list.
        heartbeat_age_ms: the time since its last heartbeat, or None if it is known to be dead or has no heartbeat, for
            example because it was created by hand.
        is_alive: whether its heartbeat is younger than the lease.
    """

    name: str
    pending: int
    heartbeat_age_ms: int | None
    is_alive: bool


@dataclass(frozen=True, slots=True)
class QueueStats:
    """The statistics of one queue at one moment.

    Attributes:
        waiting: the number of messages that no worker has: undelivered, orphaned and in line.
        undelivered: the number of entries that were never delivered.
        in_line: the number of messages that wait for the limits of their key. They are not in the stream yet.
        in_flight: the number of the group's pending entries, as XPENDING counts them.
        oldest_pending_idle_ms: the idle time of the pending entry with the lowest id, as XPENDING shows it, or None if
            no entry is pending.
        delayed: the number of messages that are not due yet, including retries.
        orphaned: the number of delivered entries in no pending list, which the janitors requeue. Only those around the
            first 1,000 pending entries are counted.
        dead: the number of dead letters.
        oldest_age_ms: time since the oldest entry was added, in flight or not, or since the oldest message with a
            priority began to wait in line. Messages that wait for the limits of another key are not included. None if
            there is no message, or if the entry's id is ahead of the clock because a producer chose the id or the
            clock was ahead at that time.
        entries_added: the number of entries ever added to the stream, including promoted and retried ones. On
            Redis 6.2, it is the number of messages that were enqueued through this broker.
        next_due_ms: time until the next delayed message is due, 0 if it is overdue, or None if none is delayed.
        paused: whether delivery is paused.
        consumers: the consumers that have entries or a heartbeat.
        clock_ms: the time on the server's clock.
        first_id: the id of the oldest entry, or None if the stream is empty.
        last_id: the last id that the stream generated, whether or not its entry still exists.
        removed_by_others: the number of entries that something other than this broker removed from the stream, for
            example XTRIM, XDEL or XADD with MAXLEN. It is negative if the stream was created again but the counters
            were kept. On Redis 6.2, which does not count added entries, it is the number of in-flight entries whose
            removal a janitor has detected.
    """

    queue_name: str
    waiting: int
    undelivered: int
    in_line: int
    in_flight: int
    oldest_pending_idle_ms: int | None
    delayed: int
    orphaned: int
    dead: int
    oldest_age_ms: int | None
    entries_added: int
    next_due_ms: int | None
    paused: bool
    consumers: tuple[ConsumerStats, ...]
    clock_ms: int
    first_id: str | None
    last_id: str
    removed_by_others: int

    @property
    def ids_ahead_ms(self) -> int:
        """The time by which the last id is ahead of the server's clock, or 0. Later ids are always higher."""
        return max(0, int(self.last_id.partition("-")[0]) - self.clock_ms)

    @property
    def is_exhausted(self) -> bool:
        """Whether the stream has used its greatest id, so that every XADD to it fails."""
        return self.last_id == LAST_ID


def total_of(parts: Sequence[QueueStats]) -> QueueStats:
    """Return a queue's statistics from those of all its shards, which are given with shard 0 first.

    Counts are added. Of ages and of ``last_id``, the highest is taken, and of ``first_id`` and ``next_due_ms``, the
    lowest.
    """
    if len(parts) == 1:
        return parts[0]
    consumers: dict[str, ConsumerStats] = {}
    for one in (consumer for part in parts for consumer in part.consumers):
        known = consumers.get(one.name)
        consumers[one.name] = one if known is None else _together(known, one)
    first_ids = [part.first_id for part in parts if part.first_id is not None]
    return QueueStats(
        queue_name=parts[0].queue_name,
        waiting=sum(part.waiting for part in parts),
        undelivered=sum(part.undelivered for part in parts),
        in_line=sum(part.in_line for part in parts),
        in_flight=sum(part.in_flight for part in parts),
        oldest_pending_idle_ms=_of_any(max, [part.oldest_pending_idle_ms for part in parts]),
        delayed=sum(part.delayed for part in parts),
        orphaned=sum(part.orphaned for part in parts),
        dead=sum(part.dead for part in parts),
        oldest_age_ms=_of_any(max, [part.oldest_age_ms for part in parts]),
        entries_added=sum(part.entries_added for part in parts),
        next_due_ms=_of_any(min, [part.next_due_ms for part in parts]),
        paused=any(part.paused for part in parts),
        consumers=tuple(consumers.values()),
        clock_ms=max(part.clock_ms for part in parts),
        first_id=min(first_ids, key=_order, default=None),
        last_id=max((part.last_id for part in parts), key=_order),
        removed_by_others=sum(part.removed_by_others for part in parts),
    )


def _together(one: ConsumerStats, other: ConsumerStats) -> ConsumerStats:
    """Return a consumer's statistics from those for two shards that it reads."""
    age_ms = _of_any(min, [one.heartbeat_age_ms, other.heartbeat_age_ms])
    return ConsumerStats(one.name, one.pending + other.pending, age_ms, one.is_alive or other.is_alive)


def _of_any(choose: Callable[[Iterable[int]], int], values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return choose(known) if known else None


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number)


N_FACTS = 16  # number of values about the queue in the reply; the values about its consumers follow


def stats_from(answer: Sequence[int | bytes], *, queue_name: str, lease_ms: int) -> QueueStats:
    """Parse a queue's statistics from a reply of stats.lua."""
    numbers = [int(value) for value in answer[:12]]
    clock_ms, first_id, last_id, removed_by_others = answer[12:N_FACTS]
    assert isinstance(first_id, bytes)
    assert isinstance(last_id, bytes)
    length, in_flight, oldest_idle, delayed, orphaned, dead, oldest_age, added, next_due, paused, in_line, ghosts = (
        numbers
    )
    consumers = []
    for name, pending, age in zip(*(answer[at::3] for at in range(N_FACTS, N_FACTS + 3)), strict=True):
        assert isinstance(name, bytes)
        age_ms = None if int(age) < 0 else int(age)
        text = name.decode(errors="replace")
        is_alive = age_ms is not None and age_ms <= lease_ms
        if text != HANDED_BACK or int(pending):
            consumers.append(ConsumerStats(text, int(pending), age_ms, is_alive))
    # Ghosts (pending ids whose entry was deleted) stay pending until a janitor removes them. Not all are counted, so
    # the difference could be negative.
    in_stream = max(0, length - (in_flight - ghosts))
    return QueueStats(
        queue_name=queue_name,
        waiting=in_stream + in_line,
        undelivered=max(0, in_stream - orphaned),
        in_line=in_line,
        in_flight=in_flight,
        oldest_pending_idle_ms=None if oldest_idle < 0 else oldest_idle,
        delayed=delayed,
        orphaned=orphaned,
        dead=dead,
        oldest_age_ms=None if oldest_age < 0 else oldest_age,
        entries_added=added,
        next_due_ms=None if next_due < 0 else next_due,
        paused=bool(paused),
        consumers=tuple(consumers),
        clock_ms=int(clock_ms),
        first_id=first_id.decode() or None,
        last_id=last_id.decode(),
        removed_by_others=int(removed_by_others),
    )
