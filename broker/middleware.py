"""The signals that this broker adds to Dramatiq's, and a lookup of the middleware methods that handle a signal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dramatiq import Message, Middleware

from .dead_letters import DeadLetter
from .deliveries import Delivery

if TYPE_CHECKING:
    from .broker import RedisStreamsBroker

Method = Callable[..., Any]


class StreamsMiddleware(Middleware):
    """A base class for middleware that handles this broker's signals.

    Subclassing it is optional: any middleware with one of these methods is called. Exceptions from these methods are
    logged and otherwise ignored.
    """

    def after_dead_letter(self, broker: RedisStreamsBroker, dead_letter: DeadLetter) -> None:
        """Handle a new dead letter. Its fields are passed in full, even if they are large."""

    def after_cancel(self, broker: RedisStreamsBroker, message: Message[Any] | Delivery) -> None:
        """Handle a cancelled message.

        If the message was waiting, this is called in the process that cancelled it. If a worker had received it, this
        is called in the worker process, and ``message`` is a :class:`Delivery`.
        """

    def after_recover(self, broker: RedisStreamsBroker, queue_name: str, entry_ids: Sequence[str]) -> None:
        """Handle entries that this process took over from dead consumers."""

    def after_orphans(self, broker: RedisStreamsBroker, queue_name: str, n: int) -> None:
        """Handle ``n`` orphans that this process found and requeued."""


class Listeners:
    """A cache of the middleware methods to call for each signal, refreshed when the middleware changes. Thread-safe.

    Dramatiq calls every middleware at every signal, even if the method is the base class's empty one. With the default
    middleware, that takes a third of the time of a short message. This class leaves out only the empty methods.
    """

    def __init__(self) -> None:
        # replaced as a whole, so that a thread never uses the methods of another middleware list
        self._known: tuple[list[Middleware], dict[str, Sequence[Method]]] = ([], {})

    def of(self, middleware: list[Middleware], name: str) -> Sequence[Method]:
        """Return the method ``name`` of every middleware that implements it, in the order of ``middleware``."""
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

    def of_pair(self, middleware: list[Middleware], before: str, after: str) -> Sequence[Method]:
        """Return the method ``before`` of every middleware that also implements ``after``."""
        methods = self.of(middleware, before)
        with_after = {id(getattr(method, "__self__", None)) for method in self.of(middleware, after)}
        return [method for method in methods if id(getattr(method, "__self__", None)) in with_after]
