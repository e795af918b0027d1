"""The paths that may be called without a token even if tokens are configured.

Programs on this machine may always call them. Other machines, and proxies on this one, need a token of any role unless
the path is in a public group. By default, the group of health checks is public, so that probes work.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from sploot_cluster.api.admission import bearer_of, unauthenticated
from sploot_cluster.api.loopback import why_not_local
from sploot_cluster.api.problems import render
from sploot_cluster.api.tokens import Tokens
from sploot_cluster.errors import InvalidInput

VARIABLE: Final = "SPLOOT_HTTP_PUBLIC"

# Group -> its contents, as shown to users.
GROUPS: Final[Mapping[str, str]] = {
    "health": "/healthz and /readyz",
    "metrics": "/metrics",
    "openapi": "/openapi.json",
    "console": "the files of the console, which contain no data; the console then asks for a token",
}
DEFAULT: Final = "health"

_GROUP_OF: Final[Mapping[str, str]] = {
    "healthz": "health",
    "readyz": "health",
    "metrics": "metrics",
    "openapi.json": "openapi",
    "": "console",
    "console": "console",
}


def groups_of(text: str) -> frozenset[str]:
    """Parse a comma-separated list of groups; ``none`` means no group.

    Raises:
        InvalidInput: a group is unknown.
    """
    named = frozenset(filter(None, (name.strip() for name in text.split(",")))) - {"none"}
    if unknown := named - GROUPS.keys():
        hint = f"set none, or some of {','.join(GROUPS)}"
        raise InvalidInput(VARIABLE, f"{', '.join(sorted(unknown))} is not a group of URLs", hint)
    return named


class PublicAddresses:
    """ASGI middleware for an application with tokens. It protects the paths of this module unless they are public.

    Args:
        tokens: the configured tokens; each is valid for all of these paths.
        public: names of ``GROUPS``.
    """

    def __init__(self, app: ASGIApp, *, tokens: Tokens, public: Collection[str]) -> None:
        self._app, self._tokens, self._public = app, tokens, frozenset(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._may_pass(scope):
            group = _group_of(scope)
            hint = f"the server's operator can allow it to everyone by adding {group} to {VARIABLE}"
            await render(unauthenticated(hint))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        group = _group_of(scope)
        if group is None or group in self._public or why_not_local(scope) is None:
            return True
        return self._tokens.holder_of(bearer_of(Request(scope))) is not None


def _group_of(scope: Scope) -> str | None:
    """Return the group of a path, or None for a path that ``Admission`` checks."""
    path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
    return _GROUP_OF.get(path.strip("/").partition("/")[0])
