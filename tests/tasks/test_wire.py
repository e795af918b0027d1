"""Admission to the work streams: flat events from any language, and Dramatiq messages."""

from __future__ import annotations

import base64
import json
import struct
import time
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.middleware import Callbacks, CurrentMessage, Pipelines, Retries

from broker import RedisStreamsBroker, UndecodableEntry
from sploot_cluster.event import EmbeddingIngested
from tasks.client import ClusterTasks
from tasks.composition import build_worker
from tasks.contracts import (
    CLUSTER_EMBEDDING,
    CLUSTER_FEEDBACK,
    EMBEDDING_INGESTED,
    GROUP,
    QUEUE_OF,
    QUEUES,
    stream_of,
)
from tasks.settings import Settings
from tasks.wire import CHECKS, DECODERS, decode_embedding
from tests.support import eventually

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


def test_event_becomes_a_message_of_its_queue() -> None:
    message = DECODERS[EMBEDDING_INGESTED]("1700000000123-4", FIELDS)

    assert (message.queue_name, message.actor_name) == ("embedding.ingested", "cluster_embedding")
    assert message.message_id == "7d1c"
    assert message.message_timestamp == 1_700_000_000_123
    assert message.options == {}


def test_decoded_message_can_be_encoded_for_a_retry() -> None:
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


def test_error_for_an_invalid_event_names_field_and_hint() -> None:
    with pytest.raises(UndecodableEntry) as refused:
        decode_embedding("1-0", FIELDS | {b"pet_id": b"rex"})

    assert (refused.value.field, refused.value.problem) == ("pet_id", "'rex' is not a whole number")
    assert refused.value.hint == "send 1 to 9223372036854775807 in digits, such as 42"


def test_error_for_a_foreign_entry_names_the_missing_field() -> None:
    with pytest.raises(UndecodableEntry) as refused:
        decode_embedding("1-0", {b"hello": b"world"})

    assert (refused.value.field, refused.value.problem) == ("schema", "is missing")


def test_event_with_an_id_ahead_of_the_clock_gets_the_current_time() -> None:
    before = int(1000 * time.time())

    for entry_id in (f"{before * 1000}-0", "18446744073709551615-18446744073709551615"):
        message = decode_embedding(entry_id, FIELDS)

        assert before <= message.message_timestamp <= int(1000 * time.time())


# -- messages ----------------------------------------------------------------------------------------------------------


def sent(actor: str = CLUSTER_EMBEDDING, queue: str = EMBEDDING_INGESTED, **options: Any) -> dramatiq.Message[Any]:
    return dramatiq.Message(queue_name=queue, actor_name=actor, args=(), kwargs={"pet_id": 7}, options=options)


@pytest.mark.parametrize(("actor", "queue"), QUEUE_OF.items())
def test_actor_is_accepted_only_in_its_own_queue(actor: str, queue: str) -> None:
    CHECKS[queue](sent(actor, queue))

    for other in set(QUEUES) - {queue}:
        with pytest.raises(UndecodableEntry) as refused:
            CHECKS[other](sent(actor, other))
        assert (refused.value.field, refused.value.hint) == ("actor_name", f"enqueue it on {queue}")


def test_every_actor_of_a_worker_has_a_known_queue() -> None:
    broker = build_worker(Settings(cold_store="file:///var/lib/vectors"))

    assert {name: actor.queue_name for name, actor in broker.actors.items()} == QUEUE_OF
    assert not any(isinstance(one, Pipelines | Callbacks) for one in broker.middleware)
    broker.close()


@pytest.mark.parametrize(
    "option",
    [
        {"pipe_target": {"queue_name": "cluster.feedback", "actor_name": "dismiss_media"}},
        {"pipe_ignore": True},
        {"group_completion_uuid": "g", "group_completion_callbacks": [{}]},
        {"on_success": "dismiss_media"},
        {"on_failure": "dismiss_media"},
        {"on_retry_exhausted": "dismiss_media"},
        {"unique_key": "recluster:7"},
        {"unique_for_ms": 10**15},
        {"ordering_key": "7"},
        {"max_retries": 10**9},
        {"min_backoff": 1},
        {"throws": "x"},
        {"time_limit": 10**9},
        {"max_age": 1},
        {"delay": 10**12},
        {"eta": 10**20},
        {"scheduled_at": "2026-01-01T00:00:00Z"},
        {"\ud800" * 10_000: 1},
    ],
    ids=lambda option: next(iter(option))[:20],
)
def test_unknown_option_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(UndecodableEntry) as refused:
        CHECKS[EMBEDDING_INGESTED](sent(**option))

    assert refused.value.field.startswith("options.")
    assert len(str(refused.value)) < 400
    assert "leave it out" in refused.value.hint


