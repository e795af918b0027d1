"""Adapter for taskiq on its Redis stream broker, acknowledging after the job."""

from __future__ import annotations

import asyncio
import contextlib

from taskiq.acks import AcknowledgeType
from taskiq.api import run_receiver_task
from taskiq_redis import RedisStreamBroker

from benchmarks.queue import jobs
from benchmarks.queue.adapters import Adapter, AsyncAdapter


class TaskiqAdapter(AsyncAdapter):
    def __init__(self, variant: str, url: str, threads: int) -> None:
        super().__init__(variant, url, threads)
        self.broker = RedisStreamBroker(url=url)
        self._noop = self.broker.register_task(jobs.noop_async, task_name="noop")
        self._ping = self.broker.register_task(jobs.ping_async, task_name="ping")
        self._hold = self.broker.register_task(jobs.hold_async, task_name="hold")

    async def open(self) -> None:
        await self.broker.startup()

    def send(self, n: int) -> None:
        async def send() -> None:
            for _ in range(n):
                await self._noop.kiq()

        self.run(send())

    def send_batches(self, n: int, size: int) -> None:
        # taskiq has no batch call; its users send many at once on the pool's connections
        async def send() -> None:
            for start in range(0, n, size):
                await asyncio.gather(*(self._noop.kiq() for _ in range(min(size, n - start))))

        self.run(send())

    def ping(self, sent_ns: int) -> None:
        self.run(self._ping.kiq(sent_ns))

    def hold(self, number: int) -> None:
        self.run(self._hold.kiq(number))

    def work(self) -> None:
        async def work() -> None:
            self.broker.is_worker_process = True
            await run_receiver_task(self.broker, run_startup=True, ack_time=AcknowledgeType.WHEN_EXECUTED)

        with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt):
            asyncio.run(work())


def adapter(variant: str, url: str, threads: int) -> Adapter:
    return TaskiqAdapter(variant, url, threads)
