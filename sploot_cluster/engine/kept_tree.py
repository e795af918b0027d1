"""Serialisation of a pet's spanning tree, which is stored next to the pet.

The tree is a pure function of the vectors of the first n rows, and rows are only ever appended. So commits need not
write it: a reader extends an outdated tree, and builds a new one if the tree is missing, stale or unreadable. The
header identifies the rows that the tree covers by a hash of ``PetState.born`` and the media ids of these rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import blake2b
from itertools import pairwise
from typing import Final

import numpy as np

from sploot_cluster.engine.spanning_tree import SpanningTree
from sploot_cluster.pet.models import KeptTree, MediaId, PetState

# Minimum number of items of a pet whose tree is stored: building a smaller tree takes less time than fetching it.
KEPT_FROM: Final = 256

_FORMAT: Final = "spanning-tree/1"


def dump(tree: SpanningTree, state: PetState) -> KeptTree:
    """Serialise the tree of the first ``tree.n`` rows of ``state``. Takes 16 bytes per row and 12 per neighbour."""
    header = {"format": _FORMAT, "rows": _name(state.born, state.media[: tree.n]), "shape": tree.neighbours.shape}
    columns = (
        tree.neighbours.astype("<i4"),
        tree.distances.astype("<f8"),
        tree.edges.astype("<i4"),
        tree.lengths.astype("<f8"),
    )
    body = json.dumps(header).encode() + b"\n" + b"".join(column.tobytes() for column in columns)
    return KeptTree(state.born, tree.n, body)


def load(stored: KeptTree, state: PetState, min_samples: int) -> SpanningTree | None:
    """Return the stored tree if it was built from the first rows of ``state`` with ``min_samples``, else None."""
    head, _, body = stored.body.partition(b"\n")
    try:
        header = json.loads(head)
        n, k = header["shape"]
        if header["format"] != _FORMAT or k != min_samples or not 2 <= n <= state.n_media:
            return None
        if header["rows"] != _name(state.born, state.media[:n]):
            return None
        tree = _columns(body, n, k)
    except (ValueError, KeyError, TypeError):
        return None
    is_sound = (
        tree.neighbours.min() >= 0
        and tree.neighbours.max() < n
        and tree.edges.min() >= 0
        and tree.edges.max() < n
        and np.isfinite(tree.distances).all()
        and np.isfinite(tree.lengths).all()
    )
    return tree if is_sound else None


def _columns(body: bytes, n: int, k: int) -> SpanningTree:
    """Parse the columns of a stored tree.

    Raises:
        ValueError: the body has the wrong length.
    """
    sizes = np.cumsum([0, 4 * n * k, 8 * n * k, 8 * (n - 1), 8 * (n - 1)]).tolist()
    if len(body) != sizes[-1]:
        raise ValueError(f"expected {sizes[-1]} bytes for {n} rows of {k} samples, got {len(body)}")
    neighbours, distances, edges, lengths = (body[start:end] for start, end in pairwise(sizes))
    return SpanningTree(
        np.frombuffer(neighbours, dtype="<i4").reshape(n, k).astype(np.intp),
        np.frombuffer(distances, dtype="<f8").reshape(n, k).astype(np.float64),
        np.frombuffer(edges, dtype="<i4").reshape(n - 1, 2).astype(np.intp),
        np.frombuffer(lengths, dtype="<f8").astype(np.float64),
    )


def _name(born: str, media: Iterable[MediaId]) -> str:
    # no id contains a zero byte, so joining with zero bytes is unambiguous; the header has the number of ids
    return blake2b("\0".join((born, *media)).encode(), digest_size=16).hexdigest()
