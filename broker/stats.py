"""What a queue holds, as a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .keys import HANDED_BACK


@dataclass(frozen=True, slots=True)
class ConsumerStats:
    """One consumer of a queue.

    Attributes:
        name: ``host:pid:birth:random``; :data:`~broker.keys.HANDED_BACK` holds what was given back.
        pending: entries in its pending list.
        heartbeat_age_ms: since its last heartbeat; None for one that has none, as a consumer made by hand, or that is
            known to be dead.
        is_alive: whether its heartbeat is younger than the lease.
    """

    name: str
    pending: int
    heartbeat_age_ms: int | None
    is_alive: bool


@dataclass(frozen=True, slots=True)
class QueueStats:
    """One queue at one moment.

    Attributes:
        waiting: messages that nobody works on: undelivered, orphaned and in line.
        undelivered: entries that were never delivered.
        in_line: messages that wait for another one of their ordering key; they are not in the stream yet.
        in_flight: pending entries of the group, as XPENDING counts them.
        oldest_pending_idle_ms: idle time of the pending entry with the lowest id, as XPENDING shows it, or None.
        delayed: messages that are not due yet, retries included.
        orphaned: delivered entries in nobody's pending list; the janitors put them back to work. Counted among the
            first 1,000 pending entries.
        dead: dead letters.
        oldest_age_ms: since the oldest entry was added, in flight or not; None for an empty stream.
        entries_added: entries ever added to the stream, promoted and retried ones included; on Redis 6.2 messages
            enqueued through this broker.
        next_due_ms: in how many ms the next delayed message is due, 0 when it is overdue; None without one.
        paused: whether delivery is paused.
        consumers: with entries or a heartbeat.
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


def stats_from(answer: Sequence[int | bytes], *, queue_name: str, lease_ms: int) -> QueueStats:
    """From the answer of stats.lua."""
    numbers = [int(value) for value in answer[:12]]
    length, in_flight, oldest_idle, delayed, orphaned, dead, oldest_age, added, next_due, paused, in_line, ghosts = (
        numbers
    )
    consumers = []
    for name, pending, age in zip(answer[12::3], answer[13::3], answer[14::3], strict=True):
        assert isinstance(name, bytes)
        age_ms = None if int(age) < 0 else int(age)
        text = name.decode(errors="replace")
        is_alive = age_ms is not None and age_ms <= lease_ms
        if text != HANDED_BACK or int(pending):
            consumers.append(ConsumerStats(text, int(pending), age_ms, is_alive))
    # ids whose entry was deleted by hand stay pending until a janitor purges them; those beyond the ids that were
    # looked at could make it negative
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
    )
