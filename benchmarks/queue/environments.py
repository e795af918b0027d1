"""One virtual environment per group of contestants, created once, with the pins of contestants.py.

A single environment would restrict some contestants to older packages: arq needs an older redis-py than the others.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.queue.contestants import ENVIRONMENTS
from benchmarks.records import CACHE


def python_of(environment: str) -> Path:
    """Return the interpreter of an environment. Create the environment if it is missing or its pins have changed."""
    pins = ENVIRONMENTS[environment]
    directory = CACHE / "environments" / f"{environment}-py{sys.version_info.major}.{sys.version_info.minor}"
    python, stamp = directory / "bin" / "python", directory / "pins"
    wanted = "\n".join(pins)
    if not (stamp.exists() and stamp.read_text() == wanted):
        print(f"installing {', '.join(pins)}", file=sys.stderr, flush=True)
        venv.create(directory, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pins], check=True)
        stamp.write_text(wanted)
    return python
