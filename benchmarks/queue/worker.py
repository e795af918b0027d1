"""A worker process of a contestant: ``python -m benchmarks.queue.worker MODULE:VARIANT``, in its environment."""

from __future__ import annotations

import os
import sys
from typing import Final

from benchmarks.queue import jobs
from benchmarks.queue.adapters import adapter_of

CORE: Final = "BENCH_CORE"


def main() -> None:
    if core := os.environ.get(CORE):
        os.sched_setaffinity(0, {int(core)})
    adapter = adapter_of(sys.argv[1])
    jobs.tally()
    adapter.work()


if __name__ == "__main__":
    main()
