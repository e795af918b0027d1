"""Retries, pipeline stages, callbacks and requeued dead letters are not lost."""

from __future__ import annotations

from typing import Any

import dramatiq
import pytest
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Callbacks, GroupCallbacks, Middleware, MiddlewareError, Pipelines
from dramatiq.rate_limits.backends import StubBackend
from dramatiq.results import ResultFailure, Results
from dramatiq.results.backends import StubBackend as StubResults

from broker import DeadLetter, DeadLetterTooLarge, MessageTooLarge, RedisStreamsBroker
from broker.net.connections import Connections
from broker.scripts import CONDEMN, ENQUEUE_PLAIN
from tests.broker.scene import KEYS, QUEUE, QueueState, Scene, fail, labels, message, received
from tests.broker.test_dramatiq_options import broker_on, quick_retries, working
from tests.support import eventually

LIMIT = 10_000


def ended(broker: RedisStreamsBroker) -> list[DeadLetter]:
    """Run a worker until the queue is empty, and return its dead letters."""
    with working(broker, threads=1):
        broker.join("default", timeout=30_000)
    return broker.dead_letters("default").list()


def of_size(n_bytes: int, **options: Any) -> dramatiq.Message[Any]:
    """Return a message whose encoded form has exactly this many bytes."""
    sent = message("", **options)
    return sent.copy(args=("x" * (n_bytes - len(sent.encode())),))


@pytest.mark.parametrize("spare", [0, 1, 7, 100, 300])
def test_message_of_the_maximum_size_is_retried(scene: Scene, spare: int) -> None:
    consumer = scene.consumer("a", max_message_bytes=LIMIT)
    broker = scene.brokers["a"]
    sent = of_size(LIMIT - spare)
    broker.enqueue(sent)
    (one,) = received(consumer, 1)

    one.options["traceback"] = "a line\n" * 2_000
    fail(broker, one, delay=0)
    consumer.ack(one)
    (again,) = received(consumer, 1)

    assert again.args == sent.args
    assert again.options["retries"] == 1
    assert "traceback" not in again.options
    assert broker.dead_letters(QUEUE).list() == []


def test_retry_within_the_size_limit_keeps_its_traceback(scene: Scene) -> None:
    consumer = scene.consumer("a", max_message_bytes=LIMIT)
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)

    one.options["traceback"] = "a line"
    fail(broker, one, delay=0)
    consumer.ack(one)

    assert received(consumer, 1)[0].options["traceback"] == "a line"


def test_message_that_its_actor_made_larger_is_retried(redis_url: str) -> None:
    sizes: list[int] = []
    with broker_on(redis_url, quick_retries(), max_message_bytes=LIMIT) as broker:

        @dramatiq.actor(broker=broker)
        def work(things: list[str]) -> None:
            sizes.append(len(things))
            things.append("x" * LIMIT)
            if len(sizes) < 3:
                raise ValueError("not yet")

        work.send([])

        assert ended(broker) == []
    assert sizes == [0, 1, 2]


def test_too_large_follow_up_becomes_a_dead_letter_that_can_be_requeued(redis_url: str) -> None:
    stored: list[int] = []

    def declared(broker: RedisStreamsBroker) -> tuple[Any, Any]:
        @dramatiq.actor(broker=broker)
        def fetch() -> str:
            return "x" * LIMIT

        @dramatiq.actor(broker=broker)
        def store(text: str) -> None:
            stored.append(len(text))

        return fetch, store

    with broker_on(redis_url, Pipelines(), max_message_bytes=LIMIT) as broker:
        fetch, store = declared(broker)
        pipeline = dramatiq.pipeline([fetch.message(), store.message()], broker=broker).run()

        (dead_letter,) = ended(broker)

        assert (dead_letter.reason, dead_letter.actor_name) == ("not-enqueued", "store")
        assert dead_letter.message_id == pipeline.messages[1].message_id
        assert "MessageTooLarge" in dead_letter.error
        counters = {name: n for name, n in broker.counters("default").items() if name != "dead_bytes"}
        assert counters == {"enqueued": 1, "acked": 1, "dead": 1, "removed": 1}
        with pytest.raises(MessageTooLarge, match="raise max_message_bytes"):
            broker.dead_letters("default").requeue([dead_letter.id])
        assert broker.dead_letters("default").list() == [dead_letter]

    with broker_on(redis_url, Pipelines(), max_message_bytes=3 * LIMIT) as broker:
        declared(broker)
        assert broker.dead_letters("default").requeue([dead_letter.id]) == 1
        assert ended(broker) == []
    assert stored == [LIMIT]


