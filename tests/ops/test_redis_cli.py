"""Tests of ops/scripts/redis-cli.bash: it never passes passwords as arguments of redis-cli."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tasks.redis_access.embedded import EmbeddedRedis
from tests.ops.tools import tool

SCRIPT = Path(__file__).parents[2] / "ops" / "scripts" / "redis-cli.bash"
STAND_IN = """#!/usr/bin/env python3
import json, os, sys
print(json.dumps([sys.argv[1:], os.environ.get("REDISCLI_AUTH")]))
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A folder with a stand-in for redis-cli that prints its arguments and the password in its environment."""
    program = tmp_path / "redis-cli"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    return tmp_path


def run(command: str, *, path: str = "", **environ: str) -> str:
    place = {"PATH": os.pathsep.join(filter(None, (path, os.environ["PATH"])))}
    script = f"set -euo pipefail; source '{SCRIPT}'; {command}"
    done = subprocess.run(
        ["bash", "-c", script], env=os.environ | place | environ, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize(
    ("url", "arguments", "password"),
    [
        ("redis://h:6379/0", ["-u", "redis://h:6379/0"], None),
        ("redis://:secret@h:6379/0", ["-u", "redis://h:6379/0"], "secret"),
        ("rediss://operator:s@c:r%2Fe%40t@h:6379/3", ["-u", "rediss://h:6379/3", "--user", "operator"], "s@c:r/e@t"),
        ("redis://secret@h", ["-u", "redis://h"], "secret"),
    ],
    ids=["no password", "password", "user and password", "password alone"],
)
def test_password_of_a_url_is_passed_in_the_environment(
    stand_in: Path, url: str, arguments: list[str], password: str | None
) -> None:
    seen = json.loads(run('redis-cli -u "$REDIS_URL" XRANGE s - + COUNT 1', path=str(stand_in), REDIS_URL=url))

    assert seen == [[*arguments, "XRANGE", "s", "-", "+", "COUNT", "1"], password]


def test_redis_cli_logs_in_with_the_password_of_a_url(tmp_path: Path) -> None:
    tool("redis-cli")
    with EmbeddedRedis(directory=tmp_path, options={"appendonly": "no"}) as server:
        login = run('redis-cli -u "$REDIS_URL" ACL SETUSER ann on ">p@ss:w" "+@all" "~*"', REDIS_URL=server.url)
        named = server.url.replace("://", "://ann:p%40ss%3Aw@", 1)

        assert (login, run('redis-cli -u "$REDIS_URL" ACL WHOAMI', REDIS_URL=named)) == ("OK\n", "ann\n")
