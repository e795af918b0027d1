"""How many threads native code gets: one place, for every process that computes.

Work is spread over threads of our own, each of which multiplies blocks of rows by itself. BLAS's own threads would wait
for each other at every product, spinning: on two cores that others share, two of them took six times as long as one,
and two threads of ours half as long. So BLAS and OpenMP run one thread each, and what matters is how many of ours.

An arrival is worth no second thread; a recluster takes as many as there are cores, and two reclusters on the same cores
share them without waiting for each other. No core type of OpenBLAS is set: all products are numpy's, whose OpenBLAS
knows the cores by itself; faiss searches one query at a time, without BLAS. docs/threads.md has the measurements.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from threadpoolctl import LibController

T = TypeVar("T")

NATIVE: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def one_thread_each(environ: MutableMapping[str, str]) -> None:
    """Have BLAS and OpenMP run one thread each, unless ``environ`` says otherwise.

    They read it when they are first imported: to be called by entry points, before numpy is.
    """
    for variable in NATIVE:
        environ.setdefault(variable, "1")


def n_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may keep busy: those it may run on, or the CPU limit of its container if that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))


def spread(work: Callable[[int], T], starts: Sequence[int], *, threads: int) -> Iterator[T]:
    """``work(start)`` of each start, in their order, on so many threads; in this one where one is enough."""
    with quiet_blas():
        if min(threads, len(starts)) <= 1:
            yield from map(work, starts)
        else:
            with ThreadPoolExecutor(min(threads, len(starts)), thread_name_prefix="blocks") as pool:
                yield from pool.map(work, starts)


@cache
def _blas() -> list[LibController]:
    from threadpoolctl import ThreadpoolController

    libraries: list[LibController] = ThreadpoolController().select(user_api="blas").lib_controllers
    # OpenMP keeps its number per thread; that of faiss's OpenBLAS, the only one on OpenMP, multiplies nothing of ours
    return [library for library in libraries if library.info().get("threading_layer") != "openmp"]


@contextmanager
def quiet_blas() -> Iterator[None]:
    """BLAS with one thread, and afterwards with what it had before.

    Only in the main thread, as of a script: OpenBLAS 0.3.31 ignores what others set. A process that computes in other
    threads calls :func:`one_thread_each` when it starts, as ours do.
    """
    libraries = _blas() if current_thread() is main_thread() else []
    loud = [(library, n) for library in libraries if (n := library.get_num_threads()) != 1]
    for library, _ in loud:
        library.set_num_threads(1)
    try:
        yield
    finally:
        for library, n in loud:
            library.set_num_threads(n)
