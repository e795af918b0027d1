"""External programs for the tests. If a program is missing, its tests are skipped with the name of its package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
OPS: Final = ROOT / "ops"

PACKAGES: Final = {
    "promtool": "prometheus",
    "prometheus": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
    "prometheus-redis-exporter": "prometheus-redis-exporter",
    "redis-cli": "redis-tools",
    "jq": "jq",
    "curl": "curl",
    "http": "httpie",
    "busybox": "busybox-static",
}


def tool(name: str) -> str:
    """Return the path of a program. If it is missing, skip the test, or fail it if ``REQUIRE_ALL_TOOLS`` is 1."""
    next_to_python = Path(sys.executable).with_name(name)
    found = str(next_to_python) if next_to_python.exists() else shutil.which(name)
    if found:
        return found
    reason = f"{name} is not installed: apt-get install {PACKAGES.get(name, name)}"
    if os.environ.get("REQUIRE_ALL_TOOLS") == "1":
        pytest.fail(reason)
    pytest.skip(f"SKIP {reason}")


def run(name: str, *arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a program and return its result; the caller checks the exit code."""
    command = [tool(name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload,no-any-return]
