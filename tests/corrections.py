"""An example of each correction, in the forms in which it is sent."""

from __future__ import annotations

from typing import Any

from sploot_cluster.decide.corrections import VERBS
from sploot_cluster.decide.corrections.base import Request

EXAMPLES: dict[str, Request[Any]] = {verb: request.example() for verb, request in VERBS.items()}


def as_body(request: Request[Any]) -> dict[str, Any]:
    """Return the body of the HTTP request."""
    return {name: value for name, value in request.to_kwargs().items() if name in request.body()}
