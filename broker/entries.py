"""Decoding: turns a stream entry into a message, or raises an error that states why it is not a message.

An entry contains either a Dramatiq message in its only field, ``message``, or fields that the decoder of its queue
turns into a message. Invalid content must not stop a consumer or a worker thread, so every error becomes an
:class:`UndecodableEntry`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import dramatiq
from dramatiq.errors import DecodeError

from .errors import InvalidOption, UndecodableEntry
from .key_limits import key_limits_of
from .net.bounded_read import MOST_PARTS
from .options import EXPIRES_AT, check_options, shown, unique_key_of

# A function that takes an entry's id and fields. It returns a message for the entry's queue or raises UndecodableEntry.
EntryDecoder = Callable[[str, Mapping[bytes, bytes]], dramatiq.Message[Any]]
# A function that raises UndecodableEntry to refuse a valid Dramatiq message that its queue must not contain.
MessageCheck = Callable[[dramatiq.Message[Any]], None]

MESSAGE_FIELD = b"message"

# Maximum size in bytes of an entry that operators see in full. Of a larger entry, they see only the head.
LONGEST_SHOWN = 1 << 20
PAGE_BYTES = 4 << 20


def fields_of(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return an entry's fields from Redis's flat list of names and values."""
    if len(flat) == 2:  # the common case: an entry with a Dramatiq message has one field
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
    """Return the message in an entry.

    Args:
        check: called with a Dramatiq message of this queue, but not with the messages that ``decoder`` returns.

    Raises:
        UndecodableEntry: the entry is not a message. The error's ``field`` is ``queue_name`` if the message belongs to
            another queue.
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
        # refuse the message, because a worker thread dies if it finds no consumer for a message's queue name
        raise WrongQueue(message, queue_name)
    if check is not None and not is_foreign:
        check(message)
    if message.options:
        # remove the eta, because the broker handles delays, and the Worker would delay the message in its memory
        message.options.pop("eta", None)
    return message


def size_of(flat: Sequence[bytes]) -> int:
    """Return the size in bytes that ``max_message_bytes`` limits.

    It is the size of the encoded message or, for a foreign entry, of all names and values.
    """
    return len(flat[1]) if len(flat) == 2 and flat[0] == MESSAGE_FIELD else sum(map(len, flat))


def was_retried(fields: Mapping[bytes, bytes]) -> bool:
    """Return whether an entry is a message that has run before, so that workers accept it whatever its size."""
    try:
        return has_run(dramatiq.Message.decode(fields[MESSAGE_FIELD]))
    except (KeyError, DecodeError):
        return False


def as_dead_letter(payload: bytes, *, has_traceback: bool) -> bytes | None:
    """Return an encoded message in the form that its dead letter stores, or None if it cannot be encoded again.

    The expiry time is removed, because a requeued message does not expire. If ``has_traceback``, the dead letter
    stores a traceback, and the one that Retries added to the message is removed.
    """
    try:
        message = dramatiq.Message.decode(payload)
        message.options.pop(EXPIRES_AT, None)
        if has_traceback:
            message.options.pop("traceback", None)
        return message.encode()
    except Exception:  # an encoder may raise anything
        return None


def has_run(message: dramatiq.Message[Any]) -> bool:
    return bool(message.options.get("retries"))


class WrongQueue(UndecodableEntry):
    """Raised when a message for one queue is in another queue's stream."""

    def __init__(self, message: dramatiq.Message[Any], found_in: str) -> None:
        problem = f"expected {found_in!r}, the queue of its stream, got {message.queue_name!r}"
        super().__init__("queue_name", problem, "enqueue the message on its own queue", message=message)


class Oversize(UndecodableEntry):
    """Raised when an entry is larger than ``max_message_bytes``."""

    def __init__(self, n_bytes: int, limit: int, message: dramatiq.Message[Any] | None) -> None:
        problem = f"has {n_bytes} bytes, more than the {limit} allowed"
        if n_bytes <= limit:  # the entry is small enough but has too many fields
            problem = f"has more than {MOST_PARTS // 2} fields"
        hint = "send a key instead of the data, or raise max_message_bytes of the workers and requeue this dead letter"
        super().__init__("entry", problem, hint, message=message)


_KINDS: Final = (
    ("queue_name", str, "a text"),
    ("actor_name", str, "a text"),
    ("kwargs", dict, "a mapping"),
    ("options", dict, "a mapping"),
    ("message_id", str, "a text"),
    ("message_timestamp", int, "a number of milliseconds since 1970"),
)
AS_DRAMATIQ: Final = "send the JSON of dramatiq.Message.encode() for a message whose fields have Dramatiq's types"


