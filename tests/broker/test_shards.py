"""Queues that are divided into shards: the shards of messages, their readers, and changes of the number of shards."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.middleware import Retries
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend

from broker import InvalidOption, RedisStreamsBroker, batch
from broker.sharding.readers import assignment
from broker.sharding.shards import MOST_SHARDS, shard_name
from tests.broker.processes import ROOT
from tests.broker.shard_reader import RAN
from tests.support import eventually

QUEUE = "q"
Message = dramatiq.Message[Any]


def message(number: int, **options: Any) -> Message:
    return Message(queue_name=QUEUE, actor_name="work", args=(number,), kwargs={}, options=options)


def broker_on(url: str, **settings: Any) -> RedisStreamsBroker:
    defaults: dict[str, Any] = {"middleware": [], "keeper_process": False, "sharded": {QUEUE: lambda one: one.args[0]}}
    return RedisStreamsBroker(url, **(defaults | settings))


@pytest.fixture
def producer(redis_url: str) -> Iterator[RedisStreamsBroker]:
    broker = broker_on(redis_url)
    yield broker
    broker.close()


class Process:
    """A Worker with one actor. ``ran`` counts the runs of each message, by the message's number."""

    def __init__(self, broker: RedisStreamsBroker, *, fails: bool = False, returns: bool = False) -> None:
        self.broker = broker
        self.ran: Counter[int] = Counter()
        self._lock = threading.Lock()

        def work(number: int) -> int | None:
            with self._lock:
                self.ran[number] += 1
            if fails:
                raise RuntimeError("on purpose")
            return number if returns else None

        self.actor = dramatiq.actor(broker=broker, queue_name=QUEUE)(work)
        self._worker = dramatiq.Worker(broker, queues={QUEUE}, worker_timeout=50, worker_threads=2)

    def start(self) -> None:
        self._worker.start()

    def stop(self) -> None:
        self._worker.stop()
        self.broker.close()


@contextmanager
def running(*processes: Process) -> Iterator[None]:
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.stop()


def lengths(client: redis.Redis, n: int) -> list[int]:
    return [client.xlen(f"streams:{shard_name(QUEUE, number)}") for number in range(n)]


def test_queue_without_shards_uses_no_shard_keys(producer: RedisStreamsBroker, redis_client: redis.Redis) -> None:
    producer.enqueue(message(7))

    assert producer.shards(QUEUE) == (QUEUE,)
    assert not [key for key in redis_client.scan_iter() if b"shards" in key or b".s" in key]


def test_producer_adds_each_message_to_its_shard(producer: RedisStreamsBroker, redis_client: redis.Redis) -> None:
    producer.set_shards(QUEUE, 4)

    producer.enqueue(message(6))
    sent = producer.enqueue_many([message(number) for number in range(12)])
    producer.enqueue(message(3), delay=60_000)

    assert {one.queue_name for one in sent} == {QUEUE}
    assert lengths(redis_client, 4) == [3, 3, 4, 3]
    assert redis_client.zcard("{streams:q.s3}:delayed") == 1
    stats = producer.stats(QUEUE)
    assert (stats.queue_name, stats.undelivered, stats.delayed, stats.entries_added) == (QUEUE, 13, 1, 13)
    assert producer.counters(QUEUE)["enqueued"] == 14


@pytest.mark.parametrize("n", [0, 3, -4, 2 * MOST_SHARDS])
def test_number_of_shards_that_is_not_a_power_of_two_is_refused(producer: RedisStreamsBroker, n: int) -> None:
    with pytest.raises(InvalidOption, match="power of two"):
        producer.set_shards(QUEUE, n)


def test_queue_without_a_bucket_function_is_not_divided(producer: RedisStreamsBroker) -> None:
    with pytest.raises(InvalidOption, match="sharded"):
        producer.set_shards("another", 2)


def test_workers_run_messages_of_all_shards(producer: RedisStreamsBroker, redis_url: str) -> None:
    producer.set_shards(QUEUE, 8)
    producer.enqueue_many([message(number) for number in range(40)])
    processes = [Process(broker_on(redis_url)) for _ in range(2)]

    with running(*processes):
        producer.join(QUEUE, timeout=20_000)
        ran = processes[0].ran + processes[1].ran

    assert ran == Counter(range(40))
    assert producer.counters(QUEUE)["acked"] == 40


def test_reader_of_shard_0_moves_messages_to_their_shards(producer: RedisStreamsBroker, redis_url: str) -> None:
    # these are added before the queue is divided, as a program that does not know about shards does at any time
    producer.enqueue_many([message(number) for number in range(20)])
    producer.set_shards(QUEUE, 4)
    process = Process(broker_on(redis_url))

    with running(process):
        producer.join(QUEUE, timeout=20_000)

    assert process.ran == Counter(range(20))
    counters = producer.counters(QUEUE)
    assert (counters["moved"], counters["acked"]) == (15, 20)
    stats = producer.stats(QUEUE)
    assert (stats.entries_added, stats.removed_by_others) == (20, 0)


def test_retries_results_and_dead_letters_stay_in_their_shard(producer: RedisStreamsBroker, redis_url: str) -> None:
    producer.set_shards(QUEUE, 4)
    producer.enqueue(message(3, max_retries=1, min_backoff=1, max_backoff=2))
    process = Process(broker_on(redis_url, middleware=[Retries()]), fails=True)

    with running(process):
        assert eventually(lambda: producer.stats(QUEUE).dead == 1)

    [dead_letter] = producer.dead_letters("q.s3").list()
    assert (dead_letter.queue_name, process.ran) == ("q.s3", Counter({3: 2}))
    assert producer.dead_letters("q.s3").requeue([dead_letter.id]) == 1
    assert producer.inspector("q.s3").waiting()


