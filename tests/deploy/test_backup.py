"""Tests that backups made as in docs/how-to/upgrades.md contain every pet and correction and can be restored."""

from __future__ import annotations

import shutil
from pathlib import Path

import redis

from sploot_cluster.pet.models import PetId
from tasks.composition import build_service
from tasks.contracts import QUEUES, stream_of
from tasks.redis_access.embedded import EmbeddedRedis
from tasks.settings import Settings
from tests.deploy.releases import PET, RELEASES, dump, flat_event, load
from tests.deploy.test_upgrades import at_work, left_by
from tests.support import eventually

RECORDED = left_by(sorted(RELEASES.glob("0.*.json"))[-1])


def is_unchanged(client: redis.Redis) -> bool:
    view = build_service(Settings(), client).clusters(PetId(PET))
    return bool({str(cluster.cluster_id): list(cluster.media_ids) for cluster in view.clusters} == RECORDED["clusters"])


def test_snapshot_restores_pets_corrections_and_waiting_work(tmp_path: Path) -> None:
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        load(client, RECORDED["redis"])
        before = dump(client)
        client.save()
        shutil.copy(server.directory / "dump.rdb", tmp_path)

    # Redis reads a snapshot only if there is no append-only file
    options = {"appendonly": "no"}
    with EmbeddedRedis(directory=tmp_path, options=options) as server, redis.Redis.from_url(server.url) as client:
        assert dump(client) == before
        assert is_unchanged(client)


def test_exported_pet_is_restored_on_another_server(tmp_path: Path) -> None:
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        load(client, RECORDED["redis"])
        file = build_service(Settings(), client).export(PetId(PET))

    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        build_service(Settings(), client).import_pet(file)

        assert is_unchanged(client)


def test_append_only_file_restores_acknowledged_writes_after_kill(tmp_path: Path) -> None:
    options = {"appendfsync": "always"}
    with EmbeddedRedis(directory=tmp_path, options=options) as server, redis.Redis.from_url(server.url) as client:
        load(client, RECORDED["redis"])
        before = dump(client)

        server.kill()
        server.start()

        assert dump(client) == before


def test_restored_server_continues_and_ignores_repeated_items(tmp_path: Path) -> None:
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        load(client, RECORDED["redis"])
        client.save()
        shutil.copy(server.directory / "dump.rdb", tmp_path)

    with (
        EmbeddedRedis(directory=tmp_path, options={"appendonly": "no"}) as server,
        redis.Redis.from_url(server.url) as client,
        at_work(Settings(redis_url=server.url)),
    ):
        # producers send again what they sent since the backup; items that the backup already contains have no effect
        for number in range(50, 70):
            client.xadd("streams:embedding.ingested", flat_event(number))
        eventually(lambda: not any(client.xlen(stream_of(queue)) for queue in QUEUES), within_s=60)

        items = [item.decode() for item in client.lrange(f"{{pet:{PET}}}:media", 0, -1)]
        assert len(items) == len(set(items))
        assert {f"media-{number}" for number in range(70)} <= set(items)
