"""What is installed into the image is pinned by hash, fresh, and names no registry."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy.lock import LOCKS, stale

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_of_a_lock_is_a_pin_with_hashes(name: str) -> None:
    requirements = re.split(r"\n(?=\S)", (ROOT / name).read_text().strip())

    assert len(requirements) >= 2
    for requirement in requirements:
        assert re.match(r"[a-z0-9._-]+==[0-9][^ ]*", requirement), requirement
        assert "--hash=sha256:" in requirement, requirement
        assert "://" not in requirement


@pytest.mark.deploy
def test_the_locks_are_what_setup_cfg_asks_for() -> None:
    assert stale() == [], "make lock"
