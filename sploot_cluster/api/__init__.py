"""The internal HTTP API: FastAPI, mountable in any ASGI application.

It parses, calls what was handed in, and renders. Looking goes to a ``PetService`` such as ``ClusterService``, work to a
``JobQueue``; it knows no queue and loads no engine. One module per subject: ``clusters``, ``embeddings``, ``pets``,
``jobs``, ``health``; ``door`` stands before them, ``problems`` answers what they refuse.
"""

from sploot_cluster.api.app import create_app
from sploot_cluster.api.idempotency import IdempotencyStore, MemoryIdempotencyStore, RedisIdempotencyStore
from sploot_cluster.api.loopback import check_bind
from sploot_cluster.api.routes.health import ReadinessCheck, ReadinessReport
from sploot_cluster.api.routes.pets import PetService
from sploot_cluster.api.server import serve
from sploot_cluster.api.tokens import Role, Token, Tokens

__all__ = [
    "IdempotencyStore",
    "MemoryIdempotencyStore",
    "PetService",
    "ReadinessCheck",
    "ReadinessReport",
    "RedisIdempotencyStore",
    "Role",
    "Token",
    "Tokens",
    "check_bind",
    "create_app",
    "serve",
]
