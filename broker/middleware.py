"""The signals that this broker adds to Dramatiq's, and the lookup of the middleware methods that handle a signal."""

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

    Subclassing is optional: any middleware with one of these methods is called.

    Exceptions from these methods are logged and otherwise ignored.
    """

    def after_dead_letter(self, broker: RedisStreamsBroker, dead_letter: DeadLetter) -> None:
        """Handle a new dead letter, which is passed with all its fields."""

    def after_cancel(self, broker: RedisStreamsBroker, message: Message[Any] | Delivery) -> None:
        """Handle a message that was cancelled.

        Called in the process that cancelled the message if it was waiting, and otherwise in the worker process that
        held it. In the worker process, ``message`` is a :class:`Delivery`.
        """

    def after_recover(self, broker: RedisStreamsBroker, queue_name: str, entry_ids: Sequence[str]) -> None:
        """Handle entries that this process took over from dead consumers."""

    def after_orphans(self, broker: RedisStreamsBroker, queue_name: str, n: int) -> None:
        """Handle ``n`` orphans that this process found and requeued."""


class Listeners:
    """A cache of the middleware methods to call for each signal, refreshed when the middleware changes. Thread-safe.

    Dramatiq calls every middleware at every signal, even if the method is the empty one of the base class. With the
    default middleware, that takes a third of the time of a short message. This class leaves out only the empty methods.
    """

    def __init__(self) -> None:
        # replaced as a whole, so that the methods that a thread sees always belong to the list that it has compared
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
