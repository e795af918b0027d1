"""The operations on queues: inspect a queue, plan an action, and apply exactly that plan."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import partial
from heapq import merge
from itertools import islice
from typing import Final, assert_never

import redis

from broker import (
    DeadLetter,
    DeadLetterTooLarge,
    Inspector,
    InvalidOption,
    PendingEntry,
    QueueStats,
    RedisStreamsBroker,
    Selection,
)
from broker.dead_letters import KEY_HELD, is_requeued
from broker.keys import HANDED_BACK, QueueKeys
from broker.sharding.shards import check_shards
from broker.stats import total_of
from sploot_cluster.errors import InvalidInput
from sploot_cluster.queues import (
    Action,
    AuditRecord,
    CanaryRun,
    CarefulRequeue,
    ConsumerStatus,
    DeadLetterFilter,
    DeadLetterGroup,
    DeadLetterView,
    Done,
    Found,
    History,
    JobsState,
    Page,
    PeriodicJob,
    Plan,
    PlannedEntry,
    QueueJob,
    QueueStatus,
    UnknownConsumer,
    Worker,
)
from tasks.contracts import CLUSTER_FEEDBACK, EMBEDDING_INGESTED, NAMESPACE, QUEUES, stream_of
from tasks.observe.history import read_history
from tasks.observe.periodic_runs import periodic_jobs
from tasks.queue_ops.audit import AuditLog
from tasks.queue_ops.canary import HELD, Canary
from tasks.queue_ops.canary_runs import CanaryRuns
from tasks.queue_ops.dead_letters import groups_of, page_of, select, view_of
from tasks.queue_ops.listing import jobs_of
from tasks.queue_ops.overdue import OverdueJob, command_that_frees, effect_of, overdue_jobs
from tasks.queue_ops.pet_index import FoundJob, find_jobs
from tasks.queue_ops.plans import Plans, new_plan_id
from tasks.queue_ops.search import search
from tasks.queue_ops.shards import done_of_all, located, page_of_all, parts_of, plan_of_all
from tasks.queue_ops.workers import workers_of
from tasks.redis_access.errors import reaching_redis
from tasks.shards import SHARDED, queue_of

MOST_GROUPED: Final = 10_000
# Maximum number of entries that one plan touches; their ids and holders take a few megabytes.
MOST_ENTRIES: Final = 100_000
SHOWN_IDS: Final = 3
# Queue -> what users or producers lose if its jobs are cancelled.
CANCEL_LOSES: Final = {
    EMBEDDING_INGESTED: "the items of cancelled uploads are missing from their pets until they are sent again",
    CLUSTER_FEEDBACK: "cancelled corrections are lost: users have to make them again",
}
# Number of shards per worker process above which a plan warns: each costs a process two threads.
SHARDS_PER_PROCESS: Final = 16
ACTED: Final = "it may have run in part: see the audit, then plan again"


class Operations:
    """An implementation of ``sploot_cluster.queues.QueueOperations``. Thread-safe.

    Args:
        broker: defines the queues and the lease; consumes nothing here.
        client: connection to the same Redis, for plans and the audit.
    """

    def __init__(self, broker: RedisStreamsBroker, client: redis.Redis) -> None:
        self._broker = broker
        self._client = client
        self._plans = Plans(client)
        self._audit = AuditLog(client)
        self._canaries = CanaryRuns(client)

    def close(self) -> None:
        """Stop the canaries, and close the connections that this object opened; ``client`` belongs to the caller."""
        self._canaries.close()
        self._broker.close()

    # -- inspect -------------------------------------------------------------------------------------------------

    def queues(self) -> Sequence[QueueStatus]:
        with reaching_redis():
            return [self._status(queue) for queue in QUEUES]

    def shards(self, queue: str) -> Sequence[str]:
        """Return the shards of a queue; a queue that is not divided, or a shard, is its only shard."""
        with reaching_redis():
            return self._broker.shards(queue_named(queue))

    def stats_of_shards(self, queue: str) -> Sequence[QueueStats]:
        """Return the statistics of each shard of a queue."""
        with reaching_redis():
            return self._broker.stats_of_shards(queue_named(queue))

    def inspector(self, shard: str) -> Inspector:
        """Return the inspector of a shard."""
        return self._broker.inspector(queue_named(shard))

    def find(self, pet_id: int) -> tuple[list[FoundJob], int]:
        """Return the pet's unfinished jobs, and the number of entries that were indexed for this search."""
        with reaching_redis():
            return find_jobs(self._broker, self._client, pet_id)

    @property
    def names(self) -> Sequence[str]:
        """The names of all queues."""
        return QUEUES

    def stored_dead_letters(self, queue: str, wanted: DeadLetterFilter, *, limit: int) -> Iterator[DeadLetter]:
        """Yield the dead letters that match, newest first, with embeddings."""
        with reaching_redis():
            now, shards = self._now(), self._broker.shards(queue_named(queue))
            found = [select(self._broker.dead_letters(shard), wanted, now=now, limit=limit) for shard in shards]
            yield from islice(merge(*found, key=lambda one: _order(one.id), reverse=True), limit)

    def dead_letters(
        self, queue: str, wanted: DeadLetterFilter, *, limit: int, cursor: str | None = None
    ) -> Page[DeadLetterView]:
        with reaching_redis():
            now = self._now()
            pages = [
                page_of(self._broker.dead_letters(shard), wanted, now=now, limit=limit, before=cursor)
                for shard in self._broker.shards(queue_named(queue))
            ]
            return page_of_all(pages, limit, id_of=lambda view: view.dead_letter_id, newest_first=True)

    def dead_letter(self, queue: str, dead_letter_id: str) -> DeadLetterView | None:
        with reaching_redis():
            for shard in self._broker.shards(queue_named(queue)):
                dead_letter = self._broker.dead_letters(shard).get(dead_letter_id)
                if dead_letter is not None:
                    return view_of(dead_letter, is_whole=True)
        return None

    def jobs(self, queue: str, state: JobsState, *, limit: int, cursor: str | None = None) -> Page[QueueJob]:
        with reaching_redis():
            return jobs_of(
                self._broker,
                self._client,
                self._broker.shards(queue_named(queue)),
                state,
                limit=limit,
                now=self._now(),
                cursor=cursor,
            )

    def workers(self) -> Sequence[Worker]:
        with reaching_redis():
            return workers_of(self._broker, now=self._now())

    def periodic_jobs(self) -> Sequence[PeriodicJob]:
        with reaching_redis():
            return periodic_jobs(self._client, now=self._now())

    def dead_letter_groups(self, queue: str, wanted: DeadLetterFilter) -> Sequence[DeadLetterGroup]:
        """Group the newest ``MOST_GROUPED`` dead letters that match by kind of failure, largest group first."""
        return groups_of(self.stored_dead_letters(queue, wanted, limit=MOST_GROUPED))

    def history(self) -> History:
        with reaching_redis():
            return read_history(self._client, now=self._now().timestamp())

    def search(self, text: str, *, limit: int) -> Found:
        with reaching_redis():
            return search(self._broker, self._client, text, limit=limit)

    def audit(self, limit: int = 50, *, cursor: str | None = None) -> Page[AuditRecord]:
        with reaching_redis():
            return self._audit.page(limit, before=cursor)

    # -- plan ----------------------------------------------------------------------------------------------------

    def plan_rescue(
        self,
        queue: str,
        *,
        entry_ids: Sequence[str] = (),
        consumer: str | None = None,
        unowned: bool = False,
        idle_s: float | None = None,
        even_if_alive: bool = False,
    ) -> Plan:
        """Make a plan to requeue entries: given ids, all of a consumer, unowned ones, or those held for ``idle_s``.

        Entries of a live worker are left out unless ``even_if_alive``, because that worker would run them as well.
        """
        n_ways = bool(entry_ids) + (consumer is not None) + unowned + (idle_s is not None)
        if n_ways != 1:
            raise InvalidInput(
                "entry_ids", "expected exactly one selection of entries", "give ids, a consumer, unowned or idle_s"
            )
        plan_of = partial(
            self._plan_rescue, consumer=consumer, unowned=unowned, idle_s=idle_s, even_if_alive=even_if_alive
        )
        return self._of_shards(
            queue,
            plan_of,
            ids=entry_ids,
            field="entry_ids",
            is_in=self._has_entry,
        )

    def _plan_rescue(
        self,
        queue: str,
        entry_ids: Sequence[str],
        *,
        consumer: str | None,
        unowned: bool,
        idle_s: float | None,
        even_if_alive: bool,
    ) -> Plan:
        warnings: list[str] = []
        ghosts: set[str] = set()
        with reaching_redis():
            inspector = self._broker.inspector(queue)
            if entry_ids:
                seen = self._look_up(inspector, entry_ids)
            elif unowned:
                found = inspector.unowned(MOST_ENTRIES)
                seen = [*found.orphans, *found.ghosts]
                ghosts = {entry.id for entry in found.ghosts}
                if ghosts:
                    warnings.append(
                        f"{len(ghosts)} of them are pending ids without an entry: the ids are removed, there "
                        "is nothing left to run"
                    )
            else:
                seen = inspector.pending(MOST_ENTRIES, consumer=consumer, idle_ms=int(1000 * (idle_s or 0)))
            stats = self._broker.stats(queue)
            alive = {one.name for one in stats.consumers if one.is_alive}
            overdue = overdue_jobs(self._broker, stats)
        seen = [entry for entry in seen if not entry.is_handed_back]
        # no worker runs a ghost, even if a live worker holds its id
        of_the_living = [entry for entry in seen if entry.holder in alive and entry.id not in ghosts]
        if of_the_living and even_if_alive:
            warnings.append(
                f"{len(of_the_living)} of them are held by live workers and may run twice, which is harmless: "
                "every effect is idempotent"
            )
        elif of_the_living:
            warnings.append(
                f"{len(of_the_living)} are left out, because live workers hold them; --even-if-alive includes "
                "them, but they may run twice"
            )
            left_out = {entry.id for entry in of_the_living}
            seen = [entry for entry in seen if entry.id not in left_out]
        if hanging := [job for job in overdue if any(entry.id == job.entry_id for entry in of_the_living)]:
            warnings.append(effect_of(hanging))
        if len(seen) == MOST_ENTRIES:
            warnings.append(f"these are the first {MOST_ENTRIES:,}; plan again for the rest")
        keys = QueueKeys(NAMESPACE, queue)
        group = self._broker.settings.group
        held = [entry.id for entry in seen if entry.holder]
        orphans = [entry.id for entry in seen if not entry.holder]
        commands = []
        if held:
            commands.append(f"XCLAIM {keys.stream} {group} {HANDED_BACK} 0 {_some(held)} JUSTID")
        if orphans:
            commands.append(f"XCLAIM {keys.stream} {group} {HANDED_BACK} 0 {_some(orphans)} FORCE RETRYCOUNT 1 JUSTID")
        if seen:
            commands.append(f"XADD {keys.timer} MAXLEN 1 * rescued {len(seen)}")
        return self._plan(
            "rescue",
            queue,
            f"hand {_n(len(seen), 'entry', 'entries')} of {keys.stream} back to work; the next free worker runs them",
            commands,
            entries=_planned(seen),
            warnings=warnings,
            is_forced=even_if_alive,
        )

    def plan_retire(self, queue: str, consumer: str, *, even_if_alive: bool = False) -> Plan:
        """Make a plan to return the consumer's entries to the queue and then remove the consumer."""
        shards = self._shards_known_to(queue_named(queue), consumer)
        return plan_of_all(
            queue_named(queue),
            {shard: self._plan_retire(shard, consumer, even_if_alive=even_if_alive) for shard in shards},
        )

    def _shards_known_to(self, queue: str, consumer: str) -> Sequence[str]:
        """Return the shards that have this consumer, or the first shard if none has."""
        with reaching_redis():
            parts = self._broker.stats_of_shards(queue)
        known = [part.queue_name for part in parts if any(one.name == consumer for one in part.consumers)]
        return known or [parts[0].queue_name]

    def _plan_retire(self, queue: str, consumer: str, *, even_if_alive: bool) -> Plan:
        with reaching_redis():
            names = {one.name for one in self._broker.stats(queue).consumers}
            held = self._broker.inspector(queue).pending(MOST_ENTRIES, consumer=consumer)
            is_alive = consumer in self._alive(queue)
        if consumer not in names:
            close = get_close_matches(consumer, names, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]}?" if close else "see sploot-cluster queue status"
            raise UnknownConsumer(queue, consumer, hint)
        if consumer == HANDED_BACK:
            raise InvalidInput(
                "consumer",
                f"{HANDED_BACK} is a reserved consumer for returned entries",
                "leave it; workers take from it",
            )
        warnings = []
        if is_alive and not even_if_alive:
            warnings.append("the consumer is alive, so nothing will be done; stop its worker, or add --even-if-alive")
        elif is_alive:
            warnings.append("the consumer is alive: it will register again, and its jobs may run twice")
        keys, group = QueueKeys(NAMESPACE, queue), self._broker.settings.group
        ids = [entry.id for entry in held]
        commands = [f"XCLAIM {keys.stream} {group} {HANDED_BACK} 0 {_some(ids)} JUSTID"] if ids else []
        commands += [
            f"XPENDING {keys.stream} {group} - + 1 {consumer}  # must be empty, or nothing is deleted",
            f"XGROUP DELCONSUMER {keys.stream} {group} {consumer}",
            f"ZREM {keys.consumers} {consumer}",
        ]
        return self._plan(
            "retire-consumer",
            queue,
            f"hand {_n(len(held), 'entry', 'entries')} of {consumer} back to work, then remove the consumer",
            commands,
            entries=_planned(held),
            warnings=warnings,
            consumer=consumer,
            is_forced=even_if_alive,
        )

    def plan_pause(self, queue: str) -> Plan:
        """Make a plan to stop delivery until the queue is resumed."""
        return self._of_shards(queue, lambda shard, _: self._plan_pause(shard))

    def _plan_pause(self, queue: str) -> Plan:
        keys = QueueKeys(NAMESPACE, queue)
        return self._plan(
            "pause",
            queue,
            f"stop delivering {keys.stream} to all workers, even after restarts, until resumed; running jobs continue",
            [f"SET {keys.paused} 1", f"XADD {keys.timer} MAXLEN 1 * paused 1"],
        )

    def plan_resume(self, queue: str) -> Plan:
        """Make a plan to end a pause."""
        return self._of_shards(queue, lambda shard, _: self._plan_resume(shard))

    def _plan_resume(self, queue: str) -> Plan:
        keys = QueueKeys(NAMESPACE, queue)
        return self._plan(
            "resume",
            queue,
            f"deliver {keys.stream} to the workers again",
            [f"DEL {keys.paused}", f"XADD {keys.timer} MAXLEN 1 * paused 0"],
        )

    def plan_requeue(
        self, queue: str, *, dead_letter_ids: Sequence[str] = (), matching: DeadLetterFilter | None = None
    ) -> Plan:
        """Make a plan to requeue dead letters, oldest first: given ids, or all that match."""
        return self._of_dead_letters(queue, dead_letter_ids, matching, self._plan_requeue)

    def _plan_requeue(self, queue: str, dead_letter_ids: Sequence[str], matching: DeadLetterFilter | None) -> Plan:
        ids = self._chosen(queue, dead_letter_ids, matching)
        keys = QueueKeys(NAMESPACE, queue)
        commands = []
        if ids:
            commands = [
                f"XADD {keys.stream} * …  # the original entry, once for each of {_some(ids)}",
                f"XDEL {keys.dead} {_some(ids)}",
            ]
        return self._plan(
            "requeue",
            queue,
            f"put {_n(len(ids), 'dead letter')} of {queue} back at the end of {keys.stream}",
            commands,
            entries=[PlannedEntry(dead_letter_id) for dead_letter_id in ids],
        )

    def plan_purge(
        self, queue: str, *, dead_letter_ids: Sequence[str] = (), matching: DeadLetterFilter | None = None
    ) -> Plan:
        """Make a plan to delete dead letters permanently: given ids, or all that match."""
        return self._of_dead_letters(queue, dead_letter_ids, matching, self._plan_purge)

    def _plan_purge(self, queue: str, dead_letter_ids: Sequence[str], matching: DeadLetterFilter | None) -> Plan:
        ids = self._chosen(queue, dead_letter_ids, matching)
        keys = QueueKeys(NAMESPACE, queue)
        return self._plan(
            "purge",
            queue,
            f"delete {_n(len(ids), 'dead letter')} of {queue} permanently",
            [f"XDEL {keys.dead} {_some(ids)}"] if ids else [],
            entries=[PlannedEntry(dead_letter_id) for dead_letter_id in ids],
            warnings=["this cannot be undone; sploot-cluster capture keeps a copy"] if ids else [],
        )

    def plan_cancel(
        self, queue: str, *, job_ids: Sequence[str] = (), actor: str | None = None, pet_id: int | None = None
    ) -> Plan:
        """Make a plan to cancel unfinished jobs: given ids, or all of an actor, of a pet, or of both."""
        if bool(job_ids) == (actor is not None or pet_id is not None):
            hint = "give their ids, or an actor, a pet or both"
            raise InvalidInput("job_ids", "expected exactly one selection of jobs", hint)
        return self._of_shards(
            queue,
            lambda shard, ids: self._plan_cancel(shard, job_ids=ids, actor=actor, pet_id=pet_id),
            ids=job_ids,
            field="job_ids",
            is_in=self._has_job,
        )

    def _has_entry(self, shard: str, entry_id: str) -> bool:
        inspector = self._broker.inspector(shard)
        return inspector.entry(entry_id) is not None or inspector.find_pending(entry_id) is not None

    def _has_job(self, shard: str, job_id: str) -> bool:
        wanted = Selection(message_ids=frozenset({job_id}))
        return any(True for _ in self._broker.inspector(shard).find(wanted))

    def _plan_cancel(self, queue: str, *, job_ids: Sequence[str], actor: str | None, pet_id: int | None) -> Plan:
        with reaching_redis():
            found = self._unfinished(queue, job_ids, actor, pet_id)
            pending = {entry.id: entry for entry in self._broker.inspector(queue).pending(MOST_ENTRIES)}
            alive = self._alive(queue)
        entries = []
        for job_id, entry_id in found.items():
            held = pending.get(entry_id)
            holder, deliveries = ("", 0) if held is None or held.is_handed_back else (held.holder, held.deliveries)
            entries.append(PlannedEntry(job_id, holder, deliveries, entry_id))
        keys = QueueKeys(NAMESPACE, queue)
        n_running = sum(entry.holder in alive for entry in entries)
        warnings = [CANCEL_LOSES[queue_of(queue)]] if entries and queue_of(queue) in CANCEL_LOSES else []
        if n_running:
            warnings.append(
                f"{n_running} of them are with live workers: they are interrupted, unless they finish first"
            )
        if len(entries) == MOST_ENTRIES:
            warnings.append(f"these are the first {MOST_ENTRIES:,}; plan again for the rest")
        return self._plan(
            "cancel",
            queue,
            f"cancel {_n(len(entries), 'job')} of {queue}; they are not retried, and their unique keys are free",
            _commands_to_cancel(keys, entries, alive),
            entries=entries,
            warnings=warnings,
        )

    def plan_shards(self, queue: str, n: int) -> Plan:
        """Make a plan to set the number of shards that new jobs of a queue are added to.

        Raises:
            InvalidInput: the queue cannot be divided, it is paused, or ``n`` is not a power of two up to 256.
        """
        queue = queue_named(queue)
        if queue not in SHARDED:
            raise InvalidInput("queue", f"{queue} cannot be divided", f"choose from {', '.join(SHARDED)}")
        try:
            check_shards(n)
        except InvalidOption as refused:
            raise InvalidInput("shards", refused.problem, refused.hint) from refused
        with reaching_redis():
            stats, before = self._broker.stats(queue), self._broker.n_shards(queue)
        if stats.paused:
            problem = f"{queue} is paused, and new shards would not be"
            raise InvalidInput("queue", problem, f"resume it first: sploot-cluster queue resume {queue}")
        n_alive = sum(one.is_alive for one in stats.consumers)
        warnings = []
        if not n_alive:
            warnings.append("no worker is alive to read the shards")
        elif n > SHARDS_PER_PROCESS * n_alive:
            warnings.append(
                f"{_n(n_alive, 'worker process reads', 'worker processes read')} {n:,} shards; fewer are enough"
            )
        if n < before:
            warnings.append(f"the other shards stay until workers have emptied them; {queue} counts their jobs, too")
        waiting = (
            f"{_n(stats.undelivered, 'waiting job')} of {queue} still {'runs' if stats.undelivered == 1 else 'run'}"
        )
        plan = self._plan(
            "set-shards",
            queue,
            f"add new jobs of {queue} to {_n(n, 'shard')} instead of {before:,}, within five seconds; {waiting}",
            [f"SET {QueueKeys(NAMESPACE, queue).shards} '{n} {max(n, len(self.shards(queue)))}'"],
            warnings=warnings,
        )
        return replace(plan, n_shards=n)

    def _of_shards(
        self,
        queue: str,
        plan_of: Callable[[str, Sequence[str]], Plan],
        *,
        ids: Sequence[str] = (),
        field: str = "",
        is_in: Callable[[str, str], bool] = lambda shard, one: True,
    ) -> Plan:
        """Return one plan for all shards of a queue or, if ids are given, for the shards that hold them.

        Args:
            plan_of: returns the plan for one shard and the ids that it holds.
        """
        queue = queue_named(queue)
        shards = self.shards(queue)
        if not ids or len(shards) == 1:
            return plan_of_all(queue, {shard: plan_of(shard, ids) for shard in shards})
        with reaching_redis():
            holders = located(field, ids, shards, is_in)
        return plan_of_all(queue, {shard: plan_of(shard, of_shard) for shard, of_shard in holders.items()})

    def _of_dead_letters(
        self,
        queue: str,
        ids: Sequence[str],
        matching: DeadLetterFilter | None,
        plan_of: Callable[[str, Sequence[str], DeadLetterFilter | None], Plan],
    ) -> Plan:
        return self._of_shards(
            queue,
            lambda shard, of_shard: plan_of(shard, of_shard, matching),
            ids=ids,
            field="dead_letter_ids",
            is_in=lambda shard, one: self._broker.dead_letters(shard).get(one) is not None,
        )

    def keep(self, plan: Plan) -> None:
        with reaching_redis():
            self._plans.keep(plan)

    def take(self, plan_id: str) -> Plan:
        with reaching_redis():
            return self._plans.take(plan_id)

    # -- act -----------------------------------------------------------------------------------------------------

    def act(self, plan: Plan, *, by: str, via: str, note: str = "") -> Done:
        with reaching_redis(ACTED), self._audit.writing(plan, by=by, via=via, note=note) as entry:
            done = entry.done = done_of_all(plan, [self._done(part) for part in self._parts(plan)])
            return done

    def _parts(self, plan: Plan) -> Sequence[Plan]:
        """Return the plan for each shard that it touches."""
        if plan.action != "retire-consumer" or plan.consumer is None:
            return parts_of(plan)
        parts = {part.queue: part for part in parts_of(plan)}
        shards = self._shards_known_to(plan.queue, plan.consumer)
        return [parts.get(shard) or replace(plan, queue=shard, entries=()) for shard in shards]

    def requeue_carefully(
        self,
        plan: Plan,
        how: CarefulRequeue,
        *,
        by: str,
        via: str,
        note: str = "",
        on_step: Callable[[int, int], None] = lambda requeued, died: None,
        should_stop: Callable[[], str] = lambda: "",
    ) -> Done:
        """Requeue the dead letters of a plan with a canary, and record it in the audit; see :class:`Canary`."""
        canary = Canary(self._broker, how, on_step=on_step, should_stop=should_stop)
        with reaching_redis(ACTED), self._audit.writing(plan, by=by, via=via, note=note) as entry:
            (part,) = parts_of(plan)
            careful = canary.requeue(part)
            reason = careful.reason + (f"; {careful.n_left} were not touched" if careful.n_left else "")
            entry.done = _ended(plan, careful.n_requeued, reason, is_complete=careful.is_good)
            return entry.done

    def start_canary(self, plan: Plan, how: CarefulRequeue, *, by: str, via: str, note: str = "") -> CanaryRun:
        """Begin :meth:`requeue_carefully` in a thread of this process.

        Raises:
            InvalidInput: the plan is for a different action, or too many canaries are running.
        """

        def requeue(on_step: Callable[[int, int], None], should_stop: Callable[[], str]) -> Done:
            return self.requeue_carefully(
                plan, how, by=by, via=via, note=note, on_step=on_step, should_stop=should_stop
            )

        check_canary(plan)
        with reaching_redis():
            return self._canaries.start(plan, how, by=by, requeue=requeue)

    def canaries(self) -> Sequence[CanaryRun]:
        with reaching_redis():
            return self._canaries.all()

    def stop_canary(self, plan_id: str) -> CanaryRun | None:
        with reaching_redis():
            return self._canaries.stop(plan_id, why="an operator stopped it")

    def _done(self, plan: Plan) -> Done:
        match plan.action:
            case "rescue":
                rescued = self._broker.inspector(plan.queue).rescue(_as_seen(plan))
                n, of = rescued.n_handed_back, len(plan.entries)
                reason = f"{n} of {of} handed back to work"
                if rescued.n_ghosts:
                    reason += f", {rescued.n_ghosts} ids without an entry removed"
                left = of - n - rescued.n_ghosts
                if left:
                    reason += f"; {left} had changed since the plan and were skipped"
                return _ended(plan, n + rescued.n_ghosts, reason)
            case "retire-consumer":
                return self._retire(plan)
            case "pause":
                self._broker.pause(plan.queue)
                return _ended(
                    plan, 0, f"{plan.queue} is paused; resume it with sploot-cluster queue resume {plan.queue}"
                )
            case "resume":
                self._broker.resume(plan.queue)
                return _ended(plan, 0, f"{plan.queue} is resumed")
            case "requeue":
                return self._requeue(plan)
            case "purge":
                n = self._broker.dead_letters(plan.queue).purge([entry.id for entry in plan.entries])
                return _ended(plan, n, f"{n} of {len(plan.entries)} deleted" + _gone(plan, n))
            case "cancel":
                return self._cancel(plan)
            case "set-shards":
                self._broker.set_shards(plan.queue, plan.n_shards)
                return _ended(plan, 0, f"new jobs of {plan.queue} are added to {_n(plan.n_shards, 'shard')}")
            case _:
                assert_never(plan.action)

    def _cancel(self, plan: Plan) -> Done:
        done = self._broker.cancel_where(
            plan.queue,
            message_ids=[entry.id for entry in plan.entries],
            entry_ids=[entry.entry_id for entry in plan.entries if entry.entry_id],
            # also cancel the jobs that were coalesced onto these, so that they do not run in their place
            where=lambda message: True,
        )
        n, n_requested = len(done.cancelled) + len(done.requested), len(done.requested)
        reason = f"{n} of {len(plan.entries)} cancelled"
        if n_requested:
            reason += f", {n_requested} of these by the workers that hold them"
        return _ended(plan, n, reason + _gone(plan, n))

    def _requeue(self, plan: Plan) -> Done:
        stay = ""
        try:
            put_back = self._broker.dead_letters(plan.queue).put_back([entry.id for entry in plan.entries])
        except DeadLetterTooLarge as refused:
            put_back = refused.entry_ids
            stay = f"; {len(refused.dead_letter_ids)} stay dead letters: {refused}"
        n, n_held, n_gone = sum(map(is_requeued, put_back)), put_back.count(KEY_HELD), put_back.count(None)
        if n_held:
            stay += f"; {n_held} stay dead letters, because {HELD}"
        gone = f"; {n_gone} were gone already" if n_gone else ""
        return _ended(plan, n, f"{n} of {len(plan.entries)} put back to work{stay}{gone}", is_complete=not stay)

    def _retire(self, plan: Plan) -> Done:
        assert plan.consumer is not None
        inspector = self._broker.inspector(plan.queue)
        if not plan.is_forced and plan.consumer in self._alive(plan.queue):
            return _ended(plan, 0, f"{plan.consumer} is alive; nothing was done", is_complete=False)
        rescued = inspector.rescue(_as_seen(plan))
        retired = inspector.retire(plan.consumer, even_if_alive=plan.is_forced)
        n = rescued.n_handed_back + rescued.n_ghosts
        reason = f"{rescued.n_handed_back} of {len(plan.entries)} entries handed back to work"
        match retired.outcome:
            case "retired":
                return _ended(plan, n, f"{reason}, {plan.consumer} removed")
            case "holds":
                why = f"the consumer holds {retired.n} entries that were not in the plan, so it stays; plan again"
            case "alive":
                why = "the consumer is alive, so it stays"
            case _:
                assert_never(retired.outcome)
        return _ended(plan, n, f"{reason}; {why}", is_complete=False)

    # -- shared --------------------------------------------------------------------------------------------------

    def _status(self, queue: str) -> QueueStatus:
        parts = self._broker.stats_of_shards(queue)
        stats = total_of(parts)
        overdue = [job for part in parts for job in overdue_jobs(self._broker, part)]
        return QueueStatus(
            queue=queue,
            stream=stream_of(queue),
            group=self._broker.settings.group,
            reason=_why(stats, overdue),
            is_paused=stats.paused,
            undelivered=stats.undelivered,
            in_flight=stats.in_flight,
            delayed=stats.delayed,
            orphaned=stats.orphaned,
            dead=stats.dead,
            overdue=len(overdue),
            stale_locks=sum(len(self._broker.inspector(part.queue_name).stale_locks()) for part in parts),
            oldest_age_s=_seconds(stats.oldest_age_ms),
            oldest_pending_s=_seconds(stats.oldest_pending_idle_ms),
            last_entry_id=stats.last_id,
            consumers=[
                ConsumerStatus(one.name, one.pending, _seconds(one.heartbeat_age_ms), one.is_alive)
                for one in stats.consumers
            ],
        )

    def _alive(self, queue: str) -> set[str]:
        return {one.name for one in self._broker.stats(queue).consumers if one.is_alive}

    def _look_up(self, inspector: Inspector, entry_ids: Sequence[str]) -> list[PendingEntry]:
        """Return the entries with these ids, and their holders.

        Raises:
            InvalidInput: one of them is neither pending nor an orphan.
        """
        last = _order(inspector.last_delivered_id())
        seen = []
        for entry_id in dict.fromkeys(entry_ids):
            entry = inspector.find_pending(entry_id)
            if entry is None:
                if inspector.entry(entry_id) is None:
                    raise InvalidInput(
                        "entry_ids",
                        f"{entry_id} is not in {inspector.keys.stream}",
                        "it has ended, or is a dead letter",
                    )
                if _order(entry_id) > last:
                    raise InvalidInput(
                        "entry_ids",
                        f"{entry_id} was never delivered",
                        "it needs no rescue; the next free worker runs it",
                    )
                entry = PendingEntry(entry_id, "", 0)
            seen.append(entry)
        return seen

    def _unfinished(self, queue: str, job_ids: Sequence[str], actor: str | None, pet_id: int | None) -> dict[str, str]:
        """Return the selected jobs: their ids, each with its entry id, or an empty string if it is delayed.

        Raises:
            InvalidInput: one of ``job_ids`` is not an unfinished job of the queue.
        """
        if pet_id is not None:
            jobs, _ = find_jobs(self._broker, self._client, pet_id, limit=MOST_ENTRIES, shards=[queue])
            of_queue = [job for job in jobs if actor in (None, job.actor)]
            return {job.message_id: job.entry_id or "" for job in of_queue if job.message_id is not None}
        wanted = Selection(actor=actor, message_ids=frozenset(job_ids) or None)
        found = {
            one.message.message_id: one.place.decode() if one.state == "in-stream" else ""
            for one in islice(self._broker.inspector(queue).find(wanted), MOST_ENTRIES)
        }
        for job_id in job_ids:
            if job_id not in found:
                hint = f"it has ended, is a dead letter, or is in another queue; see sploot-cluster job {job_id}"
                raise InvalidInput("job_ids", f"{job_id} is not an unfinished job of {queue}", hint)
        return found

    def _chosen(self, queue: str, dead_letter_ids: Sequence[str], matching: DeadLetterFilter | None) -> Sequence[str]:
        """Return the ids of the selected dead letters, oldest first."""
        if bool(dead_letter_ids) == (matching is not None):
            raise InvalidInput(
                "dead_letter_ids", "expected exactly one selection of dead letters", "give their ids or a filter"
            )
        if matching is not None:
            with reaching_redis():
                dead_letters = self._broker.dead_letters(queue)
                found = [one.id for one in select(dead_letters, matching, now=self._now(), limit=MOST_ENTRIES)]
            return found[::-1]
        found = []
        with reaching_redis():
            dead_letters = self._broker.dead_letters(queue)
            for dead_letter_id in dict.fromkeys(dead_letter_ids):
                dead_letter = dead_letters.get(dead_letter_id)
                if dead_letter is None:
                    raise InvalidInput(
                        "dead_letter_ids",
                        f"{dead_letter_id} is not a dead letter of {queue}",
                        "see sploot-cluster queue dead list",
                    )
                found.append(dead_letter.id)
        return sorted(found, key=_order)

    def _plan(
        self,
        action: Action,
        queue: str,
        effect: str,
        commands: Sequence[str],
        *,
        entries: Sequence[PlannedEntry] = (),
        warnings: Sequence[str] = (),
        consumer: str | None = None,
        is_forced: bool = False,
    ) -> Plan:
        return Plan(
            plan_id=new_plan_id(),
            action=action,
            queue=queue,
            effect=effect,
            commands=tuple(commands),
            made_at=datetime.now(UTC),
            entries=tuple(entries),
            warnings=tuple(warnings),
            consumer=consumer,
            is_forced=is_forced,
        )

    def _now(self) -> datetime:
        seconds, microseconds = self._client.time()
        return datetime.fromtimestamp(seconds + microseconds / 1_000_000, tz=UTC)