def test_requeue_skips_too_large_dead_letters_and_requeues_the_others(scene: Scene) -> None:
    large, small = of_size(3 * LIMIT), message("small")
    scene.process("producer").enqueue_many([large, small])
    consumer = scene.consumer("a", max_message_bytes=LIMIT)
    (one,) = received(consumer, 1)
    one.stuff_exception(ValueError("dies"))
    consumer.nack(one)
    dead_letters = scene.brokers["a"].dead_letters(QUEUE)
    assert {dead_letter.reason for dead_letter in dead_letters.list()} == {"oversize", "failed"}

    with pytest.raises(DeadLetterTooLarge) as refused:
        dead_letters.requeue_where(where=lambda dead_letter: True)

    assert refused.value.message_id == large.message_id
    assert refused.value.n_requeued == 1
    assert scene.state().waiting == ("small",)
    assert [dead_letter.reason for dead_letter in dead_letters.list()] == ["oversize"]


def test_dead_letter_of_a_retry_beyond_the_size_limit_can_be_requeued(scene: Scene) -> None:
    consumer = scene.consumer("a", max_message_bytes=LIMIT)
    broker = scene.brokers["a"]
    broker.enqueue(of_size(LIMIT))
    (one,) = received(consumer, 1)
    fail(broker, one, delay=0)
    consumer.ack(one)
    (one,) = received(consumer, 1)
    one.stuff_exception(ValueError("dies"))
    consumer.nack(one)

    assert broker.dead_letters(QUEUE).requeue_where(reason="failed") == 1

    assert received(consumer, 1)[0].message_id == one.message_id


class Refusing(Middleware):
    """Middleware that refuses to enqueue messages for one actor."""

    def __init__(self, actor_name: str) -> None:
        self._actor_name = actor_name

    def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
        if message.actor_name == self._actor_name:
            raise MiddlewareError("over the quota")


def test_follow_up_refused_by_middleware_becomes_a_dead_letter(redis_url: str) -> None:
    backend = StubResults()
    with broker_on(redis_url, Pipelines(), Refusing("second"), Results(backend=backend)) as broker:
        first = dramatiq.actor(broker=broker, actor_name="first")(lambda: None)
        second = dramatiq.actor(broker=broker, actor_name="second", store_results=True)(lambda *_: None)
        pipeline = dramatiq.pipeline([first.message(), second.message()], broker=broker).run()

        (dead_letter,) = ended(broker)

        assert (dead_letter.reason, dead_letter.actor_name) == ("not-enqueued", "second")
        assert "over the quota" in dead_letter.error
        with pytest.raises(ResultFailure, match="over the quota"):
            pipeline.messages[1].get_result(backend=backend)


def test_dead_letter_of_a_follow_up_names_its_invalid_option(redis_url: str) -> None:
    with broker_on(redis_url, Pipelines()) as broker:
        work = dramatiq.actor(broker=broker, actor_name="work")(lambda *_: None)
        strange = work.message().copy(options={"max_retries": "x"})
        broker.enqueue(work.message().copy(options={"pipe_target": strange.asdict()}))

        (dead_letter,) = ended(broker)

        assert (dead_letter.reason, dead_letter.field, dead_letter.message_id) == (
            "not-enqueued",
            "max_retries",
            strange.message_id,
        )


def test_message_whose_result_cannot_be_encoded_becomes_a_dead_letter(redis_url: str) -> None:
    """The next stage's message cannot be encoded, so it cannot become a dead letter itself."""
    results: list[Any] = []

    with broker_on(redis_url, Pipelines()) as broker:

        @dramatiq.actor(broker=broker)
        def fetch() -> Any:
            return "corrected" if results else {1, 2}

        @dramatiq.actor(broker=broker)
        def store(*handed_on: Any) -> None:
            results.extend(handed_on)

        dramatiq.pipeline([fetch.message(), store.message()], broker=broker).run()

        (dead_letter,) = ended(broker)
        assert (dead_letter.reason, dead_letter.actor_name) == ("unhandled", "fetch")
        assert "its follow-up message was not enqueued: Pipelines raised TypeError" in dead_letter.error

        results.append("the cause is corrected")
        assert broker.dead_letters("default").requeue([dead_letter.id]) == 1
        assert ended(broker) == []
    assert results[1:] == ["corrected"]


