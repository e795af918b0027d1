"""The exceptions that this package raises.

    dramatiq.errors.BrokerError
    ├── BrokerConnectionError           defined by Dramatiq, whose Worker waits and tries again
    │   ├── ConnectionFailed            no connection could be opened, so nothing was sent
    │   └── ConnectionClosed            the connection broke, or the server cannot execute the command now
    │       └── EnqueueUncertain        a message was sent, but it is unknown whether it was added
    ├── QueueFull                       ``max_queue_length`` is reached; lists the messages that were not added
    ├── MessageTooLarge                 ``max_message_bytes`` is exceeded; nothing was added
    │   └── DeadLetterTooLarge          a dead letter was not requeued, because workers would refuse it
    └── InvalidMessage                  a field or an option has the wrong type; nothing was added
    ValueError
    └── InvalidField                    a field is invalid; names the field, the problem and a hint
        ├── SettingsError               a setting has an invalid value
        ├── InvalidOption               an option of an actor or a message has an invalid value
        ├── InvalidMessage              see above
        └── UndecodableEntry            an entry is not a message; raised by decoders, too
    dramatiq.middleware.SkipMessage
    ├── MessageCancelled                this message was cancelled; also stored as its result
    ├── DeliveryLimitReached            every process that ran this message died
    ├── LeaseLost                       another process holds this message now
    └── MessageExpired                  this message did not start within ``expires_in_ms``
    dramatiq.threading.Interrupt
    └── Cancelled                       raised in the thread of a running job that was cancelled

redis-py's errors are translated in ``net/connections.py`` and nowhere else.
"""

from __future__ import annotations

from typing import Any

from dramatiq import Message
from dramatiq.errors import BrokerError, ConnectionClosed
from dramatiq.middleware import SkipMessage
from dramatiq.threading import Interrupt


class InvalidField(ValueError):
    """The base class of errors about an invalid field, option or setting.

    Attributes:
        field: the name of the field, option or setting.
        problem: what is wrong with it.
        hint: how to fix it.
    """

    def __init__(self, field: str, problem: str, hint: str) -> None:
        super().__init__(f"{field}: {problem}; {hint}")
        self.field, self.problem, self.hint = field, problem, hint

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.field, self.problem, self.hint))


class SettingsError(InvalidField):
    """Raised when a setting of the broker has an invalid value."""


class EnqueueUncertain(ConnectionClosed):
    """Raised when messages were sent to Redis but no reply was received.

    Attributes:
        message_ids: the ids of the messages that may or may not have been added. Enqueue these messages again if
            running them twice does no harm.
    """

    def __init__(self, *, message_ids: tuple[str, ...], problem: str) -> None:
        shown = ", ".join(message_ids[:3]) + (f" and {len(message_ids) - 3} more" if len(message_ids) > 3 else "")
        super().__init__(  # type: ignore[no-untyped-call]  # so are all of Dramatiq's errors
            f"Redis did not confirm whether it added {shown}: {problem}; "
            "check the queue, or enqueue again if running twice does no harm"
        )
        self.message_ids, self.problem = message_ids, problem


class QueueFull(BrokerError):
    """Raised when a queue holds as many messages as ``max_queue_length`` allows.

    Attributes:
        message_ids: the ids of the messages that were not added, in order. ``enqueue_many`` added the others.
    """

    def __init__(self, *, queue_name: str, length: int, limit: int, message_ids: tuple[str, ...]) -> None:
        super().__init__(  # type: ignore[no-untyped-call]  # so are all of Dramatiq's errors
            f"queue {queue_name!r} holds {length} messages, and its limit is {limit}; "
            "enqueue later, add workers, or raise max_queue_length"
        )
        self.queue_name, self.length, self.limit, self.message_ids = queue_name, length, limit, message_ids


class MessageTooLarge(BrokerError):
    """Raised when the encoded form of a message exceeds ``max_message_bytes``."""

    field = "message"
    hint = "store the data elsewhere and send its key, or raise max_message_bytes of producers and workers"

    def __init__(self, *, message_id: str, n_bytes: int, limit: int) -> None:
        super().__init__(  # type: ignore[no-untyped-call]  # so are all of Dramatiq's errors
            f"message {message_id} has {n_bytes} bytes, more than the {limit} allowed; {self.hint}"
        )
        self.message_id, self.n_bytes, self.limit = message_id, n_bytes, limit


