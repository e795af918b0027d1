"""A unique key belongs to a waiting message and is freed when that message starts, is removed or is skipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import AgeLimit, GroupCallbacks, Middleware, Pipelines, SkipMessage
from dramatiq.rate_limits.backends import StubBackend

from broker.consumer import StreamsConsumer
from tests.broker.scene import GROUP, KEYS, QUEUE, QueueState, Scene, fail, message, received
from tests.broker.test_dramatiq_options import broker_on, quick_retries, working
from tests.broker.test_settle import full
from tests.support import eventually


def entry_id(scene: Scene) -> bytes:
    ((found, _),) = scene.client.xrange(KEYS.stream)
    assert isinstance(found, bytes)
    return found


def removed_by(scene: Scene, command: str) -> None:
    match command:
        case "XDEL":
            scene.client.xdel(KEYS.stream, entry_id(scene))
        case "XTRIM":
            scene.client.xtrim(KEYS.stream, maxlen=0)
        case "DEL":
            scene.client.delete(KEYS.stream)
        case "ZREM":
            scene.client.zremrangebyrank(KEYS.delayed, 0, -1)
        case "HDEL":
            scene.client.delete(KEYS.delayed_messages)
        case "ZREM line":
            scene.client.zremrangebyrank(KEYS.line, 0, -1)


@pytest.mark.parametrize(
    ("command", "delay", "ordering_key"),
    [
        ("XDEL", None, None),
        ("XTRIM", None, None),
        ("DEL", None, None),
        ("ZREM", 60_000, None),
        ("HDEL", 60_000, None),
        ("ZREM", 60_000, "k"),
        ("XDEL", None, "k"),
    ],
)
def test_unique_lock_of_a_message_removed_by_hand_is_taken_by_the_next_one(
    scene: Scene, command: str, delay: int | None, ordering_key: str | None
) -> None:
    broker = scene.process("a")
    options = {} if ordering_key is None else {"ordering_key": ordering_key}
    first = broker.enqueue(message("first", unique_key="u", **options), delay=delay)

    removed_by(scene, command)
    second = broker.enqueue(message("second", unique_key="u"))
    third = broker.enqueue(message("third", unique_key="u"))

    assert second.message_id != first.message_id
    assert third.message_id == second.message_id
    assert scene.state().waiting == ("second",)
    assert broker.counters(QUEUE)["stale_locks"] == 1


def test_unique_lock_of_a_message_removed_from_its_line_is_taken_over(scene: Scene) -> None:
    broker = scene.process("a")
    broker.enqueue(message("at work", ordering_key="k"))
    first = broker.enqueue(message("first", unique_key="u", ordering_key="k"))
    assert broker.enqueue(message("coalesced", unique_key="u")).message_id == first.message_id

    removed_by(scene, "ZREM line")

    assert broker.enqueue(message("second", unique_key="u")).message_id != first.message_id


def promoted(scene: Scene, consumer: StreamsConsumer) -> None:
    scene.promote("a")


def handed_back(scene: Scene, consumer: StreamsConsumer) -> None:
    (one,) = received(consumer, 1)
    consumer.requeue([one])


def retried(scene: Scene, consumer: StreamsConsumer) -> None:
    (one,) = received(consumer, 1)
    scene.brokers["a"].emit_before("process_message", one)
    fail(scene.brokers["a"], one)


def requeued(scene: Scene, consumer: StreamsConsumer) -> None:
    (one,) = received(consumer, 1)
    scene.brokers["a"].emit_before("process_message", one)
    one.stuff_exception(ValueError("dies"))
    consumer.nack(one)
    assert scene.brokers["a"].dead_letters(QUEUE).requeue_where(message_id=one.message_id) == 1


def taken_over(scene: Scene, consumer: StreamsConsumer) -> None:
    received(consumer, 1)
    scene.client.xclaim(KEYS.stream, GROUP, "somebody", 0, [entry_id(scene)], idle=60_000)


@pytest.mark.parametrize(
    ("moved", "delay"),
    [(promoted, 60_000), (handed_back, None), (retried, None), (requeued, None), (taken_over, None)],
)
def test_message_keeps_its_unique_lock_wherever_it_moves(
    scene: Scene, moved: Callable[[Scene, StreamsConsumer], None], delay: int | None
) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    first = broker.enqueue(message("first", unique_key="u"), delay=delay)

    moved(scene, consumer)

    assert broker.enqueue(message("second", unique_key="u")).message_id == first.message_id
    assert broker.counters(QUEUE)["stale_locks"] == 0

    for command in ("XTRIM", "ZREM"):
        removed_by(scene, command)
    assert broker.enqueue(message("third", unique_key="u")).message_id != first.message_id
    assert scene.state().locks == ("u",)


def test_message_keeps_its_unique_lock_when_its_turn_in_line_comes(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue(message("at work", ordering_key="k"))
    first = broker.enqueue(message("first", unique_key="u", ordering_key="k"))
    (at_work,) = received(consumer, 1)
    consumer.ack(at_work)
    eventually(lambda: not scene.client.exists(KEYS.line))

    assert broker.enqueue(message("second", unique_key="u")).message_id == first.message_id
    removed_by(scene, "XTRIM")
    assert broker.enqueue(message("third", unique_key="u")).message_id != first.message_id


def test_retry_leaves_the_unique_lock_to_a_message_enqueued_while_it_ran(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue(message("first", unique_key="u"))
    (first,) = received(consumer, 1)
    broker.emit_before("process_message", first)
    second = broker.enqueue(message("second", unique_key="u"))

    fail(broker, first)
    consumer.ack(first)

    assert scene.state() == QueueState(waiting=("second",), delayed=("first",), locks=("u",))
    assert broker.enqueue(message("third", unique_key="u")).message_id == second.message_id


def bury(scene: Scene, consumer: StreamsConsumer, *labels: str, **options: Any) -> None:
    """Enqueue messages one after the other, and turn each into a dead letter after it has started."""
    broker = scene.brokers["a"]
    for label in labels:
        broker.enqueue(message(label, **options))
        (delivery,) = received(consumer, 1)
        broker.emit_before("process_message", delivery)
        delivery.stuff_exception(ValueError("dies"))
        consumer.nack(delivery)


def test_only_one_of_several_dead_letters_with_a_unique_key_is_requeued(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker, dead_letters = scene.brokers["a"], scene.brokers["a"].dead_letters(QUEUE)
    bury(scene, consumer, "one", "two", "three", unique_key="u")
    bury(scene, consumer, "other")
    oldest_first = [dead_letter.id for dead_letter in dead_letters.list()][::-1]

    put_back = dead_letters.put_back(oldest_first)

    assert put_back[1:3] == ["key-held", "key-held"]
    assert scene.state().waiting == ("one", "other")
    assert [label for _, label in scene.state().dead] == ["two", "three"]
    assert scene.state().locks == ("u",)
    assert broker.counters(QUEUE)["requeued"] == 2
    # once this message has started, the next dead letter with its unique key can be requeued
    for delivery in received(consumer, 2):
        broker.emit_before("process_message", delivery)
        consumer.ack(delivery)
    assert dead_letters.requeue_where(reason="failed") == 1
    assert scene.state().waiting == ("three",)


def test_dead_letter_is_not_requeued_while_a_message_holds_its_unique_key(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker, dead_letters = scene.brokers["a"], scene.brokers["a"].dead_letters(QUEUE)
    bury(scene, consumer, "old", unique_key="u")
    broker.enqueue(message("new", unique_key="u"))

    assert dead_letters.requeue([dead_letters.list()[0].id]) == 0

    assert scene.state() == QueueState(waiting=("new",), dead=(("failed", "old"),), locks=("u",))
    removed_by(scene, "XTRIM")
    assert dead_letters.requeue([dead_letters.list()[0].id]) == 1
    assert broker.counters(QUEUE)["stale_locks"] == 1


def test_dead_letter_of_a_pipeline_is_requeued_despite_its_unique_key(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker, dead_letters = scene.brokers["a"], scene.brokers["a"].dead_letters(QUEUE)
    bury(scene, consumer, "stage", unique_key="u", pipe_target=message("next").asdict())
    broker.enqueue(message("waits", unique_key="u"))

    assert dead_letters.requeue([dead_letters.list()[0].id]) == 1

    assert scene.state().waiting == ("waits", "stage")


def test_stale_locks_are_those_of_messages_removed_by_hand(scene: Scene) -> None:
    broker = scene.process("a")
    kept = [broker.enqueue(message(str(n), unique_key=str(n)), delay=60_000) for n in range(600)]
    removed = [broker.enqueue(message(str(n), unique_key=str(n))) for n in range(600, 602)]

    removed_by(scene, "XTRIM")

    assert sorted(broker.inspector(QUEUE).stale_locks()) == sorted(one.message_id for one in removed)
    assert broker.enqueue(message("again", unique_key="0")).message_id == kept[0].message_id


def test_finished_message_leaves_no_keys_for_its_unique_key(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue(message("done", unique_key="u"))
    broker.enqueue(message("coalesced", unique_key="u"))
    broker.enqueue(message("dies", unique_key="v"))
    broker.enqueue(message("never started", unique_key="w"))
    done, dies, never_started = received(consumer, 3)
    for one in (done, dies):
        broker.emit_before("process_message", one)

    consumer.ack(done)
    consumer.nack(dies)
    consumer.ack(never_started)

    eventually(lambda: not scene.client.exists(KEYS.stream) or scene.client.xlen(KEYS.stream) == 0)
    assert scene.state().locks == ()
    assert scene.client.hgetall(KEYS.holders) == {}


def test_janitor_frees_unique_keys_whose_messages_were_removed_by_hand(scene: Scene) -> None:
    scene.consumer("a", prefetch=0)
    broker = scene.brokers["a"]
    broker.enqueue_many([message(str(n), unique_key=str(n)) for n in range(1_200)])
    broker.enqueue(message("coalesced", unique_key="7"))
    removed_by(scene, "XTRIM")
    kept = broker.enqueue(message("kept", unique_key="kept"))

    scene.sweep("a")

    assert scene.client.hlen(KEYS.holders) == 2
    assert broker.enqueue(message("again", unique_key="kept")).message_id == kept.message_id


def test_flush_removes_the_records_of_unique_keys(scene: Scene) -> None:
    broker = scene.process("a")
    broker.enqueue(message("one", unique_key="u"))

    broker.flush(QUEUE)

    assert scene.client.exists(KEYS.holders) == 0


class Cancelled(Middleware):
    """Middleware that skips cancelled messages, as dramatiq-abort does."""

    def __init__(self, *labels: str) -> None:
        self._labels = labels

    def before_process_message(self, broker: Any, message: Any) -> None:
        if message.args[0] in self._labels:
            raise SkipMessage("cancelled")


def test_coalesced_message_runs_in_place_of_a_cancelled_one(redis_url: str) -> None:
    ran: list[str] = []
    with broker_on(redis_url, Cancelled("cancelled")) as broker:

        @dramatiq.actor(broker=broker)
        def work(label: str) -> None:
            ran.append(label)

        for label in ("cancelled", "second", "newest"):
            work.send_with_options(args=(label,), unique_key="u", delay=100)
        with working(broker):
            broker.join("default", timeout=30_000)

        assert broker.counters("default")["coalesced"] == 2
    assert ran == ["newest"]


def test_coalesced_message_runs_if_the_waiting_one_is_too_old(redis_url: str) -> None:
    ran: list[str] = []
    with broker_on(redis_url, AgeLimit(max_age=60_000)) as broker:

        @dramatiq.actor(broker=broker)
        def work(label: str) -> None:
            ran.append(label)

        old = work.message_with_options(args=("old",), unique_key="u")
        broker.enqueue(old.copy(message_timestamp=old.message_timestamp - 3_600_000))
        work.send_with_options(args=("young",), unique_key="u")
        with working(broker):
            broker.join("default", timeout=30_000)

        assert [dead_letter.message_id for dead_letter in broker.dead_letters("default").list()] == [old.message_id]
    assert ran == ["young"]


def test_coalesced_message_does_not_run_if_the_waiting_one_runs(redis_url: str) -> None:
    ran: list[str] = []
    with broker_on(redis_url, Cancelled()) as broker:

        @dramatiq.actor(broker=broker)
        def work(label: str) -> None:
            ran.append(label)

        for label in ("first", "second"):
            work.send_with_options(args=(label,), unique_key="u")
        with working(broker):
            broker.join("default", timeout=30_000)
    assert ran == ["first"]


def test_coalesced_message_runs_after_a_crash_in_place_of_a_cancelled_one(scene: Scene) -> None:
    producer = scene.process("producer")
    producer.enqueue(message("cancelled", unique_key="u"))
    producer.enqueue(message("second", unique_key="u"))
    for name in ("a", "b"):
        consumer = scene.consumer(name, middleware=[Cancelled("cancelled")])
        broker = scene.brokers[name]
        (one,) = received(consumer, 1)
        with pytest.raises(SkipMessage):
            broker.emit_before("process_message", one)
        if name == "a":
            scene.die("a")

    broker.emit_after("skip_message", one)
    consumer.ack(one)

    (second,) = received(consumer, 1)
    assert second.args == ("second",)


@pytest.mark.parametrize("which", ["first", "second"])
def test_stage_of_a_pipeline_is_not_coalesced(redis_url: str, which: str) -> None:
    """The stage has the same unique key as a message that is already waiting."""
    ran: list[str] = []
    with broker_on(redis_url, Pipelines()) as broker:

        @dramatiq.actor(broker=broker)
        def work(label: str) -> None:
            ran.append(label)

        work.send_with_options(args=("waits",), unique_key="u", delay=3_600_000)
        stages = [
            work.message_with_options(args=(label,), pipe_ignore=True, unique_key="u" if label == which else None)
            for label in ("first", "second")
        ]
        dramatiq.pipeline(stages, broker=broker).run()
        with working(broker):
            eventually(lambda: ran == ["first", "second"])
        assert broker.stats("default").delayed == 1


def test_member_of_a_group_with_callbacks_is_not_coalesced(redis_url: str) -> None:
    ran: list[str] = []
    with broker_on(redis_url, GroupCallbacks(StubBackend())) as broker:

        @dramatiq.actor(broker=broker)
        def work(label: str) -> None:
            ran.append(label)

        work.send_with_options(args=("waits",), unique_key="u")
        group = dramatiq.group(
            [work.message_with_options(args=(f"member {n}",), unique_key="u") for n in range(3)], broker=broker
        )
        group.add_completion_callback(work.message("completed"))
        group.run()
        with working(broker, threads=1):
            broker.join("default", timeout=30_000)
    assert ran == ["waits", "member 0", "member 1", "member 2", "completed"]


def test_pipeline_stage_takes_a_free_unique_key(scene: Scene) -> None:
    broker = scene.process("a")
    stage = message("stage", unique_key="u").copy(options={"pipe_target": message("next").asdict()})
    broker.enqueue(stage)
    broker.enqueue(stage.copy(message_id="another"))

    assert broker.enqueue(message("other", unique_key="u")).message_id == stage.message_id
    assert scene.state().waiting == ("stage", "stage")


def test_unique_lock_survives_a_retry_by_a_real_worker(redis_url: str) -> None:
    ran: list[str] = []
    with broker_on(redis_url, quick_retries(1)) as broker:

        @dramatiq.actor(broker=broker, min_backoff=60_000, max_backoff=60_000)
        def work(label: str) -> None:
            ran.append(label)
            raise ValueError("always")

        first = work.send_with_options(args=("first",), unique_key="u")
        with working(broker):
            eventually(lambda: broker.stats("default").delayed == 1)

        assert work.send_with_options(args=("second",), unique_key="u").message_id == first.message_id
        assert broker.stats("default").delayed == 1
    assert ran == ["first"]


def test_full_server_accepts_the_retry_of_a_message_with_a_unique_key(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue(message("first", unique_key="u"))
    (first,) = received(consumer, 1)

    with full(scene):
        broker.emit_before("process_message", first)
        fail(broker, first)
        consumer.ack(first)

    assert scene.state() == QueueState(delayed=("first",), locks=("u",))
