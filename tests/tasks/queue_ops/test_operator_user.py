"""The Redis user ``operator`` may run every action, the doctor and a capture, but nothing destructive."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from deploy.redis_users import USERS, render
from sploot_cluster import ClusterService
from sploot_cluster.pet.models import MediaId, PetId
from sploot_cluster.store.redis import RedisPetStore
from tasks.cli import main
from tasks.redis_access.embedded import EmbeddedRedis
from tests.system.events import free_port, vectors
from tests.tasks.queue_ops.desk import STUCK, Desk

SECRET = "a-secret-of-this-test"

Cli = Callable[..., int]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A server with the product's users and one more for the test."""
    directory = tmp_path_factory.mktemp("acl")
    rules = render(dict.fromkeys(USERS, SECRET)) + f"user test on >{SECRET} ~* &* +@all\n"
    server = EmbeddedRedis(directory=directory, unix_socket=True, options={"appendonly": "no"})
    with server, redis.Redis.from_url(server.url) as client:
        for line in rules.splitlines():
            _, name, *rule = line.split(" ")
            if name != "default":  # the test's server uses the default user to check that it is up
                client.execute_command("ACL", "SETUSER", name, "reset", *rule)
        yield server


@pytest.fixture
def desk(guarded: EmbeddedRedis) -> Iterator[Desk]:
    with redis.Redis.from_url(guarded.url, username="test", password=SECRET) as client:
        client.flushall()
        yield Desk(client)


@pytest.fixture
def cli(guarded: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """A function that runs a command as ``operator`` and returns its exit code and, on failure, its error output."""
    monkeypatch.setenv("REDIS_URL", f"unix://operator:{SECRET}@{guarded.url.removeprefix('unix://')}")
    monkeypatch.setenv("WORKER_METRICS_PORT", str(free_port()))
    monkeypatch.setenv("SPLOOT_HTTP_PORT", str(free_port()))

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["sploot-cluster", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert "NOPERM" not in printed.out + printed.err
        assert "may not look" not in printed.out
        return int(ended.value.code or 0)

    return run


@pytest.mark.slow
def test_operator_user_may_run_all_runbook_commands(cli: Cli, desk: Desk, tmp_path: Path) -> None:
    service = ClusterService(RedisPetStore(desk.client))
    for number, vector in enumerate(vectors(pet_id=42, n=8)):
        service.assign(PetId(42), MediaId(f"m{number}"), model="test@1", vector=vector)
    (held, orphan) = desk.add(1, 2, pet_id=42)
    desk.deliver()
    desk.client.xack("streams:embedding.ingested", "cluster-workers", orphan)
    desk.add(3, pet_id=42)
    desk.add(8, 9, pet_id=43)
    one, two, three, _ = desk.bury(4, 5, 6, 7, pet_id=42)

    for command in (
        ("queue", "status"),
        ("queue", "pending", "embedding"),
        ("queue", "peek", "embedding"),
        ("queue", "cancel", "embedding", "--pet", 43, "--yes"),
        ("queue", "find", "--pet", 42),
        ("queue", "rescue", "embedding", held, "--yes"),
        ("queue", "rescue", "embedding", "--unowned", "--yes"),
        ("queue", "retire-consumer", "embedding", STUCK, "--yes"),
        ("queue", "dead", "list"),
        ("queue", "dead", "show", "embedding", one),
        ("capture", "--dead-letter", "embedding", one, "-o", tmp_path / "dead_letter.zip"),
        ("capture", "--pet", 42, "-o", tmp_path / "pet.zip"),
        ("queue", "dead", "requeue", "embedding", one, "--yes"),
        ("queue", "dead", "purge", "embedding", two, "--yes"),
        ("queue", "pause", "embedding", "--yes"),
        ("queue", "resume", "embedding", "--yes"),
        ("queue", "audit"),
        ("clusters", 42),
        ("recluster", 42),
    ):
        assert cli(*command) == 0, command
    assert cli("queue", "dead", "requeue", "embedding", three) == 4
    assert cli("doctor") in (0, 1)


def test_operator_user_cannot_run_destructive_commands(guarded: EmbeddedRedis, desk: Desk) -> None:
    operator = redis.Redis.from_url(guarded.url, username="operator", password=SECRET)

    for command in (
        ("FLUSHALL",),
        ("XGROUP", "DESTROY", "streams:embedding.ingested", "cluster-workers"),
        ("KEYS", "*"),
        ("CONFIG", "SET", "maxmemory", "1"),
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            operator.execute_command(*command)
