"""Messages that did not start in time, on the server's clock, are dropped."""

from __future__ import annotations

import json
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import Callbacks
from dramatiq.results import ResultFailure, Results
from dramatiq.results.backends import StubBackend

from broker import Delivery, InvalidMessage, MessageExpired, RedisStreamsBroker
from tests.broker.scene import KEYS, QUEUE, QueueState, Scene, fail, message, received
from tests.support import eventually


def begin(scene: Scene, name: str, delivery: Delivery) -> None:
    """Start running a message, as the Worker does."""
    scene.brokers[name].emit_before("process_message", delivery)


def stored_in(scene: Scene) -> dict[str, Any]:
    """Return the options of the only message in the stream."""
    ((_, fields),) = scene.client.xrange(KEYS.stream)
    options: dict[str, Any] = json.loads(fields[b"message"])["options"]
    return options


def server_ms(scene: Scene) -> int:
    seconds, microseconds = scene.client.time()
    return int(seconds * 1000 + microseconds // 1000)


def test_message_that_did_not_start_in_time_is_dropped_and_counted(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue_many([message("late", expires_in_ms=0), message("soon enough", expires_in_ms=60_000)])
    late, soon_enough = received(consumer, 2)

    with pytest.raises(MessageExpired):
        begin(scene, "a", late)
    assert late.failed, "the Worker rejects it, so that its result is an error"
    consumer.nack(late)
    begin(scene, "a", soon_enough)

    assert scene.state() == QueueState(pending={"soon enough": ("a", 1)})
    counters = broker.counters(QUEUE)
    assert (counters["expired"], counters["dead"], counters["removed"], counters["acked"]) == (1, 0, 1, 0)


def test_requeued_dead_letter_of_an_expired_message_never_expires(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue(message("late", expires_in_ms=0, keep_expired=True))
    (late,) = received(consumer, 1)
    with pytest.raises(MessageExpired) as expired:
        begin(scene, "a", late)
    late.stuff_exception(expired.value)
    consumer.nack(late)

    (dead_letter,) = broker.dead_letters(QUEUE).list()
    assert (dead_letter.reason, broker.counters(QUEUE)["expired"]) == ("expired", 0)
    broker.dead_letters(QUEUE).requeue([dead_letter.id])
    (again,) = received(consumer, 1)
    begin(scene, "a", again)

    assert "expires_at_ms" not in again.options


def test_expiry_counts_from_the_end_of_the_delay_on_the_servers_clock(scene: Scene) -> None:
    consumer = scene.consumer("a", timeout=50)
    broker = scene.brokers["a"]
    before = server_ms(scene)
    broker.enqueue(message("m", expires_in_ms=30_000), delay=60_000)
    assert next(consumer) is None
    scene.promote("a")

    assert before + 90_000 <= stored_in(scene)["expires_at_ms"] <= server_ms(scene) + 90_000


def test_started_message_does_not_expire_after_a_crash_or_as_a_retry(scene: Scene) -> None:
    first = scene.consumer("a")
    scene.brokers["a"].enqueue(message("m", expires_in_ms=60_000))
    (began,) = received(first, 1)
    begin(scene, "a", began)
    scene.die("a")
    second = scene.consumer("b")
    (again,) = received(second, 1)
    again.options["expires_at_ms"] = 1

    begin(scene, "b", again)
    fail(scene.brokers["b"], again, delay=0)

    assert "expires_at_ms" not in stored_in(scene)
    (retry,) = received(second, 1)
    begin(scene, "b", retry)
    second.ack(retry)
    eventually(lambda: scene.state() == QueueState() and not scene.client.exists(KEYS.suspects))


def test_message_that_was_only_fetched_before_a_crash_can_expire(scene: Scene) -> None:
    first = scene.consumer("a")
    scene.brokers["a"].enqueue(message("m", expires_in_ms=0))
    received(first, 1)
    scene.die("a")
    second = scene.consumer("b")
    (again,) = received(second, 1)

    with pytest.raises(MessageExpired):
        begin(scene, "b", again)


def test_expired_message_frees_its_keys_and_does_not_count_as_a_start(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    limits = {"rate": "1/day", "concurrency_key": "k", "max_concurrent": 1}
    broker.enqueue(message("late", expires_in_ms=0, unique_key="u", **limits))
    broker.enqueue(message("coalesced", unique_key="u", **limits))
    broker.enqueue(message("next", **limits))
    (late,) = received(consumer, 1)

    with pytest.raises(MessageExpired):
        begin(scene, "a", late)
    broker.emit_after("skip_message", late)
    consumer.nack(late)

    (following,) = received(consumer, 1)
    begin(scene, "a", following)
    assert following.args == ("next",)
    assert broker.stats(QUEUE).in_line == 1, "the message that was coalesced onto the expired one waits"


def test_expired_message_has_an_error_result_and_calls_on_failure(redis_url: str) -> None:
    results, called = StubBackend(), list[Any]()
    broker = RedisStreamsBroker(
        redis_url, middleware=[Callbacks(), Results(backend=results, store_results=True)], lease_ms=2_000
    )

    @dramatiq.actor(broker=broker)
    def work() -> None:
        raise AssertionError("it must not run")

    @dramatiq.actor(broker=broker)
    def failed(data: Any, error: Any) -> None:
        called.append(error["type"])

    sent = work.send_with_options(expires_in_ms=0, on_failure=failed)
    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=1)
    worker.start()
    try:
        with pytest.raises(ResultFailure, match="MessageExpired"):
            sent.get_result(backend=results, block=True, timeout=20_000)
        eventually(lambda: called == ["MessageExpired"])
    finally:
        worker.stop()
        broker.close()


@pytest.mark.parametrize("options", [{"expires_in_ms": "soon"}, {"expires_in_ms": -1}, {"keep_expired": "yes"}])
def test_invalid_expiry_is_refused_at_enqueue(stage: Scene, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage):
        stage.process("a").enqueue(message("m", **options))
