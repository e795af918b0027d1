"""What the API answers when it cannot do what was asked: RFC 9457, ``application/problem+json``.

Every refusal is of a :class:`Kind`, which gives its type, status and title; the detail and the list of fields say what
to change. No answer holds an embedding, a secret or a traceback. The one table of kinds makes the answers and their
place in the OpenAPI document.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final
from uuid import uuid4

import redis
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from sploot_cluster.errors import InvalidInput, StoreUnavailable, UnreadablePet
from sploot_cluster.jobs import QueueUnavailable
from sploot_cluster.printable import UNPRINTABLE
from sploot_cluster.refusals import REDIS_ERRORS, RedisRefusal, refusal_of

logger = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"

# About what a Redis failover takes.
RETRY_AFTER_S: Final = 5

MAX_ERRORS: Final = 100


class FieldProblem(BaseModel):
    """One field that cannot be used, and what to do about it."""

    field: str = Field(description="The field as the caller wrote it, with the position in a list.")
    problem: str = Field(description="What is wrong with it, never its value if that may be an embedding or a secret.")
    hint: str = Field(description="What to do about it.")


class Problem(BaseModel):
    """RFC 9457: why a request was not done."""

    type: str = Field(description="Names the kind of problem, and never changes.")
    title: str = Field(description="The kind of problem in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What happened to this request, and what to do.")
    errors: list[FieldProblem] = Field(description="The fields to change; empty when it is not about fields.")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem.

    Attributes:
        slug: the end of its ``type``; callers compare it, so it never changes.
        when: one sentence for the OpenAPI document.
    """

    slug: str
    status: int
    title: str
    when: str

    @property
    def type(self) -> str:
        return f"urn:sploot:problem:{self.slug}"


MALFORMED_JSON: Final = Kind("malformed-json", 400, "Malformed JSON", "The body is not JSON.")
UNAUTHENTICATED: Final = Kind("unauthenticated", 401, "Unauthenticated", "There is no bearer token, or nobody has it.")
FORBIDDEN: Final = Kind("forbidden", 403, "Forbidden", "The token's role may not do this.")
NOT_LOOPBACK: Final = Kind(
    "not-loopback", 403, "Loopback only", "No tokens are configured, and the request does not come from this machine."
)
CROSS_SITE: Final = Kind("cross-site", 403, "Cross-site request", "A page of another site made a browser send this.")
NOT_FOUND: Final = Kind("not-found", 404, "Not found", "There is nothing under this address.")
METHOD_NOT_ALLOWED: Final = Kind("method-not-allowed", 405, "Method not allowed", "The address takes other methods.")
EVENTS_WAIT: Final = Kind(
    "events-wait", 409, "Events wait", "Events that wait would bring back what shall be deleted; nothing was deleted."
)
KEY_IN_PROGRESS: Final = Kind(
    "idempotency-key-in-progress", 409, "Still in progress", "A request with this Idempotency-Key is being worked on."
)
STALE_PAGE: Final = Kind(
    "stale-page",
    412,
    "Stale page",
    "Media were moved since the revision of If-Match; `current_revision`, `n_arrivals` and `changes` report it.",
)
STALE_PREVIEW: Final = Kind(
    "stale-preview", 412, "Stale preview", "The pet moved since the preview, or the preview is gone; nothing changed."
)
BODY_TOO_LARGE: Final = Kind("body-too-large", 413, "Body too large", "The body is longer than this address takes.")
NOT_JSON: Final = Kind("not-json", 415, "Not JSON", "The body is not sent as application/json.")
INVALID_INPUT: Final = Kind(
    "invalid-input", 422, "Invalid input", "A field cannot be used; sending it again is no use."
)
KEY_REUSED: Final = Kind(
    "idempotency-key-reused", 422, "Idempotency-Key reused", "The Idempotency-Key came before with another body."
)
INTERNAL: Final = Kind("internal", 500, "Internal error", "A mistake of ours; the log has it under the incident.")
UNREADABLE_PET: Final = Kind("unreadable-pet", 500, "Unreadable pet", "What is stored of the pet is damaged.")
PREVIEW_FAILED: Final = Kind(
    "preview-failed", 500, "Preview failed", "The preview could not be computed; the detail says why."
)
NOT_READY: Final = Kind("not-ready", 503, "Not ready", "Something this server needs is away.")
QUEUE_UNAVAILABLE: Final = Kind(
    "queue-unavailable", 503, "Queue unavailable", "Redis did not answer, or refused; try again, with the same key."
)
STORE_UNAVAILABLE: Final = Kind(
    "store-unavailable", 503, "Store unavailable", "Redis did not answer, or refused; try again."
)

# What starlette and FastAPI answer by themselves.
_BY_STATUS: Final = {
    400: MALFORMED_JSON,
    404: NOT_FOUND,
    405: METHOD_NOT_ALLOWED,
    413: BODY_TOO_LARGE,
    415: NOT_JSON,
}


