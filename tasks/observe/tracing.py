"""Spans of jobs, linked to the spans of their senders. Needs the extra [otel].

A message carries its sender's W3C ``traceparent`` in its options or as a field of a flat event. The first run of a job
is a child of that context, so an upload and its assignment form one trace. A run after a failure or a dead worker may
happen hours later, so it starts a new trace, linked to the sender and to the previous attempt. Names and attributes
follow OpenTelemetry's messaging conventions, which are still in development. Each job of a batch has its own span,
which lasts as long as the batch.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import dramatiq
from dramatiq.broker import Broker, MessageProxy

from sploot_cluster.errors import InvalidInput
from tasks.contracts import GROUP, stream_of
from tasks.observe.logs import SERVICE, pet_id_of
from tasks.settings import Settings
from tasks.trace_context import RETRIED_FROM, TRACEPARENT, current_traceparent, traceparent_of

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, TracerProvider


def tracing_middleware(settings: Settings) -> list[dramatiq.Middleware]:
    """Return the middleware that traces jobs, or an empty list if ``OTEL_EXPORTER_OTLP_ENDPOINT`` is not set.

    Raises:
        InvalidInput: the variable is set, but the extra [otel] is not installed.
    """
    if not settings.otlp_endpoint:
        return []
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as missing:
        hint = "pip install 'sploot-cluster[otel]', or unset the variable"
        raise InvalidInput("OTEL_EXPORTER_OTLP_ENDPOINT", f"needs {missing.name}", hint) from None
    resource = Resource.create(
        {"service.name": SERVICE, "deployment.environment.name": settings.environment, "process.pid": os.getpid()}
    )
    provider = TracerProvider(resource=resource)
    # the exporter itself reads the endpoint and all other OTEL_* variables
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return [TraceJobs(provider)]


class TraceJobs(dramatiq.Middleware):
    """Middleware that creates a span for every message that is sent and for every run. Place it after ``NameJobs``.

    Args:
        provider: receives the spans.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("sploot-cluster")
        self._local = threading.local()

    def before_enqueue(self, broker: Broker, message: dramatiq.Message[Any], delay: int | None) -> None:
        if message.options.get("retries"):
            # the current span is that of the failed run; the sender's context stays in the message
            if (failed := current_traceparent()) is not None:
                message.options[RETRIED_FROM] = failed
            return
        from opentelemetry.trace import SpanKind

        attributes = self._attributes(message, operation="send")
        with self._tracer.start_as_current_span(
            f"send {message.queue_name}", kind=SpanKind.PRODUCER, attributes=attributes
        ):
            message.options[TRACEPARENT] = current_traceparent()

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        from opentelemetry.context import Context, attach
        from opentelemetry.trace import SpanKind, set_span_in_context

        sender = traceparent_of(message.kwargs, message.options)
        attempt, deliveries = message.options.get("retries", 0) + 1, getattr(message, "deliveries", 1)
        is_first = attempt == 1 and deliveries == 1
        links = [link for one in (sender, message.options.get(RETRIED_FROM)) if (link := _link(one)) is not None]
        attributes = self._attributes(message, operation="process") | {
            "messaging.consumer.group.name": GROUP,
            "sploot.attempt": attempt,
            "sploot.deliveries": deliveries,
        }
        if (pet_id := pet_id_of(message)) is not None:
            attributes["sploot.pet_id"] = pet_id
        span = self._tracer.start_span(
            f"process {message.queue_name}",
            kind=SpanKind.CONSUMER,
            context=_context(sender) if is_first else Context(),
            links=[] if is_first else links,
            attributes=attributes,
        )
        open_spans: list[tuple[Span, Any]] = self._local.__dict__.setdefault("spans", [])
        open_spans.append((span, attach(set_span_in_context(span))))

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        self._end(exception)

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        if open_spans := getattr(self._local, "spans", None):
            open_spans[-1][0].set_attribute("sploot.skipped", True)
        self._end(None)

    def after_worker_shutdown(self, broker: Broker, worker: dramatiq.Worker) -> None:
        if (flush := getattr(self._provider, "force_flush", None)) is not None:
            flush()

    def _end(self, exception: BaseException | None) -> None:
        from opentelemetry.context import detach
        from opentelemetry.trace import Status, StatusCode

        open_spans: list[tuple[Span, Any]] | None = getattr(self._local, "spans", None)
        if not open_spans:
            return
        span, token = open_spans.pop()
        if exception is not None:
            # only the class, because the text of an error may contain anything
            span.set_attribute("error.type", type(exception).__qualname__)
            span.set_status(Status(StatusCode.ERROR, type(exception).__qualname__))
        span.end()
        detach(token)

    @staticmethod
    def _attributes(message: dramatiq.Message[Any] | MessageProxy, *, operation: str) -> dict[str, str | int]:
        return {
            "messaging.system": "redis",
            "messaging.destination.name": stream_of(message.queue_name),
            "messaging.operation.name": operation,
            "messaging.operation.type": operation,
            "messaging.message.id": message.message_id,
            "sploot.actor": message.actor_name,
        }


def _context(traceparent: str | None) -> Context:
    """Return the context of a traceparent, or an empty context if it is missing or invalid."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {TRACEPARENT: traceparent} if traceparent else {}
    return TraceContextTextMapPropagator().extract(carrier, context=Context())


def _link(traceparent: object) -> Link | None:
    from opentelemetry.trace import Link, get_current_span

    if not isinstance(traceparent, str):
        return None
    context = get_current_span(_context(traceparent)).get_span_context()
    return Link(context) if context.is_valid else None
