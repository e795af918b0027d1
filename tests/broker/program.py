"""A separate worker process, for tests that stop, kill or fork one.

``processes.started`` runs it as ``python -m tests.broker.program URL LEASE_MS THREADS QUEUES``. Its actors record what
they ran in the Redis list ``ran``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

import dramatiq
import redis
from dramatiq.middleware import Retries

from broker import RedisStreamsBroker

QUEUE = "q"


def declare(broker: RedisStreamsBroker, client: redis.Redis) -> None:
    """Declare the actors. Each records its runs in the Redis list ``ran``."""

    def tell(what: str) -> None:
        client.rpush("ran", what)

    @dramatiq.actor(broker=broker, queue_name=QUEUE)
    def work(label: str) -> None:
        tell(f"work {label}")

    @dramatiq.actor(broker=broker, queue_name=QUEUE)
    def sleep(label: str, seconds: float) -> None:
        tell(f"began {label}")
        time.sleep(seconds)
        tell(f"ended {label}")

    @dramatiq.actor(broker=broker, queue_name=QUEUE)
    def hold_interpreter_lock(label: str, seconds: int) -> None:
        tell(f"began {label}")
        ctypes.PyDLL(None).sleep(seconds)  # a PyDLL keeps the interpreter lock during a call
        tell(f"ended {label}")

    @dramatiq.actor(broker=broker, queue_name=QUEUE)
    def kill_worker(label: str) -> None:
        tell(f"killed by {label}")
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    url, lease_ms, threads, queues = sys.argv[1], *map(int, sys.argv[2:])
    # messages wait in the Worker behind long jobs, so that tests can see what happens to them
    broker = RedisStreamsBroker(url, middleware=[Retries()], lease_ms=lease_ms, long_job_ms=None)
    declare(broker, redis.Redis.from_url(url))
    for number in range(1, queues):
        broker.declare_queue(f"{QUEUE}-{number}")
    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=threads)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    worker.start()
    print("ready", flush=True)
    while not stopping.wait(0.1):
        pass
    worker.stop()
    broker.close()


if __name__ == "__main__":
    main()
