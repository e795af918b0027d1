"""The messages between producers and workers: names, fields, and the checks of every field.

A message that passes is a frozen value and needs no further checks; otherwise ``InvalidInput`` gives the field, the
problem and a hint, and never the embedding itself. Producers check with the same code before they send. The messages of
corrections are the requests of ``sploot_cluster.decide.corrections``.
Loads only the standard library and modules of ``sploot_cluster`` that do the same, because producers have no numpy.
"""

from __future__ import annotations

import numbers
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Final, Protocol, Self
from uuid import uuid4

from sploot_cluster.decide.corrections import VERBS
from sploot_cluster.decide.corrections.base import UNKNOWN_REQUESTER
from sploot_cluster.errors import InvalidInput
from sploot_cluster.fields import ID, Checked, Text, checked, given
from sploot_cluster.limits import MAX_INT64, MAX_MODEL, MAX_TEXT
from sploot_cluster.printable import UNPRINTABLE
from tasks.encodings import ENCODINGS, MAX_DIM, MIN_DIM, Encoding, check_values, to_base64, to_f32le, values_of
from tasks.trace_context import FORM_OF_TRACEPARENT

# -- names -------------------------------------------------------------------------------------------------------------

NAMESPACE: Final = "streams"
GROUP: Final = "cluster-workers"

EMBEDDING_INGESTED: Final = "embedding.ingested"
CLUSTER_FEEDBACK: Final = "cluster.feedback"
CLUSTER_RECLUSTER: Final = "cluster.recluster"
CLUSTER_MAINTENANCE: Final = "cluster.maintenance"
QUEUES: Final = (EMBEDDING_INGESTED, CLUSTER_FEEDBACK, CLUSTER_RECLUSTER, CLUSTER_MAINTENANCE)

CLUSTER_EMBEDDING: Final = "cluster_embedding"
RECLUSTER_PET: Final = "recluster_pet"
PREVIEW_RECLUSTER: Final = "preview_recluster"
EXPORT_PENDING_JOBS: Final = "export_pending_jobs"
EXPORT_STREAM_LAG: Final = "export_stream_lag"
EXPORT_MEDIA_TOTALS: Final = "export_media_totals"


def stream_of(queue: str) -> str:
    """Return the name of a queue's stream, as used in the runbook's commands."""
    return f"{NAMESPACE}:{queue}"


# -- bounds ------------------------------------------------------------------------------------------------------------

SCHEMA: Final = "embedding.ingested/1"

# The requester of what no person asked for.
MACHINE: Final = "machine"

_DECIMAL: Final = re.compile(rb"(0|[1-9][0-9]{0,18})")
_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:+-]*@[A-Za-z0-9][A-Za-z0-9._/:+-]*")
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


# -- messages ----------------------------------------------------------------------------------------------------------


class Contract(Protocol):
    """A kind of message: its actor, and its form in Dramatiq's JSON. ``QUEUE_OF`` has the queue of its actor."""

    actor_name: ClassVar[str]

    @property
    def pet_id(self) -> int: ...

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> Self: ...

    def to_kwargs(self) -> dict[str, Any]: ...


@checked
class ReclusterPet(Checked):
    """A recluster of a pet. At most one waits per pet.

    Attributes:
        requested_by: the requester, for the pet's history.
        reason: for logs and the job's status; may be empty.
    """

    actor_name: ClassVar[str] = RECLUSTER_PET

    pet_id: int = given(ID, "Id of the pet.", 42)
    requested_by: str = given(Text(), "The requester, for the history.", "ada", default=UNKNOWN_REQUESTER)
    reason: str = given(Text(shortest=0), "The reason, for the job's status and the logs.", "", default="")

    @property
    def unique_key(self) -> str:
        return f"recluster:{self.pet_id}"


@checked
class PreviewRecluster(Checked):
    """A preview of a recluster, kept to be applied. At most one waits per pet.

    Attributes:
        requested_by: the requester, for the logs.
    """

    actor_name: ClassVar[str] = PREVIEW_RECLUSTER

    pet_id: int = given(ID, "Id of the pet.", 42)
    requested_by: str = given(Text(), "The requester, for the logs.", "ada", default=UNKNOWN_REQUESTER)

    @property
    def unique_key(self) -> str:
        return f"preview:{self.pet_id}"


