"""Progress reports of running jobs, which other processes read by message id.

Reports are best-effort: most are dropped, and a failed report does not make its job fail. They are deleted when the job
ends. A job that reports nothing costs nothing.
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

# Minimum interval between stored reports. It is short enough for users who watch a job, and long enough that only one
# of thousands of reports from a tight loop is stored.
REPORT_EVERY_S: Final = 0.5
# Minimum interval after a failed report. Each failure may block the job for the client's socket timeout.
REPORT_AGAIN_S: Final = 10.0
# Lifetime of a progress report's key, in case the worker dies. When the job ends, the key is deleted.
KEEP_MS: Final = 60 * 60 * 1000
LONGEST_NOTE: Final = 500


@dataclass(frozen=True, slots=True)
class Progress:
    """A job's last progress report.

    Attributes:
        done: the amount of work done, in a unit of the job's choice.
        total: the total amount of work, or None if the job did not state it.
        note: text for users, or None.
        age_ms: time since the report was stored, on the server's clock.
    """

    done: float
    total: float | None
    note: str | None
    age_ms: int

    @property
    def fraction(self) -> float | None:
        """The share of the work that is done, from 0 to 1, or None if there is no total."""
        return min(1.0, max(0.0, self.done / self.total)) if self.total else None


class ProgressReports:
    """Stores progress reports of a broker's jobs in Redis. Thread-safe.

    Args:
        running: a function that returns the messages that this process runs.
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
        """Store a running job's progress, unless its last report was stored less than ``REPORT_EVERY_S`` ago.

        Raises:
            TypeError, ValueError: a value is neither a number nor None. A job's first report is always validated, and
                dropped reports are not.
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
        """Return a running job's progress, or None if it has reported none.

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


# The ProgressReports of all brokers in this process. A report's job is found by its thread, so that jobs that report
# nothing need no registration.
_all_reports: WeakSet[ProgressReports] = WeakSet()


class _Last(threading.local):
    """A cache of the job that each thread last reported for. Most reports come from loops."""

    found: tuple[ProgressReports, Delivery] | None = None


_last = _Last()


def report_progress(done: float, total: float | None = None, note: str | None = None) -> None:
    """Report the current job's progress, which ``RedisStreamsBroker.progress`` returns.

    You may call this function at any rate: a report within half a second after a stored one is dropped, unless it is
    the first in which ``done`` reaches ``total``. Redis errors are only logged. The function does nothing outside a
    job of this broker, for example in a batch function or in a test that calls the actor's function. Coroutines need
    the CurrentMessage middleware, because they run in another thread.

    Args:
        done: the amount of work done, in a unit of your choice.
        total: the total amount of work, if known.
        note: a text for users. Only its first 500 characters are kept.
    """
    found = _last.found
    if found is None or found[1].thread_id != get_ident():  # thread_id is None once the job has ended
        found = _last.found = _find()
    if found is not None:
        reports, delivery = found
        reports.store(delivery, done, total, note)


def _find() -> tuple[ProgressReports, Delivery] | None:
    """Return the job that runs, or whose coroutine runs, in this thread, or None if there is none."""
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
    return value if isinstance(value, int) else float(value)  # number types of other libraries cannot be JSON-encoded


def _short(note: str | None) -> str | None:
    return None if note is None else str(note)[:LONGEST_NOTE]
