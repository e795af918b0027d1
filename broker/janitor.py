"""The janitor of a queue: promotes what is due, finds what nobody works on, looks for orphans.

Every process that consumes a queue has one, none of them is a leader, and every step is one script that is safe to run
twice. Between rounds it waits for an entry in the queue's timer stream, so that a message delayed by 50 ms is promoted
after 50 ms and an idle queue costs next to nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import redis
from dramatiq.errors import BrokerConnectionError
from dramatiq.logging import get_logger

from .connections import BlockingRead, Connections
from .identity import is_dead_sibling
from .keys import HANDED_BACK, QueueKeys
from .scripts import SWEEP, TICK
from .settings import BrokerSettings

# Due messages follow each other closely under load; one round takes all that fell due within so many seconds.
SHORTEST_WAIT_S = 0.005
SWEEP_PAGE = 500
# A consumer without entries whose heartbeat is older than this has ended without saying so.
FORGET_CONSUMER_MS = 60 * 60 * 1000


@dataclass(frozen=True, slots=True)
class Round:
    """What one round found.

    Attributes:
        n_promoted: due messages moved to the stream.
        next_due_s: until the next delayed message is due; None when none is delayed.
        is_takeable: whether there are entries that somebody should take over.
        dead_siblings: consumers with entries that are known to be dead, being processes of this machine.
        n_owned: entries in this consumer's own pending list.
        is_paused: whether delivery is paused.
        n_orphans: orphans handed back to work.
    """

    n_promoted: int
    next_due_s: float | None
    is_takeable: bool
    dead_siblings: tuple[str, ...]
    n_owned: int
    is_paused: bool
    n_orphans: int


class Janitor:
    """Looks after one queue. ``start`` and ``stop`` may be called twice."""

    def __init__(
        self,
        connections: Connections,
        settings: BrokerSettings,
        keys: QueueKeys,
        *,
        consumer_name: str,
        on_round: Callable[[Round], None],
    ) -> None:
        self._connections = connections
        self._settings = settings
        self._keys = keys
        self._consumer_name = consumer_name
        self._on_round = on_round
        self._logger: logging.Logger = get_logger(__name__, f"Janitor({keys.queue_name})")
        self._timer = BlockingRead(connections, keys.stream, block_ms=settings.idle_read_ms)
        self._last_timer: bytes = b"0-0"
        self._sweep_cursor: str | bytes = "-"
        self._next_sweep_at = 0.0
        self._is_stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._loop, name=f"broker-janitor-{self._keys.queue_name}", daemon=True
            )
            self._thread.start()

    def run_once(self) -> Round:
        """One round.

        Raises:
            BrokerConnectionError: Redis did not answer; the next round does what this one could not.
        """
        keys, settings = self._keys, self._settings
        n_promoted, next_in_ms, last_timer, is_takeable, n_owned, is_paused, *owners = self._connections.run_script(
            TICK,
            (
                keys.stream,
                keys.delayed,
                keys.delayed_messages,
                keys.timer,
                keys.consumers,
                keys.paused,
                keys.counters,
            ),
            (settings.group, self._consumer_name, HANDED_BACK, settings.lease_ms, settings.promote_batch),
        )
        self._last_timer = last_timer
        dead_siblings = tuple(name for name in (owner.decode() for owner in owners) if is_dead_sibling(name))
        done = Round(
            n_promoted=n_promoted,
            next_due_s=None if next_in_ms < 0 else next_in_ms / 1000,
            is_takeable=bool(is_takeable) or bool(dead_siblings),
            dead_siblings=dead_siblings,
            n_owned=n_owned,
            is_paused=bool(is_paused),
            n_orphans=self._sweep() if time.monotonic() >= self._next_sweep_at else 0,
        )
        self._on_round(done)
        return done

    def stop(self) -> None:
        self._is_stopping.set()
        self._timer.wake()
        if self._thread is not None:
            self._thread.join(5.0)

    def _sweep(self) -> int:
        """Look for orphans in some pages of what is pending; how many were found."""
        keys, settings = self._keys, self._settings
        n_found = 0
        # some pages a round: 200,000 pending entries take some twenty rounds, and no script more than a millisecond
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
                    FORGET_CONSUMER_MS,
                ),
            )
            n_found += n
            self._sweep_cursor = next_cursor or "-"
            if not next_cursor:
                self._next_sweep_at = time.monotonic() + settings.sweep_ms / 1000
                break
        return n_found

    def _loop(self) -> None:
        pause_s = 0.0
        while not self._is_stopping.is_set():
            try:
                if pause_s:
                    self._is_stopping.wait(pause_s)
                done = self.run_once()
                wait_s = min(self._settings.tick_ms, self._settings.lease_ms // 2) / 1000
                if done.next_due_s is not None:
                    wait_s = min(wait_s, done.next_due_s)
                if done.n_promoted < self._settings.promote_batch:
                    self._wait_for_timer(max(wait_s, SHORTEST_WAIT_S))
                pause_s = 0.0
            except (BrokerConnectionError, redis.RedisError) as error:
                if self._is_stopping.is_set():
                    break  # the connections are closed before this thread ends
                self._logger.warning("a round of the janitor failed; trying again", extra={"error": str(error)})
                self._timer.drop()
                pause_s = 0.5
            except Exception:
                self._logger.exception("a round of the janitor failed")
                self._timer.drop()
                pause_s = 1.0
        self._timer.close()

    def _wait_for_timer(self, timeout_s: float) -> None:
        """Wait until somebody has news: a message that is due earlier, entries handed back, a pause."""
        if not self._timer.is_waiting:
            self._timer.send(
                "XREAD", "BLOCK", self._settings.idle_read_ms, "STREAMS", self._keys.timer, self._last_timer
            )
        if self._timer.wait(timeout_s):
            self._timer.answer()
