"""Suggestions: which questions are asked about a pet, and that no question is asked twice."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from sploot_cluster.decide.corrections import VERBS
from sploot_cluster.decide.corrections.base import Operation
from sploot_cluster.decide.suggestions import doubtful, suggest
from sploot_cluster.decide.suggestions.values import Reply, Suggestion
from sploot_cluster.errors import InvalidInput
from sploot_cluster.pet.models import Change, ClusterId, HistoryEntry, MediaId, Origin, PetState
from sploot_cluster.pet.past import Past
from sploot_cluster.pet.rows import follow
from sploot_cluster.pet.vectors import FloatMatrix, as_vectors
from sploot_cluster.settings import ClusterSettings
from tests.sploot_cluster.states import pet_state

DIM = 24
AT = datetime(2026, 1, 31, tzinfo=UTC)
ONE, TWO, THREE = (ClusterId(number) for number in range(1, 4))


def subject(n: int, seed: int, spread: float = 0.05, **weights: float) -> FloatMatrix:
    """Return n vectors near a direction. ``weights`` give it by axis, such as ``_0=1.0, _3=0.5``."""
    made = np.random.default_rng(seed).normal(scale=spread, size=(n, DIM))
    for axis, weight in weights.items():
        made[:, int(axis[1:])] += weight
    return as_vectors(made)


def pet(*clusters: FloatMatrix, origins: list[Origin] | None = None) -> PetState:
    """Return a pet with these clusters and four clusters of other subjects."""
    others = [subject(12, 50 + axis, **{f"_{axis}": 1.0}) for axis in range(10, 14)]
    labels = [number for number, members in enumerate([*clusters, *others], start=1) for _ in members]
    given = None if origins is None else [*origins, *[Origin.CORE] * (len(labels) - len(origins))]
    return pet_state(labels, np.vstack([*clusters, *others]), origins=given)


def asked(state: PetState, history: list[HistoryEntry] | None = None) -> list[Suggestion]:
    return list(suggest(state, history or [], limit=100).suggestions)


def kinds(state: PetState, history: list[HistoryEntry] | None = None) -> list[str]:
    return [one.kind for one in asked(state, history)]


def no_past(_: PetState) -> Past:
    raise AssertionError("only a restore reads the past")


def answer(state: PetState, reply: Reply) -> tuple[PetState, Change]:
    """Return the pet after a reply, and the change that was committed."""
    request = VERBS[reply.verb].from_kwargs({**reply.body, "requested_by": "ada"})
    operation = Operation("1", AT, ClusterSettings(), history=list, past=no_past)
    change, _ = request.plan(state, operation)
    return follow(state, change, version="next"), request.noted(change)


def two_looks() -> PetState:
    """Return a pet in which clusters 1 and 2 show one subject in two appearances."""
    return pet(subject(12, 1, _0=1.0, _1=0.4), subject(12, 2, _0=1.0, _1=-0.4))


def mixed() -> PetState:
    """Return a pet whose cluster 1 holds fifteen items of a subject, m0 to m14, and nine of another."""
    return pet(np.vstack([subject(15, 1, _0=1.0, _1=0.9), subject(9, 2, _0=1.0, _1=-0.9)]))


def with_stranger() -> PetState:
    """Return a pet in which m12 was absorbed into cluster 1, although it resembles cluster 2 more."""
    cluster = np.vstack([subject(12, 1, _0=1.0), subject(1, 2, _0=0.5, _10=0.9, _20=0.6)])
    return pet(cluster, origins=[Origin.CORE] * 12 + [Origin.ABSORBED])


def test_yes_to_the_same_subject_question_merges_the_clusters() -> None:
    state = two_looks()
    (question,) = asked(state)

    after, change = answer(state, question.yes)

    assert (question.kind, question.cluster_ids) == ("same_subject", (ONE, TWO))
    assert [len(side) for side in question.sides] == [4, 4]
    assert np.count_nonzero(after.labels == ONE) == 24
    assert (change.summary["suggestion"], change.summary["answer"]) == ("same_subject", "yes")
    assert kinds(after) == []


def test_same_subject_question_is_not_asked_again_after_no() -> None:
    state = two_looks()
    (question,) = asked(state)

    after, change = answer(state, question.no)

    assert after.labels.tolist() == state.labels.tolist()
    assert change.summary["answer"] == "no"
    assert asked(after) == []


def test_yes_to_the_two_subjects_question_splits_the_cluster() -> None:
    state = mixed()
    (question,) = asked(state)

    after, _ = answer(state, question.yes)

    assert (question.kind, question.cluster_ids) == ("two_subjects", (ONE,))
    assert np.flatnonzero(after.labels == state.next_cluster).tolist() == list(range(15, 24))


def test_two_subjects_question_is_not_asked_again_after_no() -> None:
    state = mixed()
    (question,) = asked(state)

    after, _ = answer(state, question.no)

    assert after.labels.tolist() == state.labels.tolist()
    assert asked(after) == []


def test_stranger_leaves_after_yes_and_is_no_longer_doubtful_after_no() -> None:
    state = with_stranger()
    question = next(one for one in asked(state) if one.kind == "stranger")

    excluded, _ = answer(state, question.yes)
    confirmed, _ = answer(state, question.no)

    assert question.sides[0] == (MediaId("m12"),)
    assert excluded.labels[12] == -1
    assert confirmed.labels[12] == ONE
    for after in (excluded, confirmed):
        assert "m12" not in {one.sides[0][0] for one in asked(after) if one.kind == "stranger"}
        assert MediaId("m12") not in {item.media_id for item in doubtful(after, None, limit=500).items}


def test_locked_cluster_gets_no_stranger_or_two_subjects_question() -> None:
    for state in (mixed(), with_stranger()):
        question = next(one for one in asked(state) if one.cluster_ids == (ONE,))

        locked, _ = answer(state, Reply("lock", {"pet_id": 1, "cluster_ids": [ONE]}))

        assert question.suggestion_id not in {one.suggestion_id for one in asked(locked)}


def test_doubtful_items_are_sorted_least_certain_first() -> None:
    state = with_stranger()

    of_pet = doubtful(state, None, limit=3).items
    of_cluster = doubtful(state, TWO, limit=500).items

    assert of_pet[0].media_id == MediaId("m12")
    assert (of_pet[0].origin, of_pet[0].cluster_id, of_pet[0].second_cluster_id) == ("absorbed", ONE, TWO)
    assert [one.probability for one in of_pet] == sorted((one.probability for one in of_pet), reverse=True)
    assert {one.cluster_id for one in of_cluster} == {TWO}
    assert len(of_cluster) == 12


def entry(revision: int, kind: str, **summary: object) -> HistoryEntry:
    return HistoryEntry(revision, kind, AT, "ada", summary)


def test_three_no_answers_pause_a_kind_of_question_until_a_recluster() -> None:
    state = two_looks()
    no = [entry(revision, "keep_apart", suggestion="same_subject", answer="no") for revision in (9, 8, 7)]
    other = entry(10, "place", suggestion="stranger", answer="no")
    yes = entry(11, "merge", suggestion="same_subject", answer="yes")

    paused = suggest(state, [other, *no], limit=10)

    assert (paused.suggestions, paused.paused) == ((), ("same_subject",))
    assert kinds(state, no[:2]) == ["same_subject"]
    assert kinds(state, [yes, *no]) == ["same_subject"]
    assert kinds(state, [entry(12, "recluster"), *no]) == ["same_subject"]


def test_limit_keeps_the_suggestions_with_the_highest_gain() -> None:
    state = pet(
        subject(12, 1, _0=1.0, _1=0.4),
        subject(12, 2, _0=1.0, _1=-0.4),
        np.vstack([subject(30, 3, _4=1.0, _5=0.9), subject(20, 4, _4=1.0, _5=-0.9)]),
    )

    gains = [one.gain for one in asked(state)]

    assert [one.kind for one in suggest(state, [], limit=1).suggestions] == ["two_subjects"]
    assert len(gains) > 1
    assert gains == sorted(gains, reverse=True)


def test_pet_without_clusters_has_no_questions() -> None:
    state = pet_state([-1] * 3, subject(3, 1, _0=1.0))

    assert asked(state) == []
    assert doubtful(state, None, limit=10).items == ()


def test_correction_that_answers_another_question_is_refused() -> None:
    body = {"pet_id": 1, "cluster_ids": [1, 2], "suggestion": "stranger"}

    with pytest.raises(InvalidInput) as refused:
        VERBS["merge"].from_kwargs(body)

    assert (refused.value.field, refused.value.hint) == ("suggestion", "send one of: same_subject")
