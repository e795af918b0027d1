"""Tests of the version bounds of dependencies in setup.cfg. ``make test-oldest`` installs and tests the lower ones."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[2] / "setup.cfg"
# "dramatiq >= 2.2, < 3"; the part after a semicolon is a condition
REQUIREMENT = re.compile(r"^    (?P<name>[A-Za-z][\w-]*) *(?P<bounds>[<>=!][^;]*)")


def requirements() -> list[tuple[str, str, bool]]:
    """Return (name, bounds, whether there is a comment above) for each requirement that has bounds."""
    lines = SETUP.read_text().splitlines()
    return [
        (found["name"], found["bounds"], above.strip().startswith("#"))
        for above, line in pairwise(lines)
        if (found := REQUIREMENT.match(line))
    ]


def test_upper_bound_has_a_reason_above_it() -> None:
    capped = [(name, reason) for name, bounds, reason in requirements() if "<" in bounds]

    assert len(capped) > 3
    assert [name for name, has_reason in capped if not has_reason] == []


@pytest.mark.parametrize("name", sorted({name for name, _, _ in requirements()}))
def test_requirement_has_the_same_bounds_in_every_extra(name: str) -> None:
    bounds = {bounds.strip() for known, bounds, _ in requirements() if known.lower() == name.lower()}

    assert len({one for one in bounds if not one.startswith("==")}) <= 1, bounds
