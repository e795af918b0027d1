"""Flat events of other languages: what becomes a message, and what a dead letter says."""

from __future__ import annotations

import base64
import json
import struct

import dramatiq
import pytest

from broker import UndecodableEntry
from tasks.contracts import EMBEDDING_INGESTED, EmbeddingIngested
from tasks.wire import DECODERS, decode_embedding

FIELDS = {
    b"schema": b"embedding.ingested/1",
    b"event_id": b"7d1c",
    b"pet_id": b"42",
    b"media_id": b"beach.jpg",
    b"model": b"clip@1",
    b"dim": b"2",
    b"encoding": b"f32le",
    b"embedding": struct.pack("<2f", 0.5, -1),
}


def test_an_event_becomes_a_message_of_its_queue() -> None:
    message = DECODERS[EMBEDDING_INGESTED]("1700000000123-4", FIELDS)

    assert (message.queue_name, message.actor_name) == ("embedding.ingested", "cluster_embedding")
    assert message.message_id == "7d1c"
    assert message.message_timestamp == 1_700_000_000_123
    assert message.options == {}


def test_the_message_can_be_encoded_again_for_a_retry() -> None:
    message = decode_embedding("1-0", FIELDS)

    again = dramatiq.Message.decode(message.encode())

    assert again == message
    assert EmbeddingIngested.from_kwargs(again.kwargs) == EmbeddingIngested.from_fields(FIELDS)


@pytest.mark.parametrize(
    ("encoding", "embedding"),
    [
        (b"f16le", struct.pack("<2e", 0.5, -1)),
        (b"base64-f32le", base64.b64encode(FIELDS[b"embedding"])),
        (b"json", json.dumps([0.5, -1]).encode()),
    ],
)
def test_every_encoding_becomes_the_same_message(encoding: bytes, embedding: bytes) -> None:
    message = decode_embedding("1-0", FIELDS | {b"encoding": encoding, b"embedding": embedding})

    assert message.kwargs == decode_embedding("1-0", FIELDS).kwargs


def test_an_event_that_cannot_be_used_names_field_and_mend() -> None:
    with pytest.raises(UndecodableEntry) as refused:
        decode_embedding("1-0", FIELDS | {b"pet_id": b"rex"})

    assert (refused.value.field, refused.value.problem) == ("pet_id", "'rex' is not a decimal number")
    assert refused.value.mend == "send digits, such as 42"


def test_an_entry_of_somebody_else_is_told_what_is_missing() -> None:
    with pytest.raises(UndecodableEntry) as refused:
        decode_embedding("1-0", {b"hello": b"world"})

    assert (refused.value.field, refused.value.problem) == ("schema", "is missing")
