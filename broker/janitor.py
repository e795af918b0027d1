"""The janitor of a queue: promotes due messages, finds entries of dead consumers, and requeues orphans.

Every process that consumes a queue has a janitor, and none of them is a leader: every step is one script that is safe
to run twice. Between rounds, a janitor waits for an entry in the queue's timer stream. So a message delayed by 50 ms is
promoted after 50 ms, while an idle queue costs next to nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import redis
from dramatiq.errors import BrokerConnectionError
from dramatiq.logging import get_logger

from .connections import Connections
from .identity import is_dead_sibling
from .keys import HANDED_BACK, QueueKeys
from .scripts import ADVANCE, CANCELLED, FORGET, LEAVE, SWEEP, TICK
from .settings import BrokerSettings
from .shared_reads import Timers

# The shortest pause between rounds. Under load, due messages follow each other closely, and one round promotes several.
SHORTEST_WAIT_S = 0.005
SWEEP_PAGE = 500
# How often the other processes of this machine are checked; that needs no Redis command.
LOOK_AT_SIBLINGS_S = 0.5
# A consumer without entries is forgotten when its heartbeat is older than this plus a lease.
FORGET_CONSUMER_MS = 5 * 60 * 1000


@dataclass(frozen=True, slots=True)
class Round:
    """The findings of one round.

    Attributes:
        n_promoted: the number of due messages moved to the stream.
        next_due_s: seconds until the next delayed message is due; None if none is delayed.
        is_takeable: whether there are entries to take over.
        first_lapse_s: seconds until the first lease of another consumer lapses if no heartbeat comes; 0 if the lease of
            a consumer with entries has lapsed; None if there is no such lease.
        n_owned: the number of entries in this consumer's own pending list.
        is_paused: whether delivery is paused.
        cancelled: the entries of cancelled messages that workers have received, each with the SHA-1 of the coalesced
            message to drop, or "".
        n_orphans: the number of orphans that were requeued.
    """

    n_promoted: int
    next_due_s: float | None
    is_takeable: bool
    first_lapse_s: float | None
    n_owned: int
    is_paused: bool
    cancelled: Mapping[str, str]
    n_orphans: int


class Janitor:
    """The background maintenance of one queue. ``start`` and ``stop`` may be called twice.

    Args:
        on_round: called with the findings of every round; returns whether another round should follow soon.
    """

    def __init__(
        self,
        connections: Connections,
        settings: BrokerSettings,
        keys: QueueKeys,
        timers: Timers,
        *,
        consumer_name: str,
        on_round: Callable[[Round], bool],
    ) -> None:
        self._connections = connections
        self._settings = settings
        self._keys = keys
        self._consumer_name = consumer_name
        self._on_round = on_round
        self._logger: logging.Logger = get_logger(__name__, f"Janitor({keys.queue_name})")
        self._timer = timers.timer(keys.timer)
        self._last_timer: bytes = b"0-0"
        self._sweep_cursor: str | bytes = "-"
        self._advance_cursor: str | bytes = ""
        self._forget_cursor: str | bytes = "0"
        self._next_sweep_at = 0.0
        self._next_round_at = 0.0
        self._others: tuple[str, ...] = ()
        self._round = threading.Lock()
        self._is_stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._loop, name=f"broker-janitor-{self._keys.queue_name}", daemon=True
            )
            self._thread.start()

    def run_once(self) -> Round:
        """Run one round and return its findings.

        Raises:
            BrokerConnectionError: Redis did not answer; the next round catches up.
        """
        # one at a time: older findings must not be reported after newer ones
        with self._round:
            return self._run_once()

    def _run_once(self) -> Round:
        keys, settings = self._keys, self._settings
        for name in [name for name in self._others if is_dead_sibling(name)]:
            self._declare_dead(name)
        answer = self._connections.run_script(
            TICK,
            (*keys.work, keys.consumers, keys.paused, keys.counters, keys.cancelled),
            (settings.group, self._consumer_name, HANDED_BACK, settings.lease_ms, settings.promote_batch),
        )
        n_promoted, next_in_ms, self._last_timer, is_takeable, n_owned, is_paused, lapse_ms, *rest = answer
        is_any_cancelled, *others = rest
        self._others = tuple(name.decode() for name in others)
        done = Round(
            n_promoted=n_promoted,
            next_due_s=None if next_in_ms < 0 else next_in_ms / 1000,
            is_takeable=bool(is_takeable),
            first_lapse_s=None if lapse_ms < 0 else lapse_ms / 1000,
            n_owned=n_owned,
            is_paused=bool(is_paused),
            cancelled=self._cancelled() if is_any_cancelled else {},
            n_orphans=self._sweep() if time.monotonic() >= self._next_sweep_at else 0,
        )
        is_odd = self._on_round(done)
        wait_s = settings.lease_ms / 1000
        if done.first_lapse_s is not None:
            wait_s = min(wait_s, done.first_lapse_s)
        if is_odd or wait_s * 1000 < settings.tick_ms:
            wait_s = min(wait_s or settings.tick_ms / 1000, settings.tick_ms / 1000)
        if done.next_due_s is not None:
            wait_s = min(wait_s, done.next_due_s)
        if done.n_promoted >= settings.promote_batch:
            wait_s = 0.0
        self._next_round_at = time.monotonic() + wait_s
        return done

    def begin_stop(self) -> None:
        """Ask the thread to end after its round, without waiting."""
        self._is_stopping.set()
        self._timer.wake()

    def stop(self, *, timeout_s: float = 5.0) -> None:
        """End the thread, waiting at most ``timeout_s``."""
        self.begin_stop()
        if self._thread is not None:
            self._thread.join(timeout_s)
        else:
            self._timer.close()

    def _declare_dead(self, name: str) -> None:
        """Declare a process of this machine dead, because its keeper has not reported its death."""
        keys = self._keys
        self._connections.run_script(LEAVE, (keys.stream, keys.consumers, keys.timer), (self._settings.group, name, 1))

    def _cancelled(self) -> Mapping[str, str]:
        """Return the marks of cancelled messages that workers have received."""
        marks: dict[str, str] = {}
        cursor: str | bytes = "0"
        while True:
            cursor, *page = self._connections.run_script(
                CANCELLED, (self._keys.stream, self._keys.cancelled), (cursor, SWEEP_PAGE)
            )
            marks |= {entry.decode(): mark.decode() for entry, mark in zip(page[::2], page[1::2], strict=True)}
            if cursor == b"0":
                return marks

    def _sweep(self) -> int:
        """Look for orphans in a few pages of the pending entries; return how many were found."""
        keys, settings = self._keys, self._settings
        n_found = 0
        # A few pages per round: 200,000 pending entries take about twenty rounds, and no script takes more than a
        # millisecond.
        for _ in range(20):
            next_cursor, n = self._connections.run_script(
                SWEEP,
                (keys.stream, keys.consumers, keys.dead, keys.timer, keys.suspects, keys.counters),
                (
                    settings.group,
                    HANDED_BACK,
                    self._sweep_cursor,
                    SWEEP_PAGE,
                    settings.dead_letter_ttl_ms,
                    FORGET_CONSUMER_MS + settings.lease_ms,
                ),
            )
            n_found += n
            self._sweep_cursor = next_cursor or "-"
            if not next_cursor:
                self._advance()
                self._forget_holders()
                self._next_sweep_at = time.monotonic() + settings.sweep_ms / 1000
                break
        return n_found

    def _advance(self) -> None:
        """Bring the next messages of a key to work if one at work is gone, looking at a few pages of the keys."""
        for _ in range(20):
            cursor, n = self._connections.run_script(ADVANCE, self._keys.work, (self._advance_cursor, SWEEP_PAGE))
            self._advance_cursor = cursor
            if n:
                self._logger.warning("brought messages in line to work: those before them disappeared", extra={"n": n})
            if not cursor:
                return

    def _forget_holders(self) -> None:
        """Forget the waiting messages of unique keys that were removed by hand, looking at a few pages of them."""
        for _ in range(20):
            cursor, n = self._connections.run_script(FORGET, self._keys.work, (self._forget_cursor, SWEEP_PAGE))
            self._forget_cursor = cursor
            if n:
                self._logger.warning("freed unique keys whose waiting message disappeared", extra={"n": n})
            if cursor == b"0":
                return

    def _loop(self) -> None:
        pause_s = 0.0
        while not self._is_stopping.is_set():
            try:
                if pause_s:
                    self._is_stopping.wait(pause_s)
                if self.run_once().n_promoted < self._settings.promote_batch:
                    self._wait_for_news()
                pause_s = 0.0
            except (BrokerConnectionError, redis.RedisError) as error:
                if self._is_stopping.is_set():
                    break  # a stop may close the connections before this thread has ended
                self._logger.warning("a round of the janitor failed; trying again", extra={"error": str(error)})
                pause_s = 0.5
            except Exception:
                self._logger.exception("a round of the janitor failed")
                pause_s = 1.0
        self._timer.close()

    def _wait_for_news(self) -> None:
        """Wait until the next round is due, or until there is news: a message due earlier, a pause, a dead process."""
        wait_until = max(min(self._next_round_at, self._next_sweep_at), time.monotonic() + SHORTEST_WAIT_S)
        self._timer.expect(self._last_timer)
        while not self._is_stopping.is_set():
            left_s = wait_until - time.monotonic()
            if left_s <= 0:
                return
            wait_s = min(left_s, LOOK_AT_SIBLINGS_S) if self._others else left_s
            if self._timer.wait(wait_s) or any(is_dead_sibling(name) for name in self._others):
                return
