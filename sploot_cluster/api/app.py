"""The application: its routers, put together from what is handed in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from starlette.concurrency import run_in_threadpool

from sploot_cluster.api import problems
from sploot_cluster.api.admission import Admission
from sploot_cluster.api.console import console_router
from sploot_cluster.api.idempotency import IdempotencyStore, MemoryIdempotencyStore
from sploot_cluster.api.loopback import LoopbackGuard
from sploot_cluster.api.routes.clusters import clusters_router
from sploot_cluster.api.routes.embeddings import embeddings_router
from sploot_cluster.api.routes.health import ReadinessReport, health_router
from sploot_cluster.api.routes.jobs import PREFIX, jobs_router
from sploot_cluster.api.routes.pets import PetService, pets_router
from sploot_cluster.api.routes.queues import queues_router
from sploot_cluster.api.tokens import Tokens
from sploot_cluster.jobs import JobQueue, JobTraces
from sploot_cluster.queues import QueueOperations

MAX_BODY_BYTES: Final = 1024 * 1024

MAX_BATCH: Final = 1_000

# A recluster of 10,000 media takes about a second; whoever waits for longer asks again.
PREVIEW_WAIT_S: Final = 20.0

# 1,000 embeddings of 512 values take 2.8 MB as base64 and 11 MB as JSON numbers.
MAX_EMBEDDINGS_BYTES: Final = 16 * 1024 * 1024

_DESCRIPTION: Final = """
Groups every pet's media into clusters, and keeps people's corrections for ever.

Work is enqueued and answered 202 with a `Location` to ask what became of it; it may run more than once and takes effect
once. Errors are `application/problem+json` (RFC 9457) and name the field and the hint. Send an `Idempotency-Key` with
every POST that you may have to repeat.

**Ids** of pets, clusters and revisions are whole numbers of 64 bits. A request takes each as a JSON number or as its
decimal digits in text (`42` or `"42"`: no sign, space, leading zero or fraction). Answers hold JSON numbers, written
exactly. JavaScript's `JSON.parse` rounds numbers beyond 2^53 to the id of *another* pet: keep ids as text, send them as
text, and read answers with a parser that keeps large integers, such as `/console/exact.js` of this server.

**`If-Match`** with the `ETag` of a pet makes a correction conditional on what its sender looked at. It holds while no
person, recluster or deletion has moved media since; media that arrived since do not matter, and `Arrivals-Since` counts
them. Otherwise the answer is 412 and lists the changes. For `If-None-Match`, every arrival is a new `ETag`.
"""

_TAGS: Final = [
    {"name": "clusters", "description": "Ask for a recluster, or correct clusters."},
    {"name": "embeddings", "description": "Hand in media that were embedded."},
    {"name": "pets", "description": "Look at a pet."},
    {"name": "jobs", "description": "Ask what became of a job."},
    {"name": "queues", "description": "Look at the queues, and hint them: plan, then apply."},
    {"name": "health", "description": "For probes and scrapers."},
]


class _Api(FastAPI):
    """FastAPI, whose document knows the one schema of all problems."""

    def openapi(self) -> dict[str, Any]:
        if not self.openapi_schema:
            document = super().openapi()
            template = "#/components/schemas/{model}"
            schema = problems.Problem.model_json_schema(ref_template=template)
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(schema.pop("$defs"))
            schemas["Problem"] = schema
            self.openapi_schema = document
        return self.openapi_schema


def create_app(
    *,
    service: PetService,
    jobs: JobQueue,
    traces: JobTraces | None = None,
    operations: QueueOperations | None = None,
    tokens: Tokens | None = None,
    idempotency: IdempotencyStore | None = None,
    ready: Callable[[], ReadinessReport] | None = None,
    metrics: Callable[[], tuple[bytes, str]] | None = None,
    on_close: Callable[[], None] | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    max_embeddings_bytes: int = MAX_EMBEDDINGS_BYTES,
    max_batch: int = MAX_BATCH,
    preview_wait_s: float = PREVIEW_WAIT_S,
) -> FastAPI:
    """The HTTP API as an ASGI application, to serve or to mount in another one.

    Everything handed in may block; it is called in a thread pool.

    Args:
        service: where pets are looked at and previews applied, e.g. ``ClusterService``.
        jobs: where work goes, e.g. ``tasks.client.ClusterTasks``.
        traces: what queues and records still say of a pet that is deleted, e.g. ``tasks.erasure.Erasure``; without it
            only the pet itself is.
        operations: what operators do with queues, e.g. ``tasks.queue_ops.Operations``; without it there are no such
            addresses.
        tokens: who may call. None, or empty: everybody on this machine, and nobody else, wherever it is mounted.
        idempotency: remembers answers by ``Idempotency-Key``. None: this process's memory, which other processes and
            the next start do not share; servers of more than one process want ``RedisIdempotencyStore``.
        ready: looks at what requests need, for ``/readyz``.
        metrics: makes the exposition and its media type, for ``/metrics``; without it there is no such address.
        on_close: closes what was handed in, when the server stops; where the application is mounted in another one, the
            other one has to call it, because ASGI tells only the outermost.
        max_body_bytes: of a body; ``max_embeddings_bytes`` of one with embeddings, ``max_batch`` entries long at most.
        preview_wait_s: how long a request waits for a worker to compute its preview.
    """
    tokens = tokens or Tokens()
    app = _Api(
        title="sploot-cluster",
        version=_version(),
        summary="Media clusters of pets, corrected by people",
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        # the pages that FastAPI would serve load scripts from elsewhere, which could then call this API
        docs_url=None,
        redoc_url=None,
        # a redirect would turn a missing address into a second request, and show Host back
        redirect_slashes=False,
        lifespan=_closing(on_close),
    )
    problems.install(app)
    if not tokens:
        app.add_middleware(LoopbackGuard)

    held = idempotency or MemoryIdempotencyStore()
    admission = Admission(tokens, held, max_body_bytes)
    wide_admission = Admission(tokens, held, max_embeddings_bytes)
    internal = APIRouter(prefix=PREFIX)
    internal.include_router(clusters_router(admission, jobs, service, preview_wait_s=preview_wait_s))
    internal.include_router(embeddings_router(wide_admission, jobs, max_batch=max_batch))
    internal.include_router(pets_router(admission, service, traces))
    internal.include_router(jobs_router(admission, jobs))
    if operations is not None:
        internal.include_router(queues_router(admission, operations))
    app.include_router(internal)
    app.include_router(health_router(ready, metrics))
    app.include_router(console_router())
    return app


def _closing(on_close: Callable[[], None] | None) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if on_close is not None:
            await run_in_threadpool(on_close)

    return lifespan


def _version() -> str:
    try:
        return version("sploot-cluster")
    except PackageNotFoundError:
        # run from a checkout
        return "0"
