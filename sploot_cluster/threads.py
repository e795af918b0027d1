"""The thread counts of native code, for every process that computes.

Work is spread over our own threads, each of which multiplies its own blocks of rows. BLAS's threads are not used,
because they spin while they wait for each other at every product: on two cores shared with other processes, two BLAS
threads took six times as long as one, and two of our threads took half as long as one. So BLAS and OpenMP run one
thread each, and only our own threads are configured.

An arrival is too small for a second thread. A recluster takes as many threads as there are cores, and two reclusters on
the same cores share them without waiting for each other. OpenBLAS's core type is not set: numpy computes all products,
its OpenBLAS detects the CPU, and faiss searches one query at a time, without BLAS. The measurements are in
docs/explanation/threads.md.
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
    """Limit BLAS and OpenMP to one thread each, unless ``environ`` sets another number.

    Both libraries read these variables at first import, so entry points call this before they import numpy.
    """
    for variable in NATIVE:
        environ.setdefault(variable, "1")


def n_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of cores that this process may use: its CPU affinity or, if lower, its container's limit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))


def spread(work: Callable[[int], T], starts: Sequence[int], *, threads: int) -> Iterator[T]:
    """Yield ``work(start)`` for each start, in order, computed by up to ``threads`` threads.

    If one thread is enough, the calling thread does the work.
    """
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
    # leave out OpenMP, which stores its limit per thread: only faiss's OpenBLAS uses OpenMP, and it computes no
    # products here
    return [library for library in libraries if library.info().get("threading_layer") != "openmp"]


@contextmanager
def quiet_blas() -> Iterator[None]:
    """Limit BLAS to one thread inside the block, and restore its previous setting afterwards.

    This has an effect only in the main thread, such as in a script, because OpenBLAS 0.3.31 ignores the setting in
    other threads. Processes that compute in other threads call :func:`one_thread_each` at start, as ours do.
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
