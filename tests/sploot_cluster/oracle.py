"""What people's corrections demand, worked out pair by pair: slow, and written without a look at the real thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from sploot_cluster.models import ClusterId, Correction, MediaId, Merge, Split, Undo


@dataclass
class Demands:
    """Attributes:
    components: media that must share a cluster; those that nobody placed are alone.
    placed: media that a person put somewhere.
    cannot: pairs of media that must not share one.
    yielding: revisions of corrections that newer ones contradict.
    """

    components: dict[MediaId, set[MediaId]] = field(default_factory=dict)
    placed: set[MediaId] = field(default_factory=set)
    cannot: set[frozenset[MediaId]] = field(default_factory=set)
    yielding: set[int] = field(default_factory=set)

    def clash(self, one: set[MediaId], other: set[MediaId]) -> bool:
        return one is not other and any(frozenset((a, b)) in self.cannot for a in one for b in other)

    def broken(self, labels: Mapping[MediaId, int]) -> list[tuple[MediaId, MediaId]]:
        """The pairs that labels treat otherwise; a pair of the same medium is one that ended as noise."""
        broken = []
        for medium in self.placed & labels.keys():
            if labels[medium] == -1:
                broken.append((medium, medium))
            broken += [(medium, other) for other in self.components[medium] if labels[other] != labels[medium]]
        for one, other in combinations(sorted(self.components.keys() & labels.keys()), 2):
            if labels[one] == labels[other] != -1 and self.clash(self.components[one], self.components[other]):
                broken.append((one, other))
        return broken


def demands(ledger: Sequence[Correction]) -> Demands:
    undone: set[int] = set()
    result = Demands()
    newer_splits: list[Split] = []
    for correction in reversed(ledger):
        if correction.revision in undone:
            continue
        if isinstance(correction, Undo):
            undone.add(correction.undone)
            continue
        if isinstance(correction, Merge):
            first, *others = [correction.into, *sorted(correction.groups.keys() - {correction.into})]
            media = [medium for id_ in (first, *others) for medium in correction.groups[ClusterId(id_)]]
        else:
            media = list(correction.moved)
        for medium in (*media, *(correction.remaining if isinstance(correction, Split) else ())):
            result.components.setdefault(medium, {medium})
        if isinstance(correction, Split):
            for a in correction.moved:
                for b in correction.remaining:
                    if result.components[a] is result.components[b]:
                        result.yielding.add(correction.revision)
                    else:
                        result.cannot.add(frozenset((a, b)))
            newer_splits.append(correction)
        _join(result, media, newer_splits)
        result.placed.update(media)
        if len({id(result.components[medium]) for medium in media}) > 1:
            result.yielding.add(correction.revision)
    return result


def _join(result: Demands, media: Sequence[MediaId], newer_splits: Sequence[Split]) -> None:
    crossing = [split for split in newer_splits if {*split.moved} & {*media} and {*split.remaining} & {*media}]
    cells: dict[tuple[bool, ...], list[MediaId]] = {}
    for medium in media:
        cells.setdefault(tuple(medium in split.moved for split in crossing), []).append(medium)
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
