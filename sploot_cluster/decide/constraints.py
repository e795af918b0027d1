"""Must-link and cannot-link constraints from people's corrections, and labels that satisfy them.

:func:`resolve` reads the ledger, newest correction first. Union-find joins the items of a merge, and the items that a
split moved, into *atoms*; each split sets a bit for its side on every atom that it names. Two atoms with opposite bits
of one split are in *conflict*. An older correction never joins atoms in conflict: it yields there, and this is
reported.

An exclusion sets bits like a split but joins nothing: each excluded item is released from older corrections that keep
it with the items that remained. A dismissed item is not joined to anything by older corrections.

:func:`enforce` never divides an atom and never puts two atoms in conflict into one cluster. So every accepted
constraint holds by construction, whatever the labels were before. An atom that a newer merge joined across a split
carries both bits of the split: it is in conflict with every other atom that carries either.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import combinations
from operator import or_
from typing import Final, NewType, assert_never

import numpy as np

from sploot_cluster.pet.models import (
    NOISE,
    ClusterId,
    Correction,
    Dismissal,
    Exclusion,
    MediaId,
    Merge,
    Said,
    Split,
    Undo,
)
from sploot_cluster.pet.vectors import SMALLEST_NORM, BoolVector, FloatMatrix, FloatVector, LabelVector, Rows

Atom = NewType("Atom", int)

# Neighbours to which an unconstrained item is tied when its group is divided; a few more change nothing.
_TIES: Final = 8
_BLOCK: Final = 512


@dataclass(frozen=True, slots=True)
class Together:
    """Items that share a cluster and are never noise: what is in force of a merge, or of a split's moved items.

    ``clusters`` holds the same items as they were grouped at that time: by merged cluster, or all that the split moved.
    """

    revision: int
    media: tuple[MediaId, ...]
    clusters: tuple[tuple[MediaId, ...], ...]


@dataclass(frozen=True, slots=True)
class Apart:
    """Two sets of items: none of ``moved`` shares a cluster with one of ``remaining``, except within one atom."""

    revision: int
    moved: tuple[MediaId, ...]
    remaining: tuple[MediaId, ...]


@dataclass(frozen=True, slots=True)
class Barred:
    """Excluded items that no correction placed: none may be in the cluster that ``cluster`` resolves to."""

    revision: int
    media: tuple[MediaId, ...]
    cluster: ClusterId


@dataclass(frozen=True, slots=True)
class Nowhere:
    """Items that are in no cluster: what remains in force of a dismissal."""

    revision: int
    media: tuple[MediaId, ...]


@dataclass(frozen=True, slots=True)
class Sides:
    """The sides of splits that an atom, or a set of atoms, is on: one bit per split."""

    moved: int = 0
    remaining: int = 0

    def conflict(self, other: Sides) -> bool:
        """Return whether some split keeps the two apart."""
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
        atoms: every item that a correction in force names -> its atom.
        sides: by atom; atoms count from 0.
        placed: atoms that a person put somewhere; the others were only left behind by a split or an exclusion.
        leaving: excluded items that no correction placed -> the bits of these exclusions.
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
        """Return the atom of an item; None if no correction in force names it."""
        return self.atoms.get(item)

    def conflicts(self, one: MediaId, other: MediaId) -> bool:
        """Return whether corrections keep two items apart."""
        a, b = self.atoms.get(one), self.atoms.get(other)
        return a is not None and b is not None and a != b and self.sides[a].conflict(self.sides[b])

    def by_row(self, rows: Mapping[MediaId, int]) -> RowConstraints:
        """Return the constraints by row of a pet; items that the pet no longer has are left out."""
        atoms = np.full(len(rows), -1, dtype=np.int32)
        for item, atom in self.atoms.items():
            row = rows.get(item)
            if row is not None:
                atoms[row] = atom
        clusters: dict[int, list[Rows]] = defaultdict(list)
        for group in self.together:
            for cluster in group.clusters:
                present = np.array([rows[item] for item in cluster if item in rows], dtype=np.intp)
                if len(present):
                    clusters[self.atoms[cluster[0]]].append(present)
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
        placed: (n,) bool, whether a person put the row somewhere.
        sides: by atom.
        dismissed: (n,) bool, whether a person dismissed the row.
        clusters: placed atom -> for each cluster that people merged or split off, its rows in this atom.
        leaving: excluded rows that no correction placed -> the bits of these exclusions.
        barred: pairs of a row and an id; the row may not be in the cluster that the id resolves to.
    """

    atoms: LabelVector
    placed: BoolVector
    sides: Sequence[Sides]
    dismissed: BoolVector
    clusters: Mapping[int, Sequence[Rows]] = field(default_factory=dict)
    leaving: Mapping[int, int] = field(default_factory=dict)
    barred: Sequence[tuple[int, ClusterId]] = ()

    def sides_of(self, rows: Rows) -> Sides:
        """Return the combined sides of all atoms among ``rows``."""
        atoms = np.unique(self.atoms[rows]).tolist()
        return reduce(or_, (self.sides[atom] for atom in atoms if atom >= 0), FREE)


