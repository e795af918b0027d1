"""Functions that build wheels and source distributions from a folder, without a package index."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def build_wheel(source: Path, directory: Path, *, package: str) -> Path:
    """Build the wheel of a project into ``directory`` and return its path.

    Raises:
        subprocess.CalledProcessError: setuptools could not build the wheel; its output contains the reason.
    """
    offline = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    with _alone_in(source):
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", directory, source],
            check=True,
            capture_output=True,
            text=True,
        )
    (wheel,) = directory.glob(f"{package}-*.whl")
    return wheel


def build_sdist(source: Path, directory: Path) -> Path:
    """Build the source distribution of a project into ``directory`` and return its path.

    Raises:
        subprocess.CalledProcessError: setuptools could not build it; its output contains the reason.
    """
    program = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    with _alone_in(source):
        done = subprocess.run(
            [sys.executable, "-c", program, directory.absolute()],
            cwd=source,
            check=True,
            capture_output=True,
            text=True,
        )
    return directory / done.stdout.splitlines()[-1]


@contextmanager
def _alone_in(source: Path) -> Iterator[None]:
    """Let one process at a time build in a folder, because setuptools writes ``build/`` and ``*.egg-info`` there."""
    with (source / "setup.cfg" if (source / "setup.cfg").exists() else source / "pyproject.toml").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
