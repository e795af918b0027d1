"""Adapter for Celery on Redis, acknowledging after the job, without results."""

from __future__ import annotations

from celery import Celery

from benchmarks.queue import jobs
from benchmarks.queue.adapters import Adapter

QUEUE = "bench"


class CeleryAdapter(Adapter):
    def __init__(self, variant: str, url: str, threads: int) -> None:
        super().__init__(variant, url, threads)
        self.app = Celery("bench", broker=url)
        self.app.conf.update(
            task_acks_late=True,
            task_ignore_result=True,
            task_default_queue=QUEUE,
            worker_prefetch_multiplier=32,
            task_reject_on_worker_lost=True,
            worker_send_task_events=False,
        )
        self._noop = self.app.task(jobs.noop, name="noop")
        self._ping = self.app.task(jobs.ping, name="ping")
        self._hold = self.app.task(jobs.hold, name="hold")

    def send(self, n: int) -> None:
        for _ in range(n):
            self._noop.delay()

    def ping(self, sent_ns: int) -> None:
        self._ping.delay(sent_ns)

    def hold(self, number: int) -> None:
        self._hold.delay(number)

    def work(self) -> None:
        self.app.worker_main(
            [
                "worker",
                "--pool=threads",
                f"--concurrency={self.threads}",
                "--loglevel=ERROR",
                "--without-gossip",
                "--without-mingle",
            ]
        )


def adapter(variant: str, url: str, threads: int) -> Adapter:
    return CeleryAdapter(variant, url, threads)
