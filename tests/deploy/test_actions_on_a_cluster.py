"""Tests of queue actions, the doctor, a deletion and a capture on a Redis Cluster of three nodes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.cli import main
from tasks.client import ClusterTasks
from tasks.contracts import EMBEDDING_INGESTED, GROUP, stream_of
from tasks.redis_access.urls import connect
from tests.deploy.test_redis_topologies import cluster, pytestmark
from tests.system.events import flat_event, free_port

__all__ = ["cluster", "pytestmark"]

STREAM = stream_of(EMBEDDING_INGESTED)


@pytest.fixture
def url(cluster: list[int], monkeypatch: pytest.MonkeyPatch) -> str:
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in cluster)
    monkeypatch.setenv("REDIS_URL", url)
    monkeypatch.setenv("WORKER_METRICS_PORT", str(free_port()))
    monkeypatch.setenv("SPLOOT_HTTP_PORT", str(free_port()))
    return url


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """A function that runs a command in this process and returns its exit code and output."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["sploot-cluster", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    return run


def test_queue_actions_doctor_deletion_and_capture_work_on_a_cluster(
    url: str, cli: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    client: Any = connect(url, connect_timeout_s=5, answer_timeout_s=5)
    ids = [client.xadd(STREAM, flat_event(pet_id=42, number=number)) for number in range(5)]
    for number in range(5, 7):
        client.xadd(STREAM, flat_event(pet_id=44, number=number))
    client.xgroup_create(STREAM, GROUP, id="0")
    client.xreadgroup(GROUP, "stuck", {STREAM: ">"}, count=3)
    client.xack(STREAM, GROUP, ids[0])

    for command in (
        ("queue", "status"),
        ("queue", "pending", "embedding"),
        ("queue", "rescue", "embedding", "--unowned", "--yes"),
        ("queue", "retire-consumer", "embedding", "stuck", "--yes"),
        ("queue", "pause", "embedding", "--yes"),
        ("queue", "resume", "embedding", "--yes"),
        ("queue", "cancel", "embedding", "--pet", 44, "--yes"),
        ("queue", "dead", "list"),
        ("queue", "audit"),
        ("capture", "--pet", 42, "-o", tmp_path / "pet.zip"),
    ):
        code, output = cli(*command)
        assert code == 0, f"{command}: {output}"
    with ClusterTasks(url) as tasks:
        assert [tasks.recluster(43).coalesced for _ in range(2)] == [False, True]
    code, deleted = cli("delete", 43, "--by", "me", "--yes")
    _, found = cli("queue", "find", "--pet", 42, "--json")
    _, findings = cli("doctor", "--json")
    n_waiting = client.xlen(STREAM)
    client.close()

    assert code == 0, deleted
    assert " 1 job records" in deleted
    assert len(json.loads(found)) == 5
    assert n_waiting == 5
    evictions = [finding["seen"] for finding in json.loads(findings) if finding["check"] == "eviction"]
    assert len(evictions) == 3
    assert all(seen.endswith(": noeviction") for seen in evictions)