def _decode_message(payload: bytes) -> dramatiq.Message[Any]:
    try:
        message = dramatiq.Message.decode(payload)
    except DecodeError as error:
        raise UndecodableEntry(
            "message",
            f"is not a Dramatiq message: {error.error}",
            "send the JSON of dramatiq.Message.encode()",
        ) from error
    return _checked(message)


def _decode_foreign(entry_id: str, fields: Mapping[bytes, bytes], decoder: EntryDecoder) -> dramatiq.Message[Any]:
    try:
        message = decoder(entry_id, fields)
    except UndecodableEntry:
        raise
    except Exception as error:
        # a decoder may raise its own package's errors, which may have a field, a problem and a hint
        raise UndecodableEntry(
            str(getattr(error, "field", "entry")),
            str(getattr(error, "problem", f"cannot be decoded: {type(error).__name__}: {error}")),
            str(getattr(error, "hint", "see the traceback of this dead letter")),
        ) from error
    return _checked(message)


def _checked(message: dramatiq.Message[Any]) -> dramatiq.Message[Any]:
    """Return the message, with Dramatiq's types, if a Worker can run it.

    Raises:
        UndecodableEntry: with this message, the Worker, Retries or other middleware would fail.
    """
    if _needs_no_check(message):
        return message
    message = with_types(message)
    check_text(message)
    try:
        check_options(message.options)
    except InvalidOption as error:
        # pass the message on, so that its unique key and its turn are freed
        raise UndecodableEntry(error.field, error.problem, error.hint, message=message) from error
    return message


def _needs_no_check(message: dramatiq.Message[Any]) -> bool:
    """Return whether a message has Dramatiq's types, only ASCII names and no options, so that it needs no check."""
    queue_name, actor_name, message_id = message.queue_name, message.actor_name, message.message_id
    return (
        type(message_id) is type(actor_name) is type(queue_name) is str
        and message.options == {}
        and type(message.message_timestamp) is int
        and isinstance(message.kwargs, dict)  # type: ignore[redundant-expr]  # decoders may pass anything
        and type(message.options) is dict
        and (queue_name + actor_name + message_id).isascii()
    )


def with_types(message: dramatiq.Message[Any]) -> dramatiq.Message[Any]:
    """Return the message with fields that have Dramatiq's types.

    Dramatiq's encoders accept other types, too. Numbers and UUIDs are converted to strings in ``message_id``, and
    floats and strings to integers in ``message_timestamp``.

    Raises:
        UndecodableEntry: a field has a type that no Worker can use.
    """
    if (  # the common case, written out because this function is called twice per message
        type(message.message_id) is type(message.actor_name) is type(message.queue_name) is str
        and type(message.message_timestamp) is int
        and type(message.kwargs) is type(message.options) is dict
    ):
        return message
    original, changed = message, dict[str, Any]()
    message_id: Any = message.message_id
    if isinstance(message_id, int | float | UUID):
        changed["message_id"] = str(message_id)
    if type(message.message_timestamp) is not int:
        changed["message_timestamp"] = _milliseconds(message.message_timestamp)
    if changed:
        message = dataclasses.replace(message, **changed)
    for name, kind, expected in _KINDS:
        if not isinstance(getattr(message, name), kind):
            found = getattr(original, name)
            raise UndecodableEntry(name, f"expected {expected}, got {shown(found)}", AS_DRAMATIQ)
    return message


def _milliseconds(timestamp: object) -> int | None:
    if isinstance(timestamp, bool) or not isinstance(timestamp, int | float | str):
        return None
    try:
        return int(float(timestamp))
    except (ValueError, OverflowError):  # the text is not a number, or the number is NaN or infinite
        return None


def check_text(message: dramatiq.Message[Any]) -> None:
    """Check that the strings in a message can be sent to Redis.

    Raises:
        UndecodableEntry: a string contains an unpaired surrogate, which JSON can represent but Redis commands cannot.
    """
    options = message.options
    # most messages have no options and only ASCII strings
    if not options and (message.queue_name + message.actor_name + message.message_id).isascii():
        return
    limits = key_limits_of(message)
    for name, text in (
        ("queue_name", message.queue_name),
        ("actor_name", message.actor_name),
        ("message_id", message.message_id),
        ("unique_key", unique_key_of(options)),
        *([] if limits is None else [(f"{limits.kind}_key", limits.key)]),
    ):
        if text is not None and not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UndecodableEntry(name, "contains an unpaired surrogate", "send text that can be encoded as UTF-8")
