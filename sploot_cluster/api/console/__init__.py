"""The console: a single page on the HTTP API, for on-call engineers and labellers.

It consists of static files. The page calls the API like any other client, with the user's token if tokens are
configured, so it can do only what that user may do. It loads nothing from other servers, and a strict content security
policy blocks foreign scripts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from sploot_cluster.api.problems import NOT_FOUND, Refusal, shown
from sploot_cluster.decide.corrections import ENTRIES, VERBS
from sploot_cluster.errors import InvalidInput
from sploot_cluster.fields import Field, ListOf, Whole, required_of

_TYPES: Final = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "json": "application/json"}

_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # revalidate each time, so that a page from one release does not call the API of another
    "Cache-Control": "no-cache",
}


MEDIA_VARIABLE: Final = "SPLOOT_MEDIA_URL_TEMPLATE"

_ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(?=/)")

# Characters that would end the URL in the page, or the source in the content security policy.
_UNSAFE: Final = re.compile(r"[\s;,'\"<>]")

# The request fields that the page fills in from the selection, or from the suggestion that the user answers.
_SELECTED: Final = ("cluster_ids", "cluster_id", "media_ids", "revision", "suggestion")


def _files(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    for item in folder.iterdir():
        if item.is_dir():
            yield from _files(item, f"{prefix}{item.name}/")
        else:
            yield prefix + item.name, item.read_bytes()


def _corrections() -> bytes:
    """Return the correction verbs as JSON for the page: for each, the selection that it needs and its form fields."""
    verbs: list[dict[str, Any]] = []
    for verb, request in VERBS.items():
        fields = {name: field for name, field in request.body().items() if name != "pet_id"}
        verbs.append(
            {
                "verb": verb,
                "operation": request.actor_name,
                "title": request.title,
                "button": request.button,
                "description": request.description(),
                "takes": _selection(fields),
                "asks": [
                    {
                        "name": name,
                        "type": "id" if isinstance(field.kind, Whole) else "text",
                        "description": field.description,
                        "required": name in required_of(request),
                    }
                    for name, field in fields.items()
                    if name not in _SELECTED
                ],
            }
        )
    return json.dumps({"verbs": verbs, "undoable": [*ENTRIES]}).encode()


def _selection(fields: Mapping[str, Field]) -> str:
    match fields.get("cluster_ids"):
        case Field(kind=ListOf(shortest=shortest)):
            return "several clusters" if shortest > 1 else "clusters"
    if "media_ids" in fields:
        return "items of one cluster" if "cluster_id" in fields else "items"
    if "cluster_id" in fields:
        return "cluster"
    return "revision" if "revision" in fields else "pet"


def check_media_url_template(template: str) -> None:
    """Check the template of the URL from which pictures are loaded.

    Raises:
        InvalidInput: it is not an http(s) URL, or does not contain ``{media_id}``.
    """
    if not template:
        return
    hint = "set e.g. https://media.example/{pet_id}/{media_id}?w={width}"
    if not _ORIGIN.match(template) or _UNSAFE.search(template):
        raise InvalidInput(MEDIA_VARIABLE, f"{template!r} is not an http or https URL", hint)
    if "{media_id}" not in template:
        raise InvalidInput(MEDIA_VARIABLE, "does not contain {media_id}", hint)


def console_router(media_url_template: str = "") -> APIRouter:
    """Return the routes ``/`` and ``/console/…``. They require no token, because the page itself contains no data.

    Args:
        media_url_template: the URL of an item's picture; see ``create_app``. The page may load pictures, but nothing
            else, from that server.

    Raises:
        InvalidInput: the template is invalid.
    """
    check_media_url_template(media_url_template)
    root = files(__package__) / "static"
    assets = dict(_files(root))
    page = assets.pop("index.html").decode().replace("{{media}}", escape(media_url_template))
    headers = _HEADERS
    if origin := _ORIGIN.match(media_url_template):
        policy = _HEADERS["Content-Security-Policy"].replace("img-src 'self'", f"img-src 'self' {origin[0]}")
        headers = _HEADERS | {"Content-Security-Policy": policy}
    assets["corrections.json"] = _corrections()
    router = APIRouter(include_in_schema=False)

    @router.get("/", operation_id="get_console")
    async def get_console(request: Request) -> Response:
        # the path at which this application is mounted, which is part of every URL in the page
        mount = request.scope.get("root_path", "").rstrip("/")
        return HTMLResponse(page.replace("{{root}}", mount), headers=headers)

    @router.get("/console/{name:path}", operation_id="get_console_file")
    async def get_console_file(name: str) -> Response:
        content, media_type = assets.get(name), _TYPES.get(name.rpartition(".")[2])
        if content is None or media_type is None:
            raise Refusal(NOT_FOUND, f"the console has no file {shown(name)}")
        return Response(content, headers=_HEADERS, media_type=media_type)

    return router
