"""Read-ahead: estimates how many messages a Worker will need within the next few milliseconds.

Where jobs are short, a read for every few free slots costs more than the jobs. Messages that were read ahead wait in
the consumer, for at most ``HAND_BACK_AFTER_S``. If they are still waiting then, jobs took longer than expected: the
messages are handed back for idle consumers, and nothing is read ahead for a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

# A larger number saves nothing measurable, and at the end of a backlog one process could keep that many messages from
# the others.
MOST_AHEAD: Final = 128

# About three times the default read-ahead: jobs slightly longer than the previous ones do not cause a hand-back, and a
# message that an idle worker could have run does not wait long.
HAND_BACK_AFTER_S: Final = 0.05

# Where long and short jobs are mixed, a job that took longer than expected is usually followed by more long jobs.
NOTHING_AHEAD_FOR_S: Final = 1.0


class ReadAhead:
    """The estimate for one consumer, based on how fast its Worker used up the last read. Not thread-safe.

    Args:
        ahead_ms: how long the messages read ahead should last; 0 disables read-ahead.
        clock: returns the time in seconds.
    """

    def __init__(self, ahead_ms: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ahead_s = ahead_ms / 1000
        self._clock = clock
        self._n_finished_then = 0
        self._filled_at = self._asked_at = self._nothing_until = float("-inf")
        self._n_asked = 0

    @property
    def most(self) -> int:
        """The largest number of messages to read ahead."""
        return MOST_AHEAD if self._ahead_s else 0

    def expect(self, n_finished: int) -> int:
        """Return how many messages to read beyond the free slots, given the number finished so far.

        The result is at most twice the number finished since the last read: two fast messages do not predict a hundred.
        """
        self._asked_at = self._clock()
        elapsed_s = self._asked_at - self._filled_at
        if elapsed_s > HAND_BACK_AFTER_S or self._asked_at < self._nothing_until:
            self._n_asked = 0
        else:
            n = n_finished - self._n_finished_then
            self._n_asked = int(min(self.most, 2 * n, n * self._ahead_s / max(elapsed_s, 1e-4)))
        return self._n_asked

    def n_still_expected(self) -> int:
        """Return the last result of ``expect``, or 0 if it is old: the read may have waited for new entries since."""
        return self._n_asked if self._clock() - self._asked_at <= HAND_BACK_AFTER_S else 0

    def filled(self, n_finished: int) -> None:
        """Record that a read returned messages."""
        self._n_finished_then, self._filled_at = n_finished, self._clock()

    def left_s(self) -> float:
        """Return how long messages that were read ahead may still wait for a place."""
        return self._filled_at + HAND_BACK_AFTER_S - self._clock()

    def stalled(self) -> None:
        """Record that messages read ahead found no place in time; read nothing ahead for a while."""
        self._nothing_until = self._clock() + NOTHING_AHEAD_FOR_S
