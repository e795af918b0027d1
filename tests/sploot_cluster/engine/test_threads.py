"""Thread counts: how many threads are used, and that BLAS gets its own number back afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from sploot_cluster.threads import NATIVE, n_cores, one_thread_each, spread


def blas_threads() -> list[int]:
    """Return the thread counts of the BLAS libraries that numpy uses."""
    assert np.ones((2, 2)).sum() == 4
    numbers = [one["num_threads"] for one in ThreadpoolController().info() if "numpy" in one["filepath"]]
    assert numbers
    return numbers


def test_native_libraries_use_one_thread_unless_configured_otherwise() -> None:
    environ = {"OPENBLAS_NUM_THREADS": "4"}

    one_thread_each(environ)

    assert environ == {name: "4" if name == "OPENBLAS_NUM_THREADS" else "1" for name in NATIVE}


@pytest.mark.parametrize("threads", [1, 3])
def test_spread_yields_results_in_order(threads: int) -> None:
    assert list(spread(lambda start: start * 2, range(0, 50, 5), threads=threads)) == list(range(0, 100, 10))


@pytest.mark.parametrize("threads", [1, 2])
def test_blas_uses_one_thread_only_during_spread(threads: int) -> None:
    before = blas_threads()

    during = list(spread(lambda _: blas_threads(), range(3), threads=threads))

    assert all(n == 1 for each in during for n in each)
    assert blas_threads() == before


def test_numpy_blas_detects_the_core_type() -> None:
    """We rely on this detection and set no core type. If it fails, matrix products take several times as long."""
    (blas,) = (one for one in ThreadpoolController().info() if "numpy" in one["filepath"])
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    if "OPENBLAS_CORETYPE" in os.environ or not flags & {"avx2", "avx512f"}:
        pytest.skip("the core type is set explicitly, or this is not an x86 CPU with AVX2 under Linux")

    wide = {"SkylakeX", "Cooperlake", "Sapphirerapids"}

    assert blas["architecture"] in (wide if {"avx512f", "avx512vl"} <= flags else wide | {"Haswell", "Zen"})


def test_exception_in_a_thread_is_raised_and_blas_threads_are_restored() -> None:
    before = blas_threads()

    with pytest.raises(ZeroDivisionError):
        list(spread(lambda start: 1 // start, range(3), threads=2))

    assert blas_threads() == before


@pytest.mark.parametrize(
    ("limit", "cores"), [("max 100000", None), ("100000 100000", 1), ("20000 100000", 1), ("nonsense", None)]
)
def test_cpu_limit_of_a_container_limits_cores(tmp_path: Path, limit: str, cores: int | None) -> None:
    (tmp_path / "cpu.max").write_text(limit)

    assert n_cores(tmp_path) == (n_cores(tmp_path / "absent") if cores is None else cores)
    assert n_cores(tmp_path) >= 1
