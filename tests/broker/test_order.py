"""Messages with the same ordering key run one at a time, in the order of enqueueing, whatever happens to them."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.middleware import Retries
from dramatiq.results import ResultFailure, Results
from dramatiq.results.backends import StubBackend

from broker import RedisStreamsBroker
from broker.consumer import StreamsConsumer
from tests.broker.scene import KEYS, QUEUE, QueueState, Scene, fail, labels, message, received
from tests.support import eventually


def of_key(key: str, *names: str, **options: Any) -> list[dramatiq.Message[Any]]:
    return [message(name, ordering_key=key, **options) for name in names]


def nothing_is_left(scene: Scene) -> bool:
    is_empty = scene.state() == QueueState(dead=scene.state().dead)
    return is_empty and not any(scene.client.exists(key) for key in KEYS.work[4:7])


def next_of(consumer: StreamsConsumer) -> Any:
    return received(consumer, 1)[0]


def test_one_message_per_ordering_key_runs_and_other_keys_do_not_wait(scene: Scene) -> None:
    consumer = scene.consumer("a", timeout=100)
    broker = scene.brokers["a"]
    broker.enqueue_many([*of_key("k", "k1", "k2", "k3"), *of_key("l", "l1", "l2"), message("free")])

    first = received(consumer, 3)

    assert labels(first) == ["k1", "l1", "free"]
    assert next(consumer) is None
    stats = broker.stats(QUEUE)
    assert (stats.in_flight, stats.in_line, stats.waiting, stats.undelivered) == (3, 3, 3, 0)


def test_next_message_of_a_key_starts_when_the_previous_is_done(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue_many(of_key("k", *(str(n) for n in range(12))))

    ran = []
    for _ in range(12):
        one = next_of(consumer)
        ran.append(one.args[0])
        consumer.ack(one)

    assert ran == [str(n) for n in range(12)]
    eventually(lambda: nothing_is_left(scene))


def test_retried_message_runs_before_later_messages_of_its_key(scene: Scene) -> None:
    consumer = scene.consumer("a", timeout=100)
    broker = scene.brokers["a"]
    broker.enqueue_many(of_key("k", "one", "two"))

    fail(broker, next_of(consumer))
    assert next(consumer) is None
    scene.promote("a")
    again = next_of(consumer)
    fail(broker, again, delay=0)
    once_more = next_of(consumer)
    consumer.ack(once_more)

    assert (again.args[0], once_more.args[0]) == ("one", "one")
    assert labels(received(consumer, 1)) == ["two"]


def test_dead_letter_unblocks_its_key_and_is_requeued_at_the_end(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue_many(of_key("k", "one", "two", "three"))

    consumer.nack(next_of(consumer))
    two = next_of(consumer)
    dead_letters = broker.dead_letters(QUEUE)
    (dead_letter,) = dead_letters.list()
    assert dead_letters.put_back([dead_letter.id]) == ["in-line"]
    consumer.ack(two)

    ran = []
    for _ in range(2):
        one = next_of(consumer)
        ran.append(one.args[0])
        consumer.ack(one)
    assert ran == ["three", "one"]
    eventually(lambda: nothing_is_left(scene))


def test_delayed_message_blocks_its_key_and_keeps_its_own_due_time(scene: Scene) -> None:
    consumer = scene.consumer("a", timeout=100)
    broker = scene.brokers["a"]
    broker.enqueue(of_key("k", "one")[0], delay=60_000)
    broker.enqueue(of_key("k", "two")[0], delay=90_000)
    broker.enqueue(of_key("k", "three")[0])
    assert next(consumer) is None

    scene.promote("a")
    consumer.ack(next_of(consumer))
    eventually(lambda: scene.state().delayed == ("two",))
    assert next(consumer) is None
    scene.promote("a")
    consumer.ack(next_of(consumer))

    assert labels(received(consumer, 1)) == ["three"]


def test_order_holds_when_workers_die_and_messages_are_handed_back(scene: Scene) -> None:
    dying = scene.consumer("a")
    scene.brokers["a"].enqueue_many(of_key("k", "one", "two"))
    received(dying, 1)
    scene.die("a")

    second = scene.consumer("b", timeout=100)
    one = next_of(second)
    assert next(second) is None
    second.requeue([one])
    again = next_of(second)
    second.ack(again)

    assert labels([one, again, *received(second, 1)]) == ["one", "one", "two"]


def test_late_success_does_not_start_the_next_message_early(scene: Scene) -> None:
    slow = scene.consumer("a", prefetch=1, lease_ms=60_000)
    broker = scene.brokers["a"]
    broker.enqueue_many(of_key("k", "one", "two", "three"))
    late = next_of(slow)
    scene.lose_lease("a")
    other = scene.consumer("b", timeout=200)
    other.ack(next_of(other))
    assert labels([next_of(other)]) == ["two"]

    slow.ack(late)
    slow.close()
    broker.close()  # writes the acknowledgement

    assert next(other) is None
    assert scene.state() == QueueState(pending={"two": ("b", 1)})
    assert scene.brokers["b"].stats(QUEUE).in_line == 1


def test_ordering_key_is_unblocked_when_its_message_is_deleted_by_hand(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue_many(of_key("k", "one", "two"))
    one = next_of(consumer)
    scene.client.xdel(KEYS.stream, one.entry_id)

    scene.sweep("a")

    assert labels(received(consumer, 1)) == ["two"]


def test_messages_in_line_count_towards_the_queue_limit_and_for_join(scene: Scene) -> None:
    broker = scene.process("a", max_queue_length=3)
    broker.enqueue_many(of_key("k", "one", "two", "three"))

    with pytest.raises(dramatiq.errors.BrokerError):
        broker.enqueue(of_key("k", "four")[0])
    scene.client.delete(KEYS.stream)
    with pytest.raises(dramatiq.errors.QueueJoinTimeout):
        broker.join(QUEUE, timeout=50)

    broker.flush(QUEUE)
    broker.join(QUEUE, timeout=1_000)
    assert nothing_is_left(scene)


def test_messages_of_a_key_keep_their_order_when_jobs_fail_at_random(redis_url: str, redis_client: redis.Redis) -> None:
    seed = 7
    rng = random.Random(seed)
    ran: defaultdict[str, list[int]] = defaultdict(list)
    at_work: defaultdict[str, int] = defaultdict(int)
    broker = RedisStreamsBroker(
        redis_url, middleware=[Retries(min_backoff=1, max_backoff=5, max_retries=50)], lease_ms=2_000
    )

    @dramatiq.actor(broker=broker)
    def work(key: str, number: int) -> None:
        at_work[key] += 1
        try:
            assert at_work[key] == 1, f"two of {key} at once, seed {seed}"
            if rng.random() < 0.3:
                raise RuntimeError("not yet")
            ran[key].append(number)
        finally:
            at_work[key] -= 1

    keys = [f"key {n}" for n in range(8)]
    broker.enqueue_many(
        work.message_with_options(args=(key, number), ordering_key=key) for number in range(30) for key in keys
    )
    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=4)
    worker.start()
    try:
        broker.join("default", timeout=60_000)
    finally:
        worker.stop()
        broker.close()

    assert ran == {key: list(range(30)) for key in keys}, f"seed {seed}"
    assert redis_client.keys("*ordered*") == []


def test_very_long_delay_does_not_affect_other_messages(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue(of_key("k", "one")[0])
    one = next_of(consumer)
    broker.enqueue(of_key("k", "in a billion years")[0], delay=10**18)
    broker.enqueue(message("other"))

    consumer.ack(one)
    consumer.ack(next_of(consumer))

    eventually(lambda: scene.state() == QueueState(delayed=("in a billion years",)))


def due_in_ms(broker: RedisStreamsBroker) -> int:
    due = broker.stats(QUEUE).next_due_ms
    assert due is not None
    return due


def test_last_attempt_is_due_when_the_hold_of_its_ordering_key_ends(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue_many(of_key("k", "one", "two", ordering_hold_ms=60_000))

    fail(broker, next_of(consumer), delay=10**9)

    assert due_in_ms(broker) <= 60_000
    assert broker.stats(QUEUE).in_line == 1


@pytest.mark.parametrize("when", ["at the retry", "at the acknowledgement"])
def test_message_holding_its_ordering_key_too_long_becomes_a_dead_letter(scene: Scene, when: str) -> None:
    consumer = scene.consumer("a", ordering_hold_ms=60_000)
    broker = scene.brokers["a"]
    broker.enqueue_many(of_key("k", "one", "two"))
    fail(broker, next_of(consumer), delay=0)
    again = next_of(consumer)
    again.stuff_exception(ValueError("still"))
    scene.client.hset(KEYS.limits, "k\0since", 1)

    if when == "at the retry":
        fail(broker, again)
        assert again.failed, "the Worker rejects it, so its result is an error"
        consumer.nack(again)
    else:  # the retry could not be written while middleware ran after the job
        again.options["retries"] += 1
        consumer.ack(again)

    two = next_of(consumer)
    (dead_letter,) = broker.dead_letters(QUEUE).list()
    assert (two.args[0], dead_letter.reason, dead_letter.message_id) == ("two", "held-too-long", again.message_id)
    fail(broker, two)
    assert broker.stats(QUEUE).delayed == 1, "the next message may hold the key for as long again"


def test_ordering_key_may_be_held_until_retries_end(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue_many(of_key("k", "one", ordering_hold_ms=None))
    fail(broker, next_of(consumer), delay=0)
    scene.client.hset(KEYS.limits, "k\0since", 1)

    fail(broker, next_of(consumer), delay=10**9)

    assert due_in_ms(broker) > 10**8


def test_message_that_held_its_ordering_key_too_long_has_an_error_result(redis_url: str) -> None:
    results = StubBackend()
    broker = RedisStreamsBroker(
        redis_url,
        middleware=[Retries(min_backoff=1), Results(backend=results, store_results=True)],
        ordering_hold_ms=50,
        lease_ms=2_000,
    )

    @dramatiq.actor(broker=broker)
    def work(label: str) -> str:
        if label == "bad":
            raise ValueError("always")
        return label

    bad, good = (work.send_with_options(args=(label,), ordering_key="k") for label in ("bad", "good"))
    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=1)
    worker.start()
    try:
        assert good.get_result(backend=results, block=True, timeout=20_000) == "good"
        with pytest.raises(ResultFailure, match="always"):
            bad.get_result(backend=results, block=True, timeout=20_000)
    finally:
        worker.stop()
        broker.close()


def test_inspector_lists_the_holder_of_an_ordering_key_and_its_line(scene: Scene) -> None:
    consumer = scene.consumer("a", timeout=100)
    broker = scene.brokers["a"]
    broker.enqueue_many([*of_key("k", "k1", "k2", "k3"), *of_key("l", "l1"), message("free")])
    for one in received(consumer, 3):
        if one.args[0] == "l1":
            fail(broker, one)

    k, ll = broker.inspector(QUEUE).keys_at_work()

    (k1,), (l1,) = k.at_work, ll.at_work
    assert k1.message is not None
    assert l1.message is not None
    assert (k.limits.key, k1.message.args, k.in_line, k1.consumer) == ("k", ("k1",), 2, broker.consumer_name)
    assert (k.failing_for_ms, k1.due_ms, ll.longest_wait_ms) == (None, None, None)
    assert (ll.limits.key, l1.message.args, ll.in_line, l1.consumer) == ("l", ("l1",), 0, "")
    assert l1.due_ms is not None
    assert ll.failing_for_ms is not None
    assert 0 < l1.due_ms <= 60_000
    assert k.longest_wait_ms is not None
    (again,) = broker.inspector(QUEUE).keys_at_work(after=k)
    assert again.limits.key == "l"


@pytest.mark.parametrize("where", ["delayed", "undelivered", "received"])
def test_operator_can_pass_over_a_message_that_blocks_its_ordering_key(scene: Scene, where: str) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue_many(of_key("k", "one", unique_key="u"))
    broker.enqueue_many(of_key("k", "two"))
    inspector = broker.inspector(QUEUE)
    if where != "undelivered":
        one = next_of(consumer)
        if where == "delayed":
            fail(broker, one)
    ((seen,),) = (key.at_work for key in inspector.keys_at_work())

    if where == "received":
        assert inspector.pass_over(seen) == "received"
    assert inspector.pass_over(seen, even_if_received=where == "received") == "passed"
    assert inspector.pass_over(seen) == "moved"

    assert labels(received(consumer, 1)) == ["two"]
    assert scene.state() == QueueState(pending={"two": ("a", 1)}, dead=(("passed-over", "one"),))
    (dead_letter,) = broker.dead_letters(QUEUE).list()
    assert broker.dead_letters(QUEUE).put_back([dead_letter.id]) == ["in-line"]
