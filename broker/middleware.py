"""Signals of this broker beyond Dramatiq's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import dramatiq

from .dead_letters import DeadLetter

if TYPE_CHECKING:
    from .broker import RedisStreamsBroker


class StreamsMiddleware(dramatiq.Middleware):
    """Middleware that wants to hear more. Any middleware that has one of these methods is called, of this class or not.

    An exception that escapes from one is logged, and nothing else.
    """

    def after_dead_letter(self, broker: RedisStreamsBroker, dead_letter: DeadLetter) -> None:
        """A message became a dead letter; ``letter`` is as it was written, its fields included."""

    def after_recover(self, broker: RedisStreamsBroker, queue_name: str, entry_ids: Sequence[str]) -> None:
        """Entries of dead consumers were taken over by this process."""

    def after_orphans(self, broker: RedisStreamsBroker, queue_name: str, n: int) -> None:
        """``n`` entries in nobody's pending list were found by this process and handed back to work."""
