"""The form of messages in lists: values for JSON, and a call of the actor for tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import dramatiq

from ..errors import UndecodableEntry
from ..inspector import Inspector


def facts_of(message: dramatiq.Message[Any]) -> dict[str, object]:
    """Return the values of a message that lists show."""
    return {
        "message_id": message.message_id,
        "actor": message.actor_name,
        "args": message.args,
        "kwargs": message.kwargs,
        "options": message.options,
    }


def seen(inspector: Inspector, entry_id: str, fields: Mapping[bytes, bytes] | None) -> dict[str, object]:
    """Return the values of an entry that lists show. The entry may be unreadable or missing."""
    if fields is None:
        return {"problem": "its entry no longer exists"}
    try:
        return facts_of(inspector.decode(entry_id, fields))
    except UndecodableEntry as error:
        return {"problem": str(error)}


def texts(facts: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return the message id and the message as text, from the values that lists show."""
    if "problem" in facts:
        return None, f"unreadable: {facts['problem']}"
    return facts["message_id"], _call(facts["actor"], facts["args"], facts["kwargs"])


def decoded(encoded: bytes) -> dict[str, object]:
    """Return the values of an encoded message that lists show."""
    try:
        return facts_of(dramatiq.Message.decode(encoded))
    except Exception as error:  # the bytes may be anything, and so may the exception
        return {"problem": f"{type(error).__name__}: {error}"}


def _call(actor: str | None, args: Sequence[object], kwargs: dict[str, object]) -> str:
    """Return a message as a call of its actor, such as ``resize("cat.jpg", width=3)``."""
    words = [_json(value) for value in args] + [f"{name}={_json(value)}" for name, value in kwargs.items()]
    return f"{actor}({', '.join(words)})"


def _json(value: object) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)
