"""W3C Trace Context of the code that runs, without needing OpenTelemetry: where nobody loaded it, nobody traces."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final

# Where a message carries the context of whoever sent it; a flat event has a field of that name.
TRACEPARENT: Final = "traceparent"


def current_traceparent() -> str | None:
    """The context of the span that is current here; None where there is none."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def traceparent_of(kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    """What a message says of its sender's context; the sender's own word in the event goes first."""
    found = kwargs.get(TRACEPARENT) or options.get(TRACEPARENT)
    return found if isinstance(found, str) else None


def trace_id_of(traceparent: str | None) -> str | None:
    """The second part; None for what is no traceparent."""
    parts = traceparent.split("-") if traceparent else []
    return parts[1] if len(parts) >= 4 else None
