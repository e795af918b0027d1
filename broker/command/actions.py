"""Commands that change a queue: pause it, resume it, divide it, and rescue messages from dead or stuck workers."""

from __future__ import annotations

import argparse

from ..inspector import Inspector, PendingEntry
from ..sharding.shards import READ_EVERY_S, check_shards
from .options import Commands, Desk, UsageError, confirmed, counted, duration_ms, opened, positive

MOST_ENTRIES = 10_000


def add_to(commands: Commands) -> None:
    pause = commands.add("pause", pause_queue, "stop the delivery of a queue until you resume it", is_action=True)
    resume = commands.add("resume", resume_queue, "end a pause", is_action=True)
    rescue = commands.add(
        "rescue", rescue_messages, "return messages of dead or stuck workers to the queue", is_action=True
    )
    shards = commands.add(
        "shards", divide_queue, "set the number of shards of a queue that --app declares as sharded", is_action=True
    )
    for parser in (pause, resume, rescue, shards):
        parser.add_argument("queue", metavar="QUEUE")
    shards.add_argument("n", type=positive, metavar="NUMBER", help="how many: a power of two up to 256")
    rescue.add_argument("entry_ids", nargs="*", metavar="ENTRY", help="see: pending")
    rescue.add_argument("--consumer", help="all messages of this consumer")
    rescue.add_argument("--idle", type=duration_ms, metavar="TIME", help="all messages held for at least 30s, 15m, 2h")
    rescue.add_argument("--unowned", action="store_true", help="all entries that were acknowledged or deleted by hand")
    rescue.add_argument(
        "--even-if-alive", action="store_true", help="include messages of live workers; these may run twice"
    )


def pause_queue(given: argparse.Namespace) -> int:
    with opened(given) as desk:
        name = desk.named(given.queue)

        def pause() -> str:
            desk.broker.pause(name)
            return f"{name} is paused"

        plan = f"stop the delivery of {name} to all workers until it is resumed; running messages continue"
        return confirmed(given, plan, pause)


def resume_queue(given: argparse.Namespace) -> int:
    with opened(given) as desk:
        name = desk.named(given.queue)

        def resume() -> str:
            desk.broker.resume(name)
            return f"{name} is resumed"

        return confirmed(given, f"deliver {name} to the workers again", resume)


def divide_queue(given: argparse.Namespace) -> int:
    with opened(given) as desk:
        name, n = desk.named(given.queue), given.n
        n_before = desk.broker.n_shards(name)
        check_shards(n)

        def divide() -> str:
            desk.broker.set_shards(name, n)
            return f"all processes use {counted(n, 'shard')} of {name} within {READ_EVERY_S:.0f} seconds"

        plan = (
            f"add new messages of {name} to {counted(n, 'shard')} instead of {n_before:,}; waiting messages still run"
        )
        return confirmed(given, plan, divide)


def rescue_messages(given: argparse.Namespace) -> int:
    ways = (given.entry_ids, given.consumer, given.idle, given.unowned)
    if sum(map(bool, ways)) != 1:
        raise UsageError("expected exactly one selection; give entry ids, --consumer, --idle or --unowned")
    with opened(given) as desk:
        name = desk.named(given.queue)
        inspector = desk.broker.inspector(name)
        entries, n_alive = _without_live(given, desk, name, _selected(given, inspector))
        plan = f"return {counted(len(entries), 'message')} of {name} to the queue; the next free worker runs them"
        if n_alive:
            plan += f" ({n_alive:,} held by live workers left out; --even-if-alive includes them; they may run twice)"

        def rescue() -> str:
            rescued = inspector.rescue(entries)
            ghosts = f", {rescued.n_ghosts:,} ids without an entry removed" if rescued.n_ghosts else ""
            return f"{rescued.n_handed_back:,} of {len(entries):,} returned{ghosts}"

        return confirmed(given, plan, rescue, n=len(entries))


def _selected(given: argparse.Namespace, inspector: Inspector) -> list[PendingEntry]:
    if given.unowned:
        unowned = inspector.unowned(MOST_ENTRIES)
        return [*unowned.orphans, *unowned.ghosts]
    if not given.entry_ids:
        return inspector.pending(MOST_ENTRIES, consumer=given.consumer, idle_ms=given.idle or 0)
    found = {entry_id: inspector.find_pending(entry_id) for entry_id in given.entry_ids}
    missing = [entry_id for entry_id, entry in found.items() if entry is None]
    if missing:
        raise UsageError(f"no worker holds {missing[0]}; see: pending {given.queue}")
    return [entry for entry in found.values() if entry is not None]


def _without_live(
    given: argparse.Namespace, desk: Desk, name: str, entries: list[PendingEntry]
) -> tuple[list[PendingEntry], int]:
    """Return the entries to rescue, and the number of entries left out because live workers hold them."""
    entries = [entry for entry in entries if not entry.is_handed_back]
    if given.even_if_alive or given.unowned:  # no worker runs an orphan or a ghost
        return entries, 0
    alive = {one.name for one in desk.broker.stats(name).consumers if one.is_alive}
    kept = [entry for entry in entries if entry.holder not in alive]
    return kept, len(entries) - len(kept)