class Refusal(Exception):
    """Raised anywhere in the API to end the request with a problem."""

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        errors: Sequence[FieldProblem] = (),
        headers: Mapping[str, str] | None = None,
        facts: Mapping[str, object] | None = None,
    ) -> None:
        """``facts`` are members of the problem besides those that all have; JSON values."""
        super().__init__(detail)
        self.kind, self.detail, self.errors, self.headers = kind, detail, tuple(errors), dict(headers or {})
        self.facts = dict(facts or {})


class InvalidFields(Refusal):
    """Raised when fields of a body or an address cannot be used; names them all."""

    def __init__(self, errors: Sequence[FieldProblem]) -> None:
        detail = "; ".join(f"{error.field} {error.problem}" for error in errors[:3])
        more = len(errors) - 3
        super().__init__(INVALID_INPUT, detail + (f"; and {more} more" if more > 0 else ""), errors=errors)


def render(refusal: Refusal) -> Response:
    """The answer of a refusal."""
    kind = refusal.kind
    problem = Problem(
        type=kind.type,
        title=kind.title,
        status=kind.status,
        detail=refusal.detail,
        errors=list(refusal.errors[:MAX_ERRORS]),
    )
    # ASCII, because a name that the caller made up may hold half a character, which UTF-8 cannot write
    content = json.dumps(refusal.facts | problem.model_dump())
    return Response(content, kind.status, headers=refusal.headers, media_type=MEDIA_TYPE)


def field_problem(refused: InvalidInput) -> FieldProblem:
    """What the domain says of a field, as the API answers it."""
    return FieldProblem(field=refused.field, problem=refused.problem, hint=refused.hint)


def field_problems(errors: Iterable[Mapping[str, Any]], *, known: Collection[str] = ()) -> list[FieldProblem]:
    """What pydantic says of fields, in our words.

    Args:
        errors: of ``ValidationError.errors()``, with the input, of which only the kind is told.
        known: the names of the fields there are, for a "did you mean".
    """
    return [_field_problem(error, known) for error in errors]


def _field_problem(error: Mapping[str, Any], known: Collection[str]) -> FieldProblem:
    field, given, facts = _field(error["loc"]), _kind(error.get("input")), error.get("ctx", {})
    match error["type"]:
        case "missing":
            problem, hint = "is missing", "send it"
        case "extra_forbidden":
            close = get_close_matches(field, known, n=1)
            problem, hint = "is not a field", f"did you mean {close[0]}?" if close else f"send only: {', '.join(known)}"
        case "int_type" | "int_parsing" | "int_from_float":
            problem, hint = f"is {given}, not a whole number", "send a whole number without quotes, such as 42"
        case "int64_type":
            problem, hint = f"is {given}, not a whole number", "send a whole number, such as 42, or its digits as text"
        case "int64_text":
            problem = "is not a whole number"
            hint = (
                f"send {facts['lowest']} to {facts['highest']} in decimal digits, without sign, space or leading zero"
            )
        case "int64_range":
            problem, hint = "is out of range", f"send {facts['lowest']} to {facts['highest']}"
        case "float_type" | "float_parsing" | "finite_number":
            problem, hint = "is not a number", "send a number in decimal digits, such as 1.5"
        case "string_type":
            problem, hint = f"is {given}, not text", "send text in quotes"
        case "list_type":
            problem, hint = f"is {given}, not a list", "send a list, in square brackets"
        case "embedding_type":
            problem, hint = f"is {given}, not a list or text", "send a list of numbers, or base64 text with encoding"
        case "model_type" | "model_attributes_type" | "dict_type":
            problem, hint = f"is {given}, not an object", 'send a JSON object, such as {"pet_id": 42}'
        case "greater_than_equal":
            problem, hint = "is too small", f"send {facts['ge']} or more"
        case "less_than_equal":
            problem, hint = "is too large", f"send {facts['le']} or less"
        case "too_short":
            problem, hint = f"has {facts['actual_length']} entries", f"send at least {facts['min_length']}"
        case "too_long":
            problem, hint = f"has more than {facts['max_length']} entries", f"send at most {facts['max_length']}"
        case "string_too_short":
            problem, hint = "is too short", f"send at least {facts['min_length']} characters"
        case "string_too_long":
            problem, hint = "is too long", f"send at most {facts['max_length']} characters"
        case _:
            problem, hint = "cannot be used", "see its description in /openapi.json"
    return FieldProblem(field=field, problem=problem, hint=hint)


def _field(place: Sequence[str | int]) -> str:
    """``("body", "cluster_ids", 2)`` as ``cluster_ids[2]``."""
    steps = place[1:] if place and place[0] in ("body", "path", "query", "header") else place
    name = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")
    return shown(name) or "body"


def shown(text: str) -> str:
    """Text that a caller made up, for an answer: short, and on one line."""
    text = UNPRINTABLE.sub("?", text)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "a whole number"
        case float():
            return "a fraction"
        case str():
            return "text"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return "something else"


