"""An example of each correction, in the forms in which it is sent."""

from __future__ import annotations

from typing import Any

from sploot_cluster.decide.corrections import VERBS
from sploot_cluster.decide.corrections.base import Request
from sploot_cluster.fields import required_of

EXAMPLES: dict[str, Request[Any]] = {verb: request.example() for verb, request in VERBS.items()}


def as_body(request: Request[Any]) -> dict[str, Any]:
    """Return the body of the HTTP request."""
    return {name: value for name, value in request.to_kwargs().items() if name in request.body()}


def as_words(request: Request[Any]) -> list[str]:
    """Return the arguments of the command."""
    words: list[str] = []
    for name, value in as_body(request).items():
        match value:
            case int() | str():
                words += [str(value)] if name in required_of(type(request)) else [f"--{name}", str(value)]
            case [str(), *_]:
                words += [word for item in value for word in (f"--{name.removesuffix('_ids')}", item)]
            case list():
                words += [str(id_) for id_ in value]
            case _:
                raise TypeError(f"no words for {name}: {value!r}")
    return words
