"""What may stand in the streams of work: flat events become Dramatiq messages, and messages are checked.

A flat event is checked here, before it costs a worker thread anything. A bad one becomes a dead letter at once, with
its own fields and the reason ``undecodable``; a good one travels on in the one form that workers pass on, so that a
retry of it is an ordinary message. The fields of a Dramatiq message are checked by its actor, which knows a message
that was checked by its :class:`CheckedArguments`.

Everyone who may ``XADD`` to ``streams:embedding.ingested`` can write a Dramatiq message there as well, because workers
write their retries in that form and clients what they hand in. Such a message can do what a flat event can and nothing
else: :func:`check_message` accepts actors of the queue alone, and of Dramatiq's options those that clients and retries
write. A message with another option is refused and not run without it: the dead letter names the option, and nothing
that its sender asked for is dropped without a word.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import dramatiq

from broker import EntryDecoder, MessageCheck, UndecodableEntry
from sploot_cluster.errors import InvalidInput
from tasks.contracts import EMBEDDING_INGESTED, MAX_INT64, QUEUE_OF, QUEUES, EmbeddingIngested
from tasks.trace_context import FORM_OF_TRACEPARENT, RETRIED_FROM, TRACEPARENT


class CheckedArguments(dict[str, Any]):
    """The keyword arguments of a message made here, and the ``event`` that they say, which was checked.

    As JSON they are arguments like any others: a retry is checked again.
    """

    def __init__(self, event: EmbeddingIngested) -> None:
        super().__init__(event.to_kwargs())
        self.event = event


def decode_embedding(entry_id: str, fields: Mapping[bytes, bytes]) -> dramatiq.Message[Any]:
    """Return the message of a flat event. Its id is the event's, its time the one at which Redis took the entry.

    An entry whose id is ahead of the clock, as a producer can choose one, has the time at which it is decoded.

    Raises:
        UndecodableEntry: names the field that is unknown, missing or cannot be used.
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
    """Refuse a message that asks for more than its queue is for.

    Raises:
        UndecodableEntry: its actor belongs to another queue, or, on ``embedding.ingested``, it has an option that
            neither clients nor retries write, or one with a value that they never give it.
    """
    queue = QUEUE_OF.get(message.actor_name)
    if queue not in (None, message.queue_name):
        raise UndecodableEntry(
            "actor_name",
            f"{message.actor_name} is an actor of queue {queue}, and this is {message.queue_name}",
            f"enqueue it on {queue}",
            message=message,
        )
    if message.queue_name != EMBEDDING_INGESTED:
        return
    for name, value in message.options.items():
        expected = _OPTIONS.get(name)
        if expected is None:
            raise UndecodableEntry(
                f"options.{name[:_LONGEST_NAME]}",
                "is not an option of this queue",
                f"leave it out; the options of this queue are {', '.join(_OPTIONS)}",
                message=message,
            )
        is_good, form = expected
        if not is_good(value):
            raise UndecodableEntry(
                f"options.{name}", f"is not {form}", f"send {form}, or leave it out", message=message
            )


_LONGEST_NAME: Final = 64  # characters of an option's name that an error repeats
_MOST_RETRIES: Final = 1_000  # far above every policy; below zero a message would be tried again without end


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_traceparent(value: object) -> bool:
    return value is None or (isinstance(value, str) and FORM_OF_TRACEPARENT.fullmatch(value) is not None)


def _is_whole(highest: int) -> Callable[[object], bool]:
    # True is a number by accident
    return lambda value: type(value) is int and 0 <= value <= highest


# What clients and retries write, and the form of its value. The text of a traceback is bounded by the entry's size.
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
