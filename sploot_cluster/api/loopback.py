"""Serving without tokens: this machine alone, and no page in its browser.

A server on 127.0.0.1 can be reached by every page that a person on this machine opens. A page of another site may send
it requests (``Origin`` and ``Sec-Fetch-Site`` tell), or may let its own name resolve to 127.0.0.1 and be of the same
site (DNS rebinding; ``Host`` tells). Both are refused. With tokens none of this is needed: no page has one.
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
# What proxies add; whatever begins with x-forwarded- counts too.
_FORWARDED: Final = frozenset({"forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip"})
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_MEND: Final = f"set {VARIABLE}=name:role:secret and send 'Authorization: Bearer <secret>'"


def is_loopback(host: str) -> bool:
    """Whether an address or name means this machine only. A name other than ``localhost`` never counts."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_bind(host: str, tokens: Tokens | None) -> None:
    """Refuse to serve other machines without tokens.

    Raises:
        InvalidInput: ``host`` can be reached from elsewhere, and no tokens are configured.
    """
    if not tokens and not is_loopback(host):
        raise InvalidInput(
            "host",
            f"{host or 'every address'} can be reached from other machines, and {VARIABLE} is empty",
            f"serve on 127.0.0.1, or set {VARIABLE}=name:role:secret (secret: openssl rand -hex 32)",
        )


class LoopbackGuard:
    """ASGI middleware for an application without tokens: lets in only what a program on this machine sent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = _why_not(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await render(refusal)(scope, receive, send)


def _why_not(scope: Scope) -> Refusal | None:
    headers = Headers(scope=scope)
    # no peer: a unix socket
    peer = scope.get("client")
    if peer is not None and not is_loopback(peer[0]):
        return Refusal(NOT_LOOPBACK, f"no tokens are configured, so that only this machine is served; {_MEND}")
    if any(name in _FORWARDED or name.startswith("x-forwarded-") for name in headers):
        return Refusal(NOT_LOOPBACK, f"the request came through a proxy, and no tokens are configured; {_MEND}")
    host = headers.get("host", "")
    if host and not _is_loopback_authority(host):
        detail = (
            f"Host does not name this machine, as after DNS rebinding; send it to 127.0.0.1 or localhost, or {_MEND}"
        )
        return Refusal(NOT_LOOPBACK, detail)
    if scope["method"] in _READING:
        return None
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    is_other_origin = origin is not None and origin.partition("://")[2] != host
    if is_other_origin or site not in (None, "same-origin", "none"):
        detail = f"a page of another site made a browser send this; use a program, or {_MEND}"
        return Refusal(CROSS_SITE, detail)
    return None


def _is_loopback_authority(host: str) -> bool:
    match = _HOST.fullmatch(host)
    return match is not None and is_loopback(match["v6"] or match["name"])
