"""The time for which commands on big pets keep Redis busy. ``make bench ARGS=big_pets``.

Redis runs one command at a time, so all queues and pets wait while it reads or writes a part of a big pet. Each
operation on a pet runs in a separate process. The table shows its duration, the slowest command that the server
executed in that time (SLOWLOG), and the peak memory of the process beyond that of an idle one. Commands may take longer
if other programs run on the machine. Ids have 36 characters, vectors have 512 values, and the server keeps an
append-only file.
"""

from __future__ import annotations

import argparse
import re
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import psutil
import redis

from benchmarks.records import table
from sploot_cluster.pet.models import Arrival, Change, ClusterCard, ClusterId, MediaId, Origin, PetId
from sploot_cluster.service import ClusterService
from sploot_cluster.store.redis import RedisPetStore
from tasks.redis_access.embedded import EmbeddedRedis

SIZES: Final = (2_000, 50_000, 262_000)
PET: Final = PetId(1)
DIM: Final = 512
PER_CLUSTER: Final = 200
MODEL: Final = "clip@1"

# Length of Redis's slow log: more commands than any measured operation runs, including commands in scripts.
MOST_COMMANDS: Final = 200_000


@dataclass(frozen=True, slots=True)
class Use:
    """The cost of one operation on a pet.

    Attributes:
        longest_ms: the time that the server took for its slowest command.
        command: the name of that command.
        usual_ms: the median time of the slowest kind of command or script. Interruptions by other programs hardly
            affect it.
    """

    n_media: int
    what: str
    seconds: float
    longest_ms: float
    command: str
    peak_mb: float
    usual_ms: float


USES: Final[dict[str, Callable[[ClusterService], object]]] = {
    "clusters": lambda service: service.clusters(PET),
    "a page of items": lambda service: service.items(PET, limit=1_000),
    "delete an item": lambda service: service.delete_media(PET, [item(7)], by="ann"),
    "export": lambda service: sum(map(len, service.export_parts(PET))),
    "delete the pet": lambda service: service.delete_pet(PET),
}


def item(row: int) -> MediaId:
    return MediaId(f"{row:08x}-5f3c-4a51-9d2e-7b1c20d4e6aa")


def fill(store: RedisPetStore, n: int) -> None:
    """Create a pet of this size, in clusters of ``PER_CLUSTER`` items."""
    state = store.load(PET)
    rng = np.random.default_rng(n)
    for start in range(0, n, 2_000):
        rows = range(start, min(start + 2_000, n))
        vectors = rng.normal(size=(len(rows), DIM))
        vectors /= np.linalg.norm(vectors, axis=1)[:, None]
        ids = [ClusterId(row // PER_CLUSTER + 1) for row in rows]
        state = store.commit(
            state,
            Change(
                "arrival",
                next_cluster=ClusterId(max(ids) + 1),
                n_at_recluster=0,
                noise_arrivals=0,
                model=None if start else MODEL,
                dim=None if start else DIM,
                arrivals=tuple(
                    Arrival(item(row), vector, id_, Origin.CORE)
                    for row, vector, id_ in zip(rows, vectors.astype(np.float32), ids, strict=True)
                ),
                clusters={id_: ClusterCard(id_, threshold=0.5, since=1) for id_ in set(ids)},
            ),
        )


def used(url: str, what: str) -> tuple[float, float]:
    """Run the operation ``what``; return its duration in seconds and the additional peak memory in MB."""
    with redis.Redis.from_url(url, socket_timeout=60) as client:
        service = ClusterService(RedisPetStore(client))
        service.clusters(PetId(99))
        _forget_peak()
        before = psutil.Process().memory_info().rss / 1e6
        start = time.perf_counter()
        USES[what](service)
        return time.perf_counter() - start, _peak_mb() - before


def measure(url: str, n: int, uses: tuple[str, ...] = tuple(USES)) -> list[Use]:
    """Fill a pet, which must not exist, and run each of these operations on it."""
    found = []
    with redis.Redis.from_url(url) as client, get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        fill(RedisPetStore(client), n)
        client.config_set("slowlog-log-slower-than", 0)
        client.config_set("slowlog-max-len", MOST_COMMANDS)
        for what in uses:
            client.slowlog_reset()
            seconds, peak_mb = pool.apply(used, (url, what))
            logged: Any = client.slowlog_get(MOST_COMMANDS)
            entries = [entry for entry in logged if not entry["command"].startswith(b"SLOWLOG")]
            longest_us, command = max(((entry["duration"], entry["command"]) for entry in entries), default=(0, b""))
            name = command.split(b" ")[0].decode()
            found.append(Use(n, what, seconds, longest_us / 1000, name, peak_mb, _usual_ms(entries)))
    return found


def _usual_ms(entries: Sequence[Mapping[str, Any]]) -> float:
    """Return ``Use.usual_ms``, computed from the entries of the slow log."""
    took: dict[bytes, list[float]] = defaultdict(list)
    for entry in entries:
        # a script is named by its hash, the second word
        took[b" ".join(entry["command"].split(b" ")[:2])].append(entry["duration"] / 1000)
    return max(map(median, took.values()), default=0.0)


def _forget_peak() -> None:
    """Reset the peak memory of this process, where the system supports it (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> int:
    """Print a table for the given sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=SIZES)
    rows = []
    for n in parser.parse_args().sizes:
        with EmbeddedRedis(options={"appendonly": "yes"}) as server:
            rows += measure(server.url, n)
    names = ("items", "use", "s", "longest command, ms", "usually, ms", "command", "peak MB")
    values = [
        (
            f"{u.n_media:,}",
            u.what,
            f"{u.seconds:.2f}",
            f"{u.longest_ms:.1f}",
            f"{u.usual_ms:.1f}",
            u.command,
            f"{u.peak_mb:.0f}",
        )
        for u in rows
    ]
    print(table(names, values))
    return 0


if __name__ == "__main__":
    sys.exit(main())
