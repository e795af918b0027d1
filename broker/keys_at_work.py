"""The keys that limit which messages run at once, as operators see them: what is at work, and how many wait for it."""

from __future__ import annotations

from dataclasses import dataclass

import dramatiq


@dataclass(frozen=True, slots=True)
class MessageAtWork:
    """A message that later messages of its key wait for.

    Attributes:
        key: the ordering key.
        place: its entry id or, if it is delayed, its name in the sorted set of delayed messages.
        message: the message; None if it cannot be decoded, for example because it is larger than a megabyte.
        due_ms: time until it is due, 0 if it is overdue; None if it is in the stream.
        consumer: the consumer that received it; "" if none did, or if it is delayed.
        deliveries: how often it was delivered.
        age_ms: time since it came to the stream; 0 if it is delayed.
    """

    key: str
    place: bytes
    message: dramatiq.Message[object] | None
    due_ms: int | None
    consumer: str
    deliveries: int
    age_ms: int


@dataclass(frozen=True, slots=True)
class KeyAtWork:
    """A key with messages at work.

    Attributes:
        key: the ordering key.
        at_work: the message that is in the stream, in flight or delayed.
        in_line: the number of messages that wait for it.
        longest_wait_ms: for how long the first of them has waited; None if none waits.
        failing_for_ms: time since the message at work failed first; None if it did not.
    """

    key: str
    at_work: tuple[MessageAtWork, ...]
    in_line: int
    longest_wait_ms: int | None
    failing_for_ms: int | None
