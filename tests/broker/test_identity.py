"""Detection of dead processes on this machine by their consumer names."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from broker import identity
from broker.identity import consumer_name, is_dead_sibling
from tests.broker.processes import consumer_name_of
from tests.support import eventually


def test_zombie_process_counts_as_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = consumer_name_of(process.pid)
    assert not is_dead_sibling(name)

    process.kill()
    eventually(lambda: is_dead_sibling(name))

    process.communicate()
    assert is_dead_sibling(name)


def test_process_whose_pid_was_reused_counts_as_dead() -> None:
    host, pid, birth, random = consumer_name().split(":")

    assert is_dead_sibling(f"{host}:{pid}:{birth.partition('.')[0]}.1:{random}")


def test_hidden_process_does_not_count_as_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other users' processes are hidden if /proc is mounted with hidepid or a unit sets ProtectProc=invisible."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = consumer_name_of(process.pid)
    monkeypatch.setattr(identity, "stat_of", lambda pid: None)

    assert not is_dead_sibling(name)

    process.communicate(b"\n")
    assert is_dead_sibling(name)


def test_unknown_consumer_names_do_not_count_as_dead() -> None:
    on_another_machine = f"host:{os.getpid()}:0badcafe.7:ab"

    assert not any(map(is_dead_sibling, ("rescue", "~handed-back", "host:1:0.7:ab", on_another_machine)))
