"""A log whose reader stalls blocks no thread, keeps its order, and reports missing lines."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from tasks.observe.log_stream import MOST_WAITING, LogStream
from tests.support import eventually

ROOT = Path(__file__).parents[3]
REPORT = "dropped {}\n"
PIPE_BYTES = 4096


class Pipe:
    """A pipe of one page whose reader is controlled by the test."""

    def __init__(self) -> None:
        self._read_fd, write_fd = os.pipe()
        fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.under: IO[str] = os.fdopen(write_fd, "w")
        self.counted: list[int] = []
        self.stream = LogStream(self.under, report=REPORT.format, count=self.counted.append)
        self.text = ""

    def read(self) -> str:
        self.text += os.read(self._read_fd, 1 << 20).decode()
        return self.text

    def read_until(self, end: str) -> list[str]:
        reader = threading.Thread(target=self._read_on, args=(end,))
        reader.start()
        reader.join(30)
        assert not reader.is_alive(), self.text[-200:]
        return self.text.splitlines()

    def _read_on(self, end: str) -> None:
        while not self.text.endswith(end):
            self.read()

    def close(self) -> None:
        os.close(self._read_fd)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def numbered(n: int, *, length: int = 100) -> list[str]:
    return [f"{number:06}".ljust(length, ".") for number in range(n)]


def test_lines_are_written_immediately_while_the_reader_has_room(pipe: Pipe) -> None:
    pipe.stream.write("one\n")

    assert pipe.read() == "one\n"


@pytest.mark.parametrize("end", ["write", "release", "drain"])
def test_held_lines_are_written_in_order_by_the_next_write_or_release(pipe: Pipe, end: str) -> None:
    pipe.stream.hold("one\n")
    pipe.stream.hold("two\n")

    if end == "write":
        pipe.stream.write("three\n")
    else:
        getattr(pipe.stream, end)()

    assert pipe.read() == "one\ntwo\n" + ("three\n" if end == "write" else "")


def test_held_lines_are_written_when_they_fill_one_system_call(pipe: Pipe) -> None:
    lines = numbered(45)

    for line in lines:
        pipe.stream.hold(line + "\n")

    assert pipe.read().splitlines() == lines[:40]
    pipe.stream.release()
    assert pipe.read().splitlines() == lines


def test_lines_stay_whole_and_in_order_when_the_reader_is_slow(pipe: Pipe) -> None:
    lines = [*numbered(2_000), "x" * 20_000, "the end"]
    for line in lines:
        pipe.stream.write(line + "\n")

    assert pipe.read_until("the end\n") == lines
    assert pipe.counted == []


def test_lines_beyond_the_memory_limit_are_dropped_counted_and_reported(pipe: Pipe) -> None:
    n = MOST_WAITING // 1_000 + 500
    for line in numbered(n, length=999):
        pipe.stream.write(line + "\n")
    n_dropped = sum(pipe.counted)
    assert 0 < n_dropped < n

    read = pipe.read_until(REPORT.format(n_dropped))
    pipe.stream.write("after\n")

    assert pipe.read_until("after\n") == [*numbered(n, length=999)[: n - n_dropped], f"dropped {n_dropped}", "after"]
    assert read[-1] == f"dropped {n_dropped}"


def test_lines_of_concurrent_threads_are_not_mixed(pipe: Pipe) -> None:
    def talk(name: str) -> None:
        for number in range(200):
            pipe.stream.write(f"{name} {number} ".ljust(300, name) + "\n")

    threads = [threading.Thread(target=talk, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.stream.write("end\n")
    lines = pipe.read_until("end\n")[:-1]

    assert len(lines) == 800
    for name in "abcd":
        ours = [line for line in lines if line.startswith(name)]
        assert [int(line.split()[1]) for line in ours] == list(range(200))
        assert all(set(line) <= set(f"{name} 0123456789") and len(line) == 300 for line in ours)


def test_incomplete_line_waits_for_its_end(pipe: Pipe) -> None:
    print("a", "b", file=pipe.stream)
    print("half", end="", file=pipe.stream)
    assert pipe.read() == "a b\n"

    pipe.stream.drain()

    assert pipe.read() == "a b\nhalf\n"


def test_lines_are_dropped_and_counted_when_the_reader_is_gone() -> None:
    pipe = Pipe()
    pipe.close()

    for line in numbered(50):
        pipe.stream.write(line + "\n")

    eventually(lambda: sum(pipe.counted) == 50)


def test_forked_process_logs_while_its_parents_reader_stalls(pipe: Pipe) -> None:
    for line in numbered(200):
        pipe.stream.write(line + "\n")

    pid = os.fork()
    if pid == 0:
        pipe.stream.write("from the child\n")
        os._exit(0)

    assert eventually(lambda: os.waitpid(pid, os.WNOHANG)[0]) == pid


TALK = """
import logging
from tasks.observe.logs import configure_logging
configure_logging("INFO")
for number in range(3_000):
    logging.getLogger("x").info("line", extra={"number": number})
print("done", flush=True)
"""


def test_ending_process_writes_its_last_lines() -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    process: Any = subprocess.Popen(
        [sys.executable, "-c", TALK], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "done\n", "it waited for a reader of its log"

    lines = [json.loads(line) for line in process.communicate(timeout=30)[1].splitlines()]

    assert [line["number"] for line in lines] == list(range(3_000))
