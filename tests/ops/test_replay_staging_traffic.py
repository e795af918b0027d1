"""Tests that replay_staging_traffic.py enqueues each job exactly once, no matter how often it is killed."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from random import Random
from typing import Any

import pytest
import redis

from broker import RedisStreamsBroker
from sploot_cluster import ClusterService
from sploot_cluster.pet.models import MediaId, PetId
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.store.redis import RedisPetStore
from tasks.capture.file import capture_pet, write_capture
from tasks.contracts import GROUP
from tasks.redis_access.embedded import EmbeddedRedis
from tests.ops.tools import OPS
from tests.support import eventually
from tests.system.events import free_port, vectors
from tests.tasks.queue_ops.desk import KEYS, STUCK, Desk, worker_that_refuses

SCRIPT = OPS / "scripts" / "replay_staging_traffic.py"


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def environment(url: str) -> dict[str, str]:
    return {**os.environ, "REDIS_URL": url, "PYTHONPATH": str(OPS.parent)}


@dataclass(frozen=True)
class Ran:
    """The exit code and the output of a finished run."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, int]:
        assert self.code == 0, self.err
        return dict(json.loads(self.out.splitlines()[-1])["report"])


Replay = Callable[..., Ran]


@pytest.fixture
def replay(redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Replay]:
    """Return a function that runs the script in this process, on the test's Redis."""
    spec = spec_from_file_location("replay_staging_traffic", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = module_from_spec(spec)
    # needed because dataclasses look up their module by name
    monkeypatch.setitem(sys.modules, spec.name, script)
    spec.loader.exec_module(script)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: object, **environ: str) -> Ran:
        with monkeypatch.context() as patched:
            for name, value in ({"REDIS_URL": redis_url} | environ).items():
                patched.setenv(name, value)
            capsys.readouterr()
            try:
                code = script.main([str(argument) for argument in arguments])
            except SystemExit as ended:  # argparse
                code = int(ended.code or 0)
        printed = capsys.readouterr()
        return Ran(code, printed.out, printed.err)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def desk(redis_client: redis.Redis) -> Desk:
    return Desk(redis_client)


@pytest.fixture
def collector_off() -> Iterator[None]:
    """Turn off the garbage collector, so that unclosed connections stay open."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a capture of pet 42 with 60 items, one waiting job and one dead letter."""
    file = tmp_path_factory.mktemp("captures") / "pet.zip"
    with EmbeddedRedis(options={"appendonly": "no"}) as server, redis.Redis.from_url(server.url) as client:
        store, desk = RedisPetStore(client), Desk(client)
        service = ClusterService(store)
        for number, vector in enumerate(vectors(pet_id=42, n=60)):
            noon = datetime(2026, 1, 31, 12, tzinfo=UTC) if number == 7 else None
            service.assign(PetId(42), MediaId(f"item-{number}"), model="test@1", vector=vector, occurred_at=noon)
        desk.add(1, pet_id=42)
        desk.bury(2, pet_id=42)
        broker = RedisStreamsBroker(client=client, group=GROUP, middleware=[])
        captured = capture_pet(42, store=store, broker=broker, client=client, settings=ClusterSettings())
        write_capture(captured, file)
    return file


def names_in_stream(client: Any) -> list[str]:
    return [fields[b"media_id"].decode() for _, fields in client.xrange(KEYS.stream)]


def test_replay_without_yes_prints_its_plan_and_does_nothing(
    replay: Replay, redis_url: str, desk: Desk, capture: Path
) -> None:
    shown = replay("--capture", capture)

    assert shown.code == 4
    assert "62 jobs of 1 pets" in shown.out
    assert "add --yes" in shown.err
    assert desk.client.keys("*") == []


def test_second_replay_of_a_capture_enqueues_nothing(replay: Replay, redis_url: str, desk: Desk, capture: Path) -> None:
    first = replay("--capture", capture, "--rate", 0, "--yes", "--json")
    second = replay("--capture", capture, "--rate", 0, "--yes", "--json")

    assert first.report == {"enqueued": 62, "already": 0, "before": 0, "of": 62}
    assert second.report == {"enqueued": 0, "already": 62, "before": 0, "of": 62}
    assert len(set(names_in_stream(desk.client))) == len(names_in_stream(desk.client)) == 62
    entries: Any = desk.client.xrange(KEYS.stream)
    assert [fields[b"occurred_at"] for _, fields in entries if b"occurred_at" in fields] == [
        b"2026-01-31T12:00:00+00:00"
    ]


