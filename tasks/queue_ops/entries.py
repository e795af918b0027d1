"""What an entry of a stream is about, without its embedding: for listings, filters and logs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

LONGEST_VALUE: Final = 200
# An id that is longer is not one: contracts.MAX_TEXT.
LONGEST_ID: Final = 256

# What no listing, log or error report may hold.
EMBEDDING: Final = "embedding"

# By how much the clocks of Redis and of this machine may differ.
_SKEW: Final = timedelta(minutes=1)

# Within JSON the quote of a key has no backslash before it: no value can look like this key.
_PET_IN_JSON: Final = re.compile(rb'(?<!\\)"pet_id":\s*(\d{1,19})')
_DECIMAL: Final = re.compile(r"[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class EntryFacts:
    """What an entry says of itself; None where it does not say, or cannot be read.

    Attributes:
        form: ``message`` for Dramatiq's JSON, ``event`` for flat fields, ``unreadable`` for neither.
        n_bytes: of all its fields.
    """

    form: str
    n_bytes: int
    message_id: str | None = None
    actor: str | None = None
    pet_id: int | None = None
    media_id: str | None = None


def facts_of(fields: Mapping[bytes, bytes]) -> EntryFacts:
    """Never fails: what stands in a stream may be anything."""
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
        # of a large one only the head was read; its pet stands before its embedding
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
    """Return when an entry was added, by its id; None where the id is ahead of the clock and shows nothing."""
    try:
        at = datetime.fromtimestamp(int(entry_id.partition("-")[0]) / 1000, tz=UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return at if at <= datetime.now(UTC) + _SKEW else None


def media_of(fields: Mapping[bytes, bytes]) -> frozenset[str]:
    """The media items that an entry names, whole and exact: of an event the one, of a correction all."""
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


def is_unclear(fields: Mapping[bytes, bytes]) -> bool:
    """Whether an entry may be about any pet: it cannot be read, or what it has for a pet cannot."""
    facts = facts_of(fields)
    if facts.form == "unreadable":
        return True
    if facts.pet_id is not None or facts.form != "message":
        return facts.pet_id is None
    kwargs = (_message(fields) or {}).get("kwargs")
    return isinstance(kwargs, dict) and "pet_id" in kwargs


def _names(values: Iterable[object]) -> Iterator[str]:
    return (value for value in values if isinstance(value, str) and value)


def without_embedding(fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    """The fields as JSON values, embeddings replaced by their size, long values cut."""
    told: dict[str, Any] = {}
    message = _message(fields)
    for raw_name, value in fields.items():
        name = raw_name.decode(errors="replace")
        if name == "message" and message is not None:
            told[name] = _redacted(message)
        elif name == EMBEDDING:
            told[name] = f"<{len(value)} bytes>"
        else:
            told[name] = _cut(value.decode(errors="replace"))
    return told


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
    return _cut(value, LONGEST_ID) if isinstance(value, str) and value else None


def _pet(value: object) -> int | None:
    if type(value) is int:
        return value
    return int(value) if isinstance(value, str) and _DECIMAL.fullmatch(value) else None
