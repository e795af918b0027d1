"""Limits per key: how many messages run at once, how many start per period, and which of them come first."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.middleware import Retries

from broker import InvalidMessage, RedisStreamsBroker
from broker.consumer import StreamsConsumer
from broker.key_limits import MOST_UNSTARTED
from tests.broker.scene import KEYS, QUEUE, QueueState, Scene, fail, labels, message, received
from tests.support import eventually


def of_tenant(*names: str, n: int = 2, **options: Any) -> list[dramatiq.Message[Any]]:
    return [message(name, concurrency_key="tenant", max_concurrent=n, **options) for name in names]


def is_clean(scene: Scene) -> bool:
    return not any(scene.client.exists(key) for key in (*KEYS.work[4:7], KEYS.limits))


def test_no_more_messages_of_a_concurrency_key_are_delivered_than_may_run(scene: Scene) -> None:
    consumer = scene.consumer("a", timeout=50)
    broker = scene.brokers["a"]
    broker.enqueue_many([*of_tenant("1", "2", "3", "4", "5"), message("free")])

    one, two, free = received(consumer, 3)
    assert labels([one, two, free]) == ["1", "2", "free"]
    assert next(consumer) is None
    assert broker.stats(QUEUE).in_line == 3

    consumer.ack(two)
    (three,) = received(consumer, 1)
    consumer.ack(one)
    (four,) = received(consumer, 1)
    assert labels([three, four]) == ["3", "4"]
    assert next(consumer) is None
    for delivery in (three, four, free):
        consumer.ack(delivery)
    consumer.ack(received(consumer, 1)[0])
    eventually(lambda: scene.state() == QueueState() and is_clean(scene))


def test_waiting_retry_leaves_its_turn_to_others_and_returns_to_the_line(scene: Scene) -> None:
    consumer = scene.consumer("a", timeout=50)
    broker = scene.brokers["a"]
    broker.enqueue_many(of_tenant("1", "2", "3", n=1))

    fail(broker, received(consumer, 1)[0], delay=60_000)
    (two,) = received(consumer, 1)
    scene.promote("a")
    assert next(consumer) is None, "the retry is due, and its key has no room"
    assert scene.state().delayed == ()
    consumer.ack(two)
    (three,) = received(consumer, 1)
    consumer.ack(three)
    (one,) = received(consumer, 1)
    fail(broker, one, delay=0)
    (again,) = received(consumer, 1)
    consumer.ack(again)

    assert labels([two, three, one, again]) == ["2", "3", "1", "1"]
    assert again.deliveries == 1
    eventually(lambda: is_clean(scene))


def test_delayed_message_takes_no_turn_before_it_is_due(scene: Scene) -> None:
    consumer = scene.consumer("a", timeout=50)
    broker = scene.brokers["a"]
    (later, now) = of_tenant("later", "now", n=1)
    broker.enqueue(later, delay=60_000)
    broker.enqueue(now)

    (running,) = received(consumer, 1)
    scene.promote("a")
    assert next(consumer) is None
    consumer.ack(running)

    assert labels([running, *received(consumer, 1)]) == ["now", "later"]


@pytest.mark.parametrize("how", ["dies", "is handed back", "is deleted", "is rejected", "is passed over", "is flushed"])
def test_concurrency_turn_is_freed_however_a_message_leaves_its_worker(scene: Scene, how: str) -> None:
    first = scene.consumer("a", timeout=50)
    other = scene.process("c")
    other.enqueue_many(of_tenant("1", "2", n=1))
    (one,) = received(first, 1)
    expected = "2"
    match how:
        case "dies":
            scene.die("a")
            expected = "1"
        case "is handed back":
            first.requeue([one])
            first.close()
            expected = "1"
        case "is deleted":
            scene.client.xdel(KEYS.stream, one.entry_id)
            scene.sweep("c")
        case "is rejected":
            first.nack(one)
        case "is passed over":
            inspector = other.inspector(QUEUE)
            ((seen,),) = (key.at_work for key in inspector.keys_at_work())
            assert inspector.pass_over(seen, even_if_received=True) == "passed"
        case "is flushed":
            other.flush(QUEUE)
            other.enqueue_many(of_tenant("2", n=1))
    consumer = scene.consumer("b", timeout=50)

    assert labels(received(consumer, 1)) == [expected]
    assert next(consumer) is None


def test_requeued_dead_letter_obeys_the_limit_of_its_concurrency_key(scene: Scene) -> None:
    consumer = scene.consumer("a", timeout=50)
    broker = scene.brokers["a"]
    broker.enqueue_many(of_tenant("1", "2", n=1))
    consumer.nack(received(consumer, 1)[0])
    (two,) = received(consumer, 1)

    (dead_letter,) = broker.dead_letters(QUEUE).list()
    assert broker.dead_letters(QUEUE).put_back([dead_letter.id]) == ["in-line"]
    assert next(consumer) is None
    consumer.ack(two)

    assert labels(received(consumer, 1)) == ["1"]


def test_newest_message_sets_the_limit_of_its_concurrency_key(stage: Scene) -> None:
    consumer = stage.consumer("a", timeout=50)
    broker = stage.brokers["a"]
    broker.enqueue_many(of_tenant("1", "2", "3", "4", n=1))
    (one,) = received(consumer, 1)

    broker.enqueue_many(of_tenant("5", n=3))
    stage.sweep("a")

    assert labels([one, *received(consumer, 2)]) == ["1", "2", "3"]
    assert next(consumer) is None


def test_message_with_a_concurrency_key_keeps_its_unique_key_in_line(stage: Scene) -> None:
    consumer = stage.consumer("a")
    broker = stage.brokers["a"]
    broker.enqueue_many(of_tenant("1", n=1))
    (waiting,) = broker.enqueue_many(of_tenant("2", n=1, unique_key="u"))

    (same,) = broker.enqueue_many(of_tenant("3", n=1, unique_key="u"))
    assert same.message_id == waiting.message_id
    consumer.ack(received(consumer, 1)[0])
    (two,) = received(consumer, 1)
    (same,) = broker.enqueue_many(of_tenant("4", n=1, unique_key="u"))

    assert two.message_id == same.message_id == waiting.message_id


def test_inspector_lists_the_messages_of_a_concurrency_key(stage: Scene) -> None:
    consumer = stage.consumer("a")
    broker = stage.brokers["a"]
    broker.enqueue_many([*of_tenant("1", "2", "3"), message("o", ordering_key="o")])
    received(consumer, 1)

    tenant, o = broker.inspector(QUEUE).keys_at_work()

    assert (tenant.limits.kind, tenant.limits.key, tenant.limits.max_concurrent) == ("concurrency", "tenant", 2)
    assert (tenant.n_at_work, tenant.in_line, o.limits.key) == (2, 1, "o")
    assert [one.message and one.message.args for one in tenant.at_work] == [("1",), ("2",)]
    assert [key.limits.key for key in broker.inspector(QUEUE).keys_at_work(after=tenant)] == ["o"]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"concurrency_key": "k"}, "concurrency_key"),
        ({"max_concurrent": 3}, "max_concurrent"),
        ({"concurrency_key": "k", "max_concurrent": 0}, "max_concurrent"),
        ({"concurrency_key": "", "max_concurrent": 1}, "concurrency_key"),
        ({"concurrency_key": "k", "max_concurrent": 2, "ordering_key": "k"}, "concurrency_key"),
        ({"rate": "many"}, "rate"),
        ({"rate": "0/s"}, "rate"),
        ({"rate_key": "k"}, "rate_key"),
        ({"rate_key": "k", "rate": "1/s", "ordering_key": "k"}, "rate_key"),
        ({"ordering_hold_ms": -1}, "ordering_hold_ms"),
        ({"priority": 1, "ordering_key": "k"}, "priority"),
        ({"priority": 1_001}, "priority"),
        ({"priority": "high"}, "priority"),
    ],
)
def test_contradictory_limits_are_refused_at_enqueue(stage: Scene, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidMessage) as refused:
        stage.process("a").enqueue(message("m", **options))

    assert refused.value.field == field


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency_key": "k", "max_concurrent": "three"},
        {"concurrency_key": {"k": 1}, "max_concurrent": 1.5},
        {"rate": ["9/s"], "rate_key": 7},
        {"priority": "high"},
        {"priority": 10**9},
        {"expires_in_ms": "soon", "expires_at_ms": "then", "ordering_hold_ms": "long", "ordering_key": "\1"},
    ],
)
def test_entry_with_invalid_limits_becomes_a_dead_letter(stage: Scene, options: dict[str, Any]) -> None:
    consumer = stage.consumer("a")
    stage.client.xadd(KEYS.stream, {"message": message("bad", **options).encode()})
    stage.client.xadd(KEYS.stream, {"message": message("good").encode()})

    assert labels(received(consumer, 1)) == ["good"]
    assert stage.state().dead == (("undecodable", "bad"),)


def test_limits_hold_among_workers_while_jobs_fail_at_random(redis_url: str, redis_client: redis.Redis) -> None:
    seed, most, n = 11, {"a": 1, "b": 3}, 40
    rng = random.Random(seed)
    lock, running, done = threading.Lock(), Counter[str](), Counter[str]()
    highest = Counter[str]()
    brokers, workers = [], []
    for _ in range(2):
        broker = RedisStreamsBroker(
            redis_url, middleware=[Retries(min_backoff=1, max_backoff=5, max_retries=50)], lease_ms=2_000
        )

        @dramatiq.actor(broker=broker)
        def work(key: str, number: int) -> None:
            with lock:
                running[key] += 1
                highest[key] = max(highest[key], running[key])
            try:
                if rng.random() < 0.3:
                    raise RuntimeError("not yet")
                done[key] += 1
            finally:
                with lock:
                    running[key] -= 1

        brokers.append(broker)
        workers.append(dramatiq.Worker(broker, worker_timeout=100, worker_threads=4))
    brokers[0].enqueue_many(
        work.message_with_options(args=(key, number), concurrency_key=key, max_concurrent=most[key])
        for number in range(n)
        for key in most
    )
    for worker in workers:
        worker.start()
    try:
        brokers[0].join("default", timeout=60_000)
    finally:
        for worker, broker in zip(workers, brokers, strict=True):
            worker.stop()
            broker.close()

    assert done == dict.fromkeys(most, n), f"seed {seed}"
    assert all(highest[key] <= most[key] for key in most), f"{highest}, seed {seed}"
    assert redis_client.keys("*ordered*") == []


def started(scene: Scene, name: str, delivery: Any) -> None:
    """Start running a message, as the Worker does."""
    scene.brokers[name].emit_before("process_message", delivery)


def at_rate(rate: str, *names: str, **options: Any) -> list[dramatiq.Message[Any]]:
    return [message(name, rate=rate, **options) for name in names]


def a_period_passes(scene: Scene, name: str) -> None:
    """Free the permits of all earlier starts, and promote the messages that wait for one."""
    for field in scene.client.hkeys(KEYS.limits):
        if field.endswith(b"\0starts"):
            scene.client.hdel(KEYS.limits, field)
    scene.promote(name)


def test_messages_beyond_the_rate_wait_until_a_period_after_earlier_starts(scene: Scene) -> None:
    consumer = scene.consumer("a", timeout=50)
    broker = scene.brokers["a"]
    broker.enqueue_many([*at_rate("2/day", "1", "2", "3", "4", "5"), message("free")])

    first = received(consumer, 3)
    assert labels(first) == ["1", "2", "free"]
    assert next(consumer) is None, "neither has started, and both may start at any time"
    assert (broker.stats(QUEUE).in_line, broker.stats(QUEUE).delayed) == (3, 0)
    for delivery in first[:2]:
        started(scene, "a", delivery)
    assert (broker.stats(QUEUE).in_line, broker.stats(QUEUE).delayed) == (1, 2)
    due = broker.stats(QUEUE).next_due_ms
    assert due is not None
    assert 86_000_000 < due <= 86_400_000
    for delivery in first:
        consumer.ack(delivery)
    assert next(consumer) is None

    a_period_passes(scene, "a")
    second = received(consumer, 2)
    assert sorted(labels(second)) == ["3", "4"]
    assert [one.deliveries for one in second] == [1, 1]
    assert next(consumer) is None


def test_backlog_does_not_burst_when_workers_return(scene: Scene) -> None:
    producer = scene.process("p")
    producer.enqueue_many(at_rate("2/day", "1", "2", "3", "4", "5"))
    a_period_passes(scene, "p")
    consumer = scene.consumer("a", timeout=50)

    for delivery in received(consumer, 2):
        started(scene, "a", delivery)
        consumer.ack(delivery)

    assert next(consumer) is None
    assert producer.stats(QUEUE).delayed == 2


def test_rate_of_a_concurrency_key_limits_both(scene: Scene) -> None:
    consumer = scene.consumer("a", timeout=50)
    broker = scene.brokers["a"]
    broker.enqueue_many(of_tenant("1", "2", "3", "4", n=1, rate="2/day"))

    for label in ("1", "2"):
        (delivery,) = received(consumer, 1)
        assert delivery.args[0] == label
        started(scene, "a", delivery)
        assert next(consumer) is None
        consumer.ack(delivery)

    assert next(consumer) is None
    eventually(lambda: scene.state().delayed == ("3",))
    a_period_passes(scene, "a")
    assert labels(received(consumer, 1)) == ["3"]


@pytest.mark.parametrize("key", [{"ordering_key": "k"}, {"rate_key": "k"}])
def test_retry_counts_as_a_start_of_its_rate(scene: Scene, key: dict[str, str]) -> None:
    consumer = scene.consumer("a", timeout=50)
    broker = scene.brokers["a"]
    broker.enqueue_many(at_rate("1/day", "1", **key))
    (one,) = received(consumer, 1)
    started(scene, "a", one)

    fail(broker, one, delay=0)
    scene.sweep("a")

    assert next(consumer) is None
    assert scene.state().delayed == ("1",)
    a_period_passes(scene, "a")
    (again,) = received(consumer, 1)
    started(scene, "a", again)
    consumer.ack(again)
    a_period_passes(scene, "a")
    eventually(lambda: is_clean(scene))


@pytest.mark.parametrize("place", ["undelivered", "delayed"])
def test_next_message_gets_the_permit_of_a_removed_message_with_a_rate(scene: Scene, place: str) -> None:
    consumer = scene.consumer("a", timeout=50)
    broker = scene.brokers["a"]
    broker.enqueue_many(at_rate("1/day", "1", "2", "3"))
    if place == "undelivered":
        scene.client.xtrim(KEYS.stream, maxlen=0)
    else:
        started(scene, "a", received(consumer, 1)[0])
        scene.client.delete(KEYS.delayed, KEYS.delayed_messages)

    scene.sweep("a")

    if place == "undelivered":
        assert labels(received(consumer, 1)) == ["2"]
    else:  # message 3 takes the permit of message 2, but not before a period has passed
        assert scene.state().delayed == ("3",)


def test_lowered_rate_applies_although_more_messages_have_started(scene: Scene) -> None:
    broker = scene.process("a")
    seconds, _ = scene.client.time()
    starts = " ".join(f"{(seconds + 1_000 * n) * 1_000}:1" for n in (1, 2, 3, 4))
    scene.client.hset(KEYS.limits, "\2work\0starts", starts)

    broker.enqueue_many(at_rate("2/day", "1", "2", "3"))

    due = [int(ms // 1_000 - seconds) for _, ms in scene.client.zrange(KEYS.delayed, 0, -1, withscores=True)]
    assert due == [3_000, 4_000], "two of the four places are not used again"
    assert broker.stats(QUEUE).in_line == 1


def test_rate_without_a_key_limits_each_actor(stage: Scene) -> None:
    consumer = stage.consumer("a", timeout=50)
    broker = stage.brokers["a"]
    other: dramatiq.Message[Any] = dramatiq.Message(
        queue_name=QUEUE, actor_name="other", args=("o1",), kwargs={}, options={"rate": "1/h"}
    )
    broker.enqueue_many([*at_rate("1/h", "1", "2"), other, *at_rate("1/h", "k1", "k2", rate_key="k")])

    assert labels(received(consumer, 3)) == ["1", "o1", "k1"]
    keys = broker.inspector(QUEUE).keys_at_work()
    assert [(key.limits.kind, key.limits.key, str(key.limits.rate), key.in_line) for key in keys] == [
        ("rate", "k", "1/h", 1),
        ("rate", "other", "1/h", 0),
        ("rate", "work", "1/h", 1),
    ]


def test_record_of_starts_is_bounded_and_expires_after_the_period(stage: Scene) -> None:
    consumer = stage.consumer("a", prefetch=400)
    broker = stage.brokers["a"]
    broker.enqueue_many(at_rate("1000/day", *map(str, range(300))))
    for delivery in received(consumer, 300):
        started(stage, "a", delivery)
        consumer.ack(delivery)
    eventually(lambda: stage.state() == QueueState())

    ((field, value),) = stage.client.hgetall(KEYS.limits).items()
    assert field == b"\2work\0starts"
    assert sum(int(part.split(b":")[1]) for part in value.split()) == 300
    assert len(value.split()) <= 2, "starts within a fiftieth of the period are stored together"

    stage.client.hset(KEYS.limits, field, "1000:300")
    stage.sweep("a")
    assert is_clean(stage)


@pytest.mark.slow
def test_rate_holds_among_worker_threads(redis_url: str) -> None:
    begun: list[float] = []
    broker = RedisStreamsBroker(redis_url, middleware=[], lease_ms=2_000)

    @dramatiq.actor(broker=broker)
    def work(number: int) -> None:
        begun.append(time.monotonic())

    broker.enqueue_many(work.message_with_options(args=(number,), rate="5/s") for number in range(7))
    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=4)
    since = time.monotonic()
    worker.start()
    try:
        broker.join("default", timeout=60_000)
    finally:
        worker.stop()
        broker.close()

    assert len(begun) == 7
    # the sixth start is a second after the first one, which is after the worker's start
    assert sorted(begun)[5] - since > 0.99


def run_next(scene: Scene, name: str, consumer: StreamsConsumer) -> str:
    """Run and acknowledge the next message; return its label."""
    (delivery,) = received(consumer, 1)
    started(scene, name, delivery)
    consumer.ack(delivery)
    return str(delivery.args[0])


def with_priority(priority: int, *names: str, **options: Any) -> list[dramatiq.Message[Any]]:
    return [message(name, priority=priority, **options) for name in names]


def test_urgent_message_overtakes_the_backlog_except_unstarted_messages(scene: Scene) -> None:
    consumer = scene.consumer("a", prefetch=1)
    broker = scene.brokers["a"]
    broker.enqueue_many(with_priority(10, *(f"bulk {n}" for n in range(30))))
    broker.enqueue_many([*with_priority(5, "soon", "soon too"), *with_priority(-5, "urgent"), message("plain")])
    assert broker.stats(QUEUE).in_line == 30 - MOST_UNSTARTED + 3

    ran = [run_next(scene, "a", consumer) for _ in range(34)]

    # the urgent message is added to the stream when the first message starts and frees a permit
    expected = [f"bulk {n}" for n in range(30)]
    expected[MOST_UNSTARTED:MOST_UNSTARTED] = ["plain", "urgent", "soon", "soon too"]
    assert ran == expected
    eventually(lambda: scene.state() == QueueState() and is_clean(scene))


@pytest.mark.parametrize("how", ["dies", "is deleted", "is retried", "is rejected and requeued"])
def test_permit_of_a_message_with_a_priority_is_freed_however_it_ends(scene: Scene, how: str) -> None:
    first = scene.consumer("a", prefetch=1)
    second = scene.process("b")
    second.enqueue_many(with_priority(1, *map(str, range(MOST_UNSTARTED + 3))))
    (zero,) = received(first, 1)
    expected = [str(n) for n in range(1, MOST_UNSTARTED + 3)]
    match how:
        case "dies":
            scene.die("a")
            expected = ["0", *expected]
        case "is deleted":
            scene.client.xdel(KEYS.stream, zero.entry_id)
            scene.sweep("b")
        case "is retried":
            started(scene, "a", zero)
            fail(scene.brokers["a"], zero, delay=0)
            expected = [*expected, "0"]
        case "is rejected and requeued":
            first.nack(zero)
            (dead_letter,) = second.dead_letters(QUEUE).list()
            assert second.dead_letters(QUEUE).put_back([dead_letter.id]) == ["in-line"]
            expected = [*expected, "0"]
    first.close()
    consumer = second.consume(QUEUE, prefetch=1, timeout=500)

    assert [run_next(scene, "b", consumer) for _ in expected] == expected
    eventually(lambda: is_clean(scene))


def test_delayed_message_has_its_priority_when_it_is_due(stage: Scene) -> None:
    consumer = stage.consumer("a", prefetch=1)
    broker = stage.brokers["a"]
    broker.enqueue(*with_priority(-1, "urgent"), delay=60_000)
    broker.enqueue_many(with_priority(1, *map(str, range(MOST_UNSTARTED + 2))))
    stage.promote("a")

    ran = [run_next(stage, "a", consumer) for _ in range(MOST_UNSTARTED + 3)]

    assert ran.index("urgent") == MOST_UNSTARTED


def test_priority_orders_the_line_of_a_concurrency_key(stage: Scene) -> None:
    consumer = stage.consumer("a")
    broker = stage.brokers["a"]
    broker.enqueue_many(
        [
            *of_tenant("1", "2", n=1),
            *of_tenant("later", n=1, priority=7),
            *of_tenant("urgent", "urgent too", n=1, priority=-7),
        ]
    )

    ran = [run_next(stage, "a", consumer) for _ in range(5)]

    assert ran == ["1", "urgent", "urgent too", "2", "later"]


def test_inspector_lists_the_messages_in_line_for_a_key_in_order(stage: Scene) -> None:
    broker = stage.process("a")
    broker.enqueue_many([*of_tenant("1", "2", n=1), *of_tenant("3", n=1, priority=-1), *of_tenant("4", n=1)])
    inspector = broker.inspector(QUEUE)
    (key,) = inspector.keys_at_work()

    waiting = [dramatiq.Message.decode(encoded).args[0] for encoded in inspector.in_line_for(key)]

    assert waiting == ["3", "2", "4"]
    assert len(inspector.in_line_for(key, limit=1)) == 1


def test_inspector_lists_how_many_wait_with_a_priority_and_for_how_long(scene: Scene) -> None:
    broker = scene.process("a")
    broker.enqueue_many(with_priority(9, *map(str, range(MOST_UNSTARTED + 2))))
    scene.client.zadd(KEYS.line, {"\4\0" + "1009" + "0" * 16: 0})  # it has waited since 1970
    broker.enqueue_many(with_priority(1, "urgent"))

    (key,) = broker.inspector(QUEUE).keys_at_work()

    assert (key.limits.kind, key.limits.key, key.n_at_work, key.in_line) == ("priority", "", MOST_UNSTARTED, 4)
    assert key.longest_wait_ms is not None
    assert key.longest_wait_ms > 10**12
    oldest_age_ms = broker.stats(QUEUE).oldest_age_ms
    assert oldest_age_ms is not None
    assert oldest_age_ms > 10**12
