"""Group callbacks run once, after all members, even if members run again because their workers died."""

from __future__ import annotations

from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import ConnectionClosed

from broker import Delivery, GroupCallbacks, RedisStreamsBroker
from broker.consumer import StreamsConsumer
from broker.net.connections import Connections
from broker.scripts import END_MEMBER
from tests.broker.scene import KEYS, QUEUE, Scene, label_of, received
from tests.support import eventually


class Member:
    """A simulated process that runs group members and callbacks."""

    def __init__(self, scene: Scene, name: str) -> None:
        self.consumer: StreamsConsumer = scene.consumer(name, middleware=[GroupCallbacks()], timeout=100)
        self.broker: RedisStreamsBroker = scene.brokers[name]

        @dramatiq.actor(broker=self.broker, queue_name=QUEUE)
        def work(label: str) -> None:
            pass

        self.actor = work

    def send_group(self, *members: str, callbacks: tuple[str, ...] = ("callback",)) -> None:
        group = dramatiq.group([self.actor.message(label) for label in members], broker=self.broker)
        for label in callbacks:
            group.add_completion_callback(self.actor.message(label))
        group.run()

    def receive(self, n: int) -> dict[str, Delivery]:
        return {one.args[0]: one for one in received(self.consumer, n)}

    def run(self, delivery: Delivery, *, fails: bool = False) -> None:
        self.broker.emit_before("process_message", delivery)
        outcome: dict[str, Any] = {"exception": ValueError("as asked")} if fails else {"result": None}
        self.broker.emit_after("process_message", delivery, **outcome)

    def end(self, delivery: Delivery) -> None:
        self.run(delivery)
        self.consumer.ack(delivery)


def in_stream(scene: Scene, label: str = "callback") -> int:
    """Return how many messages with this label are in the stream, delivered or not."""
    return [label_of(fields) for _, fields in scene.client.xrange(KEYS.stream)].count(label)


def test_callbacks_run_once_after_the_last_member_and_leave_no_keys(scene: Scene) -> None:
    a = Member(scene, "a")
    a.send_group("1", "2", callbacks=("one", "other"))
    members = a.receive(2)

    a.end(members["1"])
    assert in_stream(scene, "one") == 0
    a.end(members["2"])

    for message in a.receive(2).values():
        a.end(message)
    eventually(lambda: scene.client.xlen(KEYS.stream) == 0)
    assert scene.client.keys("*:members") == []
    remembered = scene.client.keys("*:recent:group/*")
    assert len(remembered) == 2
    assert all(0 < scene.client.pttl(key) <= 60_000 for key in remembered)


def test_member_that_runs_again_counts_once(scene: Scene) -> None:
    a = Member(scene, "a")
    a.send_group("1", "2", "3")
    first = a.receive(3)["1"]
    a.run(first)  # the worker dies before the acknowledgement

    scene.die("a")
    b = Member(scene, "b")
    members = b.receive(3)
    b.end(members["1"])
    b.end(members["2"])
    assert in_stream(scene) == 0

    b.end(members["3"])
    assert in_stream(scene) == 1


def test_callback_runs_once_if_an_earlier_member_runs_again_after_the_last(scene: Scene) -> None:
    a = Member(scene, "a")
    a.send_group("1", "2")
    a.run(a.receive(2)["1"])
    scene.die("a")
    b = Member(scene, "b")
    members = b.receive(2)

    b.end(members["2"])
    assert in_stream(scene) == 1
    b.end(members["1"])

    assert in_stream(scene) == 1


@pytest.mark.parametrize("again", ["1", "2"])
def test_callback_runs_once_if_a_worker_dies_right_after_enqueueing_it(
    stage: Scene, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    a = Member(stage, "a")
    a.send_group("1", "2")
    members = a.receive(2)
    with monkeypatch.context() as cut:
        cut.setattr(Connections, "delete", _raise_closed)
        a.run(members["1"])
        a.run(members["2"])
    assert in_stream(stage) == 1
    stage.die("a")

    b = Member(stage, "b")
    b.end(b.receive(2)[again])

    assert in_stream(stage) == 1
    assert stage.client.keys("*:members") == []


def test_failed_member_does_not_count(stage: Scene) -> None:
    a = Member(stage, "a")
    a.send_group("1")
    (member,) = a.receive(1).values()

    a.run(member, fails=True)

    assert in_stream(stage) == 0
    assert len(stage.client.keys("*:members")) == 1


def test_member_whose_end_cannot_be_recorded_is_not_acknowledged(stage: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    a = Member(stage, "a")
    a.send_group("1")
    (member,) = a.receive(1).values()
    run_script = Connections.run_script

    def failing(self: Connections, script: Any, keys: Any, args: Any) -> Any:
        return _raise_closed() if script is END_MEMBER else run_script(self, script, keys, args)

    with monkeypatch.context() as cut:
        cut.setattr(Connections, "run_script", failing)
        a.run(member)
        with pytest.raises(ConnectionClosed):
            a.consumer.ack(member)
    assert (in_stream(stage, "1"), in_stream(stage)) == (1, 0)

    a.consumer.ack(member)

    assert in_stream(stage) == 1
    eventually(lambda: in_stream(stage, "1") == 0)


def test_group_on_another_broker_is_refused() -> None:
    broker = StubBroker(middleware=[GroupCallbacks()])
    actor = dramatiq.actor(broker=broker, actor_name="work")(print)
    group = dramatiq.group([actor.message()], broker=broker)
    group.add_completion_callback(actor.message())

    with pytest.raises(RuntimeError, match="RedisStreamsBroker"):
        group.run()


def _raise_closed(*_: object) -> None:
    raise ConnectionClosed("as asked")
