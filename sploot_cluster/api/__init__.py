"""The internal HTTP API: FastAPI, mountable in any ASGI application.

It parses, calls what was handed in, and renders. Reading goes to a ``PetReader`` (``ClusterService`` is one), work to a
``JobQueue``; it knows no queue and loads no engine. One module per subject: ``clusters``, ``embeddings``, ``pets``,
``jobs``, ``health``; ``door`` stands before them, ``problems`` answers what they refuse.
"""

from sploot_cluster.api.app import create_app
from sploot_cluster.api.health import ReadinessCheck, ReadinessReport
from sploot_cluster.api.idempotency import IdempotencyStore, MemoryIdempotencyStore, RedisIdempotencyStore
from sploot_cluster.api.loopback import check_bind
from sploot_cluster.api.pets import PetReader
from sploot_cluster.api.server import serve
from sploot_cluster.api.tokens import Role, Token, Tokens

__all__ = [
    "IdempotencyStore",
    "MemoryIdempotencyStore",
    "PetReader",
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
