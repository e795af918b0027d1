"""Facts about stream entries without their embeddings, for listings, filters and logs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sploot_cluster.limits import MAX_TEXT

LONGEST_VALUE: Final = 200

# The field that never appears in a listing, log or error report.
EMBEDDING: Final = "embedding"

# Tolerated difference between the clocks of Redis and this machine.
_SKEW: Final = timedelta(minutes=1)

# In JSON, a quote inside a value follows a backslash and the quote of a key does not, so no value can look like this
# key. A number must be followed by a comma or brace, because otherwise it may have been cut off.
_PET_IN_JSON: Final = re.compile(rb'(?<!\\)"pet_id":\s*(\d{1,19})\s*[,}]')
_DECIMAL: Final = re.compile(r"[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class EntryFacts:
    """Facts about an entry; None for a fact that is missing or unreadable.

    Attributes:
        form: ``message`` for Dramatiq's JSON, ``event`` for flat fields, ``unreadable`` for neither.
        n_bytes: size of all its fields.
    """

    form: str
    n_bytes: int
    message_id: str | None = None
    actor: str | None = None
    pet_id: int | None = None
    media_id: str | None = None


def facts_of(fields: Mapping[bytes, bytes]) -> EntryFacts:
    """Return the facts of an entry. Never raises: a stream can contain anything."""
    n_bytes = sum(len(name) + len(value) for name, value in fields.items())
    message = _message(fields)
    if message is not None:
        kwargs = message.get("kwargs")
        kwargs = kwargs if isinstance(kwargs, dict) else {}
        return EntryFacts(
            "message",
            n_bytes,
            message_id=_text(message.get("message_id")),
            actor=_text(message.get("actor_name")),
            pet_id=_pet(kwargs.get("pet_id")),
            media_id=_text(kwargs.get("media_id")),
        )
    if b"message" in fields:
        # only the start of a large entry was read, but the pet comes before the embedding
        pet = _PET_IN_JSON.search(fields[b"message"])
        return EntryFacts("unreadable", n_bytes, pet_id=None if pet is None else _pet(pet[1].decode()))
    if b"pet_id" not in fields:
        return EntryFacts("unreadable", n_bytes)
    text = {name: fields.get(name, b"").decode(errors="replace") for name in (b"event_id", b"pet_id", b"media_id")}
    return EntryFacts(
        "event",
        n_bytes,
        message_id=_text(text[b"event_id"]),
        pet_id=_pet(text[b"pet_id"]),
        media_id=_text(text[b"media_id"]),
    )


def added_at(entry_id: str) -> datetime | None:
    """Return the time at which an entry was added, according to its id, or None if the id is ahead of the clock."""
    try:
        at = datetime.fromtimestamp(int(entry_id.partition("-")[0]) / 1000, tz=UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return at if at <= datetime.now(UTC) + _SKEW else None


def media_of(fields: Mapping[bytes, bytes]) -> frozenset[str]:
    """Return the complete ids of the items that an entry names: one for an event, all for a correction."""
    message = _message(fields)
    if message is None:
        try:
            return frozenset(_names([fields.get(b"media_id", b"").decode()]))
        except UnicodeDecodeError:
            return frozenset()
    kwargs = message.get("kwargs")
    if not isinstance(kwargs, dict):
        return frozenset()
    several = kwargs.get("media_ids")
    return frozenset(_names([kwargs.get("media_id"), *(several if isinstance(several, list) else ())]))


def is_unclear(fields: Mapping[bytes, bytes], pet_id: int) -> bool:
    """Return whether an unreadable entry may belong to this pet: its readable part does not name a different pet."""
    facts = facts_of(fields)
    if facts.form == "unreadable":
        return facts.pet_id in (None, pet_id)
    if facts.pet_id is not None or facts.form != "message":
        return facts.pet_id is None
    kwargs = (_message(fields) or {}).get("kwargs")
    return isinstance(kwargs, dict) and "pet_id" in kwargs


def _names(values: Iterable[object]) -> Iterator[str]:
    return (value for value in values if isinstance(value, str) and value)


def without_embedding(fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return the fields as JSON values, with embeddings replaced by their size and long values cut."""
    readable: dict[str, Any] = {}
    message = _message(fields)
    for raw_name, value in fields.items():
        name = raw_name.decode(errors="replace")
        if name == "message" and message is not None:
            readable[name] = _redacted(message)
        elif name == EMBEDDING:
            readable[name] = f"<{len(value)} bytes>"
        else:
            readable[name] = _cut(value.decode(errors="replace"))
    return readable


def _message(fields: Mapping[bytes, bytes]) -> dict[str, Any] | None:
    try:
        message = json.loads(fields.get(b"message", b""))
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def _redacted(value: object) -> object:
    match value:
        case dict():
            return {str(name): _size(item) if name == EMBEDDING else _redacted(item) for name, item in value.items()}
        case list():
            return [_redacted(item) for item in value] if len(value) <= LONGEST_VALUE else f"<{len(value)} values>"
        case str():
            return _cut(value)
        case _:
            return value


def _size(embedding: object) -> str:
    match embedding:
        case str():
            return f"<{len(embedding)} characters>"
        case list():
            return f"<{len(embedding)} values>"
        case _:
            return f"<{type(embedding).__name__}>"


def _cut(text: str, longest: int = LONGEST_VALUE) -> str:
    return text if len(text) <= longest else f"{text[:LONGEST_VALUE]}… <{len(text)} characters>"


def _text(value: object) -> str | None:
    return _cut(value, MAX_TEXT) if isinstance(value, str) and value else None


def _pet(value: object) -> int | None:
    if type(value) is int:
        return value
    return int(value) if isinstance(value, str) and _DECIMAL.fullmatch(value) else None
