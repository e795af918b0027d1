"""Routes that enqueue reclusters and corrections of a pet's clusters, and that preview and apply reclusters."""

from __future__ import annotations

import time
from typing import Any, Final, Protocol

from fastapi import APIRouter, Request, Response

from sploot_cluster.api.admission import BEARER, IDEMPOTENCY_KEY, WRITES, Admission, CallerOf
from sploot_cluster.api.answers import MAX_MOVES, Applied, JobAccepted
from sploot_cluster.api.bodies import CorrectionBody, Recluster, body_of
from sploot_cluster.api.preconditions import ARRIVALS_HEADER, IfMatch, Revisions, expected_revision
from sploot_cluster.api.problems import (
    PREVIEW_FAILED,
    STALE_PAGE,
    STALE_PREVIEW,
    FieldProblem,
    InvalidFields,
    Refusal,
    documented,
)
from sploot_cluster.api.routes.jobs import PREFIX, accepted, location_header
from sploot_cluster.api.tokens import Caller
from sploot_cluster.decide.corrections import VERBS
from sploot_cluster.decide.corrections.base import Request as CorrectionRequest
from sploot_cluster.errors import StalePreview
from sploot_cluster.jobs import ENDED, JobQueue, JobRef
from sploot_cluster.pet.models import PetId, Reclustered
from sploot_cluster.pet.previews import Previewed

PREVIEW_POLL_S: Final = 0.05


class Previews(Revisions, Protocol):
    """The part of the service that stores and applies previews."""

    def previewed(self, pet: PetId, token: str | None = ...) -> Previewed: ...

    def apply(self, pet: PetId, token: str, *, by: str) -> Reclustered: ...


def clusters_router(admission: Admission, jobs: JobQueue, service: Previews, *, preview_wait_s: float) -> APIRouter:
    """Return the routes under ``/clusters``; a request waits up to ``preview_wait_s`` for its preview."""
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
            **documented(STALE_PREVIEW, PREVIEW_FAILED),
        },
    )
    def recluster(
        body: Recluster, caller: CallerOf, request: Request, response: Response
    ) -> JobAccepted | Previewed | Applied:
        """Enqueue a recluster, or preview one, or apply a preview.

        At most one recluster waits per pet: if one is waiting already, its job is returned with `coalesced`. A preview
        is computed by a worker and returned when it is ready; if that takes too long, its job is returned instead:
        repeat the request. Applying a preview makes exactly the changes that it showed, at once, or none.
        """
        if body.preview and body.apply is not None:
            both = FieldProblem(field="apply", problem="is sent together with preview", hint="send one of the two")
            raise InvalidFields([both])
        try:
            if body.apply is not None:
                result = service.apply(PetId(body.pet_id), body.apply, by=caller.name)
                response.status_code = 200
                return Applied(pet_id=body.pet_id, result=result)
            if body.preview:
                return _previewed(body.pet_id, caller, request, response)
        except StalePreview as stale:
            raise Refusal(STALE_PREVIEW, str(stale)) from None
        job = jobs.recluster(body.pet_id, requested_by=caller.name, reason=body.reason)
        return accepted(job, request, response)

    def _previewed(pet_id: int, caller: Caller, request: Request, response: Response) -> JobAccepted | Previewed:
        job = jobs.preview(pet_id, requested_by=caller.name)
        token = _await_preview(jobs, job, pet_id, wait_s=preview_wait_s)
        if token is None:
            return accepted(job, request, response)
        response.status_code, response.headers["Cache-Control"] = 200, "no-store"
        return service.previewed(PetId(pet_id), token).up_to(MAX_MOVES)

    enqueued = location_header()
    corrected = {
        **documented(STALE_PAGE),
        202: {**enqueued, "headers": enqueued["headers"] | ARRIVALS_HEADER},
    }

    def add(verb: str, request_type: type[CorrectionRequest[Any]]) -> None:
        def correct(
            body: CorrectionBody, caller: CallerOf, request: Request, response: Response, if_match: IfMatch = None
        ) -> JobAccepted:
            revision = expected_revision(service, PetId(body.to_request().pet_id), if_match, response)
            job = jobs.correct(body.to_request(requested_by=caller.name, expected_revision=revision))
            return accepted(job, request, response)

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


def _await_preview(jobs: JobQueue, job: JobRef, pet_id: int, *, wait_s: float) -> str | None:
    """Return the token of a preview once its job has succeeded; None if it takes longer than ``wait_s``.

    Raises:
        Refusal: the job failed.
    """
    ends_at = time.monotonic() + wait_s
    while True:
        status = jobs.job(job.job_id)
        if status is not None and status.state == "succeeded":
            return str((status.result or {})["token"])
        if status is not None and status.state in ENDED:
            raise Refusal(PREVIEW_FAILED, f"the preview of pet {pet_id} failed: {status.reason}")
        if time.monotonic() > ends_at:
            return None
        time.sleep(PREVIEW_POLL_S)
