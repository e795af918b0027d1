"""The message options that the broker and Dramatiq's middleware read, and their valid values.

unique_key, unique_for_ms   at most one message with the key waits, and locks the key for at most this time
ordering_key                messages with the key run one at a time, in the order in which they were enqueued
ordering_hold_ms            how long the message's retries may hold the ordering key
concurrency_key, max_concurrent  at most this many messages with the key run at once
expires_in_ms, keep_expired  a message that does not start within this time is dropped, or becomes a dead letter
rate, rate_key              at most this many messages with the key start per period
priority                    waiting messages with lower numbers come first
delay                       the delay in ms, for ``enqueue_many``

Dramatiq's middleware does not validate its options. A value of the wrong type makes the middleware that decides the
outcome of a message raise an exception, or ends the worker thread. So options are validated before a message is added
and before it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import dramatiq

from .errors import InvalidOption
from .key_limits import LEAST_URGENT, MOST_URGENT, is_number_of_messages, is_priority, rate_from

# Largest number that an option may have. In milliseconds, it is 285,000 years. Arithmetic with larger numbers, for
# example for a back-off, exceeds the precision of a float.
LARGEST: Final = 2**53

# Name of the option that holds the expiry time of an enqueued message, in ms on the server's clock.
EXPIRES_AT: Final = "expires_at_ms"

_LIMITING: Final = frozenset({"ordering_key", "concurrency_key", "max_concurrent", "rate", "rate_key", "priority"})


def unique_key_of(options: Mapping[str, Any]) -> str | None:
    """Return the message's unique key, or None."""
    unique_key = options.get("unique_key")
    return None if unique_key is None else str(unique_key)


def delay_ms_of(delay: float | None) -> int:
    """Return a delay in whole milliseconds, capped at ``LARGEST``."""
    return min(max(0, int(delay or 0)), LARGEST)


def expires_in_ms_of(options: Mapping[str, Any]) -> int | None:
    """Return the time in ms after which a message expires, not counting its delay, or None if it never expires."""
    expires_in_ms = options.get("expires_in_ms")
    return None if expires_in_ms is None else int(expires_in_ms)


def expires_at_ms_of(options: Mapping[str, Any]) -> int:
    """Return the expiry time of a message in ms on the server's clock, or 0 if it never expires."""
    return int(options.get(EXPIRES_AT) or 0)


def is_part_of_composition(options: Mapping[str, Any]) -> bool:
    """Return whether a pipeline or a group can complete only if a message with these options runs."""
    return bool(options.get("pipe_target") or options.get("group_completion_uuid"))


def is_known(name: str) -> bool:
    """Return whether the broker or Dramatiq's middleware reads the option with this name."""
    return name in _KINDS or name in _LIMITING or name == "unique_key"


def check_options(options: Mapping[str, Any]) -> None:
    """Check the options that this broker and Dramatiq's middleware read. Other options may have any value.

    Raises:
        InvalidOption: an option has an invalid value.
    """
    for name, value in options.items():
        kind = _KINDS.get(name)
        if kind is not None and not kind[0](value):
            problem = f"expected {kind[1]}, got {shown(value)}"
            raise InvalidOption(str(name), problem, f"correct the option {name}, or leave it out")
    if not _LIMITING.isdisjoint(options):
        _check_limits({name: options[name] for name in _LIMITING if options.get(name) is not None})


def _check_limits(given: Mapping[str, Any]) -> None:
    """Check that a message has at most one key and that its limits are complete and compatible.

    Raises:
        InvalidOption: the options do not meet these conditions.
    """
    keys = [name for name in ("ordering_key", "concurrency_key", "rate_key") if name in given]
    if len(keys) > 1:
        raise InvalidOption(keys[1], f"a message has one key, got {' and '.join(keys)}", f"leave out {keys[1]}")
    if "ordering_key" in given and "priority" in given:
        raise InvalidOption("priority", "contradicts the order of an ordering key", "leave out one of the two")
    for name, needed, hint in (
        ("concurrency_key", "max_concurrent", "set max_concurrent to the number of messages that may run at once"),
        ("max_concurrent", "concurrency_key", "set concurrency_key, which may be the same for all messages"),
        ("rate_key", "rate", 'set rate, for example "100/min"'),
    ):
        if name in given and needed not in given:
            raise InvalidOption(name, f"needs the option {needed}", hint)


