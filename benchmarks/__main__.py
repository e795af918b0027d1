"""Run all benchmarks, or one with its options: ``make bench``, ``make bench ARGS='queue --rounds 3'``."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

# The benchmarks, in the order in which they run. Each is a module of this package and has --help.
PARTS: Final = (
    "queue",
    "pipeline",
    "density",
    "arrivals",
    "quality",
    "teaching",
    "bill",
    "suggestions",
    "locking",
    "growth",
    "merges",
    "remembered",
    "big_pets",
    "find",
    "capacity",
    "shards",
    "footprint",
)


def main() -> int:
    asked = sys.argv[1:]
    if asked and asked[0] in ("-h", "--help"):
        print(f"{__doc__}\nparts: {', '.join(PARTS)}; each has a --help")
        return 0
    if asked and asked[0] not in PARTS:
        print(f"unknown part {asked[0]!r}; expected one of {', '.join(PARTS)}", file=sys.stderr)
        return 2
    parts, rest = (asked[:1], asked[1:]) if asked else (PARTS, [])
    failed = [
        part for part in parts if subprocess.run([sys.executable, "-m", f"{__package__}.{part}", *rest]).returncode
    ]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
