"""Logs as events: one JSON object per line, in the same form under Dramatiq's own command and under ours.

Every line about a job gets ``pet_id``, ``message_id`` and ``actor``. They are taken from a message in the arguments of
the log call, or else from the message that the thread is running. Values that may be embeddings are removed, whichever
code logged them.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from itertools import islice
from types import TracebackType
from typing import Any, Final, NamedTuple

import dramatiq
from dramatiq.broker import Broker, MessageProxy
from dramatiq.compat import StreamablePipe

from broker.running.batches import Batch
from tasks.observe.log_stream import LogStream, stream_over

SERVICE: Final = "sploot-cluster"

# Loggers whose INFO lines are dropped: they report only what their libraries do, or every sample of the queues.
_CHATTY: Final = ("faiss.loader", "periodiq", "uvicorn.access")

# Field of a line that the same thread follows with more lines and a call of ``log_stream.release_all``. Those lines are
# written together, because each separate write might cost a thread switch. The field itself is not written.
FOLLOWED: Final = "_followed"

_SHORTEST_PAYLOAD: Final = 80  # in characters: 15 values in base64; the vectors of every model are longer

# a vector as base64, as bytes, or as numbers in the form that Python and JSON print
_NUMBER: Final = r"[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?"
_PAYLOAD: Final = re.compile(
    rf"[A-Za-z0-9+/]{{{_SHORTEST_PAYLOAD},}}={{0,2}}"
    rf"|b'(?:\\.|[^'\\]){{{_SHORTEST_PAYLOAD},}}'"
    rf"|b\"(?:\\.|[^\"\\]){{{_SHORTEST_PAYLOAD},}}\""
    rf"|(?:{_NUMBER}(?:,\s*|\s+)){{7,}}{_NUMBER}"
)

Message = dramatiq.Message[Any] | MessageProxy


class _Running(NamedTuple):
    """A message that a thread runs; ``outer`` is the message before it in its batch."""

    message: Message
    outer: _Running | None


_running: ContextVar[_Running | None] = ContextVar("running message", default=None)


class NameJobs(dramatiq.Middleware):
    """Middleware that notes which message a thread runs. Place it before all others, so that their lines name it.

    While a batch runs, the middleware does not know which of its messages a line is about, so only a line that is
    logged with a message names one.
    """

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        _running.set(_Running(message, _running.get()))

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        self.after_skip_message(broker, message)

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        running = _running.get()
        if running is not None:
            _running.set(running.outer)


def configure_logging(level: str) -> None:
    """Make every logger of this process write JSON lines to standard error. Calling it again changes nothing.

    Dramatiq gives each of its processes a pipe as standard error and logs in its own format. Its handler is replaced;
    its pipe stays, so that lines from several processes do not mix. If this function is called before Dramatiq's or
    periodiq's command starts, as in ``sploot-cluster worker`` and ``scheduler``, their masters write JSON too. Under
    the stock commands, the master's few lines are in Dramatiq's format; see ``ops/README.md``.
    A reader that is slow, stopped or gone does not block any thread; see ``log_stream``.
    """
    stream = sys.stderr = stream_over(sys.stderr, report=_report_of_dropped, count=_count_dropped)
    if isinstance(sys.stdout, StreamablePipe):  # in a worker process, a pipe for text that jobs print
        sys.stdout = stream
    handler = _Lines(stream)
    handler.setFormatter(_formatter())
    handler.addFilter(_prepared)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_of_thread


def pet_id_of(message: Message) -> int | None:
    """Return the id of the pet that a message is about, or None if the pet id is missing or not a number."""
    pet_id = message.kwargs.get("pet_id")
    return pet_id if type(pet_id) is int else None


def without_payload(text: str) -> str:
    """Return the text with everything that may be an embedding replaced by its length."""
    if len(text) < _SHORTEST_PAYLOAD:
        return text
    return _PAYLOAD.sub(lambda found: f"<{len(found[0])} characters>", text)


class _Lines(logging.StreamHandler[LogStream]):
    """The handler that writes log lines as JSON. If a line cannot be written, it writes where the line came from.

    A line with the field :data:`FOLLOWED` is written together with the next lines.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if not hasattr(record, FOLLOWED):
            super().emit(record)
            return
        try:
            self.stream.hold(self.format(record) + self.terminator)
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the name that logging requires
        # the standard library would print plain text here, including the arguments
        error, template = sys.exc_info()[0], record.msg
        line = {
            "level": "ERROR",
            "logger": record.name,
            "message": "could not write a log line",
            "service": SERVICE,
            "of": without_payload(template) if isinstance(template, str) else type(template).__name__,
            "at": f"{record.pathname}:{record.lineno}",
            "error": error.__name__ if error is not None else None,
            "timestamp": _time_of(record),
        }
        with suppress(OSError, ValueError):  # this may fail, too, because the stream itself may be the problem
            self.stream.write(json.dumps(line) + self.terminator)
            self.flush()


