"""The route for a job's status, and the response to a request that enqueued a job."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Request, Response

from sploot_cluster.api.admission import BEARER, READS, Admission
from sploot_cluster.api.answers import JobAccepted
from sploot_cluster.api.problems import NOT_FOUND, QUEUE_UNAVAILABLE, Refusal, documented, shown
from sploot_cluster.jobs import JobQueue, JobRef, JobStatus

PREFIX: Final = "/api/v1/internal"

# Maximum length of a job id in a path; every real id is shorter.
MAX_JOB_ID: Final = 200


def accepted(job: JobRef, request: Request, response: Response) -> JobAccepted:
    """Return the body of the response for an enqueued job, and set the ``Location`` header."""
    # a path without a host, because only the caller knows the host; root_path is where the application is mounted
    root = request.scope.get("root_path", "").rstrip("/")
    response.headers["Location"] = f"{root}{PREFIX}/jobs/{quote(job.job_id, safe='')}"
    return JobAccepted.model_validate(job)


def location_header() -> dict[str, Any]:
    """Return the OpenAPI description of a response with the body of :func:`accepted`."""
    return {
        "description": "The job was enqueued.",
        "headers": {"Location": {"description": "URL of the job's status.", "schema": {"type": "string"}}},
    }


def jobs_router(admission: Admission, jobs: JobQueue) -> APIRouter:
    """Return the routes under ``/jobs``."""
    router = APIRouter(
        prefix=f"{PREFIX}/jobs", tags=["jobs"], route_class=admission.route_class(), dependencies=[BEARER]
    )

    @router.get(
        "/{job_id}",
        operation_id="get_job",
        summary="Get the status of a job",
        responses=documented(*READS, NOT_FOUND, QUEUE_UNAVAILABLE),
    )
    def get_job(job_id: str) -> JobStatus:
        """Return the state of a job, with one sentence on why it waits, what it is doing, or how it ended."""
        job = jobs.job(job_id) if len(job_id) <= MAX_JOB_ID else None
        if job is None:
            detail = f"job {shown(job_id)} is unknown: it was never enqueued, or ended more than a day ago"
            raise Refusal(NOT_FOUND, detail)
        return job

    return router
