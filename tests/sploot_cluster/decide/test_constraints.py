"""Constraints of corrections, compared with an independent oracle, and labels that satisfy them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain, combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sploot_cluster.decide.constraints import Together, count_kept
from sploot_cluster.decide.corrections.dismiss import Dismissal
from sploot_cluster.decide.corrections.exclude import Exclusion
from sploot_cluster.decide.corrections.merge import Merge
from sploot_cluster.decide.corrections.place import Placement
from sploot_cluster.decide.corrections.split import Split
from sploot_cluster.decide.corrections.undo import Undo
from sploot_cluster.decide.enforcing import enforce
from sploot_cluster.decide.resolving import in_force, resolve
from sploot_cluster.pet.models import NOISE, ClusterId, Correction, MediaId
from sploot_cluster.pet.vectors import LabelVector, as_vectors
from tests.sploot_cluster.oracle import demands, merged_in

AT = datetime(2026, 1, 31, tzinfo=UTC)
MEDIA = [MediaId(letter) for letter in "abcdefghij"]
ROWS = {item: row for row, item in enumerate(MEDIA)}
VECTORS = as_vectors(np.random.default_rng(7).normal(size=(len(MEDIA), 6)))
ALL_COUNT = np.ones(len(MEDIA), dtype=np.bool_)


def media(text: str) -> tuple[MediaId, ...]:
    return tuple(MediaId(letter) for letter in text)


def merge(revision: int, *groups: str, base: Merge | None = None, ledger: Sequence[Correction] = ()) -> Merge:
    """Return a merge into the first group, which also has the items of ``base``."""
    known = {item for items in merged_in(base, ledger).values() for item in items} if base else set[MediaId]()
    by_id = {
        ClusterId(number): tuple(item for item in media(group) if item not in known)
        for number, group in enumerate(groups, start=1)
    }
    bases = {ClusterId(1): base.revision} if base else {}
    return Merge(revision, f"op-{revision}", "ada", AT, into=ClusterId(1), groups=by_id, bases=bases)


def place(revision: int, text: str, anchors: str) -> Placement:
    groups = {NOISE: media(text)}
    return Placement(revision, f"op-{revision}", "ada", AT, ClusterId(1), media(anchors), groups, remaining={})


def named_in_full(ledger: Sequence[Correction]) -> list[Correction]:
    """Return the ledger with all merges listing their items in full, without a base."""
    return [
        replace(one, groups={id_: tuple(items) for id_, items in merged_in(one, ledger).items()}, bases={})
        if isinstance(one, Merge)
        else one
        for one in ledger
    ]


def split(revision: int, moved: str, remaining: str) -> Split:
    return Split(revision, f"op-{revision}", "ada", AT, ClusterId(1), ClusterId(9), media(moved), media(remaining))


def undo(revision: int, undone: int) -> Undo:
    return Undo(revision, f"op-{revision}", "ada", AT, undone)


def exclude(revision: int, taken_out: str, remaining: str, source: int = 1) -> Exclusion:
    return Exclusion(revision, f"op-{revision}", "ada", AT, ClusterId(source), media(taken_out), media(remaining))


def dismiss(revision: int, text: str) -> Dismissal:
    return Dismissal(revision, f"op-{revision}", "ada", AT, {NOISE: media(text)})


KINDS = ("merge", "split", "exclude", "dismiss")


def labels_of(text: str) -> LabelVector:
    """Return the labels of ``"1 1 2 - …"``: one per item, ``-`` for noise."""
    return np.array([-1 if label == "-" else int(label) for label in text.split()], dtype=np.int32)


def in_clusters(group: Together) -> tuple[int, list[list[MediaId]]]:
    return group.revision, [list(chain.from_iterable(parts)) for parts in group.clusters]


@st.composite
def ledgers(draw: st.DrawFn, kinds: Sequence[str] = KINDS, most: int = 7) -> list[Correction]:
    """Generate arbitrary corrections, more contradictory than users can make."""
    ledger: list[Correction] = []
    for revision in range(1, draw(st.integers(1, most)) + 1):
        kind = draw(st.sampled_from([*kinds, *(["undo"] if ledger else [])]))
        if kind == "undo":
            ledger.append(undo(revision, draw(st.sampled_from(ledger)).revision))
            continue
        named = "".join(draw(st.lists(st.sampled_from(MEDIA), min_size=2, max_size=6, unique=True)))
        cut = draw(st.integers(1, len(named) - 1))
        match kind:
            case "merge":
                base = draw(st.sampled_from([None, *(one for one in ledger if isinstance(one, Merge))]))
                ledger.append(merge(revision, named[:cut], named[cut:], base=base, ledger=ledger))
            case "place":
                ledger.append(place(revision, named[:cut], named[cut:]))
            case "split":
                ledger.append(split(revision, named[:cut], named[cut:]))
            case "exclude":
                ledger.append(exclude(revision, named[:cut], named[cut:], source=draw(st.integers(0, 3))))
            case _:
                ledger.append(dismiss(revision, named[:cut]))
    return ledger


@given(ledgers())
def test_resolved_constraints_match_an_independent_oracle(ledger: list[Correction]) -> None:
    expected = demands(ledger)

    found = resolve(ledger)

    assert found.atoms.keys() == expected.components.keys()
    for one, other in combinations(sorted(found.atoms), 2):
        together = expected.components[one] is expected.components[other]
        assert (found.atom_of(one) == found.atom_of(other)) == together, (one, other)
        assert found.conflicts(one, other) == expected.clash(expected.components[one], expected.components[other])
    assert {item for item, atom in found.atoms.items() if atom in found.placed} == expected.placed
    assert {item for nowhere in found.nowhere for item in nowhere.media} == expected.dismissed
    barred = {(item, barred.cluster) for barred in found.barred for item in barred.media}
    assert barred == {(item, cluster) for item, cluster in expected.barred if item not in expected.placed}
    reported = {r.revision for r in in_force(ledger) if any(f"revision {r.revision} " in s for s in found.overridden)}
    assert reported == expected.yielding


@given(ledgers(("merge", "merge", "merge", "place", "split", "exclude", "dismiss"), most=12))
def test_merge_with_a_base_demands_the_same_as_one_that_lists_all_items(ledger: list[Correction]) -> None:
    expected = resolve(named_in_full(ledger))

    found = resolve(ledger)

    assert found.overridden == expected.overridden
    assert [in_clusters(group) for group in found.together] == [in_clusters(group) for group in expected.together]
    assert replace(found, together=()) == replace(expected, together=())


@given(ledgers(), st.lists(st.integers(-1, 3), min_size=len(MEDIA), max_size=len(MEDIA)))
def test_enforced_labels_satisfy_all_constraints_and_are_stable(ledger: list[Correction], labels: list[int]) -> None:
    before = np.array(labels, dtype=np.int32)
    constraints = resolve(ledger)
    rows = constraints.by_row(ROWS)

    after = enforce(before, VECTORS, rows, counts=ALL_COUNT)

    labels_after = dict(zip(MEDIA, after.tolist(), strict=True))
    # barred items are only removed in a later step, when groups get ids, so group numbers must not equal old ids
    labels_after = {item: label if label == NOISE else label + 1_000 for item, label in labels_after.items()}
    assert demands(ledger).broken(labels_after, {}) == []
    n_kept, total = count_kept(labels_after, constraints, aliases={})
    assert n_kept == total
    assert np.array_equal(enforce(after, VECTORS, rows, counts=ALL_COUNT), after)
    assert before.tolist() == labels


@given(ledgers(), st.lists(st.integers(-1, 3), min_size=len(MEDIA), max_size=len(MEDIA)))
def test_all_constraints_count_as_kept_exactly_when_no_pair_is_broken(
    ledger: list[Correction], labels: list[int]
) -> None:
    label_of = dict(zip(MEDIA, labels, strict=True))

    aliases = {ClusterId(0): ClusterId(2)}

    n_kept, total = count_kept(label_of, resolve(ledger), aliases=aliases)

    assert (n_kept == total) == (demands(ledger).broken(label_of, aliases) == [])


def test_labels_that_satisfy_constraints_are_unchanged() -> None:
    rows = resolve([merge(1, "ab", "c"), split(2, "d", "e")]).by_row(ROWS)
    labels = labels_of("5 5 5 7 8 8 - - 7 5")

    assert np.array_equal(enforce(labels, VECTORS, rows, counts=ALL_COUNT), labels)


def test_empty_ledger_imposes_no_constraints() -> None:
    constraints = resolve([])

    assert count_kept({MEDIA[0]: 1}, constraints, aliases={}) == (0, 0)
    assert constraints.overridden == ()
    assert constraints.by_row(ROWS).atoms.tolist() == [NOISE] * len(MEDIA)


def test_newer_split_overrides_an_older_merge_and_this_is_reported() -> None:
    constraints = resolve([merge(1, "ab", "cd"), split(2, "c", "abd")])

    assert constraints.conflicts(MediaId("c"), MediaId("a"))
    assert constraints.atom_of(MediaId("a")) == constraints.atom_of(MediaId("d"))
    assert constraints.overridden == (
        "the merge at revision 1 by ada: newer corrections divide its 4 items into groups of 3, 1",
    )


def test_newer_merge_reunites_items_of_an_older_split() -> None:
    constraints = resolve([split(1, "ab", "cd"), merge(2, "ab", "cd")])

    assert len(set(constraints.atoms.values())) == 1
    assert len(constraints.overridden) == 1
    assert "the split at revision 1 by ada" in constraints.overridden[0]


def test_items_split_off_separately_from_a_merge_are_not_joined_again() -> None:
    # a was not in the cluster when c was split off, so no split names both
    constraints = resolve([merge(1, "ab", "c"), split(2, "c", "b"), split(3, "a", "b")])

    assert constraints.atom_of(MediaId("a")) != constraints.atom_of(MediaId("c"))


def test_undo_of_an_undo_reinstates_the_correction() -> None:
    ledger: list[Correction] = [merge(1, "ab", "cd"), undo(2, 1), undo(3, 2)]

    assert [correction.revision for correction in in_force(ledger)] == [1]
    assert in_force(ledger[:2]) == []


def test_small_part_of_an_atom_rejoins_the_rest_without_moving_other_items() -> None:
    rows = resolve([merge(1, "abc", "d")]).by_row(ROWS)

    after = enforce(labels_of("1 1 1 2 2 2 2 2 - -"), VECTORS, rows, counts=ALL_COUNT)

    assert after.tolist() == [1, 1, 1, 1, 2, 2, 2, 2, -1, -1]


def test_items_not_named_in_a_split_follow_the_side_that_they_resemble() -> None:
    vectors = as_vectors(np.array([[1, 0], [0, 1], [0.9, 0.1], [0.1, 0.9]] + [[1.0, 1.0]] * 6))
    rows = resolve([split(1, "a", "b")]).by_row(ROWS)

    after = enforce(labels_of("1 1 1 1 - - - - - -"), vectors, rows, counts=ALL_COUNT)

    assert after[0] == after[2] != after[1] == after[3]
    assert NOISE not in after[:4].tolist()


def test_deleted_items_of_a_correction_are_ignored() -> None:
    rows = resolve([merge(1, "az", "b")]).by_row(ROWS)

    after = enforce(labels_of("1 2 - - - - - - - -"), VECTORS, rows, counts=ALL_COUNT)

    assert after[0] == after[1]
