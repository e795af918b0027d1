"""The broker's errors can be passed between processes."""

from __future__ import annotations

import pickle

import pytest

from broker import InvalidField, InvalidMessage, InvalidOption, SettingsError, UndecodableEntry

PARTS = ("priority", "is -1", "set 0 or more")


@pytest.mark.parametrize(
    "error",
    [
        *(kind(*PARTS) for kind in (InvalidOption, SettingsError, UndecodableEntry)),
        InvalidMessage(InvalidField(*PARTS), message_id="m-1"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_keeps_its_field_problem_and_hint_when_pickled(error: InvalidField) -> None:
    again = pickle.loads(pickle.dumps(error))

    assert (type(again), str(again)) == (type(error), str(error))
    assert (again.field, again.problem, again.hint) == PARTS
    assert str(error).endswith("priority: is -1; set 0 or more")
