"""Validation of the entries in the streams: flat events become Dramatiq messages, and messages are checked.

A flat event is checked here, before it occupies a worker thread. An invalid event becomes a dead letter
immediately, with its original fields and the reason ``undecodable``. A valid event becomes a Dramatiq message, so its
retry is an ordinary message. The actor checks the fields of a Dramatiq message, except :class:`CheckedArguments`, which
were checked here.

Every producer that may ``XADD`` to ``streams:embedding.ingested`` can write a Dramatiq message there as well, because
workers write retries and clients write events in that form. Such a message can do no more than a flat event:
:func:`check_message` accepts only actors of the queue, and only those Dramatiq options that clients and retries write.
A message with any other option is refused rather than run without it. The dead letter names the option, so no option
that the sender set is dropped silently.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import dramatiq

from broker import EntryDecoder, MessageCheck, UndecodableEntry
from sploot_cluster.errors import InvalidInput
from sploot_cluster.event import W3C_TRACEPARENT, EmbeddingIngested
from sploot_cluster.limits import MAX_INT64
from tasks.contracts import EMBEDDING_INGESTED, QUEUE_OF, QUEUES
from tasks.trace_context import RETRIED_FROM, TRACEPARENT


class CheckedArguments(dict[str, Any]):
    """The keyword arguments of a message that this module created, with the checked ``event`` that they describe.

    In JSON they are ordinary arguments, so a retry is checked again.
    """

    def __init__(self, event: EmbeddingIngested) -> None:
        super().__init__(event.to_kwargs())
        self.event = event


def decode_embedding(entry_id: str, fields: Mapping[bytes, bytes]) -> dramatiq.Message[Any]:
    """Return the message for a flat event, with the event's id and the time when Redis received the entry.

    If a producer chose an entry id ahead of the clock, the time of decoding is used instead.

    Raises:
        UndecodableEntry: names the field that is unknown, missing or invalid.
    """
    try:
        event = EmbeddingIngested.from_fields(fields)
    except InvalidInput as refused:
        raise UndecodableEntry(refused.field, refused.problem, refused.hint) from refused
    return dramatiq.Message(
        queue_name=EMBEDDING_INGESTED,
        actor_name=EmbeddingIngested.actor_name,
        args=(),
        kwargs=CheckedArguments(event),
        options={},
        message_id=event.event_id,
        message_timestamp=min(int(entry_id.partition("-")[0]), int(1000 * time.time())),
    )


def check_message(message: dramatiq.Message[Any]) -> None:
    """Refuse a message that its queue does not allow.

    Raises:
        UndecodableEntry: its actor belongs to a different queue, it has an option that limits it by a key, or, on
            ``embedding.ingested``, it has an option or an option's value that neither clients nor retries write.
    """
    queue = QUEUE_OF.get(message.actor_name)
    if queue not in (None, message.queue_name):
        raise UndecodableEntry(
            "actor_name",
            f"{message.actor_name} belongs to queue {queue}, but was sent to {message.queue_name}",
            f"enqueue it on {queue}",
            message=message,
        )
    if message.queue_name != EMBEDDING_INGESTED:
        for name in _LIMITING & message.options.keys():
            # messages in line are kept outside the stream, where none of our commands and metrics include them
            raise UndecodableEntry(f"options.{name}", "is not an option of this queue", "leave it out", message=message)
        return
    for name, value in message.options.items():
        expected = _OPTIONS.get(name)
        if expected is None:
            raise UndecodableEntry(
                f"options.{name[:_LONGEST_NAME]}",
                "is not an option of this queue",
                f"leave it out; this queue accepts {', '.join(_OPTIONS)}",
                message=message,
            )
        is_good, form = expected
        if not is_good(value):
            raise UndecodableEntry(
                f"options.{name}", f"is not {form}", f"send {form}, or leave it out", message=message
            )


# Options that make a message wait for other messages with the same key.
_LIMITING: Final = frozenset({"ordering_key", "concurrency_key", "rate", "priority"})
_LONGEST_NAME: Final = 64  # maximum length of an option's name in an error, in characters
_MOST_RETRIES: Final = 1_000  # far above every policy; with a negative number, a message would be retried endlessly


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_traceparent(value: object) -> bool:
    return value is None or (isinstance(value, str) and W3C_TRACEPARENT.matches(value))


def _is_whole(highest: int) -> Callable[[object], bool]:
    # not isinstance, because True is an int, too
    return lambda value: type(value) is int and 0 <= value <= highest


# The options that clients and retries write, each with a check and a description of its value. The maximum size of an
# entry limits a traceback.
_OPTIONS: Final[Mapping[str, tuple[Callable[[object], bool], str]]] = {
    "tracked": (lambda value: isinstance(value, bool), "true or false"),
    "retries": (_is_whole(_MOST_RETRIES), f"a whole number from 0 to {_MOST_RETRIES}"),
    "traceback": (_is_text, "text"),
    "requeue_timestamp": (_is_whole(MAX_INT64), "a time in milliseconds"),
    TRACEPARENT: (_is_traceparent, "W3C Trace Context"),
    RETRIED_FROM: (_is_traceparent, "W3C Trace Context"),
}

DECODERS: Final[Mapping[str, EntryDecoder]] = {EMBEDDING_INGESTED: decode_embedding}
CHECKS: Final[Mapping[str, MessageCheck]] = dict.fromkeys(QUEUES, check_message)
