"""Threads in which coroutines enqueue, so that Redis never stops their event loop.

A coroutine awaits the same code that other callers run, in one of a few threads that belong to the broker: it has the
same guarantees, errors and middleware. Each thread uses at most one connection.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

T = TypeVar("T")

# An enqueue takes a fraction of a millisecond, so more threads would only help while Redis hangs, and would hang too.
MOST_THREADS: Final = 8


class Coroutines:
    """The calls of coroutines. Threads start with the first call, and end when the broker is closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """Return what the call returns in another thread, with the context variables of this coroutine.

        If the coroutine is cancelled, a call that has not begun never runs. One that has begun goes on.
        """
        within = partial(contextvars.copy_context().run, call, *args)
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="broker-enqueue")
            running = self._threads.submit(within)
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        """End the threads once their calls have ended, without waiting for them."""
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False)
