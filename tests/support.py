"""What several test rooms need: the only waiting there is, and environments for child processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(look: Callable[[], T], *, within_s: float = 10.0, every_s: float = 0.01) -> T:
    """Call ``look`` until it returns something truthy, and return that; fail with the last value seen.

    ``within_s`` is a bound for a loaded machine, never an expectation of speed.
    """
    deadline = time.monotonic() + within_s
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s; last seen: {seen!r}")
        time.sleep(every_s)
