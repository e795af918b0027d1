"""Adapter for RQ. ``fork`` is RQ's Worker, which forks for every job; ``simple`` runs jobs in the worker's process."""

from __future__ import annotations

import redis
from rq import Queue, SimpleWorker, Worker

from benchmarks.queue import jobs
from benchmarks.queue.adapters import Adapter


class RqAdapter(Adapter):
    def __init__(self, variant: str, url: str, threads: int) -> None:
        super().__init__(variant, url, threads)
        self._connection = redis.Redis.from_url(url)
        self._queue = Queue("bench", connection=self._connection)

    def send(self, n: int) -> None:
        for _ in range(n):
            self._queue.enqueue(jobs.noop, result_ttl=0)

    def send_batches(self, n: int, size: int) -> None:
        for start in range(0, n, size):
            self._queue.enqueue_many([Queue.prepare_data(jobs.noop, result_ttl=0) for _ in range(min(size, n - start))])

    def ping(self, sent_ns: int) -> None:
        self._queue.enqueue(jobs.ping, sent_ns, result_ttl=0)

    def hold(self, number: int) -> None:
        self._queue.enqueue(jobs.hold, number, result_ttl=0, job_timeout=3_600)

    def work(self) -> None:
        kind = SimpleWorker if self.variant == "simple" else Worker
        kind([self._queue], connection=self._connection, default_result_ttl=0).work(logging_level="ERROR")


def adapter(variant: str, url: str, threads: int) -> Adapter:
    return RqAdapter(variant, url, threads)
