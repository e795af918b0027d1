"""Support for all tests: the only way to wait, missing tools, and refusals."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

import pytest

from sploot_cluster.errors import InvalidInput

T = TypeVar("T")


def eventually(look: Callable[[], T], *, within_s: float = 10.0, every_s: float = 0.01) -> T:
    """Call ``look`` until it returns something truthy, and return that; fail with the last value seen.

    ``within_s`` is a bound for a loaded machine, never an expectation of speed.
    """
    deadline = time.monotonic() + within_s
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s; last seen: {seen!r}")
        time.sleep(every_s)


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
