"""Commands for limits per key: show what messages in line wait for, and pass over a message that holds a key."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from ..inspector import Inspector
from ..key_limits import KeyAtWork, KeyLimits
from .messages import facts_of, texts
from .options import DONE, FAILED, Commands, UsageError, confirmed, opened, positive
from .screen import age, json_text, table

PAGE = 100


def add_to(commands: Commands) -> None:
    keys = commands.add("keys", show_keys, "show keys with limits, and what their messages wait for", is_listing=True)
    keys.add_argument("queue", metavar="QUEUE")
    keys.add_argument("--limit", type=positive, default=50, help="how many to show (default: %(default)s)")
    passing = commands.add(
        "pass-over", pass_over, "make a message that holds a key a dead letter; the next one runs", is_action=True
    )
    passing.add_argument("queue", metavar="QUEUE")
    passing.add_argument("message_id", metavar="MESSAGE_ID", help="see: keys")
    passing.add_argument(
        "--even-if-received", action="store_true", help="even if a worker runs it; the next one runs at the same time"
    )


def show_keys(given: argparse.Namespace) -> int:
    with opened(given) as desk:
        inspector = desk.broker.inspector(desk.named(given.queue))
        found = inspector.keys_at_work(given.limit)
    rows = [_row(one) for one in found]
    if given.json:
        print(json_text(rows))
        return DONE
    columns = ("kind", "key", "limit", "at work", "in line", "waits for", "fails for", "message id", "first message")
    print(
        table(
            columns,
            [
                (
                    *(row[name] for name in ("kind", "key", "limit", "n_at_work", "in_line")),
                    age(row["longest_wait_ms"]),
                    age(row["failing_for_ms"]),
                    *(texts(row["at_work"][0]) if row["at_work"] else (None, None)),
                )
                for row in rows
            ],
        )
    )
    return DONE


def pass_over(given: argparse.Namespace) -> int:
    outcomes = {
        "passed": "it is a dead letter with the reason passed-over",
        "moved": "it has ended or moved in the meantime",
        "received": "a worker has received it; use --even-if-received to pass it over in any case",
    }
    with opened(given) as desk:
        name = desk.named(given.queue)
        inspector = desk.broker.inspector(name)
        at_work = (one for key in _all_keys(inspector) for one in key.at_work)
        seen = next((one for one in at_work if _id(one.message) == given.message_id), None)
        if seen is None:
            raise UsageError(f"{given.message_id} holds no key of {name}; see: keys {name}")
        done: list[str] = []

        def act() -> str:
            done.append(inspector.pass_over(seen, even_if_received=given.even_if_received))
            return outcomes[done[0]]

        plan = f"make {given.message_id} a dead letter, so that the next message of its key runs"
        code = confirmed(given, plan, act)
        return FAILED if done and done[0] != "passed" else code


def _all_keys(inspector: Inspector) -> Iterator[KeyAtWork]:
    after: KeyAtWork | None = None
    while page := inspector.keys_at_work(PAGE, after=after):
        yield from page
        after = page[-1]


def _id(message: Any) -> str | None:
    return None if message is None else str(message.message_id)


def _row(one: KeyAtWork) -> dict[str, Any]:
    return {
        "kind": one.limits.kind,
        "key": one.limits.key,
        "limit": _limit(one.limits),
        "n_at_work": one.n_at_work,
        "n_started": one.n_started,
        "in_line": one.in_line,
        "longest_wait_ms": one.longest_wait_ms,
        "failing_for_ms": one.failing_for_ms,
        "at_work": [
            {
                "consumer": at_work.consumer,
                "due_ms": at_work.due_ms,
                "deliveries": at_work.deliveries,
                **({"problem": "it cannot be decoded"} if at_work.message is None else facts_of(at_work.message)),
            }
            for at_work in one.at_work
        ],
    }


def _limit(limits: KeyLimits) -> str | None:
    parts = [f"{limits.max_concurrent} at once"] if limits.max_concurrent else []
    return ", ".join([*parts, str(limits.rate)] if limits.rate else parts) or None
