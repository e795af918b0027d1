"""The progress of running jobs: what a job last reported about itself, to be read by the id of its message.

Reports are a courtesy: they are thinned out, never fail a job, and are gone once it has ended. A job that reports
nothing costs nothing.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import get_ident
from typing import Any, Final
from weakref import WeakSet

import redis
from dramatiq.errors import BrokerConnectionError
from dramatiq.logging import get_logger
from dramatiq.middleware import CurrentMessage

from ..deliveries import Delivery
from ..keys import KeysByQueue
from ..net.connections import Connections
from .batches import Batch

# Often enough for people who watch, and one write in thousands of turns of a tight loop.
REPORT_EVERY_S: Final = 0.5
# After a failed report. Each may wait for the client's socket timeout, and the job must go on.
REPORT_AGAIN_S: Final = 10.0
# The key is deleted when the job ends. If its worker dies, the key ends by itself.
KEEP_MS: Final = 60 * 60 * 1000
LONGEST_NOTE: Final = 500


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress that a job reported last.

    Attributes:
        done: how much is done, in a unit of the job's choice.
        total: how much there is to do, or None if the job did not state it.
        note: a text for people, or None.
        age_ms: how long ago it was stored, on the server's clock.
    """

    done: float
    total: float | None
    note: str | None
    age_ms: int

    @property
    def fraction(self) -> float | None:
        """The part that is done, from 0 to 1; None without a total."""
        return min(1.0, max(0.0, self.done / self.total)) if self.total else None


class ProgressReports:
    """The progress of a broker's jobs in Redis. Thread-safe.

    Args:
        running: returns the messages that run in this process.
    """

    def __init__(
        self, connections: Connections, keys: KeysByQueue, running: Callable[[], Sequence[Delivery | Batch]]
    ) -> None:
        self.running = running
        self._connections = connections
        self._keys = keys
        self._logger: logging.Logger = get_logger(__name__, type(self))
        _all_reports.add(self)

    def store(self, delivery: Delivery, done: float, total: float | None, note: str | None) -> None:
        """Store the progress of a running job, unless a report was stored a moment ago.

        Raises:
            TypeError, ValueError: a value is neither a number nor None. Raised for stored reports only, so always by
                the first one of a job.
        """
        now = time.monotonic()
        is_complete = total is not None and done >= total
        if now < delivery.reports_again_at and (not is_complete or delivery.is_complete):
            return
        text = json.dumps([_number(done), None if total is None else _number(total), _short(note)])
        key = self._keys[delivery.queue].progress(delivery.message_id)
        delivery.reports_again_at, delivery.is_complete = now + REPORT_EVERY_S, is_complete
        delivery.remember_follower(key)
        try:
            self._connections.run("SET", key, text, "PX", KEEP_MS, is_repeatable=True)
        except (BrokerConnectionError, redis.RedisError) as error:
            delivery.reports_again_at = now + REPORT_AGAIN_S
            self._logger.info("could not store the progress of a job", extra={"error": str(error)})

    def of(self, queue_name: str, message_id: str) -> Progress | None:
        """Return the progress of a running job, or None.

        Raises:
            BrokerConnectionError: Redis did not answer.
        """
        key = self._keys[queue_name].progress(message_id)
        text = self._connections.run("GET", key, is_repeatable=True)
        left_ms = int(self._connections.run("PTTL", key, is_repeatable=True))
        if text is None or left_ms < 0:
            return None
        done, total, note = json.loads(text)
        return Progress(done, total, note, max(0, KEEP_MS - left_ms))


# The reports of every broker in this process. A running job is looked up by its thread, so jobs without reports need no
# registration.
_all_reports: WeakSet[ProgressReports] = WeakSet()


class _Last(threading.local):
    """The job that a thread found last: most reports come from loops."""

    found: tuple[ProgressReports, Delivery] | None = None


_last = _Last()


def report_progress(done: float, total: float | None = None, note: str | None = None) -> None:
    """Report the progress of the job that is running, for ``RedisStreamsBroker.progress``.

    Call it as often as you like: a report within half a second of the previous one is dropped, unless it is the first
    with ``done`` at ``total``. It never fails because of Redis, and does nothing outside a job of this broker, such as
    in a test that calls the actor's function, or in a batch function. Coroutines need the CurrentMessage middleware,
    because they run in a thread of their own.

    Args:
        done: how much is done, in a unit of your choice.
        total: how much there is to do, if known.
        note: a text for people; up to 500 characters are kept.
    """
    found = _last.found
    if found is None or found[1].thread_id != get_ident():  # None once a job has ended
        found = _last.found = _find()
    if found is not None:
        reports, delivery = found
        reports.store(delivery, done, total, note)


def _find() -> tuple[ProgressReports, Delivery] | None:
    """Return the job that runs in this thread, or whose coroutine does."""
    message: object = CurrentMessage.get_current_message()
    thread_id = get_ident()
    for reports in list(_all_reports):
        for delivery in reports.running():
            if not isinstance(delivery, Delivery) or delivery.thread_id is None:
                continue
            if delivery is message or delivery.thread_id == thread_id:
                return reports, delivery
    return None


def _number(value: Any) -> float:
    return value if isinstance(value, int) else float(value)  # numbers of other libraries are not JSON


def _short(note: str | None) -> str | None:
    return None if note is None else str(note)[:LONGEST_NOTE]
