"""Commands that show queues and act on them; every action shows its plan and needs --yes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from sploot_cluster.answer_fields import public
from sploot_cluster.errors import InvalidInput
from sploot_cluster.limits import MAX_INT64
from sploot_cluster.queues import LONGEST_S, CarefulRequeue, DeadLetterFilter, DeadLetterView, Done, HeldJob, Plan
from tasks.cli.screen import err, out, print_block, print_json, print_table, table_of
from tasks.cli.shared import (
    FAILED,
    REFUSED,
    AsJson,
    By,
    command_group,
    duration_text,
    examples,
    settings_of_environment,
)
from tasks.contracts import EMBEDDING_INGESTED, QUEUES, stream_of

if TYPE_CHECKING:
    from tasks.queue_ops import Operations

Record = TypeVar("Record")

VIA: Final = "command line"
MOST_GROUPED: Final = 100_000  # maximum number of dead letters to read per queue

app = command_group("Inspect and repair queues.")
dead = command_group("Dead letters: jobs that failed permanently.")
app.add_typer(dead, name="dead")
shards = command_group("Shards: parts of a queue, each a stream of its own.")
app.add_typer(shards, name="shards")

Queue = Annotated[
    str, typer.Argument(help="The queue, its stream, or a unique part of its name, e.g. embedding.", metavar="QUEUE")
]
Yes = Annotated[
    bool, typer.Option("--yes", help="Apply the plan now. Without --yes, print it and save it for an hour.")
]
Note = Annotated[str, typer.Option(help="Reason for the audit, e.g. a ticket or incident.")]
Limit = Annotated[int, typer.Option(min=1, max=1_000_000, help="Maximum number to show.")]
EvenIfAlive = Annotated[
    bool, typer.Option("--even-if-alive", help="Include jobs held by live workers; they may run twice.")
]
Reason = Annotated[str | None, typer.Option(help="Only this reason, e.g. failed or undecodable.")]
Actor = Annotated[str | None, typer.Option(help="Only this actor.")]
OfPet = Annotated[int | None, typer.Option("--pet", min=1, max=MAX_INT64, help="Only this pet.")]
Error = Annotated[str | None, typer.Option(help="Only errors that contain this text.")]
Since = Annotated[str | None, typer.Option(help="Only jobs that failed within the last 30s, 15m, 2h or 7d.")]
WithCanary = Annotated[
    bool,
    typer.Option("--canary", help="Requeue one first, the rest at --rate if it succeeds; stop if they fail again."),
]
Rate = Annotated[float, typer.Option(min=0.01, max=1_000_000, help="With --canary: jobs per second.")]
CanaryWait = Annotated[
    float, typer.Option(min=0.0, max=LONGEST_S, help="With --canary: seconds that the first job may take.")
]
StopAfter = Annotated[int, typer.Option(min=1, help="With --canary: stop after this many failed again.")]
All = Annotated[bool, typer.Option("--all", help="Every dead letter of the queue.")]


# -- inspection --------------------------------------------------------------------------------------------------------


@app.command(name="status", epilog=examples("sploot-cluster queue status"))
def queue_status(as_json: AsJson = False) -> None:
    """Show the contents of every queue and why its jobs wait."""
    with _operations() as operations:
        queues = operations.queues()
    if as_json:
        print_json(queues)
        return
    table = table_of(
        "queue", "undelivered", "in flight", "delayed", "orphaned", "dead", "overdue", "oldest", "held for"
    )
    for queue in queues:
        numbers = (queue.undelivered, queue.in_flight, queue.delayed, queue.orphaned, queue.dead, queue.overdue)
        ages = (queue.oldest_age_s, queue.oldest_pending_s)
        table.add_row(queue.queue, *map(str, numbers), *(_age(age) for age in ages))
    print_table(table)
    for queue in queues:
        if any((queue.undelivered, queue.in_flight, queue.delayed, queue.orphaned)):
            out.print(f"{queue.queue}: {queue.reason}")
        if queue.stale_locks:
            many = f"{queue.stale_locks} unique keys are held by jobs that were"
            held = "1 unique key is held by a job that was" if queue.stale_locks == 1 else many
            out.print(f"{queue.queue}: {held} removed by hand; the next job with such a key takes it")
    consumers = [(queue.queue, one) for queue in queues for one in queue.consumers]
    if consumers:
        table = table_of("consumer", "queue", "holds", "heartbeat", "alive")
        for queue_name, one in consumers:
            table.add_row(
                one.name, queue_name, str(one.pending), _age(one.heartbeat_age_s), "yes" if one.is_alive else "no"
            )
        print_table(table)


@app.command(name="workers", epilog=examples("sploot-cluster queue workers"))
def queue_workers(as_json: AsJson = False) -> None:
    """Show all workers, including idle ones, with the jobs that each has held longest."""
    with _operations() as operations:
        workers = operations.workers()
        now = datetime.now(UTC)
    if as_json:
        print_json(workers)
        return
    table = table_of("worker", "heartbeat", "alive", "holds", "job", "pet", "for", "progress")
    for worker in workers:
        about = (worker.name, _age(worker.heartbeat_age_s), "yes" if worker.is_alive else "no", str(worker.n_jobs))
        for held in worker.jobs or (None,):
            table.add_row(*about, *(("idle", "", "", "") if held is None else _shown(held, now)))
    print_table(table)


@app.command(name="periodic", epilog=examples("sploot-cluster queue periodic"))
def queue_periodic(as_json: AsJson = False) -> None:
    """Show the periodic jobs with their last run, its outcome, and their next run."""
    with _operations() as operations:
        jobs = operations.periodic_jobs()
    if as_json:
        print_json(jobs)
        return
    table = table_of("job", "every", "last run", "outcome", "took", "next run", "error")
    for job in jobs:
        times = [
            "–" if at is None else at.isoformat(sep=" ", timespec="seconds") for at in (job.last_run_at, job.next_at)
        ]
        outcome = job.outcome or "has not run"
        table.add_row(job.actor, f"{job.every_s} s", times[0], outcome, _age(job.duration_s), times[1], job.error or "")
    print_table(table)


@app.command(name="pending", epilog=examples("sploot-cluster queue pending embedding --idle 5m"))
def queue_pending(
    queue: Queue,
    consumer: Annotated[str | None, typer.Option(help="Only jobs held by this consumer.")] = None,
    idle: Annotated[str, typer.Option(help="Only jobs held for at least 30s, 15m, 2h.")] = "0s",
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """Show jobs that workers hold, oldest first, with holder, time held and deliveries."""
    from tasks.queue_ops.entries import facts_of

    with _operations() as operations:
        idle_ms = int(1000 * _seconds("--idle", idle))
        inspectors = [operations.inspector(shard) for shard in operations.shards(queue)]
        found = [
            (inspector, entry)
            for inspector in inspectors
            for entry in inspector.pending(limit, consumer=consumer, idle_ms=idle_ms)
        ]
        rows = [
            {
                "entry_id": entry.id,
                "holder": entry.holder,
                "idle_s": (entry.idle_ms or 0) / 1000,
                "deliveries": entry.deliveries,
                **public(facts_of(inspector.entry(entry.id) or {})),
            }
            for inspector, entry in _oldest(found, limit, lambda one: one[1].id)
        ]
    if as_json:
        print_json(rows)
        return
    table = table_of("entry", "pet", "item", "actor", "deliveries", "held for", "by")
    for row in rows:
        table.add_row(
            *(_text(row[name]) for name in ("entry_id", "pet_id", "media_id", "actor", "deliveries")),
            _age(float(str(row["idle_s"]))),
            _text(row["holder"]),
        )
    print_table(table)


@app.command(name="peek", epilog=examples("sploot-cluster queue peek embedding --limit 20"))
def queue_peek(queue: Queue, limit: Limit = 10, as_json: AsJson = False) -> None:
    """Show the next waiting jobs without taking them; embeddings are left out."""
    from tasks.queue_ops.entries import facts_of, without_embedding

    with _operations() as operations:
        found = [one for shard in operations.shards(queue) for one in operations.inspector(shard).waiting(limit)]
        waiting = _oldest(found, limit, lambda one: one[0])
    if as_json:
        print_json(
            [
                {"entry_id": entry_id, **public(facts_of(fields)), "fields": without_embedding(fields)}
                for entry_id, fields in waiting
            ]
        )
        return
    table = table_of("entry", "added (UTC)", "pet", "item", "actor", "form", "bytes")
    for entry_id, fields in waiting:
        facts = facts_of(fields)
        about = (facts.pet_id, facts.media_id, facts.actor, facts.form, facts.n_bytes)
        table.add_row(entry_id, _when_of(entry_id), *map(_text, about))
    print_table(table)


class JobsIn(StrEnum):
    """The states of the jobs that ``queue jobs`` lists; see ``sploot_cluster.queues.JobsState``."""

    WAITING = "waiting"
    RUNNING = "running"
    DELAYED = "delayed"


@app.command(
    name="jobs",
    epilog=examples("sploot-cluster queue jobs --state delayed", "sploot-cluster queue jobs recluster --limit 200"),
)
def queue_jobs(
    queue: Annotated[str | None, typer.Argument(help="The queue; default: all queues.", metavar="QUEUE")] = None,
    state: Annotated[JobsIn, typer.Option(help="Jobs that wait, that run, or that are delayed.")] = JobsIn.WAITING,
    limit: Limit = 50,
    cursor: Annotated[str | None, typer.Option(help="With QUEUE: the cursor that the previous page printed.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show unfinished jobs: those that wait, that run, or that are delayed, such as retries with their last error."""
    if cursor is not None and queue is None:
        raise InvalidInput("--cursor", "a cursor belongs to one queue", "name the queue")
    with _operations() as operations:
        names = [queue] if queue else QUEUES
        pages = [operations.jobs(name, state.value, limit=limit, cursor=cursor) for name in names]
        now = datetime.now(UTC)
    jobs = [job for page in pages for job in page.records]
    if queue is None:
        jobs = sorted(jobs, key=lambda job: job.due_at or job.started_at or job.added_at or now)[:limit]
    more = pages[0].cursor if queue else None
    if as_json:
        print_json({"jobs": jobs, "next_cursor": more})
        return
    table = table_of(
        "queue", "state", "job", "actor", "pet", "item", "since (UTC)", "due (UTC)", "by", "failed", "error"
    )
    for job in jobs:
        about = (job.actor, job.pet_id, job.media_id)
        times = (_moment(job.started_at or job.added_at), _moment(job.due_at))
        rest = (job.worker, job.attempts or None, job.error)
        table.add_row(
            job.queue, job.state, job.job_id or _text(job.entry_id), *map(_text, about), *times, *map(_text, rest)
        )
    print_table(table)
    if more is not None:
        out.print(f"more: --cursor {more}")


