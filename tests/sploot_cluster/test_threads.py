"""How many threads compute, and that BLAS gets its own back."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from sploot_cluster.threads import NATIVE, n_cores, one_thread_each, spread


def blas_threads() -> list[int]:
    """Threads of the BLAS that numpy multiplies with."""
    assert np.ones((2, 2)).sum() == 4
    numbers = [one["num_threads"] for one in ThreadpoolController().info() if "numpy" in one["filepath"]]
    assert numbers
    return numbers


def test_native_code_gets_one_thread_unless_somebody_said_otherwise() -> None:
    environ = {"OPENBLAS_NUM_THREADS": "4"}

    one_thread_each(environ)

    assert environ == {name: "4" if name == "OPENBLAS_NUM_THREADS" else "1" for name in NATIVE}


@pytest.mark.parametrize("threads", [1, 3])
def test_work_is_answered_in_its_order(threads: int) -> None:
    assert list(spread(lambda start: start * 2, range(0, 50, 5), threads=threads)) == list(range(0, 100, 10))


@pytest.mark.parametrize("threads", [1, 2])
def test_blas_has_one_thread_while_ours_work_and_its_own_number_afterwards(threads: int) -> None:
    before = blas_threads()

    during = list(spread(lambda _: blas_threads(), range(3), threads=threads))

    assert all(n == 1 for each in during for n in each)
    assert blas_threads() == before


def test_the_blas_of_numpy_knows_the_cores_of_this_machine() -> None:
    """Why no core type is set: where this fails, products take several times as long as they need to."""
    (blas,) = (one for one in ThreadpoolController().info() if "numpy" in one["filepath"])
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    if "OPENBLAS_CORETYPE" in os.environ or not flags & {"avx2", "avx512f"}:
        pytest.skip("the core type is set by hand, or this is no x86 with AVX2 whose flags Linux shows")

    wide = {"SkylakeX", "Cooperlake", "Sapphirerapids"}

    assert blas["architecture"] in (wide if {"avx512f", "avx512vl"} <= flags else wide | {"Haswell", "Zen"})


def test_a_failure_in_a_thread_is_raised_and_blas_is_as_before() -> None:
    before = blas_threads()

    with pytest.raises(ZeroDivisionError):
        list(spread(lambda start: 1 // start, range(3), threads=2))

    assert blas_threads() == before


@pytest.mark.parametrize(
    ("limit", "cores"), [("max 100000", None), ("100000 100000", 1), ("20000 100000", 1), ("nonsense", None)]
)
def test_the_limit_of_a_container_counts_as_cores(tmp_path: Path, limit: str, cores: int | None) -> None:
    (tmp_path / "cpu.max").write_text(limit)

    assert n_cores(tmp_path) == (n_cores(tmp_path / "absent") if cores is None else cores)
    assert n_cores(tmp_path) >= 1