def taken_back(ledger: Sequence[Correction]) -> set[int]:
    """Return the revisions of the corrections that are undone. An undo that is itself undone has no effect."""
    undone: set[int] = set()
    for correction in reversed(ledger):
        if isinstance(correction, Undo) and correction.revision not in undone:
            undone.add(correction.undone)
    return undone


def in_force(ledger: Sequence[Correction]) -> list[Said]:
    """Return the corrections that are not undone, newest first, without undos."""
    undone = taken_back(ledger)
    return [
        correction
        for correction in reversed(ledger)
        if correction.revision not in undone and not isinstance(correction, Undo)
    ]


def resolve(ledger: Sequence[Correction]) -> Constraints:
    """Return the constraints that a ledger demands, newest correction first. O(items named, over all corrections)."""
    atoms = _Atoms()
    together: list[Together] = []
    apart: list[Apart] = []
    barred: list[Barred] = []
    nowhere: list[Nowhere] = []
    overridden: list[str] = []
    for number, correction in enumerate(in_force(ledger)):
        match correction:
            case Merge(into=name, groups=groups):
                subject = f"the merge at revision {correction.revision} by {correction.by}"
                cluster_of = {item: cluster for cluster, members in groups.items() for item in members}
                # `into` first: where newer corrections divide the merged items, the others join its group if possible
                order = sorted(groups, key=lambda cluster: (cluster != correction.into, cluster))
                media = [item for cluster in order for item in groups[cluster]]
            case Split(created=name, moved=moved, remaining=remaining):
                subject = f"the split at revision {correction.revision} by {correction.by}"
                media, cluster_of = list(moved), {}
                n_crossed, is_void = atoms.part(moved, remaining, bit=1 << number)
                if n_crossed:
                    overridden.append(
                        f"{subject}: newer corrections keep {n_crossed} of its {len(moved)} moved items "
                        "together with items that remained"
                    )
                if not is_void:
                    apart.append(Apart(correction.revision, moved, remaining))
            case Exclusion(source=source, media=taken_out, remaining=remaining):
                n_crossed, is_void = atoms.part(taken_out, remaining, bit=1 << number, is_leaving=True)
                if n_crossed:
                    overridden.append(
                        f"the exclusion at revision {correction.revision} by {correction.by}: newer corrections keep "
                        f"{n_crossed} of its {len(taken_out)} items together with items that remained"
                    )
                if not is_void:
                    apart.append(Apart(correction.revision, taken_out, remaining))
                barred.append(Barred(correction.revision, taken_out, source))
                continue
            case Dismissal():
                dismissed = atoms.dismiss(correction.media)
                if dismissed:
                    nowhere.append(Nowhere(correction.revision, dismissed))
                if len(dismissed) < len(correction.media):
                    overridden.append(
                        f"the dismissal at revision {correction.revision} by {correction.by}: newer corrections keep "
                        f"{len(correction.media) - len(dismissed)} of its {len(correction.media)} items in clusters"
                    )
                continue
            case _:
                assert_never(correction)
        groups_left, n_gone = atoms.join(media)
        if n_gone:
            overridden.append(f"{subject}: newer corrections remove {n_gone} of its {len(media)} items")
        together.extend(
            Together(correction.revision, group, _by_cluster(group, cluster_of, name)) for group in groups_left
        )
        if len(groups_left) > 1:
            sizes = ", ".join(str(len(group)) for group in sorted(groups_left, key=len, reverse=True))
            overridden.append(
                f"{subject}: newer corrections divide its {len(media) - n_gone} items into groups of {sizes}"
            )
    return atoms.freeze(together, apart, barred, nowhere, overridden)


