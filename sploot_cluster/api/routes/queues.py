"""The queues and their actions: look, plan, apply. What the command line does, for operators' tokens."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel

from sploot_cluster.api.admission import BEARER, IDEMPOTENCY_KEY, READS, WRITES, Admission, CallerOf
from sploot_cluster.api.bodies import Apply, ChosenDeadLetters, Nothing, Rescue, RetireConsumer
from sploot_cluster.api.numbers import IdInAddress, Seconds
from sploot_cluster.api.problems import NOT_FOUND, QUEUE_UNAVAILABLE, Refusal, documented, shown
from sploot_cluster.queues import (
    AuditRecord,
    DeadLetterFilter,
    DeadLetterView,
    Done,
    Plan,
    PlanUnknown,
    QueueOperations,
    QueueStatus,
)

VIA = "http"

MAX_LISTED = 1_000

Limit = Annotated[int, Query(description="How many at most, the newest first.", ge=1, le=MAX_LISTED)]


class Queues(BaseModel):
    """Every queue at one moment."""

    queues: list[QueueStatus]


class Audit(BaseModel):
    """Who did what to the queues, newest first."""

    records: list[AuditRecord]


class DeadLetters(BaseModel):
    """Dead letters that match, newest first."""

    dead_letters: list[DeadLetterView]


def queues_router(admission: Admission, operations: QueueOperations) -> APIRouter:
    """The routes under ``/queues``."""
    router = APIRouter(prefix="/queues", tags=["queues"], route_class=admission.route_class(), dependencies=[BEARER])
    reads = documented(*READS, NOT_FOUND, QUEUE_UNAVAILABLE)
    writes = documented(*WRITES)

    @router.get("", operation_id="get_queues", summary="What every queue holds", responses=reads)
    def get_queues() -> Queues:
        """And one sentence for each: why its work waits."""
        return Queues(queues=list(operations.queues()))

    @router.get("/audit", operation_id="get_audit", summary="Who did what to the queues", responses=reads)
    def get_audit(limit: Limit = 50) -> Audit:
        """A record that stays `begun` is of somebody who died on the way."""
        return Audit(records=list(operations.audit(limit)))

    @router.get("/{queue}/dead", operation_id="list_dead_letters", summary="Dead letters", responses=reads)
    def list_dead_letters(
        queue: str,
        limit: Limit = 50,
        reason: str | None = None,
        actor: str | None = None,
        pet_id: IdInAddress | None = None,
        error: Annotated[str | None, Query(description="A part of the error's text.")] = None,
        since_s: Annotated[Seconds | None, Query(description="Died no more than this many seconds ago.")] = None,
    ) -> DeadLetters:
        """Without their fields and tracebacks."""
        wanted = DeadLetterFilter(reason=reason, actor=actor, pet_id=pet_id, error=error, since_s=since_s)
        return DeadLetters(dead_letters=list(operations.dead_letters(queue, wanted, limit=limit)))

    @router.get(
        "/{queue}/dead/{dead_letter_id}", operation_id="get_dead_letter", summary="A dead letter", responses=reads
    )
    def get_dead_letter(queue: str, dead_letter_id: str) -> DeadLetterView:
        """With its traceback and fields; embeddings are replaced by their size."""
        dead_letter = operations.dead_letter(queue, dead_letter_id)
        if dead_letter is None:
            raise Refusal(NOT_FOUND, f"there is no dead letter {shown(dead_letter_id)} in queue {shown(queue)}")
        return dead_letter

    def kept(plan: Plan) -> Plan:
        operations.keep(plan)
        return plan

    planning: Any = {"dependencies": [IDEMPOTENCY_KEY], "responses": writes}

    @router.post("/{queue}/rescue", operation_id="plan_rescue", summary="Plan to hand jobs back to work", **planning)
    def plan_rescue(queue: str, body: Rescue) -> Plan:
        """Jobs that a dead or stuck worker holds, or that nobody holds. Nothing is done before the plan is applied."""
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
        **planning,
    )
    def plan_retire_consumer(queue: str, body: RetireConsumer) -> Plan:
        """After its jobs were handed back to work. Nothing is done before the plan is applied."""
        return kept(operations.plan_retire(queue, body.consumer, even_if_alive=body.even_if_alive))

    @router.post("/{queue}/pause", operation_id="plan_pause", summary="Plan to stop delivering a queue", **planning)
    def plan_pause(queue: str, body: Nothing) -> Plan:
        """Until it is resumed. Nothing is done before the plan is applied."""
        return kept(operations.plan_pause(queue))

    @router.post("/{queue}/resume", operation_id="plan_resume", summary="Plan to end a pause", **planning)
    def plan_resume(queue: str, body: Nothing) -> Plan:
        """Nothing is done before the plan is applied."""
        return kept(operations.plan_resume(queue))

    @router.post("/{queue}/requeue", operation_id="plan_requeue", summary="Plan to requeue dead letters", **planning)
    def plan_requeue(queue: str, body: ChosenDeadLetters) -> Plan:
        """These, or all that match. Nothing is done before the plan is applied."""
        return kept(operations.plan_requeue(queue, dead_letter_ids=body.dead_letter_ids, matching=body.filter()))

    @router.post("/{queue}/purge", operation_id="plan_purge", summary="Plan to remove dead letters", **planning)
    def plan_purge(queue: str, body: ChosenDeadLetters) -> Plan:
        """These, or all that match, for ever. Nothing is done before the plan is applied."""
        return kept(operations.plan_purge(queue, dead_letter_ids=body.dead_letter_ids, matching=body.filter()))

    @router.post(
        "/plans/{plan_id}/apply",
        operation_id="apply_plan",
        summary="Act on a plan",
        status_code=202,
        dependencies=[IDEMPOTENCY_KEY],
        responses=documented(*WRITES, NOT_FOUND),
    )
    def apply_plan(plan_id: str, body: Apply, caller: CallerOf) -> Done:
        """On exactly the ids that it showed, and once. `is_complete` says whether its effect is there now."""
        try:
            plan = operations.take(plan_id)
        except PlanUnknown as unknown:
            raise Refusal(NOT_FOUND, str(unknown)) from unknown
        return operations.act(plan, by=caller.name, via=VIA, note=body.note)

    return router
