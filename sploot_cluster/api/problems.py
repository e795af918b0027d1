"""Error responses of the API, as RFC 9457 ``application/problem+json``.

Every error has a :class:`Kind`, which defines its type, status and title; the detail and the list of fields state what
to change. No response contains an embedding, a secret or a traceback. One table of kinds defines both the responses and
their description in the OpenAPI document.
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
from starlette.routing import Match, Route

from sploot_cluster.errors import InvalidInput, StoreUnavailable, UnreadablePet
from sploot_cluster.fields import type_of
from sploot_cluster.jobs import QueueFull, QueueUnavailable
from sploot_cluster.printable import UNPRINTABLE
from sploot_cluster.refusals import REDIS_ERRORS, RedisRefusal, refusal_of

logger = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"

# The Retry-After header of responses with status 503, in seconds: about the duration of a Redis failover.
RETRY_AFTER_S: Final = 5

MAX_ERRORS: Final = 100


class FieldProblem(BaseModel):
    """A field that is invalid, and how to fix it."""

    field: str = Field(description="The field as the caller wrote it, with its position in a list.")
    problem: str = Field(
        description="What is wrong with the field. Never contains a value that may be an embedding or a secret."
    )
    hint: str = Field(description="How to fix it.")


class Problem(BaseModel):
    """An RFC 9457 problem: why a request failed."""

    type: str = Field(description="The kind of problem, as a URN that never changes.")
    title: str = Field(description="The kind of problem, in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What went wrong with this request, and how to fix it.")
    errors: list[FieldProblem] = Field(description="The fields to change; empty if the problem is not about fields.")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem.

    Attributes:
        slug: the last part of its ``type``; callers compare it, so it never changes.
        when: the condition for returning it, as one sentence for the OpenAPI document.
    """

    slug: str
    status: int
    title: str
    when: str

    @property
    def type(self) -> str:
        return f"urn:sploot:problem:{self.slug}"


