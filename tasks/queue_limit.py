"""The queue limit: one number in Redis that every client obeys.

    key                      type    holds
    sploot:max-queue-length  string  number of jobs that a queue may hold; 0 means no limit

Workers write their ``SPLOOT_MAX_QUEUE_LENGTH`` with every sample of the queues, so producers need no setting of their
own. Only programs that ``XADD`` without this code ignore the limit; ``doctor`` and an alert report a queue beyond it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, cast

import redis

MAX_QUEUE_LENGTH: Final = "sploot:max-queue-length"
READ_EVERY_S: Final = 10.0  # workers write the limit at the same interval


def limit_from(stored: bytes | None) -> int:
    """Return the limit from a stored value, or 0 (no limit) if there is none or it is not a number."""
    return int(stored) if stored is not None and stored.isdigit() else 0


def stored_limit(client: redis.Redis) -> int:
    """Return the stored limit; 0 means no limit. Errors from redis-py propagate."""
    return limit_from(cast("bytes | None", client.get(MAX_QUEUE_LENGTH)))


class QueueLimit:
    """The limit as a producer last read it. Thread-safe."""

    def __init__(self, client: redis.Redis, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._read: tuple[float, int] | None = None

    def current(self) -> int:
        """Return the limit, read at most ``READ_EVERY_S`` ago; 0 means no limit. Errors from redis-py propagate."""
        now = self._clock()
        if self._read is None or now - self._read[0] >= READ_EVERY_S:
            self._read = now, stored_limit(self._client)
        return self._read[1]
