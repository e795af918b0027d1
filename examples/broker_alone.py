"""The broker by itself: a Dramatiq actor on Redis Streams.

python examples/broker_alone.py                     enqueues three messages
dramatiq examples.broker_alone --processes 2        runs them
"""

from __future__ import annotations

import os

import dramatiq

from broker import RedisStreamsBroker

broker = RedisStreamsBroker(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"), group="example-workers")
dramatiq.set_broker(broker)


@dramatiq.actor(max_retries=3)
def greet(name: str) -> None:
    print(f"hello, {name}", flush=True)


# Workers import this module, too: without this guard, each worker process would enqueue the messages again.
if __name__ == "__main__":
    for name in ("Ada", "Grace", "Edsger"):
        greet.send(name)
    print(f"{broker.stats('default').undelivered} messages wait")