def documented(*kinds: Kind) -> dict[int | str, dict[str, Any]]:
    """The ``responses=`` of a route that may answer with these kinds."""
    responses: dict[int | str, dict[str, Any]] = {}
    for status in sorted({kind.status for kind in kinds}):
        same = [kind for kind in kinds if kind.status == status]
        responses[status] = {
            "description": " ".join(kind.when for kind in same),
            "content": {
                MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "examples": {kind.slug: {"summary": kind.title, "value": _example(kind)} for kind in same},
                }
            },
        }
    return responses


def _example(kind: Kind) -> dict[str, object]:
    errors = [
        {"field": "pet_id", "problem": "is text, not a whole number", "hint": "send a whole number without quotes"}
    ]
    return {
        "type": kind.type,
        "title": kind.title,
        "status": kind.status,
        "detail": kind.when,
        "errors": errors if kind is INVALID_INPUT else [],
    }


def install(app: FastAPI) -> None:
    """Have every error of the application answered as a problem."""
    # starlette types a handler by Exception, whatever it is registered for
    handlers: dict[type[Exception], Callable[[Request, Any], Response]] = {
        Refusal: _refused,
        InvalidInput: _invalid,
        QueueUnavailable: _queue_unavailable,
        StoreUnavailable: _store_unavailable,
        **dict.fromkeys(REDIS_ERRORS, _redis_error),
        UnreadablePet: _unreadable,
        RequestValidationError: _unusable_request,
        HTTPException: _http,
        Exception: _internal,
    }
    for error, handler in handlers.items():
        app.add_exception_handler(error, handler)


def _refused(_: Request, refusal: Refusal) -> Response:
    return render(refusal)


def _invalid(_: Request, refused: InvalidInput) -> Response:
    return render(InvalidFields([field_problem(refused)]))


def _queue_unavailable(request: Request, away: QueueUnavailable) -> Response:
    if request.method == "GET":
        outcome = "nothing could be read"
    else:
        outcome = (
            "it is not known whether the job was enqueued, and nothing is done twice: media and corrections are known "
            "by their ids"
        )
    return _unavailable(QUEUE_UNAVAILABLE, request, str(away), away.refusal, outcome)


def _store_unavailable(request: Request, away: StoreUnavailable) -> Response:
    return _unavailable(STORE_UNAVAILABLE, request, away.problem, away.refusal, f"could not {away.doing}")


def _redis_error(request: Request, error: Exception) -> Response:
    """An error that nothing translated on its way: of an outage, or of a mistake of ours."""
    refusal = refusal_of(error)
    if refusal is None and not isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return _internal(request, error)
    return _unavailable(STORE_UNAVAILABLE, request, str(error), refusal, "the request was not finished")


def _unavailable(kind: Kind, request: Request, problem: str, refusal: RedisRefusal | None, outcome: str) -> Response:
    """The answer while Redis is away, or refuses: what is wrong with it, what came of the request, how to fix it."""
    code = None if refusal is None else refusal.code
    logger.warning(kind.title, extra={"path": request.url.path, "problem": problem, "refusal": code})
    again = f"send the same request again in {RETRY_AFTER_S} seconds"
    if refusal is None:
        seen, hint = "Redis did not answer", "check that the Redis at REDIS_URL is up and takes connections"
        detail = f"{seen}; {outcome}; {again}"
    else:
        seen, hint = refusal.problem, refusal.hint
        detail = f"{seen}; {outcome}; {hint}, then {again}"
    errors = [FieldProblem(field="redis", problem=seen, hint=hint)]
    return render(Refusal(kind, detail, errors=errors, headers={"Retry-After": str(RETRY_AFTER_S)}))


def _unreadable(request: Request, damaged: UnreadablePet) -> Response:
    logger.error("pet cannot be read", extra={"pet_id": damaged.pet, "problem": damaged.problem})
    return render(Refusal(UNREADABLE_PET, str(damaged)))


def _unusable_request(_: Request, refused: RequestValidationError) -> Response:
    errors = refused.errors()
    if errors and errors[0]["type"] == "json_invalid":
        return render(Refusal(MALFORMED_JSON, f"the body is not JSON from character {errors[0]['loc'][-1]} on"))
    return render(InvalidFields(field_problems(errors)))


def _http(request: Request, error: HTTPException) -> Response:
    kind = _BY_STATUS.get(error.status_code)
    if kind is None:
        kind = Kind(f"http-{error.status_code}", error.status_code, str(error.detail), "")
    match kind.status:
        case 400:
            detail = "the body cannot be read as JSON in UTF-8; send what a JSON library writes"
        case 404:
            detail = f"there is nothing under {shown(request.url.path)}; GET /openapi.json lists the addresses"
        case 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            detail = f"{shown(request.method)} is not for {shown(request.url.path)}; send {allowed}"
        case _:
            detail = str(error.detail)
    return render(Refusal(kind, detail, headers=error.headers))


def _internal(request: Request, error: Exception) -> Response:
    incident = uuid4().hex[:12]
    logger.error("request failed", extra={"path": request.url.path, "incident": incident}, exc_info=error)
    return render(Refusal(INTERNAL, f"this is a mistake of ours; the server's log has it as incident {incident}"))
