"""Logs as events: one JSON object a line, the same under Dramatiq's own command and everybody else's."""

from __future__ import annotations

import logging
import sys
from typing import Final

SERVICE: Final = "sploot-cluster"

# What they say at INFO is about themselves, or about every sample of the queues; their warnings stay.
_CHATTY: Final = ("faiss.loader", "periodiq", "uvicorn.access")


def configure_logging(level: str) -> None:
    """Let every logger of this process write JSON lines to standard error. Calling it again changes nothing.

    Dramatiq gives each of its processes a pipe as standard error and writes its own format there. Its handler is
    replaced; its pipe is kept, so that lines of several processes do not mix. Its master, which never sees this module,
    writes its few lines in its own way.
    """
    from pythonjsonlogger.json import JsonFormatter

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter(
            "{levelname}{name}{message}",
            style="{",
            rename_fields={"levelname": "level", "name": "logger"},
            static_fields={"service": SERVICE},
            timestamp=True,
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