def test_replayed_jobs_run(
    replay: Replay, redis_url: str, redis_client: redis.Redis, desk: Desk, capture: Path
) -> None:
    replay("--capture", capture, "--rate", 0, "--yes")

    with worker_that_refuses(redis_client) as ran:
        eventually(lambda: len(ran) == 62, within_s=30)
    assert desk.dead_letter_ids() == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_replay_killed_at_random_points_enqueues_each_job_once(
    replay: Replay, redis_url: str, desk: Desk, capture: Path, tmp_path: Path, seed: int
) -> None:
    killed_at_random_points(replay, redis_url, desk, capture, tmp_path, seed=seed, times=2)


@pytest.mark.ops
def test_replay_killed_at_twenty_points_enqueues_each_job_once(
    replay: Replay, redis_url: str, desk: Desk, capture: Path, tmp_path: Path
) -> None:
    killed_at_random_points(replay, redis_url, desk, capture, tmp_path, seed=20, times=20)


def killed_at_random_points(
    replay: Replay, redis_url: str, desk: Desk, capture: Path, tmp_path: Path, *, seed: int, times: int
) -> None:
    rng = Random(seed)
    points = sorted(rng.sample(range(1, 61), k=times))
    print(f"seed {seed}: killed when the stream held {points}")
    arguments = ("--capture", capture, "--rate", 200, "--checkpoint", tmp_path / "checkpoint", "--yes", "--json")

    for point in points:
        process = subprocess.Popen(command(*arguments), env=environment(redis_url), stdout=subprocess.DEVNULL)
        try:
            eventually(lambda point=point: desk.client.xlen(KEYS.stream) >= point, within_s=60, every_s=0.001)  # type: ignore[misc]
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=30)
    last = replay(*arguments)
    again = replay(*arguments)

    assert sorted(names_in_stream(desk.client)) == sorted(
        [f"item-{number}" for number in range(60)] + ["media-1", "media-2"]
    )
    assert last.report["of"] == 62
    assert again.report["enqueued"] == 0


def test_replay_within_one_redis_moves_dead_letters(replay: Replay, redis_url: str, desk: Desk) -> None:
    desk.bury(1, 2, pet_id=42)
    (other,) = desk.bury(3, pet_id=7)

    moved = replay("--dead", "embedding", "--pet-id", 42, "--rate", 0, "--yes", "--json")
    again = replay("--dead", "embedding", "--pet-id", 42, "--rate", 0, "--yes", "--json")

    assert moved.report["enqueued"] == 2
    assert again.report == {"enqueued": 0, "already": 0, "before": 0, "of": 0}
    assert desk.dead_letter_ids() == [other]
    assert names_in_stream(desk.client) == ["media-1", "media-2"]


def test_replay_leaves_dead_letters_whose_unique_key_is_held(replay: Replay, redis_url: str, desk: Desk) -> None:
    _, held = desk.bury_with_unique_key(1, 2)

    done = replay("--dead", "embedding", "--rate", 0, "--yes", "--json")

    assert (done.report["enqueued"], done.report["refused"]) == (1, 1)
    assert f"{held} stays a dead letter: a job with the same unique key waits" in done.err
    assert desk.dead_letter_ids() == [held]


def test_replay_from_another_redis_copies_dead_letters(replay: Replay, redis_url: str, desk: Desk) -> None:
    with EmbeddedRedis(options={"appendonly": "no"}) as server, redis.Redis.from_url(server.url) as client:
        source = Desk(client)
        source.bury(1, 2)
        arguments = ("--dead", "embedding", "--source-url", server.url, "--rate", 0, "--yes", "--json")

        first, second = replay(*arguments), replay(*arguments)

        assert (first.report["enqueued"], second.report["enqueued"]) == (2, 0)
        assert len(source.dead_letter_ids()) == 2
    assert names_in_stream(desk.client) == ["media-1", "media-2"]


def test_replay_closes_its_connections(
    replay: Replay, redis_url: str, redis_client: redis.Redis, desk: Desk, collector_off: None
) -> None:
    desk.bury(1, pet_id=42)
    before = {one["id"] for one in redis_client.client_list()}

    replay("--dead", "embedding", "--rate", 0, "--yes", "--json")
    replay("--dead", "embedding", "--rate", 0, "--source-url", redis_url, "--json")

    eventually(lambda: {one["id"] for one in redis_client.client_list()} <= before)


def test_replay_requeues_orphans(replay: Replay, redis_url: str, desk: Desk) -> None:
    first, second, third = desk.add(1, 2, 3)
    desk.deliver()
    desk.client.xgroup_delconsumer(KEYS.stream, GROUP, STUCK)

    done = replay("--orphans", "streams:embedding.ingested", "--rate", 0, "--yes", "--json")
    again = replay("--orphans", "embedding", "--rate", 0, "--yes", "--json")

    assert done.report["enqueued"] == 3
    assert again.report["of"] == 0
    assert list(desk.holders()) == [first, second, third]


