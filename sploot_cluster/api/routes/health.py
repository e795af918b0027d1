"""Routes for probes and scrapers: health, readiness and metrics. ``public`` determines which of them need a token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter
from starlette.responses import Response

from sploot_cluster.api.answers import Alive, Ready
from sploot_cluster.api.problems import (
    INTERNAL,
    NOT_LOOPBACK,
    NOT_READY,
    RETRY_AFTER_S,
    UNAUTHENTICATED,
    FieldProblem,
    Refusal,
    documented,
)

PROBE_THREADS: Final = 4


@dataclass(frozen=True, slots=True)
class ReadinessCheck:
    """The check of one dependency of the server, e.g. Redis.

    Attributes:
        problem: what is wrong with it, or None if it works.
        hint: how to fix it.
    """

    name: str
    problem: str | None = None
    hint: str = ""


@dataclass(frozen=True, slots=True)
class ReadinessReport:
    """The current state of all dependencies of the server."""

    checks: Sequence[ReadinessCheck] = ()

    @property
    def failing(self) -> Sequence[ReadinessCheck]:
        return [check for check in self.checks if check.problem is not None]


def health_router(
    ready: Callable[[], ReadinessReport] | None, metrics: Callable[[], tuple[bytes, str]] | None
) -> APIRouter:
    """Return the routes ``/healthz`` and ``/readyz``, and ``/metrics`` if ``metrics`` is given.

    Args:
        ready: checks the dependencies of the server. Without it, the server is always ready.
        metrics: returns the exposition and its media type.
    """
    router = APIRouter(tags=["health"])
    # dedicated threads, because probes must be answered while all other threads wait, e.g. for Redis
    own_threads = CapacityLimiter(PROBE_THREADS)

    @router.get(
        "/healthz",
        operation_id="get_health",
        summary="Check that the server is alive",
        responses=documented(UNAUTHENTICATED, NOT_LOOPBACK, INTERNAL),
    )
    async def get_health() -> Alive:
        """Answer 200 while the process runs. Checks nothing else, so that a Redis outage does not restart servers."""
        return Alive()

    @router.get(
        "/readyz",
        operation_id="get_readiness",
        summary="Check that the server is ready for requests",
        responses=documented(UNAUTHENTICATED, NOT_LOOPBACK, INTERNAL, NOT_READY),
    )
    async def get_readiness() -> Ready:
        """Answer 200 if all dependencies work, or 503 with those that do not work and how to fix them."""
        report = await to_thread.run_sync(ready, limiter=own_threads) if ready else ReadinessReport()
        if report.failing:
            errors = [
                FieldProblem(field=check.name, problem=check.problem or "", hint=check.hint) for check in report.failing
            ]
            detail = "; ".join(f"{check.name}: {check.problem}" for check in report.failing)
            raise Refusal(NOT_READY, detail, errors=errors, headers={"Retry-After": str(RETRY_AFTER_S)})
        return Ready(checks=[check.name for check in report.checks])

    if metrics is not None:

        @router.get(
            "/metrics",
            operation_id="get_metrics",
            summary="Return metrics for Prometheus",
            response_class=Response,
            responses={
                **documented(UNAUTHENTICATED, NOT_LOOPBACK, INTERNAL),
                200: {
                    "description": "The metrics, as a Prometheus exposition.",
                    "content": {"text/plain": {"schema": {"type": "string"}}},
                },
            },
        )
        async def get_metrics() -> Response:
            """Return the metrics that workers also serve on their own port. They are read from Redis."""
            exposition, media_type = await to_thread.run_sync(metrics, limiter=own_threads)
            return Response(exposition, headers={"Content-Type": media_type})

    return router
