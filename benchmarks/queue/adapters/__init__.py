"""Adapters with which each contestant enqueues and runs jobs. Each module is imported only in its own environment."""

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
    """Raised when a contestant lacks a feature, such as enqueueing in batches."""


class Adapter(ABC):
    """An adapter for one contestant. A process uses it either to enqueue jobs or to run them."""

    def __init__(self, variant: str, url: str, threads: int) -> None:
        """
        Args:
            variant: the contestant, if the environment has several.
            threads: number of worker threads, if the contestant has any; 4 in the published results.
        """
        self.variant, self.url, self.threads = variant, url, threads

    @abstractmethod
    def send(self, n: int) -> None:
        """Enqueue ``n`` jobs that do nothing, one after the other."""

    def send_batches(self, n: int, size: int) -> None:
        """Enqueue ``n`` jobs that do nothing, in batches of ``size``.

        Raises:
            NotOffered: the contestant has no batches.
        """
        raise NotOffered

    @abstractmethod
    def ping(self, sent_ns: int) -> None:
        """Enqueue a job that reports its latency."""

    @abstractmethod
    def hold(self, number: int) -> None:
        """Enqueue a numbered job, which hangs only in the worker that will be killed (``jobs.hold``)."""

    @abstractmethod
    def work(self) -> None:
        """Run a worker until the process is terminated."""


class AsyncAdapter(Adapter):
    """A base class for contestants that use asyncio; jobs are enqueued on one event loop."""

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
    """Return the adapter of ``module:variant``, configured from the environment."""
    module, _, variant = contestant.partition(":")
    made: Adapter = importlib.import_module(f"{__name__}.{module}").adapter(
        variant, os.environ[URL], int(os.environ.get(THREADS, "4"))
    )
    return made
