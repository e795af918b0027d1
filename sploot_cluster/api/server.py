"""The function that runs the application with uvicorn."""

from __future__ import annotations

from typing import Final

import uvicorn
from starlette.types import ASGIApp

from sploot_cluster.api.loopback import check_bind
from sploot_cluster.api.tokens import Tokens

HOST: Final = "127.0.0.1"
PORT: Final = 8080

# Longer than any request, and shorter than the 30 s after which Kubernetes kills the process.
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
    """Serve until SIGINT or SIGTERM; requests in progress then get up to ``grace_s`` to finish.

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
        log_config=None,
        access_log=access_log,
        server_header=False,
        # take the peer from the connection, because a forged header could claim to be this machine
        proxy_headers=False,
        timeout_graceful_shutdown=grace_s,
    )
