"""Who finds neighbours when a spanning tree is built: the processor, or a GPU where one is wanted and there.

The step is the product of all with all and the nearest of each row. What follows is the same for both, and so is the
result as far as float32 tells. Nothing that a GPU does may cost a recluster: whatever fails, the processor does it, and
whoever handed in ``on_fallback`` hears of it. Without a GPU at hand only that way is tested (docs/gpu.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from sploot_cluster.chunks import NEVER, Chunks, Nearest
from sploot_cluster.models import Backend
from sploot_cluster.spanning_tree import FindNearest, SpanningTree, spanning_tree
from sploot_cluster.vectors import FloatMatrix

logger = logging.getLogger(__name__)

# Below it a GPU takes longer to be asked than a processor to answer.
GPU_FROM: Final = 2_000

# Rows of one product on the GPU: 50,000 columns of them take 800 MB.
_BLOCK: Final = 4_096


@dataclass(frozen=True, slots=True)
class Fallback:
    """A backend that was wanted, the one that was used instead, and why."""

    wanted: Backend
    used: Backend
    reason: str


class GpuUnavailable(Exception):
    """Raised when there is no GPU to compute on; the text says what is missing."""


class TreeBuilder:
    """Builds spanning trees on what is wanted, or on the processor. Safe to use from many threads."""

    def __init__(
        self,
        wanted: Backend,
        *,
        threads: int,
        on_fallback: Callable[[Fallback], None] = lambda _: None,
        find_gpu: Callable[[], FindNearest] | None = None,
    ) -> None:
        """
        Args:
            wanted: ``hdbscan_cpu`` or ``hdbscan_gpu``.
            threads: of the processor.
            on_fallback: hears of each tree that was wanted on a GPU and was not built on one.
            find_gpu: answers who finds neighbours on a GPU, or raises; :func:`gpu_nearest` by default.
        """
        self._wanted, self._threads, self._on_fallback = wanted, threads, on_fallback
        self._find_gpu = find_gpu or gpu_nearest

    def __call__(self, vectors: FloatMatrix, min_samples: int) -> SpanningTree:
        """As :func:`~sploot_cluster.spanning_tree.spanning_tree`."""
        if self._wanted == "hdbscan_gpu" and len(vectors) >= GPU_FROM:
            try:
                nearest = self._find_gpu()
                return spanning_tree(
                    vectors, min_samples, threads=self._threads, nearest=nearest, backend="hdbscan_gpu"
                )
            except Exception as failed:  # drivers, memory, kernels: libraries raise what they like
                self._fall_back(f"{type(failed).__name__}: {failed}")
        return spanning_tree(vectors, min_samples, threads=self._threads)

    def _fall_back(self, reason: str) -> None:
        fallback = Fallback("hdbscan_gpu", "hdbscan_cpu", reason)
        logger.warning(
            "backend not used", extra={"wanted": fallback.wanted, "used": fallback.used, "reason": fallback.reason}
        )
        self._on_fallback(fallback)


def gpu_nearest() -> FindNearest:
    """Who finds neighbours on the first GPU: cupy, else torch.

    Raises:
        GpuUnavailable: neither is installed, or there is no device.
    """
    missing = []
    for find in (_with_cupy, _with_torch):
        try:
            return find()
        except ImportError as absent:
            missing.append(f"{absent.name or absent} is not installed")
        except GpuUnavailable as unavailable:
            missing.append(str(unavailable))
    raise GpuUnavailable("; ".join(missing))


def _with_cupy() -> FindNearest:
    import cupy

    if not cupy.cuda.is_available():
        raise GpuUnavailable("cupy finds no device")

    def nearest(vectors: FloatMatrix, chunks: Chunks, k: int) -> Nearest:
        n, (size, n_chunks) = len(vectors), chunks.rows.shape
        there, columns = cupy.asarray(vectors), cupy.asarray(chunks.columns.reshape(size * n_chunks, -1)).T
        own, fillings = cupy.asarray(chunks.places), cupy.asarray(chunks.fillings)
        places, similarities = np.empty((n, k), dtype=np.intp), np.empty((n, k), dtype=np.float32)
        most = np.empty((n, n_chunks), dtype=np.float32)
        for start in range(0, n, _BLOCK):
            block = slice(start, min(start + _BLOCK, n))
            similarity = there[block] @ columns
            similarity[cupy.arange(len(similarity)), own[block]] = NEVER
            similarity[:, fillings] = NEVER
            largest = cupy.argpartition(similarity, -k, axis=1)[:, -k:]
            places[block] = cupy.asnumpy(largest)
            similarities[block] = cupy.asnumpy(cupy.take_along_axis(similarity, largest, axis=1))
            most[block] = cupy.asnumpy(similarity.reshape(-1, size, n_chunks).max(axis=1))
        return Nearest.of(chunks, places, similarities, most)

    return nearest


def _with_torch() -> FindNearest:
    import torch

    if not torch.cuda.is_available():
        raise GpuUnavailable("torch finds no device")

    def nearest(vectors: FloatMatrix, chunks: Chunks, k: int) -> Nearest:
        n, (size, n_chunks) = len(vectors), chunks.rows.shape
        places, similarities = np.empty((n, k), dtype=np.intp), np.empty((n, k), dtype=np.float32)
        most = np.empty((n, n_chunks), dtype=np.float32)
        # TF32 would keep three digits
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            # a copy: torch wants to own what it may write to
            there = torch.from_numpy(np.array(vectors)).cuda()
            columns = torch.from_numpy(chunks.columns.reshape(size * n_chunks, -1)).cuda().T
            own, fillings = torch.from_numpy(chunks.places).cuda(), torch.from_numpy(chunks.fillings).cuda()
            for start in range(0, n, _BLOCK):
                block = slice(start, min(start + _BLOCK, n))
                similarity = there[block] @ columns
                similarity[torch.arange(len(similarity)).cuda(), own[block]] = float(NEVER)
                similarity[:, fillings] = float(NEVER)
                values, largest = torch.topk(similarity, k, dim=1)
                places[block], similarities[block] = largest.cpu().numpy(), values.cpu().numpy()
                most[block] = similarity.reshape(-1, size, n_chunks).amax(dim=1).cpu().numpy()
        finally:
            torch.set_float32_matmul_precision(precision)
        return Nearest.of(chunks, places, similarities, most)

    return nearest
