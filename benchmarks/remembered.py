"""Cost of an arrival with its pet in the worker's cache, and without: ``make bench ARGS=remembered``.

One thread calls the service, without a queue, on a separate redis-server. The benchmark measures the CPU time of the
process and of the server, and the bytes read from Redis. Each pet in turn receives an arrival; without a cache, the pet
is dropped from memory afterwards. No reclusters are requested.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import redis

from benchmarks.pipeline.pets import MODEL, Album, World
from benchmarks.records import number, table
from sploot_cluster import ClusterService
from sploot_cluster.pet.models import MediaId, PetId
from sploot_cluster.store.redis import RedisPetStore
from tasks.redis_access.embedded import EmbeddedRedis

SIZES: Final = (50, 500, 2_000)
N_PETS: Final = 40
ROUNDS: Final = 10


@dataclass(frozen=True, slots=True)
class Cost:
    """The average cost of one arrival."""

    worker_us: float
    redis_us: float
    bytes_out: float


def measure(client: redis.Redis, world: World, album: Album, *, cache_bytes: int, rounds: int) -> Cost:
    service = ClusterService(RedisPetStore(client), cache_bytes=cache_bytes)
    names = itertools.count(time.monotonic_ns())
    events = list(world.events(album, 1_000, traffic="uniform"))

    def arrive_everywhere() -> None:
        for pet in range(1, album.n_pets + 1):
            item = next(names)
            vector = np.frombuffer(events[item % len(events)]["embedding"], "<f4")
            service.assign(PetId(pet), MediaId(f"{item:036d}"), model=MODEL, vector=vector)

    arrive_everywhere()
    before, began = _facts(client), time.process_time()
    for _ in range(rounds):
        arrive_everywhere()
    n, after = rounds * album.n_pets, _facts(client)
    cpu_s = time.process_time() - began
    return Cost(1e6 * cpu_s / n, 1e6 * (after[0] - before[0]) / n, (after[1] - before[1]) / n)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.remembered", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="arrivals per pet")
    rounds = parser.parse_args().rounds
    rows = []
    with (
        EmbeddedRedis(options={"auto-aof-rewrite-percentage": "0"}) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        for size in SIZES:
            album, world = Album(N_PETS, size), World()
            client.flushall()
            world.populate(RedisPetStore(client), album)
            warm = measure(client, world, album, cache_bytes=1 << 31, rounds=rounds)
            cold = measure(client, world, album, cache_bytes=0, rounds=rounds)
            rows += [[f"{number(size)} media, {what}", *_row_of(cost)] for what, cost in (("yes", warm), ("no", cold))]
    print(table(["remembered?", "worker CPU, µs", "Redis CPU, µs", "bytes from Redis"], rows))


def _row_of(cost: Cost) -> list[str]:
    return [number(round(cost.worker_us)), number(round(cost.redis_us)), number(round(cost.bytes_out))]


def _facts(client: redis.Redis) -> tuple[float, float]:
    info: Any = client.info("all")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"]), float(info["total_net_output_bytes"])


if __name__ == "__main__":
    main()
