"""``make bench`` covers every benchmark."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import benchmarks
from benchmarks.__main__ import PARTS

# Modules that the parts share.
SHARED = {"__init__", "__main__", "records"}


def test_every_benchmark_module_is_a_part_of_make_bench() -> None:
    folder = Path(str(benchmarks.__file__)).parent
    modules = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__main__.py")}

    assert modules - SHARED == set(PARTS)


def test_benchmark_part_can_be_started_by_name_with_options() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "pipeline", "--list"], capture_output=True, text=True, check=True
    )

    assert "100 pets of 500, uniform, 2 processes, 2000 waiting" in done.stdout


def test_error_for_an_unknown_benchmark_part_lists_the_known_ones() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks", "pipelines"], capture_output=True, text=True)

    assert done.returncode == 2
    assert "'pipelines'" in done.stderr
    assert all(part in done.stderr for part in PARTS)