def test_message_with_an_unencodable_follow_up_becomes_a_dead_letter(redis_url: str) -> None:
    class Following(Middleware):
        def after_process_message(
            self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
        ) -> None:
            broker.enqueue(message.copy(message_id="another", args=(object(),)))

    with broker_on(redis_url, Following()) as broker:
        sent = dramatiq.actor(broker=broker, actor_name="work")(lambda *_: None).send()

        (dead_letter,) = ended(broker)

        assert (dead_letter.reason, dead_letter.message_id) == ("unhandled", sent.message_id)
        assert "TypeError" in dead_letter.error


@pytest.mark.parametrize("succeeds", [True, False])
def test_message_with_a_callback_to_an_undeclared_actor_is_not_lost(redis_url: str, succeeds: bool) -> None:
    with broker_on(redis_url, Callbacks(), quick_retries(0)) as broker:

        @dramatiq.actor(broker=broker)
        def work() -> None:
            if not succeeds:
                raise ValueError("always")

        work.send_with_options(on_success="nobody", on_failure="nobody")

        (dead_letter,) = ended(broker)

        if succeeds:
            assert dead_letter.reason == "unhandled"
            assert "Callbacks raised ActorNotFound: nobody" in dead_letter.error
        else:
            assert dead_letter.reason == "failed"


def test_refused_completion_callback_of_a_group_becomes_a_dead_letter(redis_url: str) -> None:
    with broker_on(redis_url, GroupCallbacks(StubBackend()), Refusing("completed")) as broker:
        work = dramatiq.actor(broker=broker, actor_name="work")(lambda: None)
        completed = dramatiq.actor(broker=broker, actor_name="completed")(lambda: None)
        group = dramatiq.group([work.message(), work.message()], broker=broker)
        group.add_completion_callback(completed.message())
        group.run()

        (dead_letter,) = ended(broker)

        assert (dead_letter.reason, dead_letter.actor_name) == ("not-enqueued", "completed")


def finished(scene: Scene, name: str, follower: dramatiq.Message[Any]) -> Any:
    """Run a message and try to enqueue its follow-up message. Return the consumer and the finished message."""
    consumer = scene.consumer(name, middleware=[Pipelines()], prefetch=1, max_message_bytes=LIMIT)
    broker = scene.brokers[name]
    dramatiq.actor(broker=broker, queue_name=QUEUE, actor_name="work")(lambda *_: None)
    if name == "a":
        broker.enqueue(message("one").copy(options={"pipe_target": follower.asdict()}))
    (one,) = received(consumer, 1)
    broker.emit_before("process_message", one)
    broker.emit_after("process_message", one, result="x" * LIMIT)
    return consumer, one


def test_follow_up_of_a_message_that_runs_twice_becomes_one_dead_letter(scene: Scene) -> None:
    follower = message("two")
    finished(scene, "a", follower)
    scene.die("a")  # before the acknowledgement

    consumer, one = finished(scene, "b", follower)
    consumer.ack(one)

    eventually(lambda: not scene.state().pending)
    assert scene.state() == QueueState(dead=(("not-enqueued", "two"),))


