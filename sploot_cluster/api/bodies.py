"""Request bodies. Types are strict: ``4.2`` and ``true`` are not pet ids. ``numbers`` defines ids.

The queue checks the rest, such as which models are known and what an embedding may contain, in the same way for all
producers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Final, Unpack

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    WithJsonSchema,
    WrapValidator,
    create_model,
    model_validator,
)

from sploot_cluster.api.numbers import IdInBody, Seconds, from_digits, schema_in_body
from sploot_cluster.api.problems import FieldProblem, InvalidFields, field_problem, field_problems, shown
from sploot_cluster.decide.corrections.base import Request, Signed
from sploot_cluster.errors import InvalidInput
from sploot_cluster.event import FIELDS, EmbeddingIngested
from sploot_cluster.fields import required_of, type_of
from sploot_cluster.limits import MAX_DIM, MAX_TEXT, MIN_DIM
from sploot_cluster.pet.models import PreviewBackend
from sploot_cluster.printable import PRINTABLE_PATTERN
from sploot_cluster.queues import DeadLetterFilter

PetNumber = Annotated[IdInBody, Field(description="Id of the pet.", examples=[42, "9007199254740993"])]
MediaName = Annotated[str, Field(min_length=1, max_length=MAX_TEXT, examples=["beach.jpg"])]


class RepeatedNames(dict[str, Any]):
    """A JSON object in which names were repeated. It holds the last value of each name.

    Attributes:
        repeated: the repeated names, in order of first appearance.
    """

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = tuple(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)


def parsed(body: bytes) -> Any:
    """Return the JSON value of a body. An object with repeated names becomes a :class:`RepeatedNames`.

    Raises:
        json.JSONDecodeError: the body is not JSON.
        UnicodeDecodeError: the body is not UTF-8.
    """
    return json.loads(body, object_pairs_hook=_object)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    return names if len(names) == len(pairs) else RepeatedNames(pairs)


class _Body(BaseModel):
    """A request body: a JSON object in which fields that the subclass does not declare are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_in_our_words(cls, given: Any, check: ModelWrapValidatorHandler[Any]) -> Any:
        return _checked(cls, given, check)


def _checked(body: type[BaseModel], given: Any, check: ModelWrapValidatorHandler[Any]) -> Any:
    if isinstance(given, RepeatedNames):
        raise InvalidFields([_repeated(name) for name in given.repeated])
    try:
        return check(given)
    except ValidationError as refused:
        # InvalidFields is not a ValueError, so it passes through pydantic and FastAPI unchanged
        raise InvalidFields(_problems(refused, body)) from None


def _repeated(name: str) -> FieldProblem:
    return FieldProblem(field=shown(name), problem="is sent more than once", hint="send it once")


def _problems(refused: ValidationError, body: type[BaseModel]) -> list[FieldProblem]:
    errors = refused.errors(include_url=False)
    return field_problems(errors, known=body.model_fields)


class Recluster(_Body):
    """Recompute the pet's clusters. Corrections stay in force, and clusters keep their ids."""

    pet_id: PetNumber
    reason: Annotated[
        str,
        Field(
            max_length=MAX_TEXT,
            description="The reason, for the job's status and the logs.",
            # documented here but not enforced, because the message's own check returns a better error
            json_schema_extra={"pattern": PRINTABLE_PATTERN},
        ),
    ] = ""
    preview: Annotated[bool, Field(description="Only compute what the recluster would change.")] = False
    backend: Annotated[
        PreviewBackend | None,
        Field(description="With `preview`: start from the groups that the package hdbscan finds, instead of ours."),
    ] = None
    apply: Annotated[
        str | None,
        Field(min_length=1, max_length=MAX_TEXT, description="The token of a preview: apply exactly that preview."),
    ] = None

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"pet_id": 42}, {"pet_id": 42, "preview": True}, {"pet_id": 42, "apply": "…"}]}
    )


class CorrectionBody(_Body):
    """The body of a correction. It has the fields of the correction's request, and the request checks them."""

    request: ClassVar[type[Request[Any]]]

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_in_our_words(cls, given: Any, check: ModelWrapValidatorHandler[Any]) -> Any:
        if not isinstance(given, dict) or isinstance(given, RepeatedNames):
            return _checked(cls, given, check)
        known = cls.request.body()
        sent = {name: from_digits(known[name].kind, value) if name in known else value for name, value in given.items()}
        problems = [field_problem(problem) for problem in cls.request.problems(sent, known=known)]
        if problems:
            raise InvalidFields(problems)
        return check(sent)

    def to_request(self, **signed: Unpack[Signed]) -> Request[Any]:
        """Return the correction request that this body describes.

        Raises:
            InvalidInput: the fields contradict each other.
        """
        return self.request(**self.model_dump(), **signed)


