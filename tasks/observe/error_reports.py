"""Error reports to Sentry: one for every job that failed permanently, without its payload.

Attempts that will be retried are not reported: metrics and logs cover them. Reports are grouped by actor and kind of
error. No job argument, no local variable and no text that looks like an embedding leaves this process.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, cast

import dramatiq
from dramatiq.broker import Broker, MessageProxy

from broker import DeadLetter
from sploot_cluster.errors import InvalidInput
from tasks.observe.logs import without_payload
from tasks.queue_ops.dead_letters import kind_of_error, message_id_of, pet_of
from tasks.settings import Settings

if TYPE_CHECKING:
    from sentry_sdk.transport import Transport
    from sentry_sdk.types import Event, Hint

FLUSH_S = 2.0


def configure_error_reports(
    settings: Settings, *, with_logged_errors: bool = False, transport: type[Transport] | Transport | None = None
) -> bool:
    """Start reporting if ``SENTRY_DSN`` is set, and return whether it is. Call this before the broker is created.

    Args:
        with_logged_errors: also report logged errors, for processes that run no jobs.
        transport: receives reports instead of the server in the DSN, for tests.

    Raises:
        InvalidInput: the DSN is set, but sentry-sdk is not installed.
    """
    if not settings.sentry_dsn:
        return False
    try:
        import sentry_sdk
        from sentry_sdk.integrations.logging import LoggingIntegration
    except ImportError:
        raise InvalidInput(
            "SENTRY_DSN", "needs sentry-sdk", "pip install 'sploot-cluster[worker]', or unset the variable"
        ) from None
    sentry_sdk.init(
        dsn=settings.sentry_dsn,
        environment=settings.environment,
        release=_release(),
        transport=transport,
        include_local_variables=False,
        max_request_body_size="never",
        # the integrations that are enabled by default (redis, fastapi) would report commands and bodies
        auto_enabling_integrations=False,
        integrations=[
            LoggingIntegration(level=None, event_level=logging.ERROR if with_logged_errors else None),
        ],
        before_send=_scrubbed,
    )
    return True


class ReportDeadJobs(dramatiq.Middleware):
    """Middleware that reports every job that becomes a dead letter. Does nothing unless reporting is configured."""

    def __init__(self) -> None:
        self._local = threading.local()

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        self._local.failed = None if exception is None else (message.message_id, exception)

    def after_ack(self, broker: Broker, message: MessageProxy) -> None:
        # release the exception: its traceback keeps the frames of the job in memory, and with them its vectors
        self._local.failed = None

    def after_nack(self, broker: Broker, message: MessageProxy) -> None:
        self._local.failed = None

    def after_dead_letter(self, broker: Broker, dead_letter: DeadLetter) -> None:
        import sentry_sdk

        client = sentry_sdk.get_client()
        if not client.is_active():
            return
        message_id, exception = getattr(self._local, "failed", None) or (None, None)
        if message_id != dead_letter.message_id:
            exception = None  # this thread's last failure is not the cause of this dead letter
        event, hint = _event(dead_letter, exception, client.options)
        sentry_sdk.capture_event(event, hint)

    def after_worker_shutdown(self, broker: Broker, worker: dramatiq.Worker) -> None:
        import sentry_sdk

        sentry_sdk.flush(timeout=FLUSH_S)


def _event(dead_letter: DeadLetter, exception: BaseException | None, options: Mapping[str, Any]) -> tuple[Event, Hint]:
    from sentry_sdk.utils import event_from_exception

    event: Event
    hint: Hint
    if exception is not None:
        event, hint = event_from_exception(
            exception, client_options=dict(options), mechanism={"type": "dramatiq", "handled": False}
        )
    else:
        event, hint = {"level": "error", "message": f"{dead_letter.reason}: {dead_letter.error}"}, {}
    about = dead_letter.actor_name or dead_letter.queue_name
    event["fingerprint"] = [about, kind_of_error(dead_letter), *([dead_letter.field] if dead_letter.field else [])]
    event["transaction"] = about
    event["tags"] = {
        "actor": dead_letter.actor_name or "none",
        "queue": dead_letter.queue_name,
        "reason": dead_letter.reason,
    }
    event["contexts"] = {
        "job": {
            "pet_id": pet_of(dead_letter),
            "message_id": message_id_of(dead_letter),
            "dead_letter_id": dead_letter.id,
            "entry_id": dead_letter.entry_id,
            "deliveries": dead_letter.deliveries,
            "field": dead_letter.field,
            "hint": dead_letter.hint,
            "show": f"sploot-cluster queue dead show {dead_letter.queue_name} {dead_letter.id}",
        }
    }
    return event, hint


def _scrubbed(event: Event, hint: Hint) -> Event:
    """Return the event without anything that may be an embedding."""
    return cast("Event", _without_payload(event))


def _without_payload(value: Any) -> Any:
    match value:
        case str():
            return without_payload(value)
        case Mapping():
            return {name: _without_payload(item) for name, item in value.items()}
        case list() | tuple():
            return [_without_payload(item) for item in value]
        case _:
            return value


def _release() -> str:
    try:
        return f"sploot-cluster@{version('sploot-cluster')}"
    except PackageNotFoundError:
        return "sploot-cluster@checkout"