@app.command(
    name="history", epilog=examples("sploot-cluster queue history", "sploot-cluster queue history embedding --every 5m")
)
def queue_history(
    queue: Annotated[str | None, typer.Argument(help="The queue; default: all queues.", metavar="QUEUE")] = None,
    every: Annotated[str, typer.Option(help="Length of a row: 5m, 15m, 1h or another multiple of 5m.")] = "1h",
    as_json: AsJson = False,
) -> None:
    """Show throughput, failures, latency and backlog of the last 24 hours, without rows in which nothing happened."""
    from tasks.queue_ops.activity import rows_of, starts_of
    from tasks.queue_ops.operations import queue_named
    from tasks.shards import queue_of

    names = [queue_of(queue_named(queue))] if queue else QUEUES
    with _operations() as operations:
        history = operations.history()
    if as_json:
        print_json(history)
        return
    n_steps = _seconds("--every", every) / history.step_s
    if n_steps < 1 or n_steps % 1:
        raise InvalidInput("--every", f"{every!r} is not a multiple of 5m", "write 5m, 15m or 1h")
    table = table_of(
        "from (UTC)", "queue", "done", "per minute", "failed", "dead", "median", "95 %", "waiting", "oldest"
    )
    for row in rows_of(history, names, int(n_steps)):
        table.add_row(
            f"{row.at:%Y-%m-%d %H:%M}",
            row.queue,
            *map(str, (row.done, row.per_minute, row.failed, row.dead)),
            *map(_age, (row.p50_s, row.p95_s)),
            _text(row.waiting),
            _age(row.oldest_s),
        )
    print_table(table)
    out.print("median, 95 %, waiting and oldest are the largest values of the five-minute steps of a row")
    if starts := starts_of(history):
        shown_starts = ", ".join(f"{at:%Y-%m-%d %H:%M} ({n})" for at, n in starts)
        out.print(f"worker processes started (UTC): {shown_starts}")


