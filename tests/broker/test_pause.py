"""A paused queue delivers nothing, in any process, until it is resumed."""

from __future__ import annotations

from broker.consumer import StreamsConsumer
from tests.broker.scene import QUEUE, QueueState, Scene, labels, message, received
from tests.support import eventually


def reads(scene: Scene, consumer: StreamsConsumer) -> bool:
    """Poll the consumer once, and return whether it then waits for messages in a blocked command."""
    return next(consumer) is None and scene.n_blocked("xreadgroup") == 1


def stops_reading(scene: Scene, consumer: StreamsConsumer) -> bool:
    """Poll the consumer once, and return whether it then waits in no blocked command."""
    return next(consumer) is None and not scene.n_blocked("xreadgroup")


def test_paused_queue_delivers_nothing_until_resumed(scene: Scene) -> None:
    consumer = scene.consumer("a", timeout=100)
    broker = scene.brokers["a"]
    eventually(lambda: reads(scene, consumer))
    broker.pause(QUEUE)
    eventually(lambda: stops_reading(scene, consumer))

    broker.enqueue(message("one"))
    assert next(consumer) is None
    assert scene.state() == QueueState(waiting=("one",))
    assert broker.stats(QUEUE).paused

    broker.resume(QUEUE)
    assert labels(received(consumer, 1)) == ["one"]


def test_jobs_that_run_when_a_queue_is_paused_end_normally(scene: Scene) -> None:
    consumer = scene.consumer("a", timeout=100)
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)
    eventually(lambda: reads(scene, consumer))
    broker.pause(QUEUE)
    eventually(lambda: stops_reading(scene, consumer))

    consumer.nack(one)

    assert scene.state() == QueueState(dead=(("failed", "one"),))


def test_waiting_consumer_notices_pause_and_resume_at_once(scene: Scene) -> None:
    # the lease is so long that no janitor starts a round during the test
    consumer = scene.consumer("a", lease_ms=600_000, timeout=100)
    broker = scene.brokers["a"]
    eventually(lambda: reads(scene, consumer))

    broker.pause(QUEUE)
    eventually(lambda: stops_reading(scene, consumer))
    broker.enqueue(message("one"))
    assert next(consumer) is None
    assert scene.state() == QueueState(waiting=("one",)), "a read that waits at the server would have got it"

    broker.resume(QUEUE)
    assert labels(received(consumer, 1)) == ["one"]


def test_queue_on_a_full_server_can_be_paused_and_resumed(scene: Scene) -> None:
    consumer = scene.consumer("a", timeout=100)
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    scene.client.config_set("maxmemory", "1")
    try:
        broker.pause(QUEUE)
        assert broker.stats(QUEUE).paused
        broker.resume(QUEUE)
        assert not broker.stats(QUEUE).paused
    finally:
        scene.client.config_set("maxmemory", "0")

    assert labels(received(consumer, 1)) == ["one"]
