"""Periodic samples: how many, when, and when they stop."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import dramatiq
import pendulum
import periodiq
import pytest
import redis
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import CurrentMessage, Retries, TimeLimit, TimeLimitExceeded
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker import RedisStreamsBroker
from tasks.contracts import (
    CLUSTER_MAINTENANCE,
    EXPORT_MEDIA_TOTALS,
    EXPORT_PENDING_JOBS,
    EXPORT_STREAM_LAG,
    GROUP,
    stream_of,
)
from tasks.observe.backlog import BACKLOG, BacklogSampler
from tasks.observe.periodic import declare_periodic_actors, rest_of_minute
from tasks.observe.periodic_runs import periodic_jobs
from tests.support import eventually

MAINTENANCE = stream_of(CLUSTER_MAINTENANCE)
DELAYED = f"{{{MAINTENANCE}}}:delayed"
ACTORS = (EXPORT_PENDING_JOBS, EXPORT_STREAM_LAG)

# periodiq drops messages that are late by the real clock; this minute is an hour ahead, so they are never late
MINUTE = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(hours=1)


def at(second: float) -> datetime:
    return MINUTE + timedelta(seconds=second)


class Pods:
    """A broker with the actors and their worker, on a clock that the test controls."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.now = at(0.2)
        self.broker = RedisStreamsBroker(
            client=client,
            group=GROUP,
            middleware=[CurrentMessage(), Retries(), TimeLimit(), periodiq.PeriodiqMiddleware()],
        )
        self.worker = dramatiq.Worker(self.broker, worker_threads=1, worker_timeout=50)

    def declare(self, sampler: BacklogSampler | None = None) -> None:
        sampler = sampler or BacklogSampler(self.broker, self.client)
        declare_periodic_actors(self.broker, sampler, self.client, clock=lambda: self.now)

    def schedule(self, when: datetime) -> None:
        """Send the periodic jobs, as periodiq does at this time."""
        actors = list(self.broker.actors.values())
        periodiq.Scheduler(actors=actors).send_actors(actors, now=when)

    @contextmanager
    def working(self) -> Iterator[None]:
        self.worker.start()
        try:
            yield
        finally:
            self.worker.stop()
            self.broker.close()

    def n_acked(self) -> int:
        return self.broker.counters(CLUSTER_MAINTENANCE)["acked"]

    def delayed(self) -> Counter[tuple[str, datetime]]:
        """Return the number of delayed samples for each actor and time."""
        stored = cast(dict[bytes, bytes], self.client.hgetall(f"{DELAYED}:messages"))
        messages = [json.loads(message) for message in stored.values()]
        return Counter(
            (message["actor_name"], datetime.fromisoformat(message["options"]["scheduled_at"])) for message in messages
        )


@pytest.fixture
def pods(redis_client: redis.Redis) -> Pods:
    return Pods(redis_client)


class CountingSampler(BacklogSampler):
    """A sampler that counts its samples."""

    taken: Counter[str]

    def __init__(self, broker: RedisStreamsBroker, client: redis.Redis) -> None:
        super().__init__(broker, client)
        self.taken = Counter()

    def sample_pending(self) -> None:
        super().sample_pending()
        self.taken["pending"] += 1

    def sample_lag(self) -> None:
        super().sample_lag()
        self.taken["lag"] += 1


def server_time_s(client: redis.Redis) -> float:
    seconds, microseconds = client.time()
    return seconds + microseconds // 1000 / 1000


def sampled(client: redis.Redis, half: str) -> bool:
    return client.hexists(BACKLOG, half)


def of_both(*seconds: float) -> Counter[tuple[str, datetime]]:
    return Counter((actor, at(second)) for actor in ACTORS for second in seconds)


def test_rest_of_the_minute_has_a_sample_every_ten_seconds() -> None:
    assert rest_of_minute(at(0), at(0.3)) == [at(10), at(20), at(30), at(40), at(50)]
    assert rest_of_minute(at(37), at(37.1)) == [at(40), at(50)]  # the scheduler started within the minute
    assert rest_of_minute(at(0), at(24)) == [at(30), at(40), at(50)]  # the run waited for a worker
    assert rest_of_minute(at(10), at(7)) == [at(20), at(30), at(40), at(50)]  # the worker's clock is slow
    assert rest_of_minute(at(50), at(50.1)) == []
    assert rest_of_minute(at(0), at(75)) == []


