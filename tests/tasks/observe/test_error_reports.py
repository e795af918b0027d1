"""Sentry gets one report of every permanently failed job, without its payload."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import pytest
import redis
import sentry_sdk
from dramatiq.middleware import Retries
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from broker import RedisStreamsBroker
from sploot_cluster.errors import InvalidInput
from sploot_cluster.event import EmbeddingIngested
from tasks.contracts import CLUSTER_EMBEDDING, EMBEDDING_INGESTED, GROUP
from tasks.observe.error_reports import ReportDeadJobs, configure_error_reports
from tasks.settings import Settings
from tasks.wire import DECODERS
from tests.support import eventually
from tests.system.events import flat_event
from tests.tasks.queue_ops.desk import KEYS

DSN = "https://public@sentry.invalid/1"


class InMemory(Transport):
    """A Sentry transport that keeps events in memory."""

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.events: list[dict[str, Any]] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        event = envelope.get_event()
        if event is not None:
            self.events.append(dict(event))


@pytest.fixture
def transport() -> Iterator[InMemory]:
    kept = InMemory()
    configure_error_reports(Settings(sentry_dsn=DSN, environment="staging"), transport=kept)
    yield kept
    sentry_sdk.get_client().close()
    sentry_sdk.get_global_scope().set_client(None)


@contextmanager
def worker_running(client: redis.Redis, run: Any, *, max_retries: int) -> Iterator[RedisStreamsBroker]:
    broker = RedisStreamsBroker(
        client=client, group=GROUP, middleware=[Retries(), ReportDeadJobs()], decoders=DECODERS, lease_ms=2_000
    )
    declare = dramatiq.actor(
        actor_name=CLUSTER_EMBEDDING,
        queue_name=EMBEDDING_INGESTED,
        broker=broker,
        max_retries=max_retries,
        min_backoff=1,
        max_backoff=1,
        throws=InvalidInput,
    )
    declare(run)
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=2)
    worker.start()
    try:
        yield broker
    finally:
        worker.stop()
        broker.close()


def add(client: Any, event: Any) -> None:
    client.xadd(KEYS.stream, event)


def test_failed_job_is_reported_once_despite_retries(redis_client: redis.Redis, transport: InMemory) -> None:
    ran = []

    def run(media_id: str, embedding: str, **_: Any) -> None:
        ran.append(media_id)
        vector = embedding * 3
        raise OSError(f"cannot compute with {vector}")

    with worker_running(redis_client, run, max_retries=2):
        add(redis_client, flat_event(pet_id=42, number=1))
        eventually(lambda: len(transport.events) == 1)
        eventually(lambda: redis_client.xlen(KEYS.stream) == 0)

    (event,) = transport.events
    assert ran == ["media-1"] * 3
    assert event["fingerprint"] == [CLUSTER_EMBEDDING, "OSError"]
    assert (event["environment"], event["tags"]["actor"], event["tags"]["reason"]) == (
        "staging",
        CLUSTER_EMBEDDING,
        "failed",
    )
    job = event["contexts"]["job"]
    assert (job["pet_id"], job["message_id"]) == (42, "event-42-1")
    (exception,) = event["exception"]["values"]
    assert exception["type"] == "OSError"
    assert exception["stacktrace"]["frames"][-1]["function"] == "run"


def test_reports_contain_no_embedding_and_no_argument(redis_client: redis.Redis, transport: InMemory) -> None:
    sent = flat_event(pet_id=42, number=1)
    event = EmbeddingIngested.from_fields({str(name).encode(): _bytes(value) for name, value in sent.items()})
    text = str(event.to_kwargs()["embedding"])

    def run(**kwargs: Any) -> None:
        raise ValueError(f"{kwargs} {list(event.vector())} {event.embedding!r}")

    with worker_running(redis_client, run, max_retries=0):
        add(redis_client, sent)
        eventually(lambda: len(transport.events) == 1)

    reported = json.dumps(transport.events, default=repr)
    assert text not in reported
    assert str(event.vector()[3]) not in reported
    assert repr(event.embedding)[2:60] not in reported
    assert "vars" not in reported, "local variables are reported"


def test_undecodable_entry_is_reported(redis_client: redis.Redis, transport: InMemory) -> None:
    with worker_running(redis_client, lambda **_: None, max_retries=0):
        add(redis_client, flat_event(pet_id=42, number=1) | {"dim": "17"})
        eventually(lambda: len(transport.events) == 1)

    (event,) = transport.events
    assert event["tags"]["reason"] == "undecodable"
    assert event["fingerprint"][0] == EMBEDDING_INGESTED
    assert event["contexts"]["job"]["pet_id"] == 42
    assert event["contexts"]["job"]["field"] == "embedding"


def test_job_that_succeeds_after_retries_is_not_reported(redis_client: redis.Redis, transport: InMemory) -> None:
    ran = []

    def run(media_id: str, **_: Any) -> None:
        ran.append(media_id)
        if len(ran) < 3:
            raise OSError("not yet")

    with worker_running(redis_client, run, max_retries=5):
        add(redis_client, flat_event(pet_id=42, number=1))
        eventually(lambda: len(ran) == 3)
        eventually(lambda: redis_client.xlen(KEYS.stream) == 0)

    assert transport.events == []


def test_nothing_is_reported_without_a_dsn(redis_client: redis.Redis) -> None:
    assert configure_error_reports(Settings()) is False

    def run(**_: Any) -> None:
        raise OSError("no")

    with worker_running(redis_client, run, max_retries=0):
        add(redis_client, flat_event(pet_id=42, number=1))
        eventually(lambda: redis_client.xlen(KEYS.dead) == 1)


def test_dsn_is_refused_if_the_sentry_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentry_sdk", None)

    with pytest.raises(InvalidInput, match="SENTRY_DSN: needs sentry-sdk"):
        configure_error_reports(Settings(sentry_dsn=DSN))


@pytest.mark.slow
def test_worker_configures_reports_before_it_creates_its_broker() -> None:
    watched = """
import sentry_sdk, broker.broker
made = broker.broker.RedisStreamsBroker.__init__
def watch(self, *args, **kwargs):
    print("active" if sentry_sdk.get_client().is_active() else "asleep")
    made(self, *args, **kwargs)
broker.broker.RedisStreamsBroker.__init__ = watch
import tasks.worker
"""
    done = subprocess.run(
        [sys.executable, "-c", watched],
        env={**os.environ, "SENTRY_DSN": DSN},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert set(done.stdout.split()) == {"active"}


def _bytes(value: bytes | str | int | float) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
