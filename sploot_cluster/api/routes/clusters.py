"""Routes that enqueue reclusters and corrections of a pet's clusters, and that preview and apply reclusters."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Header, Request, Response
from starlette.concurrency import run_in_threadpool

from sploot_cluster.api.admission import BEARER, IDEMPOTENCY_KEY, WRITES, Admission, CallerOf
from sploot_cluster.api.answers import MAX_MOVES, Applied, JobAccepted
from sploot_cluster.api.bodies import CorrectionBody, Recluster, body_of
from sploot_cluster.api.preconditions import ARRIVALS_HEADER, IfMatch, Revisions, expected_revision
from sploot_cluster.api.problems import (
    ALREADY_MADE,
    ALREADY_UNDONE,
    NOT_FOUND,
    PREVIEW_FAILED,
    PREVIEW_REFUSED,
    STALE_PAGE,
    STALE_PREVIEW,
    FieldProblem,
    InvalidFields,
    Refusal,
    documented,
    field_problem,
)
from sploot_cluster.api.routes.jobs import PREFIX, accepted, location_header
from sploot_cluster.api.tokens import Caller
from sploot_cluster.decide.corrections import VERBS
from sploot_cluster.decide.corrections.base import Request as CorrectionRequest
from sploot_cluster.errors import AlreadyMade, AlreadyUndone, StalePreview, UnknownPet
from sploot_cluster.jobs import ENDED, JobQueue, JobRef
from sploot_cluster.pet.models import PetId, Reclustered
from sploot_cluster.pet.previews import Previewed

PREVIEW_POLL_S, LONGEST_POLL_S = 0.05, 0.4

Prefer = Annotated[
    str | None,
    Header(description="`respond-async` (RFC 7240): return 202 with the job of a preview at once, without waiting."),
]


class Previews(Revisions, Protocol):
    """The part of the service that checks corrections and that stores and applies previews."""

    def check(self, request: CorrectionRequest[Any]) -> None: ...

    def previewed(self, pet: PetId, token: str | None = ...) -> Previewed: ...

    def apply(self, pet: PetId, token: str, *, by: str) -> Reclustered: ...


def clusters_router(admission: Admission, jobs: JobQueue, service: Previews, *, preview_wait_s: float) -> APIRouter:
    """Return the routes under ``/clusters``. A request waits up to ``preview_wait_s`` seconds for its preview."""
    router = APIRouter(
        prefix=f"{PREFIX}/clusters",
        tags=["clusters"],
        route_class=admission.route_class(),
        dependencies=[BEARER, IDEMPOTENCY_KEY],
        responses={**documented(*WRITES), 202: location_header()},
    )

    @router.post(
        "/recluster",
        operation_id="recluster",
        status_code=202,
        summary="Recluster a pet, or preview a recluster",
        responses={
            200: {
                "description": "A preview, or the result of one that was applied.",
                "model": Previewed | Applied,
            },
            **documented(STALE_PREVIEW, PREVIEW_FAILED, PREVIEW_REFUSED),
        },
    )
    async def recluster(
        body: Recluster, caller: CallerOf, request: Request, response: Response, prefer: Prefer = None
    ) -> JobAccepted | Previewed | Applied:
        """Enqueue a recluster, or preview one, or apply a preview.

        At most one recluster waits per pet: if one is already waiting, its job is returned with `coalesced`. A preview
        is computed by a worker and returned when it is ready; if that takes too long, or with `Prefer: respond-async`,
        its job is returned instead. Repeat the request, or follow the job: its result has the token of
        `GET …/pets/{pet_id}/previews/{token}`. Applying a preview takes effect immediately: it makes exactly the
        changes that the preview showed, or none.
        """
        if body.preview and body.apply is not None:
            both = FieldProblem(field="apply", problem="is sent together with preview", hint="send one of the two")
            raise InvalidFields([both])
        if body.backend is not None and not body.preview:
            bare = FieldProblem(field="backend", problem="is sent without preview", hint="send preview as true")
            raise InvalidFields([bare])
        try:
            if body.apply is not None:
                result = await run_in_threadpool(service.apply, PetId(body.pet_id), body.apply, by=caller.name)
                response.status_code = 200
                return Applied(pet_id=body.pet_id, result=result)
            if body.preview:
                wait_s = 0.0 if "respond-async" in (prefer or "").lower() else preview_wait_s
                return await _previewed(body, caller, request, response, wait_s)
        except StalePreview as stale:
            raise Refusal(STALE_PREVIEW, str(stale)) from None
        job = await run_in_threadpool(jobs.recluster, body.pet_id, requested_by=caller.name, reason=body.reason)
        return accepted(job, request, response)

    async def _previewed(
        body: Recluster, caller: Caller, request: Request, response: Response, wait_s: float
    ) -> JobAccepted | Previewed:
        pet_id = body.pet_id
        job = await run_in_threadpool(jobs.preview, pet_id, requested_by=caller.name, backend=body.backend)
        token = await _await_preview(jobs, job, pet_id, wait_s=wait_s) if wait_s else None
        if token is None:
            return accepted(job, request, response)
        response.status_code, response.headers["Cache-Control"] = 200, "no-store"
        return (await run_in_threadpool(service.previewed, PetId(pet_id), token)).up_to(MAX_MOVES)

    enqueued = location_header()
    corrected = {
        **documented(NOT_FOUND, ALREADY_MADE, ALREADY_UNDONE, STALE_PAGE),
        202: {**enqueued, "headers": enqueued["headers"] | ARRIVALS_HEADER},
    }

    def add(verb: str, request_type: type[CorrectionRequest[Any]]) -> None:
        def correct(
            body: CorrectionBody, caller: CallerOf, request: Request, response: Response, if_match: IfMatch = None
        ) -> JobAccepted:
            revision = expected_revision(service, PetId(body.to_request().pet_id), if_match, response)
            correction = body.to_request(requested_by=caller.name, expected_revision=revision)
            try:
                service.check(correction)
            except UnknownPet as unknown:
                raise Refusal(NOT_FOUND, f"{unknown.problem}; {unknown.hint}") from None
            except AlreadyMade as made:
                raise Refusal(ALREADY_MADE, str(made), errors=[field_problem(made)]) from None
            except AlreadyUndone as undone:
                raise Refusal(ALREADY_UNDONE, f"{undone.problem}; {undone.hint}") from None
            return accepted(jobs.correct(correction), request, response)

        correct.__annotations__["body"] = body_of(request_type)
        router.post(
            f"/{verb}",
            operation_id=request_type.actor_name,
            status_code=202,
            summary=request_type.title,
            description=request_type.description(),
            responses=corrected,
        )(correct)

    for verb, request_type in VERBS.items():
        add(verb, request_type)
    return router


async def _await_preview(jobs: JobQueue, job: JobRef, pet_id: int, *, wait_s: float) -> str | None:
    """Wait until the job of a preview has succeeded. Return the token, or None if it takes longer than ``wait_s``.

    Does not occupy a thread while it waits, so that waiting previews do not block other requests.

    Raises:
        Refusal: the job failed or was refused.
    """
    ends_at, pause_s = time.monotonic() + wait_s, PREVIEW_POLL_S
    while True:
        status = await run_in_threadpool(jobs.job, job.job_id)
        if status is not None and status.state == "succeeded":
            return str((status.result or {})["token"])
        if status is not None and status.state in ENDED:
            if status.state == "refused":
                raise Refusal(PREVIEW_REFUSED, f"the preview of pet {pet_id} was refused: {status.reason}")
            raise Refusal(PREVIEW_FAILED, f"the preview of pet {pet_id} failed: {status.reason}")
        if time.monotonic() > ends_at:
            return None
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_POLL_S)
