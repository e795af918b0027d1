"""The public form of the dataclasses that the HTTP API and the command line return.

A field's metadata holds its description, and its public name if that is a Python keyword. The metadata has the keys
that pydantic reads, so the API documents and returns these dataclasses as they are. ``public`` applies the same names
without pydantic, which is not installed on workers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

_NAME: Final = "serialization_alias"
_IS_INTERNAL: Final = "exclude"

INTERNAL: Final[Mapping[str, Any]] = {_IS_INTERNAL: True}
"""The metadata of a field that is left out of responses."""


def described(text: str, *, name: str | None = None) -> dict[str, Any]:
    """Return metadata for a field with this description. ``name`` replaces the field's name in responses."""
    return {"description": text} if name is None else {"description": text, _NAME: name}


def public(answer: Any) -> dict[str, Any]:
    """Return the public fields of a dataclass under their public names, without converting values."""
    return {
        one.metadata.get(_NAME, one.name): getattr(answer, one.name)
        for one in dataclasses.fields(answer)
        if not one.metadata.get(_IS_INTERNAL, False)
    }
