"""Reclusters of a pet that grows: ``make bench ARGS=growth``, or ``python -m benchmarks.growth [SIZE …]``.

A first recluster builds the pet's spanning tree from scratch. Later reclusters extend the stored tree by new rows. The
first table shows the CPU seconds for only the tree, the second those for whole reclusters by a newly started service,
with its store in memory. In brackets: the share of the time that the same items take from scratch, measured
alternately.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Final

from benchmarks.density import DIM, pictures
from benchmarks.records import number, table
from sploot_cluster import ClusterService
from sploot_cluster.engine.spanning_tree import spanning_tree
from sploot_cluster.engine.tree_changes import grown
from sploot_cluster.pet.models import NOISE, Arrival, Change, MediaId, Origin, PetId
from sploot_cluster.pet.rows import empty_state
from sploot_cluster.pet.vectors import FloatMatrix
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.store.memory import MemoryPetStore
from sploot_cluster.threads import quiet_blas

PET: Final = PetId(1)
SHARES: Final = (0.005, 0.02, 0.05, 0.2)
SAMPLES: Final = 2
ROUNDS: Final = 3


def measure_tree(vectors: FloatMatrix, n: int, share: float) -> tuple[float, float]:
    """Return the CPU seconds to build a tree of n items and ``share`` more, and to extend a tree of n items by them."""
    tree, more = spanning_tree(vectors[:n], SAMPLES), vectors[: n + round(share * n)]
    spent = [(_cpu(lambda: spanning_tree(more, SAMPLES)), _cpu(lambda: grown(tree, more))) for _ in range(ROUNDS)]
    return median(built for built, _ in spent), median(extended for _, extended in spent)


def measure(vectors: FloatMatrix, n: int, share: float) -> tuple[float, float]:
    """Return the CPU seconds to recluster n items and ``share`` more, from scratch and from a tree of n items."""
    spent = []
    for _ in range(ROUNDS):
        fresh, grows = MemoryPetStore(), MemoryPetStore()
        _add(fresh, vectors, 0, n + round(share * n))
        _add(grows, vectors, 0, n)
        _recluster(grows)
        _add(grows, vectors, n, n + round(share * n))
        spent.append((_recluster(fresh), _recluster(grows)))
    return median(built for built, _ in spent), median(extended for _, extended in spent)


def _add(store: MemoryPetStore, vectors: FloatMatrix, start: int, end: int) -> None:
    state = store.load(PET, known=empty_state(PET))
    store.commit(
        state,
        Change(
            "arrival",
            next_cluster=state.next_cluster,
            n_at_recluster=state.n_at_recluster,
            noise_arrivals=0,
            model=None if state.model else "bench@1",
            dim=None if state.dim else DIM,
            arrivals=tuple(
                Arrival(MediaId(f"item-{row:07d}"), vectors[row], NOISE, Origin.NOISE) for row in range(start, end)
            ),
        ),
    )


def _recluster(store: MemoryPetStore) -> float:
    service = ClusterService(store, settings=ClusterSettings(recluster_threads=1))
    return _cpu(lambda: service.recluster(PET))


def _cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.growth", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sizes", nargs="*", type=int, default=[1_000, 6_000, 10_000])
    arguments = parser.parse_args()
    measure(pictures(600), 300, 0.2)  # warm up: import the modules
    with quiet_blas():
        for what, measured in (("tree", measure_tree), ("recluster", measure)):
            print(report(what, measured, arguments.sizes), end="\n\n")


def report(what: str, measure: Callable[[FloatMatrix, int, float], tuple[float, float]], sizes: Sequence[int]) -> str:
    rows = []
    for n in sizes:
        vectors = pictures(round(n * (1 + SHARES[-1])))
        measured = [measure(vectors, n, share) for share in SHARES]
        cells = [f"{number(extended)} ({extended / built:.0%})" for built, extended in measured]
        rows.append([f"{n:,}", number(measured[0][0]), *cells])
    return table([f"{what}: items", "from scratch", *(f"+{share:.1%}" for share in SHARES)], rows)


if __name__ == "__main__":
    main()
