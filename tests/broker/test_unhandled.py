"""A failed message is retried or becomes a dead letter, and is not acknowledged, whichever middleware raises."""

from __future__ import annotations

import threading
from typing import Any

import dramatiq
import pytest
from dramatiq.errors import Retry
from dramatiq.middleware import Callbacks, Middleware, MiddlewareError, Pipelines, Retries, SkipMessage
from dramatiq.results import ResultFailure, Results
from dramatiq.results.backends import StubBackend

from broker import DeadLetter, InvalidMessage, InvalidOption, RedisStreamsBroker
from tests.broker.scene import KEYS, QUEUE, Scene, message, received
from tests.broker.test_dramatiq_options import broker_on, quick_retries, working
from tests.support import eventually


class Raising(Middleware):
    """Middleware that raises in one hook a given number of times."""

    def __init__(self, hook: str, error: Exception, *, times: int = 1) -> None:
        self._error, self._left = error, times
        setattr(self, hook, self._raise)

    def _raise(self, *_: Any, **__: Any) -> None:
        if self._left:
            self._left -= 1
            raise self._error


def ended(broker: RedisStreamsBroker) -> list[DeadLetter]:
    """Run a worker until the queue is empty, and return its dead letters."""
    with working(broker, threads=1):
        broker.join("default", timeout=30_000)
    return broker.dead_letters("default").list()


def test_failure_without_retries_becomes_a_dead_letter(redis_url: str) -> None:
    with broker_on(redis_url) as broker:

        @dramatiq.actor(broker=broker)
        def work() -> None:
            raise ValueError("no such pet")

        sent = work.send()

        (dead_letter,) = ended(broker)

        assert (dead_letter.reason, dead_letter.message_id) == ("unhandled", sent.message_id)
        assert dead_letter.error.startswith("ValueError: no such pet; ")
        assert dead_letter.hint is not None
        assert "Retries" in dead_letter.hint
        assert broker.counters("default")["acked"] == 0


def test_failure_whose_retry_predicate_raises_becomes_a_dead_letter(redis_url: str) -> None:
    def retry_when(retries: int, error: BaseException) -> bool:
        raise ZeroDivisionError("a bug of the predicate")

    with broker_on(redis_url, quick_retries()) as broker:

        @dramatiq.actor(broker=broker, retry_when=retry_when)
        def work() -> None:
            raise ValueError("no such pet")

        work.send()

        (dead_letter,) = ended(broker)

        assert dead_letter.reason == "unhandled"
        assert "Retries raised ZeroDivisionError: a bug of the predicate" in dead_letter.error


def test_unhandled_failure_reaches_callers_that_wait_for_the_result(redis_url: str) -> None:
    backend = StubBackend()
    with broker_on(redis_url, Results(backend=backend)) as broker:

        @dramatiq.actor(broker=broker, store_results=True)
        def work() -> None:
            raise ValueError("no such pet")

        sent = work.send()
        ended(broker)

        with pytest.raises(ResultFailure, match="no such pet"):
            sent.get_result(backend=backend)


def test_unhandled_dead_letter_runs_when_requeued(redis_url: str) -> None:
    tries: list[str] = []
    with broker_on(redis_url) as broker:

        @dramatiq.actor(broker=broker)
        def work(label: str) -> None:
            tries.append(label)
            if len(tries) == 1:
                raise ValueError("not yet")

        work.send("one")
        ended(broker)

        assert broker.dead_letters("default").requeue_where(reason="unhandled") == 1
        assert ended(broker) == []
    assert tries == ["one", "one"]


def test_unencodable_retry_becomes_a_dead_letter_with_the_original_message(redis_url: str) -> None:
    with broker_on(redis_url, quick_retries()) as broker:

        @dramatiq.actor(broker=broker)
        def work(things: list[Any]) -> None:
            things.append(object())
            raise ValueError("after it changed its arguments")

        sent = work.send(["one"])

        (dead_letter,) = ended(broker)

        assert dead_letter.reason == "unhandled"
        assert "its retry cannot be written: TypeError" in dead_letter.error
        assert dramatiq.Message.decode(dead_letter.fields[b"message"]) == sent
        stored = broker.dead_letters("default").get(dead_letter.id)
        assert stored is not None
        assert dramatiq.Message.decode(stored.fields[b"message"]).args == (["one"],)


@pytest.mark.parametrize("delay", ["soon", float("nan"), [1]])
def test_retry_with_an_invalid_delay_becomes_a_dead_letter(redis_url: str, delay: Any) -> None:
    with broker_on(redis_url, quick_retries()) as broker:

        @dramatiq.actor(broker=broker)
        def work() -> None:
            raise Retry("later", delay=delay)

        work.send()

        (dead_letter,) = ended(broker)

        assert dead_letter.reason == "unhandled"


