"""Reports from jobs to the harness: counts and times in shared memory, at less than a microsecond per job.

Each worker process has a file of a few int64 values in a directory that the harness reads. Only the standard library
is used, because this module is imported in every contestant's environment. Times are ``time.monotonic_ns``, which all
processes of a machine share.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path
from threading import Lock
from typing import Final

DIRECTORY: Final = "BENCH_TALLY"
IS_VICTIM: Final = "BENCH_IS_VICTIM"

SIZE: Final = mmap.PAGESIZE
COUNT, LAST_NS, N_PINGS, LATENCY_NS = range(4)


class Tally:
    """The counters of one worker process, in shared memory, so that child processes can count too: RQ forks per job."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._name = str(os.getpid())
        # create the file under another name and rename it, because the harness may read it at any time
        hidden = directory / f".{self._name}"
        hidden.write_bytes(bytes(SIZE))
        with hidden.open("r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), SIZE)).cast("q")
        hidden.rename(directory / f"{self._name}.tally")
        with (directory / "gate").open("rb") as file:
            self._gate = mmap.mmap(file.fileno(), 1, prot=mmap.PROT_READ)
        self._is_open = False
        self._lock = Lock()
        self.is_victim = bool(os.environ.get(IS_VICTIM))

    def count(self, n: int = 1) -> None:
        """Count ``n`` finished jobs.

        The first call waits for the gate, so that workers that start at different times begin at the same moment.
        """
        with self._lock:
            self._words[COUNT] += n
            if not self._is_open:
                while not self._gate[0]:
                    time.sleep(0.0002)
                self._is_open = True
            self._words[LAST_NS] = time.monotonic_ns()

    def ping(self, sent_ns: int) -> None:
        """Record that a job sent at ``sent_ns`` has begun."""
        self._words[LATENCY_NS] = time.monotonic_ns() - sent_ns
        self._words[N_PINGS] += 1

    def start(self, number: int) -> None:
        """Record that a numbered job has begun, perhaps again."""
        with (self._directory / "starts").open("a") as file:
            file.write(f"{number} {self._name} {time.monotonic_ns()}\n")


class Tallies:
    """A reader of the tallies of all worker processes, for the harness."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def close_gate(self) -> None:
        """Close the gate. Call this before a worker starts."""
        (self.directory / "gate").write_bytes(b"\0")

    def open_gate(self) -> int:
        """Let the jobs begin; return the time."""
        now = time.monotonic_ns()
        with (self.directory / "gate").open("r+b") as file:
            file.write(b"\1")
        return now

    def read(self) -> list[list[int]]:
        """Return the counters of every process."""
        return [
            memoryview(path.read_bytes()).cast("q")[: LATENCY_NS + 1].tolist()
            for path in self.directory.glob("*.tally")
        ]

    @property
    def n_at_work(self) -> int:
        """The number of processes that have begun a job."""
        return sum(words[COUNT] > 0 for words in self.read())

    @property
    def n_done(self) -> int:
        return sum(words[COUNT] for words in self.read())

    def starts(self) -> list[tuple[int, int, int]]:
        """Return the number, process and time of every start of a numbered job."""
        path = self.directory / "starts"
        if not path.exists():
            return []
        # skip a line that is still being written
        lines = path.read_text().rpartition("\n")[0].splitlines()
        return [(int(number), int(pid), int(ns)) for number, pid, ns in map(str.split, lines)]
