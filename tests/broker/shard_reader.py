"""A program for the shard tests. ``python -m tests.broker.shard_reader URL`` runs a Worker of the queue ``q``."""

from __future__ import annotations

import sys
import time

import dramatiq
import redis

from broker import RedisStreamsBroker

RAN = "ran"  # key of a hash: number of a message -> how often the message ran


def main(url: str) -> None:
    client = redis.Redis.from_url(url)
    broker = RedisStreamsBroker(url, middleware=[], lease_ms=5_000, sharded={"q": lambda message: int(message.args[0])})

    @dramatiq.actor(broker=broker, queue_name="q")
    def work(number: int) -> None:
        time.sleep(0.001)
        client.hincrby(RAN, str(number), 1)

    dramatiq.Worker(broker, worker_timeout=100, worker_threads=2).start()
    print("ready", flush=True)
    time.sleep(3_600)


if __name__ == "__main__":
    main(sys.argv[1])
