"""Tests of the event: all forms give the same value, errors name the invalid field, unknown fields are ignored."""

from __future__ import annotations

import base64
import json
import struct
from array import array
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sploot_cluster.errors import InvalidInput
from sploot_cluster.event import FIELDS, EmbeddingIngested
from sploot_cluster.limits import MAX_INT64
from sploot_cluster.pet.vectors import as_vector
from tests.support import refusal

VALUES = [0.5, -0.25, 1.0]  # exact in float16 too
F32LE = struct.pack("<3f", *VALUES)


def fields(**changes: bytes | None) -> dict[bytes, bytes]:
    """Return a valid flat event with changes; None removes a field."""
    event: dict[str, bytes | None] = {
        "schema": b"embedding.ingested/1",
        "event_id": b"7d1c",
        "pet_id": b"42",
        "media_id": "Strand 🏖️.jpg".encode(),
        "model": b"clip-vit-b32@1",
        "dim": b"3",
        "encoding": b"f32le",
        "embedding": F32LE,
    }
    event.update(changes)
    return {name.encode(): value for name, value in event.items() if value is not None}


def kwargs(**changes: Any) -> dict[str, Any]:
    """Return the arguments of a valid event in a Dramatiq message, with changes."""
    return EmbeddingIngested.from_fields(fields()).to_kwargs() | changes


@pytest.mark.parametrize(
    ("encoding", "embedding"),
    [
        (b"f32le", F32LE),
        (b"f16le", struct.pack("<3e", *VALUES)),
        (b"base64-f32le", base64.b64encode(F32LE)),
        (b"json", json.dumps(VALUES).encode()),
    ],
)
def test_every_encoding_gives_the_same_embedding(encoding: bytes, embedding: bytes) -> None:
    event = EmbeddingIngested.from_fields(fields(encoding=encoding, embedding=embedding))

    assert event.embedding == F32LE
    assert event.vector() == array("f", VALUES)
    assert (event.pet_id, event.media_id, event.dim) == (42, "Strand 🏖️.jpg", 3)


