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

    Nobody is held off for ever: whoever has waited for ``patience_s`` runs, however many suspects came before it;
    ``enter`` tells whom it keeps company then.
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

    def running(self) -> list[Delivery]:
        """The messages that run now, and those whose end is being written."""
        return list(self._running.values())

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
            self._wait_while_held(time.monotonic() + self._patience_s)
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
        deadline = time.monotonic() + self._patience_s
        with self._changed:
            n_releases = self._n_releases
            self._wait_while_held(deadline)
            if self._n_releases == n_releases and time.monotonic() < deadline:
                self._hold(delivery, deadline)
                while self._running and self._holder is delivery and self._left_s():
                    self._changed.wait(self._left_s())
                if self._holder is delivery and not self._running:
                    self._hold(delivery, time.monotonic() + self._patience_s)
                    self._alone = self._running[id(delivery)] = delivery
                    delivery.is_alone = True
                    return None
            return self._enter_in_company(delivery)

    def _hold(self, delivery: Delivery, until: float) -> None:
        self._holder, self._until = delivery, until

    def _left_s(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def _wait_while_held(self, deadline: float) -> None:
        """Wait for whoever holds others off, one after the other, until ``deadline`` at most."""
        self._n_waiting += 1
        try:
            while self._holder is not None and (left_s := min(self._left_s(), deadline - time.monotonic())) > 0:
                self._changed.wait(left_s)
        finally:
            self._n_waiting -= 1

    def _enter_in_company(self, delivery: Delivery) -> Delivery | None:
        disturbed, self._alone = self._alone, None
        if disturbed is not None:
            disturbed.is_alone = False
        if self._holder in (delivery, disturbed) or not self._left_s():
            self._holder = None
        self._running[id(delivery)] = delivery
        self._changed.notify_all()
        return disturbed
