"""A GPU that is wanted and not there, fails, or works: simulated at our own port, for there is none here."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

import numpy as np
import pytest

from sploot_cluster.backends import GPU_FROM, Fallback, GpuUnavailable, TreeBuilder, gpu_nearest
from sploot_cluster.chunks import Chunks, Nearest, nearest_rows
from sploot_cluster.memory_store import MemoryPetStore
from sploot_cluster.models import MediaId, PetId
from sploot_cluster.service import ClusterService
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.spanning_tree import FindNearest, spanning_tree
from sploot_cluster.vectors import FloatMatrix, as_vectors

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
def test_whatever_fails_on_the_gpu_is_done_by_the_processor_and_told(
    find: Callable[[], FindNearest], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Fallback] = []
    build = TreeBuilder("hdbscan_gpu", threads=1, on_fallback=heard.append, find_gpu=find)

    with caplog.at_level(logging.WARNING, logger="sploot_cluster.backends"):
        tree = build(VECTORS, 2)

    assert tree.backend == "hdbscan_cpu"
    np.testing.assert_array_equal(tree.edges, spanning_tree(VECTORS, 2).edges)
    assert [(one.wanted, one.used) for one in heard] == [("hdbscan_gpu", "hdbscan_cpu")]
    assert heard[0].reason.startswith(reason)
    (record,) = caplog.records
    assert record.__dict__["reason"] == heard[0].reason
    assert (record.__dict__["wanted"], record.__dict__["used"]) == ("hdbscan_gpu", "hdbscan_cpu")


def test_a_gpu_that_works_gives_the_tree_of_the_processor_and_is_named() -> None:
    asked: list[int] = []

    def nearest(vectors: FloatMatrix, chunks: Chunks, k: int) -> Nearest:
        asked.append(len(vectors))
        return nearest_rows(vectors, chunks, k)

    heard: list[Fallback] = []
    build = TreeBuilder("hdbscan_gpu", threads=1, on_fallback=heard.append, find_gpu=lambda: nearest)

    tree = build(VECTORS, 2)

    assert (tree.backend, asked, heard) == ("hdbscan_gpu", [GPU_FROM], [])
    np.testing.assert_array_equal(tree.edges, spanning_tree(VECTORS, 2).edges)


def test_what_is_asked_of_cupy_gives_the_tree_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy in its place: cupy has its functions, and this is as near as a machine without a GPU gets."""
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
def test_who_wants_no_gpu_or_has_few_media_asks_for_none(wanted: str, n: int) -> None:
    heard: list[Fallback] = []
    build = TreeBuilder(
        "hdbscan_gpu" if wanted == "hdbscan_gpu" else "hdbscan_cpu",
        threads=1,
        on_fallback=heard.append,
        find_gpu=raising(AssertionError("asked for a GPU")),
    )

    assert build(VECTORS[:n], 2).backend == "hdbscan_cpu"
    assert heard == []


def test_without_cupy_and_torch_it_says_which_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setitem(sys.modules, "torch", None)

    with pytest.raises(GpuUnavailable, match=r"^cupy is not installed; torch is not installed$"):
        gpu_nearest()


def test_libraries_without_a_device_are_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cupy", "torch"):
        library, cuda = ModuleType(name), ModuleType("cuda")
        cuda.is_available = lambda: False  # type: ignore[attr-defined]
        library.cuda = cuda  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, library)

    with pytest.raises(GpuUnavailable, match=r"^cupy finds no device; torch finds no device$"):
        gpu_nearest()


def test_a_recluster_says_what_it_was_computed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sploot_cluster.backends.GPU_FROM", 10)
    monkeypatch.setattr("sploot_cluster.backends.gpu_nearest", raising(GpuUnavailable("there is none")))
    heard: list[Fallback] = []
    service = ClusterService(
        MemoryPetStore(), settings=ClusterSettings(recluster_backend="hdbscan_gpu"), on_fallback=heard.append
    )
    for row in range(20):
        service.assign(PetId(1), MediaId(f"m{row}"), model="clip@1", vector=VECTORS[row])

    reclustered = service.recluster(PetId(1))

    assert reclustered.backend == "hdbscan_cpu"
    assert [one.reason for one in heard] == ["GpuUnavailable: there is none"]
