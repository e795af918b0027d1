"""The density of a pet, computed from a stored spanning tree where possible.

The tree is taken from memory or else from the store, and extended to the newest rows; it is built from scratch only if
neither has one. Stored trees only save time: if the store does not reply, the tree is treated as missing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from sploot_cluster.engine import kept_tree
from sploot_cluster.engine.backends import Fallback, TreeBuilder
from sploot_cluster.engine.spanning_tree import SpanningTree
from sploot_cluster.engine.tree_changes import grown, without
from sploot_cluster.errors import StoreUnavailable
from sploot_cluster.pet.models import MediaId, PetId, PetState
from sploot_cluster.pet.rows import PetRows
from sploot_cluster.pet.vectors import FloatMatrix, FloatVector, Rows
from sploot_cluster.pet_cache import PetCache, PetMemory
from sploot_cluster.settings import ClusterSettings
from sploot_cluster.store.port import PetStore
from sploot_cluster.threads import n_cores

if TYPE_CHECKING:
    from sploot_cluster.engine.selection import Density

logger = logging.getLogger(__name__)

# A stored tree is replaced when it lacks at least this number and at least this share of all rows. Extending it by more
# rows takes longer than fetching it; writing it at every arrival would make the append-only file a thousand times
# larger than the pet.
_BEHIND: Final = 32
_BEHIND_RATIO: Final = 1 / 32


class PetDensity:
    """A calculator of the density of pets, which keeps their spanning trees in ``store``. Thread-safe."""

    def __init__(
        self, store: PetStore, settings: ClusterSettings, *, on_fallback: Callable[[Fallback], None] = lambda _: None
    ) -> None:
        self._store, self._settings = store, settings
        self._threads = settings.recluster_threads or n_cores()
        self._build = TreeBuilder(settings.recluster_backend, threads=self._threads, on_fallback=on_fallback)

    def of_newest(
        self,
        pet: PetId,
        cache: PetCache,
        *,
        by_reference: bool = False,
        on_loaded: Callable[[PetState], None] = lambda _: None,
    ) -> tuple[PetState, Density]:
        """Load the newest state of a pet and return it with its density (computed by hdbscan if ``by_reference``).

        ``on_loaded`` is called once the state is loaded. Other threads may use the pet while the density is computed.
        O(n · d) for each row that the best known tree lacks, or O(n² · d) if no tree is known or it lacks more than
        half of the rows.
        """
        with cache.open(pet) as memory:
            state = memory.state = self._store.load(pet, known=memory.state)
            remembered = self._recall(memory, state.n_media)
        on_loaded(state)
        if by_reference:
            from sploot_cluster.engine.reference import reference_density_of

            return state, reference_density_of(state.vectors, settings=self._settings)
        tree = self._tree_of(state, state.vectors, remembered)
        density = self._density_of(tree, state.media, state.vectors)
        if tree is not None and tree is not remembered:
            with cache.open(pet) as memory:
                if PetRows.behind(memory.state) is PetRows.behind(state):
                    memory.remember_tree(tree)
                self._keep(memory, state, tree)
        return state, density

    def with_arrival(self, memory: PetMemory, media: MediaId, vector: FloatVector) -> tuple[FloatMatrix, Density]:
        """Return the vectors of the pet in ``memory`` with the vector of an arrival appended, and their density."""
        state = memory.state
        vectors = PetRows.behind(state).vectors_and(state.n_media, vector)
        remembered = self._recall(memory, len(vectors))
        if remembered is not None:
            self._keep(memory, state, remembered)
        tree = self._tree_of(state, vectors, remembered)
        if tree is not None:
            memory.expect_tree(tree, media, vector)
        return vectors, self._density_of(tree, (*state.media, media), vectors)

    def pruned(self, memory: PetMemory, state: PetState, gone: Iterable[MediaId]) -> SpanningTree | None:
        """Return the known tree of the first rows of ``state``, without items that are about to be deleted.

        Returns None if no tree is known, and for small pets, because their next recluster builds a tree quickly.
        """
        n = state.n_media
        if n < kept_tree.KEPT_FROM:
            return None
        tree = self._recall(memory, n) if memory.state.born == state.born else None
        tree = tree or self._fetch(state, self._samples(n))
        if tree is None:
            return None
        rows = [state.rows[item] for item in gone if item in state.rows]
        return without(tree, state.vectors, np.array([row for row in rows if row < tree.n], dtype=np.intp))

    def remember(self, memory: PetMemory, tree: SpanningTree) -> None:
        """Remember the tree of the state in ``memory``, and store it if the stored one is far behind."""
        memory.remember_tree(tree)
        self._keep(memory, memory.state, tree)

    def _recall(self, memory: PetMemory, n: int) -> SpanningTree | None:
        """Return the tree in ``memory``, or None if it cannot be extended to n rows."""
        tree = memory.tree()
        return tree if tree is not None and tree.n <= n and tree.min_samples == self._samples(n) else None

    def _tree_of(self, state: PetState, vectors: FloatMatrix, remembered: SpanningTree | None) -> SpanningTree | None:
        """Return the tree of ``vectors``, or None if they are too few for a cluster.

        Args:
            vectors: (n, d), the vectors of ``state``, followed by those of arrivals, if any.
            remembered: a tree of the first rows of ``state``, if the caller has one.
        """
        n = len(vectors)
        if n < self._settings.small_group:
            return None
        tree = remembered or self._fetch(state, self._samples(n))
        if tree is None:
            return self._build(vectors, self._samples(n))
        return grown(tree, vectors, build=self._build, threads=self._threads)

    def _density_of(self, tree: SpanningTree | None, media: Sequence[MediaId], vectors: FloatMatrix) -> Density:
        """Return the density of ``media`` from their spanning tree, or only noise without a tree."""
        # imported here, because callers that only store trees, such as deletion, do not need it
        from sploot_cluster.engine.selection import all_noise, density_of

        if tree is None:
            return all_noise(len(media))
        return density_of(tree, vectors, settings=self._settings, names=_names(media))

    def _keep(self, memory: PetMemory, state: PetState, tree: SpanningTree) -> None:
        """Store the tree of the first rows of ``state`` if the stored one is far behind."""
        if tree.n < kept_tree.KEPT_FROM or tree.n - memory.n_kept < max(_BEHIND, _BEHIND_RATIO * tree.n):
            return
        try:
            self._store.keep_tree(state.pet, kept_tree.dump(tree, state))
        except StoreUnavailable:
            logger.warning("could not store spanning tree", extra={"pet_id": state.pet}, exc_info=True)
        else:
            memory.n_kept = tree.n

    def _samples(self, n: int) -> int:
        return min(self._settings.recluster_parameters(n)[1], n - 1)

    def _fetch(self, state: PetState, samples: int) -> SpanningTree | None:
        if state.n_media < kept_tree.KEPT_FROM:
            return None
        try:
            stored = self._store.kept_tree(state.pet)
        except StoreUnavailable:
            logger.warning("could not read stored spanning tree", extra={"pet_id": state.pet}, exc_info=True)
            return None
        return None if stored is None else kept_tree.load(stored, state, samples)


def _names(media: Sequence[MediaId]) -> Rows:
    """Return each item's rank in the order of ids, which breaks ties independently of the order of arrival."""
    ids = list(media)
    names = np.empty(len(ids), dtype=np.intp)
    names[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
    return names
