"""Tests that a dataclass has the same public fields with pydantic (the API) and without it (the command line)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import TypeAdapter

from sploot_cluster.answer_fields import INTERNAL, described, public
from sploot_cluster.pet.diff import MovedItem
from sploot_cluster.pet.models import ClusterId, MediaId


@dataclass(frozen=True, slots=True)
class Counted:
    """A record with a public count and an internal field."""

    n: int = field(metadata=described("How many."))
    found_by: str = field(metadata=INTERNAL)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Counted(2**63 - 1, "ada"), {"n": 2**63 - 1}),
        (MovedItem(MediaId("a"), None, ClusterId(2**60)), {"media_id": "a", "from": None, "to": 2**60}),
    ],
)
def test_api_and_command_line_use_the_same_field_names(answer: Any, expected: dict[str, Any]) -> None:
    assert public(answer) == expected
    assert json.loads(TypeAdapter(type(answer)).dump_json(answer, by_alias=True)) == expected


def test_json_schema_contains_the_description_of_a_field() -> None:
    schema = TypeAdapter(Counted).json_schema(mode="serialization")

    assert schema["description"] == "A record with a public count and an internal field."
    assert {name: one["description"] for name, one in schema["properties"].items()} == {"n": "How many."}
