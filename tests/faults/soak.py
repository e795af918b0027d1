"""A soak test: hours of ordinary traffic with small faults, after which everything must be as small as before.

Usage: ``python -m tests.faults.soak [--minutes 60] [--rate 200]``

Two pods run the whole time and must not grow. A third is reloaded every minute, so that consumers come and go.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis

from tests.faults.campaign import drained
from tests.faults.checker import DEAD, GROUP, STREAM, Verdict, judge
from tests.faults.nemeses import USUAL, cut_a_script
from tests.faults.stage import Stage

WARM_UP_S = 30.0
SLICE_S = 60.0
# Maximum growth of the server after an hour, in bytes: allows for fragmented pages, arenas and client buffers.
SERVER_MAY_GROW = 1 << 20
PROCESS_MAY_GROW = 24 << 20
# After this time even the record of a producer's last enqueue has expired, so a key that still exists is permanent.
FORGOTTEN_AFTER_S = 16 * 60


@dataclass(frozen=True, slots=True)
class Size:
    """The sizes of the server and the processes while no work is waiting.

    Attributes:
        keys: name -> number of members, for keys that do not expire.
        consumers: names in the group, without the reserved consumer of handed-back entries, which is permanent.
        n_expiring: number of keys that expire: the records of last enqueues, which last 15 minutes at most.
        server_bytes: used_memory, without the keys that expire.
        processes: pid -> (resident bytes, threads, open files) of the pods that are never reloaded.
    """

    keys: dict[str, int]
    consumers: tuple[str, ...]
    n_expiring: int
    server_bytes: int
    processes: dict[int, tuple[int, int, int]]


def size_of(stage: Stage) -> Size:
    client = stage.client
    lengths: dict[bytes, Callable[[str], int]] = {
        b"stream": client.xlen,
        b"zset": client.zcard,
        b"hash": client.hlen,
        b"string": client.strlen,
    }
    keys, expiring = {}, []
    for key in client.scan_iter(count=1_000):
        kind, ttl = client.type(key), client.pttl(key)
        if kind != b"none" and ttl == -1:
            # one field per kind of event, so the number of fields does not matter
            keys[key.decode()] = 1 if key.endswith(b":counters") else lengths[kind](key)
        elif ttl >= 0:
            expiring.append(int(client.memory_usage(key) or 0))
    client.execute_command("MEMORY", "PURGE")
    processes = {}
    for pod in stage.pods[1:]:
        for process in pod.workers():
            with suppress(psutil.NoSuchProcess):
                processes[process.pid] = (process.memory_info().rss, process.num_threads(), process.num_fds())
    try:
        consumers = [one["name"].decode() for one in client.xinfo_consumers(STREAM, GROUP)]
    except redis.ResponseError:
        consumers = []
    workers = tuple(name for name in consumers if name != "~handed-back")
    used = int(client.info("memory")["used_memory"])
    return Size(keys, workers, len(expiring), used - sum(expiring), processes)


def grown(before: Size, after: Size) -> list[str]:
    """Return a sentence on each size that did not return to its earlier value."""
    found = [
        f"{key} held {before.keys.get(key, 0)} and holds {n}"
        for key, n in after.keys.items()
        if n > before.keys.get(key, 0)
    ]
    if len(after.consumers) > len(before.consumers):
        found.append(f"the group had consumers {before.consumers} and has {after.consumers}")
    if after.server_bytes > before.server_bytes + SERVER_MAY_GROW:
        found.append(f"the server used {before.server_bytes} bytes and uses {after.server_bytes}")
    for pid, (rss, threads, files) in before.processes.items():
        if pid not in after.processes:
            found.append(f"process {pid} is gone")
            continue
        rss_now, threads_now, files_now = after.processes[pid]
        if rss_now > rss + PROCESS_MAY_GROW:
            found.append(f"process {pid} had {rss} resident bytes and has {rss_now}")
        # allow for one thread and two connections that were first needed later
        if threads_now > threads + 1 or files_now > files + 2:
            found.append(f"process {pid} had {threads} threads, {files} files and has {threads_now}, {files_now}")
    return found


def soak(stage: Stage, *, minutes: float, rate: int, seed: int) -> bool:
    rng = random.Random(seed)
    print(f"seed {seed}: {minutes:g} minutes at {rate} messages/s", flush=True)
    _load(stage, "warm", WARM_UP_S, rate, rng)
    _settle(stage)
    stage.ledger.clear()
    before = size_of(stage)
    ends_at, number = time.monotonic() + minutes * 60, 0
    while time.monotonic() < ends_at:
        _load(stage, f"s{number}p", min(SLICE_S, max(1.0, ends_at - time.monotonic())), rate, rng)
        stage.pods[0].signal(signal.SIGHUP)
        number += 1
    verdict = _settle(stage)
    after = size_of(stage)
    # the third pod may still be starting, and a consumer whose deregistration failed is removed after five minutes
    give_up_at = time.monotonic() + FORGOTTEN_AFTER_S
    while grown(before, after) and time.monotonic() < give_up_at:
        time.sleep(2)
        after = size_of(stage)

    faults = grown(before, after)
    print(f"{verdict.fates.get('confirmed', 0)} confirmed, {len(verdict.lost)} lost, {verdict.reruns} ran again")
    for name in sorted({*before.keys, *after.keys}):
        print(f"  {name}: {before.keys.get(name, 0)} -> {after.keys.get(name, 0)}")
    print(f"  consumers: {len(before.consumers)} -> {len(after.consumers)}")
    print(f"  keys that expire by themselves: {before.n_expiring} -> {after.n_expiring}")
    print(f"  server, without them: {before.server_bytes} -> {after.server_bytes} bytes")
    for pid, was in before.processes.items():
        print(f"  process {pid}: resident, threads, files: {was} -> {after.processes.get(pid)}")
    for fault in faults:
        print(f"  GREW: {fault}")
    return verdict.is_good and not faults


def _load(stage: Stage, name: str, for_s: float, rate: int, rng: random.Random) -> None:
    producer = stage.producer(name, int(for_s * rate), rng.randrange(2**32), for_s, USUAL)
    while producer.poll() is None:
        cut_a_script(stage, rng)
        time.sleep(rng.uniform(0.2, 2.0))
    if producer.wait():
        raise RuntimeError(f"the producer failed: {stage.last_words()}")


def _settle(stage: Stage) -> Verdict:
    """Wait until the queues are empty, check the guarantees, and delete the dead letters."""
    stage.heal()
    queue = drained(stage)
    verdict = judge(stage.ledger.read(), queue)
    stage.client.delete(DEAD, f"{DEAD}:mistakes")
    return verdict


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.faults.soak", description="Check that nothing grows.")
    arguments.add_argument("--minutes", type=float, default=60.0)
    arguments.add_argument("--rate", type=int, default=200, help="messages per second")
    arguments.add_argument("--seed", type=int, default=random.randrange(2**32))
    chosen = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="soak-") as directory, Stage(Path(directory)) as stage:
        is_good = soak(stage, minutes=chosen.minutes, rate=chosen.rate, seed=chosen.seed)
    print("good" if is_good else "BAD")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
