"""Routes that show the queues and that plan and apply actions on them, as the command line does. For operators."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from sploot_cluster.api.admission import BEARER, IDEMPOTENCY_KEY, READS, WRITES, Admission, CallerOf
from sploot_cluster.api.answers import NEXT_CURSOR
from sploot_cluster.api.bodies import Apply, CanaryOf, CancelJobs, ChosenDeadLetters, Nothing, Rescue, RetireConsumer
from sploot_cluster.api.live import MEDIA_TYPE, EventStream, Feed, encoded
from sploot_cluster.api.numbers import IdInAddress, Seconds
from sploot_cluster.api.problems import NOT_FOUND, QUEUE_UNAVAILABLE, Refusal, documented, field_problem, shown
from sploot_cluster.api.routes.jobs import PREFIX
from sploot_cluster.api.routes.pets import CURSOR_OF_PAGE
from sploot_cluster.errors import InvalidInput, PlanUnknown
from sploot_cluster.queues import (
    AuditRecord,
    CanaryRun,
    CarefulRequeue,
    DeadLetterFilter,
    DeadLetterGroup,
    DeadLetterView,
    Done,
    Found,
    History,
    JobsState,
    PeriodicJob,
    Plan,
    QueueJob,
    QueueOperations,
    QueueStatus,
    UnknownConsumer,
    Worker,
)

VIA = "http"

MAX_LISTED = 1_000

# Event -> the operation that returns the same data. A caller receives only the events whose operations it may call.
EVENTS: Final[Mapping[str, str]] = {
    "queues": "get_queues",
    "workers": "list_workers",
    "periodic": "list_periodic_jobs",
    "audit": "get_audit",
    "read": "get_queues",
}
AUDIT_SHOWN: Final = 10

# The pattern of a stream entry id. Each part has at most 18 digits, which always fit in an unsigned 64-bit integer.
CURSOR: Final = "^[1-9][0-9]{0,17}-(0|[1-9][0-9]{0,17})$"

Cursor = Annotated[str | None, Query(description=CURSOR_OF_PAGE, pattern=CURSOR)]
Limit = Annotated[int, Query(description="Maximum number of records, newest first.", ge=1, le=MAX_LISTED)]


class Queues(BaseModel):
    """The status of all queues."""

    queues: list[QueueStatus]


class Audit(BaseModel):
    """The actions taken on the queues, newest first."""

    records: list[AuditRecord]
    next_cursor: str | None = Field(description=NEXT_CURSOR)


class Workers(BaseModel):
    """The worker processes."""

    workers: list[Worker]


class PeriodicJobs(BaseModel):
    """The jobs that the scheduler sends."""

    jobs: list[PeriodicJob]


class Canaries(BaseModel):
    """The canaries of the last day."""

    canaries: list[CanaryRun]


class Jobs(BaseModel):
    """A page of the unfinished jobs of a queue."""

    jobs: list[QueueJob]
    next_cursor: str | None = Field(description=NEXT_CURSOR)


class DeadLetterGroups(BaseModel):
    """The dead letters of a queue by kind of failure, the most frequent first."""

    groups: list[DeadLetterGroup]


class DeadLetters(BaseModel):
    """The dead letters that match a filter, newest first."""

    dead_letters: list[DeadLetterView]
    next_cursor: str | None = Field(description=NEXT_CURSOR)


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _with_names(names: Sequence[str]) -> Decorator:
    """Return a decorator that adds the names of the queues to the description of an endpoint's parameter ``queue``."""
    queue = Annotated[str, Path(description="The queue.", json_schema_extra={"enum": list(names)})]

    def described(endpoint: Callable[..., Any]) -> Callable[..., Any]:
        endpoint.__annotations__["queue"] = queue
        return endpoint

    return described


