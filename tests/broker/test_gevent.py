"""Dramatiq's command for gevent, where every thread is a greenlet and a busy one stops all others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import redis

from tests.broker.scene import KEYS, QUEUE, Scene, message
from tests.support import eventually


def test_busy_greenlet_keeps_the_lease_of_all(stage: Scene, redis_client: redis.Redis) -> None:
    client: Any = redis_client
    producer = stage.process("producer")
    producer.enqueue_many([message("").copy(actor_name="nap", args=(number,)) for number in range(100)])
    producer.enqueue(message("").copy(actor_name="nap", args=(100,)), delay=200)
    command = [
        str(Path(sys.executable).with_name("dramatiq-gevent")),
        "tests.broker.gevent_worker",
        "-p",
        "1",
        "-t",
        "8",
    ]
    worker = subprocess.Popen(command, env={**os.environ, "BROKER_URL": stage.url}, cwd=Path(__file__).parents[2])
    try:
        eventually(lambda: client.llen("ran") == 101, within_s=30)
        producer.enqueue(message("").copy(actor_name="burn", args=(5,)))
        eventually(lambda: client.lindex("ran", -1) == b"began to burn")

        assert next(stage.consumer("robber", timeout=4_500)) is None

        eventually(lambda: client.lindex("ran", -1) == b"burnt")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    finally:
        worker.kill()
        worker.wait()
    assert producer.counters(QUEUE)["recovered"] == 0
    assert client.xlen(KEYS.stream) == 0