@dataclass(frozen=True, slots=True)
class EmbeddingIngested:
    """The event that an item was embedded.

    Attributes:
        media_id: the producer's id of the item; the same item again changes nothing.
        model: ``name@version`` of the embedding model.
        embedding: its values as little-endian float32, whatever form they were sent in.
        event_id: the producer's id of this event.
        occurred_at: RFC 3339 time, as sent by the producer.
        traceparent: W3C Trace Context of the upload.
    """

    actor_name: ClassVar[str] = CLUSTER_EMBEDDING

    pet_id: int
    media_id: str
    model: str
    embedding: bytes = field(repr=False)
    event_id: str = field(default_factory=lambda: str(uuid4()))
    occurred_at: str | None = None
    traceparent: str | None = None

    def __post_init__(self) -> None:
        _put(self, pet_id=_pet_id(self.pet_id))
        _text("media_id", self.media_id)
        _text("event_id", self.event_id)
        _check_model(self.model)
        if self.occurred_at is not None:
            _check_time(self.occurred_at)
        if self.traceparent is not None and not _matches(FORM_OF_TRACEPARENT, self.traceparent):
            raise InvalidInput(
                "traceparent", "is not a W3C traceparent", "send 00-<32 hex>-<16 hex>-<2 hex>, or leave it out"
            )
        check_values(self.embedding)

    @property
    def dim(self) -> int:
        return len(self.embedding) // 4

    def vector(self) -> array[float]:
        """Return the values as float32 in this machine's byte order; numpy takes the array without a copy."""
        return values_of(self.embedding)

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """Return the event of a Python caller's fields: the attributes of this class, ``embedding`` and ``encoding``.

        ``embedding`` is a sequence of numbers; an object with the buffer protocol, such as a one-dimensional numpy
        array; ``f32le`` or ``f16le`` bytes; or ``base64-f32le`` or ``json`` text. ``encoding`` names the encoding of
        bytes or text; it is optional for ``f32le`` bytes.

        Raises:
            InvalidInput: names the first field that is unknown, missing or invalid.
        """
        _check_names(
            fields,
            known=("pet_id", "media_id", "model", "embedding", "encoding", "event_id", "occurred_at", "traceparent"),
            required=("pet_id", "media_id", "model", "embedding"),
        )
        encoding = fields.pop("encoding", None)
        fields["embedding"] = to_f32le(fields["embedding"], None if encoding is None else _encoding(encoding))
        return cls(**fields)

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> Self:
        """Return the event of a Dramatiq message, whose embedding is base64 text, JSON text or a list of numbers.

        Raises:
            InvalidInput: names the first field that is unknown, missing or invalid.
        """
        _check_names(kwargs, known=_EVENT_FIELDS, required=[name for name in _REQUIRED if name != "schema"])
        _check_schema(kwargs.get("schema", SCHEMA))
        dim = _whole("dim", kwargs["dim"], lowest=MIN_DIM, highest=MAX_DIM)
        encoding = _encoding(kwargs["encoding"])
        if encoding in ("f32le", "f16le"):
            raise InvalidInput("encoding", f"{encoding} is bytes, which JSON cannot hold", "send base64-f32le")
        embedding = kwargs["embedding"]
        if not isinstance(embedding, (str, list) if encoding == "json" else str):
            raise InvalidInput("embedding", f"is {_kind(embedding)}", f"send {encoding} text")
        return cls(
            pet_id=kwargs["pet_id"],
            media_id=kwargs["media_id"],
            model=kwargs["model"],
            embedding=_of_length(dim, to_f32le(embedding, encoding)),
            event_id=kwargs["event_id"],
            occurred_at=kwargs.get("occurred_at"),
            traceparent=kwargs.get("traceparent"),
        )

    @classmethod
    def from_fields(cls, fields: Mapping[bytes, bytes]) -> Self:
        """Return the event of a flat stream entry, from a producer in any language.

        Raises:
            InvalidInput: names the first field that is unknown, missing or invalid.
        """
        named = {_name(name): value for name, value in fields.items()}
        _check_names(named, known=_EVENT_FIELDS, required=_REQUIRED)
        embedding = named.pop("embedding")
        text = {name: _utf8(name, value) for name, value in named.items()}
        _check_schema(text["schema"])
        dim = _whole("dim", _decimal("dim", named["dim"]), lowest=MIN_DIM, highest=MAX_DIM)
        encoding = _encoding(text["encoding"])
        return cls(
            pet_id=_decimal("pet_id", named["pet_id"]),
            media_id=text["media_id"],
            model=text["model"],
            embedding=_of_length(dim, to_f32le(embedding, encoding)),
            event_id=text["event_id"],
            occurred_at=text.get("occurred_at"),
            traceparent=text.get("traceparent"),
        )

    def to_kwargs(self) -> dict[str, Any]:
        """Return the event as keyword arguments of JSON values, with the embedding as base64-f32le."""
        kwargs: dict[str, Any] = {
            "schema": SCHEMA,
            "event_id": self.event_id,
            "pet_id": self.pet_id,
            "media_id": self.media_id,
            "model": self.model,
            "dim": self.dim,
            "encoding": "base64-f32le",
            "embedding": to_base64(self.embedding),
        }
        if self.occurred_at is not None:
            kwargs["occurred_at"] = self.occurred_at
        if self.traceparent is not None:
            kwargs["traceparent"] = self.traceparent
        return kwargs