def _by_cluster(
    group: Sequence[MediaId], cluster_of: Mapping[MediaId, ClusterId], default: ClusterId
) -> tuple[tuple[MediaId, ...], ...]:
    """Return the items of a group by their cluster."""
    clusters: dict[ClusterId, list[MediaId]] = defaultdict(list)
    for item in group:
        clusters[cluster_of.get(item, default)].append(item)
    return tuple(map(tuple, clusters.values()))


class _Atoms:
    """Items being joined into atoms, newest correction first."""

    def __init__(self) -> None:
        self._node_of: dict[MediaId, int] = {}
        self._sides_of: dict[MediaId, Sides] = {}  # the sides that splits set on the item itself, not on its atom
        self._leaving: dict[MediaId, int] = {}  # bits of the exclusions that removed the item
        self._placed: set[MediaId] = set()
        self._dismissed: set[MediaId] = set()
        self._forest = _Forest()

    def dismiss(self, media: Sequence[MediaId]) -> tuple[MediaId, ...]:
        """Release items from older corrections; return those that no newer correction placed."""
        dismissed = tuple(item for item in media if item not in self._placed)
        self._dismissed.update(dismissed)
        return dismissed

    def part(
        self, moved: Sequence[MediaId], remaining: Sequence[MediaId], *, bit: int, is_leaving: bool = False
    ) -> tuple[int, bool]:
        """Set the two sides of a split, or of an exclusion (``is_leaving``), on items.

        Returns:
            how many of the moved items already share an atom with the other side, and whether nothing is left to
            separate.
        """
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

    def join(self, media: Sequence[MediaId]) -> tuple[list[tuple[MediaId, ...]], int]:
        """Join items as far as newer corrections allow.

        Returns:
            the resulting groups, and how many of the items are in none of them: those that are dismissed, or that an
            exclusion separated from others of these items.

        Items whose sides are in conflict are not joined. Nor are items that newer splits removed from this set one
        after another: they left for different reasons, and no correction states that they belong together.
        """
        sides = reduce(or_, (self._sides_of.get(item, FREE) for item in media), FREE)
        crossed = sides.moved & sides.remaining
        joined = [item for item in media if item not in self._dismissed and not self._leaving.get(item, 0) & crossed]
        # by the splits that removed the items: the roots of their atoms
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

    def freeze(
        self,
        together: Sequence[Together],
        apart: Sequence[Apart],
        barred: Sequence[Barred],
        nowhere: Sequence[Nowhere],
        overridden: Sequence[str],
    ) -> Constraints:
        number_of: dict[int, Atom] = {}
        sides: list[Sides] = []
        atoms: dict[MediaId, Atom] = {}
        for item in self._node_of:
            root = self._root(item)
            if root not in number_of:
                number_of[root] = Atom(len(sides))
                sides.append(self._forest.sides_of(root))
            atoms[item] = number_of[root]
        placed = frozenset(atoms[group.media[0]] for group in together)
        free = [
            Barred(one.revision, media, one.cluster)
            for one in barred
            if (media := tuple(item for item in one.media if atoms[item] not in placed))
        ]
        return Constraints(
            atoms,
            sides,
            placed,
            leaving={item: bits for item, bits in self._leaving.items() if atoms[item] not in placed},
            together=tuple(together),
            apart=tuple(apart),
            barred=tuple(free),
            nowhere=tuple(nowhere),
            overridden=tuple(overridden),
        )

    def _root(self, item: MediaId) -> int:
        node = self._node_of.get(item)
        if node is None:
            node = self._node_of[item] = self._forest.add()
        return self._forest.find(node)


