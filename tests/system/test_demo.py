"""The demo: it succeeds if every guarantee holds, and fails if one is broken."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dramatiq
import pytest
import redis
import uvicorn
from dramatiq.middleware import CurrentMessage, Retries, TimeLimit
from rich.console import Console

from broker import RedisStreamsBroker
from sploot_cluster import ClusterService
from sploot_cluster.decide.corrections.merge import Merge
from sploot_cluster.store.redis import RedisPetStore
from tasks.actors import declare_actors
from tasks.client import ClusterTasks
from tasks.composition import build_app
from tasks.contracts import EMBEDDING_INGESTED, GROUP, stream_of
from tasks.demo import run
from tasks.demo.maps import draw_map
from tasks.demo.story import Story
from tasks.job_records import JobRecords, TrackJobs
from tasks.settings import Settings
from tasks.wire import DECODERS
from tests.support import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


@pytest.fixture
def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


def test_demo_keeps_every_guarantee(tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    maps: list[str] = []

    def draw_the_smallest(path: Path, **drawn: Any) -> None:
        maps.append(path.name)  # drawing all of them takes ten seconds
        if path.name == "pet-45.png":
            draw_map(path, **drawn)

    monkeypatch.setattr("tasks.demo.summary.draw_map", draw_the_smallest)

    code = run(directory=tmp_path, share=0.25, console=quiet)

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [promise for promise in summary["promises"] if not promise["is_kept"]] == []
    assert code == 0
    assert len(summary["promises"]) >= 9
    assert {pet["pet_id"] for pet in summary["pets"]} == {41, 42, 43, 44, 45, 46}
    assert maps == [f"pet-{pet['pet_id']}.png" for pet in summary["pets"]]
    assert (tmp_path / "pet-45.png").read_bytes().startswith(b"\x89PNG")
    assert "From event to assignment" in (tmp_path / "summary.txt").read_text()


@contextmanager
def rehearsal_stack(redis_url: str, *_: object, **__: object) -> Iterator[SimpleNamespace]:
    """Run the demo's server and one worker in this process, without metrics or logs."""
    with redis.Redis.from_url(redis_url) as client:
        broker = RedisStreamsBroker(
            redis_url,
            group=GROUP,
            middleware=[TimeLimit(), Retries(), CurrentMessage(), TrackJobs(JobRecords(client))],
            decoders=DECODERS,
        )
        declare_actors(broker, ClusterService(RedisPetStore(client)))
        worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=2)
        config = uvicorn.Config(build_app(Settings(redis_url=redis_url)), port=0, log_config=None, access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        worker.start()
        thread.start()
        try:
            eventually(lambda: server.started)
            http = "http://{}:{}".format(*server.servers[0].sockets[0].getsockname())
            yield SimpleNamespace(http=http, metrics=(), worker_logs=())
        finally:
            server.should_exit = True
            thread.join()
            worker.stop()
            broker.close()


def ingest_without_incidents(story: Story) -> None:
    for album in story.albums:
        story.tasks.ingest_many(
            {"pet_id": album.pet_id, "media_id": item, "model": album.model, "embedding": vector}
            for item, vector in zip(album.media_ids, album.vectors, strict=True)
        )
    eventually(lambda: not story.redis.xlen(stream_of(EMBEDDING_INGESTED)), within_s=60)


def test_demo_fails_when_a_correction_is_lost(
    redis_client: redis.Redis, redis_url: str, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setattr("tasks.demo.Stack", rehearsal_stack)
    monkeypatch.setattr(Story, "ingest", ingest_without_incidents)
    monkeypatch.setattr("tasks.demo.summary.draw_map", lambda *_, **__: None)
    store, tasks = RedisPetStore(redis_client), ClusterTasks(client=redis_client)

    def take_the_merges_back(chapter: str) -> None:
        if chapter == "recluster":
            for pet in store.pets():
                for correction in store.load(pet).ledger:
                    if isinstance(correction, Merge):
                        tasks.undo(pet_id=pet, revision=correction.revision)

    code = run(directory=tmp_path, share=0.25, console=quiet, on_chapter=take_the_merges_back)

    promises = json.loads((tmp_path / "summary.json").read_text())["promises"]
    is_kept = {promise["text"]: promise["is_kept"] for promise in promises}
    assert not is_kept["merges survived the recluster, under the chosen id"]
    assert is_kept["splits survived the recluster"]
    assert code == 1


def test_demo_refuses_a_redis_that_contains_pets(
    redis_client: redis.Redis, redis_url: str, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    redis_client.sadd("sploot:pets", 42)

    code = run(directory=tmp_path, console=quiet)

    assert code == 1
    assert redis_client.keys() == [b"sploot:pets"]
