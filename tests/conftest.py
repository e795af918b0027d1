"""A real redis-server for every test process, emptied before every test."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import hypothesis
import pytest
import redis
from xdist.scheduler import LoadGroupScheduling

from sploot_cluster.threads import one_thread_each
from tasks.redis_access.embedded import EmbeddedRedis, NoRedisServer, find_redis_server
from tests.support import redis_6_2

# Before any test imports numpy: as in workers, threads of BLAS would only spin while they wait for each other.
one_thread_each(os.environ)

# The same examples every time, so that every failure is reproducible. No deadline, because a slow machine must not fail
# a test.
hypothesis.settings.register_profile("reproducible", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("reproducible")


# Files whose tests share something that is slow to start: a demo that keeps running, three hours of history, a browser.
TOGETHER: Final = ("tests/ops/test_practice.py", "tests/ops/test_dashboard.py")
# Tests in a browser run in two processes, each with one browser: these files, which are half of them, and all others.
CONSOLE: Final = tuple(
    f"tests/console/test_{part}.py" for part in ("console", "dialogs", "corrections", "pages", "review")
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ops", action="store_true", help="run the tests marked ops as well: make ops-verify")
    parser.addoption(
        "--deploy", action="store_true", help="run the tests marked deploy as well: make chart, test-redis"
    )
    parser.addoption("--scale", action="store_true", help="run the tests marked scale as well: make test-scale")
    parser.addoption("--newest", action="store_true", help="leave out Redis 6.2, on which the broker's tests run again")
    parser.addoption("--bench", action="store_true", help="run the tests marked bench as well: make test-bench")
    parser.addoption("--s3", action="store_true", help="run the tests marked s3 as well: make test-s3")


ON_REQUEST: Final = ("ops", "deploy", "scale", "bench", "s3")
WHOLE_FILE: Final = re.compile(r"^pytestmark = \[?pytest\.mark\.(\w+)", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip the import of a file whose tests are all deselected, because its imports take seconds per process."""
    if collection_path.suffix != ".py" or (marked := WHOLE_FILE.search(collection_path.read_text())) is None:
        return None
    return True if marked[1] in ON_REQUEST and not config.getoption(f"--{marked[1]}") else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--newest"):
        config.hook.pytest_deselected(items=[item for item in items if _scene_of(item) == "6.2"])
        items[:] = [item for item in items if _scene_of(item) != "6.2"]
    for marker in ON_REQUEST:
        if not config.getoption(f"--{marker}"):
            config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker(marker)])
            items[:] = [item for item in items if not item.get_closest_marker(marker)]
    # long tests first, so that at the end no process waits long for the last test of another process
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def _scene_of(item: pytest.Item) -> object:
    """Return the server that a test of the broker is parametrised with, or None for other tests."""
    return item.callspec.params.get("scene") if hasattr(item, "callspec") else None


def pytest_report_header() -> str:
    try:
        newest = find_redis_server()
    except NoRedisServer as missing:
        raise pytest.UsageError(str(missing)) from None
    return f"servers: {newest}, {redis_6_2() or 'no Redis 6.2 for this Python and machine'}"


class TogetherScheduling(LoadGroupScheduling):  # type: ignore[misc]  # pytest-xdist is untyped
    """A scheduler that sends all tests that share something to one process, and other tests one by one."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        if path.startswith("tests/console/"):
            return "first browser" if path in CONSOLE else "second browser"
        return path if path in TOGETHER else nodeid


# Called by the controller for --dist loadgroup. The mark xdist_group has no effect here: pytest-xdist 3.8 writes it
# into a test's id, which pytest 9.2 stores elsewhere.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.getoption("dist") != "loadgroup":
        return None
    if missing := [path for path in (*TOGETHER, *CONSOLE) if not (config.rootpath / path).exists()]:
        raise pytest.UsageError(f"tests/conftest.py: TOGETHER and CONSOLE name missing files: {', '.join(missing)}")
    return TogetherScheduling(config, log)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """The server of this test process, on a unix socket, without persistence. To stop a server, start another one."""
    # a short path, because a unix socket's path is limited to about 100 bytes
    directory = Path(tmp_path_factory.mktemp("redis", numbered=True))
    with EmbeddedRedis(directory=directory, unix_socket=True, options={"appendonly": "no"}) as server:
        yield server


@pytest.fixture
def redis_client(redis_server: EmbeddedRedis) -> Iterator[redis.Redis]:
    """A client of the server, which is emptied before each test. Replies are bytes."""
    # redis-py's timeout of 5 s is too short to add or free hundreds of megabytes on a loaded machine
    with redis.Redis.from_url(redis_server.url, socket_timeout=60) as client:
        client.flushall()
        yield client


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis, redis_client: redis.Redis) -> str:
    """The URL of the server, which is emptied before each test."""
    return redis_server.url