def queue_named(text: str) -> str:
    """Return the queue or shard with this name or stream, or the queue whose name contains this text.

    Raises:
        InvalidInput: no queue matches, or several do.
    """
    wanted = text.removeprefix(f"{NAMESPACE}:")
    if queue_of(wanted) in QUEUES:
        return wanted
    found = [queue for queue in QUEUES if wanted and wanted in queue]
    if len(found) == 1:
        return found[0]
    raise InvalidInput("queue", f"{text!r} matches {len(found)} queues", f"choose from {', '.join(found or QUEUES)}")


def check_canary(plan: Plan) -> None:
    """Check that a canary can apply the plan.

    Raises:
        InvalidInput: the plan is not a plan to requeue, or it touches several shards.
    """
    if plan.action != "requeue":
        problem = f"{plan.plan_id} is a plan to {plan.action}, not to requeue"
        raise InvalidInput("canary", problem, "apply it without a canary")
    if len(shards := [part.queue for part in parts_of(plan)]) > 1:
        problem = f"the dead letters are in {len(shards)} shards, and a canary requeues those of one"
        raise InvalidInput("canary", problem, f"plan it for one shard, such as {shards[0]}")


def _commands_to_cancel(keys: QueueKeys, entries: Sequence[PlannedEntry], alive: Collection[str]) -> list[str]:
    """Return the main Redis commands of a cancellation; its scripts also free unique keys."""
    waiting = [entry.entry_id for entry in entries if entry.entry_id and entry.holder not in alive]
    delayed = [entry.id for entry in entries if not entry.entry_id]
    received = [entry.entry_id for entry in entries if entry.entry_id and entry.holder in alive]
    commands = []
    if waiting:
        commands.append(f"XDEL {keys.stream} {_some(waiting)}")
    if delayed:
        commands.append(f"ZREM {keys.delayed} …  # the delayed jobs {_some(delayed)}")
    if received:
        commands.append(
            f"HSET {keys.cancelled} {received[0]} …  # for each of {_some(received)}; their workers end them"
        )
        commands.append(f"XADD {keys.timer} MAXLEN 1 * cancelled {received[0]}")
    return commands


