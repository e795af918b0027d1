"""Tests that a worker stays small on disk and in memory; ``python -m benchmarks footprint`` also measures its start."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.footprint import LARGEST_BYTES, LARGEST_PROCESS_BYTES, install, start
from deploy.image import size_of
from tasks.redis_access.embedded import EmbeddedRedis

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]


def test_worker_is_small_on_disk_and_in_memory(tmp_path: Path) -> None:
    python = install(tmp_path)

    with EmbeddedRedis() as server:
        started = start(python, server)

    assert size_of(python.parents[1]) <= LARGEST_BYTES
    assert 0 < started.own_bytes <= LARGEST_PROCESS_BYTES
