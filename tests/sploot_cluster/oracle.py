"""An oracle that derives what corrections demand, pair by pair: slow, but independent of the implementation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from sploot_cluster.decide.corrections.cover import Covering
from sploot_cluster.decide.corrections.dismiss import Dismissal
from sploot_cluster.decide.corrections.exclude import Exclusion
from sploot_cluster.decide.corrections.hide import Hiding
from sploot_cluster.decide.corrections.keep_apart import Separation
from sploot_cluster.decide.corrections.lock import Locking
from sploot_cluster.decide.corrections.merge import Merge
from sploot_cluster.decide.corrections.name import Naming
from sploot_cluster.decide.corrections.name_pet import PetNaming
from sploot_cluster.decide.corrections.place import Placement
from sploot_cluster.decide.corrections.split import Split
from sploot_cluster.decide.corrections.undo import Undo
from sploot_cluster.pet.models import ClusterId, Correction, MediaId


@dataclass
class Demands:
    """What the corrections of a ledger demand.

    Attributes:
        components: item -> all items that must share its cluster, including itself.
        placed: items that a user put into a cluster.
        cannot: pairs of items that must not share a cluster.
        dismissed: items that must be in no cluster.
        barred: (item, id of a cluster that it must not be in), unless a correction placed the item.
        yielding: revisions of corrections that newer ones override.
    """

    components: dict[MediaId, set[MediaId]] = field(default_factory=dict)
    placed: set[MediaId] = field(default_factory=set)
    cannot: set[frozenset[MediaId]] = field(default_factory=set)
    dismissed: set[MediaId] = field(default_factory=set)
    barred: set[tuple[MediaId, ClusterId]] = field(default_factory=set)
    yielding: set[int] = field(default_factory=set)

    def clash(self, one: set[MediaId], other: set[MediaId]) -> bool:
        return one is not other and any(frozenset((a, b)) in self.cannot for a in one for b in other)

    def broken(
        self, labels: Mapping[MediaId, int], aliases: Mapping[ClusterId, ClusterId]
    ) -> list[tuple[MediaId, MediaId]]:
        """Return the pairs on which ``labels`` violate a demand.

        A pair of an item with itself means that the item is in a forbidden cluster, or in none although it must be in
        one.
        """
        broken = []
        for item in self.placed & labels.keys():
            if labels[item] == -1:
                broken.append((item, item))
            mates = self.components[item] & labels.keys()
            broken += [(item, other) for other in mates if labels[other] != labels[item]]
        for one, other in combinations(sorted(self.components.keys() & labels.keys()), 2):
            if labels[one] == labels[other] != -1 and self.clash(self.components[one], self.components[other]):
                broken.append((one, other))
        broken += [(item, item) for item in self.dismissed & labels.keys() if labels[item] != -1]
        for item, cluster in self.barred:
            if item in labels and item not in self.placed and labels[item] == aliases.get(cluster, cluster):
                broken.append((item, item))
        return broken


def names_in_force(ledger: Sequence[Correction]) -> dict[ClusterId, str]:
    """Return, for each cluster id that a user named, the newest name in force."""
    result: dict[ClusterId, str] = {}
    for correction in _in_force(ledger):
        if isinstance(correction, Naming):
            result.setdefault(correction.named, correction.name)
    return result


def pet_name_in_force(ledger: Sequence[Correction]) -> str | None:
    """Return the name that the newest naming in force gives the pet."""
    names = (correction.name for correction in _in_force(ledger) if isinstance(correction, PetNaming))
    return next(names, None) or None


def covers_in_force(ledger: Sequence[Correction]) -> dict[ClusterId, MediaId]:
    """Return, for each cluster id whose cover a user chose, the newest choice in force."""
    result: dict[ClusterId, MediaId] = {}
    for correction in _in_force(ledger):
        if isinstance(correction, Covering):
            result.setdefault(correction.covered, correction.item)
    return result


def locked_in_force(ledger: Sequence[Correction]) -> set[ClusterId]:
    """Return the cluster ids for which the newest lock or unlock in force is a lock."""
    newest: dict[ClusterId, bool] = {}
    for correction in _in_force(ledger):
        if isinstance(correction, Locking):
            for cluster in correction.anchors:
                newest.setdefault(cluster, not correction.is_removed)
    return {cluster for cluster, is_locked in newest.items() if is_locked}


def _in_force(ledger: Sequence[Correction]) -> Iterator[Correction]:
    """Yield the corrections that are not undone, newest first."""
    undone: set[int] = set()
    for correction in reversed(ledger):
        if correction.revision not in undone:
            if isinstance(correction, Undo):
                undone.add(correction.undone)
            else:
                yield correction


def merged_in(merge: Merge, ledger: Sequence[Correction]) -> dict[ClusterId, list[MediaId]]:
    """Return the items of each merged cluster: those that the merge names, and all those of the cluster's base."""
    merges = {one.revision: one for one in ledger if isinstance(one, Merge)}

    def everything(merge: Merge) -> dict[ClusterId, list[MediaId]]:
        return {
            cluster: [
                *(item for items in everything(merges[merge.bases[cluster]]).values() for item in items),
                *members,
            ]
            if cluster in merge.bases
            else [*members]
            for cluster, members in merge.groups.items()
        }

    return everything(merge)


