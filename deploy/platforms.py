"""Check that the demo and the tests can be installed everywhere: ``python -m deploy.platforms``.

For every platform and version of Python, uv resolves this checkout's wheel with the extras that ``make demo`` and
``make test`` install, using only wheels. docs/reference/platforms.md shows the results, and which combinations CI also
runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Final

from deploy.wheels import build_wheel

ROOT: Final = Path(__file__).parent.parent
PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14", "3.15")
PLATFORMS: Final = {
    "Linux x86-64": "x86_64-manylinux_2_28",
    "Linux arm64": "aarch64-manylinux_2_28",
    "macOS Intel": "x86_64-apple-darwin",
    "macOS Apple silicon": "aarch64-apple-darwin",
}
MUSL: Final = "x86_64-unknown-linux-musl"
MUSL_LACKS: Final = "scikit-learn >= 1.6"
LOWEST_MACOS: Final = "14.0"  # for an older macOS, faiss has no wheel for Python 3.14 on Apple silicon
EXTRAS: Final = ("all", "dev")
# Python -> the interpreter with which .ci/run runs the tests
RUN: Final = {
    "3.11": "the Python of `make`",
    "3.12": "`python3.12` on PATH or from pyenv",
    "3.13": "`python3.13` on PATH or from pyenv",
    "3.14": "`python3.14` on PATH or from pyenv, or else Debian sid's in a chroot",
}
RUN_ON: Final = "Linux x86-64"
REFUSED: Final = {
    "Linux with musl (Alpine)": "no: scikit-learn has no wheels",
    "Windows": "no: pip installs no Redis server; use WSL",
}


def lines() -> list[str]:
    """Return the lines of the page with the table of platforms and Python versions."""
    cells = [(platform, [_cell(platform, one) for one in PYTHONS]) for platform in PLATFORMS]
    cells += [(platform, [reason] * len(PYTHONS)) for platform, reason in REFUSED.items()]
    header = f"| | {' | '.join(PYTHONS)} |\n|---|{'---|' * len(PYTHONS)}"
    rows = [f"| {platform} | {' | '.join(row)} |" for platform, row in cells]
    interpreters = [f"| {version} | {interpreter} |" for version, interpreter in RUN.items()]
    text = f"""# Platforms

{header}
{chr(10).join(rows)}

- **run**: CI runs the tests on it: all of them on Python 3.11; on the others it imports everything and runs the tests
  of the engine and of entries. `make test-pythons` runs all quick tests there.
- **resolved**: no such machine or interpreter was at hand. CI checks that all packages of `make demo` and `make test`
  have wheels (`make platforms`).
- Linux needs glibc 2.28 or newer, and macOS version 14 or newer: with Python 3.14 on Apple silicon, faiss needs it.
- On Linux arm64 the tests that compare the engine with hdbscan are skipped, because hdbscan has no wheel for it.
- Redis 6.2, the oldest supported server, has wheels only for Linux x86-64 with Python 3.11 and 3.12. Elsewhere the
  broker's tests run on the newest server alone.
- The lowest stated versions of all dependencies are tested on Linux x86-64 with Python 3.11 (`make test-oldest`).
- The thin client and the broker are pure Python and set no upper limit.

The interpreters that run the tests on {RUN_ON}:

| Python | interpreter |
|---|---|
{chr(10).join(interpreters)}
"""
    return text.splitlines()


def _cell(platform: str, python: str) -> str:
    return "run" if platform == RUN_ON and python in RUN else "resolved"


def problem(requirement: str, target: str, python: str) -> str:
    """Return why a requirement cannot be installed from wheels on uv's ``target``, or an empty string if it can be."""
    uv = Path(sys.executable).with_name("uv")
    options = ["--quiet", "--no-header", "--only-binary", ":all:"]
    options += ["--python-platform", target, "--python-version", python]
    done = subprocess.run(
        [uv, "pip", "compile", *options, "-"],
        input=f"{requirement}\n", capture_output=True, text=True, check=False,
        env={**os.environ, "MACOSX_DEPLOYMENT_TARGET": LOWEST_MACOS},
    )  # fmt: skip
    return "" if done.returncode == 0 else f"{requirement} on {target}, Python {python}: {done.stderr}"


def main() -> int:
    """Resolve every combination; return 1 if one fails, or if a wheel that the page lists as missing now exists."""
    with tempfile.TemporaryDirectory(prefix="platforms-") as temporary, ThreadPoolExecutor(2) as threads:
        wheel = build_wheel(ROOT, Path(temporary), package="sploot_cluster")
        wanted = [f"sploot-cluster[{extra}] @ {wheel.as_uri()}" for extra in EXTRAS]
        cells = list(product(wanted, PLATFORMS.values(), PYTHONS))
        failed = [found for found in threads.map(lambda cell: problem(*cell), cells) if found]
        lacking = threads.map(lambda python: problem(MUSL_LACKS, MUSL, python), PYTHONS)
        failed += [f"{MUSL_LACKS} has a wheel for {MUSL} now" for found in lacking if not found]
    print(*failed, f"{len(cells)} combinations were resolved; {len(failed)} are not as the page says", sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
