"""The rules for all requests and responses of the application, as ASGI middleware.

``HEAD`` is answered like ``GET`` without the body. The sizes of URLs and headers are limited. Responses are compressed.
Caches may store a response only if its headers allow it, and browsers never interpret them as another media type.
"""

from __future__ import annotations

from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sploot_cluster.api.problems import ADDRESS_TOO_LONG, HEADERS_TOO_LARGE, Refusal, render

# Enough for the longest valid URL, which contains an item id of 256 characters, each up to 12 bytes when
# percent-encoded.
MAX_ADDRESS_BYTES: Final = 8 * 1024
MAX_HEADER_BYTES: Final = 16 * 1024

# Smaller responses fit into one packet even uncompressed.
COMPRESSED_FROM_BYTES: Final = 1_024
# The gzip level. Level 4 takes half the time of level 6 and makes the response with a pet 3 % larger.
COMPRESSION: Final = 4


class Envelope:
    """ASGI middleware that applies the rules of this module to every request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = GZipMiddleware(app, minimum_size=COMPRESSED_FROM_BYTES, compresslevel=COMPRESSION)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_head = scope["method"] == "HEAD"
        reply = _reply(send, without_body=is_head)
        refusal = _why_too_large(scope)
        if refusal is not None:
            await render(refusal)(scope, receive, reply)
            return
        await self._app({**scope, "method": "GET"} if is_head else scope, receive, reply)


def _why_too_large(scope: Scope) -> Refusal | None:
    # close the connection of a client that sends this much
    headers = {"Connection": "close"}
    address = len(scope.get("raw_path") or scope["path"].encode()) + len(scope.get("query_string", b""))
    if address > MAX_ADDRESS_BYTES:
        detail = f"the URL has {address} bytes, more than {MAX_ADDRESS_BYTES}; send a shorter one"
        return Refusal(ADDRESS_TOO_LONG, detail, headers=headers)
    size = sum(len(name) + len(value) for name, value in scope["headers"])
    if size > MAX_HEADER_BYTES:
        detail = f"the headers have {size} bytes, more than {MAX_HEADER_BYTES}; send fewer or shorter ones"
        return Refusal(HEADERS_TOO_LARGE, detail, headers=headers)
    return None


def _reply(send: Send, *, without_body: bool) -> Send:
    async def reply(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("Cache-Control", "no-store")
            headers.setdefault("X-Content-Type-Options", "nosniff")
        elif without_body and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return reply
