"""The event “an item was embedded”: one table of its fields, and the forms in which producers send it.

Parsing, checks, the JSON Schema of docs/wire and the HTTP body derive from the table, so a new field needs only one
declaration in :class:`EmbeddingIngested`. An error names the field, the problem and a hint, and never contains the
embedding. In every form, unknown fields are ignored, so that producers can send a new field before all workers know it.
A field that is None counts as left out.

This module imports only the standard library and modules that do the same, because producers use it too.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, Self, cast
from uuid import uuid4

from sploot_cluster.encodings import ENCODINGS, MAX_BYTES, Encoding, check_values, to_base64, to_f32le, values_of
from sploot_cluster.errors import InvalidInput
from sploot_cluster.fields import (
    FLAG,
    ID,
    Field,
    Flag,
    Matching,
    OneOf,
    Text,
    Whole,
    fields_of,
    given,
    missing,
    number_of,
    required_of,
    shown,
)
from sploot_cluster.limits import MAX_DIM, MAX_MODEL, MIN_DIM

SCHEMA: Final = "embedding.ingested/1"

# -- kinds of fields ---------------------------------------------------------------------------------------------------

NAME: Final = Text()
MODEL: Final = Matching(
    re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:+-]*@[A-Za-z0-9][A-Za-z0-9._/:+-]*"),
    "name@version",
    f"send at most {MAX_MODEL} letters, digits and ._/:+- with one @, e.g. clip-vit-b32@1",
    longest=MAX_MODEL,
)

_TRACE_IDS: Final = r"(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
W3C_TRACEPARENT: Final = Matching(
    # W3C Trace Context: version ff and all-zero ids are invalid; versions after 00 may append further fields
    re.compile(rf"00-{_TRACE_IDS}|(?!00|ff)[0-9a-f]{{2}}-{_TRACE_IDS}(-.*)?"),
    "a W3C traceparent",
    "send 00-<32 hex>-<16 hex>-<2 hex>, or leave it out",
)


@dataclass(frozen=True, slots=True)
class _Time(Matching):
    """An RFC 3339 date-time."""

    def check(self, name: str, value: object) -> str:
        text = Matching.check(self, name, value)
        try:
            _time_of(text)
        except (ValueError, OverflowError):
            raise InvalidInput(name, f"{shown(text)} is not a valid date-time", self.hint) from None
        return text


def _time_of(rfc3339: str) -> datetime:
    # second 60 is a leap second, which RFC 3339 allows and datetime does not
    return datetime.fromisoformat(re.sub(r"(?<=:[0-9]{2}:)60", "59", rfc3339.upper())).astimezone(UTC)


TIME: Final = _Time(
    re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})"),
    "RFC 3339",
    "send RFC 3339 with a zone, e.g. 2026-01-31T12:00:00Z",
)


@dataclass(frozen=True, slots=True)
class _Values:
    """The values of an embedding. ``check`` returns little-endian float32. Text is refused, as it needs an encoding."""

    def check(self, name: str, value: object) -> bytes:
        f32le = to_f32le(value)
        check_values(f32le)
        return f32le

    def schema(self) -> dict[str, Any]:
        numbers = {"type": "array", "items": {"type": "number"}, "minItems": MIN_DIM, "maxItems": MAX_DIM}
        return {"anyOf": [numbers, {"type": "string", "maxLength": MAX_BYTES}]}


# -- the event ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EmbeddingIngested:
    """The event “an item was embedded”. ``embedding`` holds the vector's values as little-endian float32."""

    actor_name: ClassVar[str] = "cluster_embedding"

    pet_id: int = given(ID, "Id of the pet.", 42)
    media_id: str = given(
        NAME,
        "The producer's id of the item. Sending the same item again changes nothing, unless `replace` is true.",
        "beach.jpg",
    )
    model: str = given(
        MODEL, "name@version of the embedding model. Vectors of different models are never compared.", "clip-vit-b32@1"
    )
    embedding: bytes = given(
        _Values(),
        "Finite numbers, not all zero, as a list or as text in `encoding`. Only the direction of the vector counts.",
        [0.1, -0.25, 1.5],
        repr=False,
    )
    event_id: str = given(
        NAME,
        "The producer's id of the event, and the id of its job.",
        "0b5c7e0e-8d3e-4d1c-9c55-1f4f0f6a7d10",
        default_factory=lambda: str(uuid4()),
    )
    occurred_at: str | None = given(
        TIME,
        "The producer's time of the item, such as when it was uploaded: RFC 3339 with a time zone. Listings show it "
        "and can be sorted by it. It does not affect clusters.",
        "2026-01-31T12:00:00Z",
        default=None,
    )
    replace: bool | None = given(
        FLAG,
        "Whether the embedding replaces that of an item that the pet has, because the picture was edited. The item "
        "keeps its corrections. If none names it, it is assigned again. For a new item, this makes no difference.",
        True,
        default=None,
    )
    traceparent: str | None = given(
        W3C_TRACEPARENT,
        "W3C Trace Context of the upload.",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        default=None,
    )

    def __post_init__(self) -> None:
        for name, check, may_be_none in _HELD:
            value = getattr(self, name)
            if value is None and may_be_none:
                continue
            checked = check(name, value)
            if checked is not value:
                object.__setattr__(self, name, checked)

    @property
    def dim(self) -> int:
        return len(self.embedding) // 4

    @property
    def time(self) -> datetime | None:
        """The time of ``occurred_at``, in UTC."""
        return None if self.occurred_at is None else _time_of(self.occurred_at)

    def vector(self) -> array[float]:
        """Return the values as float32 in this machine's byte order. numpy can use the array without a copy."""
        return values_of(self.embedding)

    @classmethod
    def of(cls, /, **sent: Any) -> Self:
        """Return the event from a Python caller's arguments or a JSON object. Fields without a default are required.

        ``embedding`` is a sequence of numbers; an object with the buffer protocol, such as a one-dimensional numpy
        array; ``f32le`` or ``f16le`` bytes; or ``base64-f32le`` or ``json`` text. ``encoding`` names the encoding of
        bytes or text; it is optional for ``f32le`` bytes.

        Raises:
            InvalidInput: names the first field that is missing or invalid.
        """
        return cls._of(sent, required_of(cls))

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> Self:
        """Return the event from a Dramatiq message. Its embedding is base64 text, JSON text or a list of numbers.

        Raises:
            InvalidInput: names the first field that is missing or invalid.
        """
        return cls._of(kwargs, _IN_MESSAGES)

    @classmethod
    def from_fields(cls, entry: Mapping[bytes, bytes]) -> Self:
        """Return the event from a flat stream entry, which a producer in any language may have written.

        Raises:
            InvalidInput: names the first field that is missing or invalid.
        """
        sent = {name: read(name, value) for name, key, read in _FLAT if (value := entry.get(key)) is not None}
        return cls._of(sent, REQUIRED)

    @classmethod
    def problems(cls, sent: Mapping[str, Any]) -> list[InvalidInput]:
        """Return an error for each missing or invalid argument of ``of``, which itself raises only the first."""
        found = {name: missing(name) for name in required_of(cls) if sent.get(name) is None}
        for name, field in FIELDS.items():
            if (value := sent.get(name)) is not None:
                try:
                    field.kind.check(name, value if name != "embedding" else _decoded(sent))
                except InvalidInput as refused:
                    found.setdefault(refused.field, refused)
        return list(found.values())

    def to_kwargs(self) -> dict[str, Any]:
        """Return the event as keyword arguments with JSON values, and the embedding as base64-f32le."""
        held = {name: value for name, _, _ in _HELD if (value := getattr(self, name)) is not None}
        written = {"encoding": "base64-f32le", "embedding": to_base64(self.embedding)}
        return {"schema": SCHEMA, **held, "dim": self.dim, **written}

    def to_fields(self) -> dict[bytes, bytes]:
        """Return the event as a flat stream entry, with the embedding as f32le."""
        written = self.to_kwargs() | {"encoding": "f32le"}
        text = {name.encode(): _word(value).encode() for name, value in written.items()}
        return text | {b"embedding": self.embedding}

    @classmethod
    def _of(cls, sent: Mapping[str, Any], required: Iterable[str]) -> Self:
        for name in required:
            if sent.get(name) is None:
                raise missing(name)
        if (schema := sent.get("schema")) is not None:
            _WRITTEN["schema"].kind.check("schema", schema)
        held = {name: value for name, _, _ in _HELD if (value := sent.get(name)) is not None}
        return cls(**held | {"embedding": _decoded(sent)})


