"""Cancellation: removes waiting messages and interrupts running jobs. The inspector finds the messages.

One script removes a message that no live worker has received, and frees its unique key and its turn among the messages
of its ordering, concurrency or rate key. If a worker has received the message, the script marks its entry, and the
janitor in the worker's process finds the mark within milliseconds. ``Cancelled`` is then raised in the running job, or
the message is skipped if it has not started. If the worker dies first, the process that takes over the entry finds the
mark. The mark is deleted with the entry.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from secrets import token_hex
from typing import Any, Final, Literal

import dramatiq
from dramatiq import Message
from dramatiq.broker import MessageProxy
from dramatiq.threading import current_platform, raise_thread_exception, supported_platforms

from .deliveries import Delivery, sha1_of
from .errors import Cancelled, MessageCancelled
from .inspector import FoundMessage, Inspector, Selection
from .key_limits import key_limits_of
from .keys import HANDED_BACK, QueueKeys
from .net.connections import Argument, Connections
from .options import unique_key_of
from .outcomes import Emit
from .scripts import CANCEL
from .settings import BrokerSettings

CancelOutcome = Literal["cancelled", "requested", "not-found"]

# Maximum number of messages to cancel in one round trip.
AT_ONCE: Final = 100
# Maximum number of searches of a queue. Further searches find messages that became delayed again, by a retry, during
# the previous one.
MOST_SEARCHES: Final = 3
# Code object of the frame in which Dramatiq's Worker calls an actor's function.
RUNS_JOB: Final = getattr(inspect.unwrap(dramatiq.Actor.__call__), "__code__", None)


@dataclass(frozen=True, slots=True)
class Cancellation:
    """The result of cancelling messages.

    Attributes:
        cancelled: the ids of the waiting messages that were removed.
        requested: the ids of messages that a worker has received. The worker interrupts or skips them. A job that ends
            first has its usual outcome, except that it is not retried.
    """

    cancelled: tuple[str, ...] = ()
    requested: tuple[str, ...] = ()


def together(parts: Sequence[Cancellation]) -> Cancellation:
    """Return the combined result of cancelling messages in several shards."""
    return Cancellation(
        tuple(message_id for part in parts for message_id in part.cancelled),
        tuple(message_id for part in parts for message_id in part.requested),
    )


Condition = Callable[[Message[Any]], bool]


class Canceller:
    """Cancels messages of one queue on behalf of operators."""

    def __init__(
        self, connections: Connections, settings: BrokerSettings, keys: QueueKeys, inspector: Inspector, emit: Emit
    ) -> None:
        self._connections = connections
        self._settings = settings
        self._keys = keys
        self._inspector = inspector
        self._emit = emit

    def cancel(self, message_id: str) -> CancelOutcome:
        """Cancel one message. The message that was coalesced onto it takes its place.

        Raises:
            BrokerConnectionError: Redis did not answer; the message may have been cancelled.
        """
        found = self._cancel(Selection(message_ids=[message_id]), is_first=True)
        return "cancelled" if found.cancelled else "requested" if found.requested else "not-found"

    def cancel_where(self, wanted: Selection) -> Cancellation:
        """Cancel every selected message.

        Raises:
            BrokerConnectionError: Redis did not answer; some messages may have been cancelled.
        """
        return self._cancel(wanted)

    def _cancel(self, wanted: Selection, *, is_first: bool = False) -> Cancellation:
        cancelled: list[str] = []
        requested: dict[str, None] = {}
        for _ in range(MOST_SEARCHES):
            n_retried, n_gone = self._n_retried(), 0
            found = self._inspector.find(wanted)
            while page := [*islice(found, 1 if is_first else AT_ONCE)]:
                for one, outcome in zip(page, self._end(page, wanted.drops), strict=True):
                    n_gone += outcome == b"GONE"
                    if outcome == b"CANCELLED":
                        cancelled.append(one.message.message_id)
                    elif outcome == b"MARKED":
                        requested[one.message.message_id] = None
                if is_first and not n_gone:
                    return Cancellation(tuple(cancelled), tuple(requested))
            if not n_gone and self._n_retried() == n_retried:
                break
        return Cancellation(tuple(cancelled), tuple(requested))

    def _n_retried(self) -> int:
        return int(self._connections.run("HGET", self._keys.counters, "retried") or 0)

    def _end(self, found: Sequence[FoundMessage], is_dropped: Condition) -> list[bytes]:
        """Cancel messages in one round trip, and return CANCELLED, MARKED or GONE for each.

        Further round trips follow only for messages onto which another message was coalesced.
        """
        answers = self._connections.run_scripts(CANCEL, [self._call(one, None, is_dropped) for one in found])
        outcomes: list[bytes] = []
        for one, (answer, *more) in zip(found, answers, strict=True):
            outcome = answer
            while outcome == b"COALESCED":  # again if a newer message has been coalesced in the meantime
                outcome, *more = self._connections.run_script(CANCEL, *self._call(one, more[0], is_dropped))
            if outcome == b"CANCELLED":
                self._report(one.message)
            outcomes.append(outcome)
        return outcomes

    def _call(
        self, found: FoundMessage, coalesced: bytes | None, is_dropped: Condition
    ) -> tuple[Sequence[str], Sequence[Argument]]:
        """Return the KEYS and ARGV of cancel.lua for one message."""
        message = found.message
        limits = key_limits_of(message)
        return self._keys.cancelling(unique_key_of(message.options)), [
            self._settings.group,
            found.place,
            message.message_id,
            "" if limits is None else limits.name,
            "",
            0,
            HANDED_BACK,
            self._settings.lease_ms,
            *(("", 0) if coalesced is None else self._about(coalesced, is_dropped)),
        ]

    def _about(self, coalesced: bytes, is_dropped: Condition) -> list[Argument]:
        """Return the arguments of cancel.lua that describe a coalesced message."""
        message = Message.decode(coalesced)
        limits = key_limits_of(message)
        return [
            sha1_of(coalesced),
            int(is_dropped(message)),
            token_hex(8) if limits is None else limits.name_in_delayed(),
            *(("", "") if limits is None else (limits.name, limits.stored)),
            message.message_id,
            self._settings.lock_ms(message.options, 0),
        ]

    def _report(self, message: Message[Any]) -> None:
        """Call the middleware for a removed message, so that callers who wait for its result get an error."""
        refused = MessageProxy(message)
        refused.fail()
        refused.stuff_exception(MessageCancelled(message_id=message.message_id))
        self._emit("before_nack", refused)
        self._emit("after_nack", refused)
        self._emit("after_cancel", message)


class Interrupts:
    """Interrupts running jobs whose messages were cancelled. Thread-safe.

    ``Cancelled`` must be raised in a worker thread only while it runs the actor; anywhere else, it would end the
    thread. So it is raised only if the actor is on the thread's stack, and ``end`` waits for a pending exception.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def cancel(self, delivery: Delivery) -> bool:
        """Mark a message that this process holds as cancelled, and interrupt its job. A second call does nothing.

        Returns:
            False if the job cannot be interrupted yet, because its thread is running middleware.
        """
        delivery.is_cancelled = True
        with self._lock:
            thread_id = delivery.thread_id
            if thread_id is None or delivery.is_interrupted or current_platform not in supported_platforms:
                return True
            if not _runs_actor(thread_id):
                return False
            delivery.is_interrupted = True
            # the Worker would log the exception as an error
            delivery.options["throws"] = (Cancelled, delivery.options.get("throws") or ())
            raise_thread_exception(thread_id, Cancelled)
            return True

    def end(self, delivery: Delivery) -> None:
        """Discard a pending interrupt after a job has ended. Called in the job's thread.

        Set ``delivery.thread_id`` to None before this call, so that no further interrupt follows.
        """
        try:
            with self._lock:
                pass
            for _ in range(2):  # Python raises a pending interrupt at the end of a loop iteration
                pass
        except Cancelled:
            pass
        throws = delivery.options.get("throws")
        if isinstance(throws, tuple) and throws[:1] == (Cancelled,):
            del delivery.options["throws"]
            if throws[1]:
                delivery.options["throws"] = throws[1]


def _runs_actor(thread_id: int) -> bool:
    frame = sys._current_frames().get(thread_id)
    while frame is not None and frame.f_code is not RUNS_JOB:
        frame = frame.f_back
    return frame is not None
