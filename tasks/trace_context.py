"""W3C Trace Context of the code that runs, without needing OpenTelemetry: where nobody loaded it, nobody makes spans.

What a request brought is passed on all the same, so that an upload and its assignment are one trace although the server
between them makes no span of its own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

# Where a message carries the context of whoever sent it; a flat event has a field of that name.
TRACEPARENT: Final = "traceparent"
# The attempt before, in the options of a retry.
RETRIED_FROM: Final = "retried_from"

_TRACE_IDS: Final = r"(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
# W3C Trace Context: version ff and ids of zeros are invalid; versions after 00 may carry more at the end.
FORM_OF_TRACEPARENT: Final = re.compile(rf"00-{_TRACE_IDS}|(?!00|ff)[0-9a-f]{{2}}-{_TRACE_IDS}(-.*)?")

_of_request: ContextVar[str | None] = ContextVar("traceparent of the request", default=None)


class TakeTraceparent:
    """ASGI: what a request enqueues belongs to the trace in its ``traceparent`` header; a header that is none begins no
    trace and breaks no request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = [value.decode("latin-1") for name, value in scope.get("headers", ()) if name == TRACEPARENT.encode()]
        # one alone: of two nobody can say which is meant
        is_usable = len(found) == 1 and FORM_OF_TRACEPARENT.fullmatch(found[0])
        token = _of_request.set(found[0] if is_usable else None)
        try:
            await self._app(scope, receive, send)
        finally:
            _of_request.reset(token)


def current_traceparent() -> str | None:
    """The context of the span that is current here, or of the request that is answered; None where there is none."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return _of_request.get()
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return _of_request.get()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def traceparent_of(kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    """What a message says of its sender's context; the sender's own word in the event goes first."""
    found = kwargs.get(TRACEPARENT) or options.get(TRACEPARENT)
    return found if isinstance(found, str) else None


def trace_id_of(traceparent: str | None) -> str | None:
    """The second part; None for what is no traceparent."""
    parts = traceparent.split("-") if traceparent else []
    return parts[1] if len(parts) >= 4 else None
