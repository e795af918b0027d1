"""Routes for a page that shows a pet: its waiting and running jobs, its stored preview, and a map of its items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, Field

from sploot_cluster.api.admission import BEARER, READS, Admission
from sploot_cluster.api.answers import MAX_MOVES
from sploot_cluster.api.preconditions import IfNoneMatch, tagged
from sploot_cluster.api.problems import (
    QUEUE_UNAVAILABLE,
    STALE_PREVIEW,
    UNREADABLE_PET,
    Refusal,
    documented,
)
from sploot_cluster.api.routes.jobs import PREFIX
from sploot_cluster.api.routes.pets import PetInPath, PetService
from sploot_cluster.engine.projection import PetMap
from sploot_cluster.errors import StalePreview
from sploot_cluster.jobs import JobQueue, JobStatus
from sploot_cluster.pet.models import PetId
from sploot_cluster.pet.previews import Previewed

MAX_POINTS: Final = 20_000


class PetWork(BaseModel):
    """The unfinished work on a pet, and the revisions by which a page notices that it is stale."""

    pet_id: int
    revision: int = Field(description="The newest revision. Arrivals create new revisions, too.")
    moved_at: int = Field(description="The revision at which a user, a recluster or a deletion last moved items.")
    jobs: Sequence[JobStatus] = Field(
        description="Unfinished jobs among the newest 500 tracked ones, in the order in which they last changed."
    )


def pet_work_router(admission: Admission, jobs: JobQueue, service: PetService) -> APIRouter:
    """Return the routes ``/pets/{pet_id}/jobs`` and ``/pets/{pet_id}/previews/{token}``."""
    router = APIRouter(prefix=f"{PREFIX}/pets/{{pet_id}}", route_class=admission.route_class(), dependencies=[BEARER])

    @router.get(
        "/jobs",
        operation_id="list_pet_jobs",
        tags=["jobs"],
        summary="List the unfinished jobs of a pet",
        responses=documented(*READS, QUEUE_UNAVAILABLE, UNREADABLE_PET),
    )
    def list_pet_jobs(pet_id: PetInPath) -> PetWork:
        """Return corrections, reclusters and single items that wait or run, and whether the pet has changed."""
        unfinished = jobs.unfinished(pet_id)
        pet = PetId(pet_id)
        # read the revisions after the jobs, so that they include the changes of every job that has ended
        return PetWork(pet_id=pet_id, jobs=unfinished, revision=service.revision(pet), moved_at=service.moved_at(pet))

    @router.get(
        "/previews/{token}",
        operation_id="get_preview",
        tags=["clusters"],
        summary="Get a preview that a worker has computed",
        responses=documented(*READS, STALE_PREVIEW, UNREADABLE_PET),
    )
    def get_preview(
        pet_id: PetInPath,
        token: Annotated[str, Path(description="The token in the result of the preview's job.", max_length=200)],
        response: Response,
    ) -> Previewed:
        """Return what the recluster would change. A preview expires after 15 minutes, or when a newer one is made."""
        try:
            found = service.previewed(PetId(pet_id), token)
        except StalePreview as stale:
            raise Refusal(STALE_PREVIEW, str(stale)) from None
        response.headers["Cache-Control"] = "no-store"
        return found.up_to(MAX_MOVES)

    @router.get(
        "/map",
        operation_id="get_map",
        tags=["pets"],
        summary="Get a pet's items as points of a map",
        response_model=PetMap,
        responses=documented(*READS, UNREADABLE_PET),
    )
    def get_map(
        pet_id: PetInPath,
        limit: Annotated[
            int, Query(description="Maximum number of items, evenly sampled.", ge=2, le=MAX_POINTS)
        ] = 5_000,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """Return items as points on their vectors' two principal axes. Corrections do not move the points."""
        found = service.map(PetId(pet_id), limit=limit)
        return tagged(found.revision, if_none_match, lambda: found)

    return router
