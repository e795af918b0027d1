"""Tests that errors end with a hint and survive pickling."""

from __future__ import annotations

import pickle

import pytest

from sploot_cluster.errors import (
    ClusterError,
    InvalidInput,
    PetClaimed,
    PetTooLarge,
    RevisionConflict,
    StoreUnavailable,
    UnreadablePet,
)

REFUSALS = [
    InvalidInput("dim", "is 3", "send 4"),
    RevisionConflict(pet=42, expected=3, current=4),
    PetClaimed(pet=42, revision=4, for_ms=1_500),
    StoreUnavailable(doing="load pet 42", problem="ConnectionError: refused"),
    PetTooLarge(pet=42, n_media=262_144),
    UnreadablePet(pet=42, problem="3 media by count, 2 by name"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: type(refusal).__name__)
def test_error_survives_pickling_unchanged(refusal: ClusterError) -> None:
    copy = pickle.loads(pickle.dumps(refusal))

    assert type(copy) is type(refusal)
    assert str(copy) == str(refusal)
    assert vars(copy) == vars(refusal)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: type(refusal).__name__)
def test_error_message_ends_with_a_hint(refusal: ClusterError) -> None:
    problem, _, hint = str(refusal).partition("; ")

    assert problem
    assert hint


def test_claimed_pet_is_retried_like_a_revision_conflict() -> None:
    assert issubclass(PetClaimed, RevisionConflict)
    assert "claimed by another change for at most 1500 ms" in str(PetClaimed(pet=42, revision=4, for_ms=1_500))
