"""Which messages run in this process, and which of them runs alone.

Messages that ran when their process died come back together. Were they started together again, or beside others that
kill, each crash would be charged to all of them, and who happened to run beside a killer would become a dead letter
with it. So a suspect runs alone in its process, and a crash meanwhile is its own doing.
"""

from __future__ import annotations

import threading
import time

from .deliveries import Delivery


class Isolation:
    """Lets messages of one process run, suspects one at a time and alone. Thread-safe.

    Nobody is held off for ever: a suspect waits at most ``patience_s`` for others to end, and others wait at most
    that long for it; from then on it runs in company, and ``enter`` tells so.
    """

    def __init__(self, *, patience_s: float) -> None:
        self._patience_s = patience_s
        self._running: dict[int, Delivery] = {}
        self._changed = threading.Condition()
        self._holder: Delivery | None = None  # holds off whoever is not running yet
        self._alone: Delivery | None = None  # runs alone; never without a holder
        self._until = 0.0
        self._n_releases = 0
        self._n_waiting = 0

    @property
    def is_held(self) -> bool:
        """Whether nobody else may begin."""
        return self._holder is not None

    @property
    def n_waiting(self) -> int:
        """How many are held off now."""
        return self._n_waiting

    def enter(self, delivery: Delivery) -> Delivery | None:
        """Wait until it may run, and count it as running until ``leave``; whom it keeps company from now on.

        Sets ``delivery.is_alone``, and takes it from the one returned.
        """
        if delivery.charges:
            return self._enter_alone(delivery)
        # No lock where there is no suspect: each side says that it is there first, and looks for the other then.
        self._running[id(delivery)] = delivery
        if self._holder is None:
            return None
        with self._changed:
            del self._running[id(delivery)]
            self._changed.notify_all()
            self._wait_while_held()
            return self._enter_in_company(delivery)

    def leave(self, delivery: Delivery) -> None:
        """It ended. Does nothing for one that does not run."""
        if self._running.pop(id(delivery), None) is None or self._holder is None:
            return
        with self._changed:
            if self._alone is delivery:
                self._alone = None
            if self._holder is delivery:
                self._holder = None
            self._changed.notify_all()

    def release(self) -> None:
        """Let everybody run who waits now: the process shuts down, and waits for them."""
        with self._changed:
            self._n_releases += 1
            self._until = 0.0
            self._changed.notify_all()

    def _enter_alone(self, delivery: Delivery) -> Delivery | None:
        with self._changed:
            n_releases = self._n_releases
            self._wait_while_held()
            if self._n_releases == n_releases:
                self._hold(delivery)
                while self._running and self._holder is delivery and self._left_s():
                    self._changed.wait(self._left_s())
                if self._holder is delivery and not self._running:
                    self._hold(delivery)
                    self._alone = self._running[id(delivery)] = delivery
                    delivery.is_alone = True
                    return None
            return self._enter_in_company(delivery)

    def _hold(self, delivery: Delivery) -> None:
        self._holder = delivery
        self._until = time.monotonic() + self._patience_s

    def _left_s(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def _wait_while_held(self) -> None:
        """Wait for the holder to end, at most as long as it may hold others off."""
        self._n_waiting += 1
        try:
            while self._holder is not None and self._left_s():
                self._changed.wait(self._left_s())
        finally:
            self._n_waiting -= 1

    def _enter_in_company(self, delivery: Delivery) -> Delivery | None:
        disturbed, self._alone = self._alone, None
        if disturbed is not None:
            disturbed.is_alone = False
        if self._holder is delivery or not self._left_s():
            self._holder = None
        self._running[id(delivery)] = delivery
        self._changed.notify_all()
        return disturbed
