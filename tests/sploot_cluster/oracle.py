"""An oracle for the demands of corrections, worked out pair by pair: slow, and independent of the implementation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from sploot_cluster.pet.models import ClusterId, Correction, Dismissal, Exclusion, MediaId, Split, Undo


@dataclass
class Demands:
    """The demands of a ledger.

    Attributes:
        components: item -> all items that must share its cluster; items that no correction placed are alone.
        placed: items that a person put somewhere.
        cannot: pairs of items that must not share a cluster.
        dismissed: items that must be in no cluster.
        barred: items, and ids whose clusters they must not be in, unless a correction placed them.
        yielding: revisions of corrections that newer ones contradict.
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
        """Return the pairs that ``labels`` treat wrongly; an item paired with itself is where it must not be."""
        broken = []
        for medium in self.placed & labels.keys():
            if labels[medium] == -1:
                broken.append((medium, medium))
            mates = self.components[medium] & labels.keys()
            broken += [(medium, other) for other in mates if labels[other] != labels[medium]]
        for one, other in combinations(sorted(self.components.keys() & labels.keys()), 2):
            if labels[one] == labels[other] != -1 and self.clash(self.components[one], self.components[other]):
                broken.append((one, other))
        broken += [(medium, medium) for medium in self.dismissed & labels.keys() if labels[medium] != -1]
        for medium, cluster in self.barred:
            if medium in labels and medium not in self.placed and labels[medium] == aliases.get(cluster, cluster):
                broken.append((medium, medium))
        return broken


def demands(ledger: Sequence[Correction]) -> Demands:
    undone: set[int] = set()
    result = Demands()
    newer_sides: list[tuple[set[MediaId], set[MediaId]]] = []  # of splits and exclusions
    # of exclusions: the items that really left, and those that remained
    newer_exits: list[tuple[set[MediaId], set[MediaId]]] = []
    for correction in reversed(ledger):
        if correction.revision in undone:
            continue
        if isinstance(correction, Undo):
            undone.add(correction.undone)
            continue
        if isinstance(correction, Dismissal):
            result.dismissed |= {medium for medium in correction.media if medium not in result.placed}
            if any(medium in result.placed for medium in correction.media):
                result.yielding.add(correction.revision)
            continue
        if isinstance(correction, (Split, Exclusion)):
            moved = correction.moved if isinstance(correction, Split) else correction.media
            for medium in (*moved, *correction.remaining):
                result.components.setdefault(medium, {medium})
            stuck = set()
            for a in moved:
                for b in correction.remaining:
                    if result.components[a] is result.components[b]:
                        result.yielding.add(correction.revision)
                        stuck.add(a)
                    else:
                        result.cannot.add(frozenset((a, b)))
            newer_sides.append(({*moved}, {*correction.remaining}))
            if isinstance(correction, Exclusion):
                newer_exits.append(({*moved} - stuck, {*correction.remaining}))
                result.barred |= {(medium, correction.source) for medium in moved}
                continue
            media = list(moved)
        else:
            first, *others = [correction.into, *sorted(correction.groups.keys() - {correction.into})]
            media = [medium for id_ in (first, *others) for medium in correction.groups[ClusterId(id_)]]
        gone = {*media} & result.dismissed
        for left, remained in newer_exits:
            if remained & {*media}:
                gone |= left & {*media}
        joined = [medium for medium in media if medium not in gone]
        for medium in joined:
            result.components.setdefault(medium, {medium})
        _join(result, joined, [sides for sides in newer_sides if sides[0] & {*media} and sides[1] & {*media}])
        result.placed.update(joined)
        if gone or len({id(result.components[medium]) for medium in joined}) > 1:
            result.yielding.add(correction.revision)
    return result


def _join(result: Demands, media: Sequence[MediaId], crossing: Sequence[tuple[set[MediaId], set[MediaId]]]) -> None:
    cells: dict[tuple[bool, ...], list[MediaId]] = {}
    for medium in media:
        cells.setdefault(tuple(medium in moved for moved, _ in crossing), []).append(medium)
    for cell in cells.values():
        anchors: list[MediaId] = []
        for medium in cell:
            for anchor in anchors:
                one, other = result.components[anchor], result.components[medium]
                if one is other:
                    break
                if not result.clash(one, other):
                    one |= other
                    for each in other:
                        result.components[each] = one
                    break
            else:
                anchors.append(medium)