@pytest.mark.parametrize(
    "option", [{"ordering_key": "7"}, {"concurrency_key": "7"}, {"rate": "9/s"}, {"priority": 1}], ids=str
)
@pytest.mark.parametrize("queue", QUEUES)
def test_limits_per_key_are_refused_in_every_queue(queue: str, option: dict[str, str]) -> None:
    actor = next(actor for actor, of_actor in QUEUE_OF.items() if of_actor == queue)

    with pytest.raises(UndecodableEntry) as refused:
        CHECKS[queue](sent(actor, queue, **option))

    assert refused.value.field == f"options.{next(iter(option))}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retries", -(10**9)),
        ("retries", "x"),
        ("retries", True),
        ("retries", 1.5),
        ("retries", 10**9),
        ("traceback", 5),
        ("requeue_timestamp", "x"),
        ("requeue_timestamp", 10**300),
        ("tracked", [1]),
        ("tracked", "yes"),
        ("traceparent", 5),
        ("traceparent", "x" * 1_000),
        ("retried_from", {"a": 1}),
    ],
)
def test_option_with_an_invalid_value_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UndecodableEntry) as refused:
        CHECKS[EMBEDDING_INGESTED](sent(**{name: value}))

    assert refused.value.field == f"options.{name}"
    assert refused.value.hint.startswith("send ")


def test_messages_of_clients_and_retries_are_accepted(redis_client: redis.Redis) -> None:
    """Run the product's own middleware on an item that fails once."""
    attempts: list[dict[str, Any]] = []

    def fail_once(**_: Any) -> None:
        message = CurrentMessage.get_current_message()
        assert message is not None
        attempts.append(dict(message.options))
        if len(attempts) == 1:
            raise RuntimeError("not yet")

    broker = RedisStreamsBroker(
        client=redis_client, group=GROUP, middleware=[Retries(), CurrentMessage()], decoders=DECODERS, checks=CHECKS
    )
    dramatiq.actor(actor_name=CLUSTER_EMBEDDING, queue_name=EMBEDDING_INGESTED, broker=broker, min_backoff=1)(fail_once)
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=50)
    worker.start()
    try:
        with ClusterTasks(client=redis_client) as tasks:
            tasks.ingest(pet_id=7, media_id="m", model="clip@1", embedding=[1.0, 0.0])
        eventually(lambda: len(attempts) == 2)
        assert broker.dead_letters(EMBEDDING_INGESTED).list() == []
    finally:
        worker.stop()
        broker.close()

    assert attempts[0] == {"tracked": True}
    assert {"tracked", "retries", "traceback", "requeue_timestamp"} == set(attempts[1])


def test_forged_message_becomes_a_dead_letter_naming_the_option(redis_client: redis.Redis) -> None:
    ran: list[str] = []
    broker = RedisStreamsBroker(client=redis_client, group=GROUP, middleware=[], decoders=DECODERS, checks=CHECKS)
    for actor, queue in ((CLUSTER_EMBEDDING, EMBEDDING_INGESTED), ("dismiss_media", CLUSTER_FEEDBACK)):
        dramatiq.actor(actor_name=actor, queue_name=queue, broker=broker)(lambda **_: ran.append("ran"))
    forged = (
        sent(pipe_target=sent("dismiss_media", CLUSTER_FEEDBACK).asdict()),
        sent("dismiss_media"),
    )
    for message in forged:
        redis_client.xadd(stream_of(EMBEDDING_INGESTED), {"message": message.encode()})
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=50)
    worker.start()
    try:
        eventually(lambda: len(broker.dead_letters(EMBEDDING_INGESTED)) == 2)
    finally:
        worker.stop()
    dead_letters = broker.dead_letters(EMBEDDING_INGESTED).list()
    broker.close()

    assert {(dead_letter.reason, dead_letter.field) for dead_letter in dead_letters} == {
        ("undecodable", "options.pipe_target"),
        ("undecodable", "actor_name"),
    }
    assert all(dead_letter.hint for dead_letter in dead_letters)
    assert ran == []
