"""Tests of the checks that ``make demo`` and ``make test`` make before they install anything."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import machine
from tasks.redis_access import embedded

ROOT = Path(__file__).parents[2]
NO_SERVER = {"PATH": "/nowhere"}


@pytest.mark.parametrize(
    ("system", "architecture", "library", "is_enough"),
    [
        ("Linux", "x86_64", ("glibc", "2.28"), True),
        ("Linux", "aarch64", ("glibc", "2.41"), True),
        ("Linux", "x86_64", ("glibc", "2.27"), False),
        ("Linux", "x86_64", ("", ""), False),
        ("Linux", "riscv64", ("glibc", "2.41"), False),
        ("Darwin", "x86_64", ("", ""), True),
        ("Darwin", "arm64", ("", ""), True),
        ("Windows", "AMD64", ("", ""), False),
    ],
    ids=["Linux", "arm64 Linux", "old Linux", "musl", "another processor", "Intel Mac", "Apple silicon", "Windows"],
)
def test_redis_must_be_on_path_where_its_wheel_is_unavailable(
    system: str, architecture: str, library: tuple[str, str], is_enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    monkeypatch.setattr(platform, "libc_ver", lambda: library)

    found = machine.problem(NO_SERVER)

    assert (found == "") is is_enough
    assert is_enough or ("set REDIS_URL" in found and "\n" not in found)
    assert machine.problem({**NO_SERVER, "REDIS_URL": "redis://elsewhere"}) == ""


@pytest.mark.parametrize(("version", "is_enough"), [("6.2.0", True), ("10.0.1", True), ("6.0.16", False)])
def test_server_on_path_must_be_new_enough(
    version: str, is_enough: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    server = tmp_path / "redis-server"
    server.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0:0'\n")
    server.chmod(0o755)

    assert (machine.problem({"PATH": str(tmp_path)}) == "") is is_enough


def test_old_python_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 9))

    assert machine.problem({"REDIS_URL": "redis://elsewhere"}).startswith("Python 3.11 or newer is required")


def test_check_runs_as_a_script_and_requires_the_right_redis_version() -> None:
    done = subprocess.run([sys.executable, "-I", "-S", "deploy/machine.py"], cwd=ROOT, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
    assert machine.LOWEST_REDIS == embedded.LOWEST_VERSION
