"""The console: one page on the HTTP API, for people on call and for labellers.

Static files, served as they are: the page asks the API as every other caller does, with a token where tokens are
configured, so that it can do nothing that its person may not. Nothing comes from elsewhere, and a strict policy keeps
scripts of others out.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from sploot_cluster.api.problems import NOT_FOUND, Refusal, shown

_TYPES: Final = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "json": "application/json"}

_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # asked for each time: a page of one release must not call the API of another
    "Cache-Control": "no-cache",
}


def console_router() -> APIRouter:
    """The routes ``/`` and ``/console/…``. They need no token: the page has no data of its own."""
    root = files(__package__) / "static"
    assets = {item.name: item.read_bytes() for item in root.iterdir() if item.is_file()}
    page = assets.pop("index.html").decode()
    router = APIRouter(include_in_schema=False)

    @router.get("/", operation_id="get_console")
    def get_console(request: Request) -> Response:
        # where this application is mounted, for the addresses in the page
        mount = request.scope.get("root_path", "").rstrip("/")
        return HTMLResponse(page.replace("{{root}}", mount), headers=_HEADERS)

    @router.get("/console/{name}", operation_id="get_console_file")
    def get_console_file(name: str) -> Response:
        content, media_type = assets.get(name), _TYPES.get(name.rpartition(".")[2])
        if content is None or media_type is None:
            raise Refusal(NOT_FOUND, f"the console has no file {shown(name)}")
        return Response(content, headers=_HEADERS, media_type=media_type)

    return router