def _report_of_dropped(n: int) -> str:
    line = {
        "level": "WARNING",
        "logger": f"{SERVICE}.queue",
        "message": "log lines were dropped, because their reader had stopped",
        "service": SERVICE,
        "n": n,
        "timestamp": datetime.now(UTC).isoformat(),
    }
    return json.dumps(line) + "\n"


def _count_dropped(n: int) -> None:
    from tasks.observe.metrics import count_dropped_log_lines

    count_dropped_log_lines(n)


def _time_of(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, tz=UTC).isoformat()


def _prepared(record: logging.LogRecord) -> bool:
    """Add the facts of the job to a record. Return False if another line reports the event better. Idempotent."""
    if record.levelno == logging.ERROR and hasattr(record, "entry") and hasattr(record, "reason"):
        return False  # the broker's line about a dead letter, which RecordJobs logs with pet and message id
    running = _running.get()
    about = running.message if running is not None and running.outer is None else None
    if isinstance(record.args, tuple):
        named: list[object] = []
        for argument in record.args:
            if isinstance(argument, Batch):
                about = None  # the line is about several jobs, so it gets the ids of none
                named.append(str(argument))
            elif isinstance(argument, dramatiq.Message | MessageProxy):
                about = argument
                # not the message itself, because its str() includes all its arguments
                named.append(f"{argument.actor_name}({argument.message_id})")
            else:
                named.append(argument)
        record.args = tuple(named)
    if about is not None:
        facts = {"pet_id": pet_id_of(about), "message_id": about.message_id, "actor": about.actor_name}
        for name, value in facts.items():
            if getattr(record, name, None) is None:
                setattr(record, name, value)
    return True


def _formatter() -> logging.Formatter:
    from pythonjsonlogger.core import RESERVED_ATTRS
    from pythonjsonlogger.json import JsonFormatter

    own = frozenset(RESERVED_ATTRS)
    n_own = len(logging.makeLogRecord({}).__dict__)  # logging's attributes come first, then the caller's
    # by then, _loggable has converted all values that JSON cannot represent, except datetimes, to text
    encode = json.JSONEncoder(default=datetime.isoformat).encode

    class Line(JsonFormatter):
        """A formatter for one line. Lines with only plain fields bypass the library, which halves the time."""

        def format(self, record: logging.LogRecord) -> str:
            if record.exc_info or record.exc_text or record.stack_info or not isinstance(record.msg, str):
                return super().format(record)
            line: dict[str, Any] = {"level": record.levelname, "logger": record.name}
            line["message"] = _loggable(record.getMessage())
            line["service"] = SERVICE
            for name, value in islice(record.__dict__.items(), n_own, None):
                if name not in own and name[:1] != "_":
                    kind = type(value)
                    # most values need no conversion, and the call would take longer than this test
                    is_plain = value is None or kind is int or (kind is str and len(value) < _SHORTEST_PAYLOAD)
                    line[name] = value if is_plain else _loggable(value)
            line["timestamp"] = _time_of(record)
            return encode(line)

        def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
            return {name: _loggable(value) for name, value in super().process_log_record(log_data).items()}

    return Line(
        "{levelname}{name}{message}",
        style="{",
        rename_fields={"levelname": "level", "name": "logger"},
        static_fields={"service": SERVICE},
        timestamp=True,
    )


def _loggable(value: Any) -> Any:
    """Return a value in a form that JSON can represent and a log may contain."""
    kind = type(value)
    if kind is int or value is None:
        return value
    if kind is str:
        return value if len(value) < _SHORTEST_PAYLOAD else without_payload(value)
    match value:
        case str():
            return without_payload(value)
        case bytes() | bytearray() | memoryview():
            return f"<{len(value)} bytes>"
        case float():
            # JSON has neither NaN nor infinity
            return value if math.isfinite(value) else str(value)
        case Mapping():
            return {str(name): _loggable(item) for name, item in value.items()}
        case list() | tuple():
            return [_loggable(item) for item in value] if len(value) < _SHORTEST_PAYLOAD else f"<{len(value)} values>"
        case None | int() | datetime():
            return value
        case _:
            return without_payload(str(value))


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger(SERVICE).critical("uncaught error; the process ends", exc_info=(kind, error, trace))


def _log_uncaught_of_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and args.exc_type is not SystemExit:
        name = args.thread.name if args.thread is not None else "?"
        logging.getLogger(SERVICE).critical(
            "uncaught error; the thread ends",
            extra={"thread_name": name},
            exc_info=(args.exc_type, args.exc_value, args.exc_traceback),
        )
