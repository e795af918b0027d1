"""Tests for the table of incidents: ``make incidents`` runs each exercise of the demo, and follows the runbook.

They include the incidents of ``test_practice`` and slow ones: a frozen worker, for example, is only detected after a
time limit.
"""

from __future__ import annotations

import os
import re
import signal

import pytest

from tests.ops import test_practice as practice
from tests.ops.test_practice import OnCall, ends, opened, under
from tests.ops.test_runbook import Block, sections

pytestmark = [pytest.mark.ops, pytest.mark.timeout(900)]

on_call = practice.on_call
# pytest runs tests in the order in which a module names them
test_healthy_demo_sends_no_notification = practice.test_healthy_demo_sends_no_notification
test_runbook_finds_and_resumes_a_paused_queue = practice.test_runbook_finds_and_resumes_a_paused_queue
test_runbook_replaces_crashed_workers = practice.test_runbook_replaces_crashed_workers_with_a_manual_one
test_runbook_takes_a_hung_job_from_a_live_worker = practice.test_runbook_takes_a_hung_job_from_a_live_worker


def test_runbook_lets_redis_write_again(on_call: OnCall) -> None:
    on_call.begin("refuse")

    heading = opened(on_call, "MediaClusterRedisRefusesWrites")
    first, _ = under(heading)
    output = on_call.follow(first)
    assert "min-replicas-to-write" in output.replace("\n", "")
    (command,) = re.findall(r"`(CONFIG SET min-replicas-to-write 0)`", sections()[heading])
    on_call.follow(Block(heading, (f'redis-cli -u "$REDIS_URL" {command}',)))

    ends(on_call, "PagerDuty: resolved MediaClusterRedisRefusesWrites")


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


# last, as in test_practice
test_runbook_captures_and_purges_poison_events = practice.test_runbook_captures_and_purges_poison_events
