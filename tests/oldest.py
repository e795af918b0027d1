"""Run tests with the lowest stated version of every direct dependency: ``python -m tests.oldest [pytest's options]``.

uv installs these versions, from wheels only, into ``build/oldest``, with current test tools. Then it imports every
module, prints the help texts, and runs a quick selection of tests, including those that start a server, a worker and a
scheduler. If options are given, pytest then runs once more with them. Needs the extra ``[deploy]``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.pythons import MODULES, TOOLS, declared

ROOT: Final = Path(__file__).parents[1]
PYTHON: Final = "3.11"  # the lowest versions have no wheels for later Pythons
EXTRAS: Final = ("worker", "server", "otel", "parquet", "embedded", "reference", "all")
# Starlette's test client needed httpx before it needed httpx2. The others are for all tests of the broker; setup.cfg
# gives the reasons.
TEST_TOOLS: Final = (*TOOLS, "httpx", "setuptools >= 77", "gevent >= 24.11", "watchdog >= 6, < 7")
QUICK: Final = (
    "tests/sploot_cluster/engine",
    "tests/sploot_cluster/pet",
    "tests/sploot_cluster/api/test_numbers.py",
    "tests/sploot_cluster/test_reference.py",
    "tests/tasks/test_cli_queues.py",
    "tests/tasks/test_cli_screen.py",
    "tests/tasks/queue_ops/test_pet_index.py",
    "tests/broker/test_entries.py",
    "tests/system/test_stock_commands.py::test_stock_worker_and_scheduler_run_and_runbook_commands_work",
)
# Old releases cause deprecation warnings with newer dependencies, and the tests treat warnings as errors.
WARNINGS: Final = ("-W", "ignore::DeprecationWarning", "-W", "ignore::FutureWarning")


def install(environment: Path) -> Path:
    """Install the lowest versions into a new environment, and return its Python."""
    uv, python = Path(sys.executable).with_name("uv"), environment / "bin" / "python"
    environment.parent.mkdir(parents=True, exist_ok=True)
    pins = environment.with_suffix(".txt")
    lowest = ["--quiet", "--resolution", "lowest-direct", "--only-binary", ":all:", "--python-version", PYTHON]
    subprocess.run(
        [uv, "pip", "compile", *lowest, "--no-header", "--output-file", pins, "-"],
        input="\n".join(declared(EXTRAS)), text=True, stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    commands: tuple[list[str | Path], ...] = (
        [uv, "venv", "--quiet", "--clear", "--python", PYTHON, environment],
        [uv, "pip", "install", "--quiet", "--python", python, "-r", pins, *TEST_TOOLS],
    )
    for command in commands:
        subprocess.run(command, check=True)
    return python


def main(options: list[str]) -> int:
    """Install, run everything, and return the first exit code that is not 0."""
    python = install(ROOT / "build" / "oldest")
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    pytest = ["-m", "pytest", *WARNINGS]
    runs = [
        ["-c", f"import {MODULES}, tasks.demo"],
        ["-m", "tasks.cli", "recluster", "--help"],
        [*pytest, "-n", "2", "-q", "--dist", "loadgroup", "--newest", *QUICK],
        *([[*pytest, *options]] if options else []),
    ]
    for arguments in runs:
        done = subprocess.run([python, *arguments], cwd=ROOT, env=environ, check=False)
        if done.returncode != 0:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