def _named_by(correction: Correction, ledger: Sequence[Correction]) -> set[MediaId]:
    if isinstance(correction, Merge):
        return {item for members in merged_in(correction, ledger).values() for item in members}
    return {*correction.media()}


def demands(ledger: Sequence[Correction]) -> Demands:
    result = Demands()
    newer_sides: list[tuple[set[MediaId], set[MediaId]]] = []  # the two sides of each newer split or exclusion
    # for each newer exclusion: the items that left the cluster, and those that remained
    newer_exits: list[tuple[set[MediaId], set[MediaId]]] = []
    released: set[MediaId] = set()  # items that newer placements moved

    def heard(media: Iterable[MediaId]) -> tuple[MediaId, ...]:
        return tuple(item for item in media if item not in released)

    for correction in _in_force(ledger):
        if isinstance(correction, (Naming, PetNaming, Covering, Hiding, Locking)):
            continue
        if _named_by(correction, ledger) & released:
            result.yielding.add(correction.revision)
        if isinstance(correction, Dismissal):
            media = heard(correction.media())
            result.dismissed |= {item for item in media if item not in result.placed}
            if any(item in result.placed for item in media):
                result.yielding.add(correction.revision)
            continue
        if isinstance(correction, Separation):
            newer_sides += _keep_apart(result, correction, {*released})
            continue
        if isinstance(correction, (Split, Exclusion)):
            moved = heard(correction.moved if isinstance(correction, Split) else correction.excluded)
            stuck = _part(result, correction.revision, moved, heard(correction.remaining))
            newer_sides.append(({*moved}, {*heard(correction.remaining)}))
            if isinstance(correction, Exclusion):
                newer_exits.append(({*moved} - stuck, {*heard(correction.remaining)}))
                result.barred |= {(item, correction.source) for item in moved}
                continue
            media = moved
        elif isinstance(correction, Placement):
            for cluster, anchors in correction.remaining.items():
                _part(result, correction.revision, heard(correction.groups[cluster]), heard(anchors))
                newer_sides.append(({*heard(correction.groups[cluster])}, {*heard(anchors)}))
            media = heard((*correction.anchors, *correction.placed))
            released.update(correction.placed)
        else:
            assert isinstance(correction, Merge)
            first, *others = [correction.into, *sorted(correction.groups.keys() - {correction.into})]
            items_of = merged_in(correction, ledger)
            media = heard(item for id_ in (first, *others) for item in items_of[ClusterId(id_)])
        gone = _gone({*media}, result.dismissed, newer_exits)
        joined = [item for item in media if item not in gone]
        for item in joined:
            result.components.setdefault(item, {item})
        _join(result, joined, [sides for sides in newer_sides if sides[0] & {*media} and sides[1] & {*media}])
        result.placed.update(joined)
        if gone or len({id(result.components[item]) for item in joined}) > 1:
            result.yielding.add(correction.revision)
    return result


def _gone(
    media: set[MediaId], dismissed: set[MediaId], newer_exits: Sequence[tuple[set[MediaId], set[MediaId]]]
) -> set[MediaId]:
    """Return the items of ``media`` that newer corrections dismissed or excluded from the others."""
    exits = [left & media for left, remained in newer_exits if remained & media]
    return (media & dismissed).union(*exits)


def _keep_apart(
    result: Demands, correction: Separation, released: set[MediaId]
) -> list[tuple[set[MediaId], set[MediaId]]]:
    """Separate each group from all groups after it. Return the two sides of each separation."""
    sides = []
    left = [{*members} - released for _, members in sorted(correction.groups.items())]
    for at, members in enumerate(left[:-1], start=1):
        others = {item for group in left[at:] for item in group}
        _part(result, correction.revision, sorted(members), sorted(others))
        sides.append((members, others))
    return sides


def _part(result: Demands, revision: int, moved: Sequence[MediaId], remaining: Sequence[MediaId]) -> set[MediaId]:
    """Keep moved items apart from remaining ones. Return the moved items that newer corrections join to the others."""
    for item in (*moved, *remaining):
        result.components.setdefault(item, {item})
    stuck = set()
    for a in moved:
        for b in remaining:
            if result.components[a] is result.components[b]:
                result.yielding.add(revision)
                stuck.add(a)
            else:
                result.cannot.add(frozenset((a, b)))
    return stuck


def _join(result: Demands, media: Sequence[MediaId], crossing: Sequence[tuple[set[MediaId], set[MediaId]]]) -> None:
    cells: dict[tuple[bool, ...], list[MediaId]] = {}
    for item in media:
        cells.setdefault(tuple(item in moved for moved, _ in crossing), []).append(item)
    for cell in cells.values():
        anchors: list[MediaId] = []
        for item in cell:
            for anchor in anchors:
                one, other = result.components[anchor], result.components[item]
                if one is other:
                    break
                if not result.clash(one, other):
                    one |= other
                    for each in other:
                        result.components[each] = one
                    break
            else:
                anchors.append(item)
