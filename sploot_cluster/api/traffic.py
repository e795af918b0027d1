"""ASGI middleware that reports the operation, status and duration of every request.

A request is reported by the id of its operation, never by its path, so that the number of names is bounded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# the operation of a request for a path that does not exist, or one that was refused before routing
OTHER: Final = "other"


@dataclass(frozen=True, slots=True)
class Answered:
    """The report on an answered request.

    Attributes:
        operation: the id of its operation, or ``OTHER``.
        status: the status of the response.
        duration_s: time from the request to the beginning of its response, in seconds. An event stream may continue for
            minutes after that.
    """

    operation: str
    status: int
    duration_s: float


class Traffic:
    """ASGI middleware that reports every request to ``on_answer``, which must not block."""

    def __init__(self, app: ASGIApp, *, on_answer: Callable[[Answered], None]) -> None:
        self._app, self._on_answer = app, on_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        is_answered = False

        def report(status: int) -> None:
            nonlocal is_answered
            if not is_answered:
                is_answered = True
                operation = getattr(scope.get("route"), "operation_id", None) or OTHER
                self._on_answer(Answered(operation, status, time.perf_counter() - began))

        async def reply(message: Message) -> None:
            if message["type"] == "http.response.start":
                report(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, reply)
        except Exception:
            # starlette sends the response to an unexpected error outside of all middleware, so it is not seen above
            report(500)
            raise


def operations_of(app: FastAPI) -> list[str]:
    """Return every operation name that the middleware may report, in alphabetical order."""
    named = {getattr(route, "operation_id", None) for route in app.routes}
    return sorted({OTHER, *filter(None, named)})
