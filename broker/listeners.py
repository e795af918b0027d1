"""Which middleware hears a signal: found once per signal, and again when the list of middleware has changed.

Dramatiq calls every middleware at every signal, also where the method is the empty one of its base class, and under its
default middleware that is a third of what a short message costs. What a middleware does is the same; only the calls
that do nothing are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dramatiq.middleware import Middleware

Method = Callable[..., Any]


class Listeners:
    """The methods that are to be called, by their name. Safe to use from many threads."""

    def __init__(self) -> None:
        # replaced as a whole: a thread sees the methods of the list it has compared
        self._known: tuple[list[Middleware], dict[str, Sequence[Method]]] = ([], {})

    def of(self, middleware: list[Middleware], name: str) -> Sequence[Method]:
        """The methods called ``name``, in the order of ``middleware``, that do something."""
        seen, methods = self._known
        if seen != middleware:
            seen, methods = self._known = list(middleware), {}
        found = methods.get(name)
        if found is None:
            empty = getattr(Middleware, name, None)
            named = [getattr(one, name, None) for one in middleware]
            found = methods[name] = [
                method for method in named if method is not None and getattr(method, "__func__", method) is not empty
            ]
        return found
