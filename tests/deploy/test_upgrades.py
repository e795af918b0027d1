"""Tests that a release processes the data of earlier ones, and that two releases can run side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis

from sploot_cluster.pet.models import PetId
from tasks.client import ClusterTasks
from tasks.composition import build_service, build_worker
from tasks.contracts import QUEUES, stream_of
from tasks.redis_access.embedded import EmbeddedRedis
from tasks.settings import Settings
from tests.deploy.releases import PET, RELEASES, dump, flat_event, load
from tests.deploy.servers import processes_environ, running, worker_command
from tests.support import eventually, lacking

ROOT = Path(__file__).parent.parent.parent
RECORDED = sorted(RELEASES.glob("*.json"))

# The commit of the old version in the upgrade test: make test-upgrade OLD=REF
OLD = os.environ.get("SPLOOT_OLD", "")


def left_by(path: Path) -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads(path.read_text())
    return recorded


@contextmanager
def at_work(settings: Settings) -> Iterator[dramatiq.Broker]:
    broker = build_worker(settings)
    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=2)
    worker.start()
    try:
        yield broker
    finally:
        worker.stop()
        broker.close()


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_pet_from_a_recorded_release_is_read_unchanged(path: Path, redis_client: redis.Redis) -> None:
    recorded = left_by(path)

    load(redis_client, recorded["redis"])

    view = build_service(Settings(), redis_client).clusters(PetId(PET))
    assert view.revision == recorded["revision"]
    assert {str(cluster.cluster_id): list(cluster.media_ids) for cluster in view.clusters} == recorded["clusters"]
    assert list(view.noise) == recorded["noise"]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_work_left_by_a_recorded_release_is_processed(path: Path, redis_client: redis.Redis, redis_url: str) -> None:
    recorded = left_by(path)
    load(redis_client, recorded["redis"])
    for at in range(10):  # producers of that release continue to send
        redis_client.xadd("streams:embedding.ingested", flat_event(70 + at))
    settings = Settings(redis_url=redis_url)

    with at_work(settings), ClusterTasks(redis_url) as tasks:
        for job in recorded["waiting"]:
            eventually(lambda job=job: _is_done(tasks, job), within_s=60)  # type: ignore[misc]
        eventually(lambda: not any(redis_client.xlen(stream_of(queue)) for queue in QUEUES), within_s=60)

    assert [redis_client.xlen(f"{{{stream_of(queue)}}}:dead") for queue in QUEUES] == [0] * len(QUEUES)
    view = build_service(settings, redis_client).clusters(PetId(PET))
    items = {item for cluster in view.clusters for item in cluster.media_ids} | set(view.noise)
    before = {item for items in recorded["clusters"].values() for item in items} | set(recorded["noise"])
    assert items == before | set(recorded["arriving"]) | {f"media-{70 + at}" for at in range(10)}
    assert view.revision > recorded["revision"]


def _is_done(tasks: ClusterTasks, job_id: str) -> bool:
    status = tasks.job(job_id)
    return status is not None and status.state == "succeeded"


def test_current_version_is_recorded() -> None:
    version = (ROOT / "setup.cfg").read_text().partition("version = ")[2].split()[0]

    assert (RELEASES / f"{version}.json").exists(), f"python -m tests.deploy.releases {version}"


def test_recorded_release_survives_load_and_dump(redis_client: redis.Redis) -> None:
    # otherwise, the tests above would not cover the whole record
    recorded = left_by(RECORDED[-1])["redis"]

    load(redis_client, recorded)

    assert json.loads(json.dumps(dump(redis_client))) == recorded


@pytest.mark.deploy
def test_two_versions_work_side_by_side_during_an_upgrade(tmp_path: Path) -> None:
    old = _tree_of(OLD or "HEAD", tmp_path)
    environ_of_old = {"PYTHONPATH": str(old)}
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client, ExitStack() as stack:
        settings = Settings(redis_url=server.url)

        def worker(name: str, environ: dict[str, str]) -> ExitStack:
            entered = ExitStack()
            log = tmp_path / f"{name}.log"
            entered.enter_context(running(worker_command(), log=log, environ=environ, directory=tmp_path))
            return stack.enter_context(entered)

        # run the old worker alone, then both, then the new one alone, with producers of both versions throughout
        olds = worker("old", processes_environ(server.url, **environ_of_old))
        for number in range(40):
            client.xadd("streams:embedding.ingested", flat_event(number))
        eventually(lambda: client.llen(f"{{pet:{PET}}}:media") == 40, within_s=60)
        with ClusterTasks(server.url) as tasks:
            job = tasks.recluster(pet_id=PET).job_id
            eventually(lambda: _is_done(tasks, job), within_s=60)
            news = worker("new", processes_environ(server.url, PYTHONPATH=str(ROOT)))
            _send_by(old, server.url, range(100, 140))
            for number in range(140, 180):
                tasks.ingest(
                    pet_id=PET, media_id=f"media-{number}", model="test@1", embedding=flat_event(number)["embedding"]
                )
            clusters = build_service(settings, client).clusters(PetId(PET)).clusters
            merged = tasks.merge(PET, [clusters[0].cluster_id, clusters[1].cluster_id]).job_id
            eventually(lambda: _is_done(tasks, merged), within_s=60)
            eventually(lambda: client.llen(f"{{pet:{PET}}}:media") == 120, within_s=60)
            olds.close()
            again = tasks.recluster(pet_id=PET).job_id
            eventually(lambda: _is_done(tasks, again), within_s=60)
            news.close()

        view = build_service(settings, client).clusters(PetId(PET))
        together = {*clusters[0].media_ids, *clusters[1].media_ids}
        assert any(together <= set(cluster.media_ids) for cluster in view.clusters), "the correction was lost"
        assert [client.xlen(f"{{{stream_of(queue)}}}:dead") for queue in QUEUES] == [0] * len(QUEUES)


def _tree_of(reference: str, directory: Path) -> Path:
    """Extract the files of another commit."""
    tree = directory / "old"
    tree.mkdir()
    archived = subprocess.run(["git", "archive", reference], cwd=ROOT, capture_output=True, check=False)
    if archived.returncode:
        lacking(f"the history with {reference}", "git fetch --unshallow")
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archived.stdout, check=True)
    return tree


def _send_by(tree: Path, redis_url: str, numbers: range) -> None:
    """Send items with the thin client of another tree."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tasks.client import ClusterTasks\n"
        "assert ClusterTasks.__module__ and __import__('tasks').__file__.startswith(sys.argv[1])\n"
        "tasks = ClusterTasks(sys.argv[2])\n"
        "for number in range(int(sys.argv[3]), int(sys.argv[4])):\n"
        "    vector = [0.1 * (number % 4)] * 15 + [1.0]\n"
        "    tasks.ingest(pet_id=7, media_id=f'media-{number}', model='test@1', embedding=vector)\n"
    )
    arguments = [str(tree), redis_url, str(numbers.start), str(numbers.stop)]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=tree, timeout=60)
