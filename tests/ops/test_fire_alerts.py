"""Tests of fire-alerts.sh on a real Alertmanager: test alerts reach their receivers, are marked as tests, and end."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ops.rules import alerts
from tasks.demo.monitoring import write_routes
from tasks.demo.receivers import Receivers, receivers
from tests.ops.servers import alertmanager, get_json
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


def test_fired_alerts_are_marked_as_tests_and_resolve(served: tuple[str, Receivers]) -> None:
    url, notes = served

    for _ in range(2):  # a second run adds no alert
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


def test_verify_succeeds_when_notifications_arrive(served: tuple[str, Receivers]) -> None:
    url, notes = served

    verified = call("fire-alerts.sh", "--verify", ALERTMANAGER_URL=url, FIRE_ALERTS_SETTLE_S="3")

    assert verified.returncode == 0, verified.stderr
    assert "no notification failed" in verified.stdout
    assert notes.fired() == REACHED


def test_verify_fails_when_notifications_fail(tmp_path: Path) -> None:
    tool("prometheus-alertmanager")
    with receivers() as notes:
        config = write_routes(tmp_path, notes.url, MINUTES_ARE_SECONDS)
    # the stand-ins for Slack and PagerDuty have ended

    with alertmanager(tmp_path, config) as url:
        verified = call("fire-alerts.sh", "--verify", ALERTMANAGER_URL=url, FIRE_ALERTS_SETTLE_S="8")

    assert verified.returncode == 1
    assert "notifications failed" in verified.stderr


# -- a test of an alert while the alert itself is active ---------------------------------------------------------------

NO_WORKERS = "MediaClusterNoWorkers"
PAGER = ("pagerduty", NO_WORKERS)


def post(url: str, *, environment: str, is_over: bool = False, alert: str = NO_WORKERS, **labels: str) -> None:
    """Post an alert to Alertmanager as Prometheus does."""
    now = datetime.now(UTC)
    rule = alerts()[alert]
    body = {
        "labels": {
            "alertname": alert,
            **rule.labels,
            "environment": environment,
            **labels,
        },
        "annotations": {"summary": rule.annotations["summary"], "description": f"real, in {environment}"},
        "startsAt": (now - timedelta(seconds=1)).isoformat(),
        "endsAt": (now if is_over else now + timedelta(hours=1)).isoformat(),
    }
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/api/v2/alerts", json.dumps([body]).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


def smoke(url: str, *more: str) -> None:
    fired = call("fire-alerts.sh", "--alert", NO_WORKERS, *more, ALERTMANAGER_URL=url)
    assert fired.returncode == 0, fired.stderr


def pages(notes: Receivers) -> dict[str, list[tuple[str, str]]]:
    """Return the events of each PagerDuty incident by its key; an event is (action, environment and kind)."""
    incidents: dict[str, list[tuple[str, str]]] = {}
    kinds: dict[str, str] = {}
    for one in notes.seen:
        if one.receiver == "pagerduty":
            body, key = one.body, one.body["dedup_key"]
            if "payload" in body:
                text = json.dumps(body["payload"])
                kind = "test" if "[TEST by" in text else "real"
                assert ("Nothing is wrong" in text) == (kind == "test")
                kinds[key] = f"{body['payload']['custom_details']['environment']} {kind}"
            incidents.setdefault(key, []).append((body["event_action"], kinds[key]))
    return incidents


def kinds_of(notes: Receivers) -> set[str]:
    return {kind for sent in pages(notes).values() for _, kind in sent}


def resolved(notes: Receivers) -> set[str]:
    return {kind for sent in pages(notes).values() for action, kind in sent if action == "resolve"}


def assert_every_incident_has_one_kind(notes: Receivers) -> None:
    for sent in pages(notes).values():
        assert len({kind for _, kind in sent}) == 1, sent


@pytest.mark.parametrize("real_first", [True, False], ids=["real first", "test first"])
def test_smoke_test_during_an_incident_is_a_separate_page(served: tuple[str, Receivers], real_first: bool) -> None:
    url, notes = served
    seen: set[str] = set()
    for is_real in (real_first, not real_first):
        if is_real:
            post(url, environment="staging")
        else:
            smoke(url)
        seen.add("staging real" if is_real else "staging test")
        eventually(lambda: kinds_of(notes) == seen, within_s=30)

    smoke(url, "--resolve")
    eventually(lambda: "staging test" in resolved(notes), within_s=30)
    assert "staging real" not in resolved(notes)
    post(url, environment="staging", is_over=True)
    eventually(lambda: "staging real" in resolved(notes), within_s=30)

    assert len(pages(notes)) == 2
    assert_every_incident_has_one_kind(notes)
    titles = [one.body["attachments"][0]["title"] for one in notes.seen if one.receiver == "slack"]
    assert {"[TEST by" in title for title in titles} == {True, False}


def test_real_alert_resolves_while_its_test_continues(served: tuple[str, Receivers]) -> None:
    url, notes = served
    post(url, environment="staging")
    smoke(url)
    eventually(lambda: kinds_of(notes) == {"staging real", "staging test"}, within_s=30)

    post(url, environment="staging", is_over=True)

    eventually(lambda: resolved(notes) == {"staging real"}, within_s=30)
    assert_every_incident_has_one_kind(notes)


def test_alert_in_two_environments_sends_two_pages(served: tuple[str, Receivers]) -> None:
    url, notes = served

    for environment in ("staging", "production"):
        post(url, environment=environment)
    eventually(lambda: kinds_of(notes) == {"staging real", "production real"}, within_s=30)
    post(url, environment="staging", is_over=True)
    eventually(lambda: resolved(notes) == {"staging real"}, within_s=30)

    assert len(pages(notes)) == 2
    summaries = {one.body["payload"]["summary"] for one in notes.seen if "payload" in one.body}
    assert any(summary.startswith("[staging] ") for summary in summaries)
    assert any(summary.startswith("[production] ") for summary in summaries)
    slacks = [one.body["attachments"][0] for one in notes.seen if one.receiver == "slack"]
    shown = {field["value"].strip() for one in slacks for field in one["fields"] if field["title"] == "Environment"}
    assert shown == {"staging", "production"}
    assert {"[staging]" in one["title"] for one in slacks} == {True, False}


@pytest.mark.parametrize("apart", [{"synthetic": "true"}, {"environment": "production"}, {"namespace": "other"}])
def test_critical_alert_inhibits_no_warning_with_other_labels(
    served: tuple[str, Receivers], apart: dict[str, str]
) -> None:
    url, notes = served
    labels: dict[str, Any] = {"environment": "staging", **apart}
    post(url, **labels)
    eventually(lambda: PAGER in notes.fired(), within_s=30)

    post(url, environment="staging", alert="MediaClusterWorkerDown")
    post(url, environment="staging", alert="MediaClusterSampleOld")

    eventually(lambda: {("slack", "MediaClusterWorkerDown"), ("slack", "MediaClusterSampleOld")} <= notes.fired())


def test_missing_workers_alert_inhibits_the_old_sample_alert_it_causes(served: tuple[str, Receivers]) -> None:
    url, notes = served
    post(url, environment="staging")
    eventually(lambda: PAGER in notes.fired(), within_s=30)

    post(url, environment="staging", alert="MediaClusterSampleOld")
    post(url, environment="production", alert="MediaClusterSampleOld")

    eventually(lambda: ("slack", "MediaClusterSampleOld") in notes.fired(), within_s=30)
    slacks = [one.body["attachments"][0]["title"] for one in notes.seen if one.alert == "MediaClusterSampleOld"]
    assert [title for title in slacks if "[staging]" in title] == []
