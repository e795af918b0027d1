"""The messages between producers and workers: names, fields, and the checks of every field.

A message that passes is a frozen value and needs no further checks; otherwise ``InvalidInput`` gives the field, the
problem and a hint, and never the embedding itself. Producers check with the same code before they send.
Imports only the standard library and ``sploot_cluster.errors``, because producers have no numpy.
"""

from __future__ import annotations

import dataclasses
import numbers
import re
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Final, Protocol, Self, TypeVar, cast
from uuid import uuid4

from sploot_cluster.errors import InvalidInput
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
MERGE_CLUSTERS: Final = "merge_clusters"
SPLIT_CLUSTER: Final = "split_cluster"
EXCLUDE_MEDIA: Final = "exclude_media"
DISMISS_MEDIA: Final = "dismiss_media"
UNDO_FEEDBACK: Final = "undo_feedback"
RESTORE_REVISION: Final = "restore_revision"
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
MAX_INT64: Final = 2**63 - 1
MAX_TEXT: Final = 256  # characters of a media id, event id or requester
MAX_MODEL: Final = 128
MAX_CLUSTER_IDS: Final = 1_000
MAX_MEDIA_IDS: Final = 10_000

# Requesters that are used when the caller names none.
UNKNOWN_REQUESTER: Final = "unknown"
MACHINE: Final = "machine"

_DECIMAL: Final = re.compile(rb"(0|[1-9][0-9]{0,18})")
_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:+-]*@[A-Za-z0-9][A-Za-z0-9._/:+-]*")
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


# -- messages ----------------------------------------------------------------------------------------------------------


class Contract(Protocol):
    """A kind of message: its actor, its queue, and its form in Dramatiq's JSON."""

    actor_name: ClassVar[str]
    queue_name: ClassVar[str]

    @property
    def pet_id(self) -> int: ...

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> Self: ...

    def to_kwargs(self) -> dict[str, Any]: ...


