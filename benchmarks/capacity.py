"""The memory that Redis needs per item, message and dead letter, and the memory of processes.

``make bench ARGS=capacity`` prints the tables of docs/capacity.md, measured on its own server and processes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import psutil
import redis

from sploot_cluster.pet.models import MediaId, PetId
from tasks.client import ClusterTasks
from tasks.composition import build_service
from tasks.contracts import EMBEDDING_INGESTED, stream_of
from tasks.redis_access.embedded import EmbeddedRedis
from tasks.settings import Settings

DIMENSIONS: Final = (128, 512, 768)
STREAM: Final = stream_of(EMBEDDING_INGESTED)
N_MESSAGES: Final = 5_000


def used(client: redis.Redis) -> int:
    """Return the bytes that Redis uses, including its baseline."""
    info: Any = client.info("memory")
    return int(info["used_memory"])


def vectors(n: int, dim: int, *, n_looks: int = 8) -> Any:
    rng = np.random.default_rng(n + dim)
    looks = rng.normal(size=(n_looks, dim))
    return (looks[np.arange(n) % n_looks] + 0.3 * rng.normal(size=(n, dim))).astype("<f4")


def per_message(client: redis.Redis, url: str) -> list[tuple[str, float]]:
    """Return the bytes per waiting message, by dimension and encoding."""
    rows = []
    with ClusterTasks(url) as tasks:
        for dim in DIMENSIONS:
            drawn = vectors(N_MESSAGES, dim)

            def flat(encoding: str, drawn: Any = drawn, dim: int = dim) -> None:
                pipe = client.pipeline(transaction=False)
                for number, vector in enumerate(drawn):
                    packed = vector.astype("<f2") if encoding == "f16le" else vector
                    fields: dict[Any, Any] = {
                        "schema": "embedding.ingested/1",
                        "event_id": f"{number:032x}",
                        "pet_id": number % 50 + 1,
                    }
                    fields |= {"media_id": f"{number:032x}", "model": "clip@1", "dim": dim, "encoding": encoding}
                    pipe.xadd(STREAM, fields | {"embedding": packed.tobytes()})
                pipe.execute()

            def by_client(drawn: Any = drawn) -> None:
                tasks.ingest_many(
                    {"pet_id": number % 50 + 1, "media_id": f"{number:032x}", "model": "clip@1", "embedding": vector}
                    for number, vector in enumerate(drawn)
                )

            rows.append((f"flat event, f32le, {dim}-d", grown(client, lambda: flat("f32le")) / N_MESSAGES))
            rows.append((f"flat event, f16le, {dim}-d", grown(client, lambda: flat("f16le")) / N_MESSAGES))
            rows.append((f"ClusterTasks.ingest_many, {dim}-d", grown(client, by_client) / N_MESSAGES))
        tracked = 1_000

        def reclusters() -> None:
            for pet in range(1, tracked + 1):
                tasks.recluster(pet_id=pet)

        rows.append(("a waiting recluster, its lock and its record (24 h)", grown(client, reclusters) / tracked))
    return rows


def per_item(client: redis.Redis, *, n_media: int) -> list[tuple[str, float]]:
    """Return the bytes per item of a reclustered pet of this size, by dimension."""
    rows = []
    for dim in DIMENSIONS:
        client.flushall()
        service = build_service(Settings(), client)
        for number, vector in enumerate(vectors(n_media, dim)):
            service.assign(PetId(1), MediaId(f"{number:036x}"), model="clip@1", vector=vector)
        service.recluster(PetId(1))
        n_bytes = sum(int(client.memory_usage(key, samples=0) or 0) for key in client.scan_iter("{pet:1}:*"))
        rows.append((f"{n_media} items, {dim}-d", n_bytes / n_media))
    return rows


def grown(client: redis.Redis, fill: Callable[[], None]) -> int:
    client.flushall()
    before = used(client)
    fill()
    return used(client) - before


def of_processes(url: str) -> list[tuple[str, float]]:
    """Return the memory (USS) of each kind of process in MB, and that of workers after reclusters too."""
    cli = [sys.executable, "-m", "tasks.cli"]
    commands = {
        "worker": [*cli, "worker", "--processes", "1", "--threads", "4"],
        "scheduler": [*cli, "scheduler"],
        "server": [*cli, "serve"],
    }
    environ = {**os.environ, "REDIS_URL": url, "WORKER_METRICS_PORT": "0", "SPLOOT_HTTP_PORT": "0"}
    rows = []
    with TemporaryDirectory() as directory, redis.Redis.from_url(url) as client:
        for name, command in commands.items():
            client.flushall()
            with Path(directory, name).open("wb") as log:
                process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
            try:
                time.sleep(15)
                rows += [(f"{name}: {role}", size / 1e6) for role, size in _family(process.pid)]
                if name == "worker":
                    rows += _worked(client, url, process.pid)
            finally:
                process.terminate()
                process.wait(60)
    return rows


def _worked(client: redis.Redis, url: str, pid: int) -> list[tuple[str, float]]:
    rows = []
    with ClusterTasks(url) as tasks:
        for n_media in (500, 2_000):
            drawn = vectors(n_media, 512)
            tasks.ingest_many(
                {"pet_id": n_media, "media_id": f"{number:032x}", "model": "clip@1", "embedding": vector}
                for number, vector in enumerate(drawn)
            )
            _until(lambda n_media=n_media: client.llen(f"{{pet:{n_media}}}:media") == n_media)  # type: ignore[misc]
            job = tasks.recluster(pet_id=n_media)
            _until(lambda job=job: (known := tasks.job(job.job_id)) is not None and known.state == "succeeded")  # type: ignore[misc]
            largest = max(size for _, size in _family(pid))
            rows.append((f"worker: its process after a recluster of {n_media} × 512", largest / 1e6))
    return rows


def _family(pid: int) -> list[tuple[str, int]]:
    """Return the processes of a command by role, with the unique memory (USS) of each in bytes."""
    parent = psutil.Process(pid)
    children = sorted(parent.children(recursive=True), key=lambda child: -child.memory_full_info().uss)
    sizes = [("master", parent.memory_full_info().uss)]
    return sizes + [(f"child {at}", child.memory_full_info().uss) for at, child in enumerate(children, start=1)]


def _until(look: Callable[[], bool], within_s: float = 300) -> None:
    deadline = time.monotonic() + within_s
    while not look():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the worker did not finish within {within_s:.0f} s")
        time.sleep(0.2)


def table(title: str, unit: str, rows: list[tuple[str, float]]) -> str:
    lines = [f"| {title} | {unit} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {what} | {value:,.0f} |" for what, value in rows)]) + "\n"


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=int, default=500, help="items of the measured pet")
    given = parser.parse_args()
    with EmbeddedRedis(options={"appendonly": "no"}) as server, redis.Redis.from_url(server.url) as client:
        print(f"Redis {client.info('server')['redis_version']}, Python {sys.version.split()[0]}\n")
        print(table("a waiting message", "bytes of Redis", per_message(client, server.url)))
        print(table("a stored item", "bytes of Redis", per_item(client, n_media=given.media)))
        print(table("process", "MB (USS)", of_processes(server.url)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
