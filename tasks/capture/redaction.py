"""Entries and text without embeddings, for captures that are passed on.

Any field of a broken entry may hold an embedding, in any form. So everything that may be an embedding is replaced by
its size: values named ``embedding``, long or unprintable strings, and collections of many numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from sploot_cluster.limits import MAX_TEXT
from sploot_cluster.printable import UNPRINTABLE
from tasks.observe.logs import without_payload
from tasks.queue_ops.entries import EMBEDDING

# Minimum number of values in a collection that may be an embedding: every model has more dimensions.
FEWEST_VALUES: Final = 15

# Matches only numbers with a decimal point, because whole numbers in text are often ids.
_FRACTION: Final = re.compile(r"[-+]?\d*\.\d+(?:[eE][-+]?\d+)?")


def redacted_fields(fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return the fields of an entry as JSON values without embeddings."""
    return dict(_redacted_field(name, value) for name, value in fields.items())


def redacted_text(text: str) -> str:
    """Return a producer's text, such as an id, without embeddings, or only its length if it may be one."""
    if len(text) > MAX_TEXT or UNPRINTABLE.search(text):
        return f"<{len(text)} characters>"
    return without_payload(text)


def _redacted_field(raw_name: bytes, value: bytes) -> tuple[str, Any]:
    name = raw_name.decode(errors="replace")
    if name == EMBEDDING:
        return name, f"<{len(value)} bytes>"
    if name == "message":
        try:
            return name, _redacted(json.loads(value))
        except (ValueError, RecursionError):
            return name, f"<{len(value)} bytes>"
    try:
        return redacted_text(name), redacted_text(value.decode())
    except UnicodeDecodeError:
        return redacted_text(name), f"<{len(value)} bytes>"


def _redacted(value: object) -> Any:
    match value:
        case dict() if sum(map(_is_number, value.values())) >= FEWEST_VALUES:
            return f"<{len(value)} values>"
        case dict():
            return {
                redacted_text(name): _sized(item) if name == EMBEDDING else _redacted(item)
                for name, item in value.items()
            }
        case list() if _n_numbers(value) >= FEWEST_VALUES:
            return f"<{len(value)} values>"
        case list():
            return [_redacted(item) for item in value]
        case str():
            return redacted_text(value)
        case _:
            return value


def _sized(embedding: object) -> str:
    match embedding:
        case str():
            return f"<{len(embedding)} characters>"
        case list() | dict():
            return f"<{len(embedding)} values>"
        case _:
            return f"<{type(embedding).__name__}>"


def _n_numbers(values: Iterable[object]) -> int:
    return sum(_n_numbers(value) if isinstance(value, list) else _is_number(value) for value in values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and _FRACTION.fullmatch(value) is not None)
