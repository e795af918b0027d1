"""A process stops in bounded time while Redis hangs, whatever the number of its queues, and loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis

from broker import RedisStreamsBroker
from broker.keys import QueueKeys
from tasks.embedded_redis import EmbeddedRedis
from tests.broker.processes import started
from tests.broker.program import QUEUE
from tests.broker.scene import GROUP, message
from tests.support import eventually

ANSWER_S = 2
N_QUEUES = 24


def stop_while_redis_hangs(server: EmbeddedRedis, process: subprocess.Popen[str]) -> int:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        process.send_signal(signal.SIGTERM)
        # waiting for an answer once per queue would take over two minutes
        return process.wait(N_QUEUES * ANSWER_S)
    finally:
        os.kill(server.pid, signal.SIGCONT)


@pytest.mark.slow
def test_stop_asks_a_hanging_server_once_for_all_queues(tmp_path: Path) -> None:
    with (
        EmbeddedRedis(directory=tmp_path, options={"appendonly": "no"}) as server,
        redis.Redis.from_url(server.url) as found,
    ):
        client: Any = found
        url = f"{server.url}?socket_timeout={ANSWER_S}"
        with started(url, lease_ms=2_000, queues=N_QUEUES) as process:
            last = QueueKeys("streams", f"{QUEUE}-{N_QUEUES - 1}").consumers
            eventually(lambda: client.zcard(last))

            assert stop_while_redis_hangs(server, process) == 0


@pytest.mark.slow
def test_stop_while_redis_hangs_leaves_messages_to_run_again(tmp_path: Path) -> None:
    with (
        EmbeddedRedis(directory=tmp_path, options={"appendonly": "no"}) as server,
        redis.Redis.from_url(server.url) as found,
    ):
        client: Any = found
        url = f"{server.url}?socket_timeout={ANSWER_S}"
        producer = RedisStreamsBroker(server.url, middleware=[])
        with started(url, lease_ms=2_000, threads=1, queues=3) as process:
            producer.enqueue_many(
                [
                    message("").copy(actor_name="sleep", args=("a", 1)),
                    *(message("").copy(actor_name="work", args=(label,)) for label in "bcd"),
                ]
            )
            eventually(lambda: client.llen("ran") == 1)
            eventually(lambda: client.xpending("streams:q", GROUP)["pending"] >= 2)

            stop_while_redis_hangs(server, process)

        with started(server.url, lease_ms=2_000, threads=1):
            eventually(lambda: client.xlen("streams:q") == 0, within_s=30)
        ended = {what for what in client.lrange("ran", 0, -1) if not what.startswith(b"began")}
        assert ended == {b"ended a", b"work b", b"work c", b"work d"}
        producer.close()