def test_periodiq_enqueues_both_periodic_jobs_every_minute(pods: Pods) -> None:
    pods.declare()

    specs = {actor.actor_name: actor.options["periodic"] for actor in pods.broker.actors.values()}

    assert specs == dict.fromkeys(ACTORS, periodiq.cron("* * * * *"))
    assert {actor.queue_name for actor in pods.broker.actors.values()} == {CLUSTER_MAINTENANCE}


def test_run_takes_a_sample_and_enqueues_the_rest_of_its_minute(pods: Pods, redis_client: redis.Redis) -> None:
    pods.declare()
    pods.schedule(at(0))

    with pods.working():
        eventually(lambda: pods.n_acked() == 2)

    assert sampled(redis_client, "pending_at_ms")
    assert sampled(redis_client, "lag_at_ms")
    assert pods.delayed() == of_both(10, 20, 30, 40, 50)


def test_remaining_samples_of_the_minute_are_due_at_the_time_of_their_slot(
    pods: Pods, redis_client: redis.Redis
) -> None:
    pods.declare()
    pods.now = at(12)
    pods.schedule(at(0))

    before_s = server_time_s(redis_client)
    with pods.working():
        eventually(lambda: pods.n_acked() == 2)
    after_s = server_time_s(redis_client)

    stored = cast(list[tuple[bytes, float]], redis_client.zrange(DELAYED, 0, -1, withscores=True))
    due_s = [due_ms / 1000 for _, due_ms in stored]
    for due, delay in zip(due_s, [8, 8, 18, 18, 28, 28, 38, 38], strict=True):
        assert before_s + delay <= due <= after_s + delay


def test_two_schedulers_send_one_job_per_slot(pods: Pods) -> None:
    pods.declare()

    pods.schedule(at(0))
    pods.schedule(at(1))

    assert pods.broker.stats(CLUSTER_MAINTENANCE).waiting == 2  # one message for each actor
    with pods.working():
        eventually(lambda: pods.n_acked() == 2)
    assert pods.delayed() == of_both(10, 20, 30, 40, 50)


def test_late_scheduler_does_not_repeat_a_job(pods: Pods, redis_client: redis.Redis) -> None:
    sampler = CountingSampler(pods.broker, redis_client)
    pods.declare(sampler)

    with pods.working():
        pods.schedule(at(0))
        eventually(lambda: pods.n_acked() == 2)
        pods.schedule(at(1))
        eventually(lambda: pods.n_acked() == 4)

    assert sampler.taken == {"pending": 1, "lag": 1}
    assert pods.delayed() == of_both(10, 20, 30, 40, 50)


def test_sample_runs_on_redelivery_after_its_worker_died(pods: Pods, redis_client: redis.Redis) -> None:
    sampler = CountingSampler(pods.broker, redis_client)
    pods.declare(sampler)
    pods.schedule(at(0))
    ((_, fields), _) = cast(list[tuple[bytes, dict[bytes, bytes]]], redis_client.xrange(MAINTENANCE))
    message = fields[b"message"]

    with pods.working():
        eventually(lambda: pods.n_acked() == 2)
        redis_client.xadd(MAINTENANCE, {"message": message})
        eventually(lambda: pods.n_acked() == 3)

    assert sampler.taken == {"pending": 2, "lag": 1}


def test_message_of_the_next_slot_takes_its_own_sample(pods: Pods, redis_client: redis.Redis) -> None:
    sampler = CountingSampler(pods.broker, redis_client)
    pods.declare(sampler)
    pods.now = at(59.9)  # no follow-ups are left in the first minute, so only messages of this test have slots

    with pods.working():
        for n, second in enumerate((0, 12, 60), start=1):
            pods.schedule(at(second))
            eventually(lambda n=n: pods.n_acked() == 2 * n)  # type: ignore[misc]  # mypy cannot see the default

    assert sampler.taken == {"pending": 3, "lag": 3}


def test_last_tick_of_the_scheduler_is_exposed(pods: Pods, redis_client: redis.Redis) -> None:
    pods.declare()

    pods.schedule(at(0))
    first = redis_client.hget(BACKLOG, "ticked_at_ms")
    pods.broker.get_actor(EXPORT_PENDING_JOBS).send()
    inspector = redis_client.hget(BACKLOG, "ticked_at_ms")
    pods.schedule(at(60))
    second = redis_client.hget(BACKLOG, "ticked_at_ms")

    assert first == inspector == str(int(at(0).timestamp() * 1_000)).encode()
    assert second == str(int(at(60).timestamp() * 1_000)).encode()


