"""Tests of the built image: its contents, and whether its processes start, work and end as Kubernetes expects."""

from __future__ import annotations

import re
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from deploy.image import size_of
from tasks.contracts import CLUSTER_MAINTENANCE, EMBEDDING_INGESTED, GROUP, stream_of
from tasks.redis_access.embedded import EmbeddedRedis
from tests.image.container import Image
from tests.support import eventually
from tests.system.events import flat_event, free_port

ROOT = Path(__file__).parent.parent.parent
LARGEST_BYTES = 350e6


@pytest.fixture
def server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(options={"appendonly": "no"}) as server:
        yield server


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_image_is_small_and_runs_as_an_unprivileged_user(image: Image) -> None:
    size = size_of(image.rootfs)
    print(f"image: {size / 1e6:.0f} MB unpacked")

    assert size <= LARGEST_BYTES
    assert image.config["User"] == "10001:10001"
    assert image.config["StopSignal"] == "SIGTERM"
    assert image.config["Entrypoint"] == ["sploot-cluster"]


def test_image_contains_only_locked_packages(image: Image) -> None:
    locked = dict(re.findall(r"^([a-z0-9.-]+)==([^ ]+)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE))
    code = "import importlib.metadata as m; [print(d.metadata['Name'].lower(), d.version) for d in m.distributions()]"

    installed = dict(line.split() for line in image.run_python(code).splitlines())

    assert installed.pop("sploot-cluster")
    # a name may have several versions, for several versions of Python
    assert {name.replace("_", "-") for name in installed} <= set(locked)
    assert {"pip", "setuptools", "wheel"}.isdisjoint(installed)


def test_image_contains_nothing_from_the_build_machine(image: Image) -> None:
    assert not (image.rootfs / "etc" / "pip.conf").is_file() or not (image.rootfs / "etc" / "pip.conf").stat().st_size
    configuration = str(image.about)
    assert not re.search(r"(?i)pip_|proxy|token|password|extra-index", configuration)
    assert list(image.rootfs.glob("src*")) == []


def test_worker_exits_with_2_when_a_setting_is_invalid(image: Image) -> None:
    ended = image.run("worker", environ={"REDIS_URL": "http://nowhere"})

    assert ended.returncode == 2
    assert "REDIS_URL" in ended.stderr


def test_server_refuses_to_start_off_loopback_without_tokens(image: Image) -> None:
    ended = image.run("serve", environ={"SPLOOT_HTTP_HOST": "0.0.0.0"})

    assert ended.returncode == 4
    assert "SPLOOT_API_TOKENS" in ended.stderr


def test_image_worker_runs_jobs_and_drains_on_sigterm(image: Image, server: EmbeddedRedis, tmp_path: Path) -> None:
    port = free_port()
    environ = {"REDIS_URL": server.url, "WORKER_METRICS_PORT": str(port)}
    stream = stream_of(EMBEDDING_INGESTED)
    with (
        redis.Redis.from_url(server.url) as client,
        image.running("worker", "--threads", "2", environ=environ, log=tmp_path / "worker.log") as worker,
    ):
        for number in range(50):
            client.xadd(stream, flat_event(pet_id=7, number=number))
        eventually(lambda: client.llen("{pet:7}:media") == 50 or not worker.is_up, within_s=90)
        assert worker.is_up, worker.said()
        eventually(lambda: answers(f"http://127.0.0.1:{port}/readyz"), within_s=30)
        for number in range(50, 800):
            client.xadd(stream, flat_event(pet_id=7, number=number))
        eventually(lambda: client.llen("{pet:7}:media") > 60, within_s=30)

        worker.send(signal.SIGTERM)

        assert worker.wait(timeout_s=60) == 0, worker.said()
        # running jobs finished and others were handed back, so each item is in the store or in the stream
        assert client.llen("{pet:7}:media") + client.xlen(stream) == 800
        held = [entry for entry in client.xinfo_consumers(stream, GROUP) if entry["pending"]]
        assert [entry["name"] for entry in held] in ([], [b"~handed-back"])


def test_image_scheduler_and_server_end_on_sigterm(image: Image, server: EmbeddedRedis, tmp_path: Path) -> None:
    port = free_port()
    environ = {"REDIS_URL": server.url, "SPLOOT_HTTP_PORT": str(port)}
    with (
        redis.Redis.from_url(server.url) as client,
        image.running("scheduler", environ=environ, log=tmp_path / "scheduler.log") as scheduler,
        image.running("serve", environ=environ, log=tmp_path / "server.log") as web,
    ):
        eventually(lambda: answers(f"http://127.0.0.1:{port}/readyz") or not web.is_up, within_s=60)
        assert web.is_up, web.said()
        # the scheduler enqueues a job when it starts, unless it starts in the last seconds of a minute
        eventually(lambda: client.xlen(stream_of(CLUSTER_MAINTENANCE)) or not scheduler.is_up, within_s=90)
        assert scheduler.is_up, scheduler.said()

        for container in (scheduler, web):
            container.send(signal.SIGTERM)

        assert web.wait(timeout_s=30) == 0, web.said()
        assert scheduler.wait(timeout_s=30) == 0, scheduler.said()