def _why(stats: QueueStats, overdue: Sequence[OverdueJob]) -> str:
    """Return why jobs wait, in one sentence; the most important reason wins."""
    if overdue:
        return f"{effect_of(overdue)}; {command_that_frees(stats.queue_name, overdue[:SHOWN_IDS])}"
    n_alive = sum(one.is_alive for one in stats.consumers)
    if stats.paused:
        return f"the queue is paused; sploot-cluster queue resume {stats.queue_name}"
    if not n_alive:
        return "no worker takes its jobs; start one: sploot-cluster worker"
    if stats.orphaned:
        return f"{stats.orphaned} were acknowledged or deleted by hand; workers requeue them within seconds"
    if stats.undelivered:
        return f"{stats.undelivered} wait for {_n(n_alive, 'worker process', 'worker processes')}"
    if stats.in_flight:
        return f"{stats.in_flight} are in progress"
    return "nothing waits"


def _planned(seen: Sequence[PendingEntry]) -> list[PlannedEntry]:
    return [PlannedEntry(entry.id, entry.holder, entry.deliveries) for entry in seen]


def _as_seen(plan: Plan) -> list[PendingEntry]:
    return [PendingEntry(entry.id, entry.holder, entry.deliveries) for entry in plan.entries]


def _ended(plan: Plan, n_done: int, reason: str, *, is_complete: bool = True) -> Done:
    return Done(plan.plan_id, plan.action, plan.queue, len(plan.entries), n_done, is_complete, reason)


def _gone(plan: Plan, n: int) -> str:
    left = len(plan.entries) - n
    return f"; {left} were gone already" if left else ""


def _some(ids: Sequence[str]) -> str:
    more = len(ids) - SHOWN_IDS
    return " ".join(ids[:SHOWN_IDS]) + (f" … and {more} more" if more > 0 else "")


def _n(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, number = entry_id.partition("-")
    try:
        return int(ms), int(number or 0)
    except ValueError:
        raise InvalidInput("id", f"{entry_id!r} is not a stream entry id", "expected e.g. 1764000000000-0") from None
