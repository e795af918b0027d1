"""Adapter for streaq. Its jobs wait in streams."""

from __future__ import annotations

from contextlib import AsyncExitStack

from streaq import Worker

from benchmarks.queue import jobs
from benchmarks.queue.adapters import Adapter, AsyncAdapter

CONCURRENCY = 32


class StreaqAdapter(AsyncAdapter):
    def __init__(self, variant: str, url: str, threads: int) -> None:
        super().__init__(variant, url, threads)
        self.worker = Worker(redis_url=url, concurrency=CONCURRENCY)
        # results are kept for five minutes by default, which is useless for a no-op
        task = self.worker.task
        self._noop = task(ttl=0)(jobs.noop_async)
        self._ping = task(ttl=0)(jobs.ping_async)
        self._hold = task(ttl=0)(jobs.hold_async)
        self._stack = AsyncExitStack()

    async def open(self) -> None:
        await self._stack.enter_async_context(self.worker)

    def send(self, n: int) -> None:
        async def send() -> None:
            for _ in range(n):
                await self._noop.enqueue()

        self.run(send())

    def send_batches(self, n: int, size: int) -> None:
        async def send() -> None:
            for start in range(0, n, size):
                await self.worker.enqueue_many([self._noop.enqueue() for _ in range(min(size, n - start))])

        self.run(send())

    def ping(self, sent_ns: int) -> None:
        async def send() -> None:
            await self._ping.enqueue(sent_ns)

        self.run(send())

    def hold(self, number: int) -> None:
        async def send() -> None:
            await self._hold.enqueue(number)

        self.run(send())

    def work(self) -> None:
        self.worker.run_sync()


def adapter(variant: str, url: str, threads: int) -> Adapter:
    return StreaqAdapter(variant, url, threads)
