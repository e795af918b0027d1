"""States of a server in which it answers reads but refuses writes, one per reason."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import redis

from tasks.redis_access.embedded import EmbeddedRedis
from tests.support import eventually

NOWHERE: Final = ("127.0.0.1", "1")


@contextmanager
def full(server: EmbeddedRedis, client: Any) -> Iterator[None]:
    """Make the server reach its maxmemory."""
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


@contextmanager
def a_replica(server: EmbeddedRedis, client: Any) -> Iterator[None]:
    """Make the server a replica of a lost primary."""
    client.execute_command("REPLICAOF", *NOWHERE)
    try:
        yield
    finally:
        client.execute_command("REPLICAOF", "NO", "ONE")


@contextmanager
def without_replicas(server: EmbeddedRedis, client: Any) -> Iterator[None]:
    """Make the server require a replica that it does not have."""
    client.config_set("min-replicas-to-write", 1)
    try:
        yield
    finally:
        client.config_set("min-replicas-to-write", 0)


@contextmanager
def without_disk(server: EmbeddedRedis, client: Any) -> Iterator[None]:
    """Make the snapshot fail: a directory takes the place of its file, so that even root cannot write it."""
    snapshot = server.directory / "dump.rdb"
    snapshot.unlink(missing_ok=True)
    (snapshot / "x").mkdir(parents=True)
    client.config_set("save", "3600 1")
    try:
        client.bgsave()
        eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", within_s=30)
        yield
    finally:
        shutil.rmtree(snapshot)
        client.config_set("save", "")
        client.bgsave()
        eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "ok", within_s=30)


State = Callable[[EmbeddedRedis, redis.Redis], Any]

REFUSING: Final[Mapping[str, State]] = {
    "OOM": full,
    "READONLY": a_replica,
    "NOREPLICAS": without_replicas,
    "MISCONF": without_disk,
}