def test_last_and_next_runs_are_listed(pods: Pods, redis_client: redis.Redis) -> None:
    pods.declare()
    pods.schedule(at(0))
    with pods.working():
        eventually(lambda: pods.n_acked() == 2)

    jobs = {job.actor: job for job in periodic_jobs(redis_client, now=at(12))}
    later = {job.actor: job.next_at for job in periodic_jobs(redis_client, now=at(180))}

    pending = jobs[EXPORT_PENDING_JOBS]
    assert (pending.last_sent_at, pending.next_at, pending.every_s) == (at(0), at(20), 10)
    assert (pending.outcome, pending.error) == ("succeeded", None)
    assert pending.last_run_at is not None
    assert (jobs[EXPORT_MEDIA_TOTALS].outcome, jobs[EXPORT_MEDIA_TOTALS].next_at) == (None, None)
    # a scheduler that is silent for minutes is not expected to send anything
    assert later[EXPORT_PENDING_JOBS] is None


def test_failed_run_is_listed_with_its_error(pods: Pods, redis_client: redis.Redis) -> None:
    class FailingSampler(BacklogSampler):
        def sample_pending(self) -> None:
            raise redis.ResponseError("no")

    pods.declare(FailingSampler(pods.broker, redis_client))
    pods.schedule(at(0))
    with pods.working():
        eventually(lambda: pods.n_acked() == 2)

    jobs = {job.actor: job for job in periodic_jobs(redis_client, now=at(1))}

    assert (jobs[EXPORT_PENDING_JOBS].outcome, jobs[EXPORT_PENDING_JOBS].error) == ("failed", "ResponseError: no")
    assert jobs[EXPORT_STREAM_LAG].outcome == "succeeded"


