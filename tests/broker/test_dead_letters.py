"""Dead letters: their contents, and the limits on their number and size."""

from __future__ import annotations

import json
from typing import Any

import dramatiq

from tests.broker.scene import KEYS, QUEUE, Scene, message, received

LONG = "x" * 1_000


def failed() -> ValueError:
    """Return an exception with a traceback."""
    try:
        raise ValueError("the disk is full")
    except ValueError as error:
        return error


def fail_twice(scene: Scene, name: str) -> dramatiq.Message[Any]:
    """Fail a message, retry it with the traceback that Retries adds, and fail it again; return the delivered retry."""
    consumer, broker = scene.consumer(name), scene.brokers[name]
    broker.enqueue(message("one", unique_key="k"))
    (first,) = received(consumer, 1)
    first.options |= {"retries": 1, "traceback": f"Traceback: {LONG}"}
    retry: Any = first  # the Retries middleware enqueues the delivery itself, too
    broker.enqueue(retry, delay=1)
    consumer.ack(first)
    (second,) = received(consumer, 1)
    delivered: dramatiq.Message[Any] = second.copy()
    second.options |= {"retries": 2}
    second.stuff_exception(failed())
    consumer.nack(second)
    return delivered


def test_dead_letter_keeps_one_traceback(scene: Scene) -> None:
    delivered = fail_twice(scene, "a")

    (dead_letter,) = scene.brokers["a"].dead_letters(QUEUE).list()

    assert dead_letter.traceback is not None
    assert "the disk is full" in dead_letter.traceback
    kept = json.loads(dead_letter.fields[b"message"])
    assert kept["options"] == {"unique_key": "k", "retries": 1}
    assert "traceback" in delivered.options


def test_requeued_dead_letter_is_the_original_message_without_traceback(scene: Scene) -> None:
    delivered = fail_twice(scene, "a")
    dead_letters = scene.brokers["a"].dead_letters(QUEUE)

    assert dead_letters.requeue([dead_letters.list()[0].id]) == 1

    ((_, fields),) = scene.client.xrange(KEYS.stream)
    del delivered.options["traceback"]
    assert dramatiq.Message.decode(fields[b"message"]) == delivered
    assert scene.state().locks == ("k",)


def test_message_that_killed_its_workers_keeps_its_last_traceback(scene: Scene) -> None:
    consumer = scene.consumer("a", max_deliveries=2)
    broker = scene.brokers["a"]
    broker.enqueue(message("one", retries=1, traceback=LONG))
    (one,) = received(consumer, 1)
    one.is_doomed = True
    try:
        broker.emit_before("process_message", one)
    except dramatiq.middleware.SkipMessage as error:
        one.stuff_exception(error)
    consumer.nack(one)

    (dead_letter,) = broker.dead_letters(QUEUE).list()

    assert (dead_letter.reason, dead_letter.traceback) == ("delivery-limit", None)
    assert json.loads(dead_letter.fields[b"message"])["options"]["traceback"] == LONG


def test_oldest_dead_letters_are_deleted_beyond_the_limit_in_bytes(scene: Scene) -> None:
    limit = 1 << 20
    consumer = scene.consumer("a", prefetch=400, dead_letter_max_bytes=limit)
    broker = scene.brokers["a"]
    # small dead letters first, so that the average size does not show how many to delete
    broker.enqueue_many([message(str(n) + "x" * (100 if n < 200 else 20_000)) for n in range(400)])
    ids = []
    for delivery in received(consumer, 400):
        consumer.nack(delivery)
        ids.append(delivery.entry_id)

    dead_letters = broker.dead_letters(QUEUE)
    kept = [dead_letter.entry_id for dead_letter in reversed(dead_letters.list(1_000))]

    assert limit * 0.8 < dead_letters.n_bytes() < limit * 1.1
    assert kept == ids[-len(kept) :]
    counters = broker.counters(QUEUE)
    assert counters["dead_bytes"] > 4_000_000
    assert counters["dead_evicted"] == 400 - len(kept)


def test_dead_letters_beyond_the_maximum_number_are_counted_as_evicted(scene: Scene) -> None:
    consumer = scene.consumer("a", prefetch=400, dead_letter_max=100)
    broker = scene.brokers["a"]
    broker.enqueue_many([message(str(n)) for n in range(400)])
    for delivery in received(consumer, 400):
        consumer.nack(delivery)

    kept = broker.dead_letters(QUEUE).list(1_000)
    broker.dead_letters(QUEUE).purge_all()

    assert 100 <= len(kept) < 300  # the server deletes whole blocks of a stream
    assert broker.counters(QUEUE)["dead_evicted"] == 400 - len(kept)


def test_flood_of_one_error_does_not_evict_dead_letters_with_other_errors(scene: Scene) -> None:
    consumer = scene.consumer("a", prefetch=1_000, dead_letter_max=200)
    broker = scene.brokers["a"]
    floods: list[dramatiq.Message[Any]] = [dramatiq.Message(QUEUE, "flood", (str(n),), {}, {}) for n in range(600)]
    others = [message(f"other {n}") for n in range(100)]
    broker.enqueue_many([*others[:40], *floods[:300], *others[40:], *floods[300:]])
    for delivery in received(consumer, 700):
        consumer.nack(delivery)

    dead_letters = broker.dead_letters(QUEUE)
    kept = dead_letters.list(1_000)

    assert len([one for one in kept if one.actor_name == "work"]) == 100
    newest = [json.loads(one.fields[b"message"])["args"][0] for one in kept if one.actor_name == "flood"]
    assert newest == [str(n) for n in reversed(range(600))][: len(newest)]
    assert 200 <= len(kept) <= 300
    assert broker.counters(QUEUE)["dead_evicted"] == 700 - len(kept)
    assert scene.client.zcard(KEYS.dead_mistakes) == len(kept)

    # the causes of requeued and purged dead letters are deleted
    dead_letters.requeue(one.id for one in kept[:50])
    dead_letters.purge(one.id for one in kept[50:100])
    assert scene.client.zcard(KEYS.dead_mistakes) == len(kept) - 100
    dead_letters.purge_all()
    assert not scene.client.exists(KEYS.dead_mistakes)


def test_causes_of_expired_dead_letters_are_forgotten(scene: Scene) -> None:
    consumer = scene.consumer("a", prefetch=200)
    broker = scene.brokers["a"]
    expired = {f"{n}-0": 7 for n in range(1, 301)}
    scene.client.zadd(KEYS.dead_mistakes, expired)
    broker.enqueue_many([message(str(n)) for n in range(200)])
    for delivery in received(consumer, 200):
        consumer.nack(delivery)

    assert scene.client.zcard(KEYS.dead_mistakes) == 200


def test_newest_dead_letter_is_kept_whatever_its_size(scene: Scene) -> None:
    consumer = scene.consumer("a", dead_letter_max_bytes=1)
    broker = scene.brokers["a"]
    for label in ("one", "two" * 10_000):
        broker.enqueue(message(label))
        consumer.nack(received(consumer, 1)[0])

    dead_letters = broker.dead_letters(QUEUE)

    assert [json.loads(one.fields[b"message"])["args"] for one in dead_letters.list()] == [["two" * 10_000]]
    assert dead_letters.n_bytes() > 30_000


def test_dead_letters_of_an_empty_queue_use_zero_bytes(scene: Scene) -> None:
    assert scene.process("a").dead_letters(QUEUE).n_bytes() == 0
