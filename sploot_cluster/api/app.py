"""The ASGI application, assembled from its routers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from sploot_cluster.api import problems
from sploot_cluster.api.admission import Admission
from sploot_cluster.api.console import console_router
from sploot_cluster.api.envelope import Envelope
from sploot_cluster.api.idempotency import IdempotencyStore, MemoryIdempotencyStore
from sploot_cluster.api.loopback import LoopbackGuard
from sploot_cluster.api.public import DEFAULT, PublicAddresses
from sploot_cluster.api.rates import Rates
from sploot_cluster.api.routes.clusters import clusters_router
from sploot_cluster.api.routes.embeddings import embeddings_router
from sploot_cluster.api.routes.health import ReadinessReport, health_router
from sploot_cluster.api.routes.jobs import jobs_router
from sploot_cluster.api.routes.pet_work import pet_work_router
from sploot_cluster.api.routes.pets import PetService, pet_list_router, pets_router
from sploot_cluster.api.routes.queues import queues_router
from sploot_cluster.api.routes.whoami import whoami_router
from sploot_cluster.api.tokens import Tokens
from sploot_cluster.api.traffic import Answered, Traffic
from sploot_cluster.jobs import JobQueue, JobTraces
from sploot_cluster.queues import QueueOperations

MAX_BODY_BYTES: Final = 1024 * 1024

MAX_BATCH: Final = 1_000

# Maximum time that a request waits for its preview. A recluster of 10,000 items takes about a second. If the preview
# takes longer, the caller repeats the request.
PREVIEW_WAIT_S: Final = 20.0

# 1,000 embeddings of 512 values take 2.8 MB as base64 and 11 MB as JSON numbers.
MAX_EMBEDDINGS_BYTES: Final = 16 * 1024 * 1024

_DESCRIPTION: Final = """
Groups every pet's media items into clusters, and never undoes a correction that a user made.

A request for work enqueues a job and is answered 202; `Location` is the URL of the job's status. A job may run more
than once but takes effect once. Errors are `application/problem+json` (RFC 9457) and name each invalid field and how to
fix it. Send an `Idempotency-Key` with every POST that you may have to repeat.

**Ids** of pets, clusters and revisions are whole numbers of 64 bits. A request may send each as a JSON number or as
decimal digits in a string (`42` or `"42"`: no sign, space, leading zero or fraction). Answers contain exact JSON
numbers. JavaScript's `JSON.parse` rounds numbers beyond 2^53 to the id of *another* pet: keep ids as text, send them as
text, and read answers with a parser that keeps large integers, such as `/console/exact.js` of this server.

**`If-Match`** with the `ETag` of a pet makes a correction conditional on the revision that its sender saw. It matches
as long as no user, recluster or deletion has moved items since. Items that arrived since do not matter;
`Arrivals-Since` counts them. Otherwise the answer is 412 and lists the changes. For `If-None-Match`, arrivals
create a new `ETag`: each its own, or one together if they are stored at once.
"""

_TAGS: Final = [
    {"name": "clusters", "description": "Recluster pets and correct clusters."},
    {"name": "embeddings", "description": "Ingest embeddings of items."},
    {"name": "pets", "description": "Read, export and delete pets."},
    {"name": "jobs", "description": "Get the status of jobs."},
    {"name": "queues", "description": "Inspect and repair the queues: plan an action, then apply the plan."},
    {"name": "caller", "description": "Get the name and role of a token."},
    {"name": "health", "description": "Health, readiness and metrics."},
]


class _Api(FastAPI):
    """A FastAPI application whose OpenAPI document includes the schema of problems and has no nullable parameters."""

    def openapi(self) -> dict[str, Any]:
        if not self.openapi_schema:
            document = super().openapi()
            template = "#/components/schemas/{model}"
            schema = problems.Problem.model_json_schema(ref_template=template)
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(schema.pop("$defs"))
            schemas["Problem"] = schema
            for operations in document["paths"].values():
                for operation in operations.values():
                    for parameter in operation.get("parameters", ()):
                        parameter["schema"] = _without_null(parameter["schema"])
            self.openapi_schema = document
        return self.openapi_schema


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an optional parameter without ``null``, which a URL or a header cannot express."""
    kinds: list[dict[str, Any]] = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    return {name: part for name, part in schema.items() if name != "anyOf"} | kinds[0]