def test_scheduler_survives_and_logs_a_redis_outage(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.observe.periodic.BEAT", tmp_path / "beat")
    unreachable = redis.Redis(port=1, retry=Retry(NoBackoff(), 0))
    middleware = [CurrentMessage(), Retries(), TimeLimit(), periodiq.PeriodiqMiddleware()]
    broker = RedisStreamsBroker(client=unreachable, group=GROUP, middleware=middleware, enqueue_timeout_ms=50)
    declare_periodic_actors(broker, BacklogSampler(broker, unreachable), unreachable)
    actors = list(broker.actors.values())

    with caplog.at_level(logging.WARNING):
        periodiq.Scheduler(actors=actors).send_actors(actors, now=at(0))

    assert [record.message.partition(";")[0] for record in caplog.records].count("scheduler could not send") == 2
    assert (tmp_path / "beat").exists(), "Kubernetes would restart it, which fixes nothing"


def test_unwritable_beat_file_does_not_stop_the_scheduler(
    pods: Pods, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.observe.periodic.BEAT", Path("/nowhere/beat"))
    pods.declare()

    pods.schedule(at(0))

    assert redis_client.xlen(stream_of(CLUSTER_MAINTENANCE)) == 2


def test_beat_file_is_touched_by_a_scheduler_tick_but_not_by_a_manual_job(
    pods: Pods, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.observe.periodic.BEAT", tmp_path / "beat")
    pods.declare()

    pods.broker.get_actor(EXPORT_PENDING_JOBS).send()
    inspector = (tmp_path / "beat").exists()
    pods.schedule(at(0))

    assert (inspector, (tmp_path / "beat").exists()) == (False, True)


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "America/St_Johns"])
def test_schedule_fires_every_minute_in_every_time_zone(pods: Pods, zone: str) -> None:
    # a schedule by day of the week would never fire on Sundays: periodiq counts them both as 7 and as 0
    pods.declare()
    sunday = pendulum.datetime(2026, 11, 22, tz=zone)

    specs = [actor.options["periodic"] for actor in pods.broker.actors.values()]

    assert sunday.isoweekday() == 7
    for hours in range(0, 8 * 24, 5):
        now = sunday.add(hours=hours, minutes=hours % 60)
        assert all(spec.validate(now) for spec in specs)
        assert {spec.next_valid_date(now) for spec in specs} == {now.add(minutes=1)}


def test_redelivered_run_enqueues_no_further_samples(pods: Pods) -> None:
    pods.declare()

    with pods.working():
        pods.schedule(at(0))
        eventually(lambda: pods.n_acked() == 2)
        pods.now = at(25)
        pods.schedule(at(0))
        eventually(lambda: pods.n_acked() == 4)

    assert pods.delayed() == of_both(10, 20, 30, 40, 50)


def test_each_delayed_message_takes_a_new_sample(pods: Pods, redis_client: redis.Redis) -> None:
    sampler = CountingSampler(pods.broker, redis_client)
    pods.declare(sampler)
    pods.now = at(9.5)
    pods.schedule(at(0))

    with pods.working():
        eventually(lambda: pods.n_acked() == 4)

    assert sampler.taken == {"pending": 2, "lag": 2}
    assert pods.delayed() == of_both(20, 30, 40, 50)


def test_lost_delayed_sample_is_enqueued_again_by_the_sample_before_it(pods: Pods, redis_client: redis.Redis) -> None:
    pods.declare()
    pods.now = at(9.5)
    pods.schedule(at(0))

    with pods.working():
        eventually(lambda: pods.delayed() == of_both(20, 30, 40, 50) and pods.n_acked() == 4)
        # an operator cleans up by hand
        redis_client.delete(DELAYED, f"{DELAYED}:messages", *redis_client.scan_iter("*:unique:*"))
        pods.now = at(20)
        pods.schedule(at(20))
        eventually(lambda: pods.n_acked() == 6)

    assert pods.delayed() == of_both(30, 40, 50)


def test_samples_stop_within_a_minute_after_the_scheduler_stops(pods: Pods) -> None:
    pods.declare()
    pods.now = at(49.5)
    pods.schedule(at(0))

    with pods.working():
        pods.broker.join(CLUSTER_MAINTENANCE, timeout=10_000)

    assert pods.n_acked() == 4
    assert pods.delayed() == Counter()


def test_late_samples_are_dropped_without_dead_letters(pods: Pods, redis_client: redis.Redis) -> None:
    pods.declare()
    for minutes in range(60, 0, -1):
        pods.schedule(datetime.now(UTC) - timedelta(minutes=minutes))

    with pods.working():
        pods.broker.join(CLUSTER_MAINTENANCE, timeout=30_000)

    assert pods.n_acked() == 120
    assert not sampled(redis_client, "pending_at_ms")
    assert pods.broker.stats(CLUSTER_MAINTENANCE).dead == 0


def test_sample_sent_by_hand_enqueues_no_further_samples(pods: Pods, redis_client: redis.Redis) -> None:
    pods.declare()
    pods.broker.get_actor(EXPORT_PENDING_JOBS).send()

    with pods.working():
        pods.broker.join(CLUSTER_MAINTENANCE, timeout=10_000)

    assert sampled(redis_client, "pending_at_ms")
    assert not sampled(redis_client, "lag_at_ms")


class HangingSampler(BacklogSampler):
    """A sampler that takes so long that Dramatiq interrupts it."""

    def sample_pending(self) -> None:
        raise TimeLimitExceeded()

    def sample_lag(self) -> None:
        raise TimeLimitExceeded()


@pytest.mark.parametrize(
    ("kind", "problem"), [(BacklogSampler, redis.ConnectionError), (HangingSampler, TimeLimitExceeded)]
)
def test_failed_sample_is_not_retried_and_leaves_no_dead_letter(
    pods: Pods, kind: type[BacklogSampler], problem: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    unreachable = redis.Redis(port=1, retry=Retry(NoBackoff(), 0))
    pods.declare(kind(pods.broker, unreachable))
    pods.schedule(at(0))

    with caplog.at_level(logging.WARNING), pods.working():
        eventually(lambda: pods.n_acked() == 2)

    stats = pods.broker.stats(CLUSTER_MAINTENANCE)
    assert (stats.waiting, stats.in_flight, stats.dead) == (0, 0, 0)
    assert pods.delayed() == of_both(10, 20, 30, 40, 50)
    warnings = [record for record in caplog.records if record.message == "could not sample the backlog"]
    assert [record.levelname for record in warnings] == ["WARNING", "WARNING"]
    assert {record.exc_info[0] for record in warnings if record.exc_info} == {problem}


def test_samples_run_before_all_other_jobs(pods: Pods) -> None:
    pods.declare()

    priorities = {actor.priority for actor in pods.broker.actors.values()}

    assert max(priorities) < dramatiq.actor(broker=pods.broker)(print).priority


@pytest.mark.parametrize("lacking", [CurrentMessage, Retries, TimeLimit, periodiq.PeriodiqMiddleware])
def test_broker_without_required_middleware_is_refused(lacking: type[Any], redis_client: redis.Redis) -> None:
    needed = (CurrentMessage, Retries, TimeLimit, periodiq.PeriodiqMiddleware)
    broker = StubBroker(middleware=[middleware() for middleware in needed if middleware is not lacking])
    sampler = BacklogSampler(RedisStreamsBroker(client=redis_client, group=GROUP, middleware=[]), redis_client)

    with pytest.raises(ValueError, match=r"[Mm]iddleware"):
        declare_periodic_actors(broker, sampler, redis_client)

    assert broker.actors == {}