@pytest.mark.parametrize("hook", ["after_process_message", "before_process_message", "after_nack", "after_enqueue"])
@pytest.mark.parametrize("is_first", [True, False])
def test_failure_is_retried_whichever_middleware_hook_raises(redis_url: str, hook: str, is_first: bool) -> None:
    tries: list[int] = []
    others = [Raising(hook, ZeroDivisionError("a bug"), times=9), quick_retries(2)]
    with broker_on(redis_url, *(others if is_first else reversed(others))) as broker:

        @dramatiq.actor(broker=broker)
        def work() -> None:
            tries.append(1)
            raise ValueError("always")

        work.send()

        (dead_letter,) = ended(broker)

        assert dead_letter.reason == "failed"
    assert len(tries) == 3


def test_retry_refused_by_a_middleware_is_written_with_its_delay(scene: Scene) -> None:
    class Refusing(Middleware):
        def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
            if "retries" in message.options:
                raise MiddlewareError("not now")

    consumer = scene.consumer("a", middleware=[Refusing(), Retries(min_backoff=3_600_000)])
    broker = scene.brokers["a"]
    dramatiq.actor(broker=broker, queue_name=QUEUE, actor_name="work")(lambda *_: None)
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)
    error = ValueError("always")
    one.stuff_exception(error)

    broker.emit_after("process_message", one, exception=error)
    consumer.ack(one)

    assert not one.failed
    assert scene.state().delayed == ("one",)
    next_due_ms = broker.stats(QUEUE).next_due_ms
    assert next_due_ms is not None
    assert next_due_ms > 1_000_000


@pytest.mark.parametrize("signal", ["before_ack", "after_ack"])
def test_success_is_acknowledged_although_middleware_refuses_it(redis_url: str, signal: str) -> None:
    with broker_on(redis_url, Raising(signal, SkipMessage("no"))) as broker:
        dramatiq.actor(broker=broker, actor_name="work")(lambda: None).send()

        assert ended(broker) == []
        assert broker.counters("default")["acked"] == 1


@pytest.mark.parametrize("signal", ["before_nack", "after_nack"])
def test_rejection_is_written_although_middleware_refuses_it(redis_url: str, signal: str) -> None:
    with broker_on(redis_url, Raising(signal, SkipMessage("no")), quick_retries(0)) as broker:

        @dramatiq.actor(broker=broker)
        def work() -> None:
            raise ValueError("always")

        work.send()

        (dead_letter,) = ended(broker)

        assert dead_letter.reason == "failed"


def test_failed_message_that_middleware_enqueued_again_is_acknowledged(redis_url: str) -> None:
    """The middleware has its own retries, which are not counted in Dramatiq's options."""

    class Again(Middleware):
        def after_process_message(
            self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
        ) -> None:
            if exception is not None:
                broker.enqueue(message, delay=1)

    tries: list[int] = []
    with broker_on(redis_url, Again()) as broker:

        @dramatiq.actor(broker=broker)
        def work() -> None:
            tries.append(1)
            if len(tries) < 3:
                raise ValueError("not yet")

        work.send()

        assert ended(broker) == []
        assert broker.counters("default")["acked"] == 3
    assert len(tries) == 3


def test_failed_message_is_acknowledged_if_middleware_clears_the_exception(redis_url: str) -> None:
    class Tolerant(Middleware):
        def after_process_message(
            self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
        ) -> None:
            message.clear_exception()

    with broker_on(redis_url, Tolerant()) as broker:

        @dramatiq.actor(broker=broker)
        def work() -> None:
            raise ValueError("and nobody minds")

        work.send()

        assert ended(broker) == []
        assert broker.counters("default")["acked"] == 1


def test_failure_unseen_by_middleware_becomes_a_dead_letter_at_the_ack(scene: Scene) -> None:
    nacked: list[str] = []

    class Heard(Middleware):
        def after_nack(self, broker: Any, message: Any) -> None:
            nacked.append(message.args[0])

    consumer = scene.consumer("a", middleware=[Heard(), quick_retries()])
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)

    # the Worker's own exception handling has failed, so it acknowledges the message without calling middleware
    one.stuff_exception(ValueError("no such pet"))
    consumer.ack(one)

    assert scene.state().dead == (("unhandled", "one"),)
    assert nacked == ["one"]


def test_skipped_message_is_acknowledged(redis_url: str) -> None:
    with broker_on(redis_url, Raising("before_process_message", SkipMessage("cancelled"))) as broker:
        dramatiq.actor(broker=broker, actor_name="work")(lambda: None).send()

        assert ended(broker) == []
        assert broker.counters("default")["acked"] == 1


def test_failure_whose_exception_has_no_text_becomes_a_dead_letter(redis_url: str) -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    with broker_on(redis_url, quick_retries(0)) as broker:

        @dramatiq.actor(broker=broker)
        def work() -> None:
            raise Silent

        work.send()

        (dead_letter,) = ended(broker)

        assert (dead_letter.reason, dead_letter.error) == ("failed", "Silent")