def test_replay_since_ignores_older_dead_letters(replay: Replay, redis_url: str, desk: Desk) -> None:
    old = int(desk.client.time()[0]) * 1000 - 3 * 3_600_000
    desk.client.xadd(KEYS.dead, {"reason": "failed", "error": "x", "entry:media_id": "old"}, id=f"{old}-0")
    desk.bury(1)

    done = replay("--dead", "embedding", "--since", "2h", "--rate", 0, "--yes", "--json")

    assert done.report["of"] == 1
    assert names_in_stream(desk.client) == ["media-1"]


@pytest.mark.slow
def test_replay_waits_while_the_queue_is_full(redis_url: str, desk: Desk, capture: Path) -> None:
    arguments = ("--capture", capture, "--rate", 0, "--max-pending", 10, "--yes", "--json")
    process = subprocess.Popen(command(*arguments), env=environment(redis_url), stdout=subprocess.PIPE, text=True)
    try:
        eventually(lambda: desk.client.xlen(KEYS.stream) == 10, within_s=60)
        for _ in range(60):
            eventually(lambda: desk.client.xlen(KEYS.stream) == 10 or process.poll() is not None, within_s=30)
            assert desk.client.xlen(KEYS.stream) <= 10
            desk.client.xtrim(KEYS.stream, maxlen=0)
            if process.poll() is not None:
                break
        printed, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait(timeout=30)

    assert json.loads(printed.splitlines()[-1])["report"]["enqueued"] == 62


@pytest.mark.slow
def test_terminated_replay_records_its_progress(
    replay: Replay, redis_url: str, desk: Desk, capture: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    # slow enough to be terminated midway even on a loaded machine: all jobs together take half a minute
    arguments = ("--capture", capture, "--rate", 2, "--checkpoint", checkpoint, "--yes", "--json")
    process = subprocess.Popen(command(*arguments), env=environment(redis_url), stdout=subprocess.PIPE, text=True)
    eventually(lambda: desk.client.xlen(KEYS.stream) >= 3, within_s=60)
    process.terminate()
    printed, _ = process.communicate(timeout=30)
    report = json.loads(printed.splitlines()[-1])["report"]

    assert process.returncode == 130
    assert json.loads(checkpoint.read_text())["done"] == report["enqueued"] == desk.client.xlen(KEYS.stream) < 62
    rest = replay("--capture", capture, "--rate", 0, "--checkpoint", checkpoint, "--yes", "--json")
    assert rest.report == {
        "enqueued": 62 - report["enqueued"],
        "already": 0,
        "before": report["enqueued"],
        "of": 62,
    }


@pytest.mark.parametrize(
    ("url", "environment_name"),
    [
        ("redis://redis.prod.sploot.internal:6379/0", ""),
        ("redis://user:pw@media-production-1:6379/0", ""),
        ("", "production"),
    ],
)
def test_replay_refuses_production_without_the_flag(
    replay: Replay, redis_url: str, desk: Desk, capture: Path, url: str, environment_name: str
) -> None:
    more = {"SPLOOT_ENVIRONMENT": environment_name} if environment_name else {}

    refused = replay("--capture", capture, "--yes", *(("--redis-url", url) if url else ()), **more)

    assert refused.code == 4
    assert "looks like production; add --production" in refused.err
    assert "pw" not in refused.out + refused.err
    assert desk.client.keys("*") == []
    if environment_name:
        meant = replay("--capture", capture, "--rate", 0, "--yes", "--production", "--json", **more)
        assert meant.report["enqueued"] == 62


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--capture"),
        (["--dead", "cluster"], "queue"),
        (["--capture", "/nowhere.zip"], "FILE"),
        (["--dead", "embedding", "--since", "soon"], "--since"),
        (["--dead", "embedding", "--since", "99999999d"], "--since"),
        (["--orphans", "embedding", "--source-url", "redis://x"], "--source-url"),
    ],
)
def test_replay_with_invalid_arguments_exits_with_two(
    replay: Replay, redis_url: str, arguments: list[str], named: str
) -> None:
    refused = replay(*arguments)

    assert refused.code == 2
    assert named in refused.err
    assert "Traceback" not in refused.err


def test_replay_without_redis_exits_with_three(replay: Replay, capture: Path) -> None:
    done = replay("--capture", capture, "--yes", REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")

    assert done.code == 3
    assert "no job is put back twice" in done.err


def test_replay_help_lists_every_exit_code(replay: Replay, redis_url: str) -> None:
    helped = replay("--help")

    assert helped.code == 0
    assert "0 done, 1 failed, 2 usage, 3 Redis unreachable, 4 refused" in helped.out
