"""Every middleware hook before a step is paired with the hook after it, because gauges and spans depend on pairs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware, MiddlewareError, Pipelines, SkipMessage
from dramatiq.middleware.prometheus import Prometheus

from broker import LeaseLost
from broker.net.connections import Connections
from broker.scripts import ENQUEUE_PLAIN, RETRY
from tests.broker.scene import GROUP, KEYS, QUEUE, Scene, fail, message, received
from tests.broker.test_dramatiq_options import broker_on, working
from tests.support import eventually

STREAM = "streams:default"


class Pairs(Middleware):
    """Middleware that records which of its hooks were called, in order."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def before_process_message(self, broker: Any, message: Any) -> None:
        self.heard.append("before run")

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: Any = None) -> None:
        self.heard.append("after run")

    def after_skip_message(self, broker: Any, message: Any) -> None:
        self.heard.append("skipped")

    def before_ack(self, broker: Any, message: Any) -> None:
        self.heard.append("before ack")

    def after_ack(self, broker: Any, message: Any) -> None:
        self.heard.append("after ack")

    def before_nack(self, broker: Any, message: Any) -> None:
        self.heard.append("before nack")

    def after_nack(self, broker: Any, message: Any) -> None:
        self.heard.append("after nack")

    def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self.heard.append("before enqueue")

    def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self.heard.append("after enqueue")


class Scoped(Middleware):
    """Middleware that opens a scope before a message and closes it afterwards, as Sentry's does."""

    def __init__(self) -> None:
        self.n_open, self.closed = 0, 0

    def before_process_message(self, broker: Any, message: Any) -> None:
        message.scope = self
        self.n_open += 1

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: Any = None) -> None:
        message.scope.n_open -= 1
        self.closed += 1

    after_skip_message = after_process_message


class Refusing(Middleware):
    def __init__(self, error: Exception) -> None:
        self._error = error

    def before_process_message(self, broker: Any, message: Any) -> None:
        raise self._error


@pytest.fixture
def prometheus(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Prometheus:
    """Dramatiq's Prometheus middleware, with its own files and environment variables."""
    monkeypatch.setattr("dramatiq.middleware.prometheus.DB_PATH", str(tmp_path))
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        monkeypatch.setenv(name, str(tmp_path))
    return Prometheus()


def n_in_progress(prometheus: Prometheus) -> float:
    (metric,) = prometheus.inprogress_messages.collect()
    return sum(sample.value for sample in metric.samples)


def enqueue_doomed(client: redis.Redis, doomed: dramatiq.Message[Any]) -> None:
    """Add a message that has killed as many workers as the delivery limit allows."""
    entry = client.xadd(STREAM, {"message": doomed.encode()})
    client.xgroup_create(STREAM, GROUP, "0")
    client.xreadgroup(GROUP, "dead", {STREAM: ">"})
    client.hset("{streams:default}:suspects", entry, "4 1 dead")
    client.zadd("{streams:default}:consumers", {"dead": 0})


class Errors(logging.Handler):
    """A log handler that records errors as error trackers do, each with the number of open scopes."""

    def __init__(self, scoped: Scoped) -> None:
        super().__init__(logging.ERROR)
        self._scoped = scoped
        self.seen: list[tuple[str, int]] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[0] if record.exc_info else None
        self.seen.append((error.__name__ if error else record.getMessage(), self._scoped.n_open))


@pytest.fixture
def scoped() -> Scoped:
    return Scoped()


@pytest.fixture
def errors(scoped: Scoped) -> Iterator[Errors]:
    errors = Errors(scoped)
    logging.getLogger().addHandler(errors)
    yield errors
    logging.getLogger().removeHandler(errors)


def test_hooks_are_paired_for_a_message_that_killed_its_workers(
    redis_url: str, redis_client: redis.Redis, prometheus: Prometheus, scoped: Scoped, errors: Errors
) -> None:
    pairs = Pairs()
    with broker_on(redis_url, prometheus, scoped, pairs, Refusing(SkipMessage("cancelled"))) as broker:
        work = dramatiq.actor(broker=broker, actor_name="work")(lambda: None)
        enqueue_doomed(redis_client, work.message())

        with working(broker, threads=1):
            eventually(lambda: "after nack" in pairs.heard)
        (dead_letter,) = broker.dead_letters("default").list()

    assert dead_letter.reason == "delivery-limit"
    assert pairs.heard == ["before run", "skipped", "before nack", "after nack"]
    assert (scoped.n_open, scoped.closed) == (0, 1)
    assert n_in_progress(prometheus) == 0
    assert errors.seen == [("DeliveryLimitReached", 1)], "one error, with the scope of its message"


@pytest.mark.parametrize("error", [SkipMessage("cancelled"), MiddlewareError("refused")])
@pytest.mark.parametrize("is_first", [True, False])
def test_hooks_are_paired_for_a_refused_message(
    redis_url: str, scoped: Scoped, is_first: bool, error: Exception
) -> None:
    pairs, refusing = Pairs(), Refusing(error)
    with broker_on(redis_url, *([refusing, scoped, pairs] if is_first else [scoped, pairs, refusing])) as broker:
        dramatiq.actor(broker=broker, actor_name="work")(lambda: None).send()

        with working(broker, threads=1):
            broker.join("default", timeout=30_000)

    after = "skipped" if isinstance(error, SkipMessage) else "after run"
    assert pairs.heard[2:4] == ["before run", after]
    assert (scoped.n_open, scoped.closed) == (0, 1)


def test_middleware_without_a_skip_hook_sees_no_skipped_message(redis_url: str) -> None:
    started: list[str] = []

    class Starting(Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            started.append(message.message_id)

        def after_process_message(
            self, broker: Any, message: Any, *, result: Any = None, exception: Any = None
        ) -> None:
            started.remove(message.message_id)

    with broker_on(redis_url, Refusing(SkipMessage("cancelled")), Starting()) as broker:
        dramatiq.actor(broker=broker, actor_name="work")(lambda: None).send()

        with working(broker, threads=1):
            broker.join("default", timeout=30_000)

    assert started == []


def test_middleware_is_not_called_for_a_message_that_another_process_holds(stage: Scene) -> None:
    pairs = Pairs()
    mine = stage.consumer("a", middleware=[pairs])
    broker = stage.brokers["a"]
    broker.enqueue(message("one", unique_key="k"))  # a message with a unique key is checked in Redis before it runs
    (one,) = received(mine, 1)
    pairs.heard.clear()
    stage.client.xclaim(KEYS.stream, broker.settings.group, "another", 0, [one.entry_id])

    with pytest.raises(LeaseLost):
        broker.emit_before("process_message", one)
    broker.emit_after("skip_message", one)

    assert pairs.heard == []


@pytest.mark.parametrize("signal", ["ack", "nack"])
def test_hooks_are_called_once_for_a_repeated_settlement(stage: Scene, signal: str) -> None:
    pairs = Pairs()
    consumer = stage.consumer("a", middleware=[pairs])
    broker = stage.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)
    pairs.heard.clear()

    broker.emit_before(signal, one)  # then the connection is lost, and the Worker starts again
    broker.emit_before(signal, one)
    broker.emit_after(signal, one)

    assert pairs.heard == [f"before {signal}", f"after {signal}"]


def test_hooks_are_paired_for_an_unhandled_failure_during_its_ack(stage: Scene) -> None:
    pairs = Pairs()
    consumer = stage.consumer("a", middleware=[pairs])
    broker = stage.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)
    pairs.heard.clear()

    broker.emit_before("ack", one)
    one.stuff_exception(ValueError("raised where the Worker expects none"))
    consumer.ack(one)
    broker.emit_after("ack", one)

    assert pairs.heard == ["before ack", "before nack", "after nack", "after ack"]
    assert stage.state().dead == (("unhandled", "one"),)


