"""Tests that worker and client survive a failover by sentinels, and work on a cluster of three nodes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq import Worker

from sploot_cluster.pet.models import MediaId, PetId
from sploot_cluster.service import ClusterService
from sploot_cluster.store.redis import RedisPetStore
from tasks.client import ClusterTasks
from tasks.composition import build_client, build_worker
from tasks.contracts import CLUSTER_RECLUSTER, EMBEDDING_INGESTED, stream_of
from tasks.redis_access.embedded import find_redis_server
from tasks.redis_access.urls import connect
from tasks.settings import Settings
from tests.deploy.servers import running
from tests.support import eventually
from tests.system.events import flat_event, free_port

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).parent.parent.parent
CONFIG = ROOT / "ops" / "config" / "redis"
STREAM = stream_of(EMBEDDING_INGESTED)


@contextmanager
def at_work(settings: Settings) -> Iterator[dramatiq.Broker]:
    """Run a worker for all actors in this process."""
    broker = build_worker(settings)
    worker = Worker(broker, worker_timeout=100, worker_threads=2)
    worker.start()
    try:
        yield broker
    finally:
        worker.stop()
        broker.close()


@contextmanager
def server(directory: Path, *more: str, port: int | None = None) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    port = port or free_port()
    folder = directory / str(port)
    folder.mkdir(exist_ok=True)
    # use a copy, because Redis rewrites its configuration file after a failover
    own = folder / "redis.conf"
    own.write_text((CONFIG / "redis.conf").read_text())
    command = [str(find_redis_server()), str(own), "--port", str(port), "--dir", str(folder), *more]
    with running(command, log=folder / "redis.log") as process, redis.Redis(port=port) as client:
        eventually(partial(_answers, client), within_s=20)
        yield port, process


@contextmanager
def sentinels(directory: Path, *, master: int) -> Iterator[list[int]]:
    """Run three sentinels on copies of the file that we ship, with other ports and shorter timeouts."""
    ports = [free_port() for _ in range(3)]
    with ExitStack() as stack:
        for port in ports:
            given = {"port 26379": f"port {port}", "127.0.0.1 6379 2": f"127.0.0.1 {master} 2", "5000": "500"}
            own = directory / f"sentinel-{port}.conf"
            own.write_text(_replaced((CONFIG / "sentinel.conf").read_text(), given) + f"dir {directory}\n")
            stack.enter_context(running(["redis-sentinel", str(own)], log=directory / f"sentinel-{port}.log"))
            eventually(partial(_answers, stack.enter_context(redis.Redis(port=port))), within_s=20)
        yield ports


def event(pet_id: int, number: int) -> dict[Any, Any]:
    return dict(flat_event(pet_id=pet_id, number=number))


def _replaced(text: str, given: Mapping[str, str]) -> str:
    for old, new in given.items():
        assert old in text
        text = text.replace(old, new, 1)
    return text


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def test_work_continues_after_a_failover_and_loses_no_item(tmp_path: Path) -> None:
    with (
        server(tmp_path) as (old, first),
        server(tmp_path, "--replicaof", "127.0.0.1", str(old)) as (new, _),
        redis.Redis(port=old) as old_master,
        redis.Redis(port=new) as replica,
        sentinels(tmp_path, master=old) as ports,
    ):
        eventually(lambda: replica.info("replication")["master_link_status"] == "up", within_s=30)
        asked = redis.Redis(port=ports[0])
        eventually(lambda: asked.execute_command("SENTINEL", "CKQUORUM", "mymaster"), within_s=30)
        eventually(lambda: len(asked.execute_command("SENTINEL", "SENTINELS", "mymaster")) == 2, within_s=30)
        eventually(lambda: len(asked.execute_command("SENTINEL", "REPLICAS", "mymaster")) == 1, within_s=30)
        asked.close()
        url = "redis+sentinel://" + ",".join(f"127.0.0.1:{port}" for port in ports) + "/mymaster/0"
        settings = Settings(redis_url=url, lease_ms=2_000)
        with at_work(settings), build_client(settings) as client, ClusterTasks(url) as tasks:
            for number in range(20):
                client.xadd(STREAM, event(7, number))
            eventually(lambda: client.llen("{pet:7}:media") == 20, within_s=30)
            assert old_master.wait(1, 5_000) == 1

            first.kill()

            eventually(partial(_took, client, number=20), within_s=60)
            for number in range(21, 40):
                eventually(partial(_took, client, number=number), within_s=60)
            eventually(lambda: client.llen("{pet:7}:media") == 40, within_s=60)
            assert replica.info("replication")["role"] == "master"
            eventually(lambda: tasks.recluster(pet_id=7).job_id, within_s=10)


def _took(client: redis.Redis, *, number: int) -> bool:
    """Send an event and return whether Redis accepted it. Repeating this is safe: a known item has no effect."""
    try:
        return bool(client.xadd(STREAM, event(7, number)))
    except redis.RedisError:
        return False


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[int]]:
    """A cluster of three nodes without replicas, with the configuration files that we ship."""
    more = [line.split() for line in (CONFIG / "cluster.conf").read_text().splitlines() if line[:1] not in ("", "#")]
    options = [word for name, *values in more for word in (f"--{name}", *values)]
    with ExitStack() as stack:
        ports = [stack.enter_context(server(tmp_path, *options, port=_port_for_a_node()))[0] for _ in range(3)]
        nodes = [f"127.0.0.1:{port}" for port in ports]
        made = ["redis-cli", "--cluster", "create", *nodes, "--cluster-yes"]
        subprocess.run(made, check=True, capture_output=True, timeout=60)
        for port in ports:
            client = stack.enter_context(redis.Redis(port=port))
            eventually(partial(_is_whole, client), within_s=30)
        yield ports


def _port_for_a_node() -> int:
    # the cluster bus of a node listens on the node's port + 10,000, which must be a valid port
    while (port := free_port()) >= 55_000:
        pass
    return port


def _is_whole(client: redis.Redis) -> bool:
    info = client.execute_command("CLUSTER", "INFO")
    return dict(info)["cluster_state"] == "ok" if not isinstance(info, bytes) else b"cluster_state:ok" in info


def test_jobs_run_on_a_cluster_and_pets_spread_over_nodes(cluster: list[int]) -> None:
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in cluster)
    settings = Settings(redis_url=url, lease_ms=2_000)
    with at_work(settings), ClusterTasks(url) as tasks:
        client = connect(url, connect_timeout_s=5, answer_timeout_s=5)
        for pet in range(1, 7):
            for number in range(10):
                client.xadd(STREAM, event(pet, number))
        for pet in range(1, 7):
            eventually(lambda pet=pet: client.llen(f"{{pet:{pet}}}:media") == 10, within_s=60)  # type: ignore[misc]
        job = tasks.recluster(pet_id=1)
        eventually(lambda: (status := tasks.job(job.job_id)) is not None and status.state == "succeeded", within_s=60)

        holding = [port for port in cluster if _pets_on(port)]
        assert len(holding) > 1
        eventually(lambda: client.xlen(stream_of(CLUSTER_RECLUSTER)) == 0, within_s=60)
        store = RedisPetStore(client)
        totals = store.totals()
        assert (totals.n_pets, totals.tally.ingested, totals.unconserved) == (6, 60, ())
        client.delete("{pet:3}:vectors")
        assert [error.key for error in store.totals().unreadable] == ["{pet:3}:vectors"]
        client.close()


def test_items_are_removed_and_pets_listed_on_a_cluster(cluster: list[int]) -> None:
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in cluster)
    client = connect(url, connect_timeout_s=5, answer_timeout_s=5)
    service = ClusterService(RedisPetStore(client), big_pet_bytes=0)
    for pet in map(PetId, range(1, 7)):
        for number in range(6):
            service.assign(pet, MediaId(f"m{number}"), model="clip@1", vector=[1.0, float(number)])

        service.delete_media(pet, [MediaId("m2")], by="eve")

        assert service.clusters(pet).n_media == 5
        assert service.export(pet).startswith(b"PK")
    service.delete_pet(PetId(2))

    pages = [service.page_of_pets(limit=3, cursor=cursor) for cursor in (None, "4")]
    assert [[pet.pet_id for pet in page.pets] for page in pages] == [[1, 3, 4], [5, 6]]
    assert pages[0].n_matching == 5
    client.close()


def _pets_on(port: int) -> int:
    with redis.Redis(port=port) as node:
        return len(node.keys("{pet:*}:meta"))