def shown(value: object) -> str:
    """Return a value as text of at most 80 characters, for an error message."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_number(value: object) -> bool:
    # this refuses NaN, too, because comparisons with NaN are false
    return isinstance(value, int | float) and 0 <= value <= LARGEST


def _is_limit(value: object) -> bool:
    """Return whether the value is a number, or None, 0 or infinity, which mean no limit."""
    return not value or value == float("inf") or _is_number(value)


def _is_count(value: object) -> bool:
    """Return whether the value is a number, or None or infinity, which mean no limit."""
    return value is None or value == float("inf") or _is_number(value)


def _is_key(value: object) -> bool:
    return value is None or (isinstance(value, str | int) and str(value) != "")


def _is_many(value: object) -> bool:
    return value is None or is_number_of_messages(value)


def _is_priority(value: object) -> bool:
    return value is None or is_priority(value)


def _is_rate(value: object) -> bool:
    return value is None or rate_from(value) is not None


def _is_hold(value: object) -> bool:
    """Return whether the value is a number, or None, which means no limit."""
    return value is None or _is_number(value)


def _is_whole_number(value: object) -> bool:
    return isinstance(value, int) and 0 <= value <= LARGEST


def _is_finite(value: object) -> bool:
    # larger values are capped where they are used
    return value is None or (isinstance(value, int | float) and abs(value) < float("inf"))


def _is_name(value: object) -> bool:
    return not value or isinstance(value, str)


def _is_exception_classes(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_exception_classes, value))
    return not value or isinstance(value, type)


def _is_message(value: object) -> bool:
    if not isinstance(value, Mapping) or not isinstance(value.get("options"), Mapping):
        return False
    try:
        dramatiq.Message(**value)
    except TypeError:  # a field is missing, unknown, or not iterable
        return False
    return isinstance(value["args"], list | tuple)


def _is_follower(value: object) -> bool:
    return value is None or _is_message(value)


def _are_followers(value: object) -> bool:
    return not value or (isinstance(value, list | tuple) and all(map(_is_message, value)))


_Kind = tuple[Callable[[object], bool], str]

_NUMBER: Final[_Kind] = (_is_number, "a number of at least 0")
_LIMIT: Final[_Kind] = (_is_limit, "a number of milliseconds, or None")
_NAME: Final[_Kind] = (_is_name, "the name of an actor, or None")

_KINDS: Final[Mapping[str, _Kind]] = {
    "retries": _NUMBER,
    "max_retries": (_is_count, "a number of at least 0, or None"),
    "min_backoff": _NUMBER,
    "max_backoff": _NUMBER,
    "throws": (_is_exception_classes, "an exception class, or a tuple of them"),
    "on_retry_exhausted": _NAME,
    "on_success": _NAME,
    "on_failure": _NAME,
    "time_limit": _LIMIT,
    "max_age": _LIMIT,
    "result_ttl": (_is_whole_number, "a whole number of milliseconds"),
    "pipe_target": (_is_follower, "a message, as Message.asdict() makes it"),
    "group_completion_uuid": (_is_name, "a text"),
    "group_completion_callbacks": (_are_followers, "a list of messages, as Message.asdict() makes them"),
    "ordering_hold_ms": (_is_hold, "a number of milliseconds, at least 0, or None"),
    "concurrency_key": (_is_key, "a text"),
    "max_concurrent": (_is_many, "a whole number of at least 1"),
    "rate": (_is_rate, 'a number of starts per s, min, h or day, such as "100/min"'),
    "rate_key": (_is_key, "a text"),
    "priority": (_is_priority, f"a whole number from {MOST_URGENT} to {LEAST_URGENT}"),
    "expires_in_ms": (_is_hold, "a number of milliseconds, at least 0, or None"),
    "keep_expired": (lambda value: value is None or isinstance(value, bool), "True or False"),
    EXPIRES_AT: (_is_hold, "a number of milliseconds, at least 0, or None"),
    "unique_for_ms": (_is_finite, "a number of milliseconds, or None"),
    "delay": (_is_finite, "a number of milliseconds, or None"),
}
