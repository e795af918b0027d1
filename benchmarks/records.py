"""Benchmark results: a file with one JSON line per measurement, and one that describes the machine.

With ``--resume``, an interrupted run continues: measurements in the file are not repeated.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tasks.redis_access.embedded

ROOT: Final = Path(__file__).resolve().parents[1]
# Environments and results, untracked by git.
CACHE: Final = Path(os.environ.get("BENCH_CACHE", ROOT / ".bench"))

Key = Mapping[str, str | int]
Values = Mapping[str, Any]


class Records:
    """The measurements of one benchmark, in one file."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not resume and path.exists():
            path.rename(path.with_suffix(".previous.jsonl"))
        if not path.exists():
            self._append({"machine": machine_facts()})

    def has(self, key: Key) -> bool:
        return any(found == key for found, _ in self)

    def add(self, key: Key, values: Values) -> None:
        self._append({"key": dict(key), "values": dict(values), "load": os.getloadavg()[0]})

    def __iter__(self) -> Iterator[tuple[dict[str, str | int], dict[str, Any]]]:
        for line in self._lines():
            if "key" in line:
                yield line["key"], line["values"]

    @property
    def machine(self) -> dict[str, Any]:
        """The machine at the start of the run, and the highest load average seen since."""
        lines = self._lines()
        facts: dict[str, Any] = dict(lines[0]["machine"])
        facts["highest load average"] = max([line["load"] for line in lines if "load" in line], default=None)
        return facts

    def _lines(self) -> list[dict[str, Any]]:
        # skip a line that was cut off when a run was interrupted
        lines = []
        for line in self.path.read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return lines

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


@dataclass(frozen=True, slots=True)
class Spread:
    """The median and range of several measurements."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def text(self, scale: float = 1.0) -> str:
        """Return the median and the range, as "median (lowest to highest)", with significant digits only."""
        median, *ends = (number(value * scale) for value in (self.median, self.lowest, self.highest))
        return median if self.lowest == self.highest else f"{median} ({ends[0]} to {ends[1]})"


def number(value: float) -> str:
    """Return the value with about three significant digits."""
    if value == 0:
        return "0"
    if abs(value) >= 1_000:
        return f"{round(value, -1 if abs(value) < 10_000 else -2):,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with right-aligned numbers."""
    head = "| " + " | ".join(columns) + " |"
    rule = "|" + "|".join(["---"] + ["---:"] * (len(columns) - 1)) + "|"
    return "\n".join([head, rule, *("| " + " | ".join(row) + " |" for row in rows)])


def machine_facts() -> dict[str, Any]:
    """Return the details of the machine and the software that are needed to interpret the figures."""
    cpu = (
        re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if Path("/proc/cpuinfo").exists()
        else None
    )
    server = subprocess.run(
        [tasks.redis_access.embedded.find_redis_server(), "--version"], capture_output=True, text=True, check=True
    ).stdout
    version = re.search(r"v=(\S+)", server)
    return {
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": _commit(),
        "cpu": cpu[1].strip() if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "redis-server": version[1] if version else server.strip(),
        "load average at start": round(os.getloadavg()[0], 2),
    }


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]  # git from the user's PATH
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
