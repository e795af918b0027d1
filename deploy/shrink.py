"""Remove unused files from an environment: tests of libraries, headers, type stubs, extension sources.

The image build runs ``python shrink.py /opt/sploot`` with the base image's Python, so this script uses only the
standard library.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Final

DIRECTORIES: Final = ("tests", "include", "__pycache__")
NAMED: Final = ("joblib/test",)
SUFFIXES: Final = (".pyi", ".pyx", ".pxd", ".c", ".cpp", ".h", ".hpp", ".a", ".lib", ".tp")


def shrink(environment: Path) -> int:
    """Remove the files and return the number of bytes freed."""
    before = _size(environment)
    for packages in environment.glob("lib/python3.*/site-packages"):
        for directory in [path for path in packages.rglob("*") if path.is_dir() and path.name in DIRECTORIES]:
            shutil.rmtree(directory, ignore_errors=True)
        for name in NAMED:
            shutil.rmtree(packages / name, ignore_errors=True)
        for path in packages.rglob("*"):
            if path.suffix in SUFFIXES and path.is_file():
                path.unlink()
    return before - _size(environment)


def _size(directory: Path) -> int:
    return sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file() and not path.is_symlink())


if __name__ == "__main__":
    print(f"{shrink(Path(sys.argv[1])) / 1e6:.0f} MB removed")
