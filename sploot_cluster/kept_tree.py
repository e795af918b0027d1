"""A pet's spanning tree beside the pet: found where it was left, brought up to date, left there again.

The tree is a pure function of the vectors of the first n rows, and rows are only ever appended. So it takes no part in
commits: whoever finds one that is behind lets it grow, and one that is missing, stale or unreadable costs a fresh
build and nothing else. It says which rows it is of: a name made of the pet's first commit and of their media.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import blake2b
from itertools import pairwise
from typing import Final

import numpy as np

from sploot_cluster.models import KeptTree, MediaId, PetState
from sploot_cluster.spanning_tree import SpanningTree

# Smaller pets keep none: their tree takes less time to build than to fetch.
KEPT_FROM: Final = 256

_FORMAT: Final = "spanning-tree/1"


def dump(tree: SpanningTree, state: PetState) -> KeptTree:
    """The tree of the first ``tree.n`` rows of ``state``, to be kept; 28 bytes a row, 12 more for each more sample."""
    header = {"format": _FORMAT, "rows": _name(state.born, state.media[: tree.n]), "shape": tree.neighbours.shape}
    columns = (
        tree.neighbours.astype("<i4"),
        tree.distances.astype("<f8"),
        tree.edges.astype("<i4"),
        tree.lengths.astype("<f8"),
    )
    body = json.dumps(header).encode() + b"\n" + b"".join(column.tobytes() for column in columns)
    return KeptTree(state.born, tree.n, body)


def load(kept: KeptTree, state: PetState, min_samples: int) -> SpanningTree | None:
    """The tree that was kept, if it is of the first rows of ``state`` and of so many samples; else None."""
    head, _, body = kept.body.partition(b"\n")
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
    """Raises ValueError for a body of another length."""
    sizes = np.cumsum([0, 4 * n * k, 8 * n * k, 8 * (n - 1), 8 * (n - 1)]).tolist()
    if len(body) != sizes[-1]:
        raise ValueError(f"{len(body)} bytes for {n} rows of {k} samples, not {sizes[-1]}")
    neighbours, distances, edges, lengths = (body[start:end] for start, end in pairwise(sizes))
    return SpanningTree(
        np.frombuffer(neighbours, dtype="<i4").reshape(n, k).astype(np.intp),
        np.frombuffer(distances, dtype="<f8").reshape(n, k).astype(np.float64),
        np.frombuffer(edges, dtype="<i4").reshape(n - 1, 2).astype(np.intp),
        np.frombuffer(lengths, dtype="<f8").astype(np.float64),
    )


def _name(born: str, media: Iterable[MediaId]) -> str:
    # no id holds a zero byte that another could be told by: each is followed by one, and lengths are in n
    return blake2b("\0".join((born, *media)).encode(), digest_size=16).hexdigest()
