"""The route that returns the caller's own name, role and permitted operations."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from pydantic import BaseModel, Field

from sploot_cluster.api.admission import BEARER, READS, Admission, CallerOf
from sploot_cluster.api.problems import documented
from sploot_cluster.api.routes.jobs import PREFIX
from sploot_cluster.api.tokens import Role


class Whoami(BaseModel):
    """A caller, and what it may do."""

    name: str = Field(description="The name of its token; `loopback` if the server has no tokens.")
    role: Role
    has_token: bool = Field(description="Whether the caller was recognised by a token.")
    may_call: Sequence[str] = Field(description="The operation ids of this document that the caller may call.")


def whoami_router(admission: Admission) -> APIRouter:
    """Return the route ``/whoami``."""
    router = APIRouter(prefix=PREFIX, tags=["caller"], route_class=admission.route_class(), dependencies=[BEARER])

    @router.get(
        "/whoami", operation_id="whoami", summary="Get the caller's name and role", responses=documented(*READS)
    )
    def whoami(caller: CallerOf) -> Whoami:
        """Return the name and role of the token, and the operations that it may call."""
        return Whoami(name=caller.name, role=caller.role, has_token=bool(admission.tokens), may_call=caller.may_call)

    return router
