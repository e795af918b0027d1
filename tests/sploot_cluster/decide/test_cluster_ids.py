"""Inheritance of cluster ids by groups, and aliases of retired ids."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sploot_cluster.decide.cluster_ids import Identities, aliases_after, match_ids
from sploot_cluster.pet.models import NOISE, ClusterId, Origin
from sploot_cluster.settings import ClusterSettings
from tests.sploot_cluster.states import looks, pet_state


def matched(
    old: list[int],
    groups: list[int],
    *,
    given_ids: Mapping[int, int] | None = None,
    old_origins: list[Origin] | None = None,
) -> Identities:
    state = pet_state(old, looks(len(old)), origins=old_origins)
    origins = np.where(np.array(groups) == NOISE, Origin.NOISE, Origin.CORE).astype(np.uint8)
    return match_ids(
        state.labels,
        state.origins,
        np.array(groups, dtype=np.int32),
        origins,
        state.clusters,
        state.next_cluster,
        ClusterSettings(),
        given={group: ClusterId(id_) for group, id_ in (given_ids or {}).items()},
    )


@pytest.mark.parametrize(
    ("old", "groups", "ids"),
    [
        ([1, 1, 2, 2], [0, 0, 1, 1], {0: 1, 1: 2}),
        ([1, 1, 2, 2], [1, 1, 0, 0], {1: 1, 0: 2}),
        # two of three items stay together and keep the id; the third gets a new one
        ([7, 7, 7, 2], [0, 0, 1, 2], {0: 7, 1: 8, 2: 2}),
        # two clusters become one, which gets the id of the larger one
        ([1, 1, 1, 2, 2], [0, 0, 0, 0, 0], {0: 1}),
        # a cluster divided in half: one half inherits the id, the other gets a new one
        ([3, 3, 3, 3], [0, 0, 1, 1], {0: 3, 1: 4}),
        # as many items as possible keep their cluster id: 2 + 2, although group 0 overlaps most with cluster 1, by 3
        ([1, 1, 1, 2, 2, 1, 1], [0, 0, 0, 0, 0, 1, 1], {0: 2, 1: 1}),
        # groups that overlap with no cluster get new ids, largest group first
        ([NOISE, NOISE, NOISE, 1], [5, 6, 6, NOISE], {6: 2, 5: 3}),
    ],
)
def test_groups_inherit_ids_by_overlap(old: list[int], groups: list[int], ids: dict[int, int]) -> None:
    assert matched(old, groups).ids == ids


def test_group_does_not_inherit_the_id_of_a_cluster_with_a_small_overlap() -> None:
    # the cluster and the group have ten items each and share one: 10 %
    old = [1] * 10 + [NOISE] * 9
    groups = [NOISE] * 9 + [0] * 10

    assert matched(old, groups).ids == {0: 2}


def test_absorbed_items_do_not_affect_ids() -> None:
    old_origins = [Origin.CORE, Origin.CORE, Origin.ABSORBED, Origin.ABSORBED, Origin.ABSORBED]

    ids = matched([1, 1, 1, 1, 1], [0, 0, 1, 1, 1], old_origins=old_origins).ids

    assert ids == {0: 1, 1: 2}


def test_preassigned_id_takes_precedence_over_overlap() -> None:
    assert matched([1, 1, 1, 2], [0, 0, 0, 1], given_ids={1: 1}).ids == {1: 1, 0: 3}


def test_label_replaces_group_numbers_with_cluster_ids() -> None:
    identities = Identities({4: ClusterId(1), 0: ClusterId(9)}, ClusterId(10))

    assert identities.label(np.array([0, 4, NOISE, 0], dtype=np.int32)).tolist() == [9, 1, -1, 9]


@given(st.lists(st.tuples(st.integers(-1, 5), st.integers(-1, 5)), min_size=1, max_size=60))
def test_ids_are_unique_and_never_reused(pairs: list[tuple[int, int]]) -> None:
    old = [label if label > 0 else NOISE for label, _ in pairs]
    groups = [group for _, group in pairs]

    identities = matched(old, groups)

    ids = list(identities.ids.values())
    assert len(set(ids)) == len(ids)
    assert set(identities.ids) == set(groups) - {NOISE}
    first_new = max([0, *old]) + 1
    assert all(id_ in old or id_ >= first_new for id_ in ids)
    assert identities.next_cluster == max([first_new - 1, *ids]) + 1


@given(st.lists(st.integers(-1, 6), min_size=1, max_size=60))
def test_unchanged_groups_keep_their_ids(labels: list[int]) -> None:
    old = [label if label > 0 else NOISE for label in labels]

    identities = matched(old, old)

    assert identities.label(np.array(old, dtype=np.int32)).tolist() == old


def test_retired_id_becomes_an_alias_of_the_cluster_with_most_of_its_items() -> None:
    state = pet_state([1, 1, 1, 2, 2], looks(5))

    assert aliases_after(state, np.array([2, 2, -1, 2, 2], dtype=np.int32)) == {1: 2}


def test_retired_id_gets_no_alias_if_its_items_were_scattered() -> None:
    state = pet_state([1, 1, 2, 3], looks(4))

    assert aliases_after(state, np.array([2, 3, 2, 3], dtype=np.int32)) == {}


def test_aliases_point_directly_to_a_living_id() -> None:
    state = pet_state([1, 1, 2, 2], looks(4), aliases={3: 1, 4: 2})

    assert aliases_after(state, np.array([2, 2, 2, 2], dtype=np.int32)) == {1: 2, 3: 2}


def test_alias_ends_when_its_target_ends_or_its_id_becomes_a_cluster_again() -> None:
    state = pet_state([1, 1, 2], looks(3), aliases={3: 1, 4: 2})

    assert aliases_after(state, np.array([-1, -1, 4], dtype=np.int32)) == {3: None, 4: None, 2: 4}
