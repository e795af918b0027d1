"""Real processes, for tests that stop, kill and fork them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from broker.identity import consumer_name
from tests.support import eventually

ROOT = Path(__file__).parents[2]


def keepers_of(pid: int) -> list[psutil.Process]:
    """Return a process's keeper process in a list, or an empty list if it has none."""
    return [one for one in psutil.Process(pid).children() if is_keeper(one)]


def is_keeper(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return any(word.endswith("keeper_process.py") for word in process.cmdline())
    return False


def consumer_name_of(pid: int) -> str:
    """Return a consumer name that the process ``pid`` could have.

    The name contains the process's start time in clock ticks.
    """
    host, _, birth, random = consumer_name().split(":")
    started_at = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{host}:{pid}:{birth.partition('.')[0]}.{started_at}:{random}"


@contextmanager
def started(url: str, *, lease_ms: int, threads: int = 2, queues: int = 1) -> Iterator[subprocess.Popen[str]]:
    """Start ``program`` as a worker of the queues ``q``, ``q-1``, …, and wait until it has a keeper process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.broker.program", url, str(lease_ms), str(threads), str(queues)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    keepers: list[psutil.Process] = []
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        keepers = eventually(lambda: keepers_of(process.pid), within_s=30)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        psutil.wait_procs(keepers, timeout=30)  # keepers report the death of their process before they end
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def command(
    url: str, *arguments: str, name: str = "dramatiq", log: Path = Path(os.devnull)
) -> Iterator[subprocess.Popen[bytes]]:
    """Run Dramatiq's command with the module ``commanded``."""
    environ = {**os.environ, "BROKER_URL": url, "PYTHONPATH": str(ROOT)}
    # a reload looks the interpreter up by name and must find the same one
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [Path(sys.executable).with_name(name), "tests.broker.commanded", "--processes", "1", *arguments],
            env=environ,
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        # kill the workers, too, because they may outlive the command and would take the next test's messages
        family = _in_group(process.pid)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # keeper processes report the death of their worker before they end
        psutil.wait_procs(family, timeout=30)


def _in_group(group: int) -> list[psutil.Process]:
    """Return a process group's processes and their descendants, including those that have left the group."""
    family: list[psutil.Process] = []
    for one in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(one.pid) == group:
                family += [one, *one.children(recursive=True)]
    return family


def forked(do: Callable[[], object]) -> int:
    """Fork a process that calls ``do`` and then ends without clean-up, like a killed process. Return its pid."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            do()
            status = 0
        finally:
            os._exit(status)
    return pid
