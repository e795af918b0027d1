"""A real redis-server for every test process, empty for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import hypothesis
import pytest
import redis
from xdist.scheduler import LoadGroupScheduling

from tasks.embedded_redis import EmbeddedRedis

# The same examples every time: a failure is one that everybody can see. No deadline: a loaded machine is no failure.
hypothesis.settings.register_profile("the same for everybody", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("the same for everybody")


# Files whose tests share what takes long to start: a kept demo, three hours of history, a browser.
TOGETHER: Final = ("tests/ops/test_practice.py", "tests/ops/test_dashboard.py", "tests/console/test_console.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ops", action="store_true", help="run the tests marked ops as well: make ops-verify")
    parser.addoption(
        "--deploy", action="store_true", help="run the tests marked deploy as well: make chart, test-redis"
    )
    parser.addoption("--scale", action="store_true", help="run the tests marked scale as well: make test-scale")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for marker in ("ops", "deploy", "scale"):
        if not config.getoption(f"--{marker}"):
            config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker(marker)])
            items[:] = [item for item in items if not item.get_closest_marker(marker)]


# By the controller, for --dist loadgroup: the mark xdist_group of pytest-xdist 3.8 writes into a test's id, which
# pytest 9.2 keeps elsewhere, and does nothing.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.getoption("dist") != "loadgroup":
        return None
    if missing := [path for path in TOGETHER if not (config.rootpath / path).exists()]:
        raise pytest.UsageError(f"tests/conftest.py: TOGETHER names what is not there: {', '.join(missing)}")
    scheduler = LoadGroupScheduling(config, log)
    scheduler._split_scope = sent_with
    return scheduler


def sent_with(nodeid: str) -> str:
    """Tests of one answer go to one process: those of a file in ``TOGETHER``, else each by itself."""
    path = nodeid.partition("::")[0]
    return path if path in TOGETHER else nodeid


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """This test process's own server, on a unix socket, without persistence. Do not stop it: start another one."""
    # a short path: a unix socket's name holds some 100 bytes
    directory = Path(tmp_path_factory.mktemp("redis", numbered=True))
    with EmbeddedRedis(directory=directory, unix_socket=True, options={"appendonly": "no"}) as server:
        yield server


@pytest.fixture
def redis_client(redis_server: EmbeddedRedis) -> Iterator[redis.Redis]:
    """A client of the server, which is emptied first; answers are bytes."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis, redis_client: redis.Redis) -> str:
    """The URL of the server, which has been emptied."""
    return redis_server.url
