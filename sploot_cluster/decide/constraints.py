"""Must-link and cannot-link constraints: the demands of users' corrections, as values.

``decide.resolving`` reads them from a ledger, and ``decide.enforcing`` makes labels satisfy them. Items that
corrections join form one *atom*. Each split or exclusion has two *sides*, with one bit for each, and sets a side's bit
on every atom with an item on that side. Two atoms that carry opposite bits of one correction are in *conflict*. If a
newer merge joins the two sides of a split into one atom, that atom carries both bits of the split, so it is in conflict
with every other atom that carries either bit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain
from operator import or_
from typing import Final, Generic, NewType, TypeVar

import numpy as np

from sploot_cluster.pet.models import NOISE, ClusterId, MediaId, Parts
from sploot_cluster.pet.vectors import BoolVector, LabelVector, Rows

Atom = NewType("Atom", int)


@dataclass(frozen=True, slots=True)
class Together:
    """Items that share a cluster and are never noise: items that a merge or placement joined, or that a split moved.

    ``clusters`` holds the items, grouped by the cluster that they were in before they were joined. Items that a split
    moved are one group.
    """

    revision: int
    clusters: tuple[Parts, ...]

    @property
    def parts(self) -> Parts:
        return tuple(chain.from_iterable(self.clusters))

    @property
    def media(self) -> tuple[MediaId, ...]:
        return tuple(chain.from_iterable(self.parts))

    @property
    def first(self) -> MediaId:
        return next(chain.from_iterable(self.parts))

    def __len__(self) -> int:
        return sum(map(len, self.parts))


@dataclass(frozen=True, slots=True)
class Apart:
    """Two sets of items: none of ``moved`` shares a cluster with one of ``remaining``, unless both are in one atom."""

    revision: int
    moved: tuple[MediaId, ...]
    remaining: tuple[MediaId, ...]


@dataclass(frozen=True, slots=True)
class Barred:
    """Excluded items that no correction put into a cluster. None may be in the cluster that ``cluster`` resolves to."""

    revision: int
    media: tuple[MediaId, ...]
    cluster: ClusterId


@dataclass(frozen=True, slots=True)
class Nowhere:
    """Items that belong to no cluster, because a dismissal in force names them."""

    revision: int
    media: tuple[MediaId, ...]


@dataclass(frozen=True, slots=True)
class Sides:
    """The sides that an atom or a set of atoms is on: one bit per split or exclusion."""

    moved: int = 0
    remaining: int = 0

    def conflict(self, other: Sides) -> bool:
        """Return whether a split or exclusion keeps items on these sides and on ``other`` apart."""
        return bool(self.moved & other.remaining or self.remaining & other.moved)

    def __bool__(self) -> bool:
        return bool(self.moved or self.remaining)

    def __or__(self, other: Sides) -> Sides:
        return Sides(self.moved | other.moved, self.remaining | other.remaining)


FREE: Final = Sides()


@dataclass(frozen=True, slots=True)
class Constraints:
    """The constraints in force, resolved from a ledger.

    Attributes:
        atoms: item -> its atom, for every item that a correction in force names.
        sides: the sides of each atom; atoms are numbered from 0.
        placed: atoms that a user put into a cluster; the items of all other atoms only left a cluster or remained.
        leaving: excluded items that no correction put into a cluster -> the bits of the exclusions that removed them.
        together, apart, barred, nowhere: the accepted constraints, newest first.
        overridden: one sentence for each way in which an older correction yields to newer ones.
    """

    atoms: Mapping[MediaId, Atom] = field(default_factory=dict)
    sides: Sequence[Sides] = ()
    placed: frozenset[Atom] = frozenset()
    leaving: Mapping[MediaId, int] = field(default_factory=dict)
    together: tuple[Together, ...] = ()
    apart: tuple[Apart, ...] = ()
    barred: tuple[Barred, ...] = ()
    nowhere: tuple[Nowhere, ...] = ()
    overridden: tuple[str, ...] = ()

    def atom_of(self, item: MediaId) -> Atom | None:
        """Return the atom of an item, or None if no correction in force names it."""
        return self.atoms.get(item)

    def conflicts(self, one: MediaId, other: MediaId) -> bool:
        """Return whether corrections keep two items apart."""
        a, b = self.atoms.get(one), self.atoms.get(other)
        return a is not None and b is not None and a != b and self.sides[a].conflict(self.sides[b])

    def by_row(self, rows: Mapping[MediaId, int]) -> RowConstraints:
        """Return the constraints by row instead of by item, without items that the pet no longer has."""
        atoms = np.full(len(rows), -1, dtype=np.int32)
        for item, atom in self.atoms.items():
            row = rows.get(item)
            if row is not None:
                atoms[row] = atom
        clusters: dict[int, list[Rows]] = defaultdict(list)
        rows_in = _PerPart(lambda part: np.array([rows[item] for item in part if item in rows], dtype=np.intp))
        for group in self.together:
            for cluster in group.clusters:
                present = np.concatenate([rows_in(part) for part in cluster])
                if len(present):
                    clusters[self.atoms[group.first]].append(present)
        # index -1, for rows without an atom, is the last element: False
        is_placed = np.zeros(len(self.sides) + 1, dtype=np.bool_)
        is_placed[list(self.placed)] = True
        dismissed = np.zeros(len(rows), dtype=np.bool_)
        dismissed[[rows[item] for nowhere in self.nowhere for item in nowhere.media if item in rows]] = True
        return RowConstraints(
            atoms,
            is_placed[atoms],
            self.sides,
            dismissed,
            clusters=clusters,
            leaving={rows[item]: bits for item, bits in self.leaving.items() if item in rows},
            barred=tuple((rows[m], barred.cluster) for barred in self.barred for m in barred.media if m in rows),
        )


@dataclass(frozen=True, slots=True)
class RowConstraints:
    """The constraints of a pet's rows.

    Attributes:
        atoms: (n,) int32 atom of each row, -1 = none.
        placed: (n,) bool, whether a user put the row into a cluster.
        sides: the sides of each atom.
        dismissed: (n,) bool, whether a user dismissed the row.
        clusters: placed atom -> for each group in ``Together.clusters``, its rows in this atom.
        leaving: excluded rows that no correction put into a cluster -> the bits of the exclusions that removed them.
        barred: pairs of a row and an id; the row may not be in the cluster that the id resolves to.
    """

    atoms: LabelVector
    placed: BoolVector
    sides: Sequence[Sides]
    dismissed: BoolVector
    clusters: Mapping[int, Sequence[Rows]] = field(default_factory=dict)
    leaving: Mapping[int, int] = field(default_factory=dict)
    barred: Sequence[tuple[int, ClusterId]] = ()

    @property
    def taken_out(self) -> BoolVector:
        """The (n,) mask of rows that a user excluded from a cluster and did not put into another."""
        is_out: BoolVector = np.zeros(len(self.atoms), dtype=np.bool_)
        is_out[[*self.leaving, *(row for row, _ in self.barred)]] = True
        return is_out

    def sides_of(self, rows: Rows) -> Sides:
        """Return the combined sides of all atoms among ``rows``."""
        atoms = np.unique(self.atoms[rows]).tolist()
        return reduce(or_, (self.sides[atom] for atom in atoms if atom >= 0), FREE)


class Forest:
    """A union-find structure over integers from 0 that never unites two sets whose sides are in conflict."""

    def __init__(self, sides: Iterable[Sides] = ()) -> None:
        self._sides = list(sides)
        self._parent = list(range(len(self._sides)))

    def add(self) -> int:
        """Add an element that is on no side, and return it."""
        self._parent.append(len(self._parent))
        self._sides.append(FREE)
        return self._parent[-1]

    def find(self, node: int) -> int:
        """Return the representative of the set that contains ``node``."""
        parent = self._parent
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    def union(self, one: int, other: int) -> bool:
        """Unite two sets unless they are in conflict. Return whether both elements are in one set now."""
        a, b = self.find(one), self.find(other)
        if a == b:
            return True
        if self._sides[a].conflict(self._sides[b]):
            return False
        self.put(a, self._sides[b])
        self._parent[b] = a
        return True

    def put(self, node: int, sides: Sides) -> None:
        """Add sides to the set that contains ``node``."""
        root = self.find(node)
        if sides:  # most items are on no side
            self._sides[root] |= sides

    def sides_of(self, node: int) -> Sides:
        return self._sides[self.find(node)]


Result = TypeVar("Result")


class _PerPart(Generic[Result]):
    """A function of parts with a cache, because many corrections share parts."""

    def __init__(self, of: Callable[[tuple[MediaId, ...]], Result]) -> None:
        self._of = of
        self._results: dict[int, Result] = {}  # by id(part), because hashing a part takes as long as ``of``

    def __call__(self, part: tuple[MediaId, ...]) -> Result:
        if id(part) not in self._results:
            self._results[id(part)] = self._of(part)
        return self._results[id(part)]


def count_kept(
    labels: Mapping[MediaId, int], constraints: Constraints, *, aliases: Mapping[ClusterId, ClusterId]
) -> tuple[int, int]:
    """Return how many accepted constraints hold, and how many there are.

    Each :class:`Together`, :class:`Barred` and :class:`Nowhere` with an item in ``labels`` counts as one, and so does
    each :class:`Apart` with a pair to separate in ``labels``; items not in ``labels`` are ignored. An Apart holds only
    if all its pairs are separated.

    Args:
        labels: item -> cluster id, or -1 for noise.
        aliases: ids that were merged away -> the id that each resolves to.
    """
    n_kept = total = 0
    labels_in = _PerPart(lambda part: {labels[item] for item in part if item in labels})
    for group in constraints.together:
        clusters = set[int]().union(*map(labels_in, group.parts))
        total += bool(clusters)
        n_kept += len(clusters) == 1 and NOISE not in clusters
    for split in constraints.apart:
        moved, remaining = (_atoms_by_cluster(side, labels, constraints) for side in (split.moved, split.remaining))
        if moved and remaining and len(set().union(*moved.values(), *remaining.values())) > 1:
            total += 1
            shared = (moved.keys() & remaining.keys()) - {NOISE}
            n_kept += all(len(moved[cluster] | remaining[cluster]) == 1 for cluster in shared)
    for barred in constraints.barred:
        clusters = {labels[item] for item in barred.media if item in labels}
        total += bool(clusters)
        n_kept += bool(clusters) and aliases.get(barred.cluster, barred.cluster) not in clusters
    for nowhere in constraints.nowhere:
        clusters = {labels[item] for item in nowhere.media if item in labels}
        total += bool(clusters)
        n_kept += clusters == {NOISE}
    return n_kept, total


def _atoms_by_cluster(
    media: Sequence[MediaId], labels: Mapping[MediaId, int], constraints: Constraints
) -> dict[int, set[Atom]]:
    atoms: dict[int, set[Atom]] = defaultdict(set)
    for item in media:
        if item in labels:
            atoms[labels[item]].add(constraints.atoms[item])
    return atoms
