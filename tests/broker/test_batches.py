"""Batches: one call handles several waiting messages of one actor, and other messages run individually."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import (
    AgeLimit,
    Callbacks,
    CurrentMessage,
    Middleware,
    MiddlewareError,
    Pipelines,
    SkipMessage,
    TimeLimit,
    TimeLimitExceeded,
)
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend as ResultBackend

from broker import BatchedMessage, Delivery, InvalidOption, NotDoneInBatch, RedisStreamsBroker, batch
from broker.consumer import StreamsConsumer
from broker.net.connections import Connections
from broker.running.batches import FIRST_SIZE, LONG_BATCH_S, Batch, BatchSize
from broker.scripts import HAND_BACK, SETTLE
from tests.broker.scene import QUEUE, QueueState, Scene, labels, message, received
from tests.broker.test_dramatiq_options import broker_on, quick_retries, working
from tests.support import eventually


class Calls:
    """An actor with a batch function, and a record of the calls of both."""

    def __init__(self, broker: dramatiq.Broker, **options: Any) -> None:
        self.alone: list[Any] = []
        self.together: list[list[Any]] = []
        self.undone: set[Any] = set()
        self.error: BaseException | None = None
        batching = {
            name: options.pop(name) for name in ("max_size", "max_bytes", "time_limit", "max_held") if name in options
        }

        @dramatiq.actor(broker=broker, **options)
        def work(label: Any) -> Any:
            self.alone.append(label)
            return f"{label} alone" if "store_results" in options else None

        @batch(work, **batching)
        def work_together(messages: Sequence[BatchedMessage]) -> None:
            self.together.append([one.args[0] for one in messages])
            for one in messages:
                if one.args[0] not in self.undone:
                    one.done(f"{one.args[0]} together" if "store_results" in options else None)
            if self.error is not None:
                raise self.error

        self.work, self.work_together = work, work_together

    @property
    def of_batches(self) -> list[Any]:
        return sorted(label for labels in self.together for label in labels)


def send(broker: RedisStreamsBroker, calls: Calls, labels: Sequence[Any]) -> list[dramatiq.Message[Any]]:
    return broker.enqueue_many([calls.work.message(label) for label in labels])


def drained(broker: RedisStreamsBroker) -> None:
    # eight free threads, so that the first read requests eight messages
    with working(broker, threads=8):
        broker.join("default", timeout=30_000)


@pytest.fixture
def results(redis_client: redis.Redis) -> Results:
    return Results(backend=ResultBackend(client=redis_client))


def test_waiting_messages_run_in_one_batch_with_a_result_each(redis_url: str, results: Results) -> None:
    with broker_on(redis_url, quick_retries(), results) as broker:
        calls = Calls(broker, store_results=True)
        sent = send(broker, calls, range(100))

        drained(broker)

        assert [one.get_result(backend=results.backend) for one in sent] == [f"{n} together" for n in range(100)]
        assert calls.alone == []
        assert len(calls.together) < 50
        assert broker.counters("default") == {"enqueued": 100, "acked": 100, "removed": 100}


def test_process_holds_no_more_batches_than_max_held(redis_url: str) -> None:
    began, may_end = threading.Event(), threading.Event()
    with broker_on(redis_url) as broker:

        @dramatiq.actor(broker=broker)
        def work(n: int) -> None:
            wait()

        @batch(work, max_size=4, max_held=1)
        def work_together(messages: Sequence[BatchedMessage]) -> None:
            wait()
            for one in messages:
                one.done()

        def wait() -> None:
            began.set()
            assert may_end.wait(20)

        broker.enqueue_many([work.message(n) for n in range(100)])
        with working(broker, threads=8) as worker:
            assert began.wait(20)
            eventually(lambda: worker.work_queue.empty())
            held = broker.stats("default").in_flight
            may_end.set()
            broker.join("default", timeout=30_000)

    # at most the running batch and the next one, because the first reads request few messages
    assert held <= 8


def test_single_waiting_message_is_not_batched(redis_url: str) -> None:
    with broker_on(redis_url) as broker:
        calls = Calls(broker)
        calls.work.send("only")

        drained(broker)

    assert (calls.alone, calls.together) == (["only"], [])


def test_message_not_done_by_its_batch_runs_individually(redis_url: str, results: Results) -> None:
    with broker_on(redis_url, quick_retries(), results) as broker:
        calls = Calls(broker, store_results=True)
        calls.undone = {1, 3}
        sent = send(broker, calls, range(4))

        drained(broker)

        found = [one.get_result(backend=results.backend) for one in sent]
        assert broker.counters("default") == {"enqueued": 4, "acked": 4, "removed": 4, "unbatched": 2}
    assert found == ["0 together", "1 alone", "2 together", "3 alone"]
    assert calls.of_batches == [0, 1, 2, 3]
    assert sorted(calls.alone) == [1, 3]


def test_no_message_counts_as_done_if_the_batch_raises(redis_url: str) -> None:
    with broker_on(redis_url, quick_retries()) as broker:
        calls = Calls(broker)
        calls.error = ValueError("as asked")
        send(broker, calls, range(4))

        drained(broker)

        assert broker.dead_letters("default").list() == []
    assert sorted(calls.alone) == calls.of_batches == [0, 1, 2, 3]


def test_message_of_a_failed_batch_has_its_own_retries_and_dead_letter(redis_url: str) -> None:
    tries: list[int] = []
    with broker_on(redis_url, quick_retries(2)) as broker:

        @dramatiq.actor(broker=broker)
        def work(n: int) -> None:
            tries.append(n)
            if n == 2:
                raise ValueError("never works")

        @batch(work)
        def work_together(messages: Sequence[BatchedMessage]) -> None:
            raise ValueError("nor together")

        broker.enqueue_many([work.message(n) for n in range(4)])
        drained(broker)

        (dead_letter,) = broker.dead_letters("default").list()
        assert (dead_letter.reason, "never works" in dead_letter.error) == ("failed", True)
    assert sorted(tries) == [0, 1, 2, 2, 2, 3]


def test_batch_beyond_its_time_limit_is_ended_and_its_messages_run_again(redis_url: str) -> None:
    seen: list[str] = []
    with broker_on(redis_url, TimeLimit(interval=10), quick_retries(0)) as broker:

        @dramatiq.actor(broker=broker)
        def work(n: int) -> None:
            seen.append("alone")

        @batch(work, time_limit=30)
        def work_together(messages: Sequence[BatchedMessage]) -> None:
            try:
                while True:
                    time.sleep(0.001)
            except TimeLimitExceeded:
                seen.append("interrupted")
                raise

        broker.enqueue_many([work.message(n) for n in range(4)])
        drained(broker)

        assert broker.dead_letters("default").list() == []
    assert seen.count("alone") == 4
    assert 1 <= seen.count("interrupted") <= 2


@contextmanager
def batching(scene: Scene, *, prefetch: int = 10, **options: Any) -> Iterator[tuple[StreamsConsumer, Calls]]:
    """Yield a consumer of a queue whose actor has a batch function."""
    consumer = scene.consumer("a", prefetch=prefetch, timeout=50)
    yield consumer, Calls(scene.brokers["a"], queue_name=QUEUE, **options)


def given(consumer: StreamsConsumer) -> list[list[str]]:
    """Poll the consumer until it returns None, and return the labels of each message or batch."""
    got: list[list[str]] = []
    one = eventually(lambda: next(consumer))  # on a loaded machine, the first read may end before the server answers
    while one is not None:
        got.append(labels(list(one.deliveries)) if isinstance(one, Batch) else [one.args[0]])
        one = next(consumer)
    return got


def test_plain_messages_share_a_batch_and_others_run_individually(stage: Scene) -> None:
    with batching(stage, prefetch=20, max_size=3) as (consumer, _):
        stage.brokers["a"].enqueue_many(
            [
                message("one"),
                message("retried", retries=1),
                message("traced", trace_headers={"id": "7"}),
                message("ordered", ordering_key="k"),
                message("unique", unique_key="k"),
                message("limited", time_limit=1),
                message("two"),
                message("three"),
                message("four"),
            ]
        )

        assert given(consumer) == [
            ["one", "traced", "two"],
            ["retried"],
            ["ordered"],
            ["unique"],
            ["limited"],
            ["three", "four"],
        ]


def test_batch_holds_no_more_bytes_than_allowed(stage: Scene) -> None:
    size = len(message("0").encode())
    with batching(stage, max_bytes=3 * size) as (consumer, _):
        stage.brokers["a"].enqueue_many([message(str(n)) for n in range(7)])

        assert given(consumer) == [["0", "1", "2"], ["3", "4", "5"], ["6"]]


def test_batch_occupies_one_prefetch_slot(stage: Scene) -> None:
    with batching(stage, prefetch=2, max_size=4) as (consumer, _):
        broker = stage.brokers["a"]
        broker.enqueue_many([message(str(n)) for n in range(12)])

        assert given(consumer) == [["0", "1"], ["2", "3", "4", "5"]]
        assert broker.stats(QUEUE).in_flight == 6


def test_batches_that_were_not_started_are_handed_back(stage: Scene) -> None:
    with batching(stage, max_size=3) as (consumer, _):
        stage.brokers["a"].enqueue_many([message(str(n)) for n in range(6)])
        batches = [next(consumer), next(consumer)]

        consumer.requeue(one for one in batches if one is not None)

        assert stage.state() == QueueState(pending={str(n): ("handed back", 0) for n in range(6)})
        assert given(consumer) == [["0", "1", "2"], ["3", "4", "5"]]


def test_messages_of_a_batch_whose_process_died_run_individually(stage: Scene) -> None:
    with batching(stage) as (consumer, _):
        stage.brokers["a"].enqueue_many([message(str(n)) for n in range(3)])
        assert isinstance(next(consumer), Batch)

        stage.die("a")

    other = stage.consumer("b")
    Calls(stage.brokers["b"], queue_name=QUEUE)
    again = received(other, 3)
    assert labels(again) == ["0", "1", "2"]
    assert [one.deliveries for one in again] == [2, 2, 2]


def test_first_batch_is_small_and_later_ones_grow(redis_url: str) -> None:
    with broker_on(redis_url) as broker:
        calls = Calls(broker, max_size=3 * FIRST_SIZE, max_held=1)
        send(broker, calls, range(20 * FIRST_SIZE))
        drained(broker)

    sizes = [len(one) for one in calls.together]
    assert all(size <= FIRST_SIZE for size in sizes[:2])
    assert max(sizes) == 3 * FIRST_SIZE


@pytest.mark.parametrize(
    ("n", "n_done", "duration_s", "most"),
    [
        (64, 64, 0.1, 128),
        (64, 1, 0.1, 128),
        (63, 63, 0.1, 64),  # fewer were waiting
        (64, 0, 0.1, FIRST_SIZE),
        (64, 64, 2 * LONG_BATCH_S, 32),
        (64, 64, 100 * LONG_BATCH_S, FIRST_SIZE),
    ],
)
def test_next_batch_is_larger_only_if_the_last_was_full_and_quick(
    n: int, n_done: int, duration_s: float, most: int
) -> None:
    size = BatchSize()
    for full in (16, 32):
        size.record(full, full, 0.1)
    assert size.most == 64

    size.record(n, n_done, duration_s)

    assert size.most == most


def test_batches_are_small_after_a_process_died(stage: Scene) -> None:
    with batching(stage, prefetch=2 * FIRST_SIZE, max_size=2 * FIRST_SIZE) as (consumer, _):
        broker = stage.brokers["a"]
        broker.enqueue(message("killer"))
        received(stage.consumer("b", prefetch=1), 1)
        broker.enqueue_many([message(str(n)) for n in range(FIRST_SIZE)])
        first = eventually(lambda: next(consumer))
        assert isinstance(first, Batch)
        broker.emit_before("process_message", first)
        broker.actors["work"](*first.args)
        broker.emit_after("process_message", first)
        consumer.ack(first)
        broker.enqueue_many([message(str(n)) for n in range(2 * FIRST_SIZE)])
        assert len(given(consumer)[0]) == 2 * FIRST_SIZE

        stage.die("b")
        assert given(consumer) == [["killer"]]
        broker.enqueue_many([message(str(n)) for n in range(2 * FIRST_SIZE)])

        assert len(given(consumer)[0]) == FIRST_SIZE


def test_whole_batch_is_acknowledged_in_one_call(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settled: list[int] = []
    run_script = Connections.run_script

    def counting(self: Connections, script: Any, keys: Any, args: Any) -> Any:
        if script is SETTLE:
            settled.append(args[2])
        return run_script(self, script, keys, args)

    monkeypatch.setattr(Connections, "run_script", counting)
    with broker_on(redis_url) as broker:
        calls = Calls(broker)
        send(broker, calls, range(8))

        drained(broker)

    assert settled == [8]
    assert calls.together == [list(range(8))]


class Pairs(Middleware):
    """Middleware that records which hook was called for which message, and refuses some messages."""

    def __init__(self, refusals: dict[Any, Exception] | None = None) -> None:
        self.heard: list[tuple[str, Any]] = []
        self._refusals = refusals or {}

    def before_process_message(self, broker: dramatiq.Broker, message: dramatiq.broker.MessageProxy) -> None:
        self.heard.append(("before", message.args[0]))
        if error := self._refusals.get(message.args[0]):
            raise error

    def after_process_message(
        self,
        broker: dramatiq.Broker,
        message: dramatiq.broker.MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        self.heard.append(("done" if exception is None else type(exception).__name__, message.args[0]))

    def after_skip_message(self, broker: dramatiq.Broker, message: dramatiq.broker.MessageProxy) -> None:
        self.heard.append(("skipped", message.args[0]))

    def after_ack(self, broker: dramatiq.Broker, message: dramatiq.broker.MessageProxy) -> None:
        self.heard.append(("acked", message.args[0]))

    def after_nack(self, broker: dramatiq.Broker, message: dramatiq.broker.MessageProxy) -> None:
        self.heard.append(("rejected", message.args[0]))


def test_middleware_is_called_before_and_after_each_message_of_a_batch(redis_url: str) -> None:
    pairs = Pairs()
    with broker_on(redis_url, quick_retries(), pairs) as broker:
        calls = Calls(broker)
        calls.undone = {1}
        send(broker, calls, range(3))

        drained(broker)

    assert pairs.heard[:8] == [
        ("before", 0),
        ("before", 1),
        ("before", 2),
        ("done", 2),
        ("NotDoneInBatch", 1),
        ("done", 0),
        ("acked", 2),
        ("acked", 0),
    ]
    assert pairs.heard[8:] == [("before", 1), ("done", 1), ("acked", 1)]
    assert issubclass(NotDoneInBatch, dramatiq.Retry)


def test_message_that_a_middleware_refuses_is_not_part_of_the_batch(redis_url: str) -> None:
    pairs = Pairs({"skipped": SkipMessage("not now"), "refused": MiddlewareError("no")})
    with broker_on(redis_url, quick_retries(0), pairs, AgeLimit(max_age=60_000)) as broker:
        calls = Calls(broker)
        old = calls.work.message("old").copy(message_timestamp=int(time.time() * 1000) - 3_600_000)
        broker.enqueue_many([old, *(calls.work.message(label) for label in ("skipped", "refused", "good"))])

        drained(broker)

        dead = {one.message_id: one.reason for one in broker.dead_letters("default").list()}
    assert (calls.alone, calls.together) == ([], [["good"]])
    assert sorted(dead.values()) == ["failed", "skipped"]
    assert dead[old.message_id] == "skipped"
    assert [what for what, label in pairs.heard if label == "refused"] == ["before", "MiddlewareError", "rejected"]
    assert [what for what, label in pairs.heard if label == "skipped"] == ["before", "skipped", "acked"]


def test_cancelled_message_is_not_part_of_its_batch(stage: Scene) -> None:
    with batching(stage) as (consumer, calls):
        broker = stage.brokers["a"]
        sent = broker.enqueue_many([message(str(n)) for n in range(3)])
        given_batch = next(consumer)
        assert isinstance(given_batch, Batch)

        assert broker.cancel(sent[1].message_id, QUEUE) == "requested"
        eventually(lambda: given_batch.deliveries[1].is_cancelled)
        broker.emit_before("process_message", given_batch)
        calls.work(*given_batch.args)
        broker.emit_after("process_message", given_batch, result=None)
        consumer.ack(given_batch)

        assert calls.together == [["0", "2"]]
        eventually(lambda: broker.counters(QUEUE)["acked"] == 2)
        assert broker.counters(QUEUE)["cancelled"] == 1
        assert stage.state() == QueueState()


def test_message_taken_again_during_its_hand_back_is_not_lost(stage: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Delivery] = []
    run_script = Connections.run_script
    with batching(stage) as (consumer, calls):
        broker = stage.brokers["a"]
        calls.undone = {"0", "1"}
        broker.enqueue_many([message("0"), message("1")])
        given_batch = next(consumer)
        assert given_batch is not None

        def taking(self: Connections, script: Any, keys: Any, args: Any) -> Any:
            answer = run_script(self, script, keys, args)
            if script is HAND_BACK:
                monkeypatch.undo()
                taken.extend(received(consumer, 2))
            return answer

        broker.emit_before("process_message", given_batch)
        calls.work(*given_batch.args)
        broker.emit_after("process_message", given_batch, result=None)
        monkeypatch.setattr(Connections, "run_script", taking)
        consumer.ack(given_batch)

        assert stage.state() == QueueState(pending={"0": ("a", 2), "1": ("a", 2)})
        for delivery in taken:
            consumer.ack(delivery)
        eventually(lambda: stage.state() == QueueState())


def test_messages_of_a_batch_run_their_callbacks(redis_url: str) -> None:
    heard: list[Any] = []
    with broker_on(redis_url, Callbacks(), Pipelines(), CurrentMessage()) as broker:

        @dramatiq.actor(broker=broker, queue_name="other")
        def succeeded(message_data: dict[str, Any], result: Any) -> None:
            heard.append(message_data["args"][0])

        calls = Calls(broker, on_success="succeeded")
        calls.undone = {2}
        send(broker, calls, range(4))
        with working(broker):
            broker.join("default", timeout=30_000)
            broker.join("other", timeout=30_000)

    assert sorted(heard) == [0, 1, 2, 3]


def test_unfinished_messages_of_a_batch_are_handed_back_at_shutdown(redis_url: str) -> None:
    began, may_end = threading.Event(), threading.Event()
    batches: list[Sequence[BatchedMessage]] = []
    with broker_on(redis_url) as broker:

        @dramatiq.actor(broker=broker)
        def work(n: int) -> None:
            raise AssertionError("runs together")

        @batch(work, max_size=2)
        def work_together(messages: Sequence[BatchedMessage]) -> None:
            batches.append(messages)
            began.set()
            assert may_end.wait(30)
            messages[0].done()

        broker.enqueue_many([work.message(n) for n in range(8)])
        with working(broker, threads=2) as worker:
            assert began.wait(30)
            stopping = threading.Thread(target=worker.stop)
            stopping.start()
            eventually(lambda: not any(thread.running for thread in worker.workers))
            may_end.set()
            stopping.join(30)
        eventually(lambda: broker.counters("default")["acked"] == len(batches))

        assert broker.counters("default")["unbatched"] == len(batches)
        stats = broker.stats("default")
        assert stats.waiting + stats.in_flight == 8 - len(batches)


def test_other_brokers_run_each_message_individually() -> None:
    broker = StubBroker(middleware=[])
    calls = Calls(broker)
    for n in range(3):
        calls.work.send(n)

    with working(broker):  # type: ignore[arg-type]  # any broker will do
        broker.join("default")

    assert (sorted(calls.alone), calls.together) == ([0, 1, 2], [])


def test_batch_function_can_be_called_in_a_test() -> None:
    calls = Calls(StubBroker(middleware=[]))
    calls.undone = {2}
    messages = [BatchedMessage(calls.work.message(n)) for n in (1, 2)]

    calls.work_together(messages)

    assert [one.is_done for one in messages] == [True, False]


@pytest.mark.parametrize(
    "batching", [{"max_size": 1}, {"max_size": 501}, {"max_bytes": 0}, {"max_held": 0}, {"time_limit": "1"}]
)
def test_invalid_batch_is_refused_where_it_is_declared(batching: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption) as refused:
        Calls(StubBroker(middleware=[]), **batching)

    assert refused.value.field in batching


def test_actor_has_at_most_one_batch_function() -> None:
    calls = Calls(StubBroker(middleware=[]))

    with pytest.raises(InvalidOption, match="already has a batch function"):
        batch(calls.work)
