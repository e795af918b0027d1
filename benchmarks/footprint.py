"""The memory and start time of a worker: ``python -m benchmarks footprint``.

The wheel is installed with the extra ``[worker]`` in a new environment, as pip installs it, with bytecode. The start
time is the time from the start of a worker to its first commit; an event for it waits in Redis. The command exits
with 1 if a figure is above its limit. A start time above its limit counts only if the CPU time is above the same limit,
because other work on the machine delays a start.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import redis

from benchmarks.records import Spread, table
from deploy.image import size_of
from deploy.wheels import build_wheel
from tasks.contracts import EMBEDDING_INGESTED, stream_of
from tasks.redis_access.embedded import EmbeddedRedis
from tests.system.events import flat_event, free_port

ROOT: Final = Path(__file__).parents[1]
LARGEST_BYTES: Final = 300e6
LARGEST_PROCESS_BYTES: Final = 70e6
LATEST_S: Final = 3.0
PROCESSES: Final = 2
SETTLED_S: Final = 3.0  # pause between the first event and the reading of memory


@dataclass(frozen=True, slots=True)
class Started:
    """The measurements of one start of a worker.

    Attributes:
        first_event_s: seconds from the start of the worker to the commit of the first event.
        cpu_s: CPU time of all its processes until then.
        own_bytes: unique memory (USS) of the largest process that runs jobs: the memory that ending it would free.
        resident_bytes: its resident memory (RSS), which counts pages that it shares with other processes.
    """

    first_event_s: float
    cpu_s: float
    own_bytes: int
    resident_bytes: int


def install(directory: Path) -> Path:
    """Install the wheel with ``[worker]`` into a new environment, and return its Python."""
    uv, python = Path(sys.executable).with_name("uv"), directory / "environment" / "bin" / "python"
    wheel = build_wheel(ROOT, directory, package="sploot_cluster")
    commands: tuple[list[str | Path], ...] = (
        [uv, "venv", "--quiet", "--python", sys.executable, python.parents[1]],
        [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python, f"{wheel}[worker]"],
    )
    for command in commands:
        subprocess.run(command, check=True)
    return python


def start(python: Path, server: EmbeddedRedis) -> Started:
    """Start a worker of two processes on an empty server, and stop it again."""
    with redis.Redis.from_url(server.url) as client, tempfile.TemporaryDirectory(prefix="footprint-") as directory:
        client.flushall()
        client.xadd(stream_of(EMBEDDING_INGESTED), flat_event(pet_id=7, number=0))
        log = Path(directory, "log")
        started_at = time.perf_counter()
        with log.open("wb") as output:
            worker = psutil.Popen(
                [python.with_name("sploot-cluster"), "worker", "--processes", str(PROCESSES)],
                cwd=directory, stdout=output, stderr=output,
                env={"PATH": os.environ["PATH"], "HOME": directory, "REDIS_URL": server.url,
                     "WORKER_METRICS_PORT": str(free_port())},
            )  # fmt: skip
        try:
            while not client.exists("{pet:7}:meta"):
                if worker.poll() is not None:
                    raise RuntimeError(f"the worker ended:\n{log.read_text()}")
                time.sleep(0.01)
            first_event_s = time.perf_counter() - started_at
            cpu_s = sum(_cpu_s(process) for process in (worker, *worker.children(recursive=True)))
            time.sleep(SETTLED_S)
            memory = [process.memory_full_info() for process in worker.children() if _runs_jobs(process)]
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(60)
    return Started(first_event_s, cpu_s, max(one.uss for one in memory), max(one.rss for one in memory))


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _runs_jobs(process: psutil.Process) -> bool:
    # each such process has a keeper as its child
    return bool(process.children())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks footprint", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="starts to measure")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="footprint-") as directory, EmbeddedRedis() as server:
        python = install(Path(directory))
        n_bytes = size_of(python.parents[1])
        found = [start(python, server) for _ in range(arguments.rounds)]
    own, resident = max(one.own_bytes for one in found), max(one.resident_bytes for one in found)
    seconds, cpu = Spread.of([one.first_event_s for one in found]), Spread.of([one.cpu_s for one in found])
    rows = [
        ["installed, MB", f"{n_bytes / 1e6:.0f}", f"{LARGEST_BYTES / 1e6:.0f}"],
        ["unique memory of a process (USS), MB", f"{own / 1e6:.0f}", f"{LARGEST_PROCESS_BYTES / 1e6:.0f}"],
        ["… with shared pages (RSS), MB", f"{resident / 1e6:.0f}", ""],
        ["start to first event, s", seconds.text(), f"{LATEST_S:.0f}"],
        ["… of CPU in all processes, s", cpu.text(), ""],
    ]
    print(table(["worker", "measured", "at most"], rows))
    is_late = seconds.lowest > LATEST_S and cpu.lowest > LATEST_S
    return int(n_bytes > LARGEST_BYTES or own > LARGEST_PROCESS_BYTES or is_late)


if __name__ == "__main__":
    sys.exit(main())
