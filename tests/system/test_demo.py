"""The demo: it succeeds when all promises hold, and fails when one is broken."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import redis
from rich.console import Console

from sploot_cluster.decide.corrections.merge import Merge
from sploot_cluster.store.redis import RedisPetStore
from tasks.client import ClusterTasks
from tasks.demo import run
from tasks.embedded_redis import EmbeddedRedis

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


@pytest.fixture
def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


def test_demo_keeps_its_promises(tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)

    code = run(directory=tmp_path, share=0.25, console=quiet)

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [p["text"] for p in summary["promises"] if not p["is_kept"]] == []
    assert code == 0
    assert len(summary["promises"]) >= 9
    assert {pet["pet_id"] for pet in summary["pets"]} == {41, 42, 43, 44, 45, 46}
    for pet in summary["pets"]:
        assert (tmp_path / f"pet-{pet['pet_id']}.png").read_bytes().startswith(b"\x89PNG")
    assert "From event to assignment" in (tmp_path / "summary.txt").read_text()


def test_demo_fails_when_a_correction_is_lost(tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedRedis(options={"appendonly": "no"}) as server, redis.Redis.from_url(server.url) as client:
        monkeypatch.setenv("REDIS_URL", server.url)
        store, tasks = RedisPetStore(client), ClusterTasks(client=client)

        def take_the_merges_back(chapter: str) -> None:
            if chapter == "recluster":
                for pet in store.pets():
                    for correction in store.load(pet).ledger:
                        if isinstance(correction, Merge):
                            tasks.undo(pet_id=pet, revision=correction.revision)

        code = run(directory=tmp_path, share=0.25, console=quiet, on_chapter=take_the_merges_back)

    broken = [p["text"] for p in json.loads((tmp_path / "summary.json").read_text())["promises"] if not p["is_kept"]]
    assert code == 1
    assert broken == ["merges survived the recluster, under the chosen id"]


def test_demo_refuses_a_redis_that_contains_pets(
    redis_client: redis.Redis, redis_url: str, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    redis_client.sadd("sploot:pets", 42)

    code = run(directory=tmp_path, console=quiet)

    assert code == 1
    assert redis_client.keys() == [b"sploot:pets"]
