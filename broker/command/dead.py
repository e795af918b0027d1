"""Commands for dead letters: list and show them, requeue or delete them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from ..dead_letters import KEY_HELD, DeadLetter, DeadLetters, Wanted, is_requeued
from ..errors import DeadLetterTooLarge
from .messages import decoded, texts
from .options import DONE, FAILED, Commands, UsageError, confirmed, counted, duration_ms, opened, positive
from .screen import json_text, shown, table


def add_to(commands: Commands) -> None:
    dead = commands.group("dead", "list and show dead letters")
    listing = dead.add("list", list_dead_letters, "list dead letters, newest first", is_listing=True)
    listing.add_argument("queues", nargs="*", metavar="QUEUE", help="default: all queues")
    listing.add_argument("--limit", type=positive, default=50, help="how many to show (default: %(default)s)")
    showing = dead.add("show", show_dead_letter, "show one dead letter with its traceback", is_listing=True)
    showing.add_argument("queue", metavar="QUEUE")
    showing.add_argument("dead_letter_id", metavar="ID")
    actions = (
        commands.add("requeue", requeue, "return dead letters to the queue", is_action=True),
        commands.add("purge", purge, "delete dead letters permanently", is_action=True),
    )
    for action in actions:
        action.add_argument("queue", metavar="QUEUE")
        action.add_argument("dead_letter_ids", nargs="*", metavar="ID", help="see: dead list")
        action.add_argument("--all", action="store_true", help="every dead letter of the queue")
    for parser in (listing, *actions):
        parser.add_argument("--reason", help="only those with this reason, e.g. failed or delivery-limit")
        parser.add_argument("--actor", help="only those of this actor")
        parser.add_argument("--error", metavar="TEXT", help="only those whose error contains this text")
        parser.add_argument(
            "--since", type=duration_ms, metavar="TIME", help="only those of the last 30s, 15m, 2h or 7d"
        )


def list_dead_letters(given: argparse.Namespace) -> int:
    wanted = _wanted(given)
    with opened(given) as desk:
        found = [
            one
            for name in desk.chosen(given.queues)
            for one in desk.broker.dead_letters(name).list(given.limit, **wanted)
        ]
    found = sorted(found, key=lambda one: one.died_at, reverse=True)[: given.limit]
    if given.json:
        print(json_text([_summary(one) for one in found]))
        return DONE
    columns = ("dead letter", "queue", "died (UTC)", "reason", "actor", "error")
    print(
        table(
            columns,
            [
                (one.id, one.queue_name, f"{one.died_at:%Y-%m-%d %H:%M:%S}", one.reason, one.actor_name, one.error)
                for one in found
            ],
        )
    )
    return DONE


def show_dead_letter(given: argparse.Namespace) -> int:
    with opened(given) as desk:
        queue_name = desk.named(given.queue)
        found = desk.broker.dead_letters(queue_name).get(given.dead_letter_id)
    if found is None:
        raise UsageError(f"{given.dead_letter_id} is not a dead letter of {queue_name}; see: dead list {queue_name}")
    fields = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in found.fields.items()}
    if given.json:
        print(json_text({**_summary(found), "traceback": found.traceback, "fields": fields}))
        return DONE
    for name, value in _summary(found).items():
        if value is not None:
            print(f"{name:<13}{shown(value)}")
    if b"message" in found.fields:
        _, message = texts(decoded(found.fields[b"message"]))
        print(f"{'message':<13}{shown(message)}")
    else:
        for name, value in fields.items():
            print(f"  {shown(name)} = {shown(value)}")
    for line in (found.traceback or "").splitlines():
        print(f"  | {shown(line)}")
    return DONE


def requeue(given: argparse.Namespace) -> int:
    with opened(given) as desk:
        queue_name = desk.named(given.queue)
        dead_letters = desk.broker.dead_letters(queue_name)
        ids = _chosen(given, dead_letters)

        def put_back() -> str:
            answers = dead_letters.put_back(ids)
            n_held = answers.count(KEY_HELD)
            held = f"; {n_held:,} stay, because another message with their unique key is waiting" if n_held else ""
            return f"{sum(map(is_requeued, answers)):,} of {len(ids):,} requeued{held}"

        plan = f"put {counted(len(ids), 'dead letter')} of {queue_name} back at the end of the queue"
        try:
            return confirmed(given, plan, put_back, n=len(ids))
        except DeadLetterTooLarge as error:
            print(f"NOT DONE: {error.n_requeued:,} of {len(ids):,} requeued; the others stay: {error}")
            return FAILED


def purge(given: argparse.Namespace) -> int:
    with opened(given) as desk:
        queue_name = desk.named(given.queue)
        dead_letters = desk.broker.dead_letters(queue_name)
        ids = _chosen(given, dead_letters)
        plan = f"delete {counted(len(ids), 'dead letter')} of {queue_name} permanently"
        return confirmed(given, plan, lambda: f"{dead_letters.purge(ids):,} deleted", n=len(ids))


def _wanted(given: argparse.Namespace) -> Wanted:
    wanted: Wanted = {}
    if given.reason is not None:
        wanted["reason"] = given.reason
    if given.actor is not None:
        wanted["actor_name"] = given.actor
    if given.error is not None:
        wanted["where"] = lambda one: given.error in one.error
    if given.since is not None:
        wanted["died_after"] = datetime.now(UTC) - timedelta(milliseconds=given.since)
    return wanted


def _chosen(given: argparse.Namespace, dead_letters: DeadLetters) -> list[str]:
    """Return the ids of the chosen dead letters, oldest first.

    Raises:
        UsageError: not exactly one of ids, filters and ``--all`` is given, or an id does not exist.
    """
    wanted = _wanted(given)
    if bool(given.dead_letter_ids) + bool(wanted) + given.all != 1:
        raise UsageError("expected exactly one selection of dead letters; give ids, filters or --all")
    if not given.dead_letter_ids:
        return [one.id for one in dead_letters.find(**wanted)][::-1]
    missing = [one for one in given.dead_letter_ids if dead_letters.get(one) is None]
    if missing:
        raise UsageError(f"{missing[0]} is not a dead letter of {given.queue}; see: dead list {given.queue}")
    return list(given.dead_letter_ids)


def _summary(one: DeadLetter) -> Mapping[str, object]:
    return {
        "id": one.id,
        "queue": one.queue_name,
        "died_at": one.died_at,
        "reason": one.reason,
        "error": one.error,
        "field": one.field,
        "hint": one.hint,
        "actor": one.actor_name,
        "message_id": one.message_id,
        "entry_id": one.entry_id,
        "deliveries": one.deliveries,
    }