def test_event_round_trips_through_a_dramatiq_message() -> None:
    event = EmbeddingIngested.from_fields(
        fields(
            occurred_at=b"2026-01-31T12:00:00.5+01:00",
            traceparent=b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
    )

    again = EmbeddingIngested.from_kwargs(json.loads(json.dumps(event.to_kwargs())))

    assert again == event
    assert event.to_kwargs()["encoding"] == "base64-f32le"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"schema": None}, "schema"),
        ({"schema": b"embedding.ingested/2"}, "schema"),
        ({"event_id": b""}, "event_id"),
        ({"event_id": b"x" * 257}, "event_id"),
        ({"pet_id": None}, "pet_id"),
        ({"pet_id": b"0"}, "pet_id"),
        ({"pet_id": b"-1"}, "pet_id"),
        ({"pet_id": b"4.0"}, "pet_id"),
        ({"pet_id": b" 42"}, "pet_id"),
        ({"pet_id": b"1_000"}, "pet_id"),
        ({"pet_id": "٤٢".encode()}, "pet_id"),
        ({"pet_id": str(MAX_INT64 + 1).encode()}, "pet_id"),
        ({"pet_id": b"9" * 5000}, "pet_id"),
        ({"pet_id": b"\xff"}, "pet_id"),
        ({"media_id": b""}, "media_id"),
        ({"media_id": b"a\x00b"}, "media_id"),
        ({"media_id": b"a\nb"}, "media_id"),
        ({"media_id": b"m" * 257}, "media_id"),
        ({"media_id": b"\xc3\x28"}, "media_id"),
        ({"model": b"clip"}, "model"),
        ({"model": b"clip@1@2"}, "model"),
        ({"model": b"clip @1"}, "model"),
        ({"model": b"c" * 127 + b"@1"}, "model"),
        ({"dim": b"1"}, "dim"),
        ({"dim": b"8193"}, "dim"),
        ({"dim": b"three"}, "dim"),
        ({"encoding": b"f64le"}, "encoding"),
        ({"embedding": None}, "embedding"),
        ({"embedding": b""}, "embedding"),
        ({"embedding": F32LE[:-1]}, "embedding"),
        ({"dim": b"2"}, "embedding"),
        ({"embedding": struct.pack("<3f", 1, float("nan"), 1)}, "embedding"),
        ({"embedding": struct.pack("<3f", 1, 1, float("-inf"))}, "embedding"),
        ({"embedding": bytes(12)}, "embedding"),
        ({"embedding": struct.pack("<3f", 1e-30, 0, 0)}, "embedding"),
        ({"encoding": b"f16le", "embedding": b"\x00"}, "embedding"),
        ({"encoding": b"base64-f32le", "embedding": b"!!!!"}, "embedding"),
        ({"encoding": b"base64-f32le", "embedding": b"\xff\xfe"}, "embedding"),
        ({"encoding": b"base64-f32le", "embedding": base64.b64encode(F32LE)[:-1]}, "embedding"),
        ({"encoding": b"json", "embedding": b"[0.5, -0.25"}, "embedding"),
        ({"encoding": b"json", "embedding": b"[0.5, NaN, 1]"}, "embedding"),
        ({"encoding": b"json", "embedding": b"[0.5, 1e999, 1]"}, "embedding"),
        ({"encoding": b"json", "embedding": b"[0.5, 1e39, 1]"}, "embedding"),
        ({"encoding": b"json", "embedding": b"[0.5, " + b"9" * 400 + b", 1]"}, "embedding"),
        ({"encoding": b"json", "embedding": b'[0.5, "1", 1]'}, "embedding"),
        ({"encoding": b"json", "embedding": b"[0.5, true, 1]"}, "embedding"),
        ({"encoding": b"json", "embedding": b'{"0": 1}'}, "embedding"),
        ({"encoding": b"json", "embedding": b"[" * 100_000}, "embedding"),
        ({"encoding": b"json", "embedding": b"[" + b" " * 300_000 + b"]"}, "embedding"),
        ({"encoding": b"f32le", "embedding": bytes(300_000)}, "embedding"),
        ({"occurred_at": b"yesterday"}, "occurred_at"),
        ({"occurred_at": b"2026-01-31T12:00:00"}, "occurred_at"),
        ({"occurred_at": b"2026-02-30T12:00:00Z"}, "occurred_at"),
        ({"occurred_at": b"9999-12-31T23:59:59-00:01"}, "occurred_at"),
        ({"traceparent": b"00-0-0-0"}, "traceparent"),
        ({"traceparent": b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01"}, "traceparent"),
    ],
)
def test_error_for_an_invalid_flat_event_names_the_field(changes: Mapping[str, bytes | None], field: str) -> None:
    refused = refusal(lambda: EmbeddingIngested.from_fields(fields(**changes)))

    assert refused.field == field
    assert len(str(refused)) < 500


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"pet_id": True}, "pet_id"),
        ({"pet_id": 42.0}, "pet_id"),
        ({"pet_id": "42"}, "pet_id"),
        ({"pet_id": None}, "pet_id"),
        ({"pet_id": 10**5000}, "pet_id"),
        ({"media_id": 7}, "media_id"),
        ({"media_id": "\ud800"}, "media_id"),
        ({"model": None}, "model"),
        ({"dim": 3.0}, "dim"),
        ({"dim": 4}, "embedding"),
        ({"encoding": ["json"]}, "encoding"),
        ({"encoding": "f32le"}, "embedding"),
        ({"embedding": VALUES}, "embedding"),
        ({"embedding": None}, "embedding"),
        ({"encoding": "json", "embedding": [VALUES]}, "embedding"),
        ({"encoding": "json", "embedding": [0.5, None, 1.0]}, "embedding"),
        ({"occurred_at": 1769860800}, "occurred_at"),
        ({"traceparent": 1}, "traceparent"),
    ],
)
def test_error_for_an_invalid_message_names_the_field(changes: Mapping[str, Any], field: str) -> None:
    refused = refusal(lambda: EmbeddingIngested.from_kwargs(kwargs(**changes)))

    assert refused.field == field


def test_unknown_field_is_ignored_in_every_form() -> None:
    expected = EmbeddingIngested.from_fields(fields())

    assert EmbeddingIngested.from_fields(fields(colour=b"\xff") | {b"\xff": b"x"}) == expected
    assert EmbeddingIngested.from_kwargs(kwargs(colour="red", self=1, cls=2)) == expected
    assert EmbeddingIngested.of(**kwargs(colour="red", self=1, cls=2)) == expected


