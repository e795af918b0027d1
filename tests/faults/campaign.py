"""The campaign: it runs a round of each nemesis (kind of fault) and judges whether messages were lost."""

from __future__ import annotations

import random
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import redis

from tests.faults import QUEUES
from tests.faults.checker import Snapshot, Verdict, judge, key_of, lost_at_this_moment, snapshot
from tests.faults.ledger import Entries
from tests.faults.nemeses import BY_NAME, Nemesis
from tests.faults.stage import Stage

N_PRODUCERS = 2
LONGEST_ROUND_S = 900.0
# Maximum time to drain the queues. At worst a lease, an orphan sweep and the longest job follow each other; the rest is
# a margin for a loaded machine.
DRAIN_S = 180.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one round.

    Attributes:
        verdict: the verdict on the final state, after the queues were drained or ``DRAIN_S`` had passed.
        lost_meanwhile: messages that were in no place at some moment during the round.
        held: the number of messages that the queue still held at the end; 0 unless some are stuck.
        acts: how often each fault was injected.
    """

    name: str
    seed: int
    verdict: Verdict
    lost_meanwhile: tuple[str, ...]
    held: int
    acts: Counter[str]
    took_s: float

    @property
    def is_good(self) -> bool:
        return self.verdict.is_good and not self.lost_meanwhile and not self.held


def run_round(stage: Stage, nemesis: Nemesis, *, n_messages: int, seed: int, first_uid: str, round_s: float) -> Outcome:
    """Enqueue for ``round_s`` or longer while faults are injected, then heal, drain the queue and judge."""
    rng = random.Random(f"{seed}/{nemesis.name}")
    began = time.monotonic()
    stage.ledger.clear()
    producers = [
        stage.producer(f"{first_uid}{number}", n_messages // N_PRODUCERS, seed, round_s, nemesis.kinds)
        for number in range(N_PRODUCERS)
    ]
    acts: Counter[str] = Counter()
    lost: set[str] = set()
    try:
        while any(producer.poll() is None for producer in producers):
            acts[_do(rng.choice(nemesis.acts), stage, rng)] += 1
            if rng.random() < 0.1:
                lost.update(_look(stage))
            time.sleep(rng.uniform(*nemesis.pause_s))
            if time.monotonic() - began > LONGEST_ROUND_S:
                raise TimeoutError(f"the producers of {nemesis.name} did not end in time: {stage.last_words()}")
        if any(producer.wait() for producer in producers):
            raise RuntimeError(f"a producer of {nemesis.name} failed: {stage.last_words()}")
    finally:
        _end(producers)
        stage.heal()
    queue = drained(stage)
    verdict = judge(_without_stragglers(stage.ledger.read(), first_uid), queue)
    stage.client.delete(*(key_of(queue, what) for queue in QUEUES for what in ("dead", "dead:mistakes")))
    return Outcome(
        nemesis.name, seed, verdict, tuple(sorted(lost)), queue.n_held, acts, round(time.monotonic() - began, 1)
    )


def run(stage: Stage, names: Sequence[str], *, n_messages: int, seed: int, round_s: float) -> list[Outcome]:
    """Run a round of each nemesis with ``n_messages`` each, printing every outcome."""
    outcomes = []
    for number, name in enumerate(names):
        outcome = run_round(
            stage,
            BY_NAME[name],
            n_messages=n_messages,
            seed=seed,
            first_uid=f"r{number}p",
            round_s=round_s,
        )
        print_outcome(outcome)
        outcomes.append(outcome)
    return outcomes


def print_outcome(outcome: Outcome) -> None:
    verdict = outcome.verdict
    print(
        f"{'ok  ' if outcome.is_good else 'FAIL'} {outcome.name:<11} {outcome.took_s:>6.1f} s  "
        f"{_words(verdict.fates)} -> {_words(verdict.endings)}; ran again {verdict.reruns}; {_words(outcome.acts)}",
        flush=True,
    )
    for what, uids in (
        ("lost", verdict.lost),
        ("lost meanwhile", outcome.lost_meanwhile),
        ("doubled", verdict.doubled),
        ("conjured", verdict.conjured),
        ("misplaced", verdict.misplaced),
        ("overtaken", verdict.overtaken),
    ):
        if uids:
            print(f"     {what}: {len(uids)}, e.g. {'; '.join(uids[:5])}", flush=True)
    if outcome.held:
        print(f"     stuck: the queue still holds {outcome.held}", flush=True)


def _do(act: object, stage: Stage, rng: random.Random) -> str:
    assert callable(act)
    try:
        return str(act(stage, rng))
    except redis.RedisError as error:
        # another act caused this: the group does not exist yet, or the server is down or full
        return f"{getattr(act, '__name__', act)} failed: {type(error).__name__}"


def _look(stage: Stage) -> tuple[str, ...]:
    try:
        before = stage.ledger.read()
        queue = snapshot(stage.client)
    except redis.RedisError:
        return ()
    return lost_at_this_moment(before, queue, stage.ledger.read())


def _without_stragglers(entries: Entries, first_uid: str) -> Entries:
    """Return only this round's entries, because a second run of a message may end after its own round was judged."""
    return replace(entries, runs={uid: n for uid, n in entries.runs.items() if uid.startswith(first_uid)})


def drained(stage: Stage) -> Snapshot:
    deadline = time.monotonic() + DRAIN_S
    while True:
        try:
            queue = snapshot(stage.client)
            if not queue.n_held or time.monotonic() > deadline:
                return queue
        except redis.RedisError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def _end(producers: Sequence[subprocess.Popen[bytes]]) -> None:
    for producer in producers:
        if producer.poll() is None:
            producer.kill()
            producer.wait()


def _words(counts: Counter[str] | object) -> str:
    assert isinstance(counts, dict)
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items(), key=lambda one: -one[1]))