# Every actor and its queue. A message that names another queue is refused: permission to write to one queue must not
# allow the work of another.
QUEUE_OF: Final[Mapping[str, str]] = {
    EmbeddingIngested.actor_name: EMBEDDING_INGESTED,
    **{request.actor_name: CLUSTER_FEEDBACK for request in VERBS.values()},
    **dict.fromkeys((RECLUSTER_PET, PREVIEW_RECLUSTER), CLUSTER_RECLUSTER),
    **dict.fromkeys((EXPORT_PENDING_JOBS, EXPORT_STREAM_LAG, EXPORT_MEDIA_TOTALS), CLUSTER_MAINTENANCE),
}

_REQUIRED: Final = ("schema", "event_id", "pet_id", "media_id", "model", "dim", "encoding", "embedding")
_EVENT_FIELDS: Final = (*_REQUIRED, "occurred_at", "traceparent")


# -- checks of fields --------------------------------------------------------------------------------------------------


def _check_names(given: Mapping[str, object], *, known: Sequence[str], required: Sequence[str]) -> None:
    for name in required:
        if name not in given:
            raise InvalidInput(name, "is missing", "send it")
    for name in given:
        if name not in known:
            raise InvalidInput(_shown(name, quoted=False), "is not a field", f"send only: {', '.join(known)}")


def _check_schema(schema: object) -> None:
    if schema != SCHEMA:
        raise InvalidInput("schema", f"{_shown(schema)} is unknown", f"send {SCHEMA}")


def _pet_id(value: object) -> int:
    return _whole("pet_id", value, lowest=1, highest=MAX_INT64)


def _whole(name: str, value: object, *, lowest: int, highest: int) -> int:
    # numpy's integers are Integral too, and so is True
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidInput(name, f"is {_kind(value)}, not a whole number", f"send {lowest} to {highest}")
    number = int(value)
    if not lowest <= number <= highest:
        raise InvalidInput(name, "is out of range", f"send {lowest} to {highest}")
    return number


def _decimal(name: str, value: bytes) -> int:
    if not _DECIMAL.fullmatch(value):
        raise InvalidInput(
            name, f"{_shown(value.decode(errors='replace'))} is not a decimal number", "send digits, e.g. 42"
        )
    return int(value)


def _text(name: str, value: object, *, shortest: int = 1) -> str:
    if not isinstance(value, str):
        raise InvalidInput(name, f"is {_kind(value)}, not text", f"send {shortest} to {MAX_TEXT} characters")
    if not shortest <= len(value) <= MAX_TEXT:
        raise InvalidInput(name, f"has {len(value)} characters", f"send {shortest} to {MAX_TEXT}")
    if found := UNPRINTABLE.search(value):
        raise InvalidInput(
            name,
            f"contains the unprintable character U+{ord(found[0]):04X}",
            "send printable text",
        )
    return value


def _check_model(value: object) -> None:
    if not isinstance(value, str) or len(value) > MAX_MODEL or not _MODEL.fullmatch(value):
        raise InvalidInput(
            "model",
            f"{_shown(value)} is not name@version",
            f"send at most {MAX_MODEL} letters, digits and ._/:+- with one @, e.g. clip-vit-b32@1",
        )


def _check_time(value: object) -> None:
    hint = "send RFC 3339 with a zone, e.g. 2026-01-31T12:00:00Z"
    if not isinstance(value, str) or not _RFC3339.fullmatch(value):
        raise InvalidInput("occurred_at", f"{_shown(value)} is not RFC 3339", hint)
    try:
        # 60 is a leap second, which RFC 3339 allows and datetime does not
        datetime.fromisoformat(re.sub(r"(?<=:\d\d:)60", "59", value.upper()))
    except ValueError:
        raise InvalidInput("occurred_at", f"{_shown(value)} is not a valid date-time", hint) from None


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT and pattern.fullmatch(value) is not None


def _name(name: bytes) -> str:
    return name.decode("utf-8", errors="backslashreplace")


def _utf8(name: str, value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise InvalidInput(name, f"is not UTF-8 at byte {problem.start}", "send text as UTF-8") from None


def _shown(value: object, *, quoted: bool = True) -> str:
    """Return a value for an error text: short, and on one line."""
    text = UNPRINTABLE.sub("?", str(value))
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return repr(text) if quoted else text


def _kind(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _put(task: object, **fields: object) -> None:
    for name, value in fields.items():
        object.__setattr__(task, name, value)


def _encoding(value: object) -> Encoding:
    if value not in ENCODINGS:
        raise InvalidInput("encoding", f"{_shown(value)} is unknown", f"send one of: {', '.join(ENCODINGS)}")
    return value


def _of_length(dim: int, embedding: bytes) -> bytes:
    if len(embedding) != 4 * dim:
        has = f"{len(embedding) / 4:g} values"
        raise InvalidInput("embedding", f"has {has}, but dim is {dim}", "send exactly dim values")
    return embedding
