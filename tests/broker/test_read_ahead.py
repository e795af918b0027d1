"""Where jobs are short, a consumer reads ahead without delaying other consumers' messages."""

from __future__ import annotations

import threading
from collections import Counter

import dramatiq
import pytest
import redis

from broker import Delivery, RedisStreamsBroker
from broker.consumer import StreamsConsumer
from broker.read_ahead import HAND_BACK_AFTER_S, MOST_AHEAD, NOTHING_AHEAD_FOR_S, ReadAhead
from tests.broker.scene import GROUP, KEYS, QUEUE, Scene, labels, message, received
from tests.support import eventually

PREFETCH = 2


class Clock:
    """A clock that only the test advances."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def messages(*numbers: int) -> list[dramatiq.Message[None]]:
    return [message(str(number)) for number in numbers]


def a_consumer(scene: Scene, name: str, clock: Clock, **settings: int) -> StreamsConsumer:
    consumer = scene.consumer(name, prefetch=PREFETCH, **settings)
    consumer._read_ahead = ReadAhead(scene.brokers[name].settings.read_ahead_ms, clock=clock)
    return consumer


def work_off(consumer: StreamsConsumer, n: int, clock: Clock) -> list[str]:
    """Finish this many messages one after the other, in a tenth of a millisecond each."""
    done = []
    for _ in range(n):
        (delivery,) = received(consumer, 1)
        clock.now += 0.0001
        consumer.ack(delivery)
        done += labels([delivery])
    return done


def gets_nothing(consumer: StreamsConsumer) -> bool:
    """Ask the consumer briefly for a message and return True."""
    patience_s, consumer._timeout_s = consumer._timeout_s, 0.05
    try:
        assert next(consumer) is None
    finally:
        consumer._timeout_s = patience_s
    return True


def hands_back(consumer: StreamsConsumer) -> bool:
    """Ask the consumer briefly and return whether it then holds nothing ahead."""
    return gets_nothing(consumer) and not n_held_ahead(consumer)


def n_held_ahead(consumer: StreamsConsumer) -> int:
    return len(consumer._buffer)


def reading_ahead(scene: Scene, clock: Clock, *, n: int = 300) -> StreamsConsumer:
    """Return a consumer that has read ahead after short jobs, and whose Worker holds no message."""
    consumer = a_consumer(scene, "a", clock)
    scene.brokers["a"].enqueue_many(messages(*range(n)))
    n_done = 0
    while n_done < 50 or n_held_ahead(consumer) < 20:
        work_off(consumer, 1, clock)
        n_done += 1
    return consumer


def held_by_a(scene: Scene) -> list[str]:
    """Return the pending entries, which briefly include finished ones: acknowledgements are written later."""
    return [label for label, (who, _) in scene.state().pending.items() if who == "a"]


def n_reads(client: redis.Redis) -> int:
    statistics: dict[str, dict[str, int]] = client.info("commandstats")
    return statistics.get("cmdstat_xreadgroup", {"calls": 0})["calls"]


@pytest.mark.parametrize(
    ("n_finished", "within_s", "n_ahead"),
    [
        (10, 0.010, 15),  # one per millisecond: fifteen last for 15 ms
        (4, 0.0004, 8),  # four fast ones are evidence for eight
        (400, 0.010, MOST_AHEAD),
        (2, 0.040, 0),  # jobs are not short
        (8, 2 * HAND_BACK_AFTER_S, 0),
        (0, 0.001, 0),
    ],
)
def test_read_ahead_lasts_for_the_configured_time(n_finished: int, within_s: float, n_ahead: int) -> None:
    clock = Clock()
    estimate = ReadAhead(15, clock=clock)
    estimate.filled(100)

    clock.now += within_s

    assert estimate.expect(100 + n_finished) == n_ahead


def test_unexpectedly_long_jobs_suspend_read_ahead() -> None:
    clock = Clock()
    estimate = ReadAhead(15, clock=clock)
    estimate.stalled()
    estimate.filled(0)

    clock.now += 0.01
    assert estimate.expect(10) == 0

    clock.now += NOTHING_AHEAD_FOR_S
    estimate.filled(10)
    clock.now += 0.01
    assert estimate.expect(20) == 15


def test_read_that_waited_long_forgets_the_earlier_estimate() -> None:
    clock = Clock()
    estimate = ReadAhead(15, clock=clock)
    estimate.filled(0)
    clock.now += 0.01
    estimate.expect(10)

    assert estimate.n_still_expected() == 15

    clock.now += 2 * HAND_BACK_AFTER_S
    assert estimate.n_still_expected() == 0


def test_short_jobs_need_few_reads(scene: Scene) -> None:
    clock = Clock()
    consumer = a_consumer(scene, "a", clock)
    scene.brokers["a"].enqueue_many(messages(*range(600)))
    before = n_reads(scene.client)

    assert work_off(consumer, 600, clock) == [str(number) for number in range(600)]

    # a read for each free place would be at least 300
    assert n_reads(scene.client) - before <= 20


def test_nothing_is_read_ahead_when_disabled(scene: Scene) -> None:
    clock = Clock()
    consumer = a_consumer(scene, "a", clock, read_ahead_ms=0)
    scene.brokers["a"].enqueue_many(messages(*range(100)))

    for _ in range(60):
        work_off(consumer, 1, clock)
        assert n_held_ahead(consumer) < PREFETCH


def test_worker_never_holds_more_than_the_prefetch(scene: Scene) -> None:
    clock = Clock()
    consumer = reading_ahead(scene, clock)

    held = received(consumer, PREFETCH)

    assert gets_nothing(consumer)
    assert n_held_ahead(consumer) > PREFETCH
    consumer.ack(held[0])
    assert len(received(consumer, 1)) == 1


def test_messages_read_ahead_do_not_wait_behind_long_jobs(scene: Scene) -> None:
    clock = Clock()
    consumer = reading_ahead(scene, clock)
    other = scene.consumer("b", prefetch=1_000)
    long_ones = labels(received(consumer, PREFETCH))
    first = int(long_ones[0])

    clock.now += 2 * HAND_BACK_AFTER_S
    eventually(lambda: hands_back(consumer))

    eventually(lambda: held_by_a(scene) == long_ones)
    # in their place, before undelivered messages, and as if they had not been delivered
    rest = received(other, 300 - first - PREFETCH)
    assert labels(rest) == [str(number) for number in range(first + PREFETCH, 300)]
    assert {delivery.deliveries for delivery in rest} == {1}


def test_process_reads_only_its_free_places_after_a_stall(scene: Scene) -> None:
    clock = Clock()
    consumer = reading_ahead(scene, clock)
    held = received(consumer, PREFETCH)
    clock.now += 2 * HAND_BACK_AFTER_S
    eventually(lambda: hands_back(consumer))

    for delivery in held:
        consumer.ack(delivery)
    following = work_off(consumer, 20, clock)

    first = int(labels(held)[-1]) + 1
    assert following == [str(number) for number in range(first, first + 20)]
    assert n_held_ahead(consumer) < PREFETCH


def test_closed_consumer_hands_back_messages_read_ahead(scene: Scene) -> None:
    clock = Clock()
    consumer = reading_ahead(scene, clock)
    (running,) = received(consumer, 1)
    first = int(labels([running])[0])

    consumer.close()

    eventually(lambda: held_by_a(scene) == labels([running]))
    consumer.ack(running)
    rest = received(scene.consumer("b", prefetch=1_000), 299 - first)
    assert labels(rest) == [str(number) for number in range(first + 1, 300)]


def test_pause_hands_back_messages_read_ahead(scene: Scene) -> None:
    clock = Clock()
    consumer = reading_ahead(scene, clock)
    held = received(consumer, PREFETCH)
    broker = scene.brokers["a"]
    broker.pause(QUEUE)
    eventually(lambda: consumer._queue.is_paused)

    eventually(lambda: hands_back(consumer))

    eventually(lambda: held_by_a(scene) == labels(held))
    for delivery in held:
        consumer.ack(delivery)
    broker.resume(QUEUE)
    eventually(lambda: not consumer._queue.is_paused)
    first = int(labels(held)[-1]) + 1
    assert work_off(consumer, 300 - first, clock) == [str(number) for number in range(first, 300)]


def test_messages_read_ahead_are_handed_back_for_a_higher_priority_queue(scene: Scene) -> None:
    clock = Clock()
    consumer = reading_ahead(scene, clock)
    held = received(consumer, PREFETCH)
    consumer._queue.must_yield = lambda: True  # type: ignore[method-assign]  # as another queue of the process would

    eventually(lambda: hands_back(consumer))

    eventually(lambda: held_by_a(scene) == labels(held))
    for delivery in held:
        consumer.ack(delivery)
    assert gets_nothing(consumer)


def test_queue_waits_for_messages_read_ahead_of_a_higher_priority_queue(scene: Scene) -> None:
    clock = Clock()
    consumer = reading_ahead(scene, clock, n=100)
    received(consumer, PREFETCH)
    consumer._queue.has_backlog = False

    assert consumer._queue.is_waiting

    consumer._give_back(len(consumer._buffer))
    assert not consumer._queue.is_waiting


def test_lost_reply_with_many_messages_is_recovered_in_full(scene: Scene) -> None:
    consumer = scene.consumer("a", prefetch=PREFETCH)
    broker = scene.brokers["a"]
    broker.enqueue_many(messages(*range(60)))
    scene.client.xreadgroup(GROUP, broker.consumer_name, {KEYS.stream: ">"}, count=60)

    clock = Clock()
    assert work_off(consumer, 60, clock) == [str(number) for number in range(60)]
    assert broker.counters(QUEUE)["redelivered"] == 60


def test_messages_of_a_waiting_read_are_not_held_behind_taken_ones(scene: Scene) -> None:
    other = scene.consumer("b", prefetch=1)
    scene.brokers["b"].enqueue(message("long"))
    (handed_back,) = received(other, 1)
    consumer = scene.consumer("a", prefetch=1)
    eventually(lambda: gets_nothing(consumer) and consumer._read.is_waiting)
    other.requeue([handed_back])
    assert labels(received(consumer, 1)) == ["long"]
    assert consumer._read.is_waiting

    scene.brokers["b"].enqueue(message("next"))
    eventually(lambda: gets_nothing(consumer) and not consumer._read.is_waiting)

    assert labels(received(other, 1)) == ["next"]


def test_long_jobs_hold_up_no_more_than_the_prefetch(redis_url: str) -> None:
    n, first_long = 1_000, 400
    may_end, ran_at_a, ran_at_b = threading.Event(), Counter[int](), list[int]()
    a = RedisStreamsBroker(redis_url, middleware=[], lease_ms=2_000)
    b = RedisStreamsBroker(redis_url, middleware=[], lease_ms=2_000)

    @dramatiq.actor(broker=a)
    def work(number: int) -> None:
        if number >= first_long:
            may_end.wait(60)
        ran_at_a[number] += 1

    a.enqueue_many([work.message(number) for number in range(n)])
    worker = dramatiq.Worker(a, worker_timeout=100, worker_threads=2)
    worker.start()
    b.declare_queue("default")
    try:
        eventually(lambda: len(ran_at_a) == first_long, within_s=60)
        idle = b.consume("default", prefetch=n, timeout=100)

        def runs_at_b() -> bool:
            delivery = next(idle)
            if isinstance(delivery, Delivery):
                ran_at_b.append(delivery.args[0])
                idle.ack(delivery)
            return len(ran_at_b) >= n - first_long - worker.queue_prefetch

        eventually(runs_at_b, within_s=60, every_s=0)
        may_end.set()
        a.join("default", timeout=60_000)
        idle.close()
    finally:
        may_end.set()
        worker.stop()
        a.close()
        b.close()

    assert Counter(ran_at_b) + ran_at_a == Counter(range(n))
