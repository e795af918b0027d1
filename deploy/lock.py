"""Pin the packages of the image: ``python -m deploy.lock [--check | --upgrade]``.

``requirements.lock`` covers the extras worker, server, otel and cold of setup.cfg, for every supported Python and
machine; ``requirements-build.lock`` covers the build of our own wheel. Each pin has the hashes that pip requires, and
neither file names a registry. Pins change only if setup.cfg no longer allows them or with ``--upgrade``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
LOCKS: Final = {
    "requirements.lock": ["--extra", "worker", "--extra", "server", "--extra", "otel", "--extra", "cold", "setup.py"],
    "requirements-build.lock": ["deploy/build-requirements.in"],
}
OPTIONS: Final = ["--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"]
PLAIN: Final = ["--no-emit-index-url", "--no-header", "--no-annotate"]


def resolve(name: str, into: Path, *, upgrade: bool = False) -> None:
    """Write the lock file ``name`` to ``into``; keep its current pins where possible."""
    if not upgrade and into != ROOT / name:
        shutil.copy(ROOT / name, into)
    uv = Path(sys.executable).with_name("uv")
    more = ["--upgrade"] if upgrade else []
    subprocess.run([uv, "pip", "compile", *OPTIONS, *PLAIN, *more, *LOCKS[name], "-o", into], cwd=ROOT, check=True)


def stale() -> list[str]:
    """Return the names of lock files that do not match setup.cfg."""
    with tempfile.TemporaryDirectory() as directory:
        for name in LOCKS:
            resolve(name, Path(directory, name))
        return [name for name in LOCKS if Path(directory, name).read_text() != (ROOT / name).read_text()]


def main(arguments: list[str]) -> int:
    """Write the lock files, or check them with ``--check``; return 1 if one is stale."""
    if arguments == ["--check"]:
        for name in (old := stale()):
            print(f"{name} does not match setup.cfg: make lock", file=sys.stderr)
        return 1 if old else 0
    for name in LOCKS:
        resolve(name, ROOT / name, upgrade=arguments == ["--upgrade"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
