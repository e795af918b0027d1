"""The module that the tests of Dramatiq's commands run, with ``dramatiq tests.broker.commanded``."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable

import dramatiq
import redis
from dramatiq.middleware import Middleware, Retries

from broker import RedisStreamsBroker

URL = os.environ["BROKER_URL"]
client = redis.Redis.from_url(URL)

# Simulate a worker that is still booting when its master ends.
if os.environ.get("BOOT_WITHOUT_MASTER") and multiprocessing.parent_process() is not None:
    master = os.getppid()
    client.rpush("booting", os.getpid())
    while os.getppid() == master:
        time.sleep(0.01)


def say_hello() -> int:
    """Run in a separate process that Dramatiq starts alongside the workers."""
    client.rpush("forked", os.getpid())
    while True:
        time.sleep(60)


class Forking(Middleware):
    @property
    def forks(self) -> list[Callable[[], int]]:
        return [say_hello]


grace = os.environ.get("MASTER_GRACE_MS", "30000")
broker = RedisStreamsBroker(
    URL,
    lease_ms=2_000,
    master_grace_ms=int(grace) if grace else None,
    middleware=[Retries(min_backoff=1, max_backoff=10), Forking()],
)
dramatiq.set_broker(broker)


@dramatiq.actor
def work(n: int, seconds: float = 0.0) -> None:
    client.rpush("began", n)
    time.sleep(seconds)
    client.rpush("ran", n)


@dramatiq.actor
def fail_once(n: int) -> None:
    if client.sadd("failed", n):
        raise ValueError("once")
    client.rpush("ran", n)


@dramatiq.actor
def write_without_master(n: int) -> None:
    """Wait until the master has ended, write more to the log than a pipe holds, and record the outcome."""
    master = os.getppid()
    client.rpush("began", n)
    while os.getppid() == master:
        time.sleep(0.01)
    time.sleep(1)  # in this second, the process itself notices the end of its master, and waits for this job
    try:
        for _ in range(100):
            sys.stderr.write("x" * 10_000)
        client.rpush("wrote", "everything")
    except OSError as error:
        client.rpush("wrote", type(error).__name__)


@dramatiq.actor
def compute(seconds: float) -> None:
    """Block the gevent loop, so that no other greenlet runs."""
    client.rpush("began", -1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    client.rpush("ran", -1)
