"""What docs/backup.md says about copies of Redis: they hold every pet and every correction, and come back."""

from __future__ import annotations

import shutil
from pathlib import Path

import redis

from sploot_cluster.models import PetId
from tasks.composition import build_service
from tasks.contracts import QUEUES, stream_of
from tasks.embedded_redis import EmbeddedRedis
from tasks.settings import Settings
from tests.deploy.releases import PET, RELEASES, dump, flat_event, load
from tests.deploy.test_upgrades import at_work, left_by
from tests.support import eventually

TOLD = left_by(sorted(RELEASES.glob("0.*.json"))[-1])


def is_as_it_was(client: redis.Redis) -> bool:
    view = build_service(Settings(), client).clusters(PetId(PET))
    return bool({str(cluster.id): list(cluster.media) for cluster in view.clusters} == TOLD["clusters"])


def test_a_snapshot_brings_back_pets_corrections_and_waiting_work(tmp_path: Path) -> None:
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        load(client, TOLD["redis"])
        before = dump(client)
        client.save()
        shutil.copy(server.directory / "dump.rdb", tmp_path)

    # a snapshot alone is read only where there is no append-only file
    options = {"appendonly": "no"}
    with EmbeddedRedis(directory=tmp_path, options=options) as server, redis.Redis.from_url(server.url) as client:
        assert dump(client) == before
        assert is_as_it_was(client)


def test_a_pet_in_a_file_comes_back_on_another_server(tmp_path: Path) -> None:
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        load(client, TOLD["redis"])
        file = build_service(Settings(), client).export(PetId(PET))

    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        build_service(Settings(), client).import_pet(file)

        assert is_as_it_was(client)


def test_the_append_only_file_brings_back_what_a_killed_server_had_acknowledged(tmp_path: Path) -> None:
    options = {"appendfsync": "always"}
    with EmbeddedRedis(directory=tmp_path, options=options) as server, redis.Redis.from_url(server.url) as client:
        load(client, TOLD["redis"])
        before = dump(client)

        server.kill()
        server.start()

        assert dump(client) == before


def test_a_restored_server_goes_on_where_the_copy_was_made_and_takes_what_is_sent_again(tmp_path: Path) -> None:
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        load(client, TOLD["redis"])
        client.save()
        shutil.copy(server.directory / "dump.rdb", tmp_path)

    with (
        EmbeddedRedis(directory=tmp_path, options={"appendonly": "no"}) as server,
        redis.Redis.from_url(server.url) as client,
        at_work(Settings(redis_url=server.url)),
    ):
        # what producers sent since the copy is sent again; what the copy holds already changes nothing
        for number in range(50, 70):
            client.xadd("streams:embedding.ingested", flat_event(number))
        eventually(lambda: not any(client.xlen(stream_of(queue)) for queue in QUEUES), within_s=60)

        media = [medium.decode() for medium in client.lrange(f"{{pet:{PET}}}:media", 0, -1)]
        assert len(media) == len(set(media))
        assert {f"media-{number}" for number in range(70)} <= set(media)
