"""Check that the demo and the tests can be installed everywhere: ``python -m deploy.platforms``.

For every platform and Python, uv resolves the wheel of this checkout with the extras of ``make demo`` and of
``make test``, only from wheels. docs/reference/platforms.md shows the result and what is run.
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
PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS: Final = {
    "Linux x86-64": "x86_64-manylinux_2_28",
    "Linux arm64": "aarch64-manylinux_2_28",
    "macOS Intel": "x86_64-apple-darwin",
    "macOS Apple silicon": "aarch64-apple-darwin",
}
LOWEST_MACOS: Final = "14.0"  # faiss has no wheel of older ones for Python 3.14 on Apple silicon
EXTRAS: Final = ("all", "dev")
# by .ci/run
RUN: Final = {("Linux x86-64", python) for python in PYTHONS}


def lines() -> list[str]:
    """Return the lines of the page with the table of platforms and Pythons."""
    rows = [
        f"| {platform} | " + " | ".join("run" if (platform, one) in RUN else "resolved" for one in PYTHONS) + " |"
        for platform in PLATFORMS
    ]
    header = f"| | {' | '.join(PYTHONS)} |\n|---|{'---|' * len(PYTHONS)}"
    text = f"""# Platforms

{header}
{chr(10).join(rows)}

- **run**: CI runs the tests on it: all of them on Python 3.11; on the others it imports everything and runs the tests
  of the engine and of entries. `make test-pythons` runs all quick tests there.
- **resolved**: no such machine was at hand. CI checks that all packages of `make demo` and `make test` have wheels
  (`make platforms`).
- Linux needs glibc 2.28 or newer, and macOS version 14 or newer: with Python 3.14 on Apple silicon, faiss needs it.
- **no**: Alpine and other Linux with musl or an older glibc, because packages have no wheels for it; Windows, because
  no server can be installed by pip (use WSL); Python 3.15, because it has not been tried.
- On Linux arm64 the tests that compare the engine with hdbscan are skipped, because hdbscan has no wheel for it.
- Redis 6.2, the oldest supported server, has wheels only for Linux x86-64 with Python 3.11 and 3.12. Elsewhere the
  broker's tests run on the newest server alone.
- The thin client and the broker are pure Python and set no upper limit.
"""
    return text.splitlines()


def problem(wheel: Path, platform: str, python: str, extra: str) -> str:
    """Return why the wheel with an extra cannot be installed from wheels there; empty if it can be."""
    uv = Path(sys.executable).with_name("uv")
    options = ["--quiet", "--no-header", "--only-binary", ":all:"]
    options += ["--python-platform", PLATFORMS[platform], "--python-version", python]
    done = subprocess.run(
        [uv, "pip", "compile", *options, "-"],
        input=f"sploot-cluster[{extra}] @ {wheel.as_uri()}\n", capture_output=True, text=True, check=False,
        env={**os.environ, "MACOSX_DEPLOYMENT_TARGET": LOWEST_MACOS},
    )  # fmt: skip
    return "" if done.returncode == 0 else f"{platform}, Python {python}, [{extra}]: {done.stderr}"


def main() -> int:
    """Resolve every cell; return 1 if one fails."""
    with tempfile.TemporaryDirectory(prefix="platforms-") as temporary, ThreadPoolExecutor(2) as threads:
        wheel = build_wheel(ROOT, Path(temporary), package="sploot_cluster")
        cells = list(product(PLATFORMS, PYTHONS, EXTRAS))
        failed = [found for found in threads.map(lambda cell: problem(wheel, *cell), cells) if found]
    print(*failed, f"{len(cells) - len(failed)} of {len(cells)} combinations can be installed from wheels", sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
