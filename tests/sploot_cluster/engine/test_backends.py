"""Choice of the backend if the GPU is missing, fails or works. The GPU is simulated; test machines have none."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

import numpy as np
import pytest

from sploot_cluster.engine.backends import GPU_FROM, Fallback, GpuUnavailable, TreeBuilder, gpu_nearest
from sploot_cluster.engine.chunks import Chunks, Nearest, nearest_rows
from sploot_cluster.engine.spanning_tree import FindNearest, spanning_tree
from sploot_cluster.pet.models import MediaId, PetId
from sploot_cluster.pet.vectors import FloatMatrix, as_vectors
from sploot_cluster.service import ClusterService
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.store.memory import MemoryPetStore

VECTORS = as_vectors(np.random.default_rng(1).normal(size=(GPU_FROM, 8)))


def raising(error: Exception) -> Callable[[], FindNearest]:
    def find() -> NoReturn:
        raise error

    return find


def failing_at_work(error: Exception) -> Callable[[], FindNearest]:
    def nearest(vectors: FloatMatrix, chunks: Chunks, k: int) -> NoReturn:
        raise error

    return lambda: nearest


@pytest.mark.parametrize(
    ("find", "reason"),
    [
        (raising(ImportError("No module named 'cupy'")), "ImportError: No module named 'cupy'"),
        (raising(GpuUnavailable("torch finds no device")), "GpuUnavailable: torch finds no device"),
        (failing_at_work(MemoryError("Out of memory allocating 800 MB")), "MemoryError: Out of memory"),
        (failing_at_work(RuntimeError("CUDA error: device lost")), "RuntimeError: CUDA error"),
    ],
    ids=["not installed", "no device", "no memory", "lost"],
)
def test_gpu_failure_falls_back_to_the_cpu_and_is_reported(
    find: Callable[[], FindNearest], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Fallback] = []
    build = TreeBuilder("hdbscan_gpu", threads=1, on_fallback=heard.append, find_gpu=find)

    with caplog.at_level(logging.WARNING, logger="sploot_cluster.engine.backends"):
        tree = build(VECTORS, 2)

    assert tree.backend == "hdbscan_cpu"
    np.testing.assert_array_equal(tree.edges, spanning_tree(VECTORS, 2).edges)
    assert [(one.wanted, one.used) for one in heard] == [("hdbscan_gpu", "hdbscan_cpu")]
    assert heard[0].reason.startswith(reason)
    (record,) = caplog.records
    assert record.__dict__["reason"] == heard[0].reason
    assert (record.__dict__["wanted"], record.__dict__["used"]) == ("hdbscan_gpu", "hdbscan_cpu")


def test_working_gpu_builds_the_same_tree_as_the_cpu() -> None:
    asked: list[int] = []

    def nearest(vectors: FloatMatrix, chunks: Chunks, k: int) -> Nearest:
        asked.append(len(vectors))
        return nearest_rows(vectors, chunks, k)

    heard: list[Fallback] = []
    build = TreeBuilder("hdbscan_gpu", threads=1, on_fallback=heard.append, find_gpu=lambda: nearest)

    tree = build(VECTORS, 2)

    assert (tree.backend, asked, heard) == ("hdbscan_gpu", [GPU_FROM], [])
    np.testing.assert_array_equal(tree.edges, spanning_tree(VECTORS, 2).edges)


def test_cupy_calls_build_the_same_tree_as_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy, which has the same functions, stands in for cupy; without a GPU, no closer test is possible."""
    cupy, cuda = ModuleType("cupy"), ModuleType("cuda")
    cuda.is_available = lambda: True  # type: ignore[attr-defined]
    cupy.__dict__.update({name: getattr(np, name) for name in ("arange", "argpartition", "asarray", "take_along_axis")})
    cupy.__dict__.update(cuda=cuda, asnumpy=np.asarray)
    monkeypatch.setitem(sys.modules, "cupy", cupy)

    tree = TreeBuilder("hdbscan_gpu", threads=1)(VECTORS, 2)

    expected = spanning_tree(VECTORS, 2)
    assert tree.backend == "hdbscan_gpu"
    np.testing.assert_array_equal(tree.edges, expected.edges)
    np.testing.assert_array_equal(tree.weights, expected.weights)


@pytest.mark.parametrize(("wanted", "n"), [("hdbscan_cpu", GPU_FROM), ("hdbscan_gpu", GPU_FROM - 1)])
def test_gpu_is_not_used_for_few_items_or_if_it_is_not_configured(wanted: str, n: int) -> None:
    heard: list[Fallback] = []
    build = TreeBuilder(
        "hdbscan_gpu" if wanted == "hdbscan_gpu" else "hdbscan_cpu",
        threads=1,
        on_fallback=heard.append,
        find_gpu=raising(AssertionError("looked for a GPU")),
    )

    assert build(VECTORS[:n], 2).backend == "hdbscan_cpu"
    assert heard == []


def test_gpu_error_names_missing_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setitem(sys.modules, "torch", None)

    with pytest.raises(GpuUnavailable, match=r"^cupy is not installed; torch is not installed$"):
        gpu_nearest()


def test_gpu_is_unavailable_if_the_libraries_find_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cupy", "torch"):
        library, cuda = ModuleType(name), ModuleType("cuda")
        cuda.is_available = lambda: False  # type: ignore[attr-defined]
        library.cuda = cuda  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, library)

    with pytest.raises(GpuUnavailable, match=r"^cupy finds no device; torch finds no device$"):
        gpu_nearest()


def test_recluster_reports_the_backend_that_computed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sploot_cluster.engine.backends.GPU_FROM", 10)
    monkeypatch.setattr("sploot_cluster.engine.backends.gpu_nearest", raising(GpuUnavailable("there is none")))
    heard: list[Fallback] = []
    service = ClusterService(
        MemoryPetStore(), settings=ClusterSettings(recluster_backend="hdbscan_gpu"), on_fallback=heard.append
    )
    for row in range(20):
        service.assign(PetId(1), MediaId(f"m{row}"), model="clip@1", vector=VECTORS[row])

    reclustered = service.recluster(PetId(1))

    assert reclustered.backend == "hdbscan_cpu"
    assert [one.reason for one in heard] == ["GpuUnavailable: there is none"]