MALFORMED_JSON: Final = Kind("malformed-json", 400, "Malformed JSON", "The body is not valid JSON.")
UNAUTHENTICATED: Final = Kind("unauthenticated", 401, "Unauthenticated", "The bearer token is missing or unknown.")
FORBIDDEN: Final = Kind("forbidden", 403, "Forbidden", "The role of the token does not allow this operation.")
NOT_LOOPBACK: Final = Kind(
    "not-loopback", 403, "Loopback only", "No tokens are configured, and the request was not sent from this machine."
)
CROSS_SITE: Final = Kind(
    "cross-site", 403, "Cross-site request", "A page of another site made a browser send the request."
)
NOT_FOUND: Final = Kind("not-found", 404, "Not found", "No resource exists at this URL.")
METHOD_NOT_ALLOWED: Final = Kind(
    "method-not-allowed", 405, "Method not allowed", "The URL does not support this method."
)
TOO_SLOW: Final = Kind("too-slow", 408, "Too slow", "The body did not arrive in time.")
EVENTS_WAIT: Final = Kind(
    "events-wait", 409, "Events pending", "Waiting events would restore the deleted data, so nothing was deleted."
)
ALREADY_UNDONE: Final = Kind(
    "already-undone", 409, "Already undone", "The correction is already undone, so nothing was enqueued."
)
ALREADY_MADE: Final = Kind(
    "already-made", 409, "Already made", "The correction would change nothing, so it was not enqueued."
)
KEY_IN_PROGRESS: Final = Kind(
    "idempotency-key-in-progress",
    409,
    "Still in progress",
    "A request with this Idempotency-Key is still being processed.",
)
STALE_PAGE: Final = Kind(
    "stale-page",
    412,
    "Stale page",
    "Items were moved since the revision of If-Match; see `current_revision`, `n_arrivals` and `changes`.",
)
STALE_PREVIEW: Final = Kind(
    "stale-preview",
    412,
    "Stale preview",
    "The pet changed since the preview, or the preview expired; nothing was changed.",
)
BODY_TOO_LARGE: Final = Kind("body-too-large", 413, "Body too large", "The body is larger than this URL accepts.")
ADDRESS_TOO_LONG: Final = Kind("address-too-long", 414, "URL too long", "The URL has too many bytes.")
NOT_JSON: Final = Kind("not-json", 415, "Not JSON", "The body was not sent as application/json.")
INVALID_INPUT: Final = Kind(
    "invalid-input", 422, "Invalid input", "A field is invalid; the same request will fail again."
)
KEY_REUSED: Final = Kind(
    "idempotency-key-reused", 422, "Idempotency-Key reused", "The Idempotency-Key was used before with another body."
)
TOO_MANY_REQUESTS: Final = Kind(
    "too-many-requests",
    429,
    "Too many requests",
    "The caller sent more requests per second than the server accepts (SPLOOT_HTTP_RATE), or too many callers watch "
    "the queues; retry after `Retry-After`.",
)
HEADERS_TOO_LARGE: Final = Kind("headers-too-large", 431, "Headers too large", "The headers have too many bytes.")
INTERNAL: Final = Kind(
    "internal", 500, "Internal error", "The server failed; its log has the error under the incident id."
)
UNREADABLE_PET: Final = Kind("unreadable-pet", 500, "Unreadable pet", "The stored data of the pet is damaged.")
PREVIEW_FAILED: Final = Kind(
    "preview-failed", 500, "Preview failed", "The preview could not be computed; see the detail."
)
PREVIEW_REFUSED: Final = Kind(
    "preview-refused",
    409,
    "Preview refused",
    "The workers cannot compute the preview with this backend; see the detail.",
)
NOT_READY: Final = Kind("not-ready", 503, "Not ready", "A service that this server depends on is unavailable.")
QUEUE_UNAVAILABLE: Final = Kind(
    "queue-unavailable",
    503,
    "Queue unavailable",
    "Redis did not answer or refused the request; retry with the same Idempotency-Key.",
)
QUEUE_FULL: Final = Kind(
    "queue-full",
    503,
    "Queue full",
    "The queue holds as many jobs as its limit allows (SPLOOT_MAX_QUEUE_LENGTH of the workers); retry with the same "
    "Idempotency-Key.",
)
STORE_UNAVAILABLE: Final = Kind(
    "store-unavailable", 503, "Store unavailable", "Redis did not answer or refused the request; retry."
)

# HTTP status -> the kind of problem, for errors that starlette and FastAPI raise themselves.
_BY_STATUS: Final = {
    400: MALFORMED_JSON,
    404: NOT_FOUND,
    405: METHOD_NOT_ALLOWED,
    413: BODY_TOO_LARGE,
    415: NOT_JSON,
}


class Refusal(Exception):
    """An exception that ends the request with a problem, wherever in the API it is raised."""

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        errors: Sequence[FieldProblem] = (),
        headers: Mapping[str, str] | None = None,
        facts: Mapping[str, object] | None = None,
    ) -> None:
        """``facts`` are additional members of the problem, as JSON values."""
        super().__init__(detail)
        self.kind, self.detail, self.errors, self.headers = kind, detail, tuple(errors), dict(headers or {})
        self.facts = dict(facts or {})


class InvalidFields(Refusal):
    """Raised when fields of a body or a URL are invalid. It lists all of them."""

    def __init__(self, errors: Sequence[FieldProblem]) -> None:
        detail = "; ".join(f"{error.field} {error.problem}" for error in errors[:3])
        more = len(errors) - 3
        super().__init__(INVALID_INPUT, detail + (f"; and {more} more" if more > 0 else ""), errors=errors)


