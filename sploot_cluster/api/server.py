"""The function that runs the application with uvicorn, with time limits on slow connections.

uvicorn waits without limit for the headers of a request, and for a client to read its response. This module closes such
connections. The application itself limits how long it waits for a body.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from sploot_cluster.api.loopback import check_bind
from sploot_cluster.api.tokens import Tokens

HOST: Final = "127.0.0.1"
PORT: Final = 8080

# Longer than any request, and shorter than the 30 s after which Kubernetes kills the process.
GRACE_S: Final = 20

# Time limit for receiving the headers of a request, from the opening of the connection or from the first byte.
HEADERS_WAIT_S: Final = 10.0
# Time limit for a client that does not read its response.
READING_WAIT_S: Final = 30.0

_EVENT_STREAM: Final = b"text/event-stream"


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP protocol, which closes the connections of clients that keep it waiting."""

    headers_wait_s = HEADERS_WAIT_S
    reading_wait_s = READING_WAIT_S

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sending: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_headers()

    def on_response_complete(self) -> None:
        # uvicorn itself limits the idle time until the next request: timeout_keep_alive
        self._cancel_timers()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading = self._reading or self.loop.call_later(self.reading_wait_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def shutdown(self) -> None:
        """End event streams immediately, because they would not end by themselves, and let other responses finish."""
        super().shutdown()
        if self._is_answering and any(name == b"accept" and value == _EVENT_STREAM for name, value in self.headers):
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timers()
        super().connection_lost(exc)

    @property
    def _is_answering(self) -> bool:
        cycle: Any = self.cycle  # None before the first request, although it is declared as not None
        return cycle is not None and not cycle.response_complete

    def _await_headers(self) -> None:
        if self._is_answering or self.transport.is_closing():
            if self._sending is not None:
                self._sending.cancel()
                self._sending = None
        elif self._sending is None and self.timeout_keep_alive_task is None:
            self._sending = self.loop.call_later(self.headers_wait_s, self.transport.close)

    def _cancel_timers(self) -> None:
        for timer in (self._sending, self._reading):
            if timer is not None:
                timer.cancel()
        self._sending = self._reading = None


def serve(
    app: ASGIApp,
    host: str = HOST,
    port: int = PORT,
    *,
    tokens: Tokens | None = None,
    grace_s: int = GRACE_S,
    access_log: bool = False,
) -> None:
    """Serve until SIGINT or SIGTERM, and then give requests in progress up to ``grace_s`` to finish.

    The logging configuration is not changed; uvicorn's loggers are ``uvicorn.error`` and ``uvicorn.access``.

    Args:
        tokens: the tokens that ``app`` was created with.
        access_log: whether to log one line per request.

    Raises:
        InvalidInput: other machines can reach ``host``, and no tokens are configured.
        SystemExit: the address cannot be bound; uvicorn logs the reason.
    """
    check_bind(host, tokens)
    uvicorn.run(
        app,
        host=host,
        port=port,
        http=PatientProtocol,
        log_config=None,
        access_log=access_log,
        server_header=False,
        # take the peer's address from the connection, because a forged header could claim to be this machine
        proxy_headers=False,
        timeout_graceful_shutdown=grace_s,
    )
