"""Cost of an arrival in pets of many sizes, on a real Redis. ``python -m benchmarks.arrivals [SIZE …]``.

A pet is filled and reclustered. Then items arrive one by one at a service in this process, which loads new data,
decides and commits. There are two ways to decide: ``assign`` uses the clusters' thresholds (faiss), and ``exact``
clusters all items again from a spanning tree that grows with each arrival. Then reclusters are measured: from scratch,
from a tree that another process stored in Redis, and from the tree in memory. The first two each start in a new
process, whose peak memory beyond imports (including the pet) is also printed. With ``--workers 2``, two processes write
to separate pets at the same time. CPU times exclude Redis; on a busy machine, they are more meaningful than wall times.
The vectors are those of ``benchmarks.density``, 512 values each; the server keeps an append-only file. With
``--long-tail``, the reclustered pets consist of many small groups and much noise, which takes the most memory.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from sploot_cluster.threads import one_thread_each

# limit native threads, as in a worker
one_thread_each(os.environ)

import numpy as np
import redis

from benchmarks.density import DIM, pictures
from benchmarks.records import machine_facts, number, table
from sploot_cluster.pet.models import NOISE, Arrival, Change, MediaId, Origin, PetId, Reclustered
from sploot_cluster.pet.vectors import FloatMatrix, as_vectors
from sploot_cluster.service import ClusterService
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.store.redis import RedisPetStore
from tasks.redis_access.embedded import EmbeddedRedis

SIZES: Final = (200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000)
WAYS: Final = {"assign": ClusterSettings(exact_until=0), "exact": ClusterSettings(exact_until=1_000_000)}
# Maximum size of a pet for exact arrivals; in larger ones, a single arrival takes over a second.
MOST_EXACT: Final = 20_000
MODEL: Final = "clip@1"


@dataclass(frozen=True, slots=True)
class Arrivals:
    """The cost of arrivals in pets of one size, decided in one of the two ways."""

    n_media: int
    way: str
    workers: int
    n: int
    per_second: float
    p50_ms: float
    p95_ms: float
    cpu_ms: float


@dataclass(frozen=True, slots=True)
class Reclusters:
    """The durations of reclusters of one pet, including load and commit, and their CPU times in the same order.

    ``peak_mb`` is the peak memory, beyond imports, of the process that started from scratch and of the process that
    loaded the tree from Redis. ``n_clusters`` and ``n_noise`` are the clusters found, and the items in none.
    """

    n_media: int
    n_clusters: int
    n_noise: int
    from_nothing_s: float
    from_store_s: float
    from_memory_s: float
    cpu_s: tuple[float, ...]
    peak_mb: tuple[float, float]


def long_tail(n: int, *, seed: int = 1) -> FloatMatrix:
    """Return (n, 512) unit vectors: 30 % noise, and groups of five or six items."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, DIM), dtype=np.float32)
    n_noise, n_groups = 3 * n // 10, 12 * n // 100
    centres = rng.standard_normal((n_groups, DIM), dtype=np.float32)
    x[n_noise:] = centres[np.arange(n - n_noise) % n_groups] + np.float32(0.45) * x[n_noise:]
    return as_vectors(x)


def fill(store: RedisPetStore, pet: PetId, vectors: FloatMatrix) -> None:
    """Create a pet with these vectors and without clusters."""
    for start in range(0, len(vectors), 2_000):
        state = store.load(pet)
        block = vectors[start : start + 2_000]
        is_first = not state.n_media
        store.commit(
            state,
            Change(
                "arrival",
                next_cluster=state.next_cluster,
                n_at_recluster=0,
                noise_arrivals=0,
                model=MODEL if is_first else None,
                dim=vectors.shape[1] if is_first else None,
                arrivals=tuple(
                    Arrival(media_id(start + row), vector, NOISE, Origin.NOISE) for row, vector in enumerate(block)
                ),
            ),
        )


def media_id(row: int) -> MediaId:
    return MediaId(f"{row:08x}-5f3c-4a51-9d2e-7b1c20d4e6aa")


def arrive(url: str, pet: PetId, way: str, vectors: FloatMatrix, first: int) -> tuple[list[float], float]:
    """Return the duration of each arrival and the total CPU time, in seconds, after three warm-up arrivals."""
    with redis.Redis.from_url(url) as client:
        service = ClusterService(RedisPetStore(client), settings=WAYS[way])
        took = []
        for row in range(first, len(vectors)):
            if row == first + 3:
                cpu_s = time.process_time()
            start = time.perf_counter()
            service.assign(pet, media_id(row), model=MODEL, vector=vectors[row])
            took.append(time.perf_counter() - start)
        return took[3:], time.process_time() - cpu_s