def create_app(  # noqa: PLR0913  # the composition root hands in every part by its name
    *,
    service: PetService,
    jobs: JobQueue,
    traces: JobTraces | None = None,
    operations: QueueOperations | None = None,
    tokens: Tokens | None = None,
    idempotency: IdempotencyStore | None = None,
    ready: Callable[[], ReadinessReport] | None = None,
    metrics: Callable[[], tuple[bytes, str]] | None = None,
    on_answer: Callable[[Answered], None] | None = None,
    on_close: Callable[[], None] | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    max_embeddings_bytes: int = MAX_EMBEDDINGS_BYTES,
    max_batch: int = MAX_BATCH,
    max_rate_per_s: float = 0,
    public: Collection[str] = (DEFAULT,),
    preview_wait_s: float = PREVIEW_WAIT_S,
    media_url_template: str = "",
) -> FastAPI:
    """Return the HTTP API as an ASGI application, to be served or mounted in another one.

    The arguments may block: they are called in a thread pool.

    Args:
        service: reads pets and applies previews, e.g. ``ClusterService``.
        jobs: enqueues work, e.g. ``tasks.client.ClusterTasks``.
        traces: removes job records and dead letters of a deleted pet, e.g. ``tasks.erasure.Erasure``. Without it, they
            are kept.
        operations: operators' actions on queues, e.g. ``tasks.queue_ops.Operations``. Without them, the paths under
            ``/queues`` do not exist.
        tokens: the tokens that callers may use. None or empty: callers on this machine need no token, and all others
            are refused, wherever the application is mounted.
        idempotency: stores responses by ``Idempotency-Key``. None: in memory, not shared with other processes and lost
            on restart. Use ``RedisIdempotencyStore`` for more than one process.
        ready: checks the dependencies of the server, for ``/readyz``.
        metrics: returns the exposition and its media type, for ``/metrics``. Without it, that path does not exist.
        on_answer: called after every response. It must not block.
        on_close: closes the other arguments when the server stops. If the application is mounted in another one, that
            application has to call it, because ASGI notifies only the outermost application.
        max_body_bytes: size limit of a body without embeddings.
        max_embeddings_bytes: size limit of a body with embeddings.
        max_batch: maximum number of embeddings in one body.
        max_rate_per_s: maximum number of requests per second that this process accepts from each caller. 0: no limit.
            Further requests get status 429.
        public: groups of paths that other machines may call without a token; see ``public.GROUPS``.
        preview_wait_s: maximum time that a request waits for a worker to compute its preview.
        media_url_template: the URL from which the console loads the picture of an item, with ``{pet_id}``,
            ``{media_id}`` and ``{width}`` (pixels). Empty: the console shows no pictures.
    """
    tokens = tokens or Tokens()
    app = _Api(
        title="sploot-cluster",
        version=_version(),
        summary="Media clusters of pets, corrected by users",
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        # FastAPI's documentation pages load scripts from other servers, and those scripts could call this API
        docs_url=None,
        redoc_url=None,
        # a redirect would turn a request for a missing path into two, and its Location would repeat the Host header
        redirect_slashes=False,
        lifespan=_closing(on_close),
    )
    problems.install(app)
    if tokens:
        app.add_middleware(PublicAddresses, tokens=tokens, public=public)
    else:
        app.add_middleware(LoopbackGuard)
    if on_answer is not None:
        app.add_middleware(Traffic, on_answer=on_answer)
    app.add_middleware(Envelope)

    held = idempotency or MemoryIdempotencyStore()
    admission = Admission(tokens, held, max_body_bytes, Rates(max_rate_per_s))
    wide_admission = replace(admission, max_body_bytes=max_embeddings_bytes)
    routers = [
        clusters_router(admission, jobs, service, preview_wait_s=preview_wait_s),
        embeddings_router(wide_admission, jobs, max_batch=max_batch),
        pet_list_router(admission, service),
        pets_router(admission, service, jobs, traces),
        pet_work_router(admission, jobs, service),
        jobs_router(admission, jobs),
        *([] if operations is None else [queues_router(admission, operations)]),
        whoami_router(admission),
        health_router(ready, metrics),
        console_router(media_url_template),
    ]
    for router in routers:
        # include_router would analyse every route a second time, which takes half the time to build the application
        app.router.routes += router.routes
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
        # the code runs from a checkout and is not installed
        return "0"