@pytest.mark.parametrize("name", ["pet_id", "media_id", "model", "embedding"])
def test_misspelt_required_field_is_reported_missing(name: str) -> None:
    flat, sent = fields(), kwargs()
    flat[name.encode() + b"s"], sent[f"{name}s"] = flat.pop(name.encode()), sent.pop(name)

    for refused in (
        refusal(lambda: EmbeddingIngested.from_fields(flat)),
        refusal(lambda: EmbeddingIngested.from_kwargs(sent)),
        refusal(lambda: EmbeddingIngested.of(**sent)),
    ):
        assert (refused.field, refused.problem) == (name, "is missing")


@pytest.mark.parametrize("name", ["schema", "event_id", "dim", "encoding"])
def test_flat_event_requires_all_fields_except_time_and_trace(name: str) -> None:
    assert refusal(lambda: EmbeddingIngested.from_fields(fields(**{name: None}))).field == name


def test_event_id_is_generated_for_a_python_caller() -> None:
    sent = {"pet_id": 1, "media_id": "m", "model": "a@1", "embedding": VALUES}

    assert EmbeddingIngested.of(**sent).event_id != EmbeddingIngested.of(**sent, event_id=None).event_id


@pytest.mark.parametrize(("name", "value"), [("schema", "embedding.ingested/2"), ("dim", 4), ("dim", True)])
def test_schema_and_dimension_stated_by_a_python_caller_are_checked(name: str, value: object) -> None:
    sent = {"pet_id": 1, "media_id": "m", "model": "a@1", "embedding": VALUES}

    refused = refusal(lambda: EmbeddingIngested.of(**sent, **{name: value}))

    assert refused.field == ("embedding" if value == 4 else name)


def test_event_round_trips_through_a_flat_entry() -> None:
    event = EmbeddingIngested.from_kwargs(kwargs(occurred_at="2026-01-31T12:00:00Z"))

    assert EmbeddingIngested.from_fields(event.to_fields()) == event
    assert event.to_fields()[b"embedding"] == F32LE


def test_all_invalid_fields_are_listed() -> None:
    sent = {"pet_id": 0, "model": "clip", "embedding": "AAAA", "encoding": "utf-7", "occurred_at": "now", "x": 1}

    refused = EmbeddingIngested.problems(sent)

    assert sorted(one.field for one in refused) == ["encoding", "media_id", "model", "occurred_at", "pet_id"]


@given(
    st.dictionaries(
        st.sampled_from([*FIELDS, "x"]),
        st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.lists(st.floats(), max_size=4),
    )
)
def test_event_is_refused_if_and_only_if_one_of_its_fields_is_invalid(changes: dict[str, Any]) -> None:
    sent = {"pet_id": 1, "media_id": "m", "model": "a@1", "embedding": VALUES} | changes
    listed = {refused.field for refused in EmbeddingIngested.problems(sent)}

    if listed:
        assert refusal(lambda: EmbeddingIngested.of(**sent)).field in listed
    else:
        EmbeddingIngested.of(**sent)


def test_error_gives_the_position_of_a_bad_value_but_no_values() -> None:
    refused = refusal(
        lambda: EmbeddingIngested.of(embedding=[0.123456, float("nan")], pet_id=1, media_id="m", model="a@1")
    )

    assert str(refused) == "embedding: value 1 is NaN; send finite numbers"


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-01-31T12:00:00.5+01:00", datetime(2026, 1, 31, 11, 0, 0, 500_000, tzinfo=UTC)),
        ("2016-12-31t23:59:60z", datetime(2016, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (None, None),
    ],
)
def test_time_of_an_event_is_in_utc(text: str | None, time: datetime | None) -> None:
    assert EmbeddingIngested.from_kwargs(kwargs(occurred_at=text)).time == time


def test_leap_second_and_newer_trace_version_are_accepted() -> None:
    trace = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more"

    event = EmbeddingIngested.from_kwargs(kwargs(occurred_at="2016-12-31T23:59:60z", traceparent=trace))

    assert event.traceparent == trace