def test_hooks_are_paired_when_an_invalid_follow_up_is_rejected(redis_url: str) -> None:
    pairs = Pairs()
    with broker_on(redis_url, Pipelines(), pairs) as broker:
        work = dramatiq.actor(broker=broker, actor_name="work")(lambda *_: None)
        strange = work.message().copy(options={"max_retries": "x"})
        broker.enqueue(work.message().copy(options={"pipe_target": strange.asdict()}))
        with working(broker, threads=1):
            eventually(lambda: pairs.heard[-1:] == ["after ack"])

    assert pairs.heard.count("before nack") == pairs.heard.count("after nack") == 1


@pytest.fixture
def lose_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Let the next call of a script lose the connection."""

    def lose(script: Any) -> None:
        run_script, is_lost = Connections.run_script, False

        def run(self: Connections, which: Any, *args: Any, **options: Any) -> Any:
            nonlocal is_lost
            if which is script and not is_lost:
                is_lost = True
                raise ConnectionClosed("cut")
            return run_script(self, which, *args, **options)

        monkeypatch.setattr(Connections, "run_script", run)

    return lose


def test_hooks_are_called_once_for_a_retry_that_waits_for_redis(stage: Scene, lose_once: Callable[[Any], None]) -> None:
    pairs = Pairs()
    consumer = stage.consumer("a", middleware=[pairs])
    broker = stage.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)
    pairs.heard.clear()
    lose_once(RETRY)

    with pytest.raises(ConnectionClosed):
        fail(broker, one)
    consumer.ack(one)

    assert stage.state().delayed == ("one",)
    assert pairs.heard == ["before enqueue", "after enqueue"]


def test_hooks_are_called_once_for_a_follow_up_that_waits_for_redis(
    stage: Scene, lose_once: Callable[[Any], None]
) -> None:
    pairs = Pairs()

    class Following(Middleware):
        def after_process_message(
            self, broker: Any, message: Any, *, result: Any = None, exception: Any = None
        ) -> None:
            broker.enqueue(dramatiq.Message(QUEUE, "work", ("two",), {}, {}))

    consumer = stage.consumer("a", middleware=[pairs, Following()], enqueue_timeout_ms=0)
    broker = stage.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)
    pairs.heard.clear()
    lose_once(ENQUEUE_PLAIN)

    broker.emit_after("process_message", one)
    assert pairs.heard == ["before enqueue", "after run"]
    consumer.ack(one)

    assert pairs.heard == ["before enqueue", "after run", "after enqueue"]
    eventually(lambda: stage.state().waiting == ("two",) or "two" in stage.state().pending)