def queues_router(admission: Admission, operations: QueueOperations) -> APIRouter:
    """Return the routes under ``/queues``."""
    router = APIRouter(
        prefix=f"{PREFIX}/queues", tags=["queues"], route_class=admission.route_class(), dependencies=[BEARER]
    )
    of_queue = _with_names(operations.names)
    reads = documented(*READS, NOT_FOUND, QUEUE_UNAVAILABLE)
    writes = documented(*WRITES)

    @router.get("", operation_id="get_queues", summary="Get the status of all queues", responses=reads)
    def get_queues() -> Queues:
        """Return the statistics of every queue, with one sentence on why its jobs wait."""
        return Queues(queues=list(operations.queues()))

    @router.get("/history", operation_id="get_queue_history", summary="Get the last 24 hours", responses=reads)
    def get_queue_history() -> History:
        """Return throughput, failures, latency and backlog of every queue in steps of five minutes."""
        return operations.history()

    @router.get("/search", operation_id="search_jobs", summary="Search jobs and dead letters", responses=reads)
    def search_jobs(
        text: Annotated[
            str,
            Query(description="A pet, a job, an item, an actor, or part of an error.", min_length=1, max_length=200),
        ],
        limit: Annotated[int, Query(description="Maximum number of each.", ge=1, le=100)] = 50,
    ) -> Found:
        """Search by pet, item, actor, id or error. Return the unfinished jobs and the dead letters that match.

        A number is taken as a pet id. Only the newest 5,000 dead letters of each queue are searched.
        """
        return operations.search(text.strip(), limit=limit)

    @router.get("/audit", operation_id="get_audit", summary="List the actions taken on the queues", responses=reads)
    def get_audit(limit: Limit = 50, cursor: Cursor = None) -> Audit:
        """Return the audit log. A record that stays `begun` belongs to an action that was interrupted."""
        page = operations.audit(limit, cursor=cursor)
        return Audit(records=list(page.records), next_cursor=page.cursor)

    @router.get("/workers", operation_id="list_workers", summary="List the workers", responses=reads)
    def list_workers() -> Workers:
        """Return the worker processes and their jobs, including idle workers and dead ones that still hold jobs."""
        return Workers(workers=list(operations.workers()))

    @router.get("/periodic", operation_id="list_periodic_jobs", summary="List the periodic jobs", responses=reads)
    def list_periodic_jobs() -> PeriodicJobs:
        """Return the jobs that the scheduler sends, each with its last run, that run's outcome, and its next run."""
        return PeriodicJobs(jobs=list(operations.periodic_jobs()))

    @router.get("/{queue}/jobs", operation_id="list_jobs", summary="List unfinished jobs", responses=reads)
    @of_queue
    def list_jobs(queue: str, state: JobsState, limit: Limit = 50, cursor: Cursor = None) -> Jobs:
        """Return jobs that wait, that workers hold, or that are not due yet, such as retries.

        Waiting jobs are listed in the order of delivery, running jobs oldest first, and delayed jobs by due time. Jobs
        that were handed back are waiting, but are listed among the running jobs, because Redis holds them there.
        """
        page = operations.jobs(queue, state, limit=limit, cursor=cursor)
        return Jobs(jobs=list(page.records), next_cursor=page.cursor)

    @router.get(
        "/{queue}/dead/groups",
        operation_id="group_dead_letters",
        summary="Group dead letters by error",
        responses=reads,
    )
    @of_queue
    def group_dead_letters(
        queue: str,
        since_s: Annotated[Seconds | None, Query(description="Died at most this many seconds ago.")] = None,
    ) -> DeadLetterGroups:
        """Return the kinds of failures of the newest 10,000 dead letters, the most frequent first."""
        return DeadLetterGroups(groups=list(operations.dead_letter_groups(queue, DeadLetterFilter(since_s=since_s))))

    @router.get("/{queue}/dead", operation_id="list_dead_letters", summary="List dead letters", responses=reads)
    @of_queue
    def list_dead_letters(
        queue: str,
        limit: Limit = 50,
        cursor: Cursor = None,
        reason: str | None = None,
        actor: str | None = None,
        pet_id: IdInAddress | None = None,
        error: Annotated[str | None, Query(description="Text that the error contains.")] = None,
        since_s: Annotated[Seconds | None, Query(description="Died at most this many seconds ago.")] = None,
    ) -> DeadLetters:
        """Return dead letters without their fields and tracebacks.

        With a filter, a page may have fewer entries than `limit` although more match: continue while there is a
        `next_cursor`.
        """
        wanted = DeadLetterFilter(reason=reason, actor=actor, pet_id=pet_id, error=error, since_s=since_s)
        page = operations.dead_letters(queue, wanted, limit=limit, cursor=cursor)
        return DeadLetters(dead_letters=list(page.records), next_cursor=page.cursor)

    @router.get(
        "/{queue}/dead/{dead_letter_id}", operation_id="get_dead_letter", summary="Get a dead letter", responses=reads
    )
    @of_queue
    def get_dead_letter(queue: str, dead_letter_id: str) -> DeadLetterView:
        """Return a dead letter with its traceback and fields. Embeddings are replaced by their size."""
        dead_letter = operations.dead_letter(queue, dead_letter_id)
        if dead_letter is None:
            raise Refusal(NOT_FOUND, f"queue {shown(queue)} has no dead letter {shown(dead_letter_id)}")
        return dead_letter

    _add_canaries(router, operations)
    _add_events(router, operations)
    _add_plans(router, operations, of_queue, writes)

    @router.post(
        "/plans/{plan_id}/apply",
        operation_id="apply_plan",
        summary="Apply a plan",
        status_code=202,
        dependencies=[IDEMPOTENCY_KEY],
        responses=documented(*WRITES, NOT_FOUND),
    )
    def apply_plan(plan_id: str, body: Apply, caller: CallerOf) -> Done:
        """Apply a plan once, to exactly the ids that it listed. `is_complete` states whether it took full effect."""
        try:
            plan = operations.take(plan_id)
        except PlanUnknown as unknown:
            raise Refusal(NOT_FOUND, str(unknown)) from unknown
        return operations.act(plan, by=caller.name, via=VIA, note=body.note)

    return router