class _Task:
    """The base of all tasks: their fields are their keyword arguments."""

    __slots__ = ()

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> Self:
        """Return the task of a Dramatiq message.

        Raises:
            InvalidInput: names the first field that is unknown, missing or invalid.
        """
        fields = dataclasses.fields(cast(Any, cls))
        _check_names(
            kwargs,
            known=[f.name for f in fields],
            required=[f.name for f in fields if f.default is dataclasses.MISSING],
        )
        return cls(**kwargs)

    def to_kwargs(self) -> dict[str, Any]:
        """Return the task as keyword arguments of JSON values; ``from_kwargs`` restores it.

        Fields that are None are left out, so that a worker of an older release does not refuse a field unknown to it.
        """
        kwargs = {f.name: getattr(self, f.name) for f in dataclasses.fields(cast(Any, self))}
        given = {name: value for name, value in kwargs.items() if value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


@dataclass(frozen=True, slots=True)
class MergeClusters(_Task):
    """A labeller's merge of clusters.

    Attributes:
        cluster_ids: at least two; duplicates are removed.
        into: the cluster that keeps its id; None leaves the choice to the service.
        requested_by: the labeller, for the pet's history.
        expected_revision: revision that the labeller saw; refused if items have moved since. None: no check.
    """

    actor_name: ClassVar[str] = MERGE_CLUSTERS
    queue_name: ClassVar[str] = CLUSTER_FEEDBACK

    pet_id: int
    cluster_ids: tuple[int, ...]
    into: int | None = None
    requested_by: str = UNKNOWN_REQUESTER
    expected_revision: int | None = None

    def __post_init__(self) -> None:
        ids = _distinct("cluster_ids", self.cluster_ids, _cluster_id, longest=MAX_CLUSTER_IDS)
        if len(ids) < 2:
            raise InvalidInput("cluster_ids", "names fewer than two clusters", "send at least two different ids")
        into = None if self.into is None else _cluster_id("into", self.into)
        if into is not None and into not in ids:
            raise InvalidInput("into", f"cluster {into} is not one of cluster_ids", "send one of them, or leave it out")
        _put(self, pet_id=_pet_id(self.pet_id), cluster_ids=ids, into=into)
        _check_request(self)


@dataclass(frozen=True, slots=True)
class SplitCluster(_Task):
    """A labeller's split of items off a cluster.

    Attributes:
        media_ids: at least one; duplicates are removed.
        requested_by, expected_revision: as in :class:`MergeClusters`.
    """

    actor_name: ClassVar[str] = SPLIT_CLUSTER
    queue_name: ClassVar[str] = CLUSTER_FEEDBACK

    pet_id: int
    cluster_id: int
    media_ids: tuple[str, ...]
    requested_by: str = UNKNOWN_REQUESTER
    expected_revision: int | None = None

    def __post_init__(self) -> None:
        _put(self, pet_id=_pet_id(self.pet_id), cluster_id=_cluster_id("cluster_id", self.cluster_id))
        _put(self, media_ids=_some_media(self.media_ids, "that leave the cluster"))
        _check_request(self)


@dataclass(frozen=True, slots=True)
class ExcludeMedia(_Task):
    """A labeller's exclusion of items from a cluster.

    Attributes:
        media_ids: at least one; duplicates are removed.
        requested_by, expected_revision: as in :class:`MergeClusters`.
    """

    actor_name: ClassVar[str] = EXCLUDE_MEDIA
    queue_name: ClassVar[str] = CLUSTER_FEEDBACK

    pet_id: int
    cluster_id: int
    media_ids: tuple[str, ...]
    requested_by: str = UNKNOWN_REQUESTER
    expected_revision: int | None = None

    def __post_init__(self) -> None:
        _put(self, pet_id=_pet_id(self.pet_id), cluster_id=_cluster_id("cluster_id", self.cluster_id))
        _put(self, media_ids=_some_media(self.media_ids, "that do not belong to the cluster"))
        _check_request(self)


@dataclass(frozen=True, slots=True)
class DismissMedia(_Task):
    """A labeller's dismissal of items, which then belong to no cluster.

    Attributes:
        media_ids: at least one; duplicates are removed.
        requested_by, expected_revision: as in :class:`MergeClusters`.
    """

    actor_name: ClassVar[str] = DISMISS_MEDIA
    queue_name: ClassVar[str] = CLUSTER_FEEDBACK

    pet_id: int
    media_ids: tuple[str, ...]
    requested_by: str = UNKNOWN_REQUESTER
    expected_revision: int | None = None

    def __post_init__(self) -> None:
        _put(self, pet_id=_pet_id(self.pet_id), media_ids=_some_media(self.media_ids, "to dismiss"))
        _check_request(self)


@dataclass(frozen=True, slots=True)
class UndoFeedback(_Task):
    """The undo of a correction.

    Attributes:
        revision: the correction's revision in the pet's history.
        requested_by, expected_revision: as in :class:`MergeClusters`.
    """

    actor_name: ClassVar[str] = UNDO_FEEDBACK
    queue_name: ClassVar[str] = CLUSTER_FEEDBACK

    pet_id: int
    revision: int
    requested_by: str = UNKNOWN_REQUESTER
    expected_revision: int | None = None

    def __post_init__(self) -> None:
        revision = _whole("revision", self.revision, lowest=1, highest=MAX_INT64)
        _put(self, pet_id=_pet_id(self.pet_id), revision=revision)
        _check_request(self)


@dataclass(frozen=True, slots=True)
class RestoreRevision(_Task):
    """The restoration of a pet's labels at a revision; corrections stay in force.

    Attributes:
        revision: any revision in the pet's history.
        requested_by, expected_revision: as in :class:`MergeClusters`.
    """

    actor_name: ClassVar[str] = RESTORE_REVISION
    queue_name: ClassVar[str] = CLUSTER_FEEDBACK

    pet_id: int
    revision: int
    requested_by: str = UNKNOWN_REQUESTER
    expected_revision: int | None = None

    def __post_init__(self) -> None:
        revision = _whole("revision", self.revision, lowest=1, highest=MAX_INT64)
        _put(self, pet_id=_pet_id(self.pet_id), revision=revision)
        _check_request(self)


@dataclass(frozen=True, slots=True)
class ReclusterPet(_Task):
    """A recluster of a pet. At most one waits per pet.

    Attributes:
        requested_by: the requester, for the pet's history.
        reason: for logs and the job's status; may be empty.
    """

    actor_name: ClassVar[str] = RECLUSTER_PET
    queue_name: ClassVar[str] = CLUSTER_RECLUSTER

    pet_id: int
    requested_by: str = UNKNOWN_REQUESTER
    reason: str = ""

    def __post_init__(self) -> None:
        _put(self, pet_id=_pet_id(self.pet_id), requested_by=_text("requested_by", self.requested_by))
        _put(self, reason=_text("reason", self.reason, shortest=0))

    @property
    def unique_key(self) -> str:
        return f"recluster:{self.pet_id}"


@dataclass(frozen=True, slots=True)
class PreviewRecluster(_Task):
    """A preview of a recluster, kept to be applied. At most one waits per pet.

    Attributes:
        requested_by: the requester, for the logs.
    """

    actor_name: ClassVar[str] = PREVIEW_RECLUSTER
    queue_name: ClassVar[str] = CLUSTER_RECLUSTER

    pet_id: int
    requested_by: str = UNKNOWN_REQUESTER

    def __post_init__(self) -> None:
        _put(self, pet_id=_pet_id(self.pet_id), requested_by=_text("requested_by", self.requested_by))

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
    queue_name: ClassVar[str] = EMBEDDING_INGESTED

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
    **{
        contract.actor_name: contract.queue_name
        for contract in (
            MergeClusters,
            SplitCluster,
            ExcludeMedia,
            DismissMedia,
            UndoFeedback,
            RestoreRevision,
            ReclusterPet,
            PreviewRecluster,
            EmbeddingIngested,
        )
    },
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


def _cluster_id(name: str, value: object) -> int:
    return _whole(name, value, lowest=1, highest=MAX_INT64)


def _some_media(media_ids: object, which: str) -> tuple[str, ...]:
    media = _distinct("media_ids", media_ids, _text, longest=MAX_MEDIA_IDS)
    if not media:
        raise InvalidInput("media_ids", "is empty", f"send the items {which}")
    return media


def _check_request(
    task: MergeClusters | SplitCluster | ExcludeMedia | DismissMedia | UndoFeedback | RestoreRevision,
) -> None:
    """Check the fields that all corrections have."""
    expected = task.expected_revision
    if expected is not None:
        expected = _whole("expected_revision", expected, lowest=0, highest=MAX_INT64)
    _put(task, requested_by=_text("requested_by", task.requested_by), expected_revision=expected)


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


_Item = TypeVar("_Item", int, str)


def _distinct(name: str, values: object, check: Callable[[str, object], _Item], *, longest: int) -> tuple[_Item, ...]:
    """Return the checked items in their order, without duplicates."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise InvalidInput(name, f"is {_kind(values)}, not a list", "send a list")
    items = list(values)
    if len(items) > longest:
        raise InvalidInput(name, f"has {len(items)} entries", f"send at most {longest}")
    checked: dict[_Item, None] = {}
    for at, item in enumerate(items):
        try:
            checked[check(name, item)] = None
        except InvalidInput as refused:
            raise InvalidInput(name, f"entry {at} {refused.problem}", refused.hint) from None
    return tuple(checked)


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