class _Forest:
    """Union-find over integers from 0, each with sides; two elements in conflict are never united."""

    def __init__(self, sides: Iterable[Sides] = ()) -> None:
        self._sides = list(sides)
        self._parent = list(range(len(self._sides)))

    def add(self) -> int:
        """Add an element on no side and return it."""
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
        """Unite two sets unless they are in conflict; return whether they are one set now."""
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


def count_kept(
    labels: Mapping[MediaId, int], constraints: Constraints, *, aliases: Mapping[ClusterId, ClusterId]
) -> tuple[int, int]:
    """Return how many accepted constraints hold, and how many there are.

    Each :class:`Together`, :class:`Barred` and :class:`Nowhere` with an item in ``labels`` counts as one, and so does
    each :class:`Apart` with a pair to separate in ``labels``; items not in ``labels`` are ignored. An Apart holds only
    if every pair of it is separated.

    Args:
        labels: item -> cluster id, or -1 for noise.
        aliases: ids that were merged away -> the id they became.
    """
    n_kept = total = 0
    for group in constraints.together:
        clusters = {labels[item] for item in group.media if item in labels}
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


def enforce(
    labels: LabelVector,
    vectors: FloatMatrix,
    rows: RowConstraints,
    *,
    counts: BoolVector,
    before: LabelVector | None = None,
    fair_share: float = 1.0,
) -> LabelVector:
    """Return labels like ``labels`` that satisfy every accepted constraint; equal ones if they already do.

    Dismissed items become noise. Then each placed atom that lies in several groups, or in noise, is gathered: it moves
    to the group that holds more than half of it; a group of which it makes up more than half moves with it; if neither
    applies, it becomes a group of its own and leaves the others unchanged. Then excluded items leave, one by one, the
    groups that contain items they must not be with. Finally each group with atoms in conflict is divided: items follow
    the side to which similarity ties them.

    Args:
        labels: (n,) int32 groups, -1 = noise. Not modified.
        vectors: (n, dim) float32 of unit norm.
        rows: the constraints.
        counts: (n,) bool, which rows determine what a group is; absorbed rows do not.
        before: (n,) int32 clusters that ``labels`` replace, with absorbed rows as noise. If given, a group also moves
            with an atom when most of the group was in the atom's cluster before and the group holds a fair share of a
            cluster that people merged. So items that joined a merged cluster later stay in it, even where density finds
            two groups and the later items outnumber the merged ones; and a foreign group is not pulled in because one
            of its items was in the cluster by mistake. This rule does not apply to groups that could be gathered into
            one with atoms in conflict: dividing that one moves items, so the next recluster, without new items, would
            see a different ``before``.
        fair_share: share of a cluster that people merged, in (0, 1].

    Returns:
        (n,) int32; new groups get numbers above all of ``labels``. An item that ends up alone is noise, unless a person
        put it there.

    O(n) where nothing is violated; dividing a group of m items, f of them named by no correction, is O(m · f · dim).
    """
    obeying = labels.copy()
    obeying[rows.dismissed] = NOISE
    if (rows.atoms >= 0).any():
        _gather(obeying, rows, counts, before, fair_share)
        _release(obeying, rows)
        _divide(obeying, vectors, rows, counts)
    return obeying


def _gather(
    labels: LabelVector, rows: RowConstraints, counts: BoolVector, before: LabelVector | None, fair_share: float
) -> None:
    """Move each placed atom into one group, in place."""
    placed = np.flatnonzero(rows.placed)
    size_of = _counted(labels[counts])
    fresh = max(int(labels.max()), 0)
    scattered = [
        members
        for members in _split_by(rows.atoms[placed], placed)
        if labels[members[0]] == NOISE or (labels[members] != labels[members[0]]).any()
    ]
    quarrelling = _quarrelling(labels, rows) if scattered and before is not None else set()
    homes: list[tuple[Rows, int]] = []
    followers: list[tuple[int, int]] = []
    for members in scattered:
        votes = _counted(labels[members[counts[members]]])
        stayed: dict[int, int] = {}
        if before is not None and votes.keys().isdisjoint(quarrelling) and (clusters := _counted(before[members])):
            cluster = max(clusters, key=lambda cluster: (clusters[cluster], -cluster))
            stayed = _counted(labels[counts & (before == cluster)])
        following = [
            group
            for group, n in votes.items()
            if 2 * n > size_of[group]
            or (
                2 * stayed.get(group, 0) > size_of[group]
                and any(
                    np.count_nonzero(labels[cluster] == group) >= fair_share * len(cluster)
                    for cluster in rows.clusters.get(int(rows.atoms[members[0]]), ())
                )
            )
        ]
        favourite = max(votes, key=lambda group: (votes[group], -group), default=NOISE)
        if 2 * votes.get(favourite, 0) > len(members):
            home = favourite
        elif following:
            home = max(following, key=lambda group: (votes[group], -group))
        else:
            home = fresh = fresh + 1
        homes.append((members, home))
        followers.extend((home, group) for group in following)
    for members, home in homes:
        labels[members] = home
    forest = _Forest([FREE] * (fresh + 1))
    for home, group in followers:
        forest.union(home, group)
    for group in {group for pair in followers for group in pair}:
        labels[labels == group] = forest.find(group)


