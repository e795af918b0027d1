"""The wheel of the broker alone: distribution ``dramatiq-durable-streams``, package ``dramatiq_durable_streams``.

In this repository the package is called ``broker``, a word too common to install under. It imports only Dramatiq,
redis-py and, by relative imports, itself, so a copy under another name works unchanged. Only the absolute imports in
docstrings are renamed. The README needs no change, because it is written for the wheel.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Final

from deploy.wheels import build_wheel

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = "dramatiq_durable_streams"


def build(directory: Path) -> Path:
    """Build the wheel into ``directory`` without using a package index, and return its path.

    Raises:
        subprocess.CalledProcessError: setuptools could not build the wheel; its output contains the reason.
    """
    with tempfile.TemporaryDirectory(prefix="broker-wheel-") as temporary:
        write_sources(Path(temporary))
        return build_wheel(Path(temporary), directory, package=PACKAGE)


def write_sources(source: Path) -> None:
    """Write the project, from which the distribution is built, into the folder ``source``."""
    shutil.copytree(ROOT / "broker", source / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    for module in (source / PACKAGE).rglob("*.py"):
        module.write_text(renamed(module.read_text()))
    for path in (
        ROOT / "broker" / "README.md",
        ROOT / "broker" / "CHANGELOG.md",
        ROOT / "LICENSE",
        Path(__file__).with_name("pyproject.toml"),
    ):
        shutil.copy(path, source)
    (source / "MANIFEST.in").write_text("include CHANGELOG.md\n")


def renamed(text: str) -> str:
    """Return the text with imports of ``broker`` renamed to the installed package."""
    return re.sub(r"(\bfrom|\bimport|python -m) broker\b", rf"\1 {PACKAGE}", text)
