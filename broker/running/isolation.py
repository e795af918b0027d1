"""The isolation of crash suspects: no other message runs in the process while a suspect runs.

All messages that were running when their process died are delivered again. If they ran at the same time again, or
alongside others that crash, each crash would count against all of them, and innocent messages would become dead letters
together with the one that kills its process. So a suspect runs in isolation, and a crash during that time is attributed
to it.
"""

from __future__ import annotations

import threading
import time

from ..deliveries import Delivery
from .batches import Batch


class Isolation:
    """A gate that each message of a process passes before it runs. Suspects run one at a time, isolated. Thread-safe.

    A message waits for at most ``patience_s``, regardless of the number of suspects before it. Then it runs alongside
    the isolated suspect.
    """

    def __init__(self, *, patience_s: float) -> None:
        self._patience_s = patience_s
        self._running: dict[int, Delivery | Batch] = {}
        # Acquire this lock instead of the Condition: an interrupt of a job could end the Condition's __enter__ after it
        # has taken the lock.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._holder: Delivery | None = None  # the suspect for which other messages must wait
        self._alone: Delivery | None = None  # the suspect that runs in isolation; None without a holder
        self._until = 0.0
        self._n_releases = 0
        self._n_waiting = 0

    @property
    def is_held(self) -> bool:
        """Whether other messages must wait before they start."""
        return self._holder is not None

    def running(self) -> list[Delivery | Batch]:
        """Return the running messages and batches, including those whose outcomes are being written."""
        return list(self._running.values())

    @property
    def n_waiting(self) -> int:
        """The number of messages that are waiting at the gate."""
        return self._n_waiting

    def enter(self, delivery: Delivery | Batch) -> Delivery | None:
        """Wait until the message or batch may run, and count it as running until ``leave`` is called.

        If it runs in isolation, its ``is_alone`` is set.

        Returns:
            The suspect whose isolation ends because this message runs alongside it, or None. The suspect's ``is_alone``
            is cleared.
        """
        if isinstance(delivery, Delivery) and delivery.uncommon is not None and delivery.charges:
            return self._enter_alone(delivery)
        # if there is no suspect, no lock is needed: messages and suspects register themselves before they check for
        # each other
        self._running[id(delivery)] = delivery
        if self._holder is None:
            return None
        with self._lock:
            del self._running[id(delivery)]
            self._changed.notify_all()
            self._wait_while_held(time.monotonic() + self._patience_s)
            return self._enter_alongside(delivery)

    def leave(self, delivery: Delivery | Batch) -> None:
        """Record that a message has ended. If it was not running, do nothing."""
        if self._running.pop(id(delivery), None) is None or self._holder is None:
            return
        with self._lock:
            if self._alone is delivery:
                self._alone = None
            if self._holder is delivery:
                self._holder = None
            self._changed.notify_all()

    def release(self) -> None:
        """Let all waiting messages run. The process is shutting down and waits for them."""
        with self._lock:
            self._n_releases += 1
            self._until = 0.0
            self._changed.notify_all()

    def _enter_alone(self, delivery: Delivery) -> Delivery | None:
        deadline = time.monotonic() + self._patience_s
        with self._lock:
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
            return self._enter_alongside(delivery)

    def _hold(self, delivery: Delivery, until: float) -> None:
        self._holder, self._until = delivery, until

    def _left_s(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def _wait_while_held(self, deadline: float) -> None:
        """Wait until no suspect holds the gate, but not beyond ``deadline``."""
        self._n_waiting += 1
        try:
            while self._holder is not None and (left_s := min(self._left_s(), deadline - time.monotonic())) > 0:
                self._changed.wait(left_s)
        finally:
            self._n_waiting -= 1

    def _enter_alongside(self, delivery: Delivery | Batch) -> Delivery | None:
        disturbed, self._alone = self._alone, None
        if disturbed is not None:
            disturbed.is_alone = False
        if self._holder in (delivery, disturbed) or not self._left_s():
            self._holder = None
        self._running[id(delivery)] = delivery
        self._changed.notify_all()
        return disturbed
