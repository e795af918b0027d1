"""The rate limit of each caller, counted by the process that serves it."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

# A caller that was quiet may send this many seconds' worth of requests at once.
BURST_S: Final = 5.0

# Requests per second from an address that are refused for their token before they are refused for their rate.
UNAUTHENTICATED_PER_S: Final = 20.0

# The callers that are remembered; those that were quiet longest are forgotten first.
MAX_CALLERS: Final = 10_000


class Rates:
    """Counts requests of callers, each with an allowance that fills at ``per_s`` up to ``BURST_S`` seconds' worth.

    Thread-safe. Takes constant time and about 200 bytes per caller.

    Args:
        per_s: requests per second of one caller; 0 for no limit.
    """

    def __init__(self, per_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_s = per_s
        self._clock = clock
        self._lock = threading.Lock()
        # the time at which the allowance of each caller is full again
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def wait_s(self, caller: str) -> float:
        """Count a request of a caller; return 0, or the seconds after which the caller may send it again."""
        if not self.per_s:
            return 0.0
        now = self._clock()
        with self._lock:
            full_at = max(self._full_at.pop(caller, now), now) + 1 / self.per_s
            too_early_s = full_at - now - max(BURST_S, 1 / self.per_s)
            if too_early_s > 0:
                full_at -= 1 / self.per_s
            self._full_at[caller] = full_at
            if len(self._full_at) > MAX_CALLERS:
                self._full_at.popitem(last=False)
        return max(0.0, too_early_s)