def test_message_is_not_acknowledged_before_its_follow_up_is_a_dead_letter(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = scene.consumer("a", middleware=[Pipelines()], max_message_bytes=LIMIT)
    broker = scene.brokers["a"]
    dramatiq.actor(broker=broker, queue_name=QUEUE, actor_name="work")(lambda *_: None)
    broker.enqueue(message("one").copy(options={"pipe_target": message("two").asdict()}))
    (one,) = received(consumer, 1)
    run_script = Connections.run_script

    def away(self: Connections, script: Any, *args: Any) -> Any:
        if script in (CONDEMN, ENQUEUE_PLAIN):
            raise ConnectionClosed("away")
        return run_script(self, script, *args)

    monkeypatch.setattr(Connections, "run_script", away)
    broker.emit_after("process_message", one, result="x" * LIMIT)
    with pytest.raises(ConnectionClosed):
        consumer.ack(one)
    assert scene.state().pending == {"one": ("a", 1)}

    monkeypatch.undo()
    consumer.ack(one)

    eventually(lambda: scene.state() == QueueState(dead=(("not-enqueued", "two"),)))


def test_too_large_entry_from_another_program_becomes_a_dead_letter(scene: Scene) -> None:
    consumer = scene.consumer("a", max_message_bytes=LIMIT)
    scene.client.xadd(KEYS.stream, {"message": of_size(LIMIT + 1).encode()})
    scene.client.xadd(KEYS.stream, {"message": of_size(LIMIT).encode()})

    (one,) = received(consumer, 1)

    assert len(one.encode()) == LIMIT
    (dead_letter,) = eventually(lambda: scene.brokers["a"].dead_letters(QUEUE).list())
    assert dead_letter.reason == "oversize"
    assert dead_letter.hint is not None
    assert "max_message_bytes" in dead_letter.hint


def remembered(scene: Scene) -> int:
    """Return the number of keys that remember follow-up messages."""
    return len(scene.client.keys("*:recent:*/*"))


def followed(scene: Scene, name: str, follower: dramatiq.Message[Any] | None = None, **settings: Any) -> Any:
    """Run the next message, and enqueue its follow-up message, if given; return the consumer and the message."""
    consumer = scene.consumer(name, middleware=[Pipelines()], prefetch=1, **settings)
    broker = scene.brokers[name]
    dramatiq.actor(broker=broker, queue_name=QUEUE, actor_name="work")(lambda *_: None)
    if follower is not None:
        broker.enqueue(message("one").copy(options={"pipe_target": follower.asdict()}))
    (one,) = received(consumer, 1)
    broker.emit_before("process_message", one)
    broker.emit_after("process_message", one, result=None)
    return consumer, one


def test_ack_deletes_the_keys_of_follow_up_messages(scene: Scene) -> None:
    consumer, one = followed(scene, "a", message("two"))
    assert remembered(scene) == 1

    consumer.ack(one)

    eventually(lambda: scene.state() == QueueState(waiting=("two",)))
    assert remembered(scene) == 0


@pytest.mark.parametrize("end", ["retry", "retry first", "reject", "dead letter"])
def test_end_of_a_failed_message_deletes_the_keys_of_its_follow_ups(scene: Scene, end: str) -> None:
    """Dramatiq's Callbacks enqueues ``on_failure`` after every failure, even if Retries has written a retry."""
    consumer = scene.consumer("a", middleware=[Callbacks()], max_message_bytes=LIMIT)
    broker = scene.brokers["a"]
    dramatiq.actor(broker=broker, queue_name=QUEUE, actor_name="work")(lambda *_: None)
    dramatiq.actor(broker=broker, queue_name=QUEUE, actor_name="report")(lambda *_: None)
    broker.enqueue(message("one").copy(options={"on_failure": "report"}))
    (one,) = received(consumer, 1)
    broker.emit_before("process_message", one)

    if end == "retry first":
        fail(broker, one)
    error = ValueError("x" * LIMIT if end == "dead letter" else "fails")
    one.stuff_exception(error)
    broker.emit_after("process_message", one, exception=error)
    if end == "retry":
        one.clear_exception()
        fail(broker, one)
    assert remembered(scene) == 1
    (consumer.ack if end.startswith("retry") else consumer.nack)(one)

    eventually(lambda: not scene.state().pending.get("one"))
    assert remembered(scene) == 0


def test_late_ack_keeps_the_keys_that_the_next_holder_needs(scene: Scene) -> None:
    mine, one = followed(scene, "a", message("two"), lease_ms=60_000)
    scene.lose_lease("a")
    theirs, again = followed(scene, "b")
    assert again.message_id == one.message_id

    mine.ack(one)
    eventually(lambda: not scene.state().pending)
    theirs.ack(again)

    assert labels(received(theirs, 1)) == ["two"]
    assert scene.state() == QueueState(pending={"two": ("b", 1)})
    assert remembered(scene) == 1  # the remaining key expires


def test_pipelines_and_groups_leave_no_keys(redis_url: str, redis_client: Any) -> None:
    with broker_on(redis_url, Pipelines(), GroupCallbacks(StubBackend()), Callbacks(), quick_retries(0)) as broker:
        first = dramatiq.actor(broker=broker, actor_name="first")(lambda *_: None)
        second = dramatiq.actor(broker=broker, actor_name="second", queue_name="other")(lambda *_: None)
        for _ in range(5):
            dramatiq.pipeline([first.message(), second.message(), first.message()], broker=broker).run()
        group = dramatiq.group([first.message(), first.message()], broker=broker)
        group.add_completion_callback(second.message())
        group.run()
        first.send_with_options(on_success=second)

        with working(broker):
            for _ in range(2):
                broker.join("default", timeout=30_000)
                broker.join("other", timeout=30_000)
        assert broker.counters("default")["acked"] == 13
        assert broker.counters("other")["acked"] == 7
    assert redis_client.keys("*:recent:*/*") == []
