"""Numbers that callers send: ids of 64 bits, which many JSON readers round, and durations.

An id is a JSON number or its decimal digits as text, both within 64 bits, and has one spelling: no sign, no leading
zero, no space, no fraction. Text is for callers whose numbers are doubles, such as JavaScript, where 9007199254740993
silently becomes 9007199254740992, another pet. Answers hold JSON numbers, written exactly.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from sploot_cluster.queues import LONGEST_S

MAX_INT64: Final = 2**63 - 1

_DIGITS: Final = re.compile(r"0|[1-9][0-9]{0,18}")


def _at_least(lowest: int) -> BeforeValidator:
    def whole(given: object) -> int:
        facts = {"lowest": lowest, "highest": MAX_INT64}
        if isinstance(given, str):
            # int() takes " 42", "4_2" and digits of other scripts too
            if not _DIGITS.fullmatch(given):
                raise PydanticCustomError("int64_text", "not the decimal digits of a whole number", facts)
            given = int(given)
        # true is an int to Python
        elif not isinstance(given, int) or isinstance(given, bool):
            raise PydanticCustomError("int64_type", "not a whole number", facts)
        if not lowest <= given <= MAX_INT64:
            raise PydanticCustomError("int64_range", "out of range", facts)
        return given

    return BeforeValidator(whole)


def _schema(lowest: int) -> dict[str, Any]:
    return {"type": "integer", "format": "int64", "minimum": lowest, "maximum": MAX_INT64}


_NUMBER_OR_TEXT: Final[dict[str, Any]] = {
    "anyOf": [
        # FastAPI writes the bounds of a body as doubles, of which 2**63 is one and the highest id is not
        {"type": "integer", "format": "int64", "minimum": 1, "exclusiveMaximum": 2**63},
        {"type": "string", "format": "int64", "pattern": "^[1-9][0-9]{0,18}$"},
    ]
}

# In a body: a number, or text.
IdInBody = Annotated[int, _at_least(1), WithJsonSchema(_NUMBER_OR_TEXT)]

# In a path or a query, where everything is text.
IdInAddress = Annotated[int, _at_least(1), WithJsonSchema(_schema(1))]
RevisionInAddress = Annotated[int, _at_least(0), WithJsonSchema(_schema(0))]

Seconds = Annotated[float, Field(ge=0, le=LONGEST_S, allow_inf_nan=False)]
