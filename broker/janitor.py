"""A queue's janitor: promotes due messages, finds entries of dead consumers, and requeues orphans.

Every process that consumes a queue has a janitor. Every step is one script that is safe to run twice. Between rounds, a
janitor waits for new entries in the queue's timer stream. So a message delayed by 50 ms is promoted after 50 ms, while
an idle queue costs almost nothing.

If every process woke up for every due message, there would be too many rounds. So only the process that promoted last
(the promoter) wakes up for the next due message. The others occasionally check for overdue messages, a few times a
second in total, regardless of their number. One process at a time scans all entries for orphans.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import redis
from dramatiq.errors import BrokerConnectionError
from dramatiq.logging import get_logger

from .identity import is_dead_sibling
from .keys import HANDED_BACK, QueueKeys
from .net.connections import Connections
from .net.shared_reads import Timers
from .scripts import ADVANCE, CANCELLED, FORGET, LEAVE, RESIGN, SWEEP, TICK
from .settings import BrokerSettings

# If this consumer has owned an entry for this long without receiving it, the delivery reply counts as lost.
LOST_AFTER_MS = 5_000

# How long after a promotion only the promoter may promote. If the promoter was lost, the first process that checks
# after this time replaces it.
PROMOTE_ALONE_MS = 1_000
# Total rate at which all other processes check for overdue messages. The probability that none checks is 2 % for half
# a second and 0.03 % for a second.
LOOKS_PER_S = 8.0

# Kinds of notifications after which there are entries to take over.
TAKEABLE_NEWS = frozenset({b"handed_back", b"rescued", b"orphans", b"died"})
# Kinds of notifications after which there may be no promoter.
PROMOTER_NEWS = frozenset({b"died", b"left"})

# Minimum pause between rounds, so that a round promotes several messages if they fall due in close succession.
SHORTEST_WAIT_S = 0.005
SWEEP_PAGE = 500
# How often to check whether other processes on this machine are alive. A check needs no Redis command.
LOOK_AT_SIBLINGS_S = 0.5
# A consumer without entries is removed when its heartbeat is older than this plus the lease.
FORGET_CONSUMER_MS = 5 * 60 * 1000


@dataclass(frozen=True, slots=True)
class Round:
    """The findings of a janitor's round.

    Attributes:
        n_promoted: the number of due messages that were moved to the stream.
        next_due_s: seconds until the next delayed message is due, or None if none is delayed.
        is_takeable: whether there are entries to take over.
        first_lapse_s: seconds until the next lease of another consumer lapses unless it is renewed; 0 if the lease of
            a consumer with entries has lapsed; None if there is no such lease.
        owned: the ids of entries that have been in this consumer's pending list for ``LOST_AFTER_MS``.
        is_paused: whether delivery is paused.
        cancelled: a mapping of the entry ids of cancelled messages that workers have received. Its values are the SHA-1
            of the coalesced message that is cancelled with each, or "".
        n_orphans: the number of orphans that were requeued.
    """

    n_promoted: int
    next_due_s: float | None
    is_takeable: bool
    first_lapse_s: float | None
    owned: tuple[str, ...]
    is_paused: bool
    cancelled: Mapping[str, str]
    n_orphans: int


class Janitor:
    """A thread that maintains one queue. ``start`` and ``stop`` are idempotent.

    Args:
        on_round: a function that is called with every round's findings and returns whether another round should
            follow soon.
        on_takeable: a function that is called when there are entries to take over.
        n_held: a function that returns how many entries this process holds.
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
        on_takeable: Callable[[], None] = lambda: None,
        n_held: Callable[[], int] = lambda: 0,
    ) -> None:
        self._connections = connections
        self._settings = settings
        self._keys = keys
        self._consumer_name = consumer_name
        self._on_round, self._on_takeable, self._n_held = on_round, on_takeable, n_held
        self._logger: logging.Logger = get_logger(__name__, f"Janitor({keys.queue_name})")
        self._timer = timers.timer(keys.timer)
        self._last_timer: bytes = b"0-0"
        self._sweep_cursor: str | bytes = "-"
        self._advance_cursor: str | bytes = ""
        self._forget_cursor: str | bytes = "0"
        self._next_sweep_at = 0.0
        self._next_round_at = 0.0
        # every process begins as a promoter, because any of them may have to promote the first due message
        self._is_promoter = True
        self._next_due_at: float | None = None
        self._n_consumers = -1
        self._siblings: tuple[str, ...] = ()
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
            BrokerConnectionError: Redis did not answer. The next round does what this one left undone.
        """
        # run one round at a time, so that no round's findings are reported after those of a later round
        with self._round:
            return self._run_once()

    def _run_once(self) -> Round:
        keys, settings = self._keys, self._settings
        for name in [name for name in self._siblings if is_dead_sibling(name)]:
            self._declare_dead(name)
        answer = self._connections.run_script(
            TICK,
            (*keys.work, keys.consumers, keys.paused, keys.counters, keys.cancelled, keys.promoter),
            (
                settings.group,
                self._consumer_name,
                HANDED_BACK,
                settings.lease_ms,
                settings.promote_batch,
                PROMOTE_ALONE_MS,
                LOST_AFTER_MS,
                self._n_held(),
                self._consumer_name.partition(":")[0] + ":",
                self._n_consumers,
            ),
        )
        n_promoted, next_in_ms, self._last_timer, is_takeable, is_other, is_paused, lapse_ms, *rest = answer
        is_any_cancelled, self._n_consumers, owned, siblings = rest
        if siblings is not None:
            self._siblings = tuple(name.decode() for name in siblings)
        self._is_promoter = n_promoted > 0 or (self._is_promoter and not is_other)
        self._next_due_at = None if next_in_ms < 0 else time.monotonic() + next_in_ms / 1000
        done = Round(
            n_promoted=n_promoted,
            next_due_s=None if next_in_ms < 0 else next_in_ms / 1000,
            is_takeable=bool(is_takeable),
            first_lapse_s=None if lapse_ms < 0 else lapse_ms / 1000,
            owned=tuple(entry_id.decode() for entry_id in owned),
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
        if done.n_promoted >= settings.promote_batch:
            wait_s = 0.0
        self._next_round_at = time.monotonic() + wait_s
        self._await_due()
        return done

    def _await_due(self) -> None:
        """Schedule a round for the time when the next message is due, or later if another process is the promoter."""
        if self._next_due_at is not None:
            late_s = 0.0
            if not self._is_promoter:
                # a random delay spreads the checks over time without coordination, whatever the number of processes
                late_s = random.expovariate(LOOKS_PER_S / max(1, self._n_consumers - 1))
            self._next_round_at = min(self._next_round_at, self._next_due_at + late_s)

    def begin_stop(self) -> None:
        """Tell the thread to end after its round, without waiting for it."""
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
        """Declare a process on this machine dead. Its keeper process has not reported its death."""
        keys = self._keys
        self._connections.run_script(LEAVE, (keys.stream, keys.consumers, keys.timer), (self._settings.group, name, 1))

    def _cancelled(self) -> Mapping[str, str]:
        """Return the marks of cancelled messages that workers have received, by entry id; see ``Round.cancelled``."""
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
        """Scan a few pages of entries for orphans, which are requeued; return the number of orphans found."""
        keys, settings = self._keys, self._settings
        n_found = 0
        # A few pages per round: 200,000 pending entries take about twenty rounds, and no script takes more than a
        # millisecond.
        for _ in range(20):
            next_cursor, n, due_in_ms = self._connections.run_script(
                SWEEP,
                (keys.stream, keys.consumers, keys.dead, keys.timer, keys.suspects, keys.counters, keys.swept),
                (
                    settings.group,
                    HANDED_BACK,
                    self._sweep_cursor,
                    SWEEP_PAGE,
                    settings.dead_letter_ttl_ms,
                    FORGET_CONSUMER_MS + settings.lease_ms,
                    settings.sweep_ms,
                ),
            )
            if due_in_ms:  # another process has completed this pass; wait for the next one
                self._next_sweep_at = time.monotonic() + due_in_ms / 1000
                break
            n_found += n
            self._sweep_cursor = next_cursor or "-"
            if not next_cursor:
                self._advance()
                self._forget_holders()
                self._next_sweep_at = time.monotonic() + settings.sweep_ms / 1000
                break
        return n_found

    def _advance(self) -> None:
        """Scan a few pages of keys. Give the turn of each message that was removed by hand to the next one in line."""
        for _ in range(20):
            cursor, n = self._connections.run_script(ADVANCE, self._keys.work, (self._advance_cursor, SWEEP_PAGE))
            self._advance_cursor = cursor
            if n:
                said = "gave messages in line their turn, because messages at work before them disappeared"
                self._logger.warning(said, extra={"n": n})
            if not cursor:
                return

    def _forget_holders(self) -> None:
        """Scan a few pages of unique keys, and free those whose waiting message was removed by hand."""
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
                    break  # the connections may be closed before this thread has ended
                self._logger.warning("a round of the janitor failed; trying again", extra={"error": str(error)})
                pause_s = 0.5
            except Exception:
                self._logger.exception("a round of the janitor failed")
                pause_s = 1.0
        self._resign()
        self._timer.close()

    def _resign(self) -> None:
        """Give up the promoter's role, so that another process takes it."""
        keys = self._keys
        if self._is_promoter and self._next_due_at is not None and not self._connections.is_silent(keys.stream):
            try:
                self._connections.run_script(RESIGN, (keys.promoter, keys.timer), (self._consumer_name,))
            except (BrokerConnectionError, redis.RedisError) as error:
                self._logger.debug("could not resign as the promoter; another process follows: %s", error)

    def _wait_for_news(self) -> None:
        """Wait until the next round is due or a notification requires one."""
        earliest = time.monotonic() + SHORTEST_WAIT_S
        self._timer.expect(self._last_timer)
        while not self._is_stopping.is_set():
            left_s = max(min(self._next_round_at, self._next_sweep_at), earliest) - time.monotonic()
            if left_s <= 0:
                return
            wait_s = min(left_s, LOOK_AT_SIBLINGS_S) if self._siblings else left_s
            if self._timer.wait(wait_s):
                if self._needs_round():
                    return
            elif any(is_dead_sibling(name) for name in self._siblings):
                return

    def _needs_round(self) -> bool:
        """Handle the timer stream's notifications; return whether one of them, such as a pause, requires a round."""
        entries = self._timer.entries()
        if entries is None:
            return True
        self._last_timer = entries[-1][0]
        news = {kind for _, (kind, *_) in entries}
        for entry_id, (kind, value, *_) in entries:
            if kind == b"due":
                # the entry id contains the server time at which the message was delayed
                due_at = time.monotonic() + (int(value) - int(entry_id.partition(b"-")[0])) / 1000
                self._next_due_at = due_at if self._next_due_at is None else min(due_at, self._next_due_at)
        self._is_promoter = self._is_promoter or bool(news & PROMOTER_NEWS)
        self._await_due()
        if news & TAKEABLE_NEWS:
            self._on_takeable()
        return not news <= TAKEABLE_NEWS | PROMOTER_NEWS | {b"due"}
