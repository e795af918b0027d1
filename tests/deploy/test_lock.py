"""Tests that the image's lock files pin every package by hash, are up to date, and do not name a registry."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy.lock import LOCKS, stale

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", LOCKS)
def test_lock_file_pins_every_package_by_hash(name: str) -> None:
    requirements = re.split(r"\n(?=\S)", (ROOT / name).read_text().strip())

    assert len(requirements) >= 2
    for requirement in requirements:
        assert re.match(r"[a-z0-9._-]+==[0-9][^ ]*", requirement), requirement
        assert "--hash=sha256:" in requirement, requirement
        assert "://" not in requirement


@pytest.mark.deploy
def test_lock_files_match_setup_cfg() -> None:
    assert stale() == [], "make lock"
