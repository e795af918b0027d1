"""``make bench`` knows every part that there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import benchmarks
from benchmarks.__main__ import PARTS

# What parts share.
SHARED = {"__init__", "__main__", "records"}


def test_every_module_of_benchmarks_is_a_part_that_make_bench_knows() -> None:
    folder = Path(str(benchmarks.__file__)).parent
    modules = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__main__.py")}

    assert modules - SHARED == set(PARTS)


def test_a_part_is_started_by_its_name_with_its_own_options() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "pipeline", "--list"], capture_output=True, text=True, check=True
    )

    assert "100 pets of 500, uniform, 2 processes, 2000 waiting" in done.stdout


def test_a_name_that_is_no_part_is_answered_with_those_that_are() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks", "pipelines"], capture_output=True, text=True)

    assert done.returncode == 2
    assert "'pipelines'" in done.stderr
    assert all(part in done.stderr for part in PARTS)