def _add_canaries(router: APIRouter, operations: QueueOperations) -> None:
    """Add the routes of canaries, which requeue one dead letter first and then the rest."""
    changing: Any = {"status_code": 202, "dependencies": [IDEMPOTENCY_KEY], "responses": documented(*WRITES, NOT_FOUND)}

    @router.get(
        "/canaries",
        operation_id="list_canaries",
        summary="List the canaries",
        responses=documented(*READS, QUEUE_UNAVAILABLE),
    )
    def list_canaries() -> Canaries:
        """Return the canaries that any server started in the last day, newest first."""
        return Canaries(canaries=list(operations.canaries()))

    @router.post(
        "/plans/{plan_id}/canary", operation_id="start_canary", summary="Apply a plan with a canary", **changing
    )
    def start_canary(plan_id: str, body: CanaryOf, caller: CallerOf) -> CanaryRun:
        """Requeue the dead letters of a plan: the oldest first and, if its job succeeds, the rest at a limited rate.

        Stops if the first job does not succeed, or if several fail again. It runs in the background, and
        `GET /queues/canaries` shows how far it is. What was not requeued when it ends is still a dead letter.
        """
        try:
            plan = operations.take(plan_id)
        except PlanUnknown as unknown:
            raise Refusal(NOT_FOUND, str(unknown)) from unknown
        how = CarefulRequeue(body.per_s, body.wait_s, body.stop_after)
        try:
            return operations.start_canary(plan, how, by=caller.name, via=VIA, note=body.note)
        except InvalidInput:
            operations.keep(plan)
            raise

    @router.post("/canaries/{plan_id}/stop", operation_id="stop_canary", summary="Stop a canary", **changing)
    def stop_canary(plan_id: str, body: Nothing) -> CanaryRun:
        """Ask a canary to stop before its next step. What was requeued stays requeued."""
        run = operations.stop_canary(plan_id)
        if run is None:
            raise Refusal(NOT_FOUND, f"there is no canary of plan {shown(plan_id)}; those of the last day are listed")
        return run


def _add_events(router: APIRouter, operations: QueueOperations) -> None:
    """Add the route that pushes the state of the queues."""

    def read() -> Mapping[str, bytes]:
        at = datetime.now(UTC)
        page = operations.audit(AUDIT_SHOWN)
        return {
            "queues": Queues(queues=list(operations.queues())).model_dump_json().encode(),
            "workers": Workers(workers=list(operations.workers())).model_dump_json().encode(),
            "periodic": PeriodicJobs(jobs=list(operations.periodic_jobs())).model_dump_json().encode(),
            "audit": Audit(records=list(page.records), next_cursor=page.cursor).model_dump_json().encode(),
            "read": json.dumps({"at": at.isoformat()}).encode(),
        }

    feed = Feed(read)

    @router.get(
        "/events",
        operation_id="watch_queues",
        summary="Watch the queues",
        status_code=200,
        response_class=EventStream,
        responses=documented(*READS, QUEUE_UNAVAILABLE)
        | {200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}}},
    )
    async def watch_queues(request: Request, caller: CallerOf) -> Response:
        """Push the state of the queues every two seconds, as server-sent events.

        The data of each event is the JSON that another path returns: `queues` of `GET /queues`, `workers` and
        `periodic` of `GET /queues/workers` and `/queues/periodic`, and, for operators, `audit` of `GET /queues/audit`.
        `read` marks the end of a round and states its time as `at`. While Redis does not answer, there is only
        `problem`, with a `detail`. The stream ends after ten minutes: request it again. If `Accept` is not
        `text/event-stream`, it ends after the first round.
        """
        names = {name for name, operation in EVENTS.items() if operation in caller.may_call}
        if MEDIA_TYPE in request.headers.get("accept", ""):
            news = feed.watch()
            return EventStream(await anext(news), news, names)
        return Response(encoded(await feed.once(), names), media_type=MEDIA_TYPE)


