"""Adapter for huey on a Redis list. A job is removed from the list when a worker receives it."""

from __future__ import annotations

from huey import RedisHuey

from benchmarks.queue import jobs
from benchmarks.queue.adapters import Adapter


class HueyAdapter(Adapter):
    def __init__(self, variant: str, url: str, threads: int) -> None:
        super().__init__(variant, url, threads)
        self.huey = RedisHuey("bench", url=url, results=False)
        self._noop = self.huey.task(name="noop")(jobs.noop)
        self._ping = self.huey.task(name="ping")(jobs.ping)
        self._hold = self.huey.task(name="hold")(jobs.hold)

    def send(self, n: int) -> None:
        for _ in range(n):
            self._noop()

    def ping(self, sent_ns: int) -> None:
        self._ping(sent_ns)

    def hold(self, number: int) -> None:
        self._hold(number)

    def work(self) -> None:
        self.huey.create_consumer(workers=self.threads, periodic=False).run()


def adapter(variant: str, url: str, threads: int) -> Adapter:
    return HueyAdapter(variant, url, threads)
