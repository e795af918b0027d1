"""Asking for work on a pet's clusters: recluster, merge, split, undo."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from sploot_cluster.api.answers import JobAccepted
from sploot_cluster.api.bodies import Merge, Recluster, Split, Undo
from sploot_cluster.api.door import BEARER, IDEMPOTENCY_KEY, WRITES, CallerOf, Door
from sploot_cluster.api.jobs import accepted, location_header
from sploot_cluster.api.problems import documented
from sploot_cluster.jobs import JobQueue


def clusters_router(door: Door, jobs: JobQueue) -> APIRouter:
    """The routes under ``/clusters``."""
    router = APIRouter(
        prefix="/clusters",
        tags=["clusters"],
        route_class=door.route_class(),
        dependencies=[BEARER, IDEMPOTENCY_KEY],
        responses={**documented(*WRITES), 202: location_header()},
    )

    @router.post("/recluster", operation_id="recluster", status_code=202, summary="Find a pet's clusters anew")
    def recluster(body: Recluster, caller: CallerOf, request: Request, response: Response) -> JobAccepted:
        """At most one recluster waits per pet: while one does, its job is answered, with `coalesced`."""
        job = jobs.recluster(body.pet_id, requested_by=caller.name, reason=body.reason)
        return accepted(job, request, response)

    @router.post("/merge", operation_id="merge_clusters", status_code=202, summary="Make clusters one")
    def merge(body: Merge, caller: CallerOf, request: Request, response: Response) -> JobAccepted:
        """The media stay together whatever is computed later, until it is undone. Old ids lead to the new cluster."""
        job = jobs.merge(body.pet_id, body.cluster_ids, body.into, requested_by=caller.name)
        return accepted(job, request, response)

    @router.post("/split", operation_id="split_cluster", status_code=202, summary="Make media another cluster")
    def split(body: Split, caller: CallerOf, request: Request, response: Response) -> JobAccepted:
        """The media stay together, and apart from those they leave, whatever is computed later, until it is undone."""
        job = jobs.split(body.pet_id, body.cluster_id, body.media_ids, requested_by=caller.name)
        return accepted(job, request, response)

    @router.post("/undo", operation_id="undo_feedback", status_code=202, summary="Take back a correction")
    def undo(body: Undo, caller: CallerOf, request: Request, response: Response) -> JobAccepted:
        """Any merge, split or undo, however old; what came after it is kept."""
        job = jobs.undo(body.pet_id, body.revision, requested_by=caller.name)
        return accepted(job, request, response)

    return router
