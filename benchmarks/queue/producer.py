"""A producer process of a contestant: ``python -m benchmarks.queue.producer MODULE:VARIANT VERB …`` prints JSON.

send N             enqueue N jobs one by one: seconds and CPU seconds
batches N SIZE     enqueue N jobs in batches of SIZE: seconds and CPU seconds; null if the contestant has no batches
ping N PAUSE       enqueue N jobs with a pause before each: milliseconds from each call until the job began
fill N SIZE        enqueue N jobs as fast as possible: their number
hold N             enqueue N numbered jobs: their number
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.queue.adapters import Adapter, NotOffered, adapter_of
from benchmarks.queue.tally import LATENCY_NS, N_PINGS, Tallies

# Name of the environment variable with the harness's directory. Workers use another one, because a producer has no
# tally.
PINGS: Final = "BENCH_PINGS"
WARM_UP: Final = 50
LONGEST_WAIT_S: Final = 20.0


def main() -> None:
    name, verb, *rest = sys.argv[1:]
    adapter = adapter_of(name)
    match verb, [float(number) for number in rest]:
        case "send", [n]:
            print(json.dumps(_seconds(adapter, lambda: adapter.send(int(n)))))
        case "batches", [n, size]:
            try:
                print(json.dumps(_seconds(adapter, lambda: adapter.send_batches(int(n), int(size)))))
            except NotOffered:
                print(json.dumps(None))
        case "fill", [n, size]:
            try:
                adapter.send_batches(int(n), int(size))
            except NotOffered:
                adapter.send(int(n))
            print(json.dumps(n))
        case "ping", [n, pause_s]:
            print(json.dumps(_pings(adapter, int(n), pause_s)))
        case "hold", [n]:
            for number in range(int(n)):
                adapter.hold(number)
            print(json.dumps(n))
        case _:
            raise SystemExit(__doc__)


def _seconds(adapter: Adapter, work: Callable[[], None]) -> tuple[float, float]:
    adapter.send(WARM_UP)
    start, cpu_start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu_start


def _pings(adapter: Adapter, n: int, pause_s: float) -> list[float]:
    directory = Path(os.environ[PINGS])
    tallies = Tallies(directory)
    latencies_ms = []
    for turn in range(n):
        # vary the pause, so that pings are not synchronised with the contestant's polling
        time.sleep(pause_s * (0.8 + 0.4 * (turn * 0.618 % 1)))
        before = sum(words[N_PINGS] for words in tallies.read())
        adapter.ping(time.monotonic_ns())
        gives_up_at = time.monotonic() + LONGEST_WAIT_S
        while sum(words[N_PINGS] for words in tallies.read()) == before:
            if time.monotonic() > gives_up_at:
                raise SystemExit(f"a job did not begin within {LONGEST_WAIT_S} s")
            time.sleep(0.0005)
        latencies_ms.append(max(words[LATENCY_NS] for words in tallies.read()) / 1e6)
    return latencies_ms


if __name__ == "__main__":
    main()
