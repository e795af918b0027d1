"""The W3C Trace Context of the running code; works without OpenTelemetry.

Without OpenTelemetry no spans are created, but the traceparent of a request is passed on. An upload and its assignment
thus form one trace even if the server between them creates no span.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from sploot_cluster.event import W3C_TRACEPARENT

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

# Option in which a message carries its sender's context; a flat event has a field of this name.
TRACEPARENT: Final = "traceparent"
# Option in which a retry carries the context of the previous attempt.
RETRIED_FROM: Final = "retried_from"

_of_request: ContextVar[str | None] = ContextVar("traceparent of the request", default=None)


class TakeTraceparent:
    """ASGI middleware that adds jobs to the trace in the request's ``traceparent`` header.

    An invalid header is ignored; the request does not fail.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = [value.decode("latin-1") for name, value in scope.get("headers", ()) if name == TRACEPARENT.encode()]
        # if there are two headers, neither can be trusted
        is_usable = len(found) == 1 and W3C_TRACEPARENT.matches(found[0])
        token = _of_request.set(found[0] if is_usable else None)
        try:
            await self._app(scope, receive, send)
        finally:
            _of_request.reset(token)


def current_traceparent() -> str | None:
    """Return the context of the current span or else of the current request, or None if there is neither."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return _of_request.get()
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return _of_request.get()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def traceparent_of(kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    """Return the sender's context from a message; a context in the event itself takes precedence."""
    found = kwargs.get(TRACEPARENT) or options.get(TRACEPARENT)
    return found if isinstance(found, str) else None


def trace_id_of(traceparent: str | None) -> str | None:
    """Return the trace id of a traceparent, or None if it is invalid."""
    parts = traceparent.split("-") if traceparent else []
    return parts[1] if len(parts) >= 4 else None
