"""When jobs are short, a consumer reads ahead without delaying other consumers' messages."""

from __future__ import annotations

import threading
from collections import Counter
from functools import partial
from typing import Any

import dramatiq
import pytest
import redis

from broker import Delivery, RedisStreamsBroker
from broker import consumer as consumer_module
from broker.places import HAND_BACK_AFTER_S, MOST_AHEAD, NOTHING_AHEAD_FOR_S, ReadAhead
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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock with which consumers estimate how many messages to read ahead."""
    clock = Clock()
    monkeypatch.setattr(consumer_module, "ReadAhead", partial(ReadAhead, clock=clock))
    return clock


class Reader:
    """A consumer in process ``a``, whose Worker finishes each message in a tenth of a millisecond."""

    def __init__(self, scene: Scene, clock: Clock, **settings: Any) -> None:
        self._clock = clock
        self.consumer = scene.consumer("a", prefetch=PREFETCH, timeout=50, **settings)
        self.broker = scene.brokers["a"]
        self._last_given = "0-0"

    def take(self, n: int) -> list[Delivery]:
        """Give the Worker ``n`` messages, and leave them unfinished."""
        given = received(self.consumer, n)
        self._last_given = given[-1].entry_id
        return given

    def work_off(self, n: int) -> list[str]:
        """Finish ``n`` messages one after the other, and return their labels."""
        done = []
        for _ in range(n):
            (delivery,) = self.take(1)
            self._clock.now += 0.0001
            self.consumer.ack(delivery)
            done += labels([delivery])
        return done

    def gets_nothing(self) -> bool:
        """Poll the consumer once, check that it returns no message, and return True."""
        assert next(self.consumer) is None
        return True

    def n_ahead(self) -> int:
        """Return how many messages the consumer has read ahead: those after the last one that the Worker received."""
        return len(self.broker.inspector(QUEUE).pending(consumer=self.broker.consumer_name, after=self._last_given))

    def hands_back(self) -> bool:
        """Poll the consumer once, and return whether it then holds no messages that were read ahead."""
        return self.gets_nothing() and not self.n_ahead()


def reading_ahead(stage: Scene, clock: Clock, *, n: int = 300, **settings: Any) -> Reader:
    """Return a reader that has read ahead because jobs were short. Its Worker holds no message."""
    reader = Reader(stage, clock, **settings)
    reader.broker.enqueue_many(messages(*range(n)))
    reader.work_off(50)
    while reader.n_ahead() < 20:
        reader.work_off(1)
    return reader


def held_by_a(stage: Scene) -> list[str]:
    """Return the labels of process ``a``'s pending entries. Finished ones are pending until they are acknowledged."""
    return [label for label, (who, _) in stage.state().pending.items() if who == "a"]


def n_reads(client: redis.Redis) -> int:
    statistics: dict[str, dict[str, int]] = client.info("commandstats")
    return statistics.get("cmdstat_xreadgroup", {"calls": 0})["calls"]


@pytest.mark.parametrize(
    ("n_finished", "within_s", "n_ahead"),
    [
        (10, 0.010, 15),  # one job per millisecond, so 15 messages last for 15 ms
        (4, 0.0004, 8),  # at most twice the number of finished jobs
        (400, 0.010, MOST_AHEAD),
        (2, 0.040, 0),  # these jobs are not short
        (8, 2 * HAND_BACK_AFTER_S, 0),
        (0, 0.001, 0),
    ],
)
def test_number_of_messages_read_ahead_fits_the_configured_time(n_finished: int, within_s: float, n_ahead: int) -> None:
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


def test_read_ahead_estimate_expires_when_a_read_waits_long() -> None:
    clock = Clock()
    estimate = ReadAhead(15, clock=clock)
    estimate.filled(0)
    clock.now += 0.01
    estimate.expect(10)

    assert estimate.n_still_expected() == 15

    clock.now += 2 * HAND_BACK_AFTER_S
    assert estimate.n_still_expected() == 0


def test_short_jobs_need_few_reads(stage: Scene, clock: Clock) -> None:
    reader = Reader(stage, clock)
    reader.broker.enqueue_many(messages(*range(600)))
    before = n_reads(stage.client)

    assert reader.work_off(600) == [str(number) for number in range(600)]

    # one read per free prefetch slot would be at least 300 reads
    assert n_reads(stage.client) - before <= 20


def test_nothing_is_read_ahead_when_disabled(stage: Scene, clock: Clock) -> None:
    reader = Reader(stage, clock, read_ahead_ms=0)
    reader.broker.enqueue_many(messages(*range(100)))

    for _ in range(60):
        reader.work_off(1)
        assert reader.n_ahead() < PREFETCH


def test_worker_never_holds_more_than_the_prefetch(stage: Scene, clock: Clock) -> None:
    reader = reading_ahead(stage, clock)

    held = reader.take(PREFETCH)

    assert reader.gets_nothing()
    assert reader.n_ahead() > PREFETCH
    reader.consumer.ack(held[0])
    assert len(reader.take(1)) == 1


