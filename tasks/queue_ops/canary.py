"""Careful requeueing of dead letters: one first, then the rest at a limited rate. It stops when they fail again.

An error that made 500 jobs fail makes them fail again unless it was fixed, and 500 retries at once would be another
incident. All state between two steps is in Redis: if the process is killed, jobs that were not yet requeued are still
dead letters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from broker import DeadLetter, DeadLetterTooLarge, RedisStreamsBroker
from broker.dead_letters import KEY_HELD, is_requeued
from sploot_cluster.queues import CarefulRequeue, Plan
from tasks.queue_ops.dead_letters import message_id_of

POLL_S: Final = 0.2
ENDED: Final = "ended"
HELD: Final = "a job with the same unique key waits; requeue them when it has started, or purge them"

Fate = Literal["succeeded", "died", "unknown"]


@dataclass(frozen=True, slots=True)
class Requeued:
    """The result of a careful requeue.

    Attributes:
        n_requeued: number of dead letters that were requeued.
        n_died: number of requeued dead letters that failed again.
        n_left: number of dead letters that were not requeued because the canary stopped, they are too large, or a job
            with their unique key waits.
        reason: the reason for the result, in one sentence.
    """

    n_requeued: int
    n_died: int
    n_left: int
    is_good: bool
    reason: str


class Canary:
    """A careful requeue of the dead letters of a plan, oldest first.

    Args:
        how: the rate and the limits; its ``wait_s`` also limits the wait for the last jobs to end.
        on_step: called after each step with the number of jobs requeued and the number that failed again.
        should_stop: called before each step; returns the reason to stop, or an empty string to continue.
        clock, sleep: return and take seconds; tests replace them.
    """

    def __init__(
        self,
        broker: RedisStreamsBroker,
        how: CarefulRequeue,
        *,
        on_step: Callable[[int, int], None] = lambda requeued, died: None,
        should_stop: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._broker, self._how = broker, how
        self._on_step, self._should_stop, self._clock, self._sleep = on_step, should_stop, clock, sleep

    def requeue(self, plan: Plan) -> Requeued:
        """Requeue the plan's dead letters. Broker errors propagate; dead letters not yet requeued are then kept."""
        dead_letters = self._broker.dead_letters(plan.queue)
        found = [dead_letter for entry in plan.entries if (dead_letter := dead_letters.get(entry.id)) is not None]
        if not found:
            return Requeued(0, 0, 0, True, "all of them were already gone")
        first, rest = found[0], found[1:]
        watch = _Watch(self._broker, plan.queue)
        watch.expect([first])
        try:
            (entry_id,) = dead_letters.put_back([first.id])
        except DeadLetterTooLarge as refused:
            return Requeued(0, 0, len(found), False, f"the first one stays a dead letter: {refused}; stopped")
        if entry_id == KEY_HELD:
            return Requeued(0, 0, len(found), False, f"the first one stays a dead letter: {HELD}; stopped")
        if entry_id is None:
            return Requeued(0, 0, len(rest), False, f"{first.id} was taken by another operator meanwhile; plan again")
        self._on_step(1, 0)
        match self._fate_of(first, entry_id, watch):
            case "died":
                return Requeued(1, 1, len(rest), False, f"the first one failed again: {watch.last_error}; stopped")
            case "unknown" if why := self._should_stop():
                return Requeued(1, 0, len(rest), False, f"{why}; stopped after the first one")
            case "unknown":
                state = watch.where(first, entry_id)
                return Requeued(1, 0, len(rest), False, f"after {self._how.wait_s:g} s the first one {state}; stopped")
            case "succeeded":
                return self._rest(plan, rest, watch)

    def _rest(self, plan: Plan, rest: Sequence[DeadLetter], watch: _Watch) -> Requeued:
        dead_letters = self._broker.dead_letters(plan.queue)
        n_requeued, started_at = 1, self._clock()
        n_left, why_left = 0, ""
        watch.expect(rest)
        for number, dead_letter in enumerate(rest):
            # counted before each requeue rather than after it, so that failures during the sleep are included
            n_died = watch.n_died()
            if n_died >= self._how.stop_after:
                why = f"{n_died} failed again, the last with: {watch.last_error}; stopped"
                return Requeued(n_requeued, n_died, n_left + len(rest) - number, False, why)
            if why := self._should_stop():
                return Requeued(n_requeued, n_died, n_left + len(rest) - number, False, f"{why}; stopped")
            try:
                (entry_id,) = dead_letters.put_back([dead_letter.id])
                n_requeued += is_requeued(entry_id)
                if entry_id == KEY_HELD:
                    n_left, why_left = n_left + 1, HELD
            except DeadLetterTooLarge as refused:
                n_left, why_left = n_left + 1, str(refused)
            self._on_step(n_requeued, n_died)
            self._pause_until(started_at + (number + 1) / self._how.per_s)
        n_died = self._settled(watch)
        if n_died:
            why = f"{n_died} of {n_requeued} failed again: {watch.last_error}"
            return Requeued(n_requeued, n_died, n_left, False, why)
        if n_left:
            why = f"{n_requeued} requeued, {n_left} stay dead letters: {why_left}"
            return Requeued(n_requeued, 0, n_left, False, why)
        return Requeued(n_requeued, 0, 0, True, f"{n_requeued} requeued, none failed again")

    def _pause_until(self, at: float) -> None:
        """Sleep until a time, in steps of at most a second, so that a request to stop is noticed."""
        while (left := at - self._clock()) > 1 and not self._should_stop():
            self._sleep(1.0)
        self._sleep(max(0.0, left))

    def _fate_of(self, dead_letter: DeadLetter, entry_id: str, watch: _Watch) -> Fate:
        deadline = self._clock() + self._how.wait_s
        while True:
            if watch.n_died():
                return "died"
            if watch.where(dead_letter, entry_id) == ENDED:
                # the job may have failed between the two checks
                return "died" if watch.n_died() else "succeeded"
            if self._clock() >= deadline or self._should_stop():
                return "unknown"
            self._sleep(POLL_S)

    def _settled(self, watch: _Watch) -> int:
        """Return how many jobs failed again, once the queue is idle or the wait is over."""
        deadline = self._clock() + self._how.wait_s
        while self._clock() < deadline and watch.n_died() < self._how.stop_after:
            if watch.is_idle() or self._should_stop():
                break
            self._sleep(POLL_S)
        return watch.n_died()


