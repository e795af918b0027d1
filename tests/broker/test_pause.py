"""A queue that is paused delivers nothing, in any process, until it is resumed."""

from __future__ import annotations

from tests.broker.scene import QUEUE, QueueState, Scene, labels, message, received


def looked_around(scene: Scene, name: str) -> None:
    """A process's janitor has seen what is new; it does so every second by itself."""
    next(iter(scene.brokers[name]._session._queues.values())).janitor.run_once()


def test_a_paused_queue_delivers_nothing_until_it_is_resumed(scene: Scene) -> None:
    consumer = scene.consumer("a", timeout=100)
    broker = scene.brokers["a"]
    broker.pause(QUEUE)
    looked_around(scene, "a")
    assert next(consumer) is None

    broker.enqueue(message("one"))
    assert next(consumer) is None
    assert scene.state() == QueueState(waiting=("one",))
    assert broker.stats(QUEUE).paused

    broker.resume(QUEUE)
    looked_around(scene, "a")
    assert labels(received(consumer, 1)) == ["one"]


def test_what_ran_when_the_queue_was_paused_ends_as_ever(scene: Scene) -> None:
    consumer = scene.consumer("a", timeout=100)
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)
    broker.pause(QUEUE)
    looked_around(scene, "a")

    consumer.nack(one)

    assert scene.state() == QueueState(dead=(("failed", "one"),))
