"""One trace from the producer of a job to its run; retries and redeliveries are linked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.middleware import Retries
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from broker import RedisStreamsBroker
from sploot_cluster.errors import InvalidInput
from tasks.client import ClusterTasks
from tasks.composition import build_app
from tasks.contracts import CLUSTER_EMBEDDING, CLUSTER_RECLUSTER, EMBEDDING_INGESTED, GROUP, stream_of
from tasks.observe.logs import NameJobs
from tasks.observe.tracing import TraceJobs, tracing_middleware
from tasks.settings import Settings
from tasks.wire import DECODERS
from tests.sploot_cluster.api.front import API, client_of
from tests.support import eventually
from tests.system.events import flat_event
from tests.tasks.queue_ops.desk import KEYS

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


class Traces:
    """A provider that keeps spans in memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def spans(self, name: str) -> Sequence[ReadableSpan]:
        """Return the ended spans in the order of their start."""
        ended = [span for span in self._exporter.get_finished_spans() if span.name.startswith(name)]
        return sorted(ended, key=lambda span: span.start_time or 0)


@pytest.fixture
def traces() -> Traces:
    return Traces()


@contextmanager
def worker_running(client: redis.Redis, traces: Traces, run: Any) -> Iterator[RedisStreamsBroker]:
    middleware = [NameJobs(), TraceJobs(traces.provider), Retries()]
    broker = RedisStreamsBroker(client=client, group=GROUP, middleware=middleware, decoders=DECODERS, lease_ms=2_000)
    declare = dramatiq.actor(
        actor_name=CLUSTER_EMBEDDING,
        queue_name=EMBEDDING_INGESTED,
        broker=broker,
        min_backoff=1,
        max_backoff=1,
        max_retries=3,
    )
    declare(run)
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=2)
    worker.start()
    try:
        yield broker
    finally:
        worker.stop()
        broker.close()


def upload(client: Any) -> Any:
    """Add a flat event with a traceparent; return its entry id."""
    return client.xadd(KEYS.stream, flat_event(pet_id=42, number=1) | {"traceparent": TRACEPARENT})


