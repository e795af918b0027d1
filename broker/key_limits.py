"""The limits that messages share by a key: how many run at once, in which order, and how many start per period.

A message has at most one key: its ordering key, its concurrency key or its rate key. Where these limits do not allow
it to run, it waits outside the stream; see work.lua.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, Final, Literal

import dramatiq
from dramatiq.broker import MessageProxy

Kind = Literal["ordering", "concurrency", "rate", "priority"]

# The first byte of a key shows its kind in Redis; an ordering key has no such byte. The third is for messages that have
# not started: see work.lua.
_PREFIXES: Final[Mapping[Kind, str]] = {"ordering": "", "concurrency": "\1", "rate": "\2", "priority": "\4"}
_RESERVED: Final = "\1\2\3\4"

# How many messages with a priority may be in the stream before they start, per queue: an urgent message may wait
# for this number. Each start brings the next one, so that eight keep any number of threads busy.
MOST_UNSTARTED: Final = 8
MOST_URGENT: Final = -1_000
LEAST_URGENT: Final = 1_000

_RATE: Final = re.compile(r"([1-9]\d{0,8})/(s|min|h|day)")
_PERIODS_MS: Final = {"s": 1_000, "min": 60_000, "h": 3_600_000, "day": 86_400_000}


@dataclass(frozen=True, slots=True)
class Rate:
    """How many messages may start per period."""

    starts: int
    period_ms: int

    def __str__(self) -> str:
        unit = next(unit for unit, ms in _PERIODS_MS.items() if ms == self.period_ms)
        return f"{self.starts}/{unit}"


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """The limits that a message asks for.

    Attributes:
        key: the key that it shares with others of its queue.
        max_concurrent: how many messages of the key may be at work; None = any number.
        priority: its place among the messages of the key that wait in line: lower numbers come first.
    """

    kind: Kind
    key: str
    max_concurrent: int | None
    rate: Rate | None
    priority: int = 0

    @property
    def name(self) -> str:
        """The key as the scripts know it."""
        return _PREFIXES[self.kind] + self.key

    @property
    def stored(self) -> str:
        """The limits as the scripts know them, with the message's priority; "" for an ordering key without a rate."""
        if self.kind == "ordering" and self.rate is None:
            return ""
        starts, period_ms = (0, 0) if self.rate is None else (self.rate.starts, self.rate.period_ms)
        if self.kind == "priority":
            starts = MOST_UNSTARTED
        rank = "" if self.kind == "ordering" else f" p{self.priority - MOST_URGENT:04d}"
        return f"{self.max_concurrent or 0} {starts} {period_ms}{rank}"

    @property
    def are_asked_at_start(self) -> bool:
        """Whether the start of a message must be recorded."""
        return self.rate is not None or self.kind == "priority"

    @property
    def facts(self) -> Mapping[str, str]:
        """The fields of a dead letter that store the limits, so that a requeue obeys them."""
        facts = {} if self.kind == "priority" else {f"{self.kind}_key": self.key}
        return facts | {"limits": self.stored} if self.stored else facts

    def name_in_delayed(self) -> str:
        """Return a new name for a delayed message, from which the script that promotes it reads the key and limits."""
        name = f"{self.name}\0{token_hex(8)}"
        return name if self.kind == "ordering" else f"{name}\0{self.stored}"


def rate_from(text: object) -> Rate | None:
    """Return the rate that a text such as ``100/min`` states; None if it is not valid."""
    found = _RATE.fullmatch(text) if isinstance(text, str) else None
    return None if found is None else Rate(int(found[1]), _PERIODS_MS[found[2]])


def key_limits_of(message: dramatiq.Message[Any] | MessageProxy) -> KeyLimits | None:
    """Return the limits that a message asks for, or None. Invalid options are ignored."""
    options = message.options
    if not options:  # the common case
        return None
    rate = rate_from(options.get("rate"))
    priority = options.get("priority") if is_priority(options.get("priority")) else None
    if (key := _key(options, "ordering_key")) is not None:
        return KeyLimits("ordering", key, 1, rate)
    if (key := _key(options, "concurrency_key")) is not None:
        asked = options.get("max_concurrent")
        return KeyLimits("concurrency", key, asked if is_number_of_messages(asked) else 1, rate, priority or 0)
    if rate is not None:
        return KeyLimits("rate", _key(options, "rate_key") or message.actor_name, None, rate, priority or 0)
    return None if priority is None else KeyLimits("priority", "", None, None, priority)


def is_priority(value: object) -> bool:
    """Return whether the value is a valid priority of a message."""
    return isinstance(value, int) and not isinstance(value, bool) and MOST_URGENT <= value <= LEAST_URGENT


def is_number_of_messages(value: object) -> bool:
    """Return whether the value can limit how many messages run at once."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1_000_000


def _key(options: Mapping[str, Any], name: str) -> str | None:
    """Return a key, or None. Zero bytes, which end it in Redis, and leading bytes that show a kind are removed."""
    value = options.get(name)
    return None if value is None else str(value).replace("\0", "").lstrip(_RESERVED) or None


def kind_and_key(name: str) -> tuple[Kind, str]:
    """Return the kind and the key for a key as the scripts know it."""
    for kind, prefix in _PREFIXES.items():
        if prefix and name.startswith(prefix):
            return kind, name.removeprefix(prefix)
    return "ordering", name


def limits_from(name: str, stored: str) -> KeyLimits:
    """Return the limits for a key and limits as the scripts know them."""
    kind, key = kind_and_key(name)
    if not stored:
        return KeyLimits(kind, key, 1 if kind in ("ordering", "concurrency") else None, None)
    max_concurrent, starts, period_ms = map(int, stored.split())
    return KeyLimits(kind, key, max_concurrent or None, Rate(starts, period_ms) if period_ms else None)


@dataclass(frozen=True, slots=True)
class MessageAtWork:
    """A message at work: one that has not ended or, if its key has only a rate or a priority, that has not started.

    Attributes:
        limits: its key, and the limits of the key.
        place: its entry id or, if it is delayed, its name in the sorted set of delayed messages.
        message: the message; None if it cannot be decoded, for example because it is larger than a quarter of a
            megabyte.
        due_ms: time until it is due, 0 if it is overdue; None if it is in the stream.
        consumer: the consumer that received it; "" if none did, or if it is delayed.
        deliveries: the number of its deliveries.
        age_ms: time since it came to the stream; 0 if it is delayed.
    """

    limits: KeyLimits
    place: bytes
    message: dramatiq.Message[object] | None
    due_ms: int | None
    consumer: str
    deliveries: int
    age_ms: int


@dataclass(frozen=True, slots=True)
class KeyAtWork:
    """A key with messages at work, and what the messages in line wait for.

    Attributes:
        limits: the key and its limits, as the newest message set them.
        n_at_work: the number of messages at work. Others wait if it reaches ``limits.max_concurrent``.
        at_work: these messages, at most ten.
        n_started: the number of starts within the period of the rate. Others wait until enough of them are older.
        in_line: the number of messages that wait in line.
        longest_wait_ms: for how long the first of them has waited; None if none waits.
        failing_for_ms: for an ordering key, time since the message at work failed first; None if it did not.
    """

    limits: KeyLimits
    n_at_work: int
    at_work: tuple[MessageAtWork, ...]
    n_started: int
    in_line: int
    longest_wait_ms: int | None
    failing_for_ms: int | None
