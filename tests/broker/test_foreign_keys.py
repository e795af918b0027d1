"""The broker works although another program has stored values of another type at its keys."""

from __future__ import annotations

from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import Retries

from broker import settler
from broker.keys import QueueKeys
from tests.broker.scene import KEYS, Scene, message, received
from tests.broker.test_dramatiq_options import broker_on, working
from tests.support import eventually

DEFAULT = QueueKeys("streams", "default")


@pytest.mark.parametrize("name", ["counters", "timer", "suspects", "holders", "promoter", "swept", "dead_mistakes"])
def test_messages_run_despite_an_auxiliary_key_of_the_wrong_type(redis_url: str, redis_client: Any, name: str) -> None:
    ran: list[str] = []
    key = getattr(DEFAULT, name)
    redis_client.rpush(key, "a list of another program")
    with broker_on(redis_url, Retries(max_retries=1, min_backoff=1, max_backoff=2)) as broker:

        @dramatiq.actor(broker=broker)
        def work(label: str) -> None:
            ran.append(label)
            if label in ("fails once", "fails") and (label == "fails" or ran.count(label) == 1):
                raise ValueError("as asked")

        work.send("plain")
        broker.enqueue_many([work.message("many"), work.message("fails once"), work.message("fails")])
        work.send_with_options(args=("delayed",), delay=1)
        work.send_with_options(args=("unique",), unique_key="k")
        with working(broker, threads=1):
            broker.join("default", timeout=30_000)
            dead_letters = broker.dead_letters("default")
            assert [dead_letter.reason for dead_letter in dead_letters.list()] == ["failed"]
            broker.pause("default")
            broker.resume("default")

    assert sorted(ran) == sorted(["plain", "many", "fails once", "fails once", "fails", "fails", "delayed", "unique"])


@pytest.mark.parametrize("name", ["counters", "timer", "suspects"])
def test_dead_process_is_recovered_despite_a_key_of_the_wrong_type(scene: Scene, name: str) -> None:
    consumer = scene.consumer("a")
    scene.brokers["a"].enqueue_many([message(label) for label in "abc"])
    a, b, _ = received(consumer, 3)
    scene.client.delete(getattr(KEYS, name))
    scene.client.set(getattr(KEYS, name), "another program's")

    consumer.requeue([a])
    scene.die("a")
    other = scene.consumer("b")

    assert {one.args[0] for one in received(other, 3)} == {"a", "b", "c"}
    assert b.args == ("b",)


def test_failing_queue_does_not_delay_the_acknowledgements_of_another(
    stage: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(settler, "FIRST_PAUSE_S", 600.0)  # a pause that is longer than the test
    broker, held = stage.process("a"), {}
    for name in ("bad", "good"):
        broker.declare_queue(name)
        broker.enqueue_many([dramatiq.Message(name, "work", (), {}, {}) for _ in range(2)])
        consumer = broker.consume(name, prefetch=2, timeout=2_000)
        held[name] = consumer, received(consumer, 2)
    bad = QueueKeys("streams", "bad").stream
    stage.client.rename(bad, "kept")
    stage.client.set(bad, "another program's")

    for number in range(2):
        for name in ("bad", "good"):
            consumer, deliveries = held[name]
            consumer.ack(deliveries[number])
            eventually(lambda: "could not write acknowledgements" in caplog.text)
        eventually(lambda number=number: broker.stats("good").in_flight == 1 - number)  # type: ignore[misc]

    stage.client.rename("kept", bad)
    stage.close()
    assert stage.client.xlen(bad) == 0, "the shutdown does not wait for the end of the pause"