def body_of(request: type[Request[Any]]) -> type[CorrectionBody]:
    """Return the type of a correction's body, with its fields described for the OpenAPI document."""
    fields: dict[str, Any] = {}
    for name, field in request.body().items():
        is_required = name in required_of(request)
        schema = schema_in_body(field.kind)
        fields[name] = (
            Annotated[Any, WithJsonSchema(schema if is_required else {"anyOf": [schema, {"type": "null"}]})],
            Field(... if is_required else None, description=field.description),
        )
    example: dict[str, Any] = {
        name: field.example for name, field in request.body().items() if field.example is not None
    }
    body = create_model(request.verb.capitalize(), __base__=CorrectionBody, __doc__=request.description(), **fields)
    body.request = request
    body.model_config = ConfigDict(**body.model_config, json_schema_extra={"examples": [example]})
    body.model_rebuild(force=True)
    return body


class BeginModel(_Body):
    """Start a candidate embedding model for the pet, in parallel with its own."""

    model: Annotated[str, Field(min_length=1, max_length=MAX_TEXT, description="name@version.", examples=["clip@2"])]
    dim: Annotated[int, Field(ge=MIN_DIM, le=MAX_DIM, description="Dimensions of its vectors.", examples=[512])]

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "clip@2", "dim": 512}]})


class Embedding(BaseModel):
    """The embedding of an item. Sending an item again changes nothing, unless `replace` is true."""

    @classmethod
    def __get_pydantic_json_schema__(cls, _: object, __: object) -> dict[str, Any]:
        properties = {
            name: schema_in_body(field.kind) | {"description": field.description, "examples": [field.example]}
            for name, field in FIELDS.items()
        }
        return {
            "title": cls.__name__,
            "description": cls.__doc__,
            "type": "object",
            "properties": properties,
            "required": list(required_of(EmbeddingIngested)),
            "examples": [{"pet_id": 42, "media_id": "beach.jpg", "model": "clip@1", "embedding": [0.1, 0.2, 0.3]}],
        }


def event_of(sent: object) -> EmbeddingIngested:
    """Return the event from a JSON object. Unknown fields are ignored, as in every form of an event.

    Raises:
        InvalidFields: lists every invalid field.
    """
    if not isinstance(sent, dict):
        problem = f"is {type_of(sent)}, not an object"
        raise InvalidFields([FieldProblem(field="body", problem=problem, hint="send the fields as a JSON object")])
    if isinstance(sent, RepeatedNames):
        raise InvalidFields([_repeated(name) for name in sent.repeated])
    given = {name: from_digits(FIELDS[name].kind, sent[name]) for name in FIELDS if name in sent}
    try:
        return EmbeddingIngested.of(**given)
    except InvalidInput:
        raise InvalidFields(list(map(field_problem, EmbeddingIngested.problems(given)))) from None


def _as_it_came(given: Any, _: object) -> Any:
    return given


# Documented with its proper type but passed on unchecked, because the route checks each entry of a list separately.
Embeddings = Annotated[
    Embedding | Annotated[list[Embedding], Field(min_length=1)], WrapValidator(_as_it_came), Field(title="Embeddings")
]


EntryId = Annotated[str, Field(max_length=64, examples=["1764000000000-0"])]
MAX_IDS: Final = 10_000
_EVEN_IF_ALIVE: Final = "Also take jobs from workers that are alive; they may then run twice."


