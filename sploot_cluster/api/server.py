"""Serving the application with uvicorn."""

from __future__ import annotations

from typing import Final

import uvicorn
from starlette.types import ASGIApp

from sploot_cluster.api.loopback import check_bind
from sploot_cluster.api.tokens import Tokens

HOST: Final = "127.0.0.1"
PORT: Final = 8080

# Longer than any request takes; Kubernetes waits 30 s before it kills.
GRACE_S: Final = 20


def serve(
    app: ASGIApp,
    host: str = HOST,
    port: int = PORT,
    *,
    tokens: Tokens | None = None,
    grace_s: int = GRACE_S,
    access_log: bool = False,
) -> None:
    """Serve until SIGINT or SIGTERM; requests that are being answered then get up to ``grace_s`` to end.

    Logging is left as it is configured: uvicorn's loggers are ``uvicorn.error`` and ``uvicorn.access``.

    Args:
        tokens: those that ``app`` was made with.
        access_log: one line a request.

    Raises:
        InvalidInput: other machines could reach ``host``, and there are no tokens.
        SystemExit: the address cannot be bound; uvicorn has logged why.
    """
    check_bind(host, tokens)
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=access_log,
        server_header=False,
        # who called is told by the connection: a header that says otherwise could claim to be this machine
        proxy_headers=False,
        timeout_graceful_shutdown=grace_s,
    )
