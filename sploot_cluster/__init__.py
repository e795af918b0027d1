"""The library that groups each pet's items into clusters and never undoes a correction that a user made.

``ClusterService`` has every operation and needs no queue. docs/reference/library.md documents the names below. Each is
loaded on first use, so that ``sploot_cluster.errors`` can be imported without numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sploot_cluster.density import cluster_densely
    from sploot_cluster.errors import ClusterError, InvalidInput, RevisionConflict, StoreUnavailable
    from sploot_cluster.pet.models import ClusterId, MediaId, PetId, PetView
    from sploot_cluster.service import ClusterService
    from sploot_cluster.settings import ClusterSettings
    from sploot_cluster.store.memory import MemoryPetStore
    from sploot_cluster.store.redis import RedisPetStore

__version__ = "0.1.0"

__all__ = [
    "ClusterError",
    "ClusterId",
    "ClusterService",
    "ClusterSettings",
    "InvalidInput",
    "MediaId",
    "MemoryPetStore",
    "PetId",
    "PetView",
    "RedisPetStore",
    "RevisionConflict",
    "StoreUnavailable",
    "cluster_densely",
]

_MODULES: Final = {
    "ClusterError": "errors",
    "ClusterId": "pet.models",
    "ClusterService": "service",
    "ClusterSettings": "settings",
    "InvalidInput": "errors",
    "MediaId": "pet.models",
    "MemoryPetStore": "store.memory",
    "PetId": "pet.models",
    "PetView": "pet.models",
    "RedisPetStore": "store.redis",
    "RevisionConflict": "errors",
    "StoreUnavailable": "errors",
    "cluster_densely": "density",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # cached, so that the next use does not call this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
