"""The signals that this broker emits in addition to Dramatiq's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dramatiq
from dramatiq import Message

from .dead_letters import DeadLetter
from .deliveries import Delivery

if TYPE_CHECKING:
    from .broker import RedisStreamsBroker


class StreamsMiddleware(dramatiq.Middleware):
    """A base class for middleware with this broker's signals. Any middleware with one of these methods is called.

    Exceptions from these methods are logged and otherwise ignored.
    """

    def after_dead_letter(self, broker: RedisStreamsBroker, dead_letter: DeadLetter) -> None:
        """Handle a new dead letter. It is passed as it was written, including its fields."""

    def after_cancel(self, broker: RedisStreamsBroker, message: Message[Any] | Delivery) -> None:
        """Handle a message that was cancelled.

        Called in the process that cancelled it if it was waiting, and in the worker process that held it otherwise;
        there, ``message`` is a :class:`Delivery`.
        """

    def after_recover(self, broker: RedisStreamsBroker, queue_name: str, entry_ids: Sequence[str]) -> None:
        """Handle entries that this process took over from dead consumers."""

    def after_orphans(self, broker: RedisStreamsBroker, queue_name: str, n: int) -> None:
        """Handle ``n`` orphans that this process found and requeued."""
