"""Asking for work on a pet's clusters: a recluster, or a correction."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from sploot_cluster.api.answers import JobAccepted
from sploot_cluster.api.bodies import Dismiss, Exclude, Merge, Recluster, Restore, Split, Undo
from sploot_cluster.api.door import BEARER, IDEMPOTENCY_KEY, WRITES, CallerOf, Door
from sploot_cluster.api.jobs import accepted, location_header
from sploot_cluster.api.preconditions import IfMatch, Revisions, seen_revision
from sploot_cluster.api.problems import STALE_PAGE, documented
from sploot_cluster.jobs import JobQueue
from sploot_cluster.models import PetId


def clusters_router(door: Door, jobs: JobQueue, revisions: Revisions) -> APIRouter:
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

    def seen(pet_id: int, if_match: str | None) -> int | None:
        return seen_revision(revisions, PetId(pet_id), if_match)

    corrected = documented(STALE_PAGE)

    @router.post(
        "/merge", operation_id="merge_clusters", status_code=202, summary="Make clusters one", responses=corrected
    )
    def merge(
        body: Merge, caller: CallerOf, request: Request, response: Response, if_match: IfMatch = None
    ) -> JobAccepted:
        """The media stay together whatever is computed later, until it is undone. Old ids lead to the new cluster."""
        job = jobs.merge(
            body.pet_id,
            body.cluster_ids,
            body.into,
            requested_by=caller.name,
            expected_revision=seen(body.pet_id, if_match),
        )
        return accepted(job, request, response)

    @router.post(
        "/split",
        operation_id="split_cluster",
        status_code=202,
        summary="Make media another cluster",
        responses=corrected,
    )
    def split(
        body: Split, caller: CallerOf, request: Request, response: Response, if_match: IfMatch = None
    ) -> JobAccepted:
        """The media stay together, and apart from those they leave, whatever is computed later, until it is undone."""
        job = jobs.split(
            body.pet_id,
            body.cluster_id,
            body.media_ids,
            requested_by=caller.name,
            expected_revision=seen(body.pet_id, if_match),
        )
        return accepted(job, request, response)

    @router.post(
        "/exclude",
        operation_id="exclude_media",
        status_code=202,
        summary="Not these in this cluster",
        responses=corrected,
    )
    def exclude(
        body: Exclude, caller: CallerOf, request: Request, response: Response, if_match: IfMatch = None
    ) -> JobAccepted:
        """The media leave the cluster and never come back to those that remain; a recluster may find them another."""
        job = jobs.exclude(
            body.pet_id,
            body.cluster_id,
            body.media_ids,
            requested_by=caller.name,
            expected_revision=seen(body.pet_id, if_match),
        )
        return accepted(job, request, response)

    @router.post(
        "/dismiss",
        operation_id="dismiss_media",
        status_code=202,
        summary="Have media in no cluster for ever",
        responses=corrected,
    )
    def dismiss(
        body: Dismiss, caller: CallerOf, request: Request, response: Response, if_match: IfMatch = None
    ) -> JobAccepted:
        """No arrival and no recluster assigns or absorbs them, until it is undone."""
        job = jobs.dismiss(
            body.pet_id, body.media_ids, requested_by=caller.name, expected_revision=seen(body.pet_id, if_match)
        )
        return accepted(job, request, response)

    @router.post(
        "/undo", operation_id="undo_feedback", status_code=202, summary="Take back a correction", responses=corrected
    )
    def undo(
        body: Undo, caller: CallerOf, request: Request, response: Response, if_match: IfMatch = None
    ) -> JobAccepted:
        """Any correction, an undo as well, however old; what came after it is kept."""
        job = jobs.undo(
            body.pet_id, body.revision, requested_by=caller.name, expected_revision=seen(body.pet_id, if_match)
        )
        return accepted(job, request, response)

    @router.post(
        "/restore",
        operation_id="restore_revision",
        status_code=202,
        summary="Make a pet what it was",
        responses=corrected,
    )
    def restore(
        body: Restore, caller: CallerOf, request: Request, response: Response, if_match: IfMatch = None
    ) -> JobAccepted:
        """The labels of an older revision, as a new one. Corrections still hold; media that came since stay."""
        job = jobs.restore(
            body.pet_id,
            body.revision,
            requested_by=caller.name,
            expected_revision=seen(body.pet_id, if_match),
        )
        return accepted(job, request, response)

    return router
