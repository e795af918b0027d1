"""The times at which events were sent and committed: pairs of nanoseconds in one file per worker process.

The files can be read while they are written. The media id contains the time of sending, so that no other part of the
event changes. Times are ``time.monotonic_ns``, which all processes of a machine share.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from threading import Lock
from typing import Final

import numpy as np
import numpy.typing as npt

DIRECTORY: Final = "BENCH_STAMPS"
# Maximum number of pairs in a file. The file is sparse, so its unwritten parts take no space.
MOST: Final = 4_000_000


def media_id(sent_ns: int, number: int) -> str:
    """Return a media id that contains the time of sending; it has 36 characters, like a UUID."""
    return f"{sent_ns:020d}-{number:015d}"


class Stamps:
    """A recorder of the times at which this process's events were sent and committed."""

    def __init__(self, directory: Path) -> None:
        hidden = directory / f".{os.getpid()}"
        with hidden.open("w+b") as file:
            file.truncate(16 * (MOST + 1))
            self._pairs = memoryview(mmap.mmap(file.fileno(), 16 * (MOST + 1))).cast("q")
        hidden.rename(directory / f"{os.getpid()}.stamps")
        self._lock = Lock()

    def note(self, media: str, committed_ns: int) -> None:
        """Record that an event was committed. Ids without a time, of items from other sources, are ignored."""
        sent, dash, _ = media.partition("-")
        if len(media) != 36 or not dash or not sent.isdecimal():
            return
        with self._lock:
            n = self._pairs[0] + 1
            self._pairs[2 * n], self._pairs[2 * n + 1] = int(sent), committed_ns
            # update the number last, so that readers see complete pairs only
            self._pairs[0] = n


def n_noted(directory: Path) -> int:
    """Return the number of events that all processes have committed."""
    return sum(int(np.memmap(path, dtype=np.int64, mode="r", shape=(1,))[0]) for path in directory.glob("*.stamps"))


def n_processes_at_work(directory: Path) -> int:
    """Return the number of processes that have committed at least one event."""
    return sum(bool(np.memmap(path, dtype=np.int64, mode="r", shape=(1,))[0]) for path in directory.glob("*.stamps"))


def read(directory: Path) -> npt.NDArray[np.int64]:
    """Return the times at which each event was sent and committed, (n, 2) nanoseconds in order of commit."""
    parts = []
    for path in directory.glob("*.stamps"):
        words = np.memmap(path, dtype=np.int64, mode="r")
        parts.append(np.array(words[2 : 2 * (int(words[0]) + 1)].reshape(-1, 2)))
    pairs = np.concatenate([np.empty((0, 2), dtype=np.int64), *parts])
    ordered: npt.NDArray[np.int64] = pairs[np.argsort(pairs[:, 1], kind="stable")]
    return ordered