def measure_arrivals(url: str, n: int, way: str, *, workers: int, n_arrivals: int, first_pet: int) -> Arrivals:
    vectors = pictures(n + n_arrivals + 3)
    with redis.Redis.from_url(url) as client:
        store = RedisPetStore(client)
        for number_ in range(workers):
            fill(store, PetId(first_pet + number_), vectors[:n])
            ClusterService(store).recluster(PetId(first_pet + number_))
    jobs = [(url, PetId(first_pet + number_), way, vectors, n) for number_ in range(workers)]
    if workers == 1:
        by_worker = [arrive(*jobs[0])]
    else:
        with get_context("spawn").Pool(workers) as pool:
            by_worker = pool.starmap(arrive, jobs)
    took = np.concatenate([one for one, _ in by_worker])
    return Arrivals(
        n,
        way,
        workers,
        len(took),
        per_second=sum(len(one) / sum(one) for one, _ in by_worker),
        p50_ms=1e3 * float(np.quantile(took, 0.5)),
        p95_ms=1e3 * float(np.quantile(took, 0.95)),
        cpu_ms=1e3 * sum(cpu_s for _, cpu_s in by_worker) / len(took),
    )


def recluster(url: str, pet: PetId, times: int) -> tuple[list[tuple[float, float]], float, Reclustered]:
    """Return wall and CPU seconds of each recluster, the peak memory in MB, and the last report.

    Run this in a fresh process.
    """
    import sploot_cluster.density  # noqa: F401 (as a worker does when it boots)

    # reset the peak; ru_maxrss would include the peak of the parent process
    Path("/proc/self/clear_refs").write_text("5")
    before_mb = memory_mb("VmRSS")
    took = []
    with redis.Redis.from_url(url) as client:
        service = ClusterService(RedisPetStore(client))
        for _ in range(times):
            start, cpu_start = time.perf_counter(), time.process_time()
            found = service.recluster(pet)
            took.append((time.perf_counter() - start, time.process_time() - cpu_start))
    return took, memory_mb("VmHWM") - before_mb, found


def memory_mb(fact: str) -> float:
    """Return the memory of this process in MB: ``VmRSS`` is the current value, ``VmHWM`` the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{fact}:")) / 1024


def measure_reclusters(url: str, vectors: FloatMatrix, pet: PetId) -> Reclusters:
    with redis.Redis.from_url(url) as client:
        fill(RedisPetStore(client), pet, vectors)
    context = get_context("spawn")
    with context.Pool(1) as first, context.Pool(1) as second:
        (from_nothing,), nothing_mb, found = first.apply(recluster, (url, pet, 1))
        (from_store, from_memory), store_mb, _ = second.apply(recluster, (url, pet, 2))
    seconds, cpu_s = zip(from_nothing, from_store, from_memory, strict=True)
    return Reclusters(
        len(vectors), found.n_clusters, found.n_noise, *seconds, cpu_s=cpu_s, peak_mb=(nothing_mb, store_mb)
    )


def report(arrivals: Sequence[Arrivals], reclusters: Sequence[Reclusters]) -> str:
    parts = []
    if arrivals:
        columns = ("media of the pet", "way", "processes", "arrivals", "per second", "p50 ms", "p95 ms", "CPU ms")
        rows = [
            (
                f"{one.n_media:,}",
                one.way,
                str(one.workers),
                str(one.n),
                number(one.per_second),
                number(one.p50_ms),
                number(one.p95_ms),
                number(one.cpu_ms),
            )
            for one in arrivals
        ]
        parts.append(table(columns, rows))
    if reclusters:
        facts = (
            "media of the pet",
            "clusters",
            "noise",
            "recluster from scratch, s",
            "from the tree in Redis, s",
            "from memory, s",
            "CPU s",
            "peak MB from scratch, from Redis",
        )
        parts.append(
            table(
                facts,
                [
                    (
                        f"{one.n_media:,}",
                        f"{one.n_clusters:,}",
                        f"{one.n_noise:,}",
                        number(one.from_nothing_s),
                        number(one.from_store_s),
                        number(one.from_memory_s),
                        ", ".join(number(value) for value in one.cpu_s),
                        ", ".join(number(value) for value in one.peak_mb),
                    )
                    for one in reclusters
                ],
            )
        )
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sizes", nargs="*", type=int, default=list(SIZES))
    parser.add_argument("--arrivals", type=int, default=100, help="arrivals per pet and way")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that run at the same time, each on its own pet"
    )
    parser.add_argument("--ways", nargs="*", choices=[*WAYS, "recluster"], default=[*WAYS, "recluster"])
    parser.add_argument("--long-tail", action="store_true", help="recluster pets of small groups and much noise")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    arguments = parser.parse_args()
    arrivals: list[Arrivals] = []
    reclusters: list[Reclusters] = []
    pet = 1
    with EmbeddedRedis(unix_socket=True) as server:
        for n in arguments.sizes:
            for way in arguments.ways:
                if way == "recluster":
                    vectors = long_tail(n) if arguments.long_tail else pictures(n)
                    reclusters.append(measure_reclusters(server.url, vectors, PetId(pet)))
                elif way == "assign" or n <= MOST_EXACT:
                    arrivals.append(
                        measure_arrivals(
                            server.url, n, way, workers=arguments.workers, n_arrivals=arguments.arrivals, first_pet=pet
                        )
                    )
                pet += arguments.workers
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(report(arrivals, reclusters))
    if arguments.json:
        found: dict[str, Any] = {
            "machine": machine_facts(),
            "settings": {way: {"exact_until": settings.exact_until} for way, settings in WAYS.items()},
            "arrivals": [asdict(one) for one in arrivals],
            "reclusters": [asdict(one) for one in reclusters],
        }
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
