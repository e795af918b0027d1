"""The constraints that a ledger demands.

The ledger is read newest correction first. Union-find joins the items of a merge or placement, and the items that a
split moved, into atoms. An older correction never joins atoms in conflict: it yields there, and this is reported.

An exclusion sets bits like a split but joins nothing: each excluded item is released from older corrections that keep
it with the items that remained. Older corrections do not join a dismissed item to anything, and demand nothing of an
item that a newer placement put into a cluster.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_

from sploot_cluster.decide.constraints import (
    FREE,
    Apart,
    Atom,
    Barred,
    Constraints,
    Forest,
    Nowhere,
    Sides,
    Together,
)
from sploot_cluster.decide.corrections.base import Statement
from sploot_cluster.pet.models import ClusterId, Correction, MediaId


def taken_back(ledger: Sequence[Correction]) -> set[int]:
    """Return the revisions of the corrections that are undone. An undo that is itself undone has no effect."""
    undone: set[int] = set()
    for correction in reversed(ledger):
        undoes = correction.undoes()
        if undoes is not None and correction.revision not in undone:
            undone.add(undoes)
    return undone


def in_force(ledger: Sequence[Correction]) -> list[Statement]:
    """Return the corrections that are in force, without undos, newest first."""
    undone = taken_back(ledger)
    return [one for one in reversed(ledger) if isinstance(one, Statement) and one.revision not in undone]


def statement_of(ledger: Sequence[Correction], revision: int) -> Statement:
    """Return the correction of ``revision``; if it is an undo, the one at the end of its chain of undos.

    Raises:
        StopIteration: the ledger has no such correction.
    """
    correction = next(one for one in ledger if one.revision == revision)
    undoes = correction.undoes()
    if undoes is not None:
        return statement_of(ledger, undoes)
    assert isinstance(correction, Statement)
    return correction


def resolve(ledger: Sequence[Correction]) -> Constraints:
    """Return the constraints that a ledger demands. O(n) for n items named, counted in every correction."""
    resolver = _Resolver()
    for statement in in_force(ledger):
        resolver.hear(statement)
    return resolver.constraints()


class _Resolver:
    """A collector of what corrections demand (see ``Demands``). It hears the corrections newest first."""

    def __init__(self) -> None:
        self._node_of: dict[MediaId, int] = {}
        self._sides_of: dict[MediaId, Sides] = {}  # the sides that splits set on the item itself, not on its atom
        self._leaving: dict[MediaId, int] = {}  # bits of the exclusions that removed the item
        self._placed: set[MediaId] = set()
        self._dismissed: set[MediaId] = set()
        self._forest = Forest()
        self._released: set[MediaId] = set()
        self._n_parted = 0  # number of pairs of sides so far; each takes a bit
        self._together: list[Together] = []
        self._apart: list[Apart] = []
        self._barred: list[Barred] = []
        self._nowhere: list[Nowhere] = []
        self._overridden: list[str] = []

    def hear(self, statement: Statement) -> None:
        """Collect the demands of a correction that is older than all those heard before."""
        if self._released:  # most ledgers have no placement, and naming all items of each correction takes a while
            named = statement.media()
            n_released = len(named) - len(self._left(named))
            if n_released:
                self._override(statement, f"place {n_released} of the {len(named)} items that it names")
        statement.constrain(self)

    def together(
        self, statement: Statement, media: Sequence[MediaId], cluster_of: Mapping[MediaId, ClusterId] | None = None
    ) -> None:
        media = self._left(media)
        groups, n_gone = self._join(media)
        if n_gone:
            self._override(statement, f"remove {n_gone} of its {len(media)} items")
        self._together.extend(
            Together(statement.revision, group, _by_cluster(group, cluster_of or {})) for group in groups
        )
        if len(groups) > 1:
            sizes = ", ".join(str(len(group)) for group in sorted(groups, key=len, reverse=True))
            self._override(statement, f"divide its {len(media) - n_gone} items into groups of {sizes}")

    def apart(
        self,
        statement: Statement,
        moved: Sequence[MediaId],
        remaining: Sequence[MediaId],
        *,
        is_leaving: bool = False,
    ) -> None:
        moved, remaining = self._left(moved), self._left(remaining)
        n_crossed, is_void = self._part(moved, remaining, is_leaving=is_leaving)
        if n_crossed:
            self._override(statement, f"keep {n_crossed} of its {len(moved)} items together with items that remained")
        if not is_void:
            self._apart.append(Apart(statement.revision, tuple(moved), tuple(remaining)))

    def barred(self, statement: Statement, media: Sequence[MediaId], cluster: ClusterId) -> None:
        if media := self._left(media):
            self._barred.append(Barred(statement.revision, tuple(media), cluster))

    def nowhere(self, statement: Statement, media: Sequence[MediaId]) -> None:
        media = self._left(media)
        dismissed = tuple(item for item in media if item not in self._placed)
        self._dismissed.update(dismissed)
        if dismissed:
            self._nowhere.append(Nowhere(statement.revision, dismissed))
        if len(dismissed) < len(media):
            self._override(statement, f"keep {len(media) - len(dismissed)} of its {len(media)} items in clusters")

    def released(self, media: Sequence[MediaId]) -> None:
        self._released.update(media)

    def constraints(self) -> Constraints:
        """Return the constraints that result from the demands."""
        number_of: dict[int, Atom] = {}
        sides: list[Sides] = []
        atoms: dict[MediaId, Atom] = {}
        for item in self._node_of:
            root = self._root(item)
            if root not in number_of:
                number_of[root] = Atom(len(sides))
                sides.append(self._forest.sides_of(root))
            atoms[item] = number_of[root]
        placed = frozenset(atoms[group.media[0]] for group in self._together)
        free = [
            Barred(one.revision, media, one.cluster)
            for one in self._barred
            if (media := tuple(item for item in one.media if atoms[item] not in placed))
        ]
        return Constraints(
            atoms,
            sides,
            placed,
            leaving={item: bits for item, bits in self._leaving.items() if atoms[item] not in placed},
            together=tuple(self._together),
            apart=tuple(self._apart),
            barred=tuple(free),
            nowhere=tuple(self._nowhere),
            overridden=tuple(self._overridden),
        )

    def _part(self, moved: Sequence[MediaId], remaining: Sequence[MediaId], *, is_leaving: bool) -> tuple[int, bool]:
        """Set the two sides of a split, or of an exclusion (``is_leaving``), on items.

        Returns:
            The number of moved items that already share an atom with the other side, and whether nothing is left to
            separate.
        """
        bit, self._n_parted = 1 << self._n_parted, self._n_parted + 1
        root_of = {item: self._root(item) for item in (*moved, *remaining)}
        moved_roots, remaining_roots = {root_of[item] for item in moved}, {root_of[item] for item in remaining}
        for media, side in ((moved, Sides(moved=bit)), (remaining, Sides(remaining=bit))):
            for item in media:
                self._sides_of[item] = self._sides_of.get(item, FREE) | side
            for root in {root_of[item] for item in media}:
                self._forest.put(root, side)
        crossed = moved_roots & remaining_roots
        if is_leaving:
            for item in moved:
                if root_of[item] not in crossed:
                    self._leaving[item] = self._leaving.get(item, 0) | bit
        is_void = not moved or not remaining or len(moved_roots | remaining_roots) == 1
        return sum(root_of[item] in crossed for item in moved), is_void

    def _join(self, media: Sequence[MediaId]) -> tuple[list[tuple[MediaId, ...]], int]:
        """Join items as far as newer corrections allow.

        Returns:
            The resulting groups, and the number of items that are in none of them: items that are dismissed, or that an
            exclusion separated from others in ``media``.

        Items whose sides are in conflict are not joined. Nor are items that newer splits removed from this set one
        after another: they left for different reasons, and no correction states that they belong together.
        """
        sides = reduce(or_, (self._sides_of.get(item, FREE) for item in media), FREE)
        crossed = sides.moved & sides.remaining
        joined = [item for item in media if item not in self._dismissed and not self._leaving.get(item, 0) & crossed]
        # bits of the splits that removed items -> the roots of these items' atoms
        cells: dict[int, dict[int, None]] = defaultdict(dict)
        for item in joined:
            cells[self._sides_of.get(item, FREE).moved & crossed][self._root(item)] = None
        for roots in cells.values():
            first_roots: list[int] = []
            for root in roots:
                if not any(self._forest.union(first, root) for first in first_roots):
                    first_roots.append(root)
        groups: dict[int, list[MediaId]] = defaultdict(list)
        for item in joined:
            groups[self._root(item)].append(item)
        self._placed.update(joined)
        return [tuple(group) for group in groups.values()], len(media) - len(joined)

    def _left(self, media: Sequence[MediaId]) -> Sequence[MediaId]:
        """Return the items that newer placements have not released from older corrections."""
        return [item for item in media if item not in self._released] if self._released else media

    def _override(self, statement: Statement, what: str) -> None:
        subject = f"the {statement.noun} at revision {statement.revision} by {statement.by}"
        self._overridden.append(f"{subject}: newer corrections {what}")

    def _root(self, item: MediaId) -> int:
        node = self._node_of.get(item)
        if node is None:
            node = self._node_of[item] = self._forest.add()
        return self._forest.find(node)


def _by_cluster(group: Sequence[MediaId], cluster_of: Mapping[MediaId, ClusterId]) -> tuple[tuple[MediaId, ...], ...]:
    """Return the items of a group by their cluster."""
    clusters: dict[ClusterId | None, list[MediaId]] = defaultdict(list)
    for item in group:
        clusters[cluster_of.get(item)].append(item)
    return tuple(map(tuple, clusters.values()))
