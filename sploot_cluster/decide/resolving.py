"""Resolution of a ledger into the constraints that its corrections demand.

Corrections are read newest first. Union-find joins the items of a merge or placement, and the items that a split moved,
into atoms. Atoms in conflict are never joined: an older correction that demands this yields there to newer ones, and
this is reported.

Like a split, an exclusion puts items on opposite sides (one bit each), but it joins no items into atoms. It also
releases each excluded item from older corrections that would keep it with the items that remained. Older corrections do
not join a dismissed item to anything, and a placement releases its items from all older corrections.

If clusters are merged into one cluster one after another, each merge contains the items of the one before. So once the
newest merge is resolved, its result is used for the older ones too, unless a correction in between could change it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain, combinations
from operator import or_
from typing import Final

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
from sploot_cluster.decide.corrections.merge import Merge, contents_of
from sploot_cluster.pet.models import ClusterId, Correction, MediaId, Parts

# Maximum number of groups in a result that is kept for older merges.
_MOST_GROUPS: Final = 8


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
    """Return the correction of ``revision`` or, if that is an undo, the correction that its chain of undos is about.

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
    """Return the constraints that a ledger demands. O(n), where n is the number of items named in all corrections."""
    resolver = _Resolver(ledger)
    for statement in in_force(ledger):
        resolver.hear(statement)
    return resolver.constraints()


class _Resolver:
    """A collector of what corrections demand; it implements ``Demands``. Corrections are passed to it newest first."""

    def __init__(self, ledger: Sequence[Correction]) -> None:
        self._bases = {one.revision: one.bases.values() for one in ledger if isinstance(one, Merge)}
        self._contents = contents_of(ledger)
        self._kept: dict[int, _Joined] = {}  # merge -> the result for a newer merge that contains all its items
        self._n_exits = 0  # number of exclusions so far
        self._node_of: dict[MediaId, int] = {}
        self._sides_of: dict[MediaId, Sides] = {}  # the sides that splits set on the item itself, not on its atom
        self._leaving: dict[MediaId, int] = {}  # excluded item -> the bits of the exclusions that removed it
        self._placed: set[MediaId] = set()
        self._dismissed: set[MediaId] = set()
        self._forest = Forest()
        self._released: set[MediaId] = set()
        self._n_parted = 0  # number of splits and exclusions so far; each takes a bit
        self._together: list[Together] = []
        self._apart: list[Apart] = []
        self._barred: list[Barred] = []
        self._nowhere: list[Nowhere] = []
        self._overridden: list[str] = []

    def hear(self, statement: Statement) -> None:
        """Collect the demands of a correction, which must be older than all that were passed before."""
        # only if a placement released items, because listing all items of each correction is slow
        if self._released and self._joined_for(statement.revision) is None:
            groups = self._contents.get(statement.revision)
            named = statement.media() if groups is None else [*_items(groups.values())]
            n_released = len(named) - len(self._left(named))
            if n_released:
                self._override(statement, f"place {n_released} of the {len(named)} items that it names")
        statement.constrain(self)

    def together(
        self, statement: Statement, media: Sequence[MediaId], cluster_of: Mapping[MediaId, ClusterId] | None = None
    ) -> None:
        media = self._left(media)
        groups, n_gone = self._join(media)
        found = [Together(statement.revision, _by_cluster(group, cluster_of or {})) for group in groups]
        self._keep_together(statement, found, n_gone)

    def merged(self, statement: Statement, clusters: Sequence[ClusterId]) -> None:
        contents = [self._contents[statement.revision][cluster] for cluster in clusters]
        joined = self._joined_for(statement.revision)
        if joined is None:
            media = [*_items(contents)]
            left = self._left(media)
            groups, n_gone = self._join(left)
            cluster_of = {
                item: cluster for cluster, parts in zip(clusters, contents, strict=True) for item in _items([parts])
            }
            found = [Together(statement.revision, _by_cluster(group, cluster_of)) for group in groups]
            if len(left) == len(media):
                self._keep(statement.revision, media, groups)
        else:
            found = [Together(statement.revision, group) for group in self._restricted(joined, contents)]
            n_gone = sum(len(joined.gone_in(part)) for part in chain(*contents))
        self._keep_together(statement, found, n_gone)

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
        """Mark items as being on one side of a new split, or of an exclusion (``is_leaving``).

        Returns:
            The number of moved items that already share an atom with the other side, and whether nothing is left to
            separate.
        """
        bit, self._n_parted = 1 << self._n_parted, self._n_parted + 1
        self._n_exits += is_leaving
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
        # bits of the sides on which an item was moved away from others in ``media`` (0: none) -> roots of the atoms of
        # all items with these bits; the inner dict is an ordered set
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

    def _keep_together(self, statement: Statement, found: Sequence[Together], n_gone: int) -> None:
        """Record the groups that remain of a demand after newer corrections removed ``n_gone`` items from it."""
        self._together.extend(found)
        n = sum(map(len, found))
        if n_gone:
            self._override(statement, f"remove {n_gone} of its {n + n_gone} items")
        if len(found) > 1:
            sizes = ", ".join(str(size) for size in sorted(map(len, found), reverse=True))
            self._override(statement, f"divide its {n} items into groups of {sizes}")

    def _keep(self, revision: int, media: Sequence[MediaId], groups: Sequence[Sequence[MediaId]]) -> None:
        """Store the result for a merge if it is certain to hold for the earlier merges that this merge contains.

        It is certain only if all groups are in conflict with each other, so that no older correction can join them.
        """
        roots = [self._root(group[0]) for group in groups]
        sides = [self._forest.sides_of(root) for root in roots]
        if len(roots) > _MOST_GROUPS or not all(one.conflict(other) for one, other in combinations(sides, 2)):
            return
        gone = frozenset(media).difference(*groups)
        is_whole = len(roots) == 1 and not gone
        joined = _Joined(roots, gone, len(self._released), None if is_whole else self._n_exits)
        contained = [*self._bases[revision]]
        while contained:
            base = contained.pop()
            if base in self._contents and self._kept.get(base) is not joined:
                self._kept[base] = joined
                contained.extend(self._bases[base])

    def _joined_for(self, revision: int) -> _Joined | None:
        """Return the stored result for a newer merge if it also holds for this merge, else None."""
        joined = self._kept.get(revision)
        if joined is None or joined.n_released != len(self._released):
            return None
        if joined.n_exits is not None and joined.n_exits != self._n_exits:
            return None
        if joined.gone:  # this merge loses them only if it contains the items from which they must be kept apart
            parts = [*chain(*self._contents[revision].values())]
            remaining = reduce(or_, (joined.remaining_in(part, self._sides_of) for part in parts), 0)
            left = chain.from_iterable(map(joined.gone_in, parts))
            if not all(item in self._dismissed or self._leaving.get(item, 0) & remaining for item in left):
                return None
        return joined

    def _restricted(self, joined: _Joined, contents: Sequence[Parts]) -> list[tuple[Parts, ...]]:
        """Return the groups that a newer merge resulted in, with only the items in ``contents``, divided by cluster."""
        groups: dict[int, list[list[tuple[MediaId, ...]]]] = {}
        for at, parts in enumerate(contents):
            for part in parts:
                for node, piece in joined.pieces_of(part, self._root):
                    group = groups.setdefault(self._forest.find(node), [[] for _ in contents])
                    group[at].append(piece)
        return [tuple(tuple(pieces) for pieces in group if pieces) for group in groups.values()]

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


