"""Types of numbers in requests: 64-bit ids, which many JSON parsers round, and durations.

An id is sent as a JSON number or as its decimal digits in a string, and has exactly one spelling: no sign, leading
zero, space or fraction. Strings are for callers whose numbers are doubles. In JavaScript, for example, 9007199254740993
silently becomes 9007199254740992, the id of a different pet. Responses contain exact JSON numbers.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from sploot_cluster.fields import ID, Kind, ListOf, Whole, number_of
from sploot_cluster.limits import MAX_INT64
from sploot_cluster.queues import LONGEST_S


def _at_least(lowest: int) -> BeforeValidator:
    def whole(given: object) -> int:
        facts = {"lowest": lowest, "highest": MAX_INT64}
        given = number_of(given)
        if isinstance(given, str):
            raise PydanticCustomError("int64_text", "not the decimal digits of a whole number", facts)
        # in Python, true is an int
        if not isinstance(given, int) or isinstance(given, bool):
            raise PydanticCustomError("int64_type", "not a whole number", facts)
        if not lowest <= given <= MAX_INT64:
            raise PydanticCustomError("int64_range", "out of range", facts)
        return given

    return BeforeValidator(whole)


def _schema(lowest: int) -> dict[str, Any]:
    return {"type": "integer", "format": "int64", "minimum": lowest, "maximum": MAX_INT64}


_NUMBER_OR_TEXT: Final[dict[str, Any]] = {
    "anyOf": [
        # FastAPI converts the bounds of body fields to doubles, which can represent 2**63, but not the highest id,
        # which is 1 less
        {"type": "integer", "format": "int64", "minimum": 1, "exclusiveMaximum": 2**63},
        {"type": "string", "format": "int64", "pattern": "^[1-9][0-9]{0,18}$"},
    ]
}

# An id in a body: a number or a string.
IdInBody = Annotated[int, _at_least(1), WithJsonSchema(_NUMBER_OR_TEXT)]

# An id in a path or query, where all values are strings.
IdInAddress = Annotated[int, _at_least(1), WithJsonSchema(_schema(1))]
RevisionInAddress = Annotated[int, _at_least(0), WithJsonSchema(_schema(0))]

Seconds = Annotated[float, Field(ge=0, le=LONGEST_S, allow_inf_nan=False)]


def from_digits(kind: Kind[Any], given: object) -> object:
    """Return a body's field with decimal strings converted to numbers, so that its kind can check it."""
    if isinstance(kind, Whole):
        return number_of(given)
    if isinstance(kind, ListOf) and isinstance(given, list):
        return [from_digits(kind.of, entry) for entry in given]
    return given


def schema_in_body(kind: Kind[Any]) -> dict[str, Any]:
    """Return the JSON Schema of a field in a body, where ids may be strings."""
    if kind == ID:
        return _NUMBER_OR_TEXT
    if isinstance(kind, ListOf):
        return kind.schema() | {"items": schema_in_body(kind.of)}
    return kind.schema()