def _quarrelling(labels: LabelVector, rows: RowConstraints) -> set[int]:
    """Return the groups that could be gathered into one that contains atoms in conflict."""
    sided = np.flatnonzero((rows.atoms >= 0) & (labels != NOISE))
    joined = _Forest([FREE] * (max(int(labels.max()), 0) + 1))
    for members in _split_by(rows.atoms[sided], sided):
        if rows.placed[members[0]]:
            for label in np.unique(labels[members]).tolist():
                joined.union(int(labels[members[0]]), label)
    roots = np.array([joined.find(label) for label in labels[sided].tolist()], dtype=np.int32)
    found: set[int] = set()
    for gathered in _split_by(roots, sided):
        if _has_conflict(rows.sides[atom] for atom in np.unique(rows.atoms[gathered]).tolist()):
            found.update(np.unique(labels[gathered]).tolist())
    return found


def _release(labels: LabelVector, rows: RowConstraints) -> None:
    """Remove excluded items from groups that contain items they must not be with, in place.

    Other members stay: those that no correction names were not excluded.
    """
    left: set[int] = set()
    remaining_in: dict[int, int] = {}
    for row, bits in rows.leaving.items():
        group = int(labels[row])
        if group == NOISE:
            continue
        if group not in remaining_in:
            remaining_in[group] = rows.sides_of(np.flatnonzero(labels == group)).remaining
        if bits & remaining_in[group]:
            labels[row] = NOISE
            left.add(group)
    for group in left:
        members = np.flatnonzero(labels == group)
        if len(members) == 1 and not rows.placed[members[0]]:
            labels[members] = NOISE


def _divide(labels: LabelVector, vectors: FloatMatrix, rows: RowConstraints, counts: BoolVector) -> None:
    """Divide every group that contains atoms in conflict, in place."""
    sided = np.flatnonzero((rows.atoms >= 0) & (labels != NOISE))
    fresh = max(int(labels.max()), 0)
    for members in _split_by(labels[sided], sided):
        if not _has_conflict(rows.sides[atom] for atom in np.unique(rows.atoms[members]).tolist()):
            continue
        parts = _parts(np.flatnonzero(labels == labels[members[0]]), vectors, rows)
        parts.sort(key=lambda part: (-np.count_nonzero(counts[part]), part[0]))
        for number, part in enumerate(parts):
            is_nothing = len(part) == 1 or not counts[part].any()
            if is_nothing and not rows.placed[part].any():
                labels[part] = NOISE
            elif number:  # the largest part keeps the label
                labels[part] = fresh = fresh + 1


def _has_conflict(sides_of_atoms: Iterable[Sides]) -> bool:
    n_of = Counter(sides_of_atoms)
    everything = reduce(or_, n_of, FREE)
    if not everything.moved & everything.remaining:
        return False
    # an atom on both sides of a split is not in conflict with itself, only with another such atom
    return any(one.conflict(other) for one, other in combinations(n_of, 2)) or any(
        sides.conflict(sides) and n > 1 for sides, n in n_of.items()
    )


