"""Detection of stuck processes, which must lose their messages although they are alive.

A heartbeat only shows that a process exists. Its threads may still hang: on a log pipe without a reader, in native
code, or on a lock. A message that runs beyond its time limit plus a grace period is overdue. When every running message
is overdue, the process is stuck: it stops reading and stops writing heartbeats, so that other processes take over its
messages. It resumes when one of the running messages ends.

Messages without a time limit are never overdue. A message that has ended is not overdue while its outcome waits for
Redis, so a Redis outage does not make a process stuck.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import dramatiq
from dramatiq.middleware import TimeLimit

from ..deliveries import Delivery
from .batches import OPTION, Batch, Batching

FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class Limits:
    """The time limits of messages in seconds. Infinity means no limit.

    Attributes:
        of: a function that returns the limit of a message or batch.
        longest: a function that returns the maximum limit of all messages that this process may run.
    """

    of: Callable[[Delivery | Batch], float]
    longest: Callable[[], float]


def limits_of(broker: dramatiq.Broker) -> Limits:
    """Return the time limits of a broker's messages, as its ``TimeLimit`` middleware determines them."""

    def of(delivery: Delivery | Batch) -> float:
        actor = broker.actors.get(delivery.actor_name)
        for middleware in broker.middleware:
            if isinstance(middleware, TimeLimit):
                of_actor = middleware.time_limit if actor is None else actor.options.get("time_limit")
                return _seconds(delivery.options.get("time_limit") or of_actor or middleware.time_limit)
        return FOREVER

    def longest() -> float:
        for middleware in broker.middleware:
            if isinstance(middleware, TimeLimit):
                limits: list[object] = [None]
                for actor in list(broker.actors.values()):
                    limits.append(actor.options.get("time_limit"))
                    batching = actor.options.get(OPTION)
                    if isinstance(batching, Batching):
                        limits.append(batching.time_limit)
                return max(_seconds(limit or middleware.time_limit) for limit in limits)
        return FOREVER

    return Limits(of=of, longest=longest)


def _seconds(limit_ms: object) -> float:
    return limit_ms / 1000 if isinstance(limit_ms, int | float) else FOREVER


@dataclass(frozen=True, slots=True)
class Judgement:
    """The result of a check whether a process makes progress.

    Attributes:
        moves_until: the time until which the process counts as making progress if no further check follows, on the
            monotonic clock.
        stuck: a description of what is stuck, or None if the process is not stuck.
    """

    moves_until: float
    stuck: str | None = None


def judge(
    running: Iterable[Delivery | Batch],
    stalled_since: Mapping[str, float],
    limits: Limits,
    *,
    overrun_s: float,
    now: float,
) -> Judgement:
    """Check whether a process makes progress on its messages.

    Args:
        running: the messages that the process's threads run.
        stalled_since: when the Worker last polled the consumer of each queue whose messages the process holds.
        overrun_s: the maximum time for which a message may run beyond its time limit.
    """
    longest_s, until, latest = limits.longest(), float("-inf"), None
    for delivery in running:
        if delivery.begun_at is None or delivery.is_ended or delivery.is_lost:
            continue
        limit_s = limits.of(delivery)
        longest_s = max(longest_s, limit_s)
        if delivery.begun_at + limit_s + overrun_s > until:
            until, latest = delivery.begun_at + limit_s + overrun_s, delivery
    if latest is not None and until <= now:
        assert latest.begun_at is not None
        return Judgement(
            until,
            f"every running message is beyond its time limit, the last of them {latest.actor_name} "
            f"({latest.message_id}), which has run for {now - latest.begun_at:.0f} s",
        )
    if latest is None:
        for queue_name, since in stalled_since.items():
            if since + longest_s + overrun_s <= now:
                stuck = f"the consumer of {queue_name} holds messages and was not polled for {now - since:.0f} s"
                return Judgement(since + longest_s + overrun_s, stuck)
    # A thread that holds the interpreter lock prevents the next check. It may run any message, so the maximum limit
    # applies.
    return Judgement(now + longest_s + overrun_s)
