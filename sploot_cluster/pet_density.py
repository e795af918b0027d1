"""What density says of a pet, from the spanning tree that somebody has of it already.

A tree is looked for in memory, then in the store, and brought up to date; only where there is none it is built anew.
Both are matters of speed: a store that cannot tell is as good as one that has no tree.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from sploot_cluster import kept_tree
from sploot_cluster.backends import Fallback, TreeBuilder
from sploot_cluster.errors import StoreUnavailable
from sploot_cluster.models import MediaId, PetState
from sploot_cluster.pet_cache import PetMemory
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.spanning_tree import SpanningTree
from sploot_cluster.store import PetStore
from sploot_cluster.threads import n_cores
from sploot_cluster.tree_changes import grown, without
from sploot_cluster.vectors import FloatMatrix, Rows

if TYPE_CHECKING:
    from sploot_cluster.density import Density

logger = logging.getLogger(__name__)

# A kept tree that is so many rows behind, or such a share, is written anew: letting it grow by them takes longer than
# fetching it, and writing it at every arrival would make the append-only file a thousand times larger than the pet.
_BEHIND: Final = 32
_BEHIND_RATIO: Final = 1 / 32


class PetDensity:
    """Density of pets, with their trees kept in ``store``. Safe to use from many threads."""

    def __init__(
        self, store: PetStore, settings: ClusterSettings, *, on_fallback: Callable[[Fallback], None] = lambda _: None
    ) -> None:
        self._store, self._settings = store, settings
        self._build = TreeBuilder(
            settings.recluster_backend, threads=settings.recluster_threads or n_cores(), on_fallback=on_fallback
        )

    def recall(self, memory: PetMemory, n: int) -> SpanningTree | None:
        """The tree in ``memory`` of some first rows of its state that may grow to one of n."""
        tree = memory.tree()
        return tree if tree is not None and tree.n <= n and tree.min_samples == self._samples(n) else None

    def tree_of(self, state: PetState, vectors: FloatMatrix, remembered: SpanningTree | None) -> SpanningTree | None:
        """The tree of ``vectors``; None where they are too few for one cluster.

        Args:
            vectors: (n, d) those of ``state``, and any after them.
            remembered: one of the first rows of ``state``, if anybody has it.

        O(n · d) for each row that the best known tree lacks, O(n² · d) where none is known.
        """
        n = len(vectors)
        if n < self._settings.small_group:
            return None
        tree = remembered or self._fetch(state, self._samples(n))
        if tree is None:
            return self._build(vectors, self._samples(n))
        return grown(tree, vectors, build=self._build)

    def density_of(self, tree: SpanningTree | None, media: Sequence[MediaId], vectors: FloatMatrix) -> Density:
        """The density of ``media``, whose tree it is."""
        # hdbscan takes a second to import: who only keeps trees, as a deletion does, goes without
        from sploot_cluster.density import all_noise, density_of

        if tree is None:
            return all_noise(len(media))
        return density_of(tree, vectors, settings=self._settings, names=_names(media))

    def pruned(self, memory: PetMemory, state: PetState, gone: Iterable[MediaId]) -> SpanningTree | None:
        """The tree that is known of the first rows of ``state``, without media that are about to go; None without one.

        Small pets have none: their next recluster builds it in no time.
        """
        n = state.n_media
        if n < kept_tree.KEPT_FROM:
            return None
        tree = self.recall(memory, n) if memory.state.born == state.born else None
        tree = tree or self._fetch(state, self._samples(n))
        if tree is None:
            return None
        rows = [state.rows[medium] for medium in gone if medium in state.rows]
        return without(tree, state.vectors, np.array([row for row in rows if row < tree.n], dtype=np.intp))

    def keep(self, memory: PetMemory, state: PetState, tree: SpanningTree) -> None:
        """Have the store keep the tree of the first rows of ``state`` if what lies there is far behind."""
        if tree.n < kept_tree.KEPT_FROM or tree.n - memory.n_kept < max(_BEHIND, _BEHIND_RATIO * tree.n):
            return
        try:
            self._store.keep_tree(state.pet, kept_tree.dump(tree, state))
        except StoreUnavailable:
            logger.warning("tree not kept", extra={"pet_id": state.pet}, exc_info=True)
        else:
            memory.n_kept = tree.n

    def _samples(self, n: int) -> int:
        return min(self._settings.recluster_parameters(n)[1], n - 1)

    def _fetch(self, state: PetState, samples: int) -> SpanningTree | None:
        if state.n_media < kept_tree.KEPT_FROM:
            return None
        try:
            kept = self._store.kept_tree(state.pet)
        except StoreUnavailable:
            logger.warning("kept tree not read", extra={"pet_id": state.pet}, exc_info=True)
            return None
        return None if kept is None else kept_tree.load(kept, state, samples)


def _names(media: Sequence[MediaId]) -> Rows:
    """Numbers in the order of the ids, which break ties: those of rows would depend on who came first."""
    ids = list(media)
    names = np.empty(len(ids), dtype=np.intp)
    names[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
    return names
