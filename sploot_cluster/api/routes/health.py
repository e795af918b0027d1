"""What probes and scrapers ask: alive, ready, metrics. Nobody needs a token for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.responses import Response

from sploot_cluster.api.answers import Alive, Ready
from sploot_cluster.api.problems import (
    INTERNAL,
    NOT_LOOPBACK,
    NOT_READY,
    RETRY_AFTER_S,
    FieldProblem,
    Refusal,
    documented,
)


@dataclass(frozen=True, slots=True)
class ReadinessCheck:
    """One thing that the server needs, e.g. Redis.

    Attributes:
        problem: what is wrong with it; None when nothing is.
        hint: what to do about it.
    """

    name: str
    problem: str | None = None
    hint: str = ""


@dataclass(frozen=True, slots=True)
class ReadinessReport:
    """Everything that the server needs, looked at just now."""

    checks: Sequence[ReadinessCheck] = ()

    @property
    def failing(self) -> Sequence[ReadinessCheck]:
        return [check for check in self.checks if check.problem is not None]


def health_router(
    ready: Callable[[], ReadinessReport] | None, metrics: Callable[[], tuple[bytes, str]] | None
) -> APIRouter:
    """The routes ``/healthz`` and ``/readyz``, and ``/metrics`` if somebody makes them.

    Args:
        ready: looks at what the server needs; without it, a server that answers is ready.
        metrics: the exposition and its media type.
    """
    router = APIRouter(tags=["health"])

    @router.get("/healthz", operation_id="get_health", summary="Alive?", responses=documented(NOT_LOOPBACK, INTERNAL))
    def get_health() -> Alive:
        """200 as long as the process answers. Looks at nothing else, so that Redis's failures restart nobody."""
        return Alive()

    @router.get(
        "/readyz",
        operation_id="get_readiness",
        summary="Ready for requests?",
        responses=documented(NOT_LOOPBACK, INTERNAL, NOT_READY),
    )
    def get_readiness() -> Ready:
        """200 when everything that requests need is there; 503 names what is not, and the hint."""
        report = ready() if ready else ReadinessReport()
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
            summary="Metrics for Prometheus",
            response_class=Response,
            responses={
                **documented(NOT_LOOPBACK, INTERNAL),
                200: {"description": "The exposition.", "content": {"text/plain": {"schema": {"type": "string"}}}},
            },
        )
        def get_metrics() -> Response:
            """The same as on the workers' port: samples are read from Redis."""
            exposition, media_type = metrics()
            return Response(exposition, headers={"Content-Type": media_type})

    return router
