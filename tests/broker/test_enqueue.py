"""Enqueueing: immediate, delayed and unique messages, many messages at once, full queues and lost replies."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any
from uuid import UUID

import dramatiq
import pytest
import redis
from dramatiq.errors import ConnectionClosed, ConnectionFailed, QueueNotFound

from broker import EnqueueUncertain, InvalidMessage, MessageTooLarge, QueueFull, RedisStreamsBroker
from broker.keys import HANDED_BACK
from broker.net.connections import Connections
from broker.scripts import ENQUEUE, TICK
from tests.broker.scene import GROUP, KEYS, QUEUE, QueueState, Scene, fail, label_of, labels, message, received
from tests.support import eventually


def refusal(text: str) -> ConnectionClosed:
    """Return the exception to which an error reply is translated."""
    error = ConnectionClosed(text)
    error.__cause__ = redis.ResponseError(text)
    return error


class Heard(dramatiq.Middleware):
    """Middleware that records the enqueue signals, in order."""

    def __init__(self) -> None:
        self.signals: list[tuple[str, str, int | None]] = []

    def before_enqueue(self, broker: Any, message: dramatiq.Message[Any], delay: int | None) -> None:
        self.signals.append(("before", message.args[0], delay))

    def after_enqueue(self, broker: Any, message: dramatiq.Message[Any], delay: int | None) -> None:
        self.signals.append(("after", message.args[0], delay))


def test_entry_has_one_field_with_the_message_in_dramatiqs_json(scene: Scene) -> None:
    sent = scene.process("a").enqueue(message("one", priority=3))

    ((_, fields),) = scene.client.xrange(KEYS.stream)

    assert list(fields) == [b"message"]
    assert dramatiq.Message.decode(fields[b"message"]) == sent


def test_message_field_is_converted_to_its_type_before_it_is_sent(stage: Scene) -> None:
    heard = Heard()
    broker = stage.process("a", middleware=[heard])
    number, uuid = message("number"), message("uuid")
    object.__setattr__(number, "message_id", 42)
    object.__setattr__(number, "message_timestamp", 1_700_000_000_000.5)
    object.__setattr__(uuid, "message_id", UUID(int=7))

    sent = broker.enqueue_many([number, uuid])

    assert [one.message_id for one in sent] == ["42", str(UUID(int=7))]
    assert sent[0].message_timestamp == 1_700_000_000_000
    stored = [dramatiq.Message.decode(fields[b"message"]) for _, fields in stage.client.xrange(KEYS.stream)]
    assert stored == sent


@pytest.mark.parametrize("half", ["actor_name", "message_id", "unique_key", "ordering_key"])
def test_enqueue_refuses_unpaired_surrogates(stage: Scene, half: str) -> None:
    sent = message("one")
    if half.endswith("_key"):
        sent.options[half] = "\ud800"
    else:
        object.__setattr__(sent, half, "\ud800")

    with pytest.raises(InvalidMessage) as refused:
        stage.process("a").enqueue(sent)

    assert refused.value.field == half


@pytest.mark.parametrize("delay", ["soon", [1], float("nan"), float("inf")])
def test_enqueue_refuses_a_delay_that_is_not_a_number(stage: Scene, delay: Any) -> None:
    broker = stage.process("a")

    with pytest.raises(InvalidMessage) as refused:
        broker.enqueue(message("one"), delay=delay)

    assert refused.value.field == "delay"
    assert stage.state() == QueueState()


def test_messages_are_delivered_in_enqueue_order(scene: Scene) -> None:
    scene.process("a").enqueue_many([message(str(n)) for n in range(250)])

    got = received(scene.consumer("b", prefetch=250), 250)

    assert [delivery.args[0] for delivery in got] == [str(n) for n in range(250)]


def test_delayed_message_stays_outside_the_stream_until_due(scene: Scene) -> None:
    broker = scene.process("a")
    broker.enqueue(message("later"), delay=60_000)
    assert scene.state() == QueueState(delayed=("later",))
    consumer = scene.consumer("b")

    (due,) = scene.client.zrange(KEYS.delayed, 0, -1)
    scene.client.zadd(KEYS.delayed, {due: 1})
    scene.client.xadd(KEYS.timer, {"due": 1})  # wakes the janitor
    broker.enqueue(message("now"), delay=1)

    assert {delivery.args[0] for delivery in received(consumer, 2)} == {"later", "now"}


@pytest.mark.parametrize("by", ["enqueue", "retry"])
def test_janitor_is_woken_by_a_message_that_is_due_earlier(scene: Scene, by: str) -> None:
    # the lease is so long that no janitor starts a round during the test
    consumer = scene.consumer("a", lease_ms=600_000, timeout=20_000)
    broker = scene.brokers["a"]
    broker.enqueue(message("later"), delay=3_600_000)
    broker.enqueue(message("tried again"))
    (one,) = received(consumer, 1)
    eventually(lambda: scene.n_blocked("xread"))

    if by == "retry":
        fail(broker, one, delay=50)
    else:
        broker.enqueue(message("sooner"), delay=50)

    assert labels(received(consumer, 1)) == ["tried again" if by == "retry" else "sooner"]


def test_many_due_messages_are_promoted_in_batches_and_in_order(scene: Scene) -> None:
    broker = scene.process("a")
    messages = [message(str(n)) for n in range(450)]  # two full batches and part of a third
    for number, one in enumerate(messages):
        broker.enqueue(one, delay=60_000 + number)
    for id_, due_ms in scene.client.zrange(KEYS.delayed, 0, -1, withscores=True):
        scene.client.zadd(KEYS.delayed, {id_: due_ms - 3_600_000})

    broker.consume(QUEUE, prefetch=0, timeout=50)

    eventually(lambda: not scene.state().delayed)
    entries = [label_of(fields) for _, fields in scene.client.xrange(KEYS.stream)]
    assert entries == [str(n) for n in range(450)]


def test_middleware_is_called_before_and_after_every_enqueue(stage: Scene) -> None:
    heard = Heard()
    broker = stage.process("a", middleware=[heard])

    broker.enqueue(message("one"))
    broker.enqueue(message("two"), delay=5_000)
    broker.enqueue_many([message("three")])

    assert heard.signals == [
        ("before", "one", None),
        ("after", "one", None),
        ("before", "two", 5_000),
        ("after", "two", 5_000),
        ("before", "three", None),
        ("after", "three", None),
    ]


def test_enqueue_returns_the_waiting_message_of_a_unique_key(scene: Scene) -> None:
    broker = scene.process("a")

    first = broker.enqueue(message("first", unique_key="k"))
    second = broker.enqueue(message("second", unique_key="k"))
    other = broker.enqueue(message("other", unique_key="l"))

    assert second.message_id == first.message_id != other.message_id
    assert scene.state() == QueueState(waiting=("first", "other"), locks=("k", "l"))


def test_unique_key_is_free_once_its_message_starts(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue(message("first", unique_key="k"))
    (first,) = received(consumer, 1)
    broker.emit_before("process_message", first)

    second = broker.enqueue(message("second", unique_key="k"))

    assert second.message_id != first.message_id
    assert second.args == ("second",)


@pytest.mark.parametrize("what_happens", ["it fails", "it starts late"])
def test_message_does_not_free_the_unique_key_held_by_a_later_message(scene: Scene, what_happens: str) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue(message("one", unique_key="k"))
    (one,) = received(consumer, 1)
    if what_happens == "it fails":
        broker.emit_before("process_message", one)
    else:
        scene.client.delete(KEYS.unique("k"))  # as if it had expired
    two = broker.enqueue(message("two", unique_key="k"))

    if what_happens == "it fails":
        consumer.nack(one)
    else:
        broker.emit_before("process_message", one)

    assert broker.enqueue(message("three", unique_key="k")).message_id == two.message_id


@pytest.mark.parametrize(
    ("happened", "is_uncertain"),
    [
        (ConnectionClosed("the answer was lost"), True),
        (ConnectionFailed("nobody is there"), False),
        (refusal("OOM command not allowed when used memory > 'maxmemory'."), False),
    ],
    ids=["answer lost", "not sent", "refused"],
)
def test_enqueue_uncertain_is_raised_only_if_the_reply_was_lost(
    stage: Scene, happened: Exception, is_uncertain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = stage.process("a", enqueue_timeout_ms=0)
    one = message("one")

    def failing(*_: Any) -> None:
        raise happened

    monkeypatch.setattr(Connections, "run_script", failing)

    with pytest.raises(type(happened)) as raised:
        broker.enqueue(one)

    uncertain = raised.value.message_ids if isinstance(raised.value, EnqueueUncertain) else None
    assert uncertain == ((one.message_id,) if is_uncertain else None)


def test_flush_frees_unique_keys_and_leaves_no_pending_entries(scene: Scene) -> None:
    broker = scene.process("a")
    broker.enqueue(message("one", unique_key="k[1]*"))
    broker.enqueue(message("two", unique_key="l"), delay=60_000)

    consumer = scene.consumer("b")
    broker.enqueue_many([message("three"), message("four")])
    received(consumer, 3)

    broker.flush(QUEUE)

    assert scene.state() == QueueState()


def test_tick_script_promotes_no_more_than_its_batch_size(scene: Scene) -> None:
    broker = scene.process("a")
    broker.enqueue_many([message(str(number), delay=60_000) for number in range(30)])
    for name in scene.client.zrange(KEYS.delayed, 0, -1):
        scene.client.zadd(KEYS.delayed, {name: 1})
    keys = (*KEYS.work, KEYS.consumers, KEYS.paused, KEYS.counters, KEYS.cancelled, KEYS.promoter)

    answer = scene.run(TICK, keys, GROUP, "me", HANDED_BACK, 2_000, 20, 1_500, 5_000, 0, "host:", -1)

    assert answer[0] == 20
    assert len(scene.state().delayed) == 10


def test_unique_lock_ttl_is_capped(scene: Scene) -> None:
    broker = scene.process("a")

    broker.enqueue_many([message("one"), message("two", unique_key="k", unique_for_ms=10**19)])

    assert scene.state() == QueueState(waiting=("one", "two"), locks=("k",))


def test_full_queue_refuses_new_messages_and_keeps_its_messages(scene: Scene) -> None:
    broker = scene.process("a", max_queue_length=2)
    broker.enqueue_many([message("one"), message("two")])

    with pytest.raises(QueueFull) as refused:
        broker.enqueue(message("three"))

    assert (refused.value.queue_name, refused.value.limit) == (QUEUE, 2)
    assert scene.state() == QueueState(waiting=("one", "two"))


def test_refused_enqueue_call_is_refused_again_when_it_is_repeated(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = scene.process("a", max_queue_length=1)
    broker.enqueue(message("one"))
    calls: list[Any] = []
    run = Connections.run_scripts

    def recorded(self: Connections, script: Any, sent: list[Any]) -> list[Any]:
        calls.extend(sent)
        return run(self, script, sent)

    monkeypatch.setattr(Connections, "run_scripts", recorded)
    with pytest.raises(QueueFull):
        broker.enqueue(message("two"))
    ((keys, args),) = calls

    # send the call again with the same enqueue id
    assert scene.run(ENQUEUE, keys, *args)[0] == b"FULL"
    scene.client.xtrim(KEYS.stream, maxlen=0)
    assert scene.run(ENQUEUE, keys, *args)[0] == b"ADDED"
    assert scene.state() == QueueState(waiting=("two",))


def test_messages_refused_by_a_full_queue_do_not_overtake_each_other(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = scene.consumer("a", max_queue_length=2)
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    run = Connections.run_scripts

    def finish_one_after_the_first_step(self: Connections, script: Any, calls: Any) -> Any:
        """Let a message finish between the chunks of one ``enqueue_many`` call, as a worker might."""
        if script is not ENQUEUE:
            return run(self, script, calls)
        first = run(self, script, calls[:1])
        (held,) = received(consumer, 1)
        consumer.ack(held)
        eventually(lambda: scene.state() == QueueState())
        return [*first, *(run(self, script, calls[1:]) if calls[1:] else [])]

    sent = [message(str(n)) for n in range(5)]
    monkeypatch.setattr(Connections, "run_scripts", finish_one_after_the_first_step)
    with pytest.raises(QueueFull) as refused:
        broker.enqueue_many(sent)

    assert refused.value.message_ids == tuple(one.message_id for one in sent)
    assert scene.state() == QueueState()


def test_queue_full_error_lists_the_messages_that_were_not_added(scene: Scene) -> None:
    broker = scene.process("a", max_queue_length=3)
    broker.enqueue(message("one"))
    elsewhere = dataclasses.replace(message("elsewhere"), queue_name="another")
    too_many = [message(str(n)) for n in range(4)]

    with pytest.raises(QueueFull) as refused:
        broker.enqueue_many([*too_many[:2], elsewhere, *too_many[2:]])

    assert refused.value.message_ids == tuple(one.message_id for one in too_many)
    assert scene.state() == QueueState(waiting=("one",))
    assert broker.stats("another").waiting == 1


def test_producer_waits_until_a_full_queue_has_room(scene: Scene) -> None:
    consumer = scene.consumer("a", max_queue_length=2, wait_when_full_ms=20_000)
    broker = scene.brokers["a"]
    broker.enqueue_many([message("one"), message("two")])
    producer = threading.Thread(target=lambda: broker.enqueue_many([message(str(n)) for n in range(5)]))

    producer.start()
    ran: list[str] = []
    while len(ran) < 7:
        (one,) = received(consumer, 1)
        ran.append(one.args[0])
        consumer.ack(one)
    producer.join()

    assert ran == ["one", "two", "0", "1", "2", "3", "4"]


def test_producer_waits_for_room_no_longer_than_configured(scene: Scene) -> None:
    broker = scene.process("a", max_queue_length=1, wait_when_full_ms=50)
    broker.enqueue(message("one"))

    with pytest.raises(QueueFull):
        broker.enqueue(message("two"))

    assert scene.state() == QueueState(waiting=("one",))


def test_oversized_message_is_refused_before_it_is_sent(stage: Scene) -> None:
    broker = stage.process("a", max_message_bytes=1_000)

    with pytest.raises(MessageTooLarge) as refused:
        broker.enqueue(message("x" * 1_000))

    assert refused.value.limit == 1_000
    assert stage.state() == QueueState()


def test_message_sent_again_after_a_lost_reply_is_enqueued_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = scene.process("a")
    run, n_calls = Connections.run_script, 0

    def lose_every_other_answer(self: Connections, *args: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        answer = run(self, *args)
        if n_calls % 2:
            raise dramatiq.errors.ConnectionClosed("the connection broke before the answer")
        return answer

    monkeypatch.setattr(Connections, "run_script", lose_every_other_answer)

    broker.enqueue(message("one"))
    broker.enqueue(message("later"), delay=60_000)
    broker.enqueue(message("two"))

    assert n_calls == 6
    monkeypatch.undo()
    assert scene.state() == QueueState(waiting=("one", "two"), delayed=("later",))
    assert broker.counters(QUEUE)["enqueued"] == 3


def test_enqueue_many_adds_each_message_once_if_only_some_chunks_succeeded(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = scene.process("a")
    send, is_first = Connections.run_scripts, True

    def do_the_second_step_only(self: Connections, script: Any, calls: Any) -> Any:
        nonlocal is_first
        if not is_first:
            return send(self, script, calls)
        is_first = False
        send(self, script, calls[1:2])
        raise dramatiq.errors.ConnectionClosed("the server had no memory for the first step and the third was lost")

    monkeypatch.setattr(Connections, "run_scripts", do_the_second_step_only)

    broker.enqueue_many([message(str(n)) for n in range(450)])

    assert sorted(map(int, scene.state().waiting)) == list(range(450))


def test_redis_keeps_one_expiring_key_per_producer_for_recent_enqueues(scene: Scene) -> None:
    broker = scene.process("a")
    for n in range(20):
        broker.enqueue(message(str(n)))

    ((key, left_ms),) = [(key, scene.client.pttl(key)) for key in scene.client.keys(f"{KEYS.recent('')}*")]

    assert left_ms > 0, key


def test_consuming_an_undeclared_queue_is_refused(redis_url: str) -> None:
    broker = RedisStreamsBroker(redis_url, middleware=[])

    with pytest.raises(QueueNotFound):
        broker.consume("nothing")

    broker.close()
