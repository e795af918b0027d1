"""Build the thin client's wheel: ``python -m deploy.client_distribution DIRECTORY``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from deploy.client_distribution import build

if __name__ == "__main__":
    try:
        print(build(Path(sys.argv[1] if len(sys.argv) > 1 else "dist")))
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error.stdout}{error.stderr}\nthe wheel was not built; install setuptools: pip install -e '.[dev]'")
