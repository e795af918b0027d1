"""How much a consumer reads beyond what its Worker may have: what that will need within the next few milliseconds.

Where jobs are short, a read for each few free places costs more than the jobs. What was read ahead stays with the
consumer. It waits there for ``HAND_BACK_AFTER_S`` at most: then jobs were longer than expected, it is handed back to
whoever is idle, and nothing is read ahead for a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

# More saves nothing that could be measured, and is what one process may keep from others at the end of a backlog.
MOST_AHEAD: Final = 128

# Some three times what is to be read ahead by default: jobs that last a little longer than those before are no reason
# to hand back, and it is no long wait for a message that an idle worker could have run.
HAND_BACK_AFTER_S: Final = 0.05

# Where long and short jobs are mixed, jobs that were longer than expected are followed by more of them.
NOTHING_AHEAD_FOR_S: Final = 1.0


class ReadAhead:
    """The estimate of one consumer, made from how fast its Worker used up the last read. For one thread.

    Args:
        ahead_ms: for how long what is read ahead should last; 0 = nothing is read ahead.
        clock: seconds.
    """

    def __init__(self, ahead_ms: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ahead_s = ahead_ms / 1000
        self._clock = clock
        self._n_finished_then = 0
        self._filled_at = self._asked_at = self._nothing_until = float("-inf")
        self._n_asked = 0

    @property
    def most(self) -> int:
        """How many may be read ahead at most."""
        return MOST_AHEAD if self._ahead_s else 0

    def expect(self, n_finished: int) -> int:
        """How many to read beyond the free places, now that so many messages have been finished.

        At most twice what was finished since the last read: two fast messages are no evidence for a hundred.
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
        """What the last ``expect`` said, unless that was long ago: a read may have waited for news ever since."""
        return self._n_asked if self._clock() - self._asked_at <= HAND_BACK_AFTER_S else 0

    def filled(self, n_finished: int) -> None:
        """A read brought something."""
        self._n_finished_then, self._filled_at = n_finished, self._clock()

    def left_s(self) -> float:
        """For how long what was read may still wait for a place."""
        return self._filled_at + HAND_BACK_AFTER_S - self._clock()

    def stalled(self) -> None:
        """What was read ahead found no place in time."""
        self._nothing_until = self._clock() + NOTHING_AHEAD_FOR_S
