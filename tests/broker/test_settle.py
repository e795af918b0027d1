"""The outcomes of deliveries, and the fencing of processes that lost them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import dramatiq
import pytest
from dramatiq.errors import BrokerConnectionError, ConnectionFailed
from dramatiq.middleware import Pipelines, TimeLimitExceeded

from broker import Delivery, LeaseLost, keeper, settler
from broker.deliveries import Deliveries
from broker.net.connections import Connections
from broker.outcomes import Outcomes
from broker.scripts import SETTLE, Script
from broker.settler import Settler
from tests.broker.scene import GROUP, KEYS, QUEUE, QueueState, Scene, fail, labels, message, received
from tests.support import eventually


def test_finished_message_is_acknowledged_and_removed(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue_many([message("one"), message("two")])

    one, two = received(consumer, 2)
    consumer.ack(one)

    eventually(lambda: scene.state() == QueueState(pending={"two": ("a", 1)}))
    assert two.deliveries == 1
    assert broker.counters(QUEUE)["acked"] == 1


def test_retry_removes_the_entry_and_leaves_a_delayed_message(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)

    fail(broker, one)
    consumer.ack(one)

    assert scene.state() == QueueState(delayed=("one",))
    assert broker.counters(QUEUE)["retried"] == 1
    assert "acked" not in broker.counters(QUEUE)


def test_retry_without_delay_goes_to_the_end_of_the_stream(scene: Scene) -> None:
    consumer = scene.consumer("a", prefetch=1)
    broker = scene.brokers["a"]
    broker.enqueue_many([message("one"), message("two")])
    (one,) = received(consumer, 1)

    fail(broker, one, delay=0)
    consumer.ack(one)

    assert scene.state() == QueueState(waiting=("two", "one"))


def test_rejected_message_becomes_a_dead_letter(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)

    one.stuff_exception(ValueError("no such pet"))
    consumer.nack(one)

    assert scene.state() == QueueState(dead=(("failed", "one"),))
    (dead_letter,) = broker.dead_letters(QUEUE).list()
    assert (dead_letter.error, dead_letter.actor_name, dead_letter.message_id) == (
        "ValueError: no such pet",
        "work",
        one.message_id,
    )


def test_unstarted_messages_are_handed_back_without_counting_the_delivery(scene: Scene) -> None:
    consumer = scene.consumer("a", prefetch=3)
    broker = scene.brokers["a"]
    broker.enqueue_many([message(label) for label in ("one", "two", "three", "four")])
    _one, two, three = received(consumer, 3)

    consumer.requeue([two, three])
    consumer.close()
    scene.die("a")

    assert scene.state() == QueueState(
        waiting=("four",), pending={"one": ("a", 1), "two": ("handed back", 0), "three": ("handed back", 0)}
    )
    others = received(scene.consumer("b", prefetch=4), 4)
    assert {d.args[0]: d.deliveries for d in others} == {"one": 2, "two": 1, "three": 1, "four": 1}


@pytest.mark.parametrize("by", ["take-over", "XCLAIM by hand"])
def test_process_that_lost_an_entry_cannot_reject_retry_or_return_it(scene: Scene, by: str) -> None:
    mine = scene.consumer("a", lease_ms=60_000)
    broker = scene.brokers["a"]
    broker.enqueue_many([message("reject"), message("retry"), message("return")])
    reject, retry, give_back = received(mine, 3)
    robbed(scene, by)
    before = scene.state()

    mine.nack(reject)
    fail(broker, retry)
    mine.ack(retry)
    mine.requeue([give_back])

    assert scene.state() == before
    assert {who for who, _ in before.pending.values()} == {"b"}
    assert broker.counters(QUEUE)["fenced"] == 2


def test_earlier_delivery_to_the_same_process_is_fenced(
    scene: Scene,
) -> None:
    mine = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue_many([message("reject"), message("retry"), message("return")])
    reject, retry, give_back = received(mine, 3)
    ids = [one.entry_id for one in (reject, retry, give_back)]
    scene.client.xclaim(KEYS.stream, GROUP, broker.consumer_name, 0, ids)
    before = scene.state()
    assert set(before.pending.values()) == {("a", 2)}

    mine.nack(reject)
    fail(broker, retry)
    mine.ack(retry)
    mine.requeue([give_back])

    assert scene.state() == before
    assert broker.counters(QUEUE)["fenced"] == 2


def test_waiting_consumer_takes_handed_back_entries_at_once(scene: Scene) -> None:
    # the lease is so long that no janitor starts a round during the test
    mine = scene.consumer("a", lease_ms=600_000)
    other = scene.consumer("b", lease_ms=600_000, timeout=20_000)
    scene.brokers["a"].enqueue(message("one"))
    (one,) = received(mine, 1)
    got: list[Delivery] = []
    waiting = threading.Thread(target=lambda: got.extend(received(other, 1)))
    waiting.start()
    eventually(lambda: (scene.n_blocked("xreadgroup"), scene.n_blocked("xread")) == (1, 2))

    mine.requeue([one])

    waiting.join(30)
    assert labels(got) == ["one"]


def test_follow_up_of_a_message_that_runs_again_is_added_once(scene: Scene) -> None:
    first, second = message("one"), message("two")
    first = first.copy(options={"pipe_target": second.asdict()})

    def finish(name: str) -> None:
        consumer = scene.consumer(name, middleware=[Pipelines()], prefetch=1)
        broker = scene.brokers[name]
        dramatiq.actor(broker=broker, queue_name=QUEUE, actor_name="work")(lambda *_: None)
        if name == "a":
            broker.enqueue(first)
        (one,) = received(consumer, 1)
        assert one.message_id == first.message_id
        broker.emit_before("process_message", one)
        broker.emit_after("process_message", one, result=None)

    finish("a")
    scene.die("a")  # before the acknowledgement
    finish("b")

    assert scene.state() == QueueState(pending={"one": ("b", 2)}, waiting=("two",))


def test_follow_up_message_is_never_refused_by_a_full_queue(scene: Scene) -> None:
    first, second = message("one"), message("two")
    consumer = scene.consumer("a", middleware=[Pipelines()], max_queue_length=1)
    broker = scene.brokers["a"]
    dramatiq.actor(broker=broker, queue_name=QUEUE, actor_name="work")(lambda *_: None)
    broker.enqueue(first.copy(options={"pipe_target": second.asdict()}))
    (one,) = received(consumer, 1)

    broker.emit_before("process_message", one)
    broker.emit_after("process_message", one, result=None)
    consumer.ack(one)

    # a follow-up message that was refused would be lost
    assert labels(received(consumer, 1)) == ["two"]


def test_late_success_is_accepted_and_counted(scene: Scene) -> None:
    mine = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(mine, 1)
    robbed(scene, "XCLAIM by hand")

    mine.ack(one)

    eventually(lambda: scene.state() == QueueState())
    assert broker.counters(QUEUE)["late"] == 1


def test_message_taken_over_while_it_waited_does_not_start(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = scene.consumer("a", lease_ms=60_000)
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(mine, 1)
    robbed(scene, "XCLAIM by hand")
    # as after a SIGSTOP longer than the lease
    monkeypatch.setattr(keeper, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 3_600))

    with pytest.raises(LeaseLost, match="held by another process"):
        broker.emit_before("process_message", one)
    mine.ack(one)

    assert scene.state() == QueueState(pending={"one": ("b", 1)})


def test_middleware_is_not_called_after_the_lease_was_lost(scene: Scene) -> None:
    heard: list[str] = []

    class Heard(dramatiq.Middleware):
        def after_skip_message(self, broker: Any, message: Any) -> None:
            heard.append(message.args[0])

    mine = scene.consumer("a", middleware=[Heard()])
    broker = scene.brokers["a"]
    broker.enqueue_many([message("another's"), message("ours")])
    others, ours = received(mine, 2)
    others.is_lost = True

    for delivery in (others, ours):
        broker.emit_after("skip_message", delivery)

    # otherwise, the Results middleware would store a failure while the message runs elsewhere
    assert heard == ["ours"]


def test_rejecting_a_removed_entry_does_nothing(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)
    scene.client.xdel(KEYS.stream, one.entry_id)

    consumer.nack(one)

    assert scene.state() == QueueState()


def test_flushed_message_is_not_retried(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)
    broker.flush(QUEUE)

    fail(broker, one)
    consumer.ack(one)

    assert scene.state() == QueueState()


def test_full_server_settles_messages_and_refuses_only_new_ones(scene: Scene) -> None:
    consumer = scene.consumer("a", enqueue_timeout_ms=0)
    broker = scene.brokers["a"]
    broker.enqueue_many([message(label) for label in ("done", "dies", "retried", "tried at once", "returned")])
    broker.enqueue(message("due"), delay=60_000)
    done, dies, retried, at_once, returned = received(consumer, 5)
    due = scene.client.zrange(KEYS.delayed, 0, -1)[0]
    scene.client.zadd(KEYS.delayed, {due: 1})

    with full(scene):
        consumer.ack(done)
        consumer.nack(dies)
        fail(broker, retried)
        fail(broker, at_once, delay=0)
        consumer.requeue([returned])
        scene.sweep("a")
        taken = received(consumer, 3)
        with pytest.raises(BrokerConnectionError):
            broker.enqueue(message("new"))

    assert sorted(labels(taken)) == ["due", "returned", "tried at once"]
    then = QueueState(
        pending=dict.fromkeys(("returned", "tried at once", "due"), ("a", 1)),
        delayed=("retried",),
        dead=(("failed", "dies"),),
    )
    eventually(lambda: scene.state() == then)


def test_full_server_gives_messages_in_line_their_turn(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    limits = {"concurrency_key": "k", "max_concurrent": 1, "rate": "9/day", "expires_in_ms": 60_000}
    broker.enqueue_many([message(label, **limits) for label in ("done", "retried", "later", "dies", "last")])

    with full(scene):
        for label in ("done", "retried", "later", "dies"):
            (delivery,) = received(consumer, 1)
            broker.emit_before("process_message", delivery)
            assert delivery.args == (label,)
            if label in ("retried", "later"):
                fail(broker, delivery, delay=0 if label == "retried" else 60_000)
            else:
                (consumer.ack if label == "done" else consumer.nack)(delivery)
        assert labels(received(consumer, 1)) == ["last"]
    (later,) = scene.client.zrange(KEYS.delayed, 0, -1)
    scene.client.zadd(KEYS.delayed, {later: 1})
    with full(scene):
        scene.sweep("a")

    assert broker.stats(QUEUE).in_line == 2


def test_full_server_redelivers_messages_that_ran_in_two_crashes(scene: Scene) -> None:
    scene.process("producer").enqueue(message("one"))
    scene.die_running("a", "b")
    survivor = scene.consumer("c", timeout=5_000)

    with full(scene):
        (suspect,) = received(survivor, 1)

    assert suspect.charges == 1


def test_full_server_accepts_heartbeats(scene: Scene) -> None:
    scene.consumer("a", lease_ms=60_000)
    name = scene.brokers["a"].consumer_name
    scene.client.zadd(KEYS.consumers, {name: 5})

    with full(scene):
        scene.beat("a")

    assert scene.client.zscore(KEYS.consumers, name) > 5


def test_full_server_redelivers_messages_of_dead_processes(scene: Scene) -> None:
    dying = scene.consumer("a")
    scene.brokers["a"].enqueue(message("one"))
    received(dying, 1)
    scene.die("a")
    other = scene.consumer("b")

    with full(scene):
        (one,) = received(other, 1)
        scene.brokers["b"].emit_before("process_message", one)
        other.ack(one)
        eventually(lambda: scene.state() == QueueState())


def test_message_whose_retry_cannot_be_written_is_not_acknowledged(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)

    scene.client.replicaof("127.0.0.1", "1")  # the server refuses writes, as in a failover
    try:
        with pytest.raises(BrokerConnectionError):
            fail(broker, one)
        with pytest.raises(BrokerConnectionError):
            consumer.ack(one)
        with pytest.raises(BrokerConnectionError):
            consumer.nack(one)
    finally:
        scene.client.replicaof("NO", "ONE")
    assert scene.state() == QueueState(pending={"one": ("a", 1)})

    consumer.ack(one)
    assert scene.state() == QueueState(delayed=("one",))


def test_retry_that_was_counted_but_not_enqueued_is_written_at_the_ack(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)

    one.options["retries"] = 1  # as if a time limit or another middleware interrupted the retry here
    consumer.ack(one)

    assert scene.state() == QueueState(delayed=("one",))


def test_close_writes_acknowledgements_first(scene: Scene) -> None:
    consumer = scene.consumer("a", prefetch=1_000)
    broker = scene.brokers["a"]
    broker.enqueue_many([message(str(n)) for n in range(1_000)])

    for delivery in received(consumer, 1_000):
        consumer.ack(delivery)
    consumer.close()
    broker.close()

    assert scene.state() == QueueState()


def test_close_retries_failed_acknowledgements(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)
    failures: list[Exception] = [ConnectionFailed("away")] * 3
    fail_settling(monkeypatch, failures)
    consumer.ack(one)
    consumer.close()

    broker.close()

    assert scene.state() == QueueState()


def test_acknowledgements_in_quick_succession_are_batched(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settler, "GATHER_S", 3_600)
    consumer = scene.consumer("a", prefetch=100)
    broker = scene.brokers["a"]
    broker.enqueue_many([*(message(str(n)) for n in range(90)), message("ordered", ordering_key="k")])
    *plain, ordered = received(consumer, 91)
    consumer.ack(plain[0])
    eventually(lambda: broker.counters(QUEUE)["acked"] == 1)

    for delivery in plain[1:]:
        consumer.ack(delivery)
    assert broker.counters(QUEUE)["acked"] == 1
    consumer.ack(ordered)  # written at once, because the next message with its ordering key waits for it

    eventually(lambda: broker.counters(QUEUE)["acked"] == 91)
    assert broker.stats(QUEUE).in_flight == 0


def test_closed_consumer_still_accepts_acknowledgements(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)
    consumer.close()
    broker.close()

    consumer.ack(one)

    assert scene.state() == QueueState()


def test_closed_consumer_hands_back_entries_still_in_transit(scene: Scene) -> None:
    consumer = scene.consumer("a", timeout=100)
    eventually(lambda: next(consumer) is None and scene.n_blocked("xreadgroup"))
    scene.brokers["a"].enqueue(message("one"))
    eventually(lambda: scene.state() == QueueState(pending={"one": ("a", 1)}))

    consumer.close()

    assert scene.state() == QueueState(pending={"one": ("handed back", 0)})


def test_closed_consumer_keeps_running_messages(scene: Scene) -> None:
    consumer = scene.consumer("a", prefetch=2, timeout=100)
    scene.brokers["a"].enqueue(message("one"))
    received(consumer, 1)
    eventually(lambda: next(consumer) is None and scene.n_blocked("xreadgroup"))

    consumer.close()

    assert scene.state() == QueueState(pending={"one": ("a", 1)})


def test_new_consumer_does_not_run_what_the_old_one_still_runs(scene: Scene) -> None:
    old = scene.consumer("a", prefetch=2)
    broker = scene.brokers["a"]
    broker.enqueue_many([message("one"), message("two"), message("three")])
    one, two = received(old, 2)
    old.close()

    new = broker.consume(QUEUE, prefetch=2, timeout=50)
    assert next(new) is None
    new.ack(one)

    assert labels(received(new, 1)) == ["three"]
    assert two.deliveries == 1


@contextmanager
def full(scene: Scene) -> Iterator[None]:
    """Leave the server without free memory during the ``with`` block."""
    scene.client.config_set("maxmemory", "1")
    try:
        yield
    finally:
        scene.client.config_set("maxmemory", "0")


def fail_settling(monkeypatch: pytest.MonkeyPatch, failures: list[Exception]) -> None:
    """Let writes of acknowledgements raise these exceptions, the last one first, and then succeed."""
    run_script = Connections.run_script

    def failing(self: Connections, script: Script, keys: Any, args: Any) -> Any:
        if script is SETTLE and failures:
            raise failures.pop()
        return run_script(self, script, keys, args)

    monkeypatch.setattr(Connections, "run_script", failing)


def robbed(scene: Scene, by: str) -> None:
    """Let process ``b`` claim all messages that process ``a`` holds."""
    if by == "take-over":
        scene.lose_lease("a")
        n = len(scene.state().pending)
        received(scene.consumer("b"), n)
    else:
        name = scene.process("b").consumer_name
        ids = [one["message_id"] for one in scene.client.xpending_range(KEYS.stream, GROUP, "-", "+", 10)]
        scene.client.xclaim(KEYS.stream, GROUP, name, 0, ids, retrycount=1)


def test_acknowledgements_do_not_wait_for_queues_of_an_unreachable_node(
    stage: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = stage.consumer("a")
    broker = stage.brokers["a"]
    consumers = {QUEUE: consumer}
    for queue in ("away-1", "away-2"):
        broker.declare_queue(queue)
        consumers[queue] = broker.consume(queue, timeout=2_000)
        broker.enqueue(dramatiq.Message(queue, "work", ("one",), {}, {}))
    broker.enqueue(message("one"))
    done = {queue: received(one, 1)[0] for queue, one in consumers.items()}
    run_script = Connections.run_script
    is_away, n_tries, may_fail = True, 0, threading.Event()

    def in_a_cluster(self: Connections, script: Script, keys: Sequence[str], args: Any) -> Any:
        nonlocal n_tries
        if script is SETTLE and keys[0].startswith("streams:away"):
            n_tries += 1
            if is_away:
                may_fail.wait(30)
                raise ConnectionFailed("its node is away")
        return run_script(self, script, keys, args)

    monkeypatch.setattr(Connections, "run_script", in_a_cluster)
    consumers["away-1"].ack(done["away-1"])
    eventually(lambda: n_tries)
    for queue in (QUEUE, "away-2"):
        consumers[queue].ack(done[queue])
    may_fail.set()

    eventually(lambda: stage.state() == QueueState())
    assert [broker.stats(queue).in_flight for queue in ("away-1", "away-2")] == [1, 1]
    is_away = False
    eventually(lambda: [broker.stats(queue).in_flight for queue in ("away-1", "away-2")] == [0, 0])
    for queue in ("away-1", "away-2"):
        consumers[queue].close()


def test_unexpected_error_does_not_end_the_settler_thread(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)
    failures: list[Exception] = [ZeroDivisionError("a bug")]
    fail_settling(monkeypatch, failures)

    consumer.ack(one)

    eventually(lambda: scene.state() == QueueState())
    assert not failures


@pytest.mark.parametrize("ends", ["ack", "nack"])
def test_message_is_settled_although_an_interrupt_follows_its_job(
    scene: Scene, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = scene.consumer("a", prefetch=1)
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)
    broker.emit_before("process_message", one)
    interrupts = [TimeLimitExceeded()]

    def interrupted(do: Callable[..., Any]) -> Callable[..., Any]:
        def once_before_it_is_done(*args: Any) -> Any:
            if interrupts:
                raise interrupts.pop()
            return do(*args)

        return once_before_it_is_done

    monkeypatch.setattr(Settler, "settle", interrupted(Settler.settle))
    monkeypatch.setattr(Outcomes, "bury_delivery", interrupted(Outcomes.bury_delivery))

    getattr(consumer, ends)(one)

    eventually(lambda: scene.state() == QueueState(dead=(("failed", "one"),) if ends == "nack" else ()))
    assert not interrupts
    broker.enqueue(message("two"))
    assert labels(received(consumer, 1)) == ["two"], "the first one has left its place"


def test_wait_until_written_returns_when_the_message_is_forgotten() -> None:
    deliveries = Deliveries()
    one = Delivery(message("one"), entry_id="1-1", queue=QUEUE, consumer_name="me", deliveries=2, pid=1, charges=1)
    deliveries.add([one])
    deliveries.begin_settling(one)
    waiting = threading.Thread(target=deliveries.wait_until_written, args=(one, 3_600.0), daemon=True)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()

    deliveries.forget([one])

    waiting.join(30)
    assert not waiting.is_alive()
