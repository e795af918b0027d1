"""A sentinel that watches one master, for tests of its failover."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import redis

from tests.support import eventually
from tests.system.events import free_port

PATIENT_MS: Final = 600_000
# If its machine stood still for two seconds, a sentinel does nothing for the next thirty. Then it promotes only a
# replica that lost its master at most ten times as long ago as this limit.
ALERT_MS: Final = 5_000
FAILOVER_WITHIN_S: Final = 120.0


@contextmanager
def sentinel_of(master_port: int, directory: Path, *, name: str = "mymaster") -> Iterator[int]:
    """Run a sentinel with a quorum of one; yield its port. Its files go into ``directory``, which is created.

    It detects a lost master only inside the block of ``alert``: on a busy machine it might otherwise fail over from a
    healthy master and lose its latest writes.
    """
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config = directory / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {directory}\n"
        f"sentinel monitor {name} 127.0.0.1 {master_port} 1\n"
        f"sentinel down-after-milliseconds {name} {PATIENT_MS}\nsentinel failover-timeout {name} 3000\n"
    )
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(["redis-sentinel", str(config)], stdout=log, stderr=log)
    try:
        with redis.Redis(port=port) as client:
            eventually(lambda: answers(client), within_s=20)
        yield port
    except BaseException:
        print((directory / "log").read_text(errors="replace"))
        raise
    finally:
        process.terminate()
        process.wait()


@contextmanager
def alert(port: int, *, name: str = "mymaster") -> Iterator[None]:
    """Make the sentinel at ``port`` treat a master as lost after ``ALERT_MS`` of silence, during the block."""
    with redis.Redis(port=port) as client:
        sentinel: Any = client
        sentinel.sentinel_set(name, "down-after-milliseconds", ALERT_MS)
        try:
            yield
        finally:
            sentinel.sentinel_set(name, "down-after-milliseconds", PATIENT_MS)


def answers(client: redis.Redis) -> bool:
    with suppress(redis.ConnectionError):
        return bool(client.ping())
    return False
