"""Merges into a large cluster, one after another: ``make bench ARGS=merges``, ``python -m benchmarks.merges [ITEMS]``.

Small clusters are merged into a cluster of ITEMS items, with the store in memory. For different numbers of merges, the
table shows the CPU milliseconds of a merge, of resolving the ledger's constraints (as every recluster does) and of
``why``, and the size of the ledger as JSON. In the second half of the table, items are split from the large cluster
after the merges, so that these are partly overridden.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Final

import numpy as np

from benchmarks.records import number, table
from sploot_cluster import ClusterService
from sploot_cluster.decide.resolving import resolve
from sploot_cluster.pet.models import Arrival, Change, ClusterCard, ClusterId, MediaId, Origin, PetId, PetState
from sploot_cluster.pet.rows import empty_state
from sploot_cluster.store import ledger_json
from sploot_cluster.store.memory import MemoryPetStore

PET: Final = PetId(1)
LARGE: Final = ClusterId(1)
DIM: Final = 32
SMALL_SIZE: Final = 5
N_SPLIT: Final = 9
MERGES: Final = (1, 10, 40)
REPEATS: Final = 3


def pet(n_items: int) -> MemoryPetStore:
    """Return a store with one pet, which has a cluster of ``n_items`` items and a small cluster for each merge."""
    n_small = max(MERGES)
    cluster_of = [LARGE] * n_items + [ClusterId(2 + row // SMALL_SIZE) for row in range(n_small * SMALL_SIZE)]
    random = np.random.default_rng(1)
    vectors = random.normal(size=(n_small + 2, DIM))[cluster_of] + 0.1 * random.normal(size=(len(cluster_of), DIM))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    store = MemoryPetStore()
    store.commit(
        store.load(PET, known=empty_state(PET)),
        Change(
            "arrival",
            next_cluster=ClusterId(n_small + 2),
            n_at_recluster=0,
            noise_arrivals=0,
            model="bench@1",
            dim=DIM,
            clusters={id_: ClusterCard(id_, 0.5, 1, medoid=cluster_of.index(id_)) for id_ in set(cluster_of)},
            arrivals=tuple(
                Arrival(MediaId(f"holiday/2026/IMG_{row:07d}.jpg"), vectors[row], cluster, Origin.CORE)
                for row, cluster in enumerate(cluster_of)
            ),
        ),
    )
    return store


def measure(n_items: int, n_merges: int, *, is_split: bool) -> list[str]:
    """Return the table row for the last of ``n_merges`` merges."""
    store = pet(n_items)
    service = ClusterService(store)

    def merge(number: int) -> None:
        service.merge(PET, [LARGE, ClusterId(2 + number)], into=LARGE, operation_id=f"merge {number}", by="bench")

    for number_ in range(n_merges - 1):
        merge(number_)
    if is_split:
        service.split(PET, LARGE, store.load(PET).media[:N_SPLIT], operation_id="split", by="bench")
    merging = _ms(lambda: merge(n_merges - 1))
    state = store.load(PET)
    resolving = min(_ms(lambda: _resolved(state)) for _ in range(REPEATS))
    explaining = min(_ms(lambda: service.why(PET, state.media[0])) for _ in range(REPEATS))
    n_bytes = sum(len(ledger_json.dumps(correction)) for correction in state.ledger)
    figures = [*map(number, (merging, resolving, explaining)), f"{n_bytes:,}"]
    return [f"{n_items:,}", "yes" if is_split else "no", str(n_merges), *figures]


def _resolved(state: PetState) -> object:
    return resolve(state.ledger).by_row(state.rows)


def _ms(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return 1_000 * (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.merges", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("items", nargs="?", type=int, default=12_000)
    n_items = parser.parse_args().items
    measure(100, 1, is_split=False)  # warm up: import the modules
    titles = ["items", "split", "merges", "merge ms", "constraints ms", "why ms", "ledger bytes"]
    print(table(titles, [measure(n_items, n, is_split=is_split) for is_split in (False, True) for n in MERGES]))


if __name__ == "__main__":
    main()
