"""Tests that corrections hold on a few simulated days, always the same ones.

``make promises`` simulates 10,000 events on days with other seeds.
"""

from __future__ import annotations

import pytest

from tests.sploot_cluster.days import STEPS, Day, check_past


# The last seed reproduces a bug: a second recluster without new items moved items between clusters that splits had
# separated.
# in the last one, a split moves items that no user named
@pytest.mark.parametrize("seed", [*range(4), 4044085121, 915757801])
def test_corrections_hold_on_simulated_days(seed: int) -> None:
    day = Day(seed)

    happened = [day.go_on() for _ in range(STEPS)]
    check_past(day)

    assert {"merge", "split", "place", "exclude", "dismiss", "undo", "recluster"} & {*happened}


@pytest.mark.parametrize("seed", [2, 5])
def test_corrections_hold_through_deletions_and_model_switches(seed: int) -> None:
    day = Day(seed, upheavals=True)

    happened = [day.go_on() for _ in range(STEPS)]
    check_past(day)

    assert {"delete", "replace"} <= {*happened}
