"""What callers send. A field is of exactly its type: ``4.2`` and ``true`` are not pets; ``numbers`` defines ids.

What a value must be beyond that (which models are known, what an embedding may hold) is checked by the queue, at the
door that all producers pass.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Final

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from sploot_cluster.api.numbers import IdInBody, Seconds
from sploot_cluster.api.problems import FieldProblem, InvalidFields, field_problems, shown
from sploot_cluster.queues import DeadLetterFilter

MAX_CLUSTER_IDS: Final = 1_000
MAX_MEDIA_IDS: Final = 10_000
MAX_TEXT: Final = 256

PetNumber = Annotated[IdInBody, Field(description="The pet.", examples=[42, "9007199254740993"])]
ClusterNumber = Annotated[IdInBody, Field(description="A cluster of the pet.", examples=[3])]
MediaName = Annotated[str, Field(min_length=1, max_length=MAX_TEXT, examples=["beach.jpg"])]


class RepeatedNames(dict[str, Any]):
    """A JSON object with names that came more than once; it holds the last value of each.

    Attributes:
        repeated: those names, in the order of their first appearance.
    """

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = tuple(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)


def parsed(body: bytes) -> Any:
    """Return the JSON value of a body, whose objects are dicts, or :class:`RepeatedNames` to be refused by their field.

    Raises:
        json.JSONDecodeError: it is not JSON.
        UnicodeDecodeError: it is not UTF-8.
    """
    return json.loads(body, object_pairs_hook=_object)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    return names if len(names) == len(pairs) else RepeatedNames(pairs)


def _leave_values(embedding: Any, _: object) -> Any:
    """Only the outer form is looked at: the queue checks values, and knows how to name one without showing it."""
    if not isinstance(embedding, (list, str)):
        raise PydanticCustomError("embedding_type", "neither a list nor text")
    return embedding


class _Body(BaseModel):
    """A JSON object with exactly these fields."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_in_our_words(cls, given: Any, check: ModelWrapValidatorHandler[Any]) -> Any:
        if isinstance(given, RepeatedNames):
            raise InvalidFields([_repeated(name) for name in given.repeated])
        try:
            return check(given)
        except ValidationError as refused:
            # not a ValueError, so that it leaves pydantic and FastAPI as it is
            raise InvalidFields(_told(refused, cls)) from None


def _repeated(name: str) -> FieldProblem:
    return FieldProblem(field=shown(name), problem="is there more than once", hint="send it once")


def _told(refused: ValidationError, body: type[BaseModel]) -> list[FieldProblem]:
    errors = refused.errors(include_url=False)
    return field_problems(errors, known=body.model_fields)


class Recluster(_Body):
    """Find the pet's clusters anew. Corrections and ids are kept."""

    pet_id: PetNumber
    reason: Annotated[str, Field(max_length=MAX_TEXT, description="Why, for the job's status and the logs.")] = ""
    preview: Annotated[bool, Field(description="Only show what it would do.")] = False
    apply: Annotated[
        str | None, Field(min_length=1, max_length=MAX_TEXT, description="The token of a preview: do exactly that.")
    ] = None

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"pet_id": 42}, {"pet_id": 42, "preview": True}, {"pet_id": 42, "apply": "…"}]}
    )


class Merge(_Body):
    """These clusters are one, for ever."""

    pet_id: PetNumber
    cluster_ids: Annotated[
        list[ClusterNumber], Field(min_length=2, max_length=MAX_CLUSTER_IDS, description="At least two of the pet's.")
    ]
    into: Annotated[
        IdInBody | None, Field(description="Which of them the media end in; chosen for you if left out.")
    ] = None

    model_config = ConfigDict(json_schema_extra={"examples": [{"pet_id": 42, "cluster_ids": [3, 7], "into": 3}]})


class Split(_Body):
    """These media of a cluster are another cluster, for ever."""

    pet_id: PetNumber
    cluster_id: ClusterNumber
    media_ids: Annotated[
        list[MediaName], Field(min_length=1, max_length=MAX_MEDIA_IDS, description="The media that leave the cluster.")
    ]

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"pet_id": 42, "cluster_id": 3, "media_ids": ["beach.jpg", "sofa.jpg"]}]}
    )


class Exclude(_Body):
    """Not these in this cluster: they may go elsewhere, and never back."""

    pet_id: PetNumber
    cluster_id: ClusterNumber
    media_ids: Annotated[
        list[MediaName],
        Field(min_length=1, max_length=MAX_MEDIA_IDS, description="The media that do not belong to the cluster."),
    ]

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"pet_id": 42, "cluster_id": 3, "media_ids": ["fox.jpg"]}]}
    )


class Dismiss(_Body):
    """These are nothing, and in no cluster for ever."""

    pet_id: PetNumber
    media_ids: Annotated[
        list[MediaName],
        Field(min_length=1, max_length=MAX_MEDIA_IDS, description="Media of the pet, wherever they are."),
    ]

    model_config = ConfigDict(json_schema_extra={"examples": [{"pet_id": 42, "media_ids": ["blurred.jpg"]}]})


