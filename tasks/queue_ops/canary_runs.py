"""Canaries that run in the background of a server, and their state in Redis, which every server can read.

key              type  holds                                                             ends
sploot:canaries  hash  plan id: its run as JSON; <plan id>:stop: the reason to stop it    a day after the last change

Each run has a thread. If its server ends, the run is interrupted; messages not yet requeued are still dead letters.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

import redis

from sploot_cluster.errors import InvalidInput
from sploot_cluster.queues import CanaryRun, CarefulRequeue, Done, Plan
from sploot_cluster.refusals import REDIS_ERRORS

logger = logging.getLogger("sploot-cluster.queue")

CANARIES: Final = "sploot:canaries"
KEPT_S: Final = 24 * 3_600
# Maximum number of runs at once. Each has a thread and reads the queue a few times per second.
MOST_AT_ONCE: Final = 4
BEAT_S: Final = 0.5
# A run whose state has not been written for this long has lost its server. The limit is well above ten seconds,
# because Redis itself may be silent for that long.
LOST: Final = timedelta(seconds=30)
CLOSING_S: Final = 5.0

# A function that requeues a plan's dead letters and returns the result. After each step it calls its first argument
# with two numbers: jobs requeued, and jobs that failed again. Its second argument returns the reason to stop, or "".
Requeue = Callable[[Callable[[int, int], None], Callable[[], str]], Done]


class CanaryRuns:
    """The canaries of this process, and the state of every process's canaries. Errors from redis-py propagate."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._is_closing = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def start(self, plan: Plan, how: CarefulRequeue, *, by: str, requeue: Requeue) -> CanaryRun:
        """Begin a run, and return its state.

        Raises:
            InvalidInput: too many canaries are running.
        """
        now = datetime.now(UTC)
        run = CanaryRun(plan.plan_id, plan.queue, "running", by, how.per_s, len(plan.entries), 0, 0, "", now, now)
        with self._lock:
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            if len(self._threads) >= MOST_AT_ONCE:
                hint = "stop one of them, or wait until one ends"
                raise InvalidInput("plan_id", f"{MOST_AT_ONCE} canaries run already", hint)
            self._forget_old(now)
            self._write(run)
            thread = threading.Thread(target=self._run, args=(run, requeue), name=f"canary {plan.plan_id}", daemon=True)
            self._threads.append(thread)
        thread.start()
        return run

    def all(self) -> Sequence[CanaryRun]:
        """Return the runs of the last day, newest first."""
        now = datetime.now(UTC)
        stored = cast("dict[bytes, bytes]", self._client.hgetall(CANARIES))
        runs = [_run_of(text, now) for name, text in stored.items() if not name.endswith(b":stop")]
        return sorted(runs, key=lambda run: run.started_at, reverse=True)

    def stop(self, plan_id: str, *, why: str) -> CanaryRun | None:
        """Ask a run to stop, whichever process it is in; return it, or None if it is unknown."""
        stored = cast("bytes | None", self._client.hget(CANARIES, plan_id))
        if stored is None:
            return None
        self._client.hset(CANARIES, f"{plan_id}:stop", why)
        return _run_of(stored, datetime.now(UTC))

    def close(self) -> None:
        """Stop the runs of this process, and wait up to ``CLOSING_S`` for them to end."""
        self._is_closing.set()
        deadline = time.monotonic() + CLOSING_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, run: CanaryRun, requeue: Requeue) -> None:
        state, beat_at, why = run, 0.0, ""

        def beat() -> None:
            """Write the state and read whether to stop, every ``BEAT_S``."""
            nonlocal beat_at, why
            if time.monotonic() < beat_at:
                return
            beat_at = time.monotonic() + BEAT_S
            self._write(state)
            asked = cast("bytes | None", self._client.hget(CANARIES, f"{run.plan_id}:stop"))
            why = "" if asked is None else asked.decode()

        def step(n_requeued: int, n_died: int) -> None:
            nonlocal state
            state = replace(state, n_requeued=n_requeued, n_died=n_died)
            beat()

        def should_stop() -> str:
            beat()
            return "the server shuts down" if self._is_closing.is_set() else why

        try:
            done = requeue(step, should_stop)
            ended = replace(state, state="succeeded" if done.is_complete else "stopped", reason=done.reason)
            self._write(replace(ended, n_requeued=done.n_done))
        except REDIS_ERRORS as error:
            self._fail(state, error)
        except Exception as error:
            logger.exception("canary failed", extra={"plan": run.plan_id})
            self._fail(state, error)

    def _fail(self, state: CanaryRun, error: Exception) -> None:
        try:
            self._write(replace(state, state="interrupted", reason=f"{type(error).__name__}: {error}"[:500]))
        except REDIS_ERRORS:
            logger.warning("could not record the end of a canary", extra={"plan": state.plan_id})

    def _write(self, run: CanaryRun) -> None:
        facts: dict[str, Any] = asdict(run) | {
            "started_at": run.started_at.isoformat(),
            "changed_at": datetime.now(UTC).isoformat(),
        }
        self._client.hset(CANARIES, run.plan_id, json.dumps(facts))
        self._client.expire(CANARIES, KEPT_S)

    def _forget_old(self, now: datetime) -> None:
        for run in self.all():
            if now - run.changed_at > timedelta(seconds=KEPT_S):
                self._client.hdel(CANARIES, run.plan_id, f"{run.plan_id}:stop")


def _run_of(text: bytes, now: datetime) -> CanaryRun:
    facts = json.loads(text)
    times = {name: datetime.fromisoformat(facts[name]) for name in ("started_at", "changed_at")}
    run = CanaryRun(**facts | times)
    if run.state == "running" and now - run.changed_at > LOST:
        reason = "its server ended; what it did not requeue is still a dead letter, so plan again"
        return replace(run, state="interrupted", reason=reason)
    return run
