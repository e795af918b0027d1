"""Load of each node of a Redis Cluster, by the number of shards: ``make bench ARGS=shards``.

The benchmark runs a cluster of three nodes, and a worker with the real service in this process. The client sends the
events of albums, and then the worker handles them. The benchmark measures the CPU time of each node and of this
process. It starts and stops the nodes.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import dramatiq
import redis

from benchmarks.pipeline.pets import Album, Event, World
from benchmarks.records import number, table
from sploot_cluster.event import EmbeddingIngested
from sploot_cluster.store.redis import RedisPetStore
from tasks.client import ClusterTasks
from tasks.composition import build_client, build_worker
from tasks.contracts import EMBEDDING_INGESTED
from tasks.redis_access.embedded import EmbeddedRedis
from tasks.settings import Settings

N_NODES: Final = 3
N_SHARDS: Final = (1, 16)
N_EVENTS: Final = 4_000
ALBUM: Final = Album(60, 50)
THREADS: Final = 4
# A node's bus uses the port 10,000 higher.
HIGHEST_PORT: Final = 55_000


@dataclass(frozen=True, slots=True)
class Load:
    """The CPU time of one event, in µs: in this process, and in each node, busiest first."""

    process_us: float
    nodes_us: tuple[float, ...]

    @property
    def share_of_busiest(self) -> float:
        return self.nodes_us[0] / sum(self.nodes_us)


@contextmanager
def cluster() -> Iterator[list[EmbeddedRedis]]:
    """Run a cluster of three nodes without replicas."""
    with ExitStack() as stack:
        nodes: list[EmbeddedRedis] = []
        options = {"cluster-enabled": "yes", "appendonly": "no"}
        while len(nodes) < N_NODES:
            node = EmbeddedRedis(options=options)
            if node.port < HIGHEST_PORT:
                nodes.append(stack.enter_context(node))
        addresses = [f"127.0.0.1:{node.port}" for node in nodes]
        create = ["redis-cli", "--cluster", "create", *addresses, "--cluster-yes"]
        subprocess.run(create, check=True, capture_output=True, timeout=60)
        for node in nodes:
            with redis.Redis(port=node.port) as client:
                while "cluster_state:ok" not in str(client.execute_command("CLUSTER", "INFO")):
                    time.sleep(0.1)
        yield nodes


def measure(nodes: list[EmbeddedRedis], n_shards: int, n_events: int) -> Load:
    """Send and handle events with this number of shards, on empty nodes."""
    for node in nodes:
        with redis.Redis(port=node.port) as client:
            client.flushall()
    settings = Settings(redis_url="redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes))
    world = World()
    client = build_client(settings)
    world.populate(RedisPetStore(client), ALBUM)
    broker = build_worker(settings)
    broker.set_shards(EMBEDDING_INGESTED, n_shards)
    events = [EmbeddingIngested.from_fields(_entry(event)) for event in world.events(ALBUM, n_events, traffic="albums")]
    worker = dramatiq.Worker(broker, queues={EMBEDDING_INGESTED}, worker_threads=THREADS)
    before, began = [_cpu_s(node) for node in nodes], time.process_time()
    with ClusterTasks(client=client) as tasks:
        tasks.ingest_many(events)
    worker.start()
    try:
        broker.join(EMBEDDING_INGESTED, interval=200)
        process_s = time.process_time() - began
        dead = broker.stats(EMBEDDING_INGESTED).dead
        spent = [_cpu_s(node) - then for node, then in zip(nodes, before, strict=True)]
    finally:
        worker.stop()
        broker.close()
        client.close()
    if dead:
        raise RuntimeError(f"expected no dead letters, got {dead}: the events were not handled")
    return Load(1e6 * process_s / n_events, tuple(sorted((1e6 * one / n_events for one in spent), reverse=True)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shards", description=__doc__)
    parser.add_argument("--events", type=int, default=N_EVENTS, help="events per measurement")
    n_events = parser.parse_args().events
    rows = []
    with cluster() as nodes:
        for n_shards in N_SHARDS:
            load = measure(nodes, n_shards, n_events)
            by_node = " + ".join(number(round(one)) for one in load.nodes_us)
            rows.append([str(n_shards), number(round(load.process_us)), by_node, f"{load.share_of_busiest:.0%}"])
    print(table(["shards", "process CPU, µs", "Redis CPU by node, µs", "share of the busiest node"], rows))


def _entry(event: Event) -> dict[bytes, bytes]:
    return {
        str(name).encode(): value if isinstance(value, bytes) else str(value).encode() for name, value in event.items()
    }


def _cpu_s(node: EmbeddedRedis) -> float:
    with redis.Redis(port=node.port) as client:
        info: Any = client.info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


if __name__ == "__main__":
    main()
