"""The order in which a process reads its queues."""

from __future__ import annotations

import threading

import dramatiq

from broker import RedisStreamsBroker
from tests.broker.scene import received
from tests.support import eventually


def test_queue_waits_while_a_higher_priority_queue_has_messages(redis_url: str) -> None:
    ran: list[str] = []
    may_go = threading.Event()
    broker = RedisStreamsBroker(redis_url, middleware=[], queue_priorities={"urgent": -1, "rest": 5}, lease_ms=2_000)

    @dramatiq.actor(broker=broker, queue_name="urgent", priority=0)
    def urgent(number: int) -> None:
        may_go.wait(30)
        ran.append("urgent")

    @dramatiq.actor(broker=broker, queue_name="rest", priority=1)
    def rest(number: int) -> None:
        may_go.wait(30)
        ran.append("rest")

    broker.enqueue_many([urgent.message(number) for number in range(100)])
    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=2)
    worker.start()
    try:
        eventually(lambda: broker.stats("urgent").in_flight)
        broker.enqueue_many([rest.message(number) for number in range(100)])
        may_go.set()
        for queue in ("urgent", "rest"):
            broker.join(queue, timeout=60_000)
    finally:
        worker.stop()
        broker.close()

    # at most two prefetches of messages, fetched when the urgent queue became empty, may run before its last messages
    last_urgent = len(ran) - 1 - ran[::-1].index("urgent")
    assert ran[:last_urgent].count("rest") <= 8
    assert ran.count("rest") == 100


def test_queue_is_not_read_after_a_full_read_of_a_higher_priority_queue(
    redis_url: str,
) -> None:
    broker = RedisStreamsBroker(redis_url, middleware=[], queue_priorities={"a": -1}, read_ahead_ms=0)
    messages: list[dramatiq.Message[None]] = [dramatiq.Message(queue, "work", (), {}, {}) for queue in "aaaab"]
    for queue in "ab":
        broker.declare_queue(queue)
    broker.enqueue_many(messages)
    a, b = broker.consume("a", prefetch=2, timeout=100), broker.consume("b", timeout=100)

    for _ in range(2):
        held = received(a, 2)
        assert next(b) is None
        for delivery in held:
            a.ack(delivery)
    assert next(a) is None

    assert received(b, 1)[0].queue_name == "b"
    for one in (a, b):
        one.close()
    broker.close()


def test_queue_does_not_wait_for_the_timeout_of_a_drained_queue(redis_url: str) -> None:
    broker = RedisStreamsBroker(redis_url, middleware=[], queue_priorities={"a": -1}, read_ahead_ms=0)
    for queue in "ab":
        broker.declare_queue(queue)
    broker.enqueue_many([dramatiq.Message(queue, "work", (), {}, {}) for queue in "ab"])
    a, b = broker.consume("a", prefetch=1, timeout=600_000), broker.consume("b", timeout=100)
    a.ack(received(a, 1)[0])  # a full read, so there may be more messages

    # a daemon thread, because it waits until the consumer is closed
    threading.Thread(target=lambda: next(a), daemon=True).start()
    assert received(b, 1)[0].queue_name == "b"

    for one in (a, b):
        one.close()
    broker.close()


def test_queues_without_priorities_do_not_wait_for_each_other(redis_url: str) -> None:
    broker = RedisStreamsBroker(redis_url, middleware=[])
    broker.declare_queue("a")
    broker.declare_queue("b")
    broker.enqueue_many([dramatiq.Message(queue, "work", (), {}, {}) for queue in "aaab"])
    a, b = broker.consume("a", timeout=2_000), broker.consume("b", timeout=2_000)

    received(a, 1)

    assert received(b, 1)[0].queue_name == "b"

    a.close()
    b.close()
    broker.close()
