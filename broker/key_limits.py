"""The limits that messages with the same key share: order, concurrency, and starts per period.

A message has at most one key: an ordering key, a concurrency key or a rate key. While the key's limits do not allow the
message to run, it waits outside the stream; see work.lua.
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

# The prefix of a key in Redis, which identifies its kind. The prefix \3 is reserved for messages that have not started;
# see work.lua.
_PREFIXES: Final[Mapping[Kind, str]] = {"ordering": "", "concurrency": "\1", "rate": "\2", "priority": "\4"}
_RESERVED: Final = "\1\2\3\4"

# Maximum number of messages with a priority that are in a queue's stream and have not started. An urgent message may
# have to wait for these. Eight keep any number of threads busy, because each start brings the next message to the
# stream.
MOST_UNSTARTED: Final = 8
MOST_URGENT: Final = -1_000
LEAST_URGENT: Final = 1_000

_RATE: Final = re.compile(r"([1-9]\d{0,8})/(s|min|h|day)")
_PERIODS_MS: Final = {"s": 1_000, "min": 60_000, "h": 3_600_000, "day": 86_400_000}


@dataclass(frozen=True, slots=True)
class Rate:
    """The maximum number of messages that may start per period."""

    starts: int
    period_ms: int

    def __str__(self) -> str:
        unit = next(unit for unit, ms in _PERIODS_MS.items() if ms == self.period_ms)
        return f"{self.starts}/{unit}"


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """The key and the limits in a message's options.

    Attributes:
        key: the key that the message shares with other messages of its queue.
        max_concurrent: the maximum number of messages with the key that may be at work, or None for no limit.
        rate: the maximum rate at which messages with the key may start, or None for no limit.
        priority: the message's priority among the key's messages in line. Lower numbers come first.
    """

    kind: Kind
    key: str
    max_concurrent: int | None
    rate: Rate | None
    priority: int = 0

    @property
    def name(self) -> str:
        """The key in the form that the scripts use."""
        return _PREFIXES[self.kind] + self.key

    @property
    def stored(self) -> str:
        """The limits and the priority in the form that the scripts use, or "" for an ordering key without a rate."""
        if self.kind == "ordering" and self.rate is None:
            return ""
        starts, period_ms = (0, 0) if self.rate is None else (self.rate.starts, self.rate.period_ms)
        if self.kind == "priority":
            starts = MOST_UNSTARTED
        rank = "" if self.kind == "ordering" else f" p{self.priority - MOST_URGENT:04d}"
        return f"{self.max_concurrent or 0} {starts} {period_ms}{rank}"

    @property
    def are_asked_at_start(self) -> bool:
        """Whether Redis must record the start of a message, because a limit counts starts."""
        return self.rate is not None or self.kind == "priority"

    @property
    def facts(self) -> Mapping[str, str]:
        """The dead-letter fields that store the key and its limits, so that they apply after a requeue."""
        facts = {} if self.kind == "priority" else {f"{self.kind}_key": self.key}
        return facts | {"limits": self.stored} if self.stored else facts

    def name_in_delayed(self) -> str:
        """Return a unique name for a delayed message. It contains the key and limits, which the promotion reads."""
        name = f"{self.name}\0{token_hex(8)}"
        return name if self.kind == "ordering" else f"{name}\0{self.stored}"


def rate_from(text: object) -> Rate | None:
    """Parse a rate such as ``100/min``. Return None if it is invalid."""
    found = _RATE.fullmatch(text) if isinstance(text, str) else None
    return None if found is None else Rate(int(found[1]), _PERIODS_MS[found[2]])


def key_limits_of(message: dramatiq.Message[Any] | MessageProxy) -> KeyLimits | None:
    """Return the key and the limits in a message's options, or None. Invalid options are ignored."""
    options = message.options
    if not options:  # most messages have no options
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
    """Return whether the value is a valid number of messages that may run at once."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1_000_000


def _key(options: Mapping[str, Any], name: str) -> str | None:
    """Return the key in an option, or None. Zero bytes and kind prefixes, which scripts interpret, are removed."""
    value = options.get(name)
    return None if value is None else str(value).replace("\0", "").lstrip(_RESERVED) or None


def kind_and_key(name: str) -> tuple[Kind, str]:
    """Split a key, in the form that the scripts use, into its kind and the key itself."""
    for kind, prefix in _PREFIXES.items():
        if prefix and name.startswith(prefix):
            return kind, name.removeprefix(prefix)
    return "ordering", name


def limits_from(name: str, stored: str) -> KeyLimits:
    """Parse a key and its limits from the form that the scripts use."""
    kind, key = kind_and_key(name)
    if not stored:
        return KeyLimits(kind, key, 1 if kind in ("ordering", "concurrency") else None, None)
    max_concurrent, starts, period_ms = map(int, stored.split())
    return KeyLimits(kind, key, max_concurrent or None, Rate(starts, period_ms) if period_ms else None)


@dataclass(frozen=True, slots=True)
class MessageAtWork:
    """A message that has its turn among the messages of its key.

    The turn lasts until the message ends or, if the key has only a rate or a priority, until it starts.

    Attributes:
        limits: its key and the key's limits.
        place: its entry id or, if it is delayed, its name in the sorted set of delayed messages.
        message: the message, or None if it cannot be decoded, for example because it is larger than a quarter of a
            megabyte.
        due_ms: time until it is due, 0 if it is overdue, or None if it is in the stream.
        consumer: the consumer that holds it, or "" if none does.
        deliveries: its delivery count.
        age_ms: time since it was added to the stream, or 0 if it is delayed.
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
    """A key that has messages at work.

    Attributes:
        limits: the key and its limits, as the newest message set them.
        n_at_work: the number of messages at work. If it reaches ``limits.max_concurrent``, other messages wait.
        at_work: up to ten of the messages at work.
        n_started: the number of starts within the last period of ``limits.rate``. If it reaches the rate, other
            messages wait.
        in_line: the number of messages that wait in line.
        longest_wait_ms: how long the first message in line has waited, or None if none waits.
        failing_for_ms: for an ordering key, time since the first failure of the message at work, or None if it has not
            failed.
    """

    limits: KeyLimits
    n_at_work: int
    at_work: tuple[MessageAtWork, ...]
    n_started: int
    in_line: int
    longest_wait_ms: int | None
    failing_for_ms: int | None
