"""The internal HTTP API: FastAPI, mountable in any ASGI application.

It parses requests, calls a service, and renders responses. A ``PetService``, such as ``ClusterService``, reads pets; a
``JobQueue`` enqueues work. The API does not depend on a particular queue and does not load the engine. ``routes`` has
one module per subject; ``admission`` guards the routes, and ``problems`` renders their errors.
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
