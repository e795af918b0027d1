"""Integrations of other packages with Dramatiq work on this broker. The README lists the packages and their limits."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.middleware import Middleware, Retries
from dramatiq.rate_limits.backends import RedisBackend as RateLimits

from broker import RedisStreamsBroker
from tests.broker.scene import message, scene_on
from tests.support import eventually

ROOT = Path(__file__).parents[2]
# these warnings come from the packages, not from this broker
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")


@contextmanager
def working(redis_url: str, *middleware: Middleware) -> Iterator[RedisStreamsBroker]:
    """Yield a broker whose Worker runs until the end of the block and consumes every declared queue."""
    broker = RedisStreamsBroker(redis_url, middleware=[Retries(max_retries=0), *middleware], keeper_process=False)
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=2)
    worker.start()
    broker.emit_after("process_boot")
    try:
        yield broker
    finally:
        worker.stop()
        broker.close()


def printed(module: str, *arguments: str, env: dict[str, str] | None = None) -> Any:
    """Run a module as a program and return what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_sentry_reports_failures_and_killers_and_continues_traces(redis_url: str, redis_client: redis.Redis) -> None:
    with scene_on(redis_client, redis_url) as scene:
        scene.process("producer", max_deliveries=2).enqueue(message("killer"))
        scene.die_running("a", "b", "c")

        sent = printed("tests.works_with.sentry", redis_url)

    assert sent["failures"] == [["DeliveryLimitReached", "work"], ["ValueError", "fail"]]
    assert sent["jobs"] == [
        ["fail", "internal_error", True],
        ["succeed", "ok", True],
        ["work", "ok", False],
    ]


def test_opentelemetry_continues_traces_and_hides_options(redis_url: str) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry_instrumentor_dramatiq import DramatiqInstrumentor

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    DramatiqInstrumentor().instrument(tracer_provider=provider)
    try:
        with working(redis_url) as broker:

            @dramatiq.actor(broker=broker)
            def work() -> None:
                pass

            with provider.get_tracer("test").start_as_current_span("request") as request:
                work.send()
                hidden = work.send_with_options(unique_key="k")
            eventually(lambda: broker.counters("default")["acked"] == 2)
    finally:
        DramatiqInstrumentor().uninstrument()

    trace_id = request.get_span_context().trace_id
    spans = [one.name for one in exporter.get_finished_spans() if one.context and one.context.trace_id == trace_id]
    assert sorted(spans) == [
        "dramatiq.producer.work",
        "dramatiq.producer.work",
        "dramatiq.worker.WorkerThread",
        "dramatiq.worker.WorkerThread",
        "request",
    ]
    assert "unique_key" not in hidden.options
    assert hidden.options["options"]["unique_key"] == "k"


@pytest.mark.slow
def test_django_runs_jobs_with_results_admin_and_crontab(redis_url: str, tmp_path: Path) -> None:
    env = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.works_with.settings",
        "DATABASE": str(tmp_path / "db.sqlite3"),
        "REDIS_URL": redis_url,
    }

    answer = printed("tests.works_with.django_program", env=env)

    assert answer == {"result": 5, "outcomes": {"add": "done", "fail": "failed", "tick": "done"}}


def test_flask_runs_jobs_in_the_context_of_the_app(redis_url: str) -> None:
    from flask import Flask, current_app
    from flask_dramatiq import Dramatiq

    extension, ran = Dramatiq(), []

    def greet(name: str) -> None:
        ran.append(f"{current_app.name} greets {name}")

    actor = extension.actor(greet)
    app = Flask("shop")
    app.config.update(DRAMATIQ_BROKER="broker:RedisStreamsBroker", DRAMATIQ_BROKER_URL=redis_url)
    extension.init_app(app)
    actor.send("Ada")
    worker = dramatiq.Worker(extension.broker, worker_timeout=50, worker_threads=1)
    worker.start()
    try:
        eventually(lambda: ran == ["shop greets Ada"])
    finally:
        worker.stop()
        extension.broker.close()


@pytest.mark.slow
def test_dramatiq_abort_stops_running_and_cancels_delayed_messages(redis_url: str, redis_client: redis.Redis) -> None:
    from dramatiq_abort import Abort, Abortable, abort
    from dramatiq_abort.backends import RedisBackend
    from dramatiq_abort.middleware import AbortMode

    abortable, events = Abortable(backend=RedisBackend(client=redis_client)), []
    with working(redis_url, abortable) as broker:

        @dramatiq.actor(broker=broker)
        def nap(label: str) -> None:
            events.append(f"began {label}")
            try:
                while label == "long":
                    time.sleep(0.01)
            except Abort:
                events.append(f"aborted {label}")
                raise

        running = nap.send("long")
        eventually(lambda: events == ["began long"])
        abort(running.message_id, abortable)
        eventually(lambda: "aborted long" in events)
        delayed = nap.send_with_options(args=("delayed",), delay=300, unique_key="k")
        abort(delayed.message_id, abortable, mode=AbortMode.CANCEL)
        # coalesced with the cancelled message, but must run nevertheless
        nap.send_with_options(args=("next",), unique_key="k")
        broker.join("default", timeout=30_000)

    assert events == ["began long", "aborted long", "began next"]


def test_dramatiq_workflow_runs_the_last_step_after_a_group(redis_url: str, redis_client: redis.Redis) -> None:
    from dramatiq_workflow import Chain, Group, Workflow, WorkflowMiddleware

    ran: list[str] = []
    with working(redis_url, WorkflowMiddleware(RateLimits(client=redis_client))) as broker:

        @dramatiq.actor(broker=broker)
        def step(label: str) -> None:
            ran.append(label)

        group = Group(*(step.message(f"part {n}") for n in range(10)))
        Workflow(Chain(step.message("first"), group, step.message("last")), broker).run()
        eventually(lambda: ran[-1:] == ["last"])

    assert ran[0] == "first"
    assert sorted(ran[1:-1]) == [f"part {n}" for n in range(10)]


def test_periodiq_enqueues_periodic_actors_and_skips_old_runs(redis_url: str) -> None:
    import periodiq

    ran = []
    with working(redis_url, periodiq.PeriodiqMiddleware(skip_delay=30)) as broker:

        @dramatiq.actor(broker=broker, periodic=periodiq.cron("* * * * *"))
        def every_minute() -> None:
            ran.append("ran")

        scheduler = periodiq.Scheduler(actors=[every_minute])
        for now in (datetime(2020, 1, 1, tzinfo=UTC), datetime.now(UTC)):
            scheduler.send_actors([every_minute], now=now)
        broker.join("default", timeout=30_000)

    assert ran == ["ran"]


def test_readme_lists_the_tested_versions() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    tested = dict(re.findall(r"^([\w-]+) == ([\w.]+)$", setup["options.extras_require"]["works-with"], re.MULTILINE))
    readme = (ROOT / "broker" / "README.md").read_text()

    listed = dict(re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \|", readme, re.MULTILINE))

    assert listed == tested
