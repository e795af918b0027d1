"""The module that ``dramatiq-gevent tests.broker.gevent_worker`` runs; the environment names the server."""

from __future__ import annotations

import os
import time

import dramatiq
import redis

from broker import RedisStreamsBroker

url = os.environ["BROKER_URL"]
broker = RedisStreamsBroker(url, lease_ms=2_000)
dramatiq.set_broker(broker)
client = redis.Redis.from_url(url)


@dramatiq.actor(queue_name="q")
def nap(number: int) -> None:
    time.sleep(0.01)
    client.rpush("ran", f"nap {number}")


@dramatiq.actor(queue_name="q")
def burn(seconds: float) -> None:
    """Let no other greenlet run for this many seconds."""
    client.rpush("ran", "began to burn")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    client.rpush("ran", "burnt")
