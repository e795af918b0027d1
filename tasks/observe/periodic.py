"""What runs by the clock: the samples of what the queues hold.

periodiq's smallest step is a minute, and a sample should never be older than 15 seconds. So each run also enqueues the
samples that its minute still owes, as delayed messages with a unique key each: another scheduler, a message that is
delivered twice, or a scheduler that starts within the minute add none. They never reach beyond their minute: when the
scheduler stops, the samples stop with it, and ``media_cluster_backlog_sample_timestamp_seconds`` tells.

Every ten seconds are a slot, and a slot is one message's alone: of what several schedulers sent for it, one runs.

    key                        type    holds                               ends
    sploot:slot:<actor>:<slot> string  id of the message that has the slot after SLOT_TTL

A scheduler that cannot reach Redis says so and tries again at the next minute; periodiq by itself would end. A tick
that was missed needs no making up: periodiq ticks when it starts, and a sample tells of now.

A sample that is late is worth nothing. periodiq's middleware drops one that comes 30 seconds after its time, follow-ups
as well, because they carry the option ``scheduled_at`` as its own messages do. Dramatiq's ``max_age`` would make a dead
letter of each, and an outage of an hour would end in hundreds of them.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import dramatiq
import redis
from dramatiq.errors import BrokerError
from dramatiq.middleware import CurrentMessage, TimeLimitExceeded
from periodiq import cron

from tasks.contracts import CLUSTER_MAINTENANCE, EXPORT_PENDING_JOBS, EXPORT_STREAM_LAG
from tasks.observe.backlog import BACKLOG, TICKED_AT, BacklogSampler
from tasks.retry_policy import POLICIES

logger = logging.getLogger("sploot-cluster.queue")

# Five seconds less than a sample may be old, for those that must wait for a worker thread.
STEP: Final = timedelta(seconds=10)
MINUTE: Final = timedelta(minutes=1)
# longer than anything that is sent for a slot can be late: periodiq drops it after 30 seconds
SLOT_TTL: Final = timedelta(minutes=5)

# Touched at each tick, whether or not Redis answered: the chart's livenessProbe looks how old it is.
BEAT: Final = Path(tempfile.gettempdir()) / "sploot-scheduler-beat"

# Before all else that waits in a worker: under load the numbers matter most, and a sample takes milliseconds.
PRIORITY: Final = -10


def declare_periodic_actors(
    broker: dramatiq.Broker,
    sampler: BacklogSampler,
    client: redis.Redis,
    *,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """Declare ``export_pending_jobs`` and ``export_stream_lag``, which periodiq sends every minute.

    Sent by hand they take one sample and nothing follows.

    Args:
        client: where the slots are kept, and when the scheduler ticked.
        clock: an aware time; how far the minute has gone is read from it.

    Raises:
        ValueError: the broker lacks Dramatiq's ``CurrentMessage``, ``Retries`` or ``TimeLimit``, or
            ``PeriodiqMiddleware``.
    """
    if not any(isinstance(middleware, CurrentMessage) for middleware in broker.middleware):
        raise ValueError("the broker has no CurrentMessage middleware; add dramatiq.middleware.CurrentMessage to it")

    for actor_name, sample in (
        (EXPORT_PENDING_JOBS, sampler.sample_pending),
        (EXPORT_STREAM_LAG, sampler.sample_lag),
    ):
        _declare(broker, actor_name, sample, client, clock)


class PeriodicActor(dramatiq.Actor[[], Any]):
    """An actor that a scheduler sends: it notes when, beats, and survives that Redis is away."""

    def __init__(self, fn: Callable[[], Any], *, client: redis.Redis, **facts: Any) -> None:
        super().__init__(fn, **facts)
        self._client = client

    def send_with_options(self, **options: Any) -> dramatiq.Message[Any]:
        """What periodiq calls with the option ``scheduled_at`` and no delay; all else is as Dramatiq does it."""
        if "scheduled_at" not in options or options.get("delay") is not None:
            return super().send_with_options(**options)
        due = datetime.fromisoformat(options["scheduled_at"])
        with suppress(OSError):  # no folder to write to is no reason to send nothing
            BEAT.touch()
        try:
            message = super().send_with_options(**options, unique_key=_slot_of(self.actor_name, due))
            self._client.hset(BACKLOG, TICKED_AT, int(due.timestamp() * 1_000))
        except (BrokerError, redis.RedisError):
            logger.warning("scheduler could not send, the next minute is tried", extra={"actor": self.actor_name})
            return self.message_with_options(**options)
        return message


def _declare(
    broker: dramatiq.Broker,
    actor_name: str,
    sample: Callable[[], None],
    client: redis.Redis,
    clock: Callable[[], datetime],
) -> None:
    def export() -> None:
        try:
            message = CurrentMessage.get_current_message()
            scheduled_at = _scheduled_at(message)
            if message is not None and scheduled_at is not None:
                # first of all, so that a sample that fails does not take the rest of the minute with it
                _enqueue_rest_of_minute(actor, scheduled_at, clock())
                if not _take_slot(client, _slot_of(actor_name, scheduled_at), message.message_id):
                    return
            sample()
        except (BrokerError, redis.RedisError, TimeLimitExceeded):
            # no failure of the job: a dead letter per sample would tell on-call nothing that the gauges' age does not
            logger.warning("backlog not sampled", extra={"actor": actor_name}, exc_info=True)

    actor = dramatiq.actor(
        actor_class=partial(PeriodicActor, client=client),
        actor_name=actor_name,
        queue_name=CLUSTER_MAINTENANCE,
        broker=broker,
        priority=PRIORITY,
        periodic=cron("* * * * *"),
        **POLICIES[actor_name].actor_options(),
    )(export)


def _scheduled_at(message: dramatiq.Message[Any] | None) -> datetime | None:
    """When the running message was to run; None for one that somebody sent by hand."""
    scheduled_at = None if message is None else message.options.get("scheduled_at")
    return None if scheduled_at is None else datetime.fromisoformat(scheduled_at)


def _enqueue_rest_of_minute(actor: dramatiq.Actor[[], Any], scheduled_at: datetime, now: datetime) -> None:
    for due in rest_of_minute(scheduled_at, now):
        actor.send_with_options(
            delay=(due - now) // timedelta(milliseconds=1),
            scheduled_at=due.isoformat(),
            unique_key=_slot_of(actor.actor_name, due),
        )


def _slot_of(actor_name: str, due: datetime) -> str:
    """The ten seconds that a time falls into: schedulers are some milliseconds apart."""
    begin = due.astimezone(UTC).replace(microsecond=0)
    return f"{actor_name}:{(begin - timedelta(seconds=begin.second % STEP.seconds)).isoformat()}"


def _take_slot(client: redis.Redis, slot: str, message_id: str) -> bool:
    """Whether the message may run in the slot. One that is delivered again may: its worker died, or Redis went away."""
    key = f"sploot:slot:{slot}"
    if client.set(key, message_id, nx=True, px=SLOT_TTL):
        return True
    return client.get(key) == message_id.encode()


def rest_of_minute(scheduled_at: datetime, now: datetime) -> Sequence[datetime]:
    """When the minute of a run that was scheduled then still owes a sample: what lies ahead of it and of now."""
    start = scheduled_at.replace(second=0, microsecond=0)
    slots = [start + n * STEP for n in range(1, MINUTE // STEP)]
    # ahead of its own time too: where the clock of this worker is late, a follow-up would else enqueue itself
    return [due for due in slots if due > max(scheduled_at, now)]