@dataclass(slots=True)
class _Joined:
    """The result of joining the items of a merge, kept for the earlier merges that it contains.

    Attributes:
        roots: one node of each group.
        gone: items that newer corrections removed.
        n_released, n_exits: the numbers of released items and of exclusions when the result was computed; it no longer
            holds once there are more. ``n_exits`` is None if exclusions do not matter.
    """

    roots: Sequence[int]
    gone: frozenset[MediaId]
    n_released: int
    n_exits: int | None
    _pieces: dict[int, list[tuple[int, tuple[MediaId, ...]]]] = field(default_factory=dict)
    _gone_in: dict[int, list[MediaId]] = field(default_factory=dict)
    _remaining_in: dict[int, int] = field(default_factory=dict)

    def pieces_of(
        self, part: tuple[MediaId, ...], root_of: Callable[[MediaId], int]
    ) -> Sequence[tuple[int, tuple[MediaId, ...]]]:
        """Return the items of a part without those in ``gone``, by group: (a node of the group, items)."""
        if id(part) not in self._pieces:
            pieces: dict[int, list[MediaId]] = defaultdict(list)
            for item in part:
                if item not in self.gone:
                    pieces[root_of(item)].append(item)
            self._pieces[id(part)] = [
                (root, part if len(piece) == len(part) else tuple(piece)) for root, piece in pieces.items()
            ]
        return self._pieces[id(part)]

    def gone_in(self, part: tuple[MediaId, ...]) -> Sequence[MediaId]:
        if not self.gone:
            return ()
        if id(part) not in self._gone_in:
            self._gone_in[id(part)] = [item for item in part if item in self.gone]
        return self._gone_in[id(part)]

    def remaining_in(self, part: tuple[MediaId, ...], sides_of: Mapping[MediaId, Sides]) -> int:
        """Return the bits of the splits and exclusions in which items of a part remained."""
        if id(part) not in self._remaining_in:
            bits = (sides_of[item].remaining for item in part if item in sides_of)
            self._remaining_in[id(part)] = reduce(or_, bits, 0)
        return self._remaining_in[id(part)]


def _by_cluster(group: Sequence[MediaId], cluster_of: Mapping[MediaId, ClusterId]) -> tuple[Parts, ...]:
    """Return the items of a group, grouped by their cluster."""
    clusters: dict[ClusterId | None, list[MediaId]] = defaultdict(list)
    for item in group:
        clusters[cluster_of.get(item)].append(item)
    return tuple((tuple(members),) for members in clusters.values())


def _items(contents: Iterable[Parts]) -> Iterable[MediaId]:
    """Return the items of several clusters."""
    return chain.from_iterable(chain.from_iterable(contents))
