"""Commands that show queues and change nothing."""

from __future__ import annotations

import argparse
from typing import Any

from ..inspector import Inspector
from ..stats import QueueStats
from .messages import seen, texts
from .options import DONE, Commands, duration_ms, opened, positive
from .screen import age, json_text, table

PAGE = 100


def add_to(commands: Commands) -> None:
    status = commands.add("status", show_status, "show the contents and workers of queues", is_listing=True)
    status.add_argument("queues", nargs="*", metavar="QUEUE", help="default: all queues")
    peek = commands.add("peek", show_waiting, "show the next waiting messages without taking them", is_listing=True)
    peek.add_argument("queue", metavar="QUEUE")
    peek.add_argument("--limit", type=positive, default=10, help="how many to show (default: %(default)s)")
    pending = commands.add("pending", show_pending, "show messages that workers hold, oldest first", is_listing=True)
    pending.add_argument("queue", metavar="QUEUE")
    pending.add_argument("--consumer", help="only those of this consumer")
    pending.add_argument(
        "--idle", type=duration_ms, default=0, metavar="TIME", help="only those held for at least 30s, 15m, 2h"
    )
    pending.add_argument("--limit", type=positive, default=50, help="how many to show (default: %(default)s)")


def show_status(given: argparse.Namespace) -> int:
    with opened(given) as desk:
        names = desk.chosen(given.queues)
        found = [(desk.broker.stats(name), desk.broker.counters(name)) for name in names]
        reasons = [_why_it_waits(stats, desk.broker.inspector(stats.queue_name)) for stats, _ in found]
        of_shards = {name: desk.broker.stats_of_shards(name) for name in names}
    if given.json:
        print(
            json_text(
                [
                    {"stats": stats, "counters": counters, "shards": of_shards[stats.queue_name]}
                    for stats, counters in found
                ]
            )
        )
        return DONE
    if not found:
        print("There are no queues.")
        return DONE
    columns = ("queue", "waiting", "in flight", "delayed", "dead", "oldest", "workers", "")
    rows = [(*_status_row(stats), reason) for (stats, _), reason in zip(found, reasons, strict=True)]
    print(table(columns, rows))
    shards = [(*_status_row(one), f"shard {at}") for parts in of_shards.values() for at, one in enumerate(parts)]
    if len(shards) > len(names):
        print(f"\nShards, each a queue for the other commands:\n{table(columns, shards)}")
    consumers = [(stats.queue_name, one) for stats, _ in found for one in stats.consumers]
    if consumers:
        held = [
            (one.name, queue_name, one.pending, age(one.heartbeat_age_ms), "yes" if one.is_alive else "no")
            for queue_name, one in consumers
        ]
        print(f"\n{table(('consumer', 'queue', 'holds', 'heartbeat', 'alive'), held)}")
    return DONE


def show_waiting(given: argparse.Namespace) -> int:
    with opened(given) as desk:
        inspector = desk.broker.inspector(desk.named(given.queue))
        rows: list[dict[str, Any]] = [
            {"entry_id": entry_id, **seen(inspector, entry_id, fields)}
            for entry_id, fields in inspector.waiting(given.limit)
        ]
    if given.json:
        print(json_text(rows))
    else:
        print(table(("entry", "message id", "message"), [(row["entry_id"], *texts(row)) for row in rows]))
    return DONE


def show_pending(given: argparse.Namespace) -> int:
    with opened(given) as desk:
        inspector = desk.broker.inspector(desk.named(given.queue))
        entries = inspector.pending(given.limit, consumer=given.consumer, idle_ms=given.idle)
        rows: list[dict[str, Any]] = []
        for start in range(0, len(entries), PAGE):
            page = entries[start : start + PAGE]
            for entry, fields in zip(page, inspector.entries([one.id for one in page]), strict=True):
                facts = {"entry_id": entry.id, "holder": entry.holder, "deliveries": entry.deliveries}
                rows.append({**facts, "idle_ms": entry.idle_ms, **seen(inspector, entry.id, fields)})
    if given.json:
        print(json_text(rows))
        return DONE
    columns = ("entry", "message id", "message", "deliveries", "held for", "by")
    print(
        table(
            columns,
            [
                (row["entry_id"], *texts(row), row["deliveries"], age(row["idle_ms"]), row["holder"] or None)
                for row in rows
            ],
        )
    )
    return DONE


def _status_row(stats: QueueStats) -> tuple[object, ...]:
    numbers = (stats.waiting, stats.in_flight, stats.delayed, stats.dead)
    return (stats.queue_name, *numbers, age(stats.oldest_age_ms), _n_alive(stats))


def _why_it_waits(stats: QueueStats, inspector: Inspector) -> str:
    if stats.paused:
        return "paused"
    if not (stats.waiting or stats.in_flight or stats.delayed):
        return ""
    groups = inspector.groups()
    if groups and inspector.group not in groups:
        return f"the workers use another group: --group {groups[0]}"
    return "" if _n_alive(stats) else "no worker is alive"


def _n_alive(stats: QueueStats) -> int:
    return sum(one.is_alive for one in stats.consumers)
