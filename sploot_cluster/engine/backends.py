"""Choice of the backend that finds neighbours for a spanning tree: the CPU, or a GPU where configured and available.

Only the all-pairs product of the vectors and the selection of each row's nearest neighbours run on a GPU. Every other
step is the same for both backends, and so is the result, within float32 precision. A GPU failure never makes a
recluster fail: the CPU takes over, and ``on_fallback`` is called. On machines without a GPU, the tests cover only this
fallback (docs/how-to/gpu.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from sploot_cluster.engine.chunks import NEVER, Chunks, Nearest
from sploot_cluster.engine.spanning_tree import FindNearest, SpanningTree, spanning_tree
from sploot_cluster.pet.models import Backend
from sploot_cluster.pet.vectors import FloatMatrix

logger = logging.getLogger(__name__)

# Minimum number of vectors for which the GPU is used: for fewer, starting a GPU computation takes longer than computing
# on the CPU.
GPU_FROM: Final = 2_000

# Number of rows per matrix product on the GPU. A product with 50,000 columns takes 800 MB.
_BLOCK: Final = 4_096


@dataclass(frozen=True, slots=True)
class Fallback:
    """A report that a backend could not be used. It names that backend, its replacement and the reason."""

    wanted: Backend
    used: Backend
    reason: str


class GpuUnavailable(Exception):
    """Raised when there is no usable GPU. The message states what is missing."""


class TreeBuilder:
    """A builder of spanning trees on the wanted backend, with fallback to the CPU. Thread-safe."""

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
            threads: number of CPU threads.
            on_fallback: called for each tree that should have been built on a GPU but was not.
            find_gpu: returns a function that finds neighbours on a GPU, or raises. Default: :func:`gpu_nearest`.
        """
        self._wanted, self._threads, self._on_fallback = wanted, threads, on_fallback
        self._find_gpu = find_gpu or gpu_nearest

    def __call__(self, vectors: FloatMatrix, min_samples: int) -> SpanningTree:
        """Return the spanning tree; see :func:`~sploot_cluster.engine.spanning_tree.spanning_tree`."""
        if self._wanted == "hdbscan_gpu" and len(vectors) >= GPU_FROM:
            try:
                nearest = self._find_gpu()
                return spanning_tree(
                    vectors, min_samples, threads=self._threads, nearest=nearest, backend="hdbscan_gpu"
                )
            except Exception as failed:  # GPU libraries raise exceptions of any type
                self._fall_back(f"{type(failed).__name__}: {failed}")
        return spanning_tree(vectors, min_samples, threads=self._threads)

    def _fall_back(self, reason: str) -> None:
        fallback = Fallback("hdbscan_gpu", "hdbscan_cpu", reason)
        logger.warning(
            "backend not used", extra={"wanted": fallback.wanted, "used": fallback.used, "reason": fallback.reason}
        )
        self._on_fallback(fallback)


def gpu_nearest() -> FindNearest:
    """Return a function that finds neighbours on the first GPU, with cupy or else torch.

    Raises:
        GpuUnavailable: neither library is installed, or there is no device.
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
        on_gpu, columns = cupy.asarray(vectors), cupy.asarray(chunks.columns.reshape(size * n_chunks, -1)).T
        own, fillings = cupy.asarray(chunks.places), cupy.asarray(chunks.fillings)
        places, similarities = np.empty((n, k), dtype=np.intp), np.empty((n, k), dtype=np.float32)
        most = np.empty((n, n_chunks), dtype=np.float32)
        for start in range(0, n, _BLOCK):
            block = slice(start, min(start + _BLOCK, n))
            similarity = on_gpu[block] @ columns
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
        # the GPU's TF32 format would keep only three digits
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            # a copy, because torch expects a writable array
            on_gpu = torch.from_numpy(np.array(vectors)).cuda()
            columns = torch.from_numpy(chunks.columns.reshape(size * n_chunks, -1)).cuda().T
            own, fillings = torch.from_numpy(chunks.places).cuda(), torch.from_numpy(chunks.fillings).cuda()
            for start in range(0, n, _BLOCK):
                block = slice(start, min(start + _BLOCK, n))
                similarity = on_gpu[block] @ columns
                similarity[torch.arange(len(similarity)).cuda(), own[block]] = float(NEVER)
                similarity[:, fillings] = float(NEVER)
                values, largest = torch.topk(similarity, k, dim=1)
                places[block], similarities[block] = largest.cpu().numpy(), values.cpu().numpy()
                most[block] = similarity.reshape(-1, size, n_chunks).amax(dim=1).cpu().numpy()
        finally:
            torch.set_float32_matmul_precision(precision)
        return Nearest.of(chunks, places, similarities, most)

    return nearest
