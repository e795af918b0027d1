"""A sentinel that watches one master, for tests of what happens when that one is lost."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis

from tests.support import eventually
from tests.system.events import free_port


@contextmanager
def sentinel_of(master_port: int, directory: Path, *, name: str = "mymaster") -> Iterator[int]:
    """The port of a sentinel that needs nobody's agreement. Its files go into ``directory``, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config = directory / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {directory}\n"
        f"sentinel monitor {name} 127.0.0.1 {master_port} 1\n"
        f"sentinel down-after-milliseconds {name} 500\nsentinel failover-timeout {name} 3000\n"
    )
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(["redis-sentinel", str(config)], stdout=log, stderr=log)
    try:
        with redis.Redis(port=port) as client:
            eventually(lambda: answers(client), within_s=20)
        yield port
    finally:
        process.terminate()
        process.wait()


def answers(client: redis.Redis) -> bool:
    with suppress(redis.ConnectionError):
        return bool(client.ping())
    return False
