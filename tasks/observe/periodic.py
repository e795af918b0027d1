"""The periodic samples of the queues.

periodiq's smallest step is a minute, but a sample must never be older than 15 seconds. So each run also enqueues the
remaining samples of its minute as delayed messages, each with a unique key. Therefore
a second scheduler, a message that is delivered twice, or a scheduler that starts within the minute adds no samples. No
message is enqueued beyond its minute: when the scheduler stops, samples stop too, and
``media_cluster_backlog_sample_timestamp_seconds`` shows it.

A slot is ten seconds long and belongs to one message. If several schedulers send messages for a slot, only one of the
messages takes a sample.

    key                        type    holds                               ends
    sploot:slot:<actor>:<slot> string  id of the message that runs in it   after SLOT_TTL

A scheduler that cannot reach Redis logs this and tries again in the next minute; periodiq itself would exit. A missed
tick is not repeated, because periodiq ticks when it starts, and a sample describes only the current moment.

A late sample is worthless. periodiq's middleware drops messages that are 30 seconds late, including our delayed ones,
because they carry its option ``scheduled_at``. Dramatiq's ``max_age`` would turn each of them into a dead letter, and
an outage of an hour would leave hundreds.
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

from tasks.contracts import CLUSTER_MAINTENANCE, EXPORT_PENDING_JOBS, EXPORT_STREAM_LAG
from tasks.observe.backlog import BACKLOG, TICKED_AT, BacklogSampler
from tasks.observe.periodic_runs import MINUTE, STEP, record_sending, recording_run
from tasks.retry_policy import POLICIES

logger = logging.getLogger("sploot-cluster.queue")

# longer than a message can be late, because periodiq drops it after 30 seconds
SLOT_TTL: Final = timedelta(minutes=5)

# File that is touched at each tick, even if Redis did not answer; the chart's livenessProbe checks its age.
BEAT: Final = Path(tempfile.gettempdir()) / "sploot-scheduler-beat"

# Samples run before all other jobs in a worker: they matter most under load, and take only milliseconds.
PRIORITY: Final = -10


def declare_periodic_actors(
    broker: dramatiq.Broker,
    sampler: BacklogSampler,
    client: redis.Redis,
    *,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """Declare ``export_pending_jobs`` and ``export_stream_lag``, which periodiq sends every minute.

    A message sent by hand takes one sample and enqueues no further messages.

    Args:
        client: stores the slots and the scheduler's last tick.
        clock: returns an aware time, which determines the remaining samples of the minute.

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
    """An actor whose messages a scheduler sends.

    Sending also records the tick and touches the beat file. A Redis outage is only logged.
    """

    def __init__(self, fn: Callable[[], Any], *, client: redis.Redis, **facts: Any) -> None:
        super().__init__(fn, **facts)
        self._client = client

    def send_with_options(self, **options: Any) -> dramatiq.Message[Any]:
        """Send the message. If periodiq calls this (``scheduled_at`` and no delay), also record the tick."""
        if "scheduled_at" not in options or options.get("delay") is not None:
            return super().send_with_options(**options)
        due = datetime.fromisoformat(options["scheduled_at"])
        with suppress(OSError):  # send even if the folder is not writable
            BEAT.touch()
        try:
            message = super().send_with_options(**options, unique_key=_slot_of(self.actor_name, due))
            sent_ms = int(due.timestamp() * 1_000)
            self._client.hset(BACKLOG, TICKED_AT, sent_ms)
            record_sending(self._client, self.actor_name, sent_ms)
        except (BrokerError, redis.RedisError):
            logger.warning("scheduler could not send; will retry at the next minute", extra={"actor": self.actor_name})
            return self.message_with_options(**options)
        return message


def every_minute(
    broker: dramatiq.Broker, actor_name: str, client: redis.Redis, *, priority: int
) -> Callable[[Callable[[], None]], dramatiq.Actor[[], None]]:
    """Return a decorator that declares a maintenance actor, which periodiq sends every minute."""
    from periodiq import cron  # imported here, because the server imports this module but does not have periodiq

    return dramatiq.actor(
        actor_class=partial(PeriodicActor, client=client),
        actor_name=actor_name,
        queue_name=CLUSTER_MAINTENANCE,
        broker=broker,
        priority=priority,
        periodic=cron("* * * * *"),
        **POLICIES[actor_name].actor_options(),
    )


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
                # done first, so that a failed sample does not prevent the other samples of its minute
                _enqueue_rest_of_minute(actor, scheduled_at, clock())
                if not _take_slot(client, _slot_of(actor_name, scheduled_at), message.message_id):
                    return
            with recording_run(client, actor_name):
                sample()
        except (BrokerError, redis.RedisError, TimeLimitExceeded):
            # the job does not fail, because the age of the gauges already shows the problem
            logger.warning("could not sample the backlog", extra={"actor": actor_name}, exc_info=True)

    actor = every_minute(broker, actor_name, client, priority=PRIORITY)(export)


def _scheduled_at(message: dramatiq.Message[Any] | None) -> datetime | None:
    """Return when the running message was scheduled, or None if it was sent by hand."""
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
    """Return the ten-second slot that contains a time: two schedulers, some milliseconds apart, get the same slot."""
    begin = due.astimezone(UTC).replace(microsecond=0)
    return f"{actor_name}:{(begin - timedelta(seconds=begin.second % STEP.seconds)).isoformat()}"


def _take_slot(client: redis.Redis, slot: str, message_id: str) -> bool:
    """Return whether the message may run in the slot: as the first one, or again after a crash or an outage."""
    key = f"sploot:slot:{slot}"
    if client.set(key, message_id, nx=True, px=SLOT_TTL):
        return True
    return client.get(key) == message_id.encode()


def rest_of_minute(scheduled_at: datetime, now: datetime) -> Sequence[datetime]:
    """Return the times of samples that are still due in the minute of ``scheduled_at``, after it and after ``now``."""
    start = scheduled_at.replace(second=0, microsecond=0)
    slots = [start + n * STEP for n in range(1, MINUTE // STEP)]
    # only times after scheduled_at: otherwise, if this worker's clock is slow, a message would enqueue itself again
    return [due for due in slots if due > max(scheduled_at, now)]
