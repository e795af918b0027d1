"""From a stream entry to a message, or to the reason why it is none.

An entry is either a Dramatiq message, one field ``message``, or whatever the decoder of its queue understands.
Nothing that stands in a stream may stop a consumer or a worker thread: what is wrong becomes :class:`UndecodableEntry`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import dramatiq
from dramatiq.errors import DecodeError

from .errors import UndecodableEntry
from .options import ordering_key_of, unique_key_of

# From the entry's id and its fields to a message of the entry's queue. Raises UndecodableEntry.
EntryDecoder = Callable[[str, Mapping[bytes, bytes]], dramatiq.Message[Any]]
# What a queue demands of Dramatiq messages beyond their form. Raises UndecodableEntry.
MessageCheck = Callable[[dramatiq.Message[Any]], None]

MESSAGE_FIELD = b"message"

# Of a larger entry people are shown the head, and a page of entries ends at so many bytes.
LONGEST_SHOWN = 1 << 20
PAGE_BYTES = 4 << 20


def fields_of(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """An entry's fields, from Redis' flat list of names and values."""
    if len(flat) == 2:  # every Dramatiq message
        return {flat[0]: flat[1]}
    return dict(zip(flat[::2], flat[1::2], strict=True))


def decode(
    entry_id: str,
    fields: Mapping[bytes, bytes],
    *,
    queue_name: str,
    decoder: EntryDecoder | None,
    check: MessageCheck | None = None,
) -> dramatiq.Message[Any]:
    """Return the message of an entry.

    Args:
        check: is called with a Dramatiq message of this queue; what ``decoder`` makes has been checked by it.

    Raises:
        UndecodableEntry: the entry is not a message. Its ``field`` is ``queue_name`` when it is one of another queue.
    """
    is_foreign = False
    if MESSAGE_FIELD in fields and (decoder is None or len(fields) == 1):
        message = _decode_message(fields[MESSAGE_FIELD])
    elif decoder is None:
        raise UndecodableEntry(
            "message", "is missing", "enqueue through a Dramatiq broker, or give this queue a decoder for its form"
        )
    else:
        message, is_foreign = _decode_foreign(entry_id, fields, decoder), True
    if message.queue_name != queue_name:
        # The Worker looks for the queue's consumer by this name, and its thread would die of finding none.
        raise WrongQueue(message, queue_name)
    if check is not None and not is_foreign:
        check(message)
    # A time to wait for is the broker's business; left in, the Worker would keep the message in its memory.
    message.options.pop("eta", None)
    return message


class WrongQueue(UndecodableEntry):
    """Raised when a message of one queue stands in the stream of another."""

    def __init__(self, message: dramatiq.Message[Any], found_in: str) -> None:
        problem = f"is {message.queue_name!r} in the stream of {found_in!r}"
        super().__init__("queue_name", problem, "enqueue it on its own queue", message=message)


_KINDS: Final = (
    ("queue_name", str),
    ("actor_name", str),
    ("kwargs", dict),
    ("options", dict),
    ("message_id", str),
    ("message_timestamp", int),
)


def _decode_message(payload: bytes) -> dramatiq.Message[Any]:
    try:
        message = dramatiq.Message.decode(payload)
    except DecodeError as error:
        raise UndecodableEntry(
            "message",
            f"is no Dramatiq message: {error.error}",
            "send the JSON that dramatiq.Message.encode() makes",
        ) from error
    _check(message)
    return message


def _decode_foreign(entry_id: str, fields: Mapping[bytes, bytes], decoder: EntryDecoder) -> dramatiq.Message[Any]:
    try:
        message = decoder(entry_id, fields)
    except UndecodableEntry:
        raise
    except Exception as error:
        # Duck-typed: a decoder may raise its own package's errors that name field and mend.
        raise UndecodableEntry(
            str(getattr(error, "field", "entry")),
            str(getattr(error, "problem", f"cannot be decoded: {type(error).__name__}: {error}")),
            str(getattr(error, "mend", "see the traceback of this dead letter")),
        ) from error
    _check(message)
    return message


def _check(message: dramatiq.Message[Any]) -> None:
    """Raises UndecodableEntry for a message that would break the Worker."""
    for name, kind in _KINDS:
        if not isinstance(getattr(message, name), kind):
            raise UndecodableEntry(name, f"is no {kind.__name__}", "send what dramatiq.Message.encode() makes")
    options = message.options
    for name, text in (
        ("actor_name", message.actor_name),
        ("message_id", message.message_id),
        ("unique_key", unique_key_of(options)),
        ("ordering_key", ordering_key_of(options)),
    ):
        # JSON may hold half of a pair of surrogates, which no command to Redis can: nothing that became of it could be
        # written.
        if text is not None and not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UndecodableEntry(name, "holds half a character", "send text that can be encoded as UTF-8")