def _add_plans(router: APIRouter, operations: QueueOperations, of_queue: Decorator, writes: Any) -> None:
    """Add the routes that plan an action."""

    def kept(plan: Plan) -> Plan:
        operations.keep(plan)
        return plan

    planning: Any = {"dependencies": [IDEMPOTENCY_KEY], "responses": writes}

    @router.post("/{queue}/rescue", operation_id="plan_rescue", summary="Plan to return jobs to the queue", **planning)
    @of_queue
    def plan_rescue(queue: str, body: Rescue) -> Plan:
        """Make a plan to return to the queue the jobs that a dead or stuck worker holds, or that no worker holds.

        Nothing is changed until the plan is applied.
        """
        return kept(
            operations.plan_rescue(
                queue,
                entry_ids=body.entry_ids,
                consumer=body.consumer,
                unowned=body.unowned,
                idle_s=body.idle_s,
                even_if_alive=body.even_if_alive,
            )
        )

    @router.post(
        "/{queue}/retire-consumer",
        operation_id="plan_retire_consumer",
        summary="Plan to remove a dead consumer",
        dependencies=[IDEMPOTENCY_KEY],
        responses=documented(*WRITES, NOT_FOUND),
    )
    @of_queue
    def plan_retire_consumer(queue: str, body: RetireConsumer) -> Plan:
        """Make a plan to return a consumer's jobs and to remove it. Nothing is changed until the plan is applied."""
        try:
            return kept(operations.plan_retire(queue, body.consumer, even_if_alive=body.even_if_alive))
        except UnknownConsumer as unknown:
            raise Refusal(NOT_FOUND, str(unknown), errors=[field_problem(unknown)]) from None

    @router.post("/{queue}/pause", operation_id="plan_pause", summary="Plan to pause a queue", **planning)
    @of_queue
    def plan_pause(queue: str, body: Nothing) -> Plan:
        """Make a plan to stop deliveries until the queue is resumed. Nothing is changed until the plan is applied."""
        return kept(operations.plan_pause(queue))

    @router.post("/{queue}/resume", operation_id="plan_resume", summary="Plan to resume a queue", **planning)
    @of_queue
    def plan_resume(queue: str, body: Nothing) -> Plan:
        """Make a plan to end a pause. Nothing is changed until the plan is applied."""
        return kept(operations.plan_resume(queue))

    @router.post("/{queue}/requeue", operation_id="plan_requeue", summary="Plan to requeue dead letters", **planning)
    @of_queue
    def plan_requeue(queue: str, body: ChosenDeadLetters) -> Plan:
        """Make a plan to requeue dead letters, either by id or all that match a filter.

        Nothing is changed until the plan is applied.
        """
        return kept(operations.plan_requeue(queue, dead_letter_ids=body.dead_letter_ids, matching=body.filter()))

    @router.post("/{queue}/purge", operation_id="plan_purge", summary="Plan to purge dead letters", **planning)
    @of_queue
    def plan_purge(queue: str, body: ChosenDeadLetters) -> Plan:
        """Make a plan to delete dead letters, either by id or all that match a filter.

        Nothing is changed until the plan is applied.
        """
        return kept(operations.plan_purge(queue, dead_letter_ids=body.dead_letter_ids, matching=body.filter()))

    @router.post("/{queue}/cancel", operation_id="plan_cancel", summary="Plan to cancel jobs", **planning)
    @of_queue
    def plan_cancel(queue: str, body: CancelJobs) -> Plan:
        """Make a plan to cancel unfinished jobs, either by id or all of an actor, of a pet, or of both.

        Applying the plan removes waiting jobs and interrupts running ones. Until then, nothing is changed.
        """
        return kept(operations.plan_cancel(queue, job_ids=body.job_ids, actor=body.actor, pet_id=body.pet_id))
