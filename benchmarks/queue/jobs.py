"""The jobs: one does nothing, one reports its latency, and one runs until its worker is killed."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Final

from benchmarks.queue.tally import DIRECTORY, Tally

# Duration of a job that hangs: longer than any measurement waits for its redelivery.
HOLD_S: Final = 3_600

# The tally of this process; created when a worker imports its jobs. A producer has none.
_tally = Tally(Path(os.environ[DIRECTORY])) if DIRECTORY in os.environ else None


def tally() -> Tally:
    """Return the tally of this process."""
    assert _tally is not None, f"{DIRECTORY} is not set"
    return _tally


def noop() -> None:
    tally().count()


def ping(sent_ns: int) -> None:
    tally().ping(sent_ns)


def hold(number: int) -> None:
    """Hang if this worker is the victim, which will be killed; otherwise return at once."""
    tally().start(number)
    if tally().is_victim:
        time.sleep(HOLD_S)


async def noop_async() -> None:
    tally().count()


async def ping_async(sent_ns: int) -> None:
    tally().ping(sent_ns)


async def hold_async(number: int) -> None:
    tally().start(number)
    if tally().is_victim:
        await asyncio.sleep(HOLD_S)