# Fields that describe the written form of an event. An event in memory does not have them.
_WRITTEN: Final[Mapping[str, Field]] = {
    "schema": Field(OneOf((SCHEMA,)), "The format of the event.", SCHEMA),
    "dim": Field(Whole(MIN_DIM, MAX_DIM), "Number of values of the embedding.", 3),
    "encoding": Field(OneOf(ENCODINGS), "Encoding of an embedding sent as text or bytes.", "json"),
}

# All fields in the order of the documentation, and the names of those that a flat entry must have.
FIELDS: Final[Mapping[str, Field]] = {"schema": _WRITTEN["schema"], **fields_of(EmbeddingIngested), **_WRITTEN}
REQUIRED: Final = tuple(name for name in FIELDS if name not in ("occurred_at", "replace", "traceparent"))
_IN_MESSAGES: Final = tuple(name for name in REQUIRED if name != "schema")

_HELD: Final[tuple[tuple[str, Callable[[str, object], object], bool], ...]] = tuple(
    (field.name, fields_of(EmbeddingIngested)[field.name].kind.check, field.default is None)
    for field in fields(EmbeddingIngested)
)


def _decoded(sent: Mapping[str, Any]) -> bytes:
    """Return the embedding of an event as little-endian float32."""
    dim, encoding = sent.get("dim"), sent.get("encoding")
    if dim is not None:
        _WRITTEN["dim"].kind.check("dim", dim)
    if encoding is not None:
        _WRITTEN["encoding"].kind.check("encoding", encoding)
    f32le = to_f32le(sent["embedding"], cast(Encoding, encoding))
    if dim is not None and len(f32le) != 4 * dim:
        raise InvalidInput("embedding", f"has {len(f32le) / 4:g} values, but dim is {dim}", "send exactly dim values")
    return f32le


def _word(value: object) -> str:
    """Decode a value of a flat entry to text."""
    return str(value).lower() if isinstance(value, bool) else str(value)


# -- reading flat entries ----------------------------------------------------------------------------------------------


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise InvalidInput(name, f"is not UTF-8 at byte {problem.start}", "send text as UTF-8") from None


def _number(name: str, value: bytes) -> object:
    return number_of(_text(name, value))


def _flag(name: str, value: bytes) -> object:
    text = _text(name, value)
    return {"true": True, "false": False}.get(text, text)


def _bytes(_: str, value: bytes) -> bytes:
    return value


def _reader(kind: object) -> Callable[[str, bytes], object]:
    match kind:
        case Whole():
            return _number
        case Flag():
            return _flag
        case _Values():
            return _bytes
        case _:
            return _text


_FLAT: Final = tuple((name, name.encode(), _reader(field.kind)) for name, field in FIELDS.items())
