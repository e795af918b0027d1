"""A process stops in limited time while Redis hangs, regardless of its number of queues, and loses no message."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import redis
from dramatiq.middleware import Retries

from broker import RedisStreamsBroker
from broker.keys import QueueKeys
from tasks.redis_access.embedded import EmbeddedRedis
from tests.broker.processes import started
from tests.broker.program import QUEUE, declare
from tests.broker.test_dramatiq_options import working
from tests.support import eventually

ANSWER_S = 1
N_QUEUES = 24


@pytest.mark.slow
def test_process_stops_quickly_while_redis_hangs_and_loses_no_message(tmp_path: Path) -> None:
    with (
        EmbeddedRedis(directory=tmp_path, options={"appendonly": "no"}) as server,
        redis.Redis.from_url(server.url) as found,
    ):
        client: Any = found
        broker = RedisStreamsBroker(server.url, middleware=[Retries()], lease_ms=2_000)
        declare(broker, client)
        url = f"{server.url}?socket_timeout={ANSWER_S}"
        with started(url, lease_ms=2_000, threads=1, queues=N_QUEUES) as process:
            last = QueueKeys("streams", f"{QUEUE}-{N_QUEUES - 1}").consumers
            eventually(lambda: client.zcard(last), within_s=30)
            sleep, work = broker.get_actor("sleep"), broker.get_actor("work")
            broker.enqueue_many([sleep.message("a", 1), *(work.message(label) for label in "bcd")])
            eventually(lambda: client.llen("ran") == 1)
            assert server.pid is not None
            os.kill(server.pid, signal.SIGSTOP)
            try:
                process.send_signal(signal.SIGTERM)
                # waiting for one reply per queue would take several times as long
                assert process.wait(N_QUEUES * ANSWER_S) == 0
            finally:
                os.kill(server.pid, signal.SIGCONT)

        with working(broker):
            eventually(lambda: client.xlen("streams:q") == 0, within_s=30)
        broker.close()
        ended = {what for what in client.lrange("ran", 0, -1) if not what.startswith(b"began")}
        assert ended == {b"ended a", b"work b", b"work c", b"work d"}