def render(refusal: Refusal) -> Response:
    """Return the response for a refusal."""
    kind = refusal.kind
    problem = Problem(
        type=kind.type,
        title=kind.title,
        status=kind.status,
        detail=refusal.detail,
        errors=list(refusal.errors[:MAX_ERRORS]),
    )
    # ASCII, because a name sent by the caller may contain an unpaired surrogate, which UTF-8 cannot encode
    content = json.dumps(refusal.facts | problem.model_dump())
    return Response(content, kind.status, headers=refusal.headers, media_type=MEDIA_TYPE)


def field_problem(refused: InvalidInput) -> FieldProblem:
    """Return a field error of the domain in the API's form."""
    return FieldProblem(field=refused.field, problem=refused.problem, hint=refused.hint)


def field_problems(errors: Iterable[Mapping[str, Any]], *, known: Collection[str] = ()) -> list[FieldProblem]:
    """Return pydantic's errors as field errors with the API's own wording.

    Args:
        errors: as returned by ``ValidationError.errors()``, including the inputs; only the type of an input is shown.
        known: the names of the valid fields, for a "did you mean".
    """
    return [_field_problem(error, known) for error in errors]


# pydantic's error type -> problem and hint, with placeholders: `given` is the type of the input; all others are facts
# from pydantic's error.
_WORDING: Final[Mapping[str, tuple[str, str]]] = {
    "missing": ("is missing", "send it"),
    **dict.fromkeys(
        ("int_type", "int_parsing", "int_from_float"),
        ("is {given}, not a whole number", "send a whole number without quotes, such as 42"),
    ),
    "int64_type": ("is {given}, not a whole number", "send a whole number, such as 42, or its digits as text"),
    "int64_text": (
        "is not a whole number",
        "send {lowest} to {highest} in decimal digits, without sign, space or leading zero",
    ),
    "int64_range": ("is out of range", "send {lowest} to {highest}"),
    **dict.fromkeys(
        ("float_type", "float_parsing", "finite_number"), ("is not a number", "send a JSON number, such as 1.5")
    ),
    "string_type": ("is {given}, not text", "send a JSON string"),
    "list_type": ("is {given}, not a list", "send a JSON array"),
    "embedding_type": ("is {given}, not a list or text", "send a list of numbers, or base64 text with encoding"),
    **dict.fromkeys(
        ("model_type", "model_attributes_type", "dict_type"),
        ("is {given}, not an object", 'send a JSON object, such as {{"pet_id": 42}}'),
    ),
    "greater_than_equal": ("is too small", "send {ge} or more"),
    "less_than_equal": ("is too large", "send {le} or less"),
    "too_short": ("has {actual_length} entries", "send at least {min_length}"),
    "too_long": ("has more than {max_length} entries", "send at most {max_length}"),
    "string_pattern_mismatch": ("has the wrong form", "send text that matches {pattern}; send a cursor unchanged"),
    "enum": ("is not one of the allowed values", "send {expected}"),
    "string_too_short": ("is too short", "send at least {min_length} characters"),
    "string_too_long": ("is too long", "send at most {max_length} characters"),
}


