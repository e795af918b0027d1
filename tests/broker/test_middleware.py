"""Middleware with a non-empty method for a signal is called as Dramatiq would call it, and no other middleware is."""

from __future__ import annotations

import logging
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import MiddlewareError, SkipMessage

from broker import RedisStreamsBroker
from tests.broker.scene import message


class Hears(dramatiq.Middleware):
    """Middleware that records its own name and the signals that it receives."""

    def __init__(self, name: str, heard: list[str]) -> None:
        self.name, self.heard = name, heard

    def before_ack(self, broker: Any, message: Any) -> None:
        self.heard.append(f"{self.name} before")

    def after_ack(self, broker: Any, message: Any) -> None:
        self.heard.append(f"{self.name} after")


class Fails(dramatiq.Middleware):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def before_ack(self, broker: Any, message: Any) -> None:
        raise self.error

    after_ack = before_ack


def broker_with(*middleware: dramatiq.Middleware) -> RedisStreamsBroker:
    return RedisStreamsBroker("redis://127.0.0.1:1/0", middleware=list(middleware))


def test_before_methods_are_called_in_order_and_after_methods_in_reverse() -> None:
    heard: list[str] = []
    broker = broker_with(Hears("first", heard), dramatiq.Middleware(), Hears("second", heard))

    broker.emit_before("ack", message("one"))
    broker.emit_after("ack", message("one"))

    assert heard == ["first before", "second before", "second after", "first after"]


def test_middleware_added_or_removed_later_is_noticed() -> None:
    heard: list[str] = []
    first, second = Hears("first", heard), Hears("second", heard)
    broker = broker_with(first)
    broker.emit_before("ack", message("one"))

    broker.add_middleware(second)
    broker.emit_before("ack", message("two"))
    broker.middleware.remove(first)
    broker.emit_before("ack", message("three"))

    assert heard == ["first before", "first before", "second before", "second before"]


def test_failing_middleware_is_logged_and_the_others_are_called(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []
    broker = broker_with(Hears("first", heard), Fails(ValueError("no")), Hears("second", heard))

    caplog.clear()
    with caplog.at_level(logging.CRITICAL):
        broker.emit_before("ack", message("one"))
        broker.emit_after("ack", message("one"))

    assert heard == ["first before", "second before", "second after", "first after"]
    assert [record.getMessage().partition(" of ")[0] for record in caplog.records] == [
        "Unexpected failure in before_ack",
        "Unexpected failure in after_ack",
    ]


@pytest.mark.parametrize("error", [SkipMessage(), MiddlewareError()])
def test_middleware_error_stops_the_signal(error: Exception) -> None:
    heard: list[str] = []
    broker = broker_with(Fails(error), Hears("second", heard))

    with pytest.raises(type(error)):
        broker.emit_before("ack", message("one"))

    assert heard == []


def test_signal_unknown_to_dramatiq_calls_methods_with_its_name() -> None:
    heard: list[str] = []

    class HearsOurs(dramatiq.Middleware):
        def after_orphans(self, broker: Any, queue_name: str, n: int) -> None:
            heard.append(f"{n} of {queue_name}")

    broker_with(dramatiq.Middleware(), HearsOurs()).emit_after("orphans", "mail", 3)

    assert heard == ["3 of mail"]
