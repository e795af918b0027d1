"""Protection of a server without tokens: programs on this machine may call it, but web pages may not.

Every page that a user on this machine opens can reach a server on 127.0.0.1. A page from another site may send requests
(detected by ``Origin`` and ``Sec-Fetch-Site``), or may make its own name resolve to 127.0.0.1 and so appear to be the
same site (DNS rebinding; detected by ``Host``). Both are refused. A server with tokens does not need this protection,
because pages have no token.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sploot_cluster.api.problems import CROSS_SITE, NOT_LOOPBACK, Refusal, render
from sploot_cluster.api.tokens import VARIABLE, Tokens
from sploot_cluster.errors import InvalidInput

_HOST: Final = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[^:\[\]]+))(?::\d*)?")
# Headers by which a proxy is recognised, in addition to all that start with x-forwarded-.
_FORWARDED: Final = frozenset({"forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip"})
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_HINT: Final = f"set {VARIABLE}=name:role:secret and send 'Authorization: Bearer <secret>'"


def is_loopback(host: str) -> bool:
    """Return whether a host is a loopback address or the name ``localhost``, so that no other machine can reach it."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_bind(host: str, tokens: Tokens | None) -> None:
    """Refuse to serve other machines without tokens.

    Raises:
        InvalidInput: other machines can reach ``host``, and no tokens are configured.
    """
    if not tokens and not is_loopback(host):
        raise InvalidInput(
            "host",
            f"{host or 'every address'} can be reached from other machines, and {VARIABLE} is empty",
            f"serve on 127.0.0.1, or set {VARIABLE}=name:role:secret (secret: openssl rand -hex 32)",
        )


class LoopbackGuard:
    """ASGI middleware for an application without tokens. It admits only requests from programs on this machine."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = why_not_local(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await render(refusal)(scope, receive, send)


def why_not_local(scope: Scope) -> Refusal | None:
    """Return the refusal of a request that does not come from a program on this machine, or None if it does."""
    headers = Headers(scope=scope)
    # a unix socket has no peer address
    peer = scope.get("client")
    if peer is not None and not is_loopback(peer[0]):
        return Refusal(
            NOT_LOOPBACK, f"no tokens are configured, so only requests from this machine are served; {_HINT}"
        )
    # by default, nginx adds no header, but uses HTTP/1.0 to the server behind it; other programs use 1.1
    is_old = scope.get("http_version") == "1.0"
    if is_old or any(name in _FORWARDED or name.startswith("x-forwarded-") for name in headers):
        return Refusal(NOT_LOOPBACK, f"the request came through a proxy, and no tokens are configured; {_HINT}")
    host = headers.get("host", "")
    if host and not _is_loopback_authority(host):
        detail = f"the Host header does not name this machine; send the request to 127.0.0.1 or localhost, or {_HINT}"
        return Refusal(NOT_LOOPBACK, detail)
    if scope["method"] in _READING:
        return None
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    is_other_origin = origin is not None and origin.partition("://")[2] != host
    if is_other_origin or site not in (None, "same-origin", "none"):
        detail = f"a page of another site made a browser send the request; send it from a program, or {_HINT}"
        return Refusal(CROSS_SITE, detail)
    return None


def _is_loopback_authority(host: str) -> bool:
    match = _HOST.fullmatch(host)
    return match is not None and is_loopback(match["v6"] or match["name"])
