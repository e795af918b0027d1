"""When jobs are long, a process holds no more messages than it has threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq

from broker import RedisStreamsBroker
from broker.places import Durations
from tests.broker.scene import received
from tests.broker.test_dramatiq_options import working
from tests.support import eventually


class Jobs:
    """Jobs that record their start and run until the test lets them end."""

    def __init__(self, broker: RedisStreamsBroker, *queues: str) -> None:
        self.broker = broker
        self.began: list[str] = []
        self._may_end = threading.Semaphore(0)
        for queue in queues:
            dramatiq.actor(broker=broker, queue_name=queue, actor_name=f"long-{queue}")(self._run)
            dramatiq.actor(broker=broker, queue_name=queue, actor_name=f"short-{queue}")(self.began.append)

    def _run(self, label: str) -> None:
        self.began.append(label)
        self._may_end.acquire(timeout=60)

    def send(self, kind: str, queue: str, *labels: str) -> None:
        self.broker.enqueue_many([self.broker.get_actor(f"{kind}-{queue}").message(label) for label in labels])

    def end(self, n: int = 1) -> None:
        self._may_end.release(n)


@contextmanager
def jobs_on(url: str, *queues: str, **settings: Any) -> Iterator[Jobs]:
    broker = RedisStreamsBroker(url, middleware=[], lease_ms=2_000, **settings)
    jobs = Jobs(broker, *queues)
    try:
        yield jobs
    finally:
        broker.close()


def run_by_an_idle_process(url: str, queue: str, n: int) -> list[tuple[str, int]]:
    """Run ``n`` messages in an otherwise idle process; return their labels and delivery counts."""
    broker = RedisStreamsBroker(url, middleware=[], lease_ms=2_000)
    broker.declare_queue(queue)
    consumer = broker.consume(queue, prefetch=100, timeout=100)
    ran = received(consumer, n)
    for delivery in ran:
        consumer.ack(delivery)
    consumer.close()
    broker.close()
    return [(delivery.args[0], delivery.deliveries) for delivery in ran]


def test_jobs_count_as_long_if_most_of_the_last_eight_were_long() -> None:
    durations = Durations(0.05)
    judgements = [durations.are_long]

    for duration_s in [0.001] * 8 + [30.0] * 5:
        durations.record(duration_s)
        judgements.append(durations.are_long)

    assert judgements == [True] * 4 + [False] * 9 + [True]


def test_worker_gets_no_more_long_jobs_than_it_has_threads(redis_url: str) -> None:
    with jobs_on(redis_url, "q") as jobs, working(jobs.broker, threads=2):
        jobs.send("long", "q", *"abcdef")
        eventually(lambda: len(jobs.began) == 2)

        assert run_by_an_idle_process(redis_url, "q", 4) == [("c", 1), ("d", 1), ("e", 1), ("f", 1)]

        jobs.end(2)
        jobs.broker.join("q", timeout=30_000)
    assert sorted(jobs.began) == ["a", "b"]


def test_worker_gets_its_prefetch_if_long_job_ms_is_none(redis_url: str) -> None:
    with jobs_on(redis_url, "q", long_job_ms=None) as jobs, working(jobs.broker, threads=2):
        jobs.send("long", "q", *"abcdef")

        eventually(lambda: jobs.broker.stats("q").in_flight == 4 and len(jobs.began) == 2)

        jobs.end(6)
        jobs.broker.join("q", timeout=30_000)


def test_message_behind_a_long_job_is_taken_back_for_an_idle_process(redis_url: str) -> None:
    with jobs_on(redis_url, "q") as jobs, working(jobs.broker, threads=1):
        for number in range(8):  # short jobs, one at a time
            jobs.send("short", "q", str(number))
            eventually(lambda number=number: len(jobs.began) > number)  # type: ignore[misc]
        jobs.send("long", "q", "long", "behind")
        eventually(lambda: "long" in jobs.began)

        assert run_by_an_idle_process(redis_url, "q", 1) == [("behind", 1)]

        jobs.end()
        jobs.broker.join("q", timeout=30_000)


def test_short_job_behind_the_long_ones_of_another_queue_is_taken_back(redis_url: str) -> None:
    with jobs_on(redis_url, "rare", "often") as jobs, working(jobs.broker, threads=1):
        for number in range(8):
            jobs.send("short", "often", str(number))
            eventually(lambda number=number: len(jobs.began) > number)  # type: ignore[misc]
        jobs.send("long", "rare", "long")
        eventually(lambda: "long" in jobs.began)
        jobs.send("short", "often", "behind")

        assert run_by_an_idle_process(redis_url, "often", 1) == [("behind", 1)]

        jobs.end()
        jobs.broker.join("rare", timeout=30_000)


def test_queues_take_turns_at_the_only_thread(redis_url: str) -> None:
    with jobs_on(redis_url, "many", "few") as jobs, working(jobs.broker, threads=1):
        jobs.send("long", "many", *"abcdefghijkl")
        eventually(lambda: jobs.began)
        jobs.send("long", "few", "few")
        # the other queue's message waits for its turn, undelivered or handed back
        eventually(lambda: jobs.broker.stats("few").undelivered or jobs.broker.counters("few")["handed_back"])

        for n in range(1, 7):
            eventually(lambda n=n: len(jobs.began) >= n)  # type: ignore[misc]
            jobs.end()
        eventually(lambda: "few" in jobs.began[:7])
        jobs.end(12)
        for queue in ("many", "few"):
            jobs.broker.join(queue, timeout=30_000)