def _field_problem(error: Mapping[str, Any], known: Collection[str]) -> FieldProblem:
    field = _field(error["loc"])
    if error["type"] == "extra_forbidden":
        close = get_close_matches(field, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"send only: {', '.join(known)}"
        return FieldProblem(field=field, problem="is not a field", hint=hint)
    problem, hint = _WORDING.get(error["type"], ("is invalid", "see its description in /openapi.json"))
    facts = {**error.get("ctx", {}), "given": type_of(error.get("input"))}
    return FieldProblem(field=field, problem=problem.format(**facts), hint=hint.format(**facts))


def _field(place: Sequence[str | int]) -> str:
    """Return the name of a field, e.g. ``cluster_ids[2]`` for ``("body", "cluster_ids", 2)``."""
    steps = place[1:] if place and place[0] in ("body", "path", "query", "header") else place
    name = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")
    return shown(name) or "body"


def shown(text: str) -> str:
    """Return a caller's text, shortened and on one line, for use in a response."""
    text = UNPRINTABLE.sub("?", text)
    return text if len(text) <= 60 else f"{text[:57]}..."


def documented(*kinds: Kind) -> dict[int | str, dict[str, Any]]:
    """Return the ``responses=`` of a route that may return these kinds of problem."""
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
    """Install error handlers that return a problem for every error of the application."""
    # starlette declares that a handler takes any Exception, whichever class it is registered for
    handlers: dict[type[Exception], Callable[[Request, Any], Response]] = {
        Refusal: _refused,
        InvalidInput: _invalid,
        QueueUnavailable: _queue_unavailable,
        QueueFull: _queue_full,
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
            "it is not known whether the job was enqueued; a retry is safe, because items and corrections are known "
            "by their ids"
        )
    return _unavailable(QUEUE_UNAVAILABLE, request, str(away), away.refusal, outcome)


def _queue_full(request: Request, full: QueueFull) -> Response:
    logger.warning(QUEUE_FULL.title, extra={"path": request.url.path, "problem": full.problem})
    hint = f"send the same request again in {RETRY_AFTER_S} seconds; {full.hint} to make room"
    detail = f"{full.problem}; the job was not enqueued; {hint}"
    errors = [FieldProblem(field="queue", problem=full.problem, hint=hint)]
    return render(Refusal(QUEUE_FULL, detail, errors=errors, headers={"Retry-After": str(RETRY_AFTER_S)}))


def _store_unavailable(request: Request, away: StoreUnavailable) -> Response:
    return _unavailable(STORE_UNAVAILABLE, request, away.problem, away.refusal, f"could not {away.doing}")


def _redis_error(request: Request, error: Exception) -> Response:
    """Return the response to a Redis error that was not translated: 503 if Redis is down or refuses, else 500."""
    refusal = refusal_of(error)
    if refusal is None and not isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return _internal(request, error)
    return _unavailable(STORE_UNAVAILABLE, request, str(error), refusal, "the request was not completed")


def _unavailable(kind: Kind, request: Request, problem: str, refusal: RedisRefusal | None, outcome: str) -> Response:
    """Return the response to a request that failed because of Redis."""
    code = None if refusal is None else refusal.code
    logger.warning(kind.title, extra={"path": request.url.path, "problem": problem, "refusal": code})
    again = f"send the same request again in {RETRY_AFTER_S} seconds"
    if refusal is None:
        seen, hint = "Redis did not answer", "check that the Redis at REDIS_URL is up and accepts connections"
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
        return render(
            Refusal(
                MALFORMED_JSON,
                f"the body is not valid JSON at character {errors[0]['loc'][-1]}; correct it and send it again",
            )
        )
    return render(InvalidFields(field_problems(errors)))


def _http(request: Request, error: HTTPException) -> Response:
    kind = _BY_STATUS.get(error.status_code)
    if kind is None:
        kind = Kind(f"http-{error.status_code}", error.status_code, str(error.detail), "")
    match kind.status:
        case 400:
            detail = "expected a JSON body in UTF-8; encode it with a JSON library"
        case 404:
            detail = f"{shown(request.url.path)} does not exist; GET /openapi.json lists the paths"
        case 405:
            allowed = _allowed(request)
            detail = f"{shown(request.url.path)} does not support {shown(request.method)}; send {allowed}"
            return render(Refusal(kind, detail, headers={"Allow": allowed}))
        case _:
            detail = str(error.detail)
    return render(Refusal(kind, detail, headers=error.headers))


def _allowed(request: Request) -> str:
    """Return the methods of all routes with the request's path. Starlette lists only those of the first route."""
    methods = {
        method
        for route in request.app.routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }
    return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))


def _internal(request: Request, error: Exception) -> Response:
    incident = uuid4().hex[:12]
    logger.error("request failed", extra={"path": request.url.path, "incident": incident}, exc_info=error)
    return render(Refusal(INTERNAL, f"the server failed unexpectedly; search its log for incident {incident}"))