class _Watch:
    """A watch for requeued messages that become dead letters again, by their message ids."""

    def __init__(self, broker: RedisStreamsBroker, queue: str) -> None:
        self._broker, self._queue = broker, queue
        newest = broker.dead_letters(queue).list(1)
        self._seen_up_to = newest[0].id if newest else "0-0"
        self._expected: set[str] = set()
        self._died: set[str] = set()
        self.last_error = ""

    def expect(self, dead_letters: Sequence[DeadLetter]) -> None:
        self._expected |= {message_id for dead_letter in dead_letters if (message_id := message_id_of(dead_letter))}

    def n_died(self) -> int:
        newest: str | None = None
        before: str | None = None
        while page := self._broker.dead_letters(self._queue).list(100, before=before):
            newest = newest or page[0].id
            for dead_letter in page:
                if _order(dead_letter.id) <= _order(self._seen_up_to):
                    break
                message_id = message_id_of(dead_letter)
                if message_id in self._expected and message_id not in self._died:
                    self._died.add(str(message_id))
                    self.last_error = dead_letter.error
            else:
                before = page[-1].id
                continue
            break
        self._seen_up_to = newest or self._seen_up_to
        return len(self._died)

    def where(self, dead_letter: DeadLetter, entry_id: str) -> str:
        """Return the state of the job of a requeued dead letter as text; ``entry_id`` is its new entry."""
        inspector = self._broker.inspector(self._queue)
        if inspector.entry(entry_id) is not None:
            pending = inspector.find_pending(entry_id)
            if pending is not None:
                return f"runs in {pending.holder}"
            return "waits, because its queue is paused" if self._broker.stats(self._queue).paused else "waits"
        wanted = (message_id_of(dead_letter) or "").encode()
        if wanted and any(wanted in message for _, message in inspector.delayed()):
            return "failed, and will be retried"
        return ENDED

    def is_idle(self) -> bool:
        stats = self._broker.stats(self._queue)
        return not (stats.undelivered or stats.in_flight or stats.orphaned)


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number)