def _parts(members: Rows, vectors: FloatMatrix, rows: RowConstraints) -> list[Rows]:
    """Divide one group into parts of which no two could be joined.

    Items on the same sides start as one node: no correction separates them, and they share a group. Items on no side
    are tied to their nearest neighbours; the strongest ties are applied first, except those that would cause a
    conflict.
    """
    nodes, sides = _nodes(members, rows)
    forest = _Forest(sides)
    is_free = np.array([not side for side in sides])
    for one, other in _ties(vectors[members], np.flatnonzero(is_free[nodes])):
        forest.union(int(nodes[one]), int(nodes[other]))

    roots = np.array([forest.find(node) for node in range(len(sides))])
    components = _split_by(roots[nodes], np.arange(len(members)))
    sides_of = [forest.sides_of(int(nodes[component[0]])) for component in components]
    centres = [vectors[members[component]].sum(axis=0) for component in components]
    # components with sides first; one that no tie connects to a side then joins the part that it resembles most
    order = sorted(range(len(components)), key=lambda i: (not sides_of[i], -len(components[i]), components[i][0]))
    parts: list[_Part] = []
    for i in order:
        fitting = [part for part in parts if not part.sides.conflict(sides_of[i])]
        if fitting:
            part = max(fitting, key=lambda part: part.resemblance(centres[i]))
            part.components.append(components[i])
            part.sides |= sides_of[i]
            part.centre = part.centre + centres[i]
        else:
            parts.append(_Part([components[i]], sides_of[i], centres[i]))
    return [np.sort(members[np.concatenate(part.components)]) for part in parts]


@dataclass(slots=True)
class _Part:
    """A part of a group under construction."""

    components: list[Rows]
    sides: Sides
    centre: FloatVector

    def resemblance(self, centre: FloatVector) -> float:
        return float(self.centre @ centre) / max(float(np.linalg.norm(self.centre)), SMALLEST_NORM)


def _nodes(members: Rows, rows: RowConstraints) -> tuple[Rows, list[Sides]]:
    """Return the node of each member, and the sides of each node."""
    nodes = np.empty(len(members), dtype=np.intp)
    sides: list[Sides] = []
    node_of: dict[object, int] = {}
    for position, (row, atom) in enumerate(zip(members.tolist(), rows.atoms[members].tolist(), strict=True)):
        its_sides = rows.sides[atom] if atom >= 0 else FREE
        alike: object = its_sides
        if not its_sides or its_sides.conflict(its_sides):
            # items without sides may not belong together, and two atoms on both sides of a split are in conflict
            alike = ("atom", atom) if atom >= 0 else ("row", row)
        if alike not in node_of:
            node_of[alike] = len(sides)
            sides.append(its_sides)
        nodes[position] = node_of[alike]
    return nodes, sides


def _ties(vectors: FloatMatrix, free: Rows) -> list[tuple[int, int]]:
    """Return pairs of rows, most similar first: each free row with its nearest neighbours.

    Ties in similarity are ordered by row, so that the result is deterministic.
    """
    k = min(_TIES, len(vectors) - 1)
    ends: list[Rows] = []
    similarities: list[FloatVector] = []
    for start in range(0, len(free), _BLOCK):
        block = free[start : start + _BLOCK]
        similarity = vectors[block] @ vectors.T
        similarity[np.arange(len(block)), block] = -np.inf
        nearest = np.argpartition(similarity, -k, axis=1)[:, -k:]
        similarities.append(np.take_along_axis(similarity, nearest, axis=1).ravel())
        ends.append(np.stack([np.repeat(block, k), nearest.ravel()], axis=1))
    if not ends:
        return []
    pairs = np.concatenate(ends)
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -np.concatenate(similarities)))
    return [(one, other) for one, other in pairs[order].tolist()]


def _counted(labels: LabelVector) -> dict[int, int]:
    """Return group -> number of rows, without noise."""
    groups, n = np.unique(labels[labels != NOISE], return_counts=True)
    return dict(zip(groups.tolist(), n.tolist(), strict=True))


def _split_by(keys: LabelVector | Rows, values: Rows) -> list[Rows]:
    """Return ``values`` grouped by equal keys, in ascending order of keys; each group keeps its order."""
    if not len(values):
        return []
    order = np.argsort(keys, kind="stable")
    return np.split(values[order], np.flatnonzero(np.diff(keys[order])) + 1)
