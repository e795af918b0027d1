"""What people said holds on random days. ``make promises`` lives through 10,000 events of new ones."""

from __future__ import annotations

import pytest

from tests.sploot_cluster.days import STEPS, Day, check_past


# On the last of them a second recluster, with nothing new, once moved media between clusters that splits had parted.
@pytest.mark.parametrize("seed", [*range(12), 4044085121])
def test_nothing_that_people_said_is_ever_broken(seed: int) -> None:
    day = Day(seed)

    happened = [day.go_on() for _ in range(STEPS)]
    check_past(day)

    assert {"merge", "split", "exclude", "dismiss", "undo", "recluster"} & {*happened}


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_broken_where_media_are_deleted_and_models_exchanged(seed: int) -> None:
    day = Day(seed, upheavals=True)

    happened = [day.go_on() for _ in range(STEPS)]
    check_past(day)

    assert {"delete", "switch"} & {*happened}
