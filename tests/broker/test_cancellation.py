"""Cancelled messages are removed or interrupted, free their keys and turns, and are never retried."""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import dramatiq
import pytest
from dramatiq.encoder import JSONEncoder, MessageData
from dramatiq.middleware import AsyncIO, Callbacks, CurrentMessage, Pipelines, TimeLimit
from dramatiq.results import ResultFailure, Results
from dramatiq.results.backends import StubBackend

from broker import Cancellation, Cancelled, Delivery, MessageCancelled, RedisStreamsBroker, Selection, StreamsMiddleware
from broker.consumer import StreamsConsumer
from tests.broker.scene import GROUP, KEYS, QUEUE, QueueState, Scene, fail, message, received
from tests.broker.test_dramatiq_options import broker_on, quick_retries, working
from tests.broker.test_settle import full
from tests.support import eventually


class Heard(StreamsMiddleware):
    """Middleware that records cancelled and rejected messages."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.nacked: list[tuple[str, str]] = []

    def after_cancel(self, broker: Any, message: Any) -> None:
        self.cancelled.append(message.message_id)

    def after_nack(self, broker: Any, message: Any) -> None:
        self.nacked.append((message.message_id, type(message._exception).__name__))


# -- waiting messages --------------------------------------------------------------------------------------------------


def undelivered(scene: Scene, consumer: StreamsConsumer) -> str:
    # fill the consumer, so that the next message stays undelivered
    scene.brokers["a"].enqueue_many([message("held") for _ in range(2)])
    received(consumer, 2)
    return scene.brokers["a"].enqueue(message("one")).message_id


def delayed(scene: Scene, consumer: StreamsConsumer) -> str:
    return scene.brokers["a"].enqueue(message("one"), delay=60_000).message_id


def waiting_for_its_retry(scene: Scene, consumer: StreamsConsumer) -> str:
    scene.brokers["a"].enqueue(message("one"))
    (one,) = received(consumer, 1)
    fail(scene.brokers["a"], one)
    consumer.ack(one)
    return one.message_id


def in_line(scene: Scene, consumer: StreamsConsumer) -> str:
    scene.brokers["a"].enqueue(message("held", ordering_key="k"))
    received(consumer, 1)
    return scene.brokers["a"].enqueue(message("one", ordering_key="k")).message_id


def in_line_and_delayed(scene: Scene, consumer: StreamsConsumer) -> str:
    scene.brokers["a"].enqueue(message("held", ordering_key="k"))
    received(consumer, 1)
    return scene.brokers["a"].enqueue(message("one", ordering_key="k"), delay=60_000).message_id


def handed_back(scene: Scene, consumer: StreamsConsumer) -> str:
    one = scene.brokers["a"].enqueue(message("one"))
    got = received(consumer, 1)
    scene.brokers["a"].pause(QUEUE)  # otherwise this consumer would take the message again
    consumer.requeue(got)
    return one.message_id


def held_by_a_dead_worker(scene: Scene, consumer: StreamsConsumer) -> str:
    one = scene.process("producer").enqueue(message("one"))
    received(scene.consumer("b"), 1)
    scene.brokers["a"].pause(QUEUE)
    scene.die("b")
    return one.message_id


@pytest.mark.parametrize(
    "place",
    [
        undelivered,
        delayed,
        waiting_for_its_retry,
        in_line,
        in_line_and_delayed,
        handed_back,
        held_by_a_dead_worker,
    ],
)
def test_waiting_message_is_cancelled_wherever_it_waits(
    scene: Scene, place: Callable[[Scene, StreamsConsumer], str]
) -> None:
    heard = Heard()
    consumer = scene.consumer("a", prefetch=2, middleware=[heard])
    broker = scene.brokers["a"]
    message_id = place(scene, consumer)

    assert broker.cancel(message_id) == "cancelled"

    state = scene.state()
    assert "one" not in (*state.waiting, *state.pending, *state.delayed, *state.lost)
    assert state.ghosts == 0
    assert broker.stats(QUEUE).in_line == 0
    assert broker.counters(QUEUE)["cancelled"] == 1
    assert broker.stats(QUEUE).removed_by_others == 0
    assert (heard.cancelled, heard.nacked) == ([message_id], [(message_id, "MessageCancelled")])
    assert broker.cancel(message_id) == "not-found"
    assert broker.counters(QUEUE)["cancelled"] == 1


def test_ended_or_dead_message_is_not_found(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue_many([message("done"), message("dies")])
    done, dies = received(consumer, 2)
    consumer.ack(done)
    consumer.nack(dies)
    eventually(lambda: scene.state() == QueueState(dead=(("failed", "dies"),)))

    assert [broker.cancel(one) for one in (done.message_id, dies.message_id, "no-such-id")] == ["not-found"] * 3
    assert broker.cancel(done.message_id, "no-such-queue") == "not-found"
    assert len(broker.dead_letters(QUEUE)) == 1


def test_message_cancelled_by_two_callers_is_cancelled_once(scene: Scene) -> None:
    broker = scene.process("a")
    ids = [one.message_id for one in broker.enqueue_many([message(str(n)) for n in range(20)])]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: [broker.cancel(one) for one in ids], range(2))

    for pair in zip(first, second, strict=True):
        assert sorted(pair) == ["cancelled", "not-found"]
    assert broker.counters(QUEUE)["cancelled"] == 20


def test_message_is_found_in_a_long_queue(scene: Scene) -> None:
    broker = scene.process("a")
    broker.enqueue_many([message(str(n)) for n in range(1_100)])
    broker.enqueue_many([message(str(n), delay=60_000) for n in range(600)])
    last = broker.enqueue(message("last"))

    assert broker.cancel(last.message_id) == "cancelled"

    assert broker.stats(QUEUE).waiting == 1_100


class CompressingEncoder(JSONEncoder):
    def encode(self, data: MessageData) -> bytes:
        return zlib.compress(super().encode(data))

    def decode(self, data: bytes) -> MessageData:
        return super().decode(zlib.decompress(data))


@pytest.fixture
def compressed() -> Iterator[None]:
    before = dramatiq.get_encoder()
    dramatiq.set_encoder(CompressingEncoder())
    yield
    dramatiq.set_encoder(before)


def test_message_is_found_whatever_its_encoder(scene: Scene, compressed: None) -> None:
    broker = scene.process("a")
    one = broker.enqueue(message("one"))

    assert broker.cancel(one.message_id) == "cancelled"


@pytest.mark.parametrize("message_id", ["ünïcode", 'with "quotes"'])
def test_message_is_found_whatever_its_id(scene: Scene, message_id: str) -> None:
    broker = scene.process("a")
    broker.enqueue(message("one").copy(message_id=message_id))

    assert broker.cancel(message_id) == "cancelled"


def decode(entry_id: str, fields: Mapping[bytes, bytes]) -> dramatiq.Message[Any]:
    return message(fields[b"label"].decode()).copy(message_id=fields[b"event_id"].decode())


def test_entry_of_another_program_is_found_by_the_id_in_its_fields(scene: Scene) -> None:
    broker = scene.process("a", decoders={QUEUE: decode})
    for n in range(3):
        scene.client.xadd(KEYS.stream, {"event_id": f"event-{n}", "label": str(n)})
    scene.client.xadd(KEYS.stream, {"event_id": "event-1"})  # the decoder refuses this entry

    assert broker.cancel("event-1") == "cancelled"

    assert [fields[b"event_id"] for _, fields in scene.client.xrange(KEYS.stream)] == [
        b"event-0",
        b"event-2",
        b"event-1",
    ]


def test_waiting_message_is_cancelled_while_memory_is_full(scene: Scene) -> None:
    broker = scene.process("a")
    one = broker.enqueue(message("one", unique_key="u"))

    with full(scene):
        assert broker.cancel(one.message_id) == "cancelled"

    assert scene.state() == QueueState()


# -- what a message holds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [None, 60_000])
def test_cancelled_message_frees_its_unique_key(scene: Scene, delay: int | None) -> None:
    broker = scene.process("a")
    first = broker.enqueue(message("first", unique_key="u"), delay=delay)

    broker.cancel(first.message_id)

    assert scene.state() == QueueState()
    assert scene.client.exists(KEYS.holders) == 0
    second = broker.enqueue(message("second", unique_key="u"))
    assert second.message_id != first.message_id


@pytest.mark.parametrize(("delay", "ordering_key"), [(None, None), (60_000, None), (None, "k"), (60_000, "k")])
def test_coalesced_message_takes_the_place_of_a_cancelled_one(
    scene: Scene, delay: int | None, ordering_key: str | None
) -> None:
    broker = scene.process("a")
    options = {"unique_key": "u"} | ({} if ordering_key is None else {"ordering_key": ordering_key})
    first = broker.enqueue(message("first", **options), delay=delay)
    for label in ("second", "newest"):
        assert broker.enqueue(message(label, **options)).message_id == first.message_id

    assert broker.cancel(first.message_id) == "cancelled"

    assert scene.state() == QueueState(
        **{"waiting" if delay is None else "delayed": ("newest",)},  # type: ignore[arg-type]
        locks=("u",),
    )
    newest = broker.enqueue(message("coalesced", **options)).message_id
    assert newest != first.message_id
    if delay is not None:
        next_due_ms = broker.stats(QUEUE).next_due_ms
        assert next_due_ms is not None
        assert next_due_ms > 30_000
    # a message was coalesced onto this one, too, and takes its place
    assert broker.cancel(newest) == "cancelled"
    assert len(scene.state().waiting) + len(scene.state().delayed) == 1


def test_cancelled_message_lets_the_next_of_its_ordering_key_run(scene: Scene) -> None:
    broker = scene.process("a")
    ids = [broker.enqueue(message(str(n), ordering_key="k")).message_id for n in range(4)]
    broker.enqueue(message("other", ordering_key="l"))

    broker.cancel(ids[1])
    broker.cancel(ids[0])

    assert scene.state().waiting == ("other", "2")
    assert broker.stats(QUEUE).in_line == 1


def test_cancelled_retry_lets_the_next_of_its_ordering_key_run(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue(message("one", ordering_key="k"))
    broker.enqueue(message("two", ordering_key="k"))
    (one,) = received(consumer, 1)
    fail(broker, one)
    consumer.ack(one)

    assert broker.cancel(one.message_id) == "cancelled"

    assert [two.args for two in received(consumer, 1)] == [("two",)]


@pytest.mark.parametrize(
    ("options", "n_at_once"), [({"concurrency_key": "c", "max_concurrent": 2}, 2), ({"rate": "3/h"}, 3)]
)
def test_cancelled_message_gives_its_turn_to_the_next_one_in_line(
    scene: Scene, options: dict[str, Any], n_at_once: int
) -> None:
    broker = scene.process("a")
    ids = [broker.enqueue(message(str(n), **options)).message_id for n in range(5)]
    assert len(scene.state().waiting) == n_at_once

    for message_id in ids[3:]:  # these wait in line
        assert broker.cancel(message_id) == "cancelled"
    assert broker.cancel(ids[0]) == "cancelled"

    assert scene.state().waiting == ("1", "2")
    for message_id in ids[1:3]:
        broker.cancel(message_id)
    assert not any(scene.client.exists(key) for key in (KEYS.at_work, KEYS.line, KEYS.messages_in_line))


# -- many messages -----------------------------------------------------------------------------------------------------


def other(label: str, **options: Any) -> dramatiq.Message[Any]:
    return message(label, **options).copy(actor_name="other")


def test_cancel_where_cancels_messages_that_match_all_conditions(scene: Scene) -> None:
    broker = scene.process("a")
    one, two, three = (broker.enqueue(message(label)).message_id for label in ("one", "two", "three"))
    broker.enqueue(other("one"))
    delayed = broker.enqueue(message("one"), delay=60_000).message_id

    assert broker.cancel_where(QUEUE, actor="work", where=lambda message: message.args[0] == "one") == Cancellation(
        cancelled=(delayed, one)
    )
    assert broker.cancel_where(QUEUE, message_ids=[two, "no-such-id"]) == Cancellation(cancelled=(two,))
    assert broker.cancel_where(QUEUE, actor="nobody") == Cancellation()
    assert broker.cancel_where(QUEUE, actor="work") == Cancellation(cancelled=(three,))
    assert scene.state() == QueueState(waiting=("one",))


def test_cancel_where_needs_a_condition(scene: Scene) -> None:
    with pytest.raises(TypeError, match="give actor, message_ids or where"):
        scene.process("a").cancel_where(QUEUE)


@pytest.mark.parametrize(("label", "left"), [("other", ("other",)), ("same", ())])
def test_cancel_where_drops_the_coalesced_message_if_it_matches(
    scene: Scene, label: str, left: tuple[str, ...]
) -> None:
    broker = scene.process("a")
    broker.enqueue(message("same", unique_key="u"))
    broker.enqueue(message(label, unique_key="u"))

    found = broker.cancel_where(QUEUE, where=lambda message: message.args[0] == "same")

    assert len(found.cancelled) == 1
    assert scene.state().waiting == left


def test_coalesced_message_takes_the_place_of_one_cancelled_by_its_id(scene: Scene) -> None:
    broker = scene.process("a")
    first = broker.enqueue(message("first", unique_key="u"))
    broker.enqueue(message("second", unique_key="u"))

    assert broker.cancel_where(QUEUE, message_ids=[first.message_id]) == Cancellation(cancelled=(first.message_id,))

    assert scene.state() == QueueState(waiting=("second",), locks=("u",))


def test_cancel_where_checks_only_the_given_entries(scene: Scene) -> None:
    broker = scene.process("a")
    broker.enqueue_many([message(str(n)) for n in range(4)])
    broker.enqueue(message("delayed"), delay=60_000)
    ids = [entry_id.decode() for entry_id, _ in scene.client.xrange(KEYS.stream)]

    found = broker.cancel_where(QUEUE, where=lambda message: True, entry_ids=[*ids[1:3], "1-1"])

    assert len(found.cancelled) == 3
    assert scene.state() == QueueState(waiting=("0", "3"))


def test_find_shows_where_messages_are(scene: Scene) -> None:
    broker = scene.process("a")
    for options in ({"ordering_key": "k"}, {"ordering_key": "k"}, {}):
        broker.enqueue(message("one", **options))
    broker.enqueue(message("one"), delay=60_000)

    found = list(broker.inspector(QUEUE).find(Selection(where=lambda message: message.args[0] == "one")))

    assert [one.state for one in found] == ["in-line", "delayed", "in-stream", "in-stream"]
    assert [one.state for one in broker.inspector(QUEUE).find(Selection(message_ids=["no-such-id"]))] == []


def test_cancel_where_accepts_more_ids_than_scripts_search_for(scene: Scene) -> None:
    broker = scene.process("a")
    ids = [one.message_id for one in broker.enqueue_many([message(str(n)) for n in range(120)])]

    assert broker.cancel_where(QUEUE, message_ids=ids[:100]) == Cancellation(cancelled=tuple(ids[:100]))
    assert broker.stats(QUEUE).waiting == 20


# -- messages that a worker has received -------------------------------------------------------------------------------


class Job:
    """A job that runs until it is released or interrupted."""

    def __init__(self) -> None:
        self.began, self.go = threading.Event(), threading.Event()
        self.ran: list[str] = []
        self.interrupted: list[str] = []

    def __call__(self, label: str) -> None:
        self.ran.append(label)
        self.began.set()
        try:
            # in short steps, because an interrupt cannot end a wait
            while not self.go.wait(0.01):
                pass
        except Cancelled:
            self.interrupted.append(label)
            raise


@contextmanager
def running(url: str, *middleware: Any, **options: Any) -> Iterator[tuple[RedisStreamsBroker, Job, Any]]:
    """Run a worker with one thread; yield its broker, the job of its actor, and the actor."""
    job = Job()
    with broker_on(url, quick_retries(), *middleware) as broker:
        actor = dramatiq.actor(broker=broker, actor_name="work", **options)(job.__call__)
        try:
            with working(broker, threads=1):
                yield broker, job, actor
        finally:
            job.go.set()


def test_running_job_is_interrupted_and_not_retried(redis_url: str) -> None:
    heard, results = Heard(), Results(backend=StubBackend())
    with running(redis_url, heard, results, TimeLimit(), store_results=True) as (broker, job, actor):
        message = actor.send_with_options(args=("one",), unique_key="u", ordering_key="k")
        eventually(job.began.is_set)

        assert broker.cancel(message.message_id) == "requested"
        broker.join("default", timeout=10_000)

        assert job.interrupted == ["one"]
        with pytest.raises(ResultFailure, match="MessageCancelled"):
            message.get_result(backend=results.backend, block=True, timeout=5_000)
        assert heard.cancelled == [message.message_id]
        counters = broker.counters("default")
        assert (counters["cancelled"], counters["retried"], counters["dead"], counters["acked"]) == (1, 0, 0, 0)
        # let the only thread continue
        job.go.set()
        next_one = actor.send_with_options(args=("next",), unique_key="u", ordering_key="k")
        next_one.get_result(backend=results.backend, block=True, timeout=5_000)
        assert job.ran == ["one", "next"]
        assert broker.cancel(message.message_id) == "not-found"


def test_received_message_that_has_not_started_is_skipped_if_cancelled(scene: Scene) -> None:
    heard = Heard()
    consumer = scene.consumer("a", lease_ms=60_000, middleware=[heard])
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)

    assert broker.cancel(one.message_id) == "requested"
    assert broker.cancel(one.message_id) == "requested"
    eventually(lambda: one.is_cancelled)
    with pytest.raises(MessageCancelled):
        broker.emit_before("process_message", one)
    broker.emit_after("skip_message", one)
    consumer.nack(one)

    assert scene.state() == QueueState()
    assert heard.cancelled == [one.message_id]
    assert scene.client.exists(KEYS.cancelled) == 0


def test_coroutine_is_cancelled(redis_url: str) -> None:
    import asyncio

    began, ended = threading.Event(), threading.Event()
    with broker_on(redis_url, AsyncIO(), quick_retries()) as broker:

        @dramatiq.actor(broker=broker)
        async def work() -> None:
            began.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.set()
                raise

        with working(broker):
            message = work.send()
            eventually(began.is_set)
            assert broker.cancel(message.message_id) == "requested"
            broker.join("default", timeout=10_000)
        assert ended.is_set()
        assert broker.counters("default")["cancelled"] == 1


def test_job_may_poll_for_cancellation_and_return_normally(redis_url: str) -> None:
    ended: list[str] = []
    began = threading.Event()
    with broker_on(redis_url, CurrentMessage(), quick_retries()) as broker:

        @dramatiq.actor(broker=broker)
        def work() -> None:
            current: Any = CurrentMessage.get_current_message()
            began.set()
            try:
                while not current.is_cancelled:
                    threading.Event().wait(0.01)
                ended.append("polled")
            except Cancelled:
                ended.append("interrupted")

        with working(broker):
            message = work.send()
            eventually(began.is_set)
            assert broker.cancel(message.message_id) == "requested"
            broker.join("default", timeout=10_000)
        # the actor returned: its job has succeeded
        eventually(lambda: broker.counters("default")["acked"] == 1)
    assert len(ended) == 1


def test_cancelled_job_runs_no_callback_and_no_next_stage(redis_url: str) -> None:
    called: list[str] = []
    with running(redis_url, Callbacks(), Pipelines(), on_failure="failed") as (broker, job, actor):

        @dramatiq.actor(broker=broker, actor_name="failed")
        def failed(*_: Any) -> None:
            called.append("on_failure")

        @dramatiq.actor(broker=broker)
        def second(*_: Any) -> None:
            called.append("second stage")

        pipeline = dramatiq.pipeline([actor.message("one"), second.message()], broker=broker).run()
        eventually(job.began.is_set)
        assert broker.cancel(pipeline.messages[0].message_id) == "requested"
        broker.join("default", timeout=10_000)

        assert job.interrupted == ["one"]
        assert broker.counters("default")["enqueued"] == 1
    assert called == []


class Pairs(dramatiq.Middleware):
    """Middleware without a hook for skipped messages."""

    def __init__(self) -> None:
        self.n_running = 0
        self.error: BaseException | None = None

    def before_process_message(self, broker: Any, message: Any) -> None:
        self.n_running += 1

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: Any = None) -> None:
        self.n_running -= 1
        self.error = exception


def test_middleware_without_a_skip_hook_is_called_after_a_cancelled_job(redis_url: str) -> None:
    pairs = Pairs()
    with running(redis_url, pairs) as (broker, job, actor):
        message = actor.send("one")
        eventually(job.began.is_set)
        broker.cancel(message.message_id)
        broker.join("default", timeout=10_000)

        assert pairs.n_running == 0
        assert isinstance(pairs.error, Cancelled)


@pytest.mark.parametrize("is_all", [False, True])
def test_message_coalesced_onto_a_running_job_runs_in_its_place(redis_url: str, is_all: bool) -> None:
    with running(redis_url) as (broker, job, actor):
        first = actor.send_with_options(args=("first",), unique_key="u", delay=200)
        assert actor.send_with_options(args=("second",), unique_key="u").message_id == first.message_id
        eventually(job.began.is_set)
        job.began.clear()

        if is_all:
            assert broker.cancel_where("default", actor="work") == Cancellation(requested=(first.message_id,))
        else:
            assert broker.cancel(first.message_id) == "requested"
            eventually(job.began.is_set)
            job.go.set()
        broker.join("default", timeout=10_000)

    assert job.ran == (["first"] if is_all else ["first", "second"])


def test_retry_is_refused_if_the_process_has_not_seen_the_cancellation(scene: Scene) -> None:
    heard = Heard()
    consumer = scene.consumer("a", lease_ms=60_000, middleware=[heard])
    broker = scene.brokers["a"]
    broker.enqueue(message("one", unique_key="u", ordering_key="k"))
    broker.enqueue(message("two", ordering_key="k"))
    (one,) = received(consumer, 1)
    # as if this process had not found the mark yet, although it is in Redis
    scene.client.hset(KEYS.cancelled, one.entry_id, "")

    fail(broker, one)
    assert scene.state().delayed == ()
    broker.emit_after("process_message", one, exception=ValueError("fails"))
    consumer.nack(one)

    assert [two.args for two in received(consumer, 1)] == [("two",)]
    assert (broker.counters(QUEUE)["cancelled"], broker.counters(QUEUE)["retried"]) == (1, 0)
    assert heard.cancelled == [one.message_id]
    assert scene.state().locks == ()
    assert scene.client.exists(KEYS.cancelled) == 0


def test_message_whose_worker_dies_after_the_cancellation_does_not_run(scene: Scene) -> None:
    scene.process("operator")
    one = scene.brokers["operator"].enqueue(message("one"))
    received(scene.consumer("a"), 1)
    assert scene.brokers["operator"].cancel(one.message_id) == "requested"
    scene.die("a")

    consumer = scene.consumer("b")
    (again,) = received(consumer, 1)
    eventually(lambda: again.is_cancelled)
    with pytest.raises(MessageCancelled):
        scene.brokers["b"].emit_before("process_message", again)
    scene.brokers["b"].emit_after("skip_message", again)
    consumer.nack(again)

    assert scene.state() == QueueState()
    assert scene.brokers["b"].counters(QUEUE)["cancelled"] == 1


def test_process_leaves_a_lost_cancelled_message_to_its_new_holder(scene: Scene) -> None:
    consumer = scene.consumer("a", lease_ms=60_000)
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)
    broker.emit_before("process_message", one)
    broker.cancel(one.message_id)
    eventually(lambda: one.is_cancelled)
    scene.client.xclaim(KEYS.stream, GROUP, "another", 0, [one.entry_id])

    broker.emit_after("process_message", one, exception=Cancelled())
    consumer.nack(one)

    assert scene.state().pending == {"one": ("another", 2)}
    assert scene.client.hlen(KEYS.cancelled) == 1


def test_cancellation_mark_is_removed_when_the_message_ends(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)
    assert broker.cancel(one.message_id) == "requested"

    consumer.ack(one)
    eventually(lambda: scene.client.xlen(KEYS.stream) == 0)
    assert scene.sweep("a").cancelled == {}

    assert scene.client.exists(KEYS.cancelled) == 0
    assert broker.counters(QUEUE)["acked"] == 1


def test_flush_removes_the_marks_of_cancelled_messages(scene: Scene) -> None:
    consumer = scene.consumer("a")
    broker = scene.brokers["a"]
    broker.enqueue(message("one"))
    (one,) = received(consumer, 1)
    broker.cancel(one.message_id)

    broker.flush(QUEUE)

    assert scene.client.exists(KEYS.cancelled) == 0


def test_message_cancelled_during_its_delivery_has_exactly_one_outcome(redis_url: str) -> None:
    ran: set[str] = set()
    with broker_on(redis_url, quick_retries()) as broker:

        @dramatiq.actor(broker=broker)
        def work(message_id: str) -> None:
            ran.add(message_id)

        messages = [work.message("") for _ in range(300)]
        messages = [one.copy(args=(one.message_id,)) for one in messages]
        with working(broker):
            broker.enqueue_many(messages)
            outcomes = {one.message_id: broker.cancel(one.message_id) for one in reversed(messages)}
            broker.join("default", timeout=20_000)
        counters = broker.counters("default")

    assert counters["cancelled"] + counters["acked"] == 300
    assert all(one not in ran for one, outcome in outcomes.items() if outcome == "cancelled")
    assert all(one in ran for one, outcome in outcomes.items() if outcome == "not-found")
    assert counters["retried"] == counters["dead"] == 0


def test_cancelled_job_leaves_no_throws_option_on_its_message(redis_url: str) -> None:
    """The broker sets the option ``throws``, so that Dramatiq does not log the interrupt as an error."""
    seen: list[Any] = []

    class Seeing(dramatiq.Middleware):
        def after_skip_message(self, broker: Any, message: Any) -> None:
            assert isinstance(message, Delivery)
            seen.append(json.loads(json.dumps(message.options)))

    with running(redis_url, Seeing()) as (broker, job, actor):
        message = actor.send_with_options(args=("one",), max_retries=2)
        eventually(job.began.is_set)
        broker.cancel(message.message_id)
        broker.join("default", timeout=10_000)

    assert seen == [{"max_retries": 2}]