STRANGE: list[tuple[str, Any]] = [
    ("retries", "x"),
    ("retries", None),
    ("retries", float("nan")),
    ("retries", -1),
    ("max_retries", "x"),
    ("max_retries", [1]),
    ("max_retries", float("nan")),
    ("min_backoff", "x"),
    ("min_backoff", None),
    ("min_backoff", float("inf")),
    ("min_backoff", 10**400),
    ("max_backoff", {"a": 1}),
    ("throws", "x"),
    ("throws", ["ValueError"]),
    ("time_limit", "x"),
    ("time_limit", [1]),
    ("time_limit", float("nan")),
    ("max_age", "x"),
    ("max_age", {"a": 1}),
    ("on_success", ["work"]),
    ("on_failure", {"a": 1}),
    ("on_retry_exhausted", 7),
    ("result_ttl", "x"),
    ("result_ttl", 1.5),
    ("pipe_target", "x"),
    ("pipe_target", {"actor_name": "work"}),
    ("pipe_target", {**message("two").asdict(), "args": 5}),
    ("pipe_target", {**message("two").asdict(), "options": None}),
    ("pipe_target", {**message("two").asdict(), "more": 1}),
    ("group_completion_uuid", ["x"]),
    ("group_completion_callbacks", "x"),
    ("group_completion_callbacks", [1]),
    ("unique_for_ms", "x"),
    ("delay", "x"),
]


def test_entry_with_an_invalid_option_becomes_a_dead_letter_that_names_it(stage: Scene) -> None:
    consumer = stage.consumer("a", middleware=[quick_retries(), Callbacks(), Pipelines()])
    of_message_id = {}
    for name, value in STRANGE:
        strange = message("strange", unique_key="u", ordering_key="k").copy(options={name: value})
        stage.client.xadd(KEYS.stream, {"message": strange.encode()})
        of_message_id[strange.message_id] = name, value
    stage.brokers["a"].enqueue(message("good"))

    (good,) = received(consumer, 1)

    assert good.args == ("good",)
    eventually(lambda: stage.client.xlen(KEYS.dead) == len(STRANGE))
    for dead_letter in stage.brokers["a"].dead_letters(QUEUE).list(len(STRANGE)):
        name, value = of_message_id.pop(dead_letter.message_id or "")
        assert (dead_letter.reason, dead_letter.field) == ("undecodable", name), value
        assert dead_letter.hint is not None
        assert name in dead_letter.hint
    assert of_message_id == {}


def test_enqueue_refuses_an_invalid_option(stage: Scene) -> None:
    broker = stage.process("a")

    for name, value in STRANGE:
        with pytest.raises(InvalidMessage) as refused:
            broker.enqueue_many([message("good"), message("strange").copy(options={name: value})])

        assert refused.value.field == name, value
        assert "expected" in refused.value.problem
    assert stage.client.xlen(KEYS.stream) == 0
    assert broker.stats(QUEUE).delayed == 0


ACCEPTED: list[dict[str, Any]] = [
    {"retries": 2},
    {"retries": 2.0},
    {"max_retries": None},
    {"max_retries": 0},
    {"max_retries": float("inf")},
    {"time_limit": None},
    {"time_limit": float("inf")},
    {"max_age": 3_600_000},
    {"throws": None},
    {"on_success": None},
    {"pipe_target": None},
    {"group_completion_callbacks": []},
    {"eta": "soon", "queue": "x"},
]


def test_option_that_dramatiq_accepts_is_accepted(stage: Scene) -> None:
    broker = stage.process("a")

    for options in ACCEPTED:
        broker.enqueue(message(str(options), **options))

    assert stage.state().waiting == tuple(map(str, ACCEPTED))


@pytest.mark.parametrize(
    ("option", "value"), [("max_retries", "x"), ("throws", "ValueError"), ("time_limit", "1 min"), ("on_failure", 1)]
)
def test_actor_with_an_invalid_option_is_refused_at_declaration(redis_url: str, option: str, value: Any) -> None:
    with broker_on(redis_url, *(one() for one in dramatiq.middleware.default_middleware)) as broker:
        with pytest.raises(InvalidOption) as refused:
            dramatiq.actor(broker=broker, actor_name="work", **{option: value})(lambda: None)

        assert refused.value.field == option
        assert broker.actors == {}


def test_failed_message_is_retried_although_an_interrupt_follows(redis_url: str) -> None:
    """A time limit may interrupt middleware that is called after the failure and before Retries."""
    interrupted, tries = threading.Event(), list[int]()

    class Interrupting(Middleware):
        def after_process_message(
            self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
        ) -> None:
            if exception is not None and not interrupted.is_set():
                interrupted.set()
                raise dramatiq.middleware.TimeLimitExceeded

    with broker_on(redis_url, quick_retries(2), Interrupting()) as broker:

        @dramatiq.actor(broker=broker)
        def work() -> None:
            tries.append(1)
            raise ValueError("always")

        sent = work.send()
        (dead_letter,) = ended(broker)

        assert (dead_letter.reason, dead_letter.message_id) == ("failed", sent.message_id)
    assert len(tries) == 3