class Undo(_Body):
    """Take back the correction that made a revision. An undo can be undone too."""

    pet_id: PetNumber
    revision: Annotated[IdInBody, Field(description="Of a correction in the pet's history.", examples=[17])]

    model_config = ConfigDict(json_schema_extra={"examples": [{"pet_id": 42, "revision": 17}]})


class BeginModel(_Body):
    """Run another embedding model beside the pet's own."""

    model: Annotated[str, Field(min_length=1, max_length=MAX_TEXT, description="name@version.", examples=["clip@2"])]
    dim: Annotated[int, Field(ge=2, le=8_192, description="How many values its vectors have.", examples=[512])]

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "clip@2", "dim": 512}]})


class Restore(_Body):
    """Make the pet what it was at a revision. Corrections are kept: undo those that shall not hold."""

    pet_id: PetNumber
    revision: Annotated[IdInBody, Field(description="Any that the pet's history still knows.", examples=[17])]

    model_config = ConfigDict(json_schema_extra={"examples": [{"pet_id": 42, "revision": 17}]})


class Embedding(_Body):
    """An item was embedded. The same item again changes nothing."""

    pet_id: PetNumber
    media_id: MediaName
    model: Annotated[str, Field(min_length=1, max_length=MAX_TEXT, description="name@version of the embedding model.")]
    embedding: Annotated[
        list[float] | str,
        WrapValidator(_leave_values),
        Field(description="Finite numbers, not all zero; or base64 of float32, little-endian, with `encoding`."),
    ]
    encoding: Annotated[
        str | None, Field(max_length=MAX_TEXT, description="Of text: base64-f32le.", examples=["base64-f32le"])
    ] = None
    event_id: Annotated[
        str | None, Field(min_length=1, max_length=MAX_TEXT, description="Your name for this event; made if left out.")
    ] = None
    occurred_at: Annotated[
        str | None, Field(max_length=MAX_TEXT, description="RFC 3339.", examples=["2026-01-31T12:00:00Z"])
    ] = None

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"pet_id": 42, "media_id": "beach.jpg", "model": "clip@1", "embedding": [0.1, 0.2, 0.3]}]
        }
    )


def _as_it_came(given: Any, _: object) -> Any:
    return given


# Documented as what it should be, and handed over as it came: every entry of a list is checked by itself.
Embeddings = Annotated[
    Embedding | Annotated[list[Embedding], Field(min_length=1)], WrapValidator(_as_it_came), Field(title="Embeddings")
]


EntryId = Annotated[str, Field(max_length=64, examples=["1764000000000-0"])]
MAX_IDS: Final = 10_000
_EVEN_IF_ALIVE: Final = "Also what workers that live hold; it may run twice."


class Nothing(_Body):
    """An empty object."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}]})


class Rescue(_Body):
    """Which jobs go back to work, in exactly one way."""

    entry_ids: Annotated[list[EntryId], Field(max_length=MAX_IDS, description="These entries of the stream.")] = []
    consumer: Annotated[str | None, Field(max_length=MAX_TEXT, description="All that this consumer holds.")] = None
    unowned: Annotated[bool, Field(description="What was acknowledged or deleted by hand.")] = False
    idle_s: Annotated[Seconds | None, Field(description="All that is held for at least this many seconds.")] = None
    even_if_alive: Annotated[bool, Field(description=_EVEN_IF_ALIVE)] = False

    model_config = ConfigDict(json_schema_extra={"examples": [{"unowned": True}]})


class RetireConsumer(_Body):
    """A consumer that is gone."""

    consumer: Annotated[str, Field(min_length=1, max_length=MAX_TEXT, description="Its name, as the queues show it.")]
    even_if_alive: Annotated[bool, Field(description=_EVEN_IF_ALIVE)] = False

    model_config = ConfigDict(json_schema_extra={"examples": [{"consumer": "worker-1:17:c0ffee.1:0a1b2c3d"}]})


class Matching(_Body):
    """Which dead letters are meant; what is left out does not matter, and an empty object means all."""

    reason: Annotated[str | None, Field(max_length=MAX_TEXT, description="One word, such as failed.")] = None
    actor: Annotated[str | None, Field(max_length=MAX_TEXT)] = None
    pet_id: PetNumber | None = None
    error: Annotated[str | None, Field(max_length=MAX_TEXT, description="A part of the error's text.")] = None
    since_s: Annotated[Seconds | None, Field(description="Died no more than this many seconds ago.")] = None


class ChosenDeadLetters(_Body):
    """Which dead letters: these, or those that match; not both."""

    dead_letter_ids: Annotated[list[EntryId], Field(max_length=MAX_IDS)] = []
    matching: Matching | None = None

    model_config = ConfigDict(json_schema_extra={"examples": [{"matching": {"pet_id": 42}}]})

    def filter(self) -> DeadLetterFilter | None:
        """What ``matching`` says, as the operations take it."""
        return None if self.matching is None else DeadLetterFilter(**self.matching.model_dump())


class Apply(_Body):
    """Yes."""

    note: Annotated[str, Field(max_length=MAX_TEXT, description="Why, for the audit.")] = ""

    model_config = ConfigDict(json_schema_extra={"examples": [{"note": "INC-7"}]})
