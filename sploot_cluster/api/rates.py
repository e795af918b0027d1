"""The rate limit of each caller, counted by the process that serves it."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

# Size of a burst: after a pause, a caller may send the requests of this many seconds at once.
BURST_S: Final = 5.0

# Number of requests without a valid token, per second and IP address, that are answered with 401. Further ones get 429.
UNAUTHENTICATED_PER_S: Final = 20.0

# Maximum number of callers to remember. Those that have sent nothing for the longest time are forgotten first.
MAX_CALLERS: Final = 10_000


class Rates:
    """Token buckets, one per caller. Each is refilled at ``per_s`` and holds ``BURST_S`` seconds' worth of requests.

    Thread-safe. Takes constant time and about 200 bytes per caller.

    Args:
        per_s: maximum rate of one caller, in requests per second; 0 for no limit.
    """

    def __init__(self, per_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_s = per_s
        self._clock = clock
        self._lock = threading.Lock()
        # caller -> the time at which its bucket is full again
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def wait_s(self, caller: str) -> float:
        """Count a request and return 0, or return the seconds after which the caller may send it again."""
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
