"""How each contestant enqueues and works. One module per environment, imported in that environment only."""

from __future__ import annotations

import asyncio
import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

URL: Final = "BENCH_URL"
THREADS: Final = "BENCH_THREADS"
N_JOBS: Final = "BENCH_N_JOBS"


class NotOffered(Exception):
    """Raised when a contestant has no such thing, such as enqueueing in batches."""


class Adapter(ABC):
    """One contestant. A process uses it either to produce or to work."""

    def __init__(self, variant: str, url: str, threads: int) -> None:
        """
        Args:
            variant: which one of the environment's contestants, where it has several.
            threads: worker threads, where the contestant has any; 4 in what is published.
        """
        self.variant, self.url, self.threads = variant, url, threads

    @abstractmethod
    def send(self, n: int) -> None:
        """Enqueue ``n`` jobs that do nothing, one after the other."""

    def send_batches(self, n: int, size: int) -> None:
        """Enqueue ``n`` jobs that do nothing, ``size`` at once.

        Raises:
            NotOffered: the contestant has no way to do so.
        """
        raise NotOffered

    @abstractmethod
    def ping(self, sent_ns: int) -> None:
        """Enqueue a job that tells how long it travelled."""

    @abstractmethod
    def hold(self, number: int) -> None:
        """Enqueue a job with a number, on which a victim dies."""

    @abstractmethod
    def work(self) -> None:
        """Run a worker until the process is told to end."""


class AsyncAdapter(Adapter):
    """For contestants of asyncio: producing runs on one loop."""

    def __init__(self, variant: str, url: str, threads: int) -> None:
        super().__init__(variant, url, threads)
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(self.open())
        return self._loop.run_until_complete(coroutine)

    @abstractmethod
    async def open(self) -> None:
        """Connect the producer."""


def adapter_of(contestant: str) -> Adapter:
    """The adapter of ``module:variant``, from what the environment says."""
    module, _, variant = contestant.partition(":")
    made: Adapter = importlib.import_module(f"{__name__}.{module}").adapter(
        variant, os.environ[URL], int(os.environ.get(THREADS, "4"))
    )
    return made
