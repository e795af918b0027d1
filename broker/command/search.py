"""Commands that find or cancel messages by id, actor or argument."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from ..dead_letters import DeadLetters
from ..inspector import FoundMessage, Inspector, Selection
from .messages import decoded, facts_of, texts
from .options import DONE, Commands, UsageError, confirmed, counted, opened, positive
from .screen import json_text, table


def add_to(commands: Commands) -> None:
    find = commands.add("find", find_messages, "find messages, wherever they are", is_listing=True)
    find.add_argument("queues", nargs="*", metavar="QUEUE", help="default: all queues")
    find.add_argument("--limit", type=positive, default=50, help="how many to show (default: %(default)s)")
    cancel = commands.add("cancel", cancel_messages, "cancel waiting and running messages", is_action=True)
    cancel.add_argument("queue", metavar="QUEUE")
    for parser in (find, cancel):
        parser.add_argument("--message-id", metavar="ID", help="the message with this id")
        parser.add_argument("--actor", help="messages of this actor")
        parser.add_argument("--text", help="messages with an argument that contains this text")


def find_messages(given: argparse.Namespace) -> int:
    wanted = _selection(given)
    with opened(given) as desk:
        rows: list[Mapping[str, Any]] = []
        for name in desk.chosen(given.queues):
            found = _rows(given, wanted, desk.broker.inspector(name), desk.broker.dead_letters(name))
            rows += [{"queue": name, **row} for row in islice(found, given.limit - len(rows))]
    if given.json:
        print(json_text(rows))
        return DONE
    columns = ("state", "queue", "entry or dead letter", "message id", "message", "by")
    print(table(columns, [(row["state"], row["queue"], row["id"], *texts(row), row["holder"]) for row in rows]))
    return DONE


def cancel_messages(given: argparse.Namespace) -> int:
    wanted = _selection(given)
    with opened(given) as desk:
        name = desk.named(given.queue)
        ids = {found.message.message_id for found in desk.broker.inspector(name).find(wanted)}

        def cancel() -> str:
            done = desk.broker.cancel_where(
                name, actor=wanted.actor, message_ids=wanted.message_ids, where=wanted.where
            )
            return f"{len(done.cancelled):,} cancelled; workers interrupt or skip {len(done.requested):,} received ones"

        return confirmed(given, f"cancel {counted(len(ids), 'message')} of {name}", cancel, n=len(ids))


def _rows(
    given: argparse.Namespace, wanted: Selection, inspector: Inspector, dead_letters: DeadLetters
) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of the selected messages, dead letters last."""
    seen = set()
    for found in inspector.find(wanted):
        if found.place not in seen:  # a message that moves during the search may be found twice
            seen.add(found.place)
            yield {**_place(found, inspector), **facts_of(found.message)}
    for one in dead_letters.find(message_id=given.message_id, actor_name=given.actor):
        facts = decoded(one.fields.get(b"message", b""))
        if given.text is None or ("args" in facts and _has_text(given.text, [facts["args"], facts["kwargs"]])):
            yield {"state": f"dead: {one.reason}", "id": one.id, "holder": None, **facts}


def _place(found: FoundMessage, inspector: Inspector) -> Mapping[str, str | None]:
    if found.state != "in-stream":
        return {"state": found.state, "id": None, "holder": None}
    entry_id = found.place.decode()
    pending = inspector.find_pending(entry_id)
    if pending is None or pending.is_handed_back:
        return {"state": "waiting", "id": entry_id, "holder": None}
    return {"state": "in-flight", "id": entry_id, "holder": pending.holder}


def _selection(given: argparse.Namespace) -> Selection:
    """Return the messages that the options select.

    Raises:
        UsageError: no condition was given.
    """
    if not (given.message_id or given.actor or given.text):
        raise UsageError("expected a condition; give --message-id, --actor or --text")
    return Selection(
        actor=given.actor,
        message_ids=None if given.message_id is None else [given.message_id],
        where=None if given.text is None else lambda message: _has_text(given.text, [message.args, message.kwargs]),
    )


def _has_text(text: str, value: object) -> bool:
    if isinstance(value, Mapping):
        return any(_has_text(text, one) for one in value.values())
    if isinstance(value, (list, tuple)):
        return any(_has_text(text, one) for one in value)
    return text in str(value)
