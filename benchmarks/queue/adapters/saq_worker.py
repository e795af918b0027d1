"""Adapter for saq on Redis."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from saq import Job, Queue, Worker

from benchmarks.queue import jobs
from benchmarks.queue.adapters import Adapter, AsyncAdapter

CONCURRENCY = 32


async def noop(ctx: Any) -> None:
    await jobs.noop_async()


async def ping(ctx: Any, *, sent_ns: int) -> None:
    await jobs.ping_async(sent_ns)


async def hold(ctx: Any, *, number: int) -> None:
    await jobs.hold_async(number)


class SaqAdapter(AsyncAdapter):
    async def open(self) -> None:
        self._queue = Queue.from_url(self.url)
        await self._queue.connect()

    def _job(self, function: str, **kwargs: object) -> Job:
        # ttl=-1 keeps no result
        return Job(function=function, kwargs=kwargs, ttl=-1, timeout=3_600)

    def send(self, n: int) -> None:
        async def send() -> None:
            for _ in range(n):
                await self._queue.enqueue(self._job("noop"))

        self.run(send())

    def send_batches(self, n: int, size: int) -> None:
        # saq has no batch call that does not wait for the results
        async def send() -> None:
            for start in range(0, n, size):
                await asyncio.gather(*(self._queue.enqueue(self._job("noop")) for _ in range(min(size, n - start))))

        self.run(send())

    def ping(self, sent_ns: int) -> None:
        self.run(self._enqueue(self._job("ping", sent_ns=sent_ns)))

    def hold(self, number: int) -> None:
        self.run(self._enqueue(self._job("hold", number=number)))

    async def _enqueue(self, job: Job) -> None:
        # a separate coroutine, because the queue exists only after ``run`` has opened it
        await self._queue.enqueue(job)

    def work(self) -> None:
        async def work() -> None:
            queue = Queue.from_url(self.url)
            await queue.connect()
            worker: Any = Worker(queue, functions=[noop, ping, hold], concurrency=CONCURRENCY)
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.event.set)
            await worker.start()

        asyncio.run(work())


def adapter(variant: str, url: str, threads: int) -> Adapter:
    return SaqAdapter(variant, url, threads)
