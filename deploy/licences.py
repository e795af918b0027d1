"""List the licences of what the image installs: ``python -m deploy.licences [--check]`` writes ``docs/licences.md``.

The names and versions are those of ``requirements.lock``, the licences what each package says of itself where it is
installed here. What runs on other systems alone is listed without.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageMetadata, PackageNotFoundError, metadata
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
LOCK: Final = ROOT / "requirements.lock"
PAGE: Final = ROOT / "docs" / "licences.md"

UNKNOWN: Final = "not stated"
# What packages write for one and the same; the right side is SPDX.
SPELLINGS: Final = {
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "3-Clause BSD License": "BSD-3-Clause",
    "new BSD": "BSD-3-Clause",
    "MIT License": "MIT",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "LGPL": "LGPL-3.0-or-later",
    "LGPLv3+": "LGPL-3.0-or-later",
    "GNU Lesser General Public License v3 or later (LGPLv3+)": "LGPL-3.0-or-later",
    "ISC License (ISCL)": "ISC",
    "Python Software Foundation License": "PSF-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}

INTRODUCTION: Final = """\
# Licences of what the image installs

Written by `make licences` from `requirements.lock`; changes by hand are overwritten. sploot-cluster itself is MIT.

Two of its foundations, dramatiq and periodiq, are LGPL-3.0-or-later. They are installed as they come, as packages of
their own that can be replaced by another version (`pip install` in the image's environment), and none of their code is
in ours. Whoever passes the image on passes these packages on with their licences, which lie in their `dist-info`.
Wheels with compiled code bring libraries that their own licence files name, among them OpenBLAS (BSD-3-Clause) and
libgfortran and libgomp (GPL-3.0 with the GCC runtime exception, which allows it).

| package | version | licence |
|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Licensed:
    """A package of the lock; several versions are for several versions of Python."""

    name: str
    versions: tuple[str, ...]
    licence: str


def licensed() -> Iterator[Licensed]:
    """Every package of the lock, by name."""
    pins = re.findall(r"^([A-Za-z0-9._-]+)==([^ ]+)(?: ; (.*?))? \\$", LOCK.read_text(), flags=re.MULTILINE)
    versions: dict[str, list[str]] = {}
    for name, version, _ in pins:
        versions.setdefault(name, []).append(version)
    markers = {name: marker for name, _, marker in pins}
    for name, found in versions.items():
        yield Licensed(name, tuple(found), _licence(name, markers[name]))


def page() -> str:
    """What ``docs/licences.md`` should hold."""
    rows = [f"| {one.name} | {', '.join(one.versions)} | {one.licence} |" for one in licensed()]
    return INTRODUCTION + "\n".join(rows) + "\n"


def _licence(name: str, marker: str) -> str:
    try:
        about = metadata(name)
    except PackageNotFoundError:
        return f"not installed on Linux with this Python ({marker})" if marker else UNKNOWN
    return _said_by(about)


def _said_by(about: PackageMetadata) -> str:
    if expression := about.get_all("License-Expression"):
        return str(expression[0])
    classified = [
        classifier.rpartition(" :: ")[2]
        for classifier in about.get_all("Classifier") or ()
        if classifier.startswith("License :: ") and classifier != "License :: OSI Approved"
    ]
    # a whole licence text may stand where its name belongs
    written = str((about.get_all("License") or [""])[0]).strip()
    said = classified or ([written] if written and len(written) < 60 else [])
    return " AND ".join(SPELLINGS.get(one, one) for one in said) or UNKNOWN


def main(arguments: list[str]) -> int:
    """What the command line does; 1 when the page is not what the lock says."""
    if arguments == ["--check"]:
        if PAGE.is_file() and PAGE.read_text() == page():
            return 0
        print("docs/licences.md is not what requirements.lock says: make licences", file=sys.stderr)
        return 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