def hexadecimal(span: ReadableSpan) -> tuple[str, str]:
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def links_of(span: ReadableSpan) -> list[tuple[str, str]]:
    return [(f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}") for link in span.links]


def test_flat_event_continues_the_trace_of_its_upload(redis_client: redis.Redis, traces: Traces) -> None:
    with worker_running(redis_client, traces, lambda **_: None):
        upload(redis_client)
        eventually(lambda: traces.spans("process"))

    (span,) = traces.spans("process")
    assert span.name == "process embedding.ingested"
    assert span.kind is SpanKind.CONSUMER
    assert hexadecimal(span)[0] == TRACE_ID
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == SPAN_ID
    attributes = dict(span.attributes or {})
    assert attributes["messaging.destination.name"] == "streams:embedding.ingested"
    assert attributes["messaging.consumer.group.name"] == GROUP
    assert (attributes["messaging.operation.type"], attributes["messaging.message.id"]) == ("process", "event-42-1")
    assert (attributes["sploot.pet_id"], attributes["sploot.attempt"]) == (42, 1)


def test_message_of_a_traced_process_continues_its_trace(redis_client: redis.Redis, traces: Traces) -> None:
    tracer = traces.provider.get_tracer("auth service")
    with worker_running(redis_client, traces, lambda **_: None), ClusterTasks(client=redis_client) as tasks:
        with tracer.start_as_current_span("upload") as uploading:
            tasks.ingest(pet_id=1, media_id="m", model="clip@1", embedding=[1.0, 2.0])
        eventually(lambda: traces.spans("process"))

    (span,) = traces.spans("process")
    assert span.parent is not None
    assert span.parent.span_id == uploading.get_span_context().span_id
    assert span.parent.trace_id == uploading.get_span_context().trace_id


def test_span_of_a_message_sent_by_a_job_is_a_child_of_its_run(redis_client: redis.Redis, traces: Traces) -> None:
    ran = []

    def run(media_id: str, **kwargs: Any) -> None:
        ran.append(media_id)
        if len(ran) == 1:
            message: dramatiq.Message[Any]
            message = dramatiq.Message(EMBEDDING_INGESTED, CLUSTER_EMBEDDING, (), {"media_id": "next"}, {})
            broker.enqueue(message)

    with worker_running(redis_client, traces, run) as broker:
        upload(redis_client)
        eventually(lambda: len(traces.spans("process")) == 2)

    first, second = traces.spans("process")
    (sent,) = traces.spans("send")
    assert sent.kind is SpanKind.PRODUCER
    assert sent.parent is not None
    assert second.parent is not None
    assert f"{sent.parent.span_id:016x}" == hexadecimal(first)[1]
    assert f"{second.parent.span_id:016x}" == hexadecimal(sent)[1]
    assert {hexadecimal(span)[0] for span in (first, sent, second)} == {TRACE_ID}


def test_retry_starts_a_trace_linked_to_producer_and_last_attempt(redis_client: redis.Redis, traces: Traces) -> None:
    ran = []

    def run(media_id: str, embedding: str, **_: Any) -> None:
        ran.append(media_id)
        if len(ran) < 3:
            raise OSError(f"no luck with {embedding}")

    with worker_running(redis_client, traces, run):
        upload(redis_client)
        eventually(lambda: len(traces.spans("process")) == 3)

    first, second, third = traces.spans("process")
    assert links_of(first) == []
    assert links_of(second) == [(TRACE_ID, SPAN_ID), hexadecimal(first)]
    assert links_of(third) == [(TRACE_ID, SPAN_ID), hexadecimal(second)]
    assert second.parent is None
    assert len({hexadecimal(span)[0] for span in (first, second, third)}) == 3
    assert [span.status.status_code for span in (first, second, third)] == [
        StatusCode.ERROR,
        StatusCode.ERROR,
        StatusCode.UNSET,
    ]
    assert dict(first.attributes or {})["error.type"] == "OSError"
    assert "no luck" not in first.to_json(), "a text may hold an embedding"


def test_redelivery_is_linked_to_the_producer(redis_client: redis.Redis, traces: Traces) -> None:
    entry_id = upload(redis_client)
    redis_client.xgroup_create(KEYS.stream, GROUP, id="0")
    redis_client.xreadgroup(GROUP, "dead", {KEYS.stream: ">"})
    redis_client.xclaim(KEYS.stream, GROUP, "dead", 0, [entry_id], idle=60_000, justid=True)

    with worker_running(redis_client, traces, lambda **_: None):
        eventually(lambda: traces.spans("process"), within_s=20)

    (span,) = traces.spans("process")
    assert span.parent is None
    assert links_of(span) == [(TRACE_ID, SPAN_ID)]
    assert dict(span.attributes or {})["sploot.deliveries"] == 2


def test_invalid_traceparent_starts_a_new_trace(redis_client: redis.Redis, traces: Traces) -> None:
    message: dramatiq.Message[Any] = dramatiq.Message(
        EMBEDDING_INGESTED, CLUSTER_EMBEDDING, (), {"media_id": "m", "traceparent": "nonsense"}, {}
    )
    with worker_running(redis_client, traces, lambda **_: None):
        redis_client.xadd(KEYS.stream, {"message": message.encode()})
        eventually(lambda: traces.spans("process"))

    (span,) = traces.spans("process")
    assert span.parent is None


def test_traceparent_of_a_request_reaches_its_job(redis_client: redis.Redis, redis_url: str, traces: Traces) -> None:
    api = client_of(build_app(Settings(redis_url=redis_url)))
    body = {"pet_id": 42, "media_id": "m", "model": "clip@1", "embedding": [1.0, 2.0]}
    with worker_running(redis_client, traces, lambda **_: None):
        answer = api.post(f"{API}/embeddings", json=body, headers={"traceparent": TRACEPARENT})
        eventually(lambda: traces.spans("process"))

    (span,) = traces.spans("process")
    assert answer.status_code == 202
    assert hexadecimal(span)[0] == TRACE_ID
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == SPAN_ID


@pytest.mark.parametrize("given", [[], ["nonsense"], [f"00-{'0' * 32}-{SPAN_ID}-01"], [TRACEPARENT, TRACEPARENT]])
def test_request_without_a_valid_traceparent_is_accepted_and_enqueues_none(
    redis_client: redis.Redis, redis_url: str, given: list[str]
) -> None:
    api = client_of(build_app(Settings(redis_url=redis_url)))

    headers = [("traceparent", one) for one in given]
    answer = api.post(f"{API}/clusters/recluster", json={"pet_id": 42}, headers=headers)

    assert answer.status_code == 202
    client: Any = redis_client
    ((_, entry),) = client.xrange(stream_of(CLUSTER_RECLUSTER))
    assert b"traceparent" not in entry[b"message"]


def test_tracing_needs_an_endpoint_and_the_installed_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    assert tracing_middleware(Settings()) == []
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)

    with pytest.raises(InvalidInput, match="OTEL_EXPORTER_OTLP_ENDPOINT"):
        tracing_middleware(Settings(otlp_endpoint="http://127.0.0.1:4318"))
