"""The JSON Schema of a flat event, for docs/wire; :mod:`deploy.reference` writes it."""

from __future__ import annotations

import json
from typing import Any, Final

from sploot_cluster.encodings import MAX_BYTES
from sploot_cluster.event import FIELDS, REQUIRED, SCHEMA
from sploot_cluster.fields import Field, Flag, Text, Whole
from sploot_cluster.limits import MAX_INT64

_ABOUT: Final = (
    "One flat entry of the stream streams:embedding.ingested. Every value of a Redis stream is bytes; this schema "
    "describes them as UTF-8 text, and an f32le or f16le embedding, which is binary, as the base64 of its bytes. Other "
    "fields are ignored."
)
_BINARY: Final = (
    "f32le: 4 bytes per value, IEEE 754 single precision, little-endian. f16le: 2 bytes per value, half precision, "
    "little-endian. base64-f32le: RFC 4648 base64 of f32le, with padding, without line breaks."
)
_TEXT_OF_JSON: Final = {"contentMediaType": "application/json", "pattern": r"^\s*\[.*\]\s*$"}
_TEXT_OF_BYTES: Final = {"description": _BINARY, "contentEncoding": "base64", "pattern": "^[A-Za-z0-9+/]+={0,2}$"}


def schema_of_flat_event() -> str:
    """Return the JSON Schema as text."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:sploot:wire:embedding.ingested:1",
        "title": SCHEMA,
        "description": _ABOUT,
        "type": "object",
        "required": list(REQUIRED),
        "properties": {name: _flat(name, field) for name, field in FIELDS.items()},
        "if": {"properties": {"encoding": {"const": "json"}}, "required": ["encoding"]},
        "then": {"properties": {"embedding": _TEXT_OF_JSON}},
        "else": {"properties": {"embedding": _TEXT_OF_BYTES}},
        "$defs": {"name": Text().schema()},
    }
    return json.dumps(schema, indent=2) + "\n"


def _flat(name: str, field: Field) -> dict[str, Any]:
    """Return the schema of a field whose value is written as text."""
    described = {"description": field.description}
    if name == "embedding":
        return described | {"type": "string", "minLength": 1, "maxLength": MAX_BYTES}
    match field.kind:
        case Whole(lowest, highest):
            digits = f"{field.description} {lowest} to {highest} in decimal digits, without sign or leading zeros."
            return {"description": digits, "type": "string", "pattern": f"^({_digits(lowest, highest)})$"}
        case Flag():
            return described | {"type": "string", "enum": ["true", "false"]}
        case Text():
            return described | {"$ref": "#/$defs/name"}
        case kind:
            return described | kind.schema()


def _digits(lowest: int, highest: int) -> str:
    """Return a pattern that matches the decimal numbers from ``lowest``, which has one digit, to ``highest``.

    If ``highest`` is the largest int64, the pattern accepts every number of 19 digits, because the exact bound would
    take 19 alternatives.
    """
    top = str(highest)
    if highest == MAX_INT64:
        return f"[{lowest}-9][0-9]{{0,{len(top) - 1}}}"
    equal_length = [
        f"{top[:at]}[{int(at == 0)}-{int(digit) - 1}]{'[0-9]' * (len(top) - at - 1)}"
        for at, digit in enumerate(top)
        if int(digit) > int(at == 0)
    ]
    return "|".join([f"[{lowest}-9]", f"[1-9][0-9]{{1,{len(top) - 2}}}", *equal_length, top])
