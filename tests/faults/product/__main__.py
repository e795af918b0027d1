"""Run the campaign against the whole product; see the package."""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import redis

from sploot_cluster.store.keys import PetKeys
from sploot_cluster.store.repairs import PetRepairs
from sploot_cluster.store.salvage import salvage
from tasks.client import ClusterTasks
from tasks.doctor import Finding, diagnose, installation_of
from tasks.settings import Settings
from tests.faults.product.acts import ACTS
from tests.faults.product.judge import (
    broker_of,
    drain,
    found_in,
    logged_ends,
    outcome_of,
    problems_of,
    recluster_all,
)
from tests.faults.product.load import PETS, Load
from tests.faults.product.stage import ProductStage
from tests.support import eventually

SHORT_MINUTES, FULL_MINUTES = 0.75, 60.0


def wrong_findings(stage: ProductStage) -> list[Finding]:
    """Return the doctor's findings of level ``wrong``, on a connection without faults."""
    environ = {"REDIS_URL": stage.server.url, "SPLOOT_HTTP_PORT": str(stage.http_port)}
    with redis.Redis.from_url(stage.server.url) as client:
        installation = installation_of(Settings.from_env(environ), client, broker_of(client), processes=1, threads=4)
        return [finding for finding in diagnose(installation) if finding.level == "wrong"]


def doctor_is_red(stage: ProductStage) -> Iterator[str]:
    """Break two things, one after the other; yield a sentence on each that the doctor does not report."""
    client = stage.client
    client.config_set("maxmemory", 1)
    if not any(finding.check == "writes" for finding in wrong_findings(stage)):
        yield "the doctor does not find that Redis refuses writes"
    client.config_set("maxmemory", 0)

    pet = next(pet for pet in PETS if client.exists(f"{{pet:{pet}}}:meta"))
    keys = PetKeys.of(pet)  # type: ignore[arg-type]
    client.delete(keys.rows)
    if not any(f"pet {pet} cannot be read" in finding.seen for finding in wrong_findings(stage)):
        yield f"the doctor does not find that pet {pet} is damaged"
    repairs = PetRepairs(client)
    raw = repairs.read(pet)  # type: ignore[arg-type]
    found = salvage(raw, by="campaign", at=datetime.now(UTC))
    repairs.rewrite(raw, found.pet)
    if found.lost:
        yield f"the repair of pet {pet} lost {found.lost}"


def campaign(stage: ProductStage, *, minutes: float, seed: int) -> list[str]:
    """Run the load and the faults for some minutes, then heal, drain and judge. Return all broken guarantees."""
    rng = random.Random(seed)
    load, acts = Load(stage, seed), Counter[str]()
    load.seed_pets()
    load.start()
    began = time.monotonic()
    ends_at = began + minutes * 60
    while time.monotonic() < ends_at:
        act = rng.choice(ACTS)
        try:
            acts[act(stage, rng)] += 1
        except redis.RedisError as error:
            acts[f"{act.__name__} failed: {type(error).__name__}"] += 1
    load.stop()
    stage.heal()
    problems = [f"a user's thread ended: {crash}" for crash in load.crashes]
    left = drain(stage.client)
    if left:
        problems.append(f"not drained: {left}")
    drained_s = time.monotonic() - ends_at
    with ClusterTasks(client=redis.Redis.from_url(stage.server.url)) as tasks:
        found = found_in(stage.client)
        logged = logged_ends(stage.directory.glob("*.log"))
        problems += problems_of(load.records, found, tasks, logged=logged)
        problems += recluster_all(stage.client)
        after = problems_of(load.records, found_in(stage.client), tasks, logged=logged)
        problems += [f"after reclusters: {text}" for text in after]
    problems += doctor_is_red(stage)
    problems += [f"the doctor finds: {one.check}: {one.seen}" for one in _settled(stage)]
    print(f"{minutes:g} minutes, drained {drained_s:.0f} s later")
    for title, counts in (("seen", outcome_of(load.records, found)), ("acts", dict(acts.most_common()))):
        print(f"  {title}: {', '.join(f'{n} {what}' for what, n in counts.items())}", flush=True)
    return problems


def _settled(stage: ProductStage) -> list[Finding]:
    """Wait up to 90 seconds until the doctor finds nothing wrong; return the findings that remain."""
    wrong: list[Finding] = []

    def is_green() -> bool:
        wrong[:] = wrong_findings(stage)
        return not wrong

    try:
        eventually(is_green, within_s=90)
    except AssertionError:
        return wrong
    return []


def run(*, minutes: float, seed: int, logs: Path | None) -> bool:
    """Run the campaign and print all broken guarantees; return whether there are none."""
    os.environ.pop("REDIS_URL", None)
    print(f"product: seed {seed}, {minutes:g} minutes", flush=True)
    with tempfile.TemporaryDirectory(prefix="product-") as temporary, ProductStage(logs or Path(temporary)) as stage:
        problems = campaign(stage, minutes=minutes, seed=seed)
    for problem in problems[:30]:
        print(f"  BAD: {problem}")
    print(f"product: {len(problems)} problems; seed {seed}: {'BAD' if problems else 'good'}", flush=True)
    return not problems


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.faults.product", description="Break the product.")
    arguments.add_argument("--short", action="store_true", help="a minute of faults")
    arguments.add_argument("--minutes", type=float, help=f"how long faults are injected; default: {FULL_MINUTES:g}")
    arguments.add_argument("--seed", type=int, default=random.randrange(2**32))
    arguments.add_argument("--logs", type=Path, help="folder in which to keep the logs of the processes")
    chosen = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    minutes = chosen.minutes or (SHORT_MINUTES if chosen.short else FULL_MINUTES)
    return 0 if run(minutes=minutes, seed=chosen.seed, logs=chosen.logs) else 1


if __name__ == "__main__":
    sys.exit(main())
