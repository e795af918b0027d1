"""What a message's options ask of the broker.

unique_key, unique_for_ms   at most one message of the key waits
ordering_key                one message of the key at a time, in the order in which they were enqueued
delay                       for ``enqueue_many``: ms from now
"""

from __future__ import annotations

from collections.abc import Mapping
from secrets import token_hex
from typing import Any


def unique_key_of(options: Mapping[str, Any]) -> str | None:
    """The message's unique key, None where it has none."""
    unique_key = options.get("unique_key")
    return None if unique_key is None else str(unique_key)


def ordering_key_of(options: Mapping[str, Any]) -> str | None:
    """The message's ordering key, None where it has none. A zero byte, which ends it in Redis, is left out."""
    ordering_key = options.get("ordering_key")
    return None if ordering_key in (None, "") else str(ordering_key).replace("\0", "")


def name_in_delayed(ordering_key: str | None) -> str:
    """A new name for a message that is put off; it tells the ordering key to whoever promotes it."""
    return token_hex(8) if ordering_key is None else f"{ordering_key}\0{token_hex(8)}"
