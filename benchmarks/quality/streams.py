"""Quality and cost of exact arrivals while items stream in: ``python -m benchmarks.quality.streams [--seeds 101 …]``.

The items of pets with up to 400 items arrive one by one, in order, at a service with its store in memory. Requested
reclusters run at once. After each tenth of the items, the clusters are compared with the known groups; each noise item
counts as a separate group.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sploot_cluster.threads import one_thread_each

one_thread_each(os.environ)

import numpy as np
from sklearn.metrics import adjusted_rand_score

from benchmarks.quality.__main__ import FRESH, mean, singles
from benchmarks.quality.sets import BANKING77, LabelledSet, draw
from benchmarks.records import number, table
from sploot_cluster.pet.models import MediaId, PetId
from sploot_cluster.service import ClusterService
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.store.memory import MemoryPetStore

UNTIL: Final = (0, 16, 32, 64, 128, 400)
LARGEST: Final = 400
PET: Final = PetId(1)


@dataclass(slots=True)
class _Asked:
    """A record of requested reclusters."""

    asked: bool = False
    n: int = 0

    def request_recluster(self, pet_id: int, *, reason: str, delay_ms: int) -> None:
        self.asked = True
        self.n += 1


@dataclass(slots=True)
class _Stream:
    ari: list[float] = field(default_factory=list)
    arrival_ms: list[float] = field(default_factory=list)
    reclusters: int = 0
    recluster_ms: float = 0.0


def stream(one: LabelledSet, exact_until: int) -> _Stream:
    asked, store, found = _Asked(), MemoryPetStore(), _Stream()
    service = ClusterService(
        store, settings=ClusterSettings(exact_until=exact_until, recluster_threads=1), reclusters=asked
    )
    n = len(one.truth)
    looks_at = {round(n * tenth / 10) for tenth in range(1, 11)}
    for row in range(n):
        start = time.process_time()
        service.assign(PET, MediaId(f"m{row:04d}"), model="any@1", vector=one.vectors[row])
        found.arrival_ms.append(1e3 * (time.process_time() - start))
        if asked.asked:
            start = time.process_time()
            service.recluster(PET)
            found.recluster_ms += 1e3 * (time.process_time() - start)
            asked.asked = False
        if row + 1 in looks_at and row >= 9:
            labels = store.load(PET).labels.astype(np.int64)
            found.ari.append(float(adjusted_rand_score(singles(one.truth[: row + 1]), singles(labels))))
    found.reclusters = asked.n
    return found


def report(sets: Iterable[LabelledSet]) -> str:
    by: dict[tuple[str, int], list[_Stream]] = defaultdict(list)
    families: list[str] = []
    for one in sets:
        if not 20 <= len(one.truth) <= LARGEST:
            continue
        if one.family not in families:
            families.append(one.family)
        for until in UNTIL:
            by[one.family, until].append(stream(one, until))
    rows = []
    for until in UNTIL:
        streams = [one for family in families for one in by[family, until]]
        n = sum(len(one.arrival_ms) for one in streams)
        rows.append(
            [
                f"{until:,}",
                *(f"{mean(mean(one.ari) for one in by[family, until]):.3f}" for family in families),
                f"{mean(mean(mean(one.ari) for one in by[family, until]) for family in families):.3f}",
                number(sum(sum(one.arrival_ms) for one in streams) / n),
                number(sum(one.recluster_ms for one in streams) / n),
                number(mean(one.reclusters for one in streams)),
            ]
        )
    return table(
        ["exact until", *families, "mean ARI", "CPU ms, arrival", "and its share of reclusters", "reclusters a pet"],
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.quality.streams", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(FRESH))
    parser.add_argument("--banking77", type=Path, default=BANKING77)
    arguments = parser.parse_args()
    print(report(one for seed in arguments.seeds for one in draw(seed, banking77=arguments.banking77)))


if __name__ == "__main__":
    main()
