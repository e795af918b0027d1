"""Jobs: where an answer sends its caller, and what is known of one."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Request, Response

from sploot_cluster.api.admission import BEARER, READS, Admission
from sploot_cluster.api.answers import Job, JobAccepted
from sploot_cluster.api.problems import NOT_FOUND, QUEUE_UNAVAILABLE, Refusal, documented, shown
from sploot_cluster.jobs import JobQueue, JobRef

PREFIX: Final = "/api/v1/internal"

# Longer than any id that a queue gives.
MAX_JOB_ID: Final = 200


def accepted(job: JobRef, request: Request, response: Response) -> JobAccepted:
    """The answer for a job that was enqueued, and its ``Location``."""
    # relative, because only the caller knows under which name it reached us; root_path is where we are mounted
    root = request.scope.get("root_path", "").rstrip("/")
    response.headers["Location"] = f"{root}{PREFIX}/jobs/{quote(job.job_id, safe='')}"
    return JobAccepted.of(job)


def location_header() -> dict[str, Any]:
    """How the OpenAPI document describes an answer made by :func:`accepted`."""
    return {
        "description": "The job is enqueued.",
        "headers": {"Location": {"description": "Where to ask for the job.", "schema": {"type": "string"}}},
    }


def jobs_router(admission: Admission, jobs: JobQueue) -> APIRouter:
    """The routes under ``/jobs``."""
    router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=admission.route_class(), dependencies=[BEARER])

    @router.get(
        "/{job_id}",
        operation_id="get_job",
        summary="What became of a job",
        responses=documented(*READS, NOT_FOUND, QUEUE_UNAVAILABLE),
    )
    def get_job(job_id: str) -> Job:
        """Its state, and one sentence that says why it waits, what it is doing, or how it ended."""
        job = jobs.job(job_id) if len(job_id) <= MAX_JOB_ID else None
        if job is None:
            detail = f"there is no job {shown(job_id)}: it was never enqueued, or ended more than a day ago"
            raise Refusal(NOT_FOUND, detail)
        return Job.of(job)

    return router
