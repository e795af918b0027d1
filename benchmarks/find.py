"""Time of `queue find --pet` among 100,000 jobs, with and without the index that workers and servers keep.

``make bench ARGS=find`` or ``python -m benchmarks.find [JOBS]``. The jobs alternate between flat events and Dramatiq
messages, with 512 values each, for 5,000 pets. The benchmark starts its own redis-server.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import redis

from broker import RedisStreamsBroker
from sploot_cluster.event import EmbeddingIngested
from tasks.contracts import EMBEDDING_INGESTED, GROUP, stream_of
from tasks.queue_ops.pet_index import KeepPetIndex, PetIndex, find_jobs
from tasks.redis_access.embedded import EmbeddedRedis

T = TypeVar("T")

N_PETS = 5_000
DIM = 512
BATCH = 500
# Number of jobs that are not indexed yet at 500 uploads a second: every three seconds, jobs that have waited for two
# seconds are indexed.
GREW_BY = 2_500


def fill(client: redis.Redis, broker: RedisStreamsBroker, n: int) -> None:
    embedding = np.random.default_rng(1).normal(size=DIM).astype("<f4").tobytes()
    import dramatiq

    for start in range(0, n, BATCH):
        pipe: Any = client.pipeline(transaction=False)
        for number in range(start, min(n, start + BATCH)):
            pet_id, media_id = number % N_PETS + 1, f"media-{number}"
            if number % 2:
                pipe.xadd(
                    stream_of(EMBEDDING_INGESTED),
                    {
                        "schema": "embedding.ingested/1", "event_id": f"event-{number}", "pet_id": str(pet_id),
                        "media_id": media_id, "model": "clip@1", "dim": str(DIM), "encoding": "f32le",
                        "embedding": embedding,
                    },
                )  # fmt: skip
            else:
                event = EmbeddingIngested(pet_id, media_id, "clip@1", embedding)
                message: dramatiq.Message[Any] = dramatiq.Message(
                    EMBEDDING_INGESTED, event.actor_name, (), event.to_kwargs(), {}
                )
                pipe.xadd(stream_of(EMBEDDING_INGESTED), {"message": message.encode()})
        pipe.execute()


def timed(ask: Callable[[], T]) -> tuple[T, float]:
    """Return the result of ``ask``, and the seconds that it took."""
    start = time.perf_counter()
    answer = ask()
    return answer, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.find", description=__doc__)
    parser.add_argument("jobs", type=int, nargs="?", default=100_000, help="number of waiting jobs")
    n = parser.parse_args().jobs
    with EmbeddedRedis(options={"appendonly": "no"}) as server, redis.Redis.from_url(server.url) as client:
        broker = RedisStreamsBroker(client=client, group=GROUP, middleware=[])
        fill(client, broker, n)
        (found, n_indexed), cold_s = timed(lambda: find_jobs(broker, client, 42))
        print(f"redis-server {client.info()['redis_version']}, {n:,} jobs of {N_PETS:,} pets, {DIM} values each")
        print(f"without an index: {1000 * cold_s:7.1f} ms ({n_indexed:,} entries read, {len(found)} found)")
        index = PetIndex(client, EMBEDDING_INGESTED)
        client.delete(*index._keys[1:])
        _, index_s = timed(KeepPetIndex(client).run_once)
        fill(client, broker, GREW_BY)
        (_, n_indexed), first_s = timed(lambda: find_jobs(broker, client, 42))
        print(f"one process indexes them in {index_s:.1f} s; then {GREW_BY:,} more arrive, and the first query takes")
        print(f"                  {1000 * first_s:7.1f} ms ({n_indexed:,} entries read)")
        times = [timed(partial(find_jobs, broker, client, pet_id))[1] for pet_id in range(1, 102)]
        print(f"with the index:   {1000 * statistics.median(times):7.1f} ms median, {1000 * max(times):.1f} ms at most")
        n += GREW_BY
        client.delete(*index._keys[1:])
        calls = []
        while (noted := timed(lambda: index.note(waited_ms=0)))[0]:
            calls.append(noted[1])
        each = 1e6 * sum(calls) / n
        print(f"keeping it:       {each:7.1f} µs per waiting job, {1000 * max(calls):.1f} ms for the longest call")
        print(f"its size:         {client.memory_usage(index._keys[1]) / n:7.0f} bytes per waiting job")


if __name__ == "__main__":
    main()
