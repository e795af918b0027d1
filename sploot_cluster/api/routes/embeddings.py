"""The route that ingests embeddings over HTTP, for producers that cannot write to Redis.

A single object gets the same response as any other request that enqueues a job. The entries of a list are accepted or
refused one by one: the status is 202 if all are accepted, 207 if only some are, and 422 if none is. If Redis fails
midway, the status for the whole list is 503; sending the list again is safe, because an item that was already ingested
is recognised by its id.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response

from sploot_cluster.api.admission import BEARER, IDEMPOTENCY_KEY, WRITES, Admission
from sploot_cluster.api.answers import EmbeddingAccepted, EmbeddingOutcome, EmbeddingOutcomes
from sploot_cluster.api.bodies import Embeddings, event_of
from sploot_cluster.api.problems import FieldProblem, InvalidFields, documented
from sploot_cluster.api.routes.jobs import PREFIX, accepted, location_header
from sploot_cluster.jobs import JobQueue


def embeddings_router(admission: Admission, jobs: JobQueue, *, max_batch: int) -> APIRouter:
    """Return the route ``/embeddings``, which accepts lists of up to ``max_batch`` entries."""
    router = APIRouter(
        prefix=PREFIX, tags=["embeddings"], route_class=admission.route_class(), dependencies=[BEARER, IDEMPOTENCY_KEY]
    )

    @router.post(
        "/embeddings",
        operation_id="ingest_embeddings",
        status_code=202,
        summary="Ingest embeddings",
        responses={
            **documented(*WRITES),
            202: {
                **location_header(),
                "description": "All entries are enqueued. A single object is answered with its job.",
            },
            207: {"description": "Some entries of the list were refused.", "model": EmbeddingOutcomes},
        },
    )
    def ingest_embeddings(
        body: Annotated[Embeddings, Body()], request: Request, response: Response
    ) -> EmbeddingAccepted | EmbeddingOutcomes:
        """Ingest one embedding or a list. Invalid entries of a list are refused, and all others are enqueued."""
        given: Any = body
        if not isinstance(given, list):
            job = jobs.ingest_event(event_of(given))
            if not job.withheld:
                accepted(job, request, response)
            return EmbeddingAccepted.model_validate(job)
        if not 1 <= len(given) <= max_batch:
            problem = FieldProblem(
                field="body", problem=f"has {len(given)} entries", hint=f"send 1 to {max_batch} entries at a time"
            )
            raise InvalidFields([problem])
        outcomes = [_outcome(jobs, index, entry) for index, entry in enumerate(given)]
        errors = [error for outcome in outcomes for error in outcome.errors]
        n_refused = sum(outcome.job is None for outcome in outcomes)
        if n_refused == len(outcomes):
            raise InvalidFields(errors)
        if n_refused:
            response.status_code = 207
        return EmbeddingOutcomes(accepted=len(outcomes) - n_refused, refused=n_refused, items=outcomes)

    return router


def _outcome(jobs: JobQueue, index: int, entry: object) -> EmbeddingOutcome:
    try:
        return EmbeddingOutcome(index=index, job=EmbeddingAccepted.model_validate(jobs.ingest_event(event_of(entry))))
    except InvalidFields as refused:
        placed = [error.model_copy(update={"field": _placed(index, error.field)}) for error in refused.errors]
    return EmbeddingOutcome(index=index, errors=placed)


def _placed(index: int, field: str) -> str:
    return f"[{index}]" if field == "body" else f"[{index}].{field}"
