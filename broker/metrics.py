"""Prometheus metrics for queues: the values of ``stats`` and ``counters`` as exposition text.

    dramatiq_streams_<what>{queue}                 gauges with current values, from ``stats``
    dramatiq_streams_<event>_total{queue}          event counts since the queue was created, from ``counters``

All values come from Redis, so one process can expose the queues of all workers. The only labels are queue names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from .broker import RedisStreamsBroker
from .stats import QueueStats

PREFIX: Final = "dramatiq_streams"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Number = int | float
# The name, help text and value of each gauge. If the value is None for a queue, the gauge has no sample for the queue.
GAUGES: Final[tuple[tuple[str, str, Callable[[QueueStats], Number | None]], ...]] = (
    ("waiting_messages", "Messages that no worker has.", lambda stats: stats.waiting),
    ("undelivered_messages", "Messages that were never delivered.", lambda stats: stats.undelivered),
    ("in_line_messages", "Messages that wait for the limits of their key.", lambda stats: stats.in_line),
    ("in_flight_messages", "Messages that workers hold.", lambda stats: stats.in_flight),
    ("delayed_messages", "Messages that are not due yet, retries included.", lambda stats: stats.delayed),
    ("orphaned_messages", "Delivered entries in no pending list; workers requeue them.", lambda stats: stats.orphaned),
    ("dead_letters", "Messages that failed permanently.", lambda stats: stats.dead),
    ("oldest_message_age_seconds", "Age of the oldest message that is not done.",
     lambda stats: _seconds(stats.oldest_age_ms)),
    ("oldest_pending_idle_seconds", "Time since the delivery of the oldest message that a worker holds.",
     lambda stats: _seconds(stats.oldest_pending_idle_ms)),
    ("next_due_seconds", "Time until the next delayed message is due.", lambda stats: _seconds(stats.next_due_ms)),
    ("consumers_alive", "Worker processes with a fresh heartbeat.",
     lambda stats: sum(one.is_alive for one in stats.consumers)),
    ("paused", "1 while delivery is paused, otherwise 0.", lambda stats: int(stats.paused)),
    ("ids_ahead_seconds", "Time by which the stream's last id is ahead of the server's clock.",
     lambda stats: stats.ids_ahead_ms / 1000),
)  # fmt: skip

# The help texts of counters. These counters appear from the first scrape on, and others with their first event.
TOTALS: Final[Mapping[str, str]] = {
    "enqueued": "Messages added by producers.",
    "coalesced": "Messages not added, because one with the same unique key was waiting.",
    "acked": "Messages acknowledged.",
    "late": "Messages acknowledged after another process had taken them over.",
    "cancelled": "Messages that were cancelled.",
    "retried": "Retries written.",
    "dead": "Messages that became dead letters.",
    "dead_bytes": "Bytes of the messages that became dead letters, with reasons and tracebacks.",
    "dead_evicted": "Dead letters deleted before their time, because the queue had too many or too large ones.",
    "requeued": "Dead letters returned to the queue.",
    "promoted": "Delayed messages that fell due.",
    "removed": "Entries that the broker removed from the stream.",
    "moved": "Messages moved from shard 0 to their own shard.",
    "recovered": "Messages taken over from dead consumers.",
    "redelivered": "Messages read again because a reply was lost.",
    "handed_back": "Messages returned by workers that had not started them.",
    "unbatched": "Messages that their batch left undone, so that they run individually.",
    "rescued": "Messages requeued by operators.",
    "orphaned": "Delivered entries found in no pending list.",
    "ghosts": "Pending ids whose entry was gone.",
    "fenced": "Retries and rejections refused, because the process had lost the message.",
    "expired": "Messages removed because they did not begin in time.",
    "stale_locks": "Unique keys left by messages that were removed by hand.",
}


def exposition(broker: RedisStreamsBroker, queue_names: Iterable[str]) -> str:
    """Return the queues' metrics in Prometheus's text format, with two round trips per queue.

    Serve the text with the content type :data:`CONTENT_TYPE`.

    Raises:
        BrokerConnectionError: Redis did not answer. Respond with status 503, so that the scrape counts as failed.
    """
    queues = [(name, broker.stats(name), broker.counters(name)) for name in sorted(queue_names)]
    lines: list[str] = []
    for name, text, value in GAUGES:
        samples = {queue: value(stats) for queue, stats, _ in queues}
        lines += _family(f"{PREFIX}_{name}", "gauge", text, samples)
    unlisted = sorted({name for *_, counters in queues for name in counters} - TOTALS.keys())
    for name in (*TOTALS, *unlisted):
        totals = {queue: counters[name] for queue, _, counters in queues}
        lines += _family(f"{PREFIX}_{name}_total", "counter", TOTALS.get(name, "See the broker's counters."), totals)
    return "".join(f"{line}\n" for line in lines)


def _family(name: str, kind: str, text: str, samples: Mapping[str, Number | None]) -> list[str]:
    values = [f'{name}{{queue="{_label(queue)}"}} {value}' for queue, value in samples.items() if value is not None]
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *values]


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000
