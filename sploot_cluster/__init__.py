"""Groups every pet's media into clusters and keeps people's corrections for ever.

``ClusterService`` holds the use cases, without any queue. It is loaded on first use, so that ``sploot_cluster.errors``
can be imported where numpy is not installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sploot_cluster.service import ClusterService

__all__ = ["ClusterService"]


def __getattr__(name: str) -> object:
    if name == "ClusterService":
        from sploot_cluster.service import ClusterService

        return ClusterService
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
