"""The jobs: one that does nothing, one that tells how long it travelled, one that its worker dies with."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Final

from benchmarks.queue.tally import DIRECTORY, Tally

# Longer than any measurement waits for a job to come back.
FOR_EVER_S: Final = 3_600

# Made when a worker imports its jobs; a producer has none.
_tally = Tally(Path(os.environ[DIRECTORY])) if DIRECTORY in os.environ else None


def tally() -> Tally:
    """This process's."""
    assert _tally is not None, f"{DIRECTORY} is not set"
    return _tally


def noop() -> None:
    tally().count()


def ping(sent_ns: int) -> None:
    tally().ping(sent_ns)


def hold(number: int) -> None:
    """Never ends in a worker that is going to be killed, and at once in every other."""
    tally().start(number)
    if tally().is_victim:
        time.sleep(FOR_EVER_S)


async def noop_async() -> None:
    tally().count()


async def ping_async(sent_ns: int) -> None:
    tally().ping(sent_ns)


async def hold_async(number: int) -> None:
    tally().start(number)
    if tally().is_victim:
        await asyncio.sleep(FOR_EVER_S)
