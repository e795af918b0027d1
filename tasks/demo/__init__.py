"""``sploot-cluster demo``: the main scenario on real processes with real images, and checks of every guarantee."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import redis
from rich.console import Console

from sploot_cluster.store.keys import PETS
from tasks.contracts import QUEUES, stream_of
from tasks.demo.monitoring import NoMonitoring
from tasks.demo.pictures import Pictures
from tasks.demo.practice import SPEED, NotBegun, Practice
from tasks.demo.sample import albums
from tasks.demo.stack import Stack
from tasks.demo.story import Story
from tasks.demo.summary import render, write_summary
from tasks.redis_access.embedded import EmbeddedRedis

LEASE_MS = 3_000  # short, so that the killed worker's events are recovered quickly; the default is 30 s
HUNG_AFTER_S = 15  # short, so that a worker that hangs pages before its jobs do; the default is 60 s


def run(
    *,
    directory: Path = Path("demo-output"),
    keep: bool = False,
    share: float = 1.0,
    speed: int = SPEED,
    console: Console | None = None,
    on_chapter: Callable[[str], None] = lambda _: None,
) -> int:
    """Run the demo. Return 0 if every guarantee was kept, else 1.

    Args:
        directory: receives the summary, the maps and the logs of this run; created if missing.
        keep: keep running after the scenario, until Ctrl-C or SIGTERM, with incidents to practise on.
        share: part of the sample to use, in (0, 1].
        speed: with ``keep``, the factor by which alerts are faster than in production.
        on_chapter: called before each part of the scenario, with its name.
    """
    console = console or Console()
    directory.mkdir(parents=True, exist_ok=True)
    logs = Path(tempfile.mkdtemp(prefix="logs-", dir=directory))
    start = time.monotonic()
    sample = albums(share=share)
    models = {album.model: album.dim for album in sample}
    with contextlib.ExitStack() as open_until_the_end:
        redis_url = os.environ.get("REDIS_URL", "")
        own_redis = None if redis_url else open_until_the_end.enter_context(EmbeddedRedis())
        if own_redis is not None:
            redis_url = own_redis.url
        if in_use := _in_use(redis_url):
            console.print(f"The Redis at REDIS_URL already contains {in_use}; the demo needs an empty database.")
            return 1
        pictures = open_until_the_end.enter_context(Pictures(sample))
        stack = open_until_the_end.enter_context(
            Stack(
                redis_url,
                logs,
                models=models,
                lease_ms=LEASE_MS,
                hung_after_s=HUNG_AFTER_S,
                media_url_template=pictures.url_template,
            )
        )
        n_media = sum(len(album.media_ids) for album in sample)
        console.print(f"[bold]sploot-cluster[/]: {n_media:,} items of {len(sample)} pets; logs in {logs}")
        story = Story(stack=stack, albums=sample, redis_url=redis_url, console=console, on_chapter=on_chapter)
        try:
            seen = story.tell()
        finally:
            story.close()
        write_summary(directory, sample, seen)
        console.print(render(sample, seen))
        console.print(f"Summary and maps: {directory}/summary.txt, {directory}/pet-*.png")
        console.print(
            f"Console: {stack.http}/   API: {stack.http}/openapi.json   metrics: {'  '.join(stack.metrics)}   "
            f"Redis: {redis_url}",
            soft_wrap=True,
        )
        console.print(f"{'Done' if seen.is_good else 'FAILED'} after {time.monotonic() - start:.0f} s")
        if keep:
            environ = {
                "PATH": f"{Path(sys.executable).parent}:$PATH",
                "REDIS_URL": redis_url,
                "AUTH_URL": stack.http,
                "PET": str(sample[0].pet_id),
                **stack.own_environ,
            }
            console.print("Still running; Ctrl-C ends it. To try ops/runbook.md on it, run in another terminal:")
            for name, value in environ.items():
                console.print(f"  export {name}={value}", highlight=False, soft_wrap=True)
            try:
                practice = open_until_the_end.enter_context(
                    Practice(
                        stack,
                        albums=sample,
                        redis_url=redis_url,
                        own_redis=own_redis,
                        lease_ms=LEASE_MS,
                        directory=logs.resolve() / "monitoring",
                        console=console,
                        speed=speed,
                    )
                )
            except NoMonitoring as missing:
                console.print(f"No incidents to practise on: {missing}", markup=False, soft_wrap=True)
                practice = None
            _stay_up(console, practice, speed)
    return 0 if seen.is_good else 1


def _in_use(redis_url: str) -> str:
    """Return the names of our keys that this Redis already contains, as text, or an empty string if there are none."""
    with redis.Redis.from_url(redis_url) as client:
        found = [key for key in (PETS, *map(stream_of, QUEUES)) if client.exists(key)]
    return ", ".join(found)


def _stay_up(console: Console, practice: Practice | None, speed: int) -> None:
    """Run the exercises that the user types, until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if practice is not None:
            _offer(console, practice, speed)
            for line in sys.stdin:
                _do(console, practice, line.strip())
        # reached if there are no exercises, or at the end of the input
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        console.print("Stopping: workers drain.")


def _offer(console: Console, practice: Practice, speed: int) -> None:
    monitoring = practice.monitoring
    console.print(
        f"Alerts: {monitoring.prometheus}/alerts   Alertmanager: {monitoring.alertmanager}/#/alerts\n"
        f"[bold]Practise an incident[/]: the rules of production, {speed} times faster: ten minutes take "
        f"{600 // speed} seconds here. This terminal shows what goes to Slack and PagerDuty. Type:",
        soft_wrap=True,
    )
    for name, (what, _) in practice.exercises.items():
        console.print(f"  {name:<11} {what}", highlight=False)


def _do(console: Console, practice: Practice, word: str) -> None:
    if word not in practice.exercises:
        console.print(f"type one of: {', '.join(practice.exercises)}", markup=False)
        return
    console.print(f"{time.strftime('%H:%M:%S')} {word}: started", markup=False)
    try:
        practice.begin(word)
    except NotBegun as why:
        console.print(f"{word}: {why}", markup=False, soft_wrap=True)
        return
    if word == "fix":
        console.print(f"{time.strftime('%H:%M:%S')} fix: done; the alerts end by themselves", markup=False)
