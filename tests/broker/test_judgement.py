"""A stuck process loses its messages, and a process that only works for a long time does not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import TimeLimit

from broker import RedisStreamsBroker, batch
from broker.deliveries import Delivery
from broker.running.batches import Batch
from broker.running.judgement import FOREVER, Limits, judge, limits_of
from tests.broker.scene import KEYS, QUEUE, Scene, labels, message, received
from tests.support import eventually

LIMIT_S, OVERRUN_S, NOW = 10.0, 5.0, 1_000.0
LEASE_MS = 2_000


def running(label: str, *, for_s: float | None, limit_s: float = LIMIT_S, **facts: Any) -> Delivery:
    """Return a message that has run for ``for_s`` seconds, or has not started if ``for_s`` is None."""
    delivery = Delivery(
        message(label, limit_s=limit_s), entry_id="1-0", queue=QUEUE, consumer_name="me", deliveries=1, pid=1
    )
    delivery.begun_at = None if for_s is None else NOW - for_s
    for name, value in facts.items():
        setattr(delivery, name, value)
    return delivery


def is_stuck(*deliveries: Delivery, stalled_s: float = 0.0, longest_s: float = LIMIT_S) -> bool:
    limits = Limits(of=lambda delivery: float(delivery.options["limit_s"]), longest=lambda: longest_s)
    judged = judge(deliveries, {QUEUE: NOW - stalled_s}, limits, overrun_s=OVERRUN_S, now=NOW)
    assert (judged.stuck is None) == (judged.moves_until > NOW)
    return judged.stuck is not None


TOO_LONG = LIMIT_S + OVERRUN_S + 1


@pytest.mark.parametrize(
    ("deliveries", "expected"),
    [
        pytest.param([], False, id="nothing-runs"),
        pytest.param([running("a", for_s=LIMIT_S + 1)], False, id="within-the-grace"),
        pytest.param([running("a", for_s=TOO_LONG)], True, id="beyond-it"),
        pytest.param([running("a", for_s=TOO_LONG), running("b", for_s=1)], False, id="another-is-within-its-limit"),
        pytest.param([running("a", for_s=TOO_LONG, limit_s=60)], False, id="of-a-long-limit"),
        pytest.param([running("a", for_s=1e9, limit_s=FOREVER)], False, id="of-no-limit"),
        pytest.param([running("a", for_s=TOO_LONG, is_ended=True)], False, id="ended-and-waits-for-Redis"),
        pytest.param([running("a", for_s=TOO_LONG, is_lost=True)], False, id="of-another-process-now"),
        pytest.param([running("a", for_s=None)], False, id="held-off-before-it-begins"),
    ],
)
def test_process_is_stuck_when_every_running_message_is_overdue(deliveries: list[Delivery], expected: bool) -> None:
    assert is_stuck(*deliveries) is expected


def test_batch_has_its_own_time_limit() -> None:
    broker = RedisStreamsBroker(middleware=[TimeLimit(time_limit=1_000)])
    actor = dramatiq.actor(broker=broker, queue_name=QUEUE, actor_name="work")(print)
    batch(actor, time_limit=60_000)(print)
    delivery = running("a", for_s=TOO_LONG)

    limits = limits_of(broker)

    assert (limits.of(delivery), limits.longest()) == (1, 60)
    assert limits.of(Batch([delivery, delivery], actor.options["batch"])) == 60


def test_process_is_stuck_when_its_consumer_hangs_while_holding_messages() -> None:
    assert is_stuck(stalled_s=TOO_LONG)
    assert not is_stuck(stalled_s=LIMIT_S)
    assert not is_stuck(stalled_s=1e9, longest_s=FOREVER)
    assert not is_stuck(running("a", for_s=1), stalled_s=TOO_LONG), "a running message shows when it is overdue"


class Hang:
    """An actor that runs until it is released, whatever its time limit."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.began: list[str] = []

    def __call__(self, label: str) -> None:
        self.began.append(label)
        assert self.goes_on.wait(60)


@contextmanager
def hanging(scene: Scene, middleware: list[dramatiq.Middleware]) -> Iterator[tuple[RedisStreamsBroker, Hang]]:
    hang = Hang()
    broker = scene.process("hanging", middleware=middleware, lease_ms=LEASE_MS, overrun_ms=0, long_job_ms=None)
    dramatiq.actor(broker=broker, queue_name=QUEUE, actor_name="work")(hang)
    broker.enqueue_many([message(label) for label in "ab"])
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
    worker.start()
    try:
        eventually(lambda: hang.began)
        yield broker, hang
    finally:
        hang.goes_on.set()
        worker.stop()


@pytest.mark.slow
def test_messages_of_a_hung_process_run_elsewhere_until_it_recovers(stage: Scene) -> None:
    with hanging(stage, [TimeLimit(time_limit=100)]) as (broker, hang):
        other = stage.consumer("other", lease_ms=LEASE_MS, timeout=20_000)

        taken = received(other, 2)

        assert sorted(labels(taken)) == ["a", "b"]
        assert {one.is_alive for one in broker.stats(QUEUE).consumers if one.name == broker.consumer_name} == {False}
        for delivery in taken:
            other.ack(delivery)
        other.close()
        hang.goes_on.set()
        broker.enqueue(message("c"))
        eventually(lambda: "c" in hang.began)


@pytest.mark.slow
def test_messages_without_a_time_limit_stay_with_a_live_process(stage: Scene) -> None:
    with hanging(stage, []) as (broker, _):
        for _ in range(2):
            before = stage.client.zscore(KEYS.consumers, broker.consumer_name)
            eventually(lambda: stage.client.zscore(KEYS.consumers, broker.consumer_name) > before)  # noqa: B023

        assert next(stage.consumer("robber", timeout=100)) is None
