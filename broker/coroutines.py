"""A thread pool in which coroutines enqueue messages, so that they never block their event loop.

The threads call ``enqueue`` and ``enqueue_many``, with the same guarantees, errors and middleware as other callers.
Each thread uses at most one connection.
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

# Maximum number of threads. More would not help: an enqueue takes a fraction of a millisecond, and while Redis hangs,
# they would hang too.
MOST_THREADS: Final = 8


class Coroutines:
    """A broker's thread pool. Threads start with the first call, and end after the broker is closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """Run ``call`` in another thread with this coroutine's context variables, and return its result.

        If the coroutine is cancelled, a call that has not started never runs, and a call that has started continues.
        """
        within = partial(contextvars.copy_context().run, call, *args)
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="broker-enqueue")
            running = self._threads.submit(within)
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        """Let each thread end after its last call, without waiting for it."""
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False)