def test_messages_read_ahead_do_not_wait_behind_long_jobs(stage: Scene, clock: Clock) -> None:
    reader = reading_ahead(stage, clock)
    other = stage.consumer("b", prefetch=1_000)
    long_ones = labels(reader.take(PREFETCH))
    first = int(long_ones[0])

    clock.now += 2 * HAND_BACK_AFTER_S
    eventually(reader.hands_back)

    eventually(lambda: held_by_a(stage) == long_ones)
    # they are delivered before undelivered messages, with a delivery count as if they had not been delivered before
    rest = received(other, 300 - first - PREFETCH)
    assert labels(rest) == [str(number) for number in range(first + PREFETCH, 300)]
    assert {delivery.deliveries for delivery in rest} == {1}


def test_process_does_not_read_ahead_after_a_stall(stage: Scene, clock: Clock) -> None:
    reader = reading_ahead(stage, clock)
    held = reader.take(PREFETCH)
    clock.now += 2 * HAND_BACK_AFTER_S
    eventually(reader.hands_back)

    for delivery in held:
        reader.consumer.ack(delivery)
    following = reader.work_off(20)

    first = int(labels(held)[-1]) + 1
    assert following == [str(number) for number in range(first, first + 20)]
    assert reader.n_ahead() < PREFETCH


def test_closed_consumer_hands_back_messages_read_ahead(stage: Scene, clock: Clock) -> None:
    reader = reading_ahead(stage, clock)
    (running,) = reader.take(1)
    first = int(labels([running])[0])

    reader.consumer.close()

    eventually(lambda: held_by_a(stage) == labels([running]))
    reader.consumer.ack(running)
    rest = received(stage.consumer("b", prefetch=1_000), 299 - first)
    assert labels(rest) == [str(number) for number in range(first + 1, 300)]


def test_pause_hands_back_messages_read_ahead(stage: Scene, clock: Clock) -> None:
    reader = reading_ahead(stage, clock)
    held = reader.take(PREFETCH)
    reader.broker.pause(QUEUE)

    eventually(reader.hands_back)

    eventually(lambda: held_by_a(stage) == labels(held))
    for delivery in held:
        reader.consumer.ack(delivery)
    reader.broker.resume(QUEUE)
    first = int(labels(held)[-1]) + 1
    assert reader.work_off(300 - first) == [str(number) for number in range(first, 300)]


URGENT = "urgent"


def test_messages_read_ahead_are_handed_back_for_a_higher_priority_queue(stage: Scene, clock: Clock) -> None:
    reader = reading_ahead(stage, clock, queue_priorities={URGENT: -1})
    held = reader.take(PREFETCH)
    reader.broker.declare_queue(URGENT)
    reader.broker.enqueue_many([dramatiq.Message(URGENT, "work", (), {}, {}) for _ in range(5)])
    urgent = reader.broker.consume(URGENT, timeout=2_000)
    received(urgent, 1)  # this read returns as many messages as it requested, so more may be waiting

    eventually(reader.hands_back)

    eventually(lambda: held_by_a(stage) == labels(held))
    for delivery in held:
        reader.consumer.ack(delivery)
    assert reader.gets_nothing()
    urgent.close()


def test_queue_waits_for_messages_read_ahead_from_a_higher_priority_queue(stage: Scene, clock: Clock) -> None:
    reader = reading_ahead(stage, clock, n=100, queue_priorities={QUEUE: -1})
    while reader.broker.stats(QUEUE).undelivered:
        reader.work_off(1)
    assert reader.n_ahead() > PREFETCH
    reader.broker.declare_queue("other")
    reader.broker.enqueue(dramatiq.Message("other", "work", ("other",), {}, {}))
    other = reader.broker.consume("other", timeout=100)

    assert next(other) is None

    reader.work_off(reader.n_ahead())
    assert reader.gets_nothing()
    assert labels(received(other, 1)) == ["other"]
    other.close()


def test_lost_reply_with_many_messages_is_recovered_in_full(stage: Scene, clock: Clock) -> None:
    reader = Reader(stage, clock)
    reader.broker.enqueue_many(messages(*range(60)))
    stage.client.xreadgroup(GROUP, reader.broker.consumer_name, {KEYS.stream: ">"}, count=60)

    assert reader.work_off(60) == [str(number) for number in range(60)]
    assert reader.broker.counters(QUEUE)["redelivered"] == 60


def test_full_consumer_hands_back_a_message_that_its_blocked_read_receives(stage: Scene) -> None:
    other = stage.consumer("b", prefetch=1)
    stage.brokers["b"].enqueue(message("long"))
    (handed_back,) = received(other, 1)
    consumer = stage.consumer("a", prefetch=1, timeout=50)
    eventually(lambda: next(consumer) is None and stage.n_blocked("xreadgroup") == 1)
    other.requeue([handed_back])
    assert labels(received(consumer, 1)) == ["long"]
    assert stage.n_blocked("xreadgroup") == 1

    stage.brokers["b"].enqueue(message("next"))
    eventually(lambda: next(consumer) is None and not stage.n_blocked("xreadgroup"))

    assert labels(received(other, 1)) == ["next"]


def test_long_jobs_hold_up_no_more_messages_than_the_worker_has_threads(redis_url: str) -> None:
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
            return len(ran_at_b) >= n - first_long - worker.worker_threads

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
