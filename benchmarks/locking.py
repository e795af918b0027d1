"""The effect and cost of locks: ``python -m benchmarks locking``.

The first half of each pet with known groups arrives and is reclustered. A simulated person locks the correct clusters,
which have at least six items, all of one group. Then the second half arrives; the pet is reclustered halfway through
and at the end. The table shows, without locks and with locks of different strictness, how many of these clusters got
strangers or lost items, and how many of the later items of their groups joined them.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.quality.sets import BANKING77, LabelledSet, draw
from benchmarks.records import table
from sploot_cluster import ClusterService
from sploot_cluster.decide import assignment
from sploot_cluster.pet.models import ClusterId, MediaId, PetId
from sploot_cluster.service import NewItem
from sploot_cluster.store.memory import MemoryPetStore

PET: Final = PetId(1)
MODEL: Final = "bench@1"
SMALLEST: Final = 6
REACHES: Final = (None, 1.0, 0.95, 0.9, 0.8, 0.7)

Numbers = npt.NDArray[np.int64]


@dataclass
class Outcome:
    """The final state of the clusters that were correct: counts of clusters, and of later items of their groups."""

    clusters: int = 0
    with_strangers: int = 0
    strangers: int = 0
    cut: int = 0
    later: int = 0
    joined: int = 0


def observe(one: LabelledSet, outcome: Outcome, *, is_locked: bool) -> None:
    service = ClusterService(MemoryPetStore())
    n = len(one.truth)

    def take(rows: range) -> None:
        items = [NewItem(PET, MediaId(str(row)), MODEL, one.vectors[row]) for row in rows]
        for start in range(0, len(items), 500):
            service.assign_many(items[start : start + 500])
        service.recluster(PET)

    take(range(n // 2))
    right: dict[ClusterId, tuple[int, set[int]]] = {}
    for view in service.clusters(PET).clusters:
        rows = {int(item) for item in view.media_ids}
        groups = {int(group) for group in one.truth[list(rows)]}
        if len(rows) >= SMALLEST and len(groups) == 1 and groups != {-1}:
            right[view.cluster_id] = (groups.pop(), rows)
    if is_locked and right:
        service.lock(PET, list(right), operation_id="lock", by="person")
    take(range(n // 2, 3 * n // 4))
    take(range(3 * n // 4, n))
    now = {view.cluster_id: {int(item) for item in view.media_ids} for view in service.clusters(PET).clusters}
    for cluster, (group, rows) in right.items():
        members = now.get(cluster, set())
        strangers = sum(one.truth[row] != group for row in members)
        later = {int(row) for row in np.flatnonzero(one.truth == group) if row >= n // 2}
        outcome.clusters += 1
        outcome.with_strangers += strangers > 0
        outcome.strangers += int(strangers)
        outcome.cut += not rows <= members
        outcome.later += len(later)
        outcome.joined += len(later & members)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[101, 102])
    parser.add_argument("--largest", type=int, default=1_000, help="pets up to this size")
    parser.add_argument("--banking77", type=Path, default=BANKING77, help="npz of real sentences; skipped if absent")
    given = parser.parse_args()
    sets = [one for seed in given.seeds for one in draw(seed, banking77=given.banking77)]
    rows = []
    for reach in REACHES:
        outcome = Outcome()
        assignment.LOCKED_REACH = reach or 1.0  # type: ignore[misc]
        for one in sets:
            if len(one.truth) <= given.largest:
                observe(one, outcome, is_locked=reach is not None)
        rows.append(
            [
                "no lock" if reach is None else f"{reach:.2f}",
                str(outcome.clusters),
                f"{outcome.with_strangers / outcome.clusters:.0%}",
                str(outcome.strangers),
                f"{outcome.cut / outcome.clusters:.0%}",
                f"{outcome.joined / outcome.later:.0%}",
            ]
        )
    head = ["highest reach", "clusters", "with strangers", "strangers", "lost items", "later items in them"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
