"""Tests for the table of incidents: ``make incidents`` runs each exercise of the demo, and follows the runbook.

They include the incidents of ``test_practice`` and slow ones: a frozen worker, for example, is only detected after a
time limit. Three run in a demo that is only twice as fast as production, because levels in seconds and per minute are
not sped up.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator

import pytest

from tasks.demo.monitoring import EXPORTER
from tests.ops import test_practice as practice
from tests.ops.test_practice import OnCall, demo, ends, leads_to, opened, under
from tests.ops.test_runbook import Block, sections

pytestmark = [pytest.mark.ops, pytest.mark.timeout(900)]

on_call = practice.on_call
# pytest runs tests in the order in which a module names them
test_healthy_demo_sends_no_notification = practice.test_healthy_demo_sends_no_notification
test_runbook_finds_and_resumes_a_paused_queue = practice.test_runbook_finds_and_resumes_a_paused_queue
test_runbook_replaces_crashed_workers = practice.test_runbook_replaces_crashed_workers_with_a_manual_one


def reported_once(on_call: OnCall, alert: str, *, pages: bool = True) -> None:
    """Check that the incident sent one message to Slack and, if the alert pages, one page, all about this alert."""
    expected = [("Slack", alert)] + ([("PagerDuty", alert)] if pages else [])
    assert sorted(on_call.incidents[-1].notified) == sorted(expected)


def redis_cli(on_call: OnCall, heading: str, command: str, argument: str = "") -> None:
    """Run a Redis command from the section with this heading; ``argument``, if given, replaces its last word."""
    (named,) = set(re.findall(rf"`({command}[^`]*)`", sections()[heading]))
    typed = f"{named.rpartition(' ')[0]} {argument}" if argument else named
    on_call.follow(Block(heading, (f'redis-cli -u "$REDIS_URL" {typed}',)))


def test_runbook_lets_redis_write_again(on_call: OnCall) -> None:
    on_call.begin("refuse")

    heading = opened(on_call, "MediaClusterRedisRefusesWrites")
    first, *_ = under(heading)
    output = on_call.follow(first)
    assert "min-replicas-to-write" in output.replace("\n", "")
    redis_cli(on_call, heading, "CONFIG SET min-replicas-to-write")

    ends(on_call, "PagerDuty: resolved MediaClusterRedisRefusesWrites")
    reported_once(on_call, "MediaClusterRedisRefusesWrites")


def test_runbook_gives_more_memory_to_a_full_redis(on_call: OnCall) -> None:
    alert = "MediaClusterRedisMemoryFull" if shutil.which(EXPORTER) else "MediaClusterRedisRefusesWrites"
    on_call.begin("full")

    heading = opened(on_call, alert)
    for block in under(heading):
        on_call.follow(block, codes={3})  # a purge cannot store its plan
    redis_cli(on_call, heading, "CONFIG SET maxmemory")

    ends(on_call, f"PagerDuty: resolved {alert}")
    reported_once(on_call, alert)


def test_page_about_an_unreachable_redis_resolves_when_it_is_back(on_call: OnCall) -> None:
    on_call.begin("dead")

    heading = opened(on_call, "MediaClusterRedisUnreachable")
    first, *_ = under(heading)
    on_call.follow(first, codes={1, 3})
    on_call.type("fix")  # done by the Platform team, who run Redis

    ends(on_call, "PagerDuty: resolved MediaClusterRedisUnreachable")
    reported_once(on_call, "MediaClusterRedisUnreachable")


def test_runbook_starts_a_scheduler(on_call: OnCall) -> None:
    on_call.begin("scheduler")

    heading = opened(on_call, "MediaClusterSchedulerStopped", within_s=300)
    (first,) = under(heading)
    on_call.follow(first)
    assert "`sploot-cluster scheduler`" in sections()[heading]
    with on_call.running("sploot-cluster scheduler"):
        ends(
            on_call, "Resolved [no environment]: The scheduler has stopped (MediaClusterSchedulerStopped)", within_s=150
        )
    reported_once(on_call, "MediaClusterSchedulerStopped", pages=False)


def test_runbook_starts_a_server(on_call: OnCall) -> None:
    on_call.begin("server")

    heading = opened(on_call, "MediaClusterServerDown")
    (first,) = under(heading)
    on_call.follow(first)
    assert "`sploot-cluster serve`" in sections()[heading]
    with on_call.running("sploot-cluster serve"):
        ends(on_call, "PagerDuty: resolved MediaClusterServerDown")
    reported_once(on_call, "MediaClusterServerDown")


def test_workers_that_crash_again_and_again_page_once(on_call: OnCall) -> None:
    on_call.begin("loop")

    heading = opened(on_call, "MediaClusterNoWorkers")
    (first,) = under(heading)
    on_call.follow(first)
    leads_to(sections()[heading], "Roll back a release")
    on_call.type("fix")  # stands for a rollback to the previous release

    ends(on_call, "PagerDuty: resolved MediaClusterNoWorkers")
    reported_once(on_call, "MediaClusterNoWorkers")


def test_runbook_replaces_frozen_workers(on_call: OnCall) -> None:
    on_call.begin("freeze")

    heading = opened(on_call, "MediaClusterWorkerStuck")
    first, *_ = under(heading)
    output = on_call.follow(first)
    pids = set(re.findall(r":(\d+):", output))
    assert pids
    assert "kill -9" in sections()[heading]
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)

    ends(on_call, "PagerDuty: resolved MediaClusterWorkerStuck")
    reported_once(on_call, "MediaClusterWorkerStuck")


# last in this demo, as in test_practice
test_runbook_captures_and_purges_poison_events = practice.test_runbook_captures_and_purges_poison_events


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnCall]:
    """An engineer whose demo is twice as fast as production."""
    with demo(tmp_path_factory.mktemp("patient"), 2) as person:
        yield person


def test_runbook_takes_a_hung_job_from_a_live_worker(patient: OnCall) -> None:
    patient.begin("hold")

    heading = opened(patient, "MediaClusterStreamLagCritical", within_s=400)
    (rescue,) = under(heading)
    patient.follow(rescue)

    ends(
        patient,
        "Resolved [no environment]: A worker has held a job for a very long time (MediaClusterStreamLagCritical)",
        within_s=400,
    )
    reported_once(patient, "MediaClusterStreamLagCritical", pages=False)


# in the slower demo, because a faster Prometheus ends its scrapes before a slow Redis answers
def test_runbook_finds_the_connection_that_makes_redis_slow(patient: OnCall) -> None:
    patient.begin("slow")

    heading = opened(patient, "MediaClusterRedisUnreachable", within_s=400)
    output = "".join(patient.follow(block, codes={3}) for block in under(heading))
    (connection,) = re.findall(r"(?m)^id=(\d+) .* name=nightly-report .*cmd=client", output)
    redis_cli(patient, heading, "CLIENT KILL ID", connection)

    ends(patient, "PagerDuty: resolved MediaClusterRedisUnreachable", within_s=400)
    reported_once(patient, "MediaClusterRedisUnreachable")


# in the slower demo, because two failures in the fifteen seconds of a faster one would be many per minute
def test_runbook_explains_corrections_that_fail(patient: OnCall) -> None:
    patient.begin("corrections")

    heading = opened(patient, "MediaClusterFeedbackFailingRepeatedly", within_s=400)
    first, *others = under(heading)
    output = patient.follow(first)
    assert "pet_id" in output
    for block in others:
        patient.follow(block)

    ends(patient, "PagerDuty: resolved MediaClusterFeedbackFailingRepeatedly", within_s=600)
    reported_once(patient, "MediaClusterFeedbackFailingRepeatedly")