class DeadLetterTooLarge(MessageTooLarge):
    """Raised when a dead letter to requeue exceeds ``max_message_bytes``, so that workers would refuse it.

    Attributes:
        message_id: the message id of the first dead letter that was not requeued.
        dead_letter_ids: the ids of all dead letters that were not requeued.
        entry_ids: the results of ``DeadLetters.put_back`` for the others.
    """

    def __init__(
        self,
        *,
        message_id: str,
        n_bytes: int,
        limit: int,
        dead_letter_ids: tuple[str, ...],
        entry_ids: tuple[str | None, ...],
    ) -> None:
        super().__init__(message_id=message_id, n_bytes=n_bytes, limit=limit)
        self.dead_letter_ids, self.entry_ids = dead_letter_ids, entry_ids

    @property
    def n_requeued(self) -> int:
        """The number of dead letters that were requeued despite the error."""
        return sum(entry_id not in (None, "key-held") for entry_id in self.entry_ids)


class InvalidOption(InvalidField):
    """Raised when an actor or message option has a value with which Retries or other middleware would fail."""


class InvalidMessage(BrokerError, InvalidField):
    """Raised when a message is not enqueued because a field or an option has the wrong type.

    Attributes:
        message_id: the message's id.
    """

    def __init__(self, invalid: InvalidField, *, message_id: str) -> None:
        super().__init__(f"message {message_id}: {invalid}")  # type: ignore[no-untyped-call]  # so are all of Dramatiq's
        self.message_id, self.field, self.problem, self.hint = message_id, invalid.field, invalid.problem, invalid.hint

    def __reduce__(self) -> tuple[object, ...]:
        return (_invalid_message, (self.message_id, self.field, self.problem, self.hint))


class UndecodableEntry(InvalidField):
    """Raised when an entry is not a valid message. The entry becomes a dead letter with the error's field and hint.

    Attributes:
        message: the message, if the entry contains one despite the error, for example one that is too large; otherwise
            None. Callers that wait for the message's result get this error.
    """

    def __init__(self, field: str, problem: str, hint: str, *, message: Message[Any] | None = None) -> None:
        super().__init__(field, problem, hint)
        self.message = message


class MessageCancelled(SkipMessage):
    """Raised instead of running a cancelled message, and stored as the result of every cancelled message."""

    def __init__(self, *, message_id: str) -> None:
        super().__init__(f"message {message_id} was cancelled")
        self.message_id = message_id


class Cancelled(Interrupt):
    """Raised in the thread of a running job when its message is cancelled.

    An actor may catch this exception to clean up, and raise it again. If the actor returns instead, its job succeeds.
    """


class DeliveryLimitReached(SkipMessage):
    """Raised instead of running a message that kept killing its worker process."""

    def __init__(self, *, message_id: str, deliveries: int) -> None:
        super().__init__(
            f"message {message_id} was delivered {deliveries - 1} times and its worker died each time; "
            "check its actor for crashes and memory use, then requeue the dead letter"
        )
        self.message_id, self.deliveries = message_id, deliveries


class LeaseLost(SkipMessage):
    """Raised instead of running a message that another process has taken over."""

    def __init__(self, *, message_id: str, entry_id: str) -> None:
        super().__init__(f"message {message_id} (entry {entry_id}) is held by another process now")
        self.message_id, self.entry_id = message_id, entry_id


class MessageExpired(SkipMessage):
    """Raised instead of running a message that did not start within ``expires_in_ms``, and stored as its result."""

    def __init__(self, *, message_id: str) -> None:
        super().__init__(f"message {message_id} did not begin within its expires_in_ms")
        self.message_id = message_id


def _invalid_message(message_id: str, field: str, problem: str, hint: str) -> InvalidMessage:
    return InvalidMessage(InvalidField(field, problem, hint), message_id=message_id)