class Nothing(_Body):
    """An empty object."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}]})


# The JSON Schemas of a field for when it is given and for when it is left out.
_Way = tuple[dict[str, Any], dict[str, Any]]
_IDS: Final[_Way] = ({"type": "array", "minItems": 1}, {"type": "array", "maxItems": 0})
_NAMED: Final[_Way] = ({"type": "string"}, {"type": "null"})
_NUMBER: Final[_Way] = ({"type": "number"}, {"type": "null"})
_SET: Final[_Way] = ({"const": True}, {"const": False})
_FILTER: Final[_Way] = ({"type": "object"}, {"type": "null"})
_PET: Final[_Way] = ({"type": ["integer", "string"]}, {"type": "null"})


def _exactly_one(**ways: _Way) -> list[dict[str, Any]]:
    """Return one JSON Schema per field, for a body that gives this field and none of the others."""
    return [
        {
            "required": [name],
            "properties": {other: given if other == name else left_out for other, (given, left_out) in ways.items()},
        }
        for name in ways
    ]


class Rescue(_Body):
    """The jobs to return to the queue, selected in exactly one way."""

    entry_ids: Annotated[list[EntryId], Field(max_length=MAX_IDS, description="Ids of entries of the stream.")] = []
    consumer: Annotated[str | None, Field(max_length=MAX_TEXT, description="All jobs that this consumer holds.")] = None
    unowned: Annotated[
        bool, Field(description="Jobs that no consumer holds, because they were acknowledged or deleted manually.")
    ] = False
    idle_s: Annotated[
        Seconds | None, Field(description="All jobs that have been held for at least this many seconds.")
    ] = None
    even_if_alive: Annotated[bool, Field(description=_EVEN_IF_ALIVE)] = False

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"unowned": True}],
            "oneOf": [*_exactly_one(entry_ids=_IDS, consumer=_NAMED, unowned=_SET, idle_s=_NUMBER)],
        }
    )


class RetireConsumer(_Body):
    """The dead consumer to remove."""

    consumer: Annotated[
        str, Field(min_length=1, max_length=MAX_TEXT, description="The consumer's name, as in the queue's status.")
    ]
    even_if_alive: Annotated[bool, Field(description=_EVEN_IF_ALIVE)] = False

    model_config = ConfigDict(json_schema_extra={"examples": [{"consumer": "worker-1:17:c0ffee.1:0a1b2c3d"}]})


class Matching(_Body):
    """A filter for dead letters. Fields that are left out match all, so an empty object matches every dead letter."""

    reason: Annotated[str | None, Field(max_length=MAX_TEXT, description="The reason, such as failed.")] = None
    actor: Annotated[str | None, Field(max_length=MAX_TEXT)] = None
    pet_id: PetNumber | None = None
    error: Annotated[str | None, Field(max_length=MAX_TEXT, description="Text that the error contains.")] = None
    since_s: Annotated[Seconds | None, Field(description="Became dead letters at most this many seconds ago.")] = None


class ChosenDeadLetters(_Body):
    """The dead letters to act on: either by id, or all that match a filter."""

    dead_letter_ids: Annotated[list[EntryId], Field(max_length=MAX_IDS)] = []
    matching: Matching | None = None

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"matching": {"pet_id": 42}}],
            "oneOf": [*_exactly_one(dead_letter_ids=_IDS, matching=_FILTER)],
        }
    )

    def filter(self) -> DeadLetterFilter | None:
        """Return ``matching`` as the filter that queue operations expect."""
        return None if self.matching is None else DeadLetterFilter(**self.matching.model_dump())


class CancelJobs(_Body):
    """The unfinished jobs to cancel: either by id, or all of an actor, of a pet, or of both."""

    job_ids: Annotated[list[Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]], Field(max_length=MAX_IDS)] = []
    actor: str | None = None
    pet_id: PetNumber | None = None

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"pet_id": 42}],
            "oneOf": [
                {"required": ["job_ids"], "properties": {"job_ids": _IDS[0], "actor": _NAMED[1], "pet_id": _PET[1]}},
                {
                    "properties": {"job_ids": _IDS[1]},
                    "anyOf": [
                        {"required": ["actor"], "properties": {"actor": _NAMED[0]}},
                        {"required": ["pet_id"], "properties": {"pet_id": _PET[0]}},
                    ],
                },
            ],
        }
    )


class Apply(_Body):
    """The confirmation of a plan."""

    note: Annotated[str, Field(max_length=MAX_TEXT, description="The reason, for the audit log.")] = ""

    model_config = ConfigDict(json_schema_extra={"examples": [{"note": "INC-7"}]})


class CanaryOf(Apply):
    """The confirmation of a plan to requeue dead letters with a canary: one first and, if it succeeds, the rest."""

    per_s: Annotated[float, Field(ge=0.01, le=10_000, description="Number of the rest to requeue per second.")] = 10.0
    wait_s: Annotated[float, Field(ge=0, le=3_600, description="Maximum seconds to wait for the first to end.")] = 60.0
    stop_after: Annotated[int, Field(ge=1, le=10_000, description="Stop when this many have failed again.")] = 3

    model_config = ConfigDict(json_schema_extra={"examples": [{"note": "INC-7", "per_s": 5}]})