@pytest.mark.parametrize(
    "embedding",
    [
        VALUES,
        tuple(VALUES),
        array("f", VALUES),
        array("d", VALUES),
        F32LE,
        bytearray(F32LE),
        memoryview(F32LE),
        np.array(VALUES, dtype=np.float32),
        np.array(VALUES, dtype=np.float64),
        np.array(VALUES, dtype=np.float16),
        np.array(VALUES, dtype=">f4"),
        np.array([*VALUES, 9, 9, 9], dtype=np.float32).reshape(2, 3)[0],
        np.array([VALUES, VALUES], dtype=np.float32).T[:, 0],
        list(np.array(VALUES, dtype=np.float32)),
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', '')}",
)
def test_embedding_may_be_any_sequence_or_buffer_of_numbers(embedding: object) -> None:
    event = EmbeddingIngested.of(embedding=embedding, pet_id=np.int64(42), media_id="m", model="a@1")

    assert event.embedding == F32LE
    assert type(event.pet_id) is int


@pytest.mark.parametrize(
    ("embedding", "encoding"),
    [
        ("[1, 2]", None),
        ("AAAA", "f32le"),
        (F32LE, "json"),
        ({1.0, 2.0}, None),
        ({"0": 1.0}, None),
        (None, None),
        (7, None),
        (np.ones((2, 3), dtype=np.float32), None),
        (np.array([True, False]), None),
        (np.array(["a", "b"]), None),
        ([1.0, True], None),
        ([1.0, 2.0], "base64-f32le"),
    ],
)
def test_value_that_is_not_a_vector_is_refused(embedding: object, encoding: str | None) -> None:
    refused = refusal(
        lambda: EmbeddingIngested.of(embedding=embedding, encoding=encoding, pet_id=1, media_id="m", model="a@1")
    )

    assert refused.field == "embedding"


@given(st.lists(st.floats(width=32), min_size=2, max_size=40))
def test_admission_and_engine_agree_on_which_vectors_are_usable(values: list[float]) -> None:
    def engine() -> str:
        try:
            as_vector(np.array(values, dtype=np.float32))
        except InvalidInput:
            return "refused"
        return "passed"

    def admission() -> str:
        try:
            EmbeddingIngested.of(embedding=values, pet_id=1, media_id="m", model="a@1")
        except InvalidInput:
            return "refused"
        return "passed"

    assert admission() == engine()


@given(
    st.dictionaries(
        st.sampled_from([name.decode() for name in fields()] + ["occurred_at", "traceparent", "x"]),
        st.binary(max_size=40),
    )
)
def test_arbitrary_bytes_give_an_event_or_invalid_input(
    changes: dict[str, bytes],
) -> None:
    try:
        answer: EmbeddingIngested | InvalidInput = EmbeddingIngested.from_fields(fields(**changes))
    except InvalidInput as refused:
        answer = refused

    if isinstance(answer, InvalidInput):
        assert answer.field in FIELDS
    else:
        assert EmbeddingIngested.from_kwargs(answer.to_kwargs()) == answer


@pytest.mark.parametrize(
    "media_id",
    [
        "\u202egpj.exe",
        "a\u200bb",
        "a\u200db",
        "\u200dcat",
        "cat\u200d",
        "a\ufeffb",
        "a\u2066b",
        "a\u00adb",
        "a\U000e0041b",
    ],
)
@pytest.mark.parametrize("name", ["media_id", "event_id"])
def test_id_with_an_invisible_or_bidi_character_is_refused(name: str, media_id: str) -> None:
    fields = {"pet_id": 7, "media_id": "m", "model": "clip@1", "embedding": [1.0, 0.0]} | {name: media_id}

    with pytest.raises(InvalidInput) as refused:
        EmbeddingIngested.of(**fields)

    assert (refused.value.field, refused.value.hint) == (name, "send printable text")


@pytest.mark.parametrize("media_id", ["Bärli am Strand.jpg", "👩‍👩‍👧‍👦.png", "🏳️‍🌈", "می‌خواهم", "क्‍ष", "写真 1"])
def test_id_in_any_script_or_with_joined_emoji_is_accepted(media_id: str) -> None:
    event = EmbeddingIngested.of(pet_id=7, media_id=media_id, model="clip@1", embedding=[1.0, 0.0])

    assert event.media_id == media_id
