"""Entries that no actor can run become dead letters with a reason, and the other entries run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import dramatiq
import pytest

from broker import InvalidMessage, UndecodableEntry
from tests.broker.scene import KEYS, QUEUE, QueueState, Scene, message, received
from tests.support import eventually

# An unpaired surrogate. JSON can represent it but UTF-8 cannot, so text that contains one cannot be sent to Redis.
HALF_A_CHARACTER = "\ud800"


def encoded(**fields: Any) -> bytes:
    return dramatiq.Message(
        **{"queue_name": QUEUE, "actor_name": "work", "args": (), "kwargs": {}, "options": {}} | fields
    ).encode()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"message": b"\xff\x00 no json"}, "undecodable"),
        ({"message": b"[1, 2]"}, "undecodable"),
        ({"message": b"{}"}, "undecodable"),
        ({"something": b"else"}, "undecodable"),
        ({"message": encoded(queue_name="another")}, "wrong-queue"),
        *(
            ({"message": encoded(**half)}, "undecodable")
            for half in (
                {"actor_name": HALF_A_CHARACTER},
                {"message_id": HALF_A_CHARACTER},
                {"options": {"unique_key": HALF_A_CHARACTER}},
                {"options": {"ordering_key": HALF_A_CHARACTER}},
            )
        ),
    ],
    ids=[
        "bytes",
        "no object",
        "no message",
        "no field",
        "wrong queue",
        "half an actor",
        "half an id",
        "half a unique key",
        "half an ordering key",
    ],
)
def test_entry_that_is_not_a_message_becomes_a_dead_letter(stage: Scene, fields: dict[str, bytes], reason: str) -> None:
    consumer = stage.consumer("a")
    stage.client.xadd(KEYS.stream, fields)
    stage.brokers["a"].enqueue(message("good"))

    (good,) = received(consumer, 1)

    assert good.args == ("good",)
    eventually(lambda: stage.brokers["a"].dead_letters(QUEUE).list())
    (dead_letter,) = stage.brokers["a"].dead_letters(QUEUE).list()
    assert dead_letter.reason == reason
    assert dead_letter.error
    assert dead_letter.fields == {name.encode(): value for name, value in fields.items()}


@pytest.mark.parametrize(
    ("field", "sent", "came"),
    [
        ("message_timestamp", 1_700_000_000_000.7, 1_700_000_000_000),
        ("message_timestamp", "1700000000000", 1_700_000_000_000),
        ("message_id", 42, "42"),
        ("message_id", 4.5, "4.5"),
    ],
)
def test_field_with_another_type_that_dramatiq_accepts_is_converted(
    stage: Scene, field: str, sent: Any, came: object
) -> None:
    consumer = stage.consumer("a")
    stage.client.xadd(KEYS.stream, {"message": encoded(**{field: sent})})

    (one,) = received(consumer, 1)

    assert getattr(one, field) == came
    assert isinstance(one.enqueued_at_ms, int)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("message_timestamp", None),
        ("message_timestamp", True),
        ("message_timestamp", "yesterday"),
        ("message_timestamp", float("nan")),
        ("message_timestamp", float("inf")),
        ("message_timestamp", [1]),
        ("message_id", None),
        ("message_id", [1]),
        ("message_id", {"a": 1}),
        ("actor_name", 7),
        ("queue_name", None),
        ("kwargs", [1]),
        ("kwargs", None),
        ("options", [1]),
        ("options", None),
    ],
)
def test_unusable_field_is_refused_when_enqueueing_and_when_consuming(stage: Scene, field: str, value: Any) -> None:
    consumer = stage.consumer("a")
    strange = message("strange").copy()
    object.__setattr__(strange, field, value)

    with pytest.raises(InvalidMessage) as refused:
        stage.brokers["a"].enqueue(strange)
    stage.client.xadd(KEYS.stream, {"message": strange.encode()})
    stage.brokers["a"].enqueue(message("good"))

    assert received(consumer, 1)[0].args == ("good",)
    assert refused.value.field == field
    (dead_letter,) = eventually(lambda: stage.brokers["a"].dead_letters(QUEUE).list())
    assert (dead_letter.reason, dead_letter.field) == ("undecodable", field)
    assert dead_letter.error.startswith(f"UndecodableEntry: {field}: expected ")


def test_decoder_converts_foreign_entries_or_names_the_invalid_field(stage: Scene) -> None:
    def decode(entry_id: str, fields: Mapping[bytes, bytes]) -> dramatiq.Message[Any]:
        if fields[b"v"] != b"1":
            raise UndecodableEntry("v", "is not 1", "send 1")
        return message(fields[b"label"].decode())

    consumer = stage.consumer("a", decoders={QUEUE: decode})
    stage.client.xadd(KEYS.stream, {"v": "2", "label": "bad"})
    stage.client.xadd(KEYS.stream, {"v": "1", "label": "good"})

    (good,) = received(consumer, 1)
    consumer.ack(good)

    assert good.args == ("good",)
    (dead_letter,) = eventually(lambda: stage.brokers["a"].dead_letters(QUEUE).list())
    assert (dead_letter.reason, dead_letter.field, dead_letter.hint) == ("undecodable", "v", "send 1")
    eventually(lambda: stage.client.xlen(KEYS.stream) == 0)


def test_entry_whose_decoder_fails_becomes_a_dead_letter_and_others_run(stage: Scene) -> None:
    def decode(entry_id: str, fields: Mapping[bytes, bytes]) -> dramatiq.Message[Any]:
        raise ZeroDivisionError("a bug")

    consumer = stage.consumer("a", decoders={QUEUE: decode})
    stage.client.xadd(KEYS.stream, {"v": "1"})
    stage.brokers["a"].enqueue(message("good"))

    assert received(consumer, 1)[0].args == ("good",)
    (dead_letter,) = eventually(lambda: stage.brokers["a"].dead_letters(QUEUE).list())
    assert "ZeroDivisionError" in dead_letter.error


def test_dead_letters_are_listed_shown_requeued_and_purged(stage: Scene) -> None:
    consumer = stage.consumer("a")
    broker = stage.brokers["a"]
    broker.enqueue_many([message(label) for label in ("one", "two", "three")])
    for delivery in received(consumer, 3):
        delivery.stuff_exception(ValueError(delivery.args[0]))
        consumer.nack(delivery)
    dead_letters = broker.dead_letters(QUEUE)
    newest_first = dead_letters.list()
    assert [dead_letter.error for dead_letter in newest_first] == [
        "ValueError: three",
        "ValueError: two",
        "ValueError: one",
    ]

    assert dead_letters.get(newest_first[0].id) == newest_first[0]
    dead_letters.requeue([newest_first[2].id])
    dead_letters.purge([newest_first[1].id])

    assert stage.state() == QueueState(waiting=("one",), dead=(("failed", "three"),))
    assert received(consumer, 1)[0].args == ("one",)


def test_dead_letters_are_requeued_and_purged_by_their_content(stage: Scene) -> None:
    consumer = stage.consumer("a")
    broker = stage.brokers["a"]
    broker.enqueue_many([message(label) for label in ("timeout", "bug", "timeout too", "other")])
    for delivery in received(consumer, 4):
        error = TimeoutError("slow") if "timeout" in delivery.args[0] else ValueError("bug")
        delivery.stuff_exception(error)
        consumer.nack(delivery)
    dead_letters = broker.dead_letters(QUEUE)
    first, *_, last = reversed(dead_letters.list())

    assert [
        dead_letter.fields for dead_letter in dead_letters.find(died_after=last.died_at + timedelta(seconds=1))
    ] == []
    assert len(dead_letters.list(died_before=last.died_at + timedelta(seconds=1), died_after=first.died_at)) == 4
    assert dead_letters.requeue_where(where=lambda dead_letter: dead_letter.error.startswith("TimeoutError")) == 2
    assert dead_letters.purge_where(message_id=last.message_id) == 1

    assert stage.state() == QueueState(waiting=("timeout too", "timeout"), dead=(("failed", "bug"),))


def test_traceback_of_a_dead_letter_is_cut_to_eight_kilobytes(stage: Scene) -> None:
    consumer = stage.consumer("a")
    stage.brokers["a"].enqueue(message("one"))
    (one,) = received(consumer, 1)
    try:
        raise ValueError("x" * 100_000)
    except ValueError as error:
        one.stuff_exception(error)

    consumer.nack(one)

    (dead_letter,) = stage.brokers["a"].dead_letters(QUEUE).list()
    assert dead_letter.traceback is not None
    assert 0 < len(dead_letter.traceback.encode()) <= 8 * 1024
    assert len(dead_letter.error.encode()) <= 4 * 1024


def test_dead_letter_keeps_only_as_many_fields_as_lua_can_unpack(scene: Scene) -> None:
    consumer = scene.consumer("a")
    scene.client.xadd(KEYS.stream, {f"f{number}": "x" for number in range(5_000)})
    scene.brokers["a"].enqueue(message("good"))

    assert received(consumer, 1)[0].args == ("good",)

    (dead_letter,) = eventually(lambda: scene.brokers["a"].dead_letters(QUEUE).list())
    assert dead_letter.fields == {f"f{number}".encode(): b"x" for number in range(2_000)}
    ((_, stored),) = scene.client.xrange(KEYS.dead)
    assert stored[b"left_out"] == b"3000"
    assert scene.brokers["a"].dead_letters(QUEUE).requeue([dead_letter.id]) == 1


def test_oversized_message_frees_its_unique_key_and_its_turn(stage: Scene) -> None:
    producer = stage.process("producer")
    large = message("x" * 2_000, unique_key="u", ordering_key="k")
    producer.enqueue(large)
    producer.enqueue(message("next", ordering_key="k"))
    consumer = stage.consumer("a", max_message_bytes=1_000)

    assert received(consumer, 1)[0].args == ("next",)

    assert stage.state().locks == ()
    dead_letters = producer.dead_letters(QUEUE)
    (dead_letter,) = dead_letters.list()
    assert (dead_letter.reason, dead_letter.message_id) == ("oversize", large.message_id)
    # the requeued message waits in line, because another message with its ordering key is running
    assert dead_letters.put_back([dead_letter.id]) == ["in-line"]


def test_eta_written_into_an_entry_is_ignored(stage: Scene) -> None:
    consumer = stage.consumer("a")
    stage.client.xadd(KEYS.stream, {"message": encoded(args=("one",), options={"eta": 99_999_999_999_999})})

    (one,) = received(consumer, 1)

    # a Worker would keep a message with an eta in its memory until that time
    assert "eta" not in one.options