def test_result_of_a_message_in_any_shard_is_found(producer: RedisStreamsBroker, redis_url: str) -> None:
    producer.set_shards(QUEUE, 2)
    results = StubBackend()
    process = Process(broker_on(redis_url, middleware=[Results(backend=results, store_results=True)]), returns=True)
    sent = producer.enqueue(message(5))

    with running(process):
        assert sent.get_result(backend=results, block=True, timeout=20_000) == 5


def test_messages_of_a_shard_share_batches(producer: RedisStreamsBroker, redis_url: str) -> None:
    producer.set_shards(QUEUE, 2)
    producer.enqueue_many([message(number) for number in range(1, 60, 2)])
    process = Process(broker_on(redis_url))
    sizes: list[int] = []

    @batch(process.actor, max_size=10)
    def work_on_many(messages: Any) -> None:
        sizes.append(len(messages))
        for one in messages:
            one.done()

    with running(process):
        producer.join(QUEUE, timeout=20_000)

    assert sum(sizes) + sum(process.ran.values()) == 30
    assert max(sizes) > 1


def test_pause_and_cancel_act_on_all_shards(producer: RedisStreamsBroker, redis_url: str) -> None:
    producer.set_shards(QUEUE, 4)
    sent = producer.enqueue_many([message(number) for number in range(8)])

    producer.pause(QUEUE)
    were_paused = [part.paused for part in producer.stats_of_shards(QUEUE)]
    outcome = producer.cancel(sent[3].message_id, QUEUE)
    cancelled = producer.cancel_where(QUEUE, where=lambda one: one.args[0] > 5)
    producer.resume(QUEUE)
    process = Process(broker_on(redis_url))
    with running(process):
        producer.join(QUEUE, timeout=20_000)

    assert (were_paused, outcome) == ([True] * 4, "cancelled")
    assert sorted(cancelled.cancelled) == sorted(one.message_id for one in sent[6:])
    assert process.ran == Counter([0, 1, 2, 4, 5])


def test_messages_of_former_shards_still_run(producer: RedisStreamsBroker, redis_url: str) -> None:
    producer.set_shards(QUEUE, 8)
    producer.enqueue_many([message(number) for number in range(16)])
    producer.set_shards(QUEUE, 1)
    producer.enqueue_many([message(number) for number in range(16, 24)])
    process = Process(broker_on(redis_url))

    with running(process):
        producer.join(QUEUE, timeout=20_000)

    assert process.ran == Counter(range(24))
    assert producer.counters(QUEUE)["moved"] == 0
    assert (producer.n_shards(QUEUE), len(producer.shards(QUEUE))) == (1, 8)


def test_each_shard_has_one_reader_with_at_most_its_share() -> None:
    shards = [shard_name(QUEUE, number) for number in range(16)]
    members = [f"host:{number}" for number in range(5)]

    read = assignment(shards, members)

    assert sorted(shard for mine in read.values() for shard in mine) == sorted(shards)
    assert {len(mine) for mine in read.values()} <= {1, 2, 3, 4}
    assert assignment(shards, members[::-1]) == read


def test_each_process_reads_a_shard_if_there_are_more_processes() -> None:
    read = assignment(["q", "q.s1"], [f"host:{number}" for number in range(7)])

    assert {len(mine) for mine in read.values()} == {1}
    assert {shard for mine in read.values() for shard in mine} == {"q", "q.s1"}


def test_few_shards_change_readers_when_a_process_leaves() -> None:
    shards = [shard_name(QUEUE, number) for number in range(64)]
    members = [f"host:{number}" for number in range(8)]

    before, after = assignment(shards, members), assignment(shards, members[1:])

    stayed = sum(len(before[member] & after[member]) for member in members[1:])
    assert stayed >= 40  # of the 56 shards that the other processes read


@pytest.mark.slow
def test_shards_of_a_process_that_reads_nothing_are_read_by_others(
    producer: RedisStreamsBroker, redis_url: str
) -> None:
    producer.set_shards(QUEUE, 8)
    idle = broker_on(redis_url)  # this process is alive and owns half of the shards, but no Worker polls its consumers
    idle.declare_queue(QUEUE)
    idle.consume(QUEUE)
    process = Process(broker_on(redis_url))

    with running(process):
        assert eventually(lambda: len(producer.stats(QUEUE).consumers) == 2)
        producer.enqueue_many([message(number) for number in range(32)])
        producer.join(QUEUE, timeout=20_000)
    idle.close()

    assert process.ran == Counter(range(32))


@contextmanager
def worker_process(url: str) -> Iterator[subprocess.Popen[str]]:
    program = [sys.executable, "-m", "tests.broker.shard_reader", url]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_nothing_is_lost_when_shards_change_and_a_process_is_killed(
    producer: RedisStreamsBroker, redis_url: str, redis_client: redis.Redis
) -> None:
    producer.set_shards(QUEUE, 2)
    sent = 0

    def send(n: int) -> None:
        nonlocal sent
        producer.enqueue_many([message(number) for number in range(sent, sent + n)])
        sent += n

    def n_ran() -> int:
        return redis_client.hlen(RAN)

    with worker_process(redis_url) as killed, worker_process(redis_url):
        send(200)
        eventually(lambda: n_ran() > 50)
        producer.set_shards(QUEUE, 8)
        send(200)
        eventually(lambda: n_ran() > 150)
        killed.kill()
        send(200)
        eventually(lambda: n_ran() > 300)
        producer.set_shards(QUEUE, 1)
        send(200)
        producer.join(QUEUE, timeout=60_000)

    assert n_ran() == sent
    assert producer.stats(QUEUE).dead == 0
