"""Actions: each shows its plan, applies exactly that, and is audited."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import dramatiq
import pytest
import redis

from broker.keys import HANDED_BACK
from sploot_cluster.errors import InvalidInput, PlanUnknown
from sploot_cluster.jobs import QueueUnavailable
from sploot_cluster.queues import DeadLetterFilter, JobsState, QueueJob
from tasks.client import ClusterTasks
from tasks.contracts import CLUSTER_RECLUSTER, EMBEDDING_INGESTED, GROUP
from tasks.queue_ops.audit import AuditLog
from tasks.queue_ops.operations import queue_named
from tests.support import eventually
from tests.system.events import flat_event, free_port
from tests.tasks.queue_ops.desk import KEYS, STUCK, Desk, worker_that_refuses


@pytest.fixture
def desk(redis_client: redis.Redis) -> Desk:
    return Desk(redis_client)


# -- rescue ------------------------------------------------------------------------------------------------------------


def test_rescue_touches_only_the_planned_ids(desk: Desk) -> None:
    first, second = desk.add(1, 2)
    desk.deliver()

    plan = desk.operations.plan_rescue("embedding", consumer=STUCK)
    (late,) = desk.add(3)
    desk.deliver()
    done = desk.operations.act(plan, by="ada", via="test")

    assert [entry.id for entry in plan.entries] == [first, second]
    assert (done.n_planned, done.n_done, done.is_complete) == (2, 2, True)
    assert desk.holders() == {first: HANDED_BACK, second: HANDED_BACK, late: STUCK}


def test_plan_lists_redis_commands(desk: Desk) -> None:
    ids = desk.add(1, 2, 3, 4, 5)
    desk.deliver()

    plan = desk.operations.plan_rescue("embedding", idle_s=0)

    assert plan.commands[0] == (
        f"XCLAIM streams:embedding.ingested cluster-workers ~handed-back 0 {' '.join(ids[:3])} … and 2 more JUSTID"
    )
    assert "5 entries" in plan.effect


def test_planning_changes_nothing(desk: Desk) -> None:
    desk.add(1)
    desk.deliver()
    desk.bury(2)
    before = {key: desk.client.dump(key) for key in desk.client.keys("*")}

    desk.operations.plan_rescue("embedding", consumer=STUCK)
    desk.operations.plan_retire("embedding", STUCK)
    desk.operations.plan_pause("embedding")
    desk.operations.plan_resume("embedding")
    desk.operations.plan_requeue("embedding", matching=DeadLetterFilter())
    desk.operations.plan_purge("embedding", matching=DeadLetterFilter())

    after = {key: desk.client.dump(key) for key in desk.client.keys("*")}
    assert after.keys() == before.keys()
    assert desk.holders() == dict.fromkeys(desk.entry_ids(), STUCK)


def test_rescue_leaves_out_live_workers_unless_forced(desk: Desk, redis_client: redis.Redis) -> None:
    (entry_id,) = desk.add(1)
    desk.deliver("alive")
    now = desk.client.time()[0] * 1000
    desk.client.zadd(KEYS.consumers, {"alive": now})

    careful = desk.operations.plan_rescue("embedding", entry_ids=[entry_id])
    forced = desk.operations.plan_rescue("embedding", entry_ids=[entry_id], even_if_alive=True)

    assert careful.is_empty
    assert "--even-if-alive" in careful.warnings[0]
    assert [entry.id for entry in forced.entries] == [entry_id]
    assert "run twice" in forced.warnings[0]


def test_entries_dropped_by_manual_commands_run_after_a_rescue(desk: Desk, redis_client: redis.Redis) -> None:
    ids = desk.add(1, 2, 3)
    desk.deliver()
    desk.client.xclaim(KEYS.stream, GROUP, "rescue-consumer", 0, [ids[0]])
    desk.client.xack(KEYS.stream, GROUP, ids[0])
    desk.client.xgroup_delconsumer(KEYS.stream, GROUP, STUCK)
    assert desk.holders() == {}

    plan = desk.operations.plan_rescue("embedding", unowned=True)
    done = desk.operations.act(plan, by="ada", via="test")

    assert done.n_done == 3
    with worker_that_refuses(redis_client) as ran:
        eventually(lambda: sorted(ran) == ["media-1", "media-2", "media-3"])


@pytest.mark.parametrize(
    ("ways", "named"),
    [
        ({}, "entry_ids"),
        ({"entry_ids": ["1-1"], "unowned": True}, "entry_ids"),
        ({"entry_ids": ["99-1"]}, "not in streams:embedding.ingested"),
        ({"entry_ids": ["no id"]}, "no id"),
    ],
)
def test_rescue_with_an_invalid_selection_is_refused(desk: Desk, ways: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        desk.operations.plan_rescue("embedding", **ways)  # type: ignore[arg-type]  # invalid on purpose


def test_rescue_of_an_undelivered_entry_is_refused(desk: Desk) -> None:
    desk.add(1)
    desk.deliver()
    (waiting,) = desk.add(2)

    with pytest.raises(InvalidInput, match="never delivered"):
        desk.operations.plan_rescue("embedding", entry_ids=[waiting])


# -- retire ------------------------------------------------------------------------------------------------------------


def test_retire_returns_entries_before_it_deletes_the_consumer(desk: Desk, redis_client: redis.Redis) -> None:
    desk.add(1, 2, 3)
    desk.deliver()

    done = desk.operations.act(desk.operations.plan_retire("embedding", STUCK), by="ada", via="test")

    assert done.is_complete
    assert "3 of 3 entries handed back" in done.reason
    assert [one["name"] for one in desk.client.xinfo_consumers(KEYS.stream, GROUP)] == [HANDED_BACK.encode()]
    with worker_that_refuses(redis_client) as ran:
        eventually(lambda: len(ran) == 3)


def test_retire_keeps_a_consumer_that_took_more_entries_since_the_plan(desk: Desk) -> None:
    desk.add(1)
    desk.deliver()
    plan = desk.operations.plan_retire("embedding", STUCK)
    (late,) = desk.add(2)
    desk.deliver()

    done = desk.operations.act(plan, by="ada", via="test")

    assert not done.is_complete
    assert "holds 1 entries that were not in the plan" in done.reason
    assert desk.holders()[late] == STUCK


def test_live_consumer_is_not_retired(desk: Desk) -> None:
    desk.add(1)
    desk.deliver("alive")
    desk.client.zadd(KEYS.consumers, {"alive": desk.client.time()[0] * 1000 + 1_000})

    done = desk.operations.act(desk.operations.plan_retire("embedding", "alive"), by="ada", via="test")

    assert not done.is_complete
    assert set(desk.holders().values()) == {"alive"}


def test_unknown_consumer_is_refused_with_a_suggestion(desk: Desk) -> None:
    desk.add(1)
    desk.deliver("host-1:17")

    with pytest.raises(InvalidInput, match=r"did you mean host-1:17\?"):
        desk.operations.plan_retire("embedding", "host-1:71")


# -- pause -------------------------------------------------------------------------------------------------------------


def test_pause_is_shown_until_the_queue_is_resumed(desk: Desk) -> None:
    desk.operations.act(desk.operations.plan_pause("recluster"), by="ada", via="test", note="INC-7")
    paused = {queue.queue: queue.is_paused for queue in desk.operations.queues()}
    desk.operations.act(desk.operations.plan_resume("recluster"), by="ada", via="test")

    assert [queue for queue, is_paused in paused.items() if is_paused] == [CLUSTER_RECLUSTER]
    assert not any(queue.is_paused for queue in desk.operations.queues())
    assert [(record.action, record.note) for record in desk.operations.audit().records] == [
        ("resume", ""),
        ("pause", "INC-7"),
    ]


# -- dead letters ------------------------------------------------------------------------------------------------------


def test_dead_letters_are_selected_by_error_and_pet(desk: Desk) -> None:
    (zero,) = desk.bury(1, error="InvalidInput: embedding holds a NaN", reason="undecodable")
    (other,) = desk.bury(2, pet_id=42)

    by_error = desk.operations.plan_requeue("embedding", matching=DeadLetterFilter(error="NaN"))
    by_pet = desk.operations.plan_requeue("embedding", matching=DeadLetterFilter(pet_id=42))
    by_both = desk.operations.plan_requeue("embedding", matching=DeadLetterFilter(error="NaN", pet_id=42))

    assert [entry.id for entry in by_error.entries] == [zero]
    assert [entry.id for entry in by_pet.entries] == [other]
    assert by_both.is_empty


def test_requeue_ignores_dead_letters_added_after_its_plan(desk: Desk) -> None:
    first, second = desk.bury(1, 2)
    plan = desk.operations.plan_requeue("embedding", matching=DeadLetterFilter())
    (late,) = desk.bury(3)
    desk.client.xdel(KEYS.dead, first)  # another operator was faster

    done = desk.operations.act(plan, by="ada", via="test")

    assert [entry.id for entry in plan.entries] == [first, second]
    assert (done.n_done, done.is_complete) == (1, True)
    assert "1 were gone already" in done.reason
    assert desk.dead_letter_ids() == [late]
    assert len(desk.entry_ids()) == 1


def test_requeue_skips_oversize_dead_letters_and_names_the_limit(desk: Desk) -> None:
    large = desk.bury_too_large()
    desk.bury(1, 2)

    done = desk.operations.act(
        desk.operations.plan_requeue("embedding", matching=DeadLetterFilter()), by="ada", via="test"
    )

    assert (done.n_done, done.is_complete) == (2, False)
    assert "max_message_bytes" in done.reason
    assert desk.dead_letter_ids() == [large]
    assert len(desk.entry_ids()) == 2


def test_requeue_skips_dead_letters_whose_unique_key_is_held(desk: Desk) -> None:
    ids = desk.bury_with_unique_key(1, 2, 3)
    plan = desk.operations.plan_requeue("embedding", matching=DeadLetterFilter())

    done = desk.operations.act(plan, by="ada", via="test")

    assert (done.n_done, done.is_complete) == (1, False)
    assert "1 of 3 put back to work; 2 stay dead letters, because a job with the same unique key waits" in done.reason
    assert desk.dead_letter_ids() == ids[1:]


# -- cancel ------------------------------------------------------------------------------------------------------------


def test_cancel_removes_the_planned_jobs(desk: Desk) -> None:
    ids = [desk.broker.enqueue(desk.message(n)).message_id for n in range(3)]
    delayed = desk.broker.enqueue(desk.message(3), delay=3_600_000).message_id
    plan = desk.operations.plan_cancel("embedding", job_ids=[*ids[:2], delayed])

    done = desk.operations.act(plan, by="ada", via="test", note="INC-7")

    assert [entry.id for entry in plan.entries] == [delayed, *ids[:2]]
    assert any(command.startswith("XDEL streams:embedding.ingested ") for command in plan.commands)
    assert any(command.startswith("ZREM {streams:embedding.ingested}:delayed ") for command in plan.commands)
    assert (done.n_done, done.is_complete, done.reason) == (3, True, "3 of 3 cancelled")
    assert len(desk.entry_ids()) == 1
    assert desk.broker.stats(EMBEDDING_INGESTED).delayed == 0
    assert [(one.by, one.action, one.note) for one in desk.operations.audit(1).records] == [("ada", "cancel", "INC-7")]


def test_cancel_finds_flat_events_of_a_pet(desk: Desk) -> None:
    desk.add(1, 2, pet_id=7)
    (other,) = desk.add(3, pet_id=8)
    desk.broker.enqueue(desk.message(4), delay=3_600_000)
    plan = desk.operations.plan_cancel("embedding", pet_id=7)
    late = desk.add(5, pet_id=7)

    done = desk.operations.act(plan, by="ada", via="test")

    assert (len(plan.entries), done.n_done) == (3, 3)
    assert "the items of cancelled uploads are missing" in plan.warnings[0]
    assert desk.entry_ids() == [other, *late]


def test_cancel_by_actor_and_pet_selects_jobs_that_match_both(desk: Desk) -> None:
    desk.add(1, pet_id=7)

    assert desk.operations.plan_cancel("embedding", pet_id=7, actor="somebody").is_empty
    assert desk.operations.plan_cancel("embedding", actor="somebody").is_empty
    assert len(desk.operations.plan_cancel("embedding", pet_id=7, actor="cluster_embedding").entries) == 1
    assert len(desk.operations.plan_cancel("embedding", actor="cluster_embedding").entries) == 1


def test_cancel_skips_jobs_that_ended_after_the_plan(desk: Desk) -> None:
    first, _ = desk.add(1, 2)
    plan = desk.operations.plan_cancel("embedding", pet_id=7)
    desk.client.xdel(KEYS.stream, first)

    done = desk.operations.act(plan, by="ada", via="test")

    assert (done.n_done, done.reason) == (1, "1 of 2 cancelled; 1 were gone already")
    assert desk.entry_ids() == []


def test_cancel_reports_jobs_that_workers_hold(desk: Desk) -> None:
    desk.broker.declare_queue(EMBEDDING_INGESTED)
    consumer = desk.broker.consume(EMBEDDING_INGESTED, prefetch=1)
    desk.add(1, 2)
    eventually(lambda: next(consumer) is not None)
    plan = desk.operations.plan_cancel("embedding", pet_id=7)

    done = desk.operations.act(plan, by="ada", via="test")
    desk.broker.close()

    assert [bool(entry.holder) for entry in plan.entries] == [True, False]
    assert any(warning.startswith("1 of them are with live workers") for warning in plan.warnings)
    assert any(command.startswith("HSET {streams:embedding.ingested}:cancelled ") for command in plan.commands)
    assert (done.n_done, done.reason) == (2, "2 of 2 cancelled, 1 of these by the workers that hold them")
    assert len(desk.entry_ids()) == 1


def test_cancel_also_removes_jobs_coalesced_onto_the_cancelled_one(desk: Desk) -> None:
    first = desk.broker.enqueue(desk.message(1, unique_key="k"))
    desk.broker.enqueue(desk.message(2, unique_key="k"))

    desk.operations.act(desk.operations.plan_cancel("embedding", job_ids=[first.message_id]), by="ada", via="test")

    assert desk.entry_ids() == []
    assert desk.broker.enqueue(desk.message(3, unique_key="k")).message_id != first.message_id


@pytest.mark.parametrize("chosen", [{}, {"job_ids": ["a"], "pet_id": 7}, {"job_ids": ["no-such-job"]}])
def test_invalid_selection_of_jobs_to_cancel_names_the_field(desk: Desk, chosen: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as refused:
        desk.operations.plan_cancel("embedding", **chosen)

    assert refused.value.field == "job_ids"


def test_purge_deletes_the_planned_dead_letters(desk: Desk) -> None:
    first, second = desk.bury(1, 2)

    done = desk.operations.act(
        desk.operations.plan_purge("embedding", dead_letter_ids=[first]), by="ada", via="test", note="poison of INC-7"
    )

    assert done.n_done == 1
    assert desk.dead_letter_ids() == [second]
    assert desk.entry_ids() == []


def test_unknown_dead_letter_is_refused_before_any_change(desk: Desk) -> None:
    (dead_letter,) = desk.bury(1)

    with pytest.raises(InvalidInput, match="7-7 is not a dead letter"):
        desk.operations.plan_purge("embedding", dead_letter_ids=[dead_letter, "7-7"])


# -- plans and audit ---------------------------------------------------------------------------------------------------


def test_saved_plan_can_be_taken_unchanged_and_only_once(desk: Desk) -> None:
    desk.add(1, 2)
    desk.deliver()
    plan = desk.operations.plan_rescue("embedding", consumer=STUCK)

    desk.operations.keep(plan)
    taken = desk.operations.take(plan.plan_id)

    assert taken == plan
    with pytest.raises(PlanUnknown, match="make a new plan"):
        desk.operations.take(plan.plan_id)


def test_action_is_audited(desk: Desk) -> None:
    ids = desk.add(1, 2)
    desk.deliver()
    plan = desk.operations.plan_rescue("embedding", consumer=STUCK)

    desk.operations.act(plan, by="ada", via="test", note="INC-7")

    (record,) = desk.operations.audit().records
    assert (record.plan_id, record.by, record.via, record.action) == (plan.plan_id, "ada", "test", "rescue")
    assert (record.queue, record.state, record.n_planned, record.n_done) == (EMBEDDING_INGESTED, "done", 2, 2)
    assert (record.note, record.ids) == ("INC-7", ids)


def all_jobs(desk: Desk, state: JobsState, limit: int = 2) -> list[QueueJob]:
    """Return all jobs of the embedding queue, read page by page."""
    page = desk.operations.jobs("embedding", state, limit=limit)
    found = list(page.records)
    while page.cursor is not None:
        page = desk.operations.jobs("embedding", state, limit=limit, cursor=page.cursor)
        found += page.records
    return found


def test_waiting_and_running_jobs_are_listed_page_by_page(desk: Desk) -> None:
    ids = desk.add(1, 2, 3, pet_id=42)
    desk.deliver()
    waiting = desk.add(4, 5, 6, pet_id=43)

    running = all_jobs(desk, "running")

    assert [(job.entry_id, job.pet_id) for job in all_jobs(desk, "waiting")] == [(one, 43) for one in waiting]
    assert [(job.entry_id, job.pet_id, job.state) for job in running] == [(one, 42, "running") for one in ids]
    assert {(job.worker, job.is_worker_alive, job.actor) for job in running} == {(STUCK, False, "cluster_embedding")}
    assert all(job.started_at is not None and job.media_id is not None for job in running)


def test_delayed_and_retrying_jobs_are_listed_by_due_time(desk: Desk, redis_client: redis.Redis) -> None:
    with ClusterTasks(client=redis_client) as tasks:
        for pet_id in (42, 43, 44):
            tasks.request_recluster(pet_id, reason="growth", delay_ms=100_000 * pet_id)
    retry = {"retries": 2, "traceback": "Traceback:\nValueError: no luck"}
    message: dramatiq.Message[None] = dramatiq.Message(CLUSTER_RECLUSTER, "recluster_pet", (), {"pet_id": 41}, retry)
    desk.broker.enqueue(message, delay=1_000_000)

    pages = [desk.operations.jobs("recluster", "delayed", limit=3)]
    pages.append(desk.operations.jobs("recluster", "delayed", limit=3, cursor=pages[0].cursor))

    jobs = [job for page in pages for job in page.records]
    assert [(job.pet_id, job.state) for job in jobs] == [
        (41, "retrying"), (42, "delayed"), (43, "delayed"), (44, "delayed")
    ]  # fmt: skip
    assert (jobs[0].attempts, jobs[0].error) == (2, "ValueError: no luck")
    assert [job.due_at for job in jobs] == sorted(job.due_at for job in jobs if job.due_at is not None)
    assert pages[1].cursor is None


def test_search_finds_jobs_and_dead_letters(desk: Desk, redis_client: redis.Redis) -> None:
    desk.add(1, 2, pet_id=42)
    (dead_letter,) = desk.bury(3, pet_id=43, error="TimeoutError: Slow Redis")
    with ClusterTasks(client=redis_client) as tasks:
        job = tasks.merge(44, [1, 2])
    item = str(flat_event(pet_id=43, number=3)["media_id"])

    def found(text: str) -> tuple[list[int | None], list[str]]:
        result = desk.operations.search(text, limit=10)
        assert result.is_complete
        return [one.pet_id for one in result.jobs], [one.dead_letter_id for one in result.dead_letters]

    assert found("42") == ([42, 42], [])
    assert found("43") == ([], [dead_letter])
    assert found("slow redis") == ([], [dead_letter])
    assert found(item) == ([], [dead_letter])
    assert found(job.job_id) == ([44], [])
    assert found("merge_clusters") == ([44], [])
    assert found("nothing of this kind") == ([], [])


@pytest.mark.parametrize("text", ["42", "recluster_pet"], ids=["pet", "actor"])
def test_search_shows_when_delayed_jobs_are_due(desk: Desk, redis_client: redis.Redis, text: str) -> None:
    with ClusterTasks(client=redis_client) as tasks:
        tasks.request_recluster(42, reason="growth", delay_ms=100_000)
    retry = {"retries": 2, "traceback": "Traceback:\nValueError: no luck"}
    message: dramatiq.Message[None] = dramatiq.Message(CLUSTER_RECLUSTER, "recluster_pet", (), {"pet_id": 42}, retry)
    desk.broker.enqueue(message, delay=1_000_000)

    found = desk.operations.search(text, limit=10)

    listed = desk.operations.jobs("recluster", "delayed", limit=3).records
    assert sorted(found.jobs, key=lambda job: job.state) == list(listed)
    assert [(job.state, job.error) for job in listed] == [("delayed", None), ("retrying", "ValueError: no luck")]
    assert all(job.due_at is not None for job in listed)


@pytest.mark.parametrize("text", ["42", "cluster_embedding"], ids=["pet", "actor"])
def test_search_reports_that_it_found_more_than_its_limit(desk: Desk, text: str) -> None:
    desk.add(1, 2, 3, pet_id=42)

    found = {limit: desk.operations.search(text, limit=limit) for limit in (2, 3)}

    assert {limit: (len(one.jobs), one.is_complete) for limit, one in found.items()} == {2: (2, False), 3: (3, True)}


def test_dead_letters_are_grouped_by_error(desk: Desk) -> None:
    desk.bury(1, 2, error="ValueError: a")
    desk.bury(3, error="TimeoutError: b")

    groups = desk.operations.dead_letter_groups("embedding", DeadLetterFilter())

    assert [(group.n, group.error, group.queue) for group in groups] == [
        (2, "ValueError", EMBEDDING_INGESTED),
        (1, "TimeoutError", EMBEDDING_INGESTED),
    ]


def test_audit_is_read_page_by_page(desk: Desk) -> None:
    for number in range(5):
        desk.operations.act(desk.operations.plan_pause("feedback"), by=f"operator-{number}", via="test")

    seen: list[tuple[str, str]] = []
    page = desk.operations.audit(2)
    while page.cursor is not None:
        seen += [(record.by, record.state) for record in page.records]
        page = desk.operations.audit(2, cursor=page.cursor)
    seen += [(record.by, record.state) for record in page.records]

    assert seen == [(f"operator-{number}", "done") for number in reversed(range(5))]


@pytest.mark.parametrize(("wanted", "numbers"), [({}, [4, 3, 2, 1, 0]), ({"error": "even"}, [4, 2, 0])])
def test_dead_letters_are_read_page_by_page(desk: Desk, wanted: dict[str, Any], numbers: list[int]) -> None:
    ids = [*chain(*(desk.bury(n, error=f"ValueError: {'odd' if n % 2 else 'even'}") for n in range(5)))]

    seen: list[str] = []
    page = desk.operations.dead_letters("embedding", DeadLetterFilter(**wanted), limit=2)
    while page.cursor is not None:
        seen += [view.dead_letter_id for view in page.records]
        page = desk.operations.dead_letters("embedding", DeadLetterFilter(**wanted), limit=2, cursor=page.cursor)
    seen += [view.dead_letter_id for view in page.records]

    assert seen == [ids[number] for number in numbers]


def test_action_of_a_killed_process_stays_begun_in_the_audit(desk: Desk) -> None:
    desk.add(1)
    desk.deliver()
    plan = desk.operations.plan_rescue("embedding", consumer=STUCK)
    begun = AuditLog(desk.client).writing(plan, by="ada", via="test", note="")

    begun.__enter__()  # the block is never left, as when the process is killed

    assert [(record.plan_id, record.state) for record in desk.operations.audit().records] == [(plan.plan_id, "begun")]


@pytest.fixture
def full_redis(desk: Desk) -> Iterator[Callable[[], None]]:
    """A function that makes Redis refuse writes."""
    yield lambda: desk.client.config_set("maxmemory", "1")
    desk.client.config_set("maxmemory", "0")


def test_action_that_cannot_be_audited_is_not_applied(desk: Desk, full_redis: Callable[[], None]) -> None:
    (dead_letter,) = desk.bury(1)
    plan = desk.operations.plan_requeue("embedding", dead_letter_ids=[dead_letter])
    full_redis()

    with pytest.raises(QueueUnavailable, match="full"):
        desk.operations.act(plan, by="ada", via="test")

    assert desk.operations.audit().records == []
    assert desk.dead_letter_ids() == [dead_letter]


def test_purge_works_when_redis_is_full(desk: Desk, full_redis: Callable[[], None]) -> None:
    desk.bury(1, 2)
    plan = desk.operations.plan_purge("embedding", matching=DeadLetterFilter())
    full_redis()

    done = desk.operations.act(plan, by="ada", via="test")

    assert done.n_done == 2
    assert desk.dead_letter_ids() == []


def test_plan_without_redis_is_refused(redis_client: redis.Redis) -> None:
    away = Desk(redis.Redis.from_url(f"redis://127.0.0.1:{free_port()}"))

    with pytest.raises(QueueUnavailable, match="nothing was changed"):
        away.operations.plan_rescue("embedding", unowned=True)
    with pytest.raises(QueueUnavailable, match="nothing was changed"):
        away.operations.queues()
    with pytest.raises(QueueUnavailable, match="it may have run in part"):
        away.operations.act(away.operations.plan_pause("embedding"), by="tester", via="test")


@pytest.mark.parametrize(
    ("text", "queue"),
    [
        ("embedding.ingested", EMBEDDING_INGESTED),
        ("streams:embedding.ingested", EMBEDDING_INGESTED),
        ("recluster", CLUSTER_RECLUSTER),
    ],
)
def test_queue_is_found_by_name_stream_or_unique_part(text: str, queue: str) -> None:
    assert queue_named(text) == queue


@pytest.mark.parametrize("text", ["cluster", "", "nothing"])
def test_ambiguous_queue_name_is_refused_with_the_choices(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"choose from .*cluster\.feedback"):
        queue_named(text)