@app.command(name="find", epilog=examples("sploot-cluster queue find --pet 42"))
def queue_find(
    pet: Annotated[int, typer.Option(min=1, max=MAX_INT64, help="Pet whose jobs to find.")],
    media: Annotated[str | None, typer.Option(help="Only jobs of this item.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find a pet's unfinished jobs: waiting, in flight, delayed."""
    with _operations() as operations:
        start = time.perf_counter()
        found, n_indexed = operations.find(pet)
        took_ms = 1000 * (time.perf_counter() - start)
    found = [job for job in found if media is None or job.media_id == media]
    if as_json:
        print_json(found)
        return
    table = table_of("state", "queue", "entry", "added (UTC)", "item", "actor", "deliveries", "by")
    for job in found:
        added = "-" if job.added_at is None else f"{job.added_at:%Y-%m-%d %H:%M:%S}"
        table.add_row(job.state, job.queue, _text(job.entry_id), added,
                      *map(_text, (job.media_id, job.actor, job.deliveries, job.holder)))  # fmt: skip
    print_table(table)
    read = f"; {n_indexed:,} unindexed jobs had to be read first" if n_indexed > 1_000 else ""
    out.print(f"{len(found)} found in {took_ms:.0f} ms{read}")


@app.command(name="audit", epilog=examples("sploot-cluster queue audit --limit 50"))
def queue_audit(limit: Limit = 20, as_json: AsJson = False) -> None:
    """Show who did what to the queues, newest first."""
    with _operations() as operations:
        records = operations.audit(limit).records
    if as_json:
        print_json(records)
        return
    table = table_of("when (UTC)", "by", "via", "action", "queue", "state", "planned", "done", "note", "result")
    for record in records:
        what = (record.by, record.via, record.action, record.queue, record.state, record.n_planned, record.n_done)
        table.add_row(f"{record.at:%Y-%m-%d %H:%M:%S}", *map(_text, what), _text(record.note), _text(record.result))
    print_table(table)


@shards.command(name="show", epilog=examples("sploot-cluster queue shards show"))
def shards_show(as_json: AsJson = False) -> None:
    """Show the shards of embedding.ingested, and what each of them holds."""
    with _operations() as operations:
        parts = operations.stats_of_shards(EMBEDDING_INGESTED)
    rows = [
        {
            "shard": number,
            "stream": stream_of(part.queue_name),
            "undelivered": part.undelivered,
            "in_flight": part.in_flight,
            "delayed": part.delayed,
            "dead": part.dead,
            "oldest_age_s": None if part.oldest_age_ms is None else part.oldest_age_ms / 1000,
            "n_readers": sum(one.is_alive for one in part.consumers),
        }
        for number, part in enumerate(parts)
    ]
    if as_json:
        print_json(rows)
        return
    table = table_of("shard", "stream", "undelivered", "in flight", "delayed", "dead", "oldest", "processes")
    for row in rows:
        numbers = [_text(row[name]) for name in ("shard", "stream", "undelivered", "in_flight", "delayed", "dead")]
        age_s = row["oldest_age_s"]
        table.add_row(*numbers, _age(float(str(age_s)) if age_s is not None else None), _text(row["n_readers"]))
    print_table(table)


@shards.command(name="set", epilog=examples("sploot-cluster queue shards set 16 --yes"))
def shards_set(
    n: Annotated[int, typer.Argument(help="How many shards: a power of two up to 256.", metavar="NUMBER")],
    by: By,
    note: Note = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Set the number of shards of embedding.ingested, while it is in use."""
    with _operations() as operations:
        plan = operations.plan_shards(EMBEDDING_INGESTED, n)
        _action(operations, plan, by=by, note=note, yes=yes, as_json=as_json)


# -- actions ----------------------------------------------------------------------------------------------------------


@app.command(
    name="rescue",
    epilog=examples(
        "sploot-cluster queue rescue embedding --unowned",
        "sploot-cluster queue rescue embedding --idle 10m --yes --note INC-7",
    ),
)
def queue_rescue(
    queue: Queue,
    by: By,
    entry_ids: Annotated[list[str] | None, typer.Argument(help="Entry ids; see `queue pending`.", metavar="ID")] = None,
    consumer: Annotated[str | None, typer.Option(help="All jobs that this consumer holds.")] = None,
    unowned: Annotated[
        bool, typer.Option("--unowned", help="Orphans and ghosts: entries acknowledged or deleted by hand.")
    ] = False,
    idle: Annotated[str | None, typer.Option(help="All jobs held for at least 30s, 15m, 2h.")] = None,
    even_if_alive: EvenIfAlive = False,
    note: Note = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Return jobs that a dead or stuck worker holds, or that no worker holds, to the queue."""
    with _operations() as operations:
        plan = operations.plan_rescue(
            queue,
            entry_ids=entry_ids or (),
            consumer=consumer,
            unowned=unowned,
            idle_s=None if idle is None else _seconds("--idle", idle),
            even_if_alive=even_if_alive,
        )
        _action(operations, plan, by=by, note=note, yes=yes, as_json=as_json)


@app.command(
    name="retire-consumer",
    epilog=examples("sploot-cluster queue retire-consumer embedding worker-1:17:c0ffee.1:0a1b2c3d --yes"),
)
def queue_retire_consumer(
    queue: Queue,
    consumer: Annotated[str, typer.Argument(help="Consumer name; see `queue status`.", metavar="CONSUMER")],
    by: By,
    even_if_alive: EvenIfAlive = False,
    note: Note = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Return a dead consumer's jobs to the queue, then remove the consumer."""
    with _operations() as operations:
        plan = operations.plan_retire(queue, consumer, even_if_alive=even_if_alive)
        _action(operations, plan, by=by, note=note, yes=yes, as_json=as_json)


@app.command(name="pause", epilog=examples("sploot-cluster queue pause feedback --yes --note INC-7"))
def queue_pause(queue: Queue, by: By, note: Note = "", yes: Yes = False, as_json: AsJson = False) -> None:
    """Stop delivery of a queue to all workers until you resume it."""
    with _operations() as operations:
        _action(operations, operations.plan_pause(queue), by=by, note=note, yes=yes, as_json=as_json)


@app.command(name="resume", epilog=examples("sploot-cluster queue resume feedback --yes"))
def queue_resume(queue: Queue, by: By, note: Note = "", yes: Yes = False, as_json: AsJson = False) -> None:
    """Resume delivery of a paused queue."""
    with _operations() as operations:
        _action(operations, operations.plan_resume(queue), by=by, note=note, yes=yes, as_json=as_json)


@app.command(name="cancel", epilog=examples("sploot-cluster queue cancel recluster --pet 42"))
def queue_cancel(
    queue: Queue,
    by: By,
    job_ids: Annotated[
        list[str] | None, typer.Argument(help="Job ids; see `queue find --json` and the log.", metavar="JOB")
    ] = None,
    actor: Actor = None,
    pet: OfPet = None,
    note: Note = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Cancel unfinished jobs: by id, or all of an actor or a pet. Running ones are interrupted; none is retried."""
    with _operations() as operations:
        plan = operations.plan_cancel(queue, job_ids=job_ids or (), actor=actor, pet_id=pet)
        _action(operations, plan, by=by, note=note, yes=yes, as_json=as_json)


@app.command(name="apply", epilog=examples("sploot-cluster queue apply PLAN --note INC-7"))
def queue_apply(
    plan_id: Annotated[str, typer.Argument(help="Plan id printed by the action.", metavar="PLAN")],
    by: By,
    canary: WithCanary = False,
    rate: Rate = 10.0,
    wait: CanaryWait = 60.0,
    stop_after: StopAfter = 3,
    note: Note = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Apply a saved plan (once, to exactly the ids it listed)."""
    with _operations() as operations:
        plan = operations.take(plan_id)
        act = None
        if canary:
            from tasks.queue_ops.operations import check_canary

            try:
                check_canary(plan)
            except InvalidInput:
                operations.keep(plan)
                raise
            act = _with_canary(operations, CarefulRequeue(rate, wait, stop_after), by=by, note=note)
        _action(operations, plan, by=by, note=note, yes=yes, as_json=as_json, act=act)


# -- dead letters ------------------------------------------------------------------------------------------------------


@dead.command(
    name="list",
    epilog=examples("sploot-cluster queue dead list --since 15m", "sploot-cluster queue dead list embedding --groups"),
)
def dead_list(
    queue: Annotated[str | None, typer.Argument(help="The queue; default: all queues.", metavar="QUEUE")] = None,
    reason: Reason = None,
    actor: Actor = None,
    pet: OfPet = None,
    error: Error = None,
    since: Since = None,
    groups: Annotated[bool, typer.Option("--groups", help="Count them by kind of failure.")] = False,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """Show dead letters, newest first."""
    from tasks.queue_ops.dead_letters import groups_of, view_of

    wanted, names = _filter(reason, actor, pet, error, since), [queue] if queue else QUEUES
    with _operations() as operations:
        if groups:
            found = (
                dead_letter
                for name in names
                for dead_letter in operations.stored_dead_letters(name, wanted, limit=MOST_GROUPED)
            )
            _show_groups([public(group) for group in groups_of(found)], as_json=as_json)
            return
        views = [
            view_of(dead_letter)
            for name in names
            for dead_letter in operations.stored_dead_letters(name, wanted, limit=limit)
        ]
    views = sorted(views, key=lambda view: view.died_at, reverse=True)[:limit]
    if as_json:
        print_json([_listed(view) for view in views])
        return
    table = table_of("dead letter", "queue", "failed (UTC)", "reason", "actor", "pet", "field", "error")
    for view in views:
        died = f"{view.died_at:%Y-%m-%d %H:%M:%S}"
        about = (view.reason, view.actor, view.pet_id, view.field, view.error)
        table.add_row(view.dead_letter_id, view.queue, died, *map(_text, about))
    print_table(table)


@dead.command(name="show", epilog=examples("sploot-cluster queue dead show embedding 1764000000000-0"))
def dead_show(
    queue: Queue,
    dead_letter_id: Annotated[str, typer.Argument(help="Dead-letter id; see `queue dead list`.", metavar="ID")],
    as_json: AsJson = False,
) -> None:
    """Show one dead letter: error, hint, traceback and fields; embeddings are left out."""
    with _operations() as operations:
        view = operations.dead_letter(queue, dead_letter_id)
    if view is None:
        raise InvalidInput(
            "ID", f"{dead_letter_id} is not a dead letter of {queue}", "see sploot-cluster queue dead list"
        )
    if as_json:
        print_json(view)
        return
    for name, value in _listed(view).items():
        if value not in (None, ""):
            out.print(f"{name:<12} {value}")
    for name, value in view.fields.items():
        out.print(f"  {name:<12} {value}")
    if view.traceback:
        print_block(view.traceback)


@dead.command(
    name="requeue", epilog=examples("sploot-cluster queue dead requeue embedding --error Timeout --canary --yes")
)
def dead_requeue(
    queue: Queue,
    by: By,
    dead_letter_ids: Annotated[
        list[str] | None, typer.Argument(help="Dead-letter ids; see `queue dead list`.", metavar="ID")
    ] = None,
    every: All = False,
    reason: Reason = None,
    actor: Actor = None,
    pet: OfPet = None,
    error: Error = None,
    since: Since = None,
    canary: WithCanary = False,
    rate: Rate = 10.0,
    wait: CanaryWait = 60.0,
    stop_after: StopAfter = 3,
    note: Note = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Requeue dead letters: by id, by filter, or --all."""
    with _operations() as operations:
        ids, matching = _choice(dead_letter_ids, every, _filter(reason, actor, pet, error, since))
        plan = operations.plan_requeue(queue, dead_letter_ids=ids, matching=matching)
        act = None
        if canary:
            act = _with_canary(operations, CarefulRequeue(rate, wait, stop_after), by=by, note=note)
        _action(operations, plan, by=by, note=note, yes=yes, as_json=as_json, act=act)


@dead.command(
    name="purge", epilog=examples("sploot-cluster queue dead purge embedding --reason undecodable --since 7d")
)
def dead_purge(
    queue: Queue,
    by: By,
    dead_letter_ids: Annotated[
        list[str] | None, typer.Argument(help="Dead-letter ids; see `queue dead list`.", metavar="ID")
    ] = None,
    every: All = False,
    reason: Reason = None,
    actor: Actor = None,
    pet: OfPet = None,
    error: Error = None,
    since: Since = None,
    note: Note = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete dead letters permanently: by id, by filter, or --all."""
    with _operations() as operations:
        ids, matching = _choice(dead_letter_ids, every, _filter(reason, actor, pet, error, since))
        plan = operations.plan_purge(queue, dead_letter_ids=ids, matching=matching)
        _action(operations, plan, by=by, note=note, yes=yes, as_json=as_json)


# -- shared by the actions ---------------------------------------------------------------------------------------------


@contextmanager
def _operations() -> Iterator[Operations]:
    from tasks.composition import build_client, build_operations

    settings = settings_of_environment()
    with build_client(settings) as client:
        yield build_operations(settings, client)


def _action(
    operations: Operations,
    plan: Plan,
    *,
    by: str,
    note: str,
    yes: bool,
    as_json: bool,
    act: Callable[[Plan], Done] | None = None,
) -> None:
    """Show the plan; apply it with --yes, otherwise save it and refuse."""
    if not as_json:
        _show(plan)
    if plan.is_empty:
        if as_json:
            print_json(plan)
        else:
            out.print("Nothing to do.")
        return
    if not yes:
        operations.keep(plan)
        if as_json:
            print_json(plan)
        err.print(
            "Nothing was done. To apply exactly this plan within an hour: "
            f"sploot-cluster queue apply {plan.plan_id} --yes" + (" --canary" if act is not None else ""),
        )
        raise typer.Exit(REFUSED)
    done = act(plan) if act is not None else operations.act(plan, by=by, via=VIA, note=note)
    if as_json:
        print_json(done)
    else:
        out.print(f"Done: {done.reason}." if done.is_complete else f"NOT DONE: {done.reason}.")
    if not done.is_complete:
        raise typer.Exit(FAILED)


def _with_canary(operations: Operations, how: CarefulRequeue, *, by: str, note: str) -> Callable[[Plan], Done]:
    return lambda plan: operations.requeue_carefully(plan, how, by=by, via=VIA, note=note)


def _show(plan: Plan) -> None:
    out.print(f"Plan {plan.plan_id}: {plan.effect}.")
    for command in plan.commands:
        out.print(f"  {command}")
    for warning in plan.warnings:
        out.print(f"Warning: {warning}.")


def _oldest(found: Sequence[Record], limit: int, id_of: Callable[[Record], str]) -> Sequence[Record]:
    """Return the records of all shards that were added first."""
    from tasks.queue_ops.shards import order_of

    return sorted(found, key=lambda one: order_of(id_of(one)))[:limit]


def _filter(
    reason: str | None, actor: str | None, pet: int | None, error: str | None, since: str | None
) -> DeadLetterFilter:
    since_s = None if since is None else _seconds("--since", since)
    return DeadLetterFilter(reason=reason, actor=actor, pet_id=pet, error=error, since_s=since_s)


def _choice(
    dead_letter_ids: Sequence[str] | None, every: bool, wanted: DeadLetterFilter
) -> tuple[Sequence[str], DeadLetterFilter | None]:
    """Return the ids or the filter that select dead letters; exactly one of them must be given."""
    n_ways = bool(dead_letter_ids) + bool(wanted.facts()) + every
    if n_ways != 1:
        raise InvalidInput("ID", "expected exactly one selection of dead letters", "give ids, filters or --all")
    return (dead_letter_ids, None) if dead_letter_ids else ((), wanted)


def _listed(view: DeadLetterView) -> dict[str, object]:
    """Return a dead letter as a list shows it: without traceback and fields."""
    return {name: value for name, value in public(view).items() if name not in ("traceback", "fields")}


def _show_groups(groups: Sequence[dict[str, object]], *, as_json: bool) -> None:
    if as_json:
        print_json(groups)
        return
    table = table_of("count", "reason", "actor", "error", "field", "newest (UTC)", "example")
    for group in groups:
        newest = group["newest"]
        assert isinstance(newest, datetime)
        table.add_row(*(_text(group[n]) for n in ("n", "reason", "actor", "error", "field")),
                      f"{newest:%Y-%m-%d %H:%M:%S}", _text(group["sample_id"]))  # fmt: skip
    print_table(table)


def _seconds(option: str, text: str) -> float:
    """Return a duration such as ``90s``, ``15m``, ``2h`` or ``7d`` in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|d)?", text.strip())
    if match is None:
        raise InvalidInput(option, f"{text!r} is not a duration", "write 30s, 15m, 2h or 7d")
    seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3_600, "d": 86_400}[match[2] or "s"]
    if seconds > LONGEST_S:
        raise InvalidInput(option, f"{text!r} is longer than a hundred years", "use a shorter one, e.g. 7d")
    return seconds


def _when_of(entry_id: str) -> str:
    from tasks.queue_ops.entries import added_at

    return _moment(added_at(entry_id))


def _moment(at: datetime | None) -> str:
    return "-" if at is None else f"{at:%Y-%m-%d %H:%M:%S}"


def _shown(held: HeldJob, now: datetime) -> tuple[str, str, str, str]:
    """Return the actor, pet, time and progress of a job that a worker holds, as text."""
    job, progress = held.job, ""
    if held.progress is not None:
        total = "" if held.progress.total is None else f" of {held.progress.total:g}"
        progress = f"{held.progress.done:g}{total} {held.progress.note or ''}".strip()
    since = None if job.started_at is None else (now - job.started_at).total_seconds()
    return job.actor or job.job_id or "?", "" if job.pet_id is None else str(job.pet_id), _age(since), progress


def _age(seconds: float | None) -> str:
    return duration_text(None if seconds is None else int(1000 * seconds))


def _text(value: object) -> str:
    """Return a value as the text of a table cell."""
    text = "-" if value is None else str(value)
    return text if len(text) <= 120 else f"{text[:119]}…"
