"""Everything this package raises on purpose.

    dramatiq.errors.BrokerError
    ├── BrokerConnectionError           Dramatiq's; its Worker waits and tries again
    │   ├── ConnectionFailed            no connection: nothing was sent
    │   └── ConnectionClosed            the connection broke, or the server cannot do it now
    │       └── EnqueueUncertain        a message was sent, and nobody knows whether it arrived
    ├── QueueFull                       ``max_queue_length`` is reached; it names what was not added
    ├── MessageTooLarge                 ``max_message_bytes`` is exceeded; nothing was added
    │   └── DeadLetterTooLarge          a dead letter stays one: workers would not take it
    └── InvalidMessage                  a field or an option has the wrong type; nothing was added
    ValueError
    ├── SettingsError                   a setting cannot be used
    ├── InvalidOption                   an option of an actor or a message cannot be used
    ├── InvalidMessage                  see above
    └── UndecodableEntry                an entry is no message; a decoder raises it too
    dramatiq.middleware.SkipMessage
    ├── DeliveryLimitReached            every process that ran this message died
    └── LeaseLost                       another process holds this message now

redis-py's errors are translated in ``connections.py`` and nowhere else.
"""

from __future__ import annotations

from typing import Any

from dramatiq import Message
from dramatiq.errors import BrokerError, ConnectionClosed
from dramatiq.middleware import SkipMessage


class SettingsError(ValueError):
    """Raised when a setting of the broker cannot be used."""

    def __init__(self, field: str, problem: str, hint: str) -> None:
        super().__init__(f"{field}: {problem}; {hint}")
        self.field, self.problem, self.hint = field, problem, hint


class EnqueueUncertain(ConnectionClosed):
    """Raised when messages were sent to Redis and no answer came, however often it was tried.

    Attributes:
        message_ids: of the messages that may have been added, or not; enqueue them again if running twice does no harm.
    """

    def __init__(self, *, message_ids: tuple[str, ...], problem: str) -> None:
        shown = ", ".join(message_ids[:3]) + (f" and {len(message_ids) - 3} more" if len(message_ids) > 3 else "")
        super().__init__(  # type: ignore[no-untyped-call]  # so are all of Dramatiq's errors
            f"Redis did not say whether it added {shown}: {problem}; "
            "check the queue, or enqueue again if running twice does no harm"
        )
        self.message_ids, self.problem = message_ids, problem


class QueueFull(BrokerError):
    """Raised when a queue holds as many messages as ``max_queue_length`` allows.

    Attributes:
        message_ids: of the messages that were not added, in their order; what else ``enqueue_many`` was given was.
    """

    def __init__(self, *, queue_name: str, length: int, limit: int, message_ids: tuple[str, ...]) -> None:
        super().__init__(  # type: ignore[no-untyped-call]  # so are all of Dramatiq's errors
            f"queue {queue_name!r} holds {length} messages of {limit} it may hold; "
            "enqueue later, add workers, or raise max_queue_length"
        )
        self.queue_name, self.length, self.limit, self.message_ids = queue_name, length, limit, message_ids


class MessageTooLarge(BrokerError):
    """Raised when the encoded form of a message exceeds ``max_message_bytes``."""

    field = "message"
    hint = "store the data elsewhere and send its key, or raise max_message_bytes of producers and workers"

    def __init__(self, *, message_id: str, n_bytes: int, limit: int) -> None:
        super().__init__(  # type: ignore[no-untyped-call]  # so are all of Dramatiq's errors
            f"message {message_id} has {n_bytes} bytes of {limit} it may have; {self.hint}"
        )
        self.message_id, self.n_bytes, self.limit = message_id, n_bytes, limit


class DeadLetterTooLarge(MessageTooLarge):
    """Raised when a dead letter that is to be requeued exceeds ``max_message_bytes``: workers would not take it.

    Attributes:
        dead_letter_ids: of the dead letters that stay; ``message_id`` is that of the first.
        entry_ids: of the others, which were put back: as ``DeadLetters.put_back`` returns them.
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
        """How many dead letters were put back all the same."""
        return sum(entry_id is not None for entry_id in self.entry_ids)


class InvalidOption(ValueError):
    """Raised when an option of an actor or a message cannot be used.

    Attributes:
        field: the option.
        problem: what was expected, and what was found.
        hint: how to correct it.
    """

    def __init__(self, field: str, problem: str) -> None:
        hint = f"correct the option {field}, or leave it out"
        super().__init__(f"{field}: {problem}; {hint}")
        self.field, self.problem, self.hint = field, problem, hint

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.field, self.problem))


class InvalidMessage(BrokerError, ValueError):
    """Raised when a message that is enqueued could not be run: a field or an option has the wrong type.

    Attributes:
        message_id: of the message; nothing was added.
        field: the field or option that is to blame.
        problem: what was expected, and what was found.
        hint: how to correct it.
    """

    def __init__(self, *, message_id: str, field: str, problem: str, hint: str) -> None:
        super().__init__(  # type: ignore[no-untyped-call]  # so are all of Dramatiq's errors
            f"message {message_id}: {field}: {problem}; {hint}"
        )
        self.message_id, self.field, self.problem, self.hint = message_id, field, problem, hint


class UndecodableEntry(ValueError):
    """Raised when an entry cannot become a message. The entry becomes a dead letter that names field and hint.

    Attributes:
        field: the name of the entry's field that is to blame.
        problem: what is wrong with it.
        hint: what its producer can do about it.
        message: the message that the entry holds all the same, as when it is too large; results of it are told.
    """

    def __init__(self, field: str, problem: str, hint: str, *, message: Message[Any] | None = None) -> None:
        super().__init__(f"{field}: {problem}; {hint}")
        self.field, self.problem, self.hint = field, problem, hint
        self.message = message

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.field, self.problem, self.hint))


class DeliveryLimitReached(SkipMessage):
    """Raised instead of running a message whose every worker process died."""

    def __init__(self, *, message_id: str, deliveries: int) -> None:
        super().__init__(
            f"message {message_id} was delivered {deliveries - 1} times and its worker died each time; "
            "look for a crash or a lack of memory in its actor, then requeue the dead letter"
        )
        self.message_id, self.deliveries = message_id, deliveries


class LeaseLost(SkipMessage):
    """Raised instead of running a message that was taken over by another process while it waited here."""

    def __init__(self, *, message_id: str, entry_id: str) -> None:
        super().__init__(f"message {message_id} (entry {entry_id}) is held by another process now")
        self.message_id, self.entry_id = message_id, entry_id
