"""Whether a process still finishes what it holds: one that does not must lose it, however alive it is.

A heartbeat shows that a process exists. Its threads may hang all the same: on a log that nobody reads, in native code,
on a lock. A message that runs beyond its time limit and a grace is overdue, and when every running message is overdue,
the process is stuck: it reads nothing more and its heartbeat ends, so that other processes take over what it holds.
It beats and reads again once one of them ends.

Messages without a time limit are never judged. Nor are those that have ended and wait for Redis to take the result: an
outage makes no process stuck.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import dramatiq
from dramatiq.middleware import TimeLimit

from .deliveries import Delivery

FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class Limits:
    """Time limits in seconds, infinite where there is none.

    Attributes:
        of: that of one message.
        longest: that of any message which this process may run.
    """

    of: Callable[[Delivery], float]
    longest: Callable[[], float]


def limits_of(broker: dramatiq.Broker) -> Limits:
    """Return the time limits of a broker's messages, as its ``TimeLimit`` middleware reads them."""

    def of(delivery: Delivery) -> float:
        actor = broker.actors.get(delivery.actor_name)
        for middleware in broker.middleware:
            if isinstance(middleware, TimeLimit):
                of_actor = middleware.time_limit if actor is None else actor.options.get("time_limit")
                return _seconds(delivery.options.get("time_limit") or of_actor or middleware.time_limit)
        return FOREVER

    def longest() -> float:
        for middleware in broker.middleware:
            if isinstance(middleware, TimeLimit):
                of_actors = (actor.options.get("time_limit") for actor in list(broker.actors.values()))
                return max(_seconds(limit or middleware.time_limit) for limit in (None, *of_actors))
        return FOREVER

    return Limits(of=of, longest=longest)


def _seconds(limit_ms: object) -> float:
    return limit_ms / 1000 if isinstance(limit_ms, int | float) else FOREVER


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is known of a process now.

    Attributes:
        moves_until: on the monotonic clock: until then it counts as moving, unless it is judged again.
        stuck: what does not move; None while something does.
    """

    moves_until: float
    stuck: str | None = None


def judge(
    running: Iterable[Delivery], stalled_since: Mapping[str, float], limits: Limits, *, overrun_s: float, now: float
) -> Judgement:
    """Judge what a process holds.

    Args:
        running: the messages that threads of it run.
        stalled_since: of each queue of which it holds messages: when its consumer was last asked for one.
        overrun_s: how much longer than its time limit a message may run.
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
            f"every running message is beyond its time limit, as {latest.actor_name}({latest.message_id}), "
            f"which has run for {now - latest.begun_at:.0f} s",
        )
    if latest is None:
        for queue_name, since in stalled_since.items():
            if since + longest_s + overrun_s <= now:
                stuck = f"the consumer of {queue_name} holds messages and has not moved for {now - since:.0f} s"
                return Judgement(since + longest_s + overrun_s, stuck)
    # A thread that holds the interpreter lock lets nobody judge again; it may be any message that holds it.
    return Judgement(now + longest_s + overrun_s)
