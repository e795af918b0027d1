"""fire-alerts.sh on a real Alertmanager: who is told, that it is marked as a test, and that it ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ops.servers import alertmanager, get_json
from tasks.demo.monitoring import write_routes
from tasks.demo.receivers import Receivers, receivers
from tests.ops.test_chain import MINUTES_ARE_SECONDS
from tests.ops.test_scripts import call
from tests.ops.tools import tool
from tests.support import eventually

pytestmark = pytest.mark.ops

REACHED = {
    ("slack", "MediaClusterFailuresHigh"),
    ("slack-oncall", "MediaClusterLatencyHighSustained"),
    ("slack", "MediaClusterStalled"),
    ("pagerduty", "MediaClusterStalled"),
}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Receivers]]:
    tool("prometheus-alertmanager")
    with receivers() as notes, alertmanager(tmp_path, write_routes(tmp_path, notes.url, MINUTES_ARE_SECONDS)) as url:
        yield url, notes


def test_the_alerts_reach_people_marked_as_tests_and_are_ended(served: tuple[str, Receivers]) -> None:
    url, notes = served

    for _ in range(2):  # twice is no more than once
        fired = call("fire-alerts.sh", "--environment", "production", "--yes", ALERTMANAGER_URL=url)
        assert fired.returncode == 0, fired.stderr
    eventually(lambda: notes.fired() == REACHED, within_s=30)
    held = get_json(f"{url}/api/v2/alerts")
    ended = call("fire-alerts.sh", "--environment", "production", "--yes", "--resolve", ALERTMANAGER_URL=url)
    eventually(lambda: notes.over() == REACHED, within_s=30)

    assert ended.returncode == 0, ended.stderr
    assert {alert["labels"]["synthetic"] for alert in held} == {"true"}
    assert {alert["labels"]["environment"] for alert in held} == {"production"}
    assert [alert["labels"]["alertname"] for alert in held if alert["endsAt"] <= alert["startsAt"]] == []
    titles = [one.body["attachments"][0]["title"] for one in notes.seen if one.receiver != "pagerduty"]
    assert [title for title in titles if "[TEST by tester]" not in title] == []


def test_verifying_waits_for_alertmanager_and_finds_nothing_wrong(served: tuple[str, Receivers]) -> None:
    url, notes = served

    verified = call("fire-alerts.sh", "--verify", ALERTMANAGER_URL=url, FIRE_ALERTS_SETTLE_S="3")

    assert verified.returncode == 0, verified.stderr
    assert "no attempt to notify failed" in verified.stdout
    assert notes.fired() == REACHED


def test_verifying_notices_that_notifications_do_not_get_out(tmp_path: Path) -> None:
    tool("prometheus-alertmanager")
    with receivers() as notes:
        config = write_routes(tmp_path, notes.url, MINUTES_ARE_SECONDS)
    # Slack and PagerDuty are gone

    with alertmanager(tmp_path, config) as url:
        verified = call("fire-alerts.sh", "--verify", ALERTMANAGER_URL=url, FIRE_ALERTS_SETTLE_S="8")

    assert verified.returncode == 1
    assert "attempts to notify failed" in verified.stderr
