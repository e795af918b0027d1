"""Adapter for arq, which polls a sorted set."""

from __future__ import annotations

import asyncio
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker, func

from benchmarks.queue import jobs
from benchmarks.queue.adapters import Adapter, AsyncAdapter

# arq's limit and polling interval. With the defaults (ten jobs per half second), the benchmark would measure only the
# limit.
MAX_JOBS, POLL_DELAY_S = 200, 0.05


async def _noop(ctx: Any) -> None:
    await jobs.noop_async()


async def _ping(ctx: Any, sent_ns: int) -> None:
    await jobs.ping_async(sent_ns)


async def _hold(ctx: Any, number: int) -> None:
    await jobs.hold_async(number)


class ArqAdapter(AsyncAdapter):
    async def open(self) -> None:
        self._pool = await create_pool(RedisSettings.from_dsn(self.url))

    def send(self, n: int) -> None:
        async def send() -> None:
            for _ in range(n):
                await self._pool.enqueue_job("noop")

        self.run(send())

    def send_batches(self, n: int, size: int) -> None:
        # arq has no batch call
        async def send() -> None:
            for start in range(0, n, size):
                await asyncio.gather(*(self._pool.enqueue_job("noop") for _ in range(min(size, n - start))))

        self.run(send())

    def ping(self, sent_ns: int) -> None:
        async def send() -> None:
            await self._pool.enqueue_job("ping", sent_ns)

        self.run(send())

    def hold(self, number: int) -> None:
        async def send() -> None:
            await self._pool.enqueue_job("hold", number)

        self.run(send())

    def work(self) -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        Worker(
            functions=[
                func(function, name=name, keep_result=0)
                for name, function in (("noop", _noop), ("ping", _ping), ("hold", _hold))
            ],
            redis_settings=RedisSettings.from_dsn(self.url),
            max_jobs=MAX_JOBS,
            poll_delay=POLL_DELAY_S,
            keep_result=0,
        ).run()


def adapter(variant: str, url: str, threads: int) -> Adapter:
    return ArqAdapter(variant, url, threads)
