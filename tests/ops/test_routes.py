"""Alertmanager's configuration: each alert to its receivers, secrets in files, nothing that it would take literally."""

from __future__ import annotations

import re

import pytest
import yaml

from ops.thresholds import Notification, thresholds
from tests.ops.tools import OPS, run

CONFIG = OPS / "config" / "alertmanager.yaml"
ALERTS = thresholds().alerts


def receivers_of(told: Notification) -> list[str]:
    """Slack is told of everything, @oncall where it is called, PagerDuty of what pages."""
    slack = "slack-oncall" if told.mention else "slack"
    return ["pagerduty", slack] if told.page else [slack]


def test_secrets_are_files_named_like_the_variables_and_no_variable_is_left_to_be_expanded() -> None:
    text = CONFIG.read_text()
    config = yaml.safe_load(text)

    assert config["global"]["slack_api_url_file"] == "/etc/alertmanager/secrets/SLACK_WEBHOOK_URL"
    pagers = [pager for receiver in config["receivers"] for pager in receiver.get("pagerduty_configs", [])]
    assert [pager["routing_key_file"] for pager in pagers] == ["/etc/alertmanager/secrets/PAGERDUTY_ROUTING_KEY"]
    assert re.findall(r"\$\{|\$[A-Z]", text) == []
    assert re.findall(r"hooks\.slack|routing_key:|api_url:", text) == []


def test_everything_that_is_told_is_also_told_to_be_over() -> None:
    receivers = yaml.safe_load(CONFIG.read_text())["receivers"]
    channels = [
        one for receiver in receivers for kind in receiver if kind.endswith("_configs") for one in receiver[kind]
    ]

    assert len(channels) == 3
    assert all(one["send_resolved"] for one in channels)
    slacks = [one for receiver in receivers for one in receiver.get("slack_configs", [])]
    assert {slack["channel"] for slack in slacks} == {"#sploot-media-alerts"}


def test_pagerduty_is_for_critical_alerts_alone() -> None:
    assert {told.severity for told in ALERTS.values() if "pagerduty" in receivers_of(told)} == {"critical"}


@pytest.mark.ops
def test_alertmanager_takes_its_configuration() -> None:
    checked = run("amtool", "check-config", CONFIG)

    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.ops
def test_prometheus_takes_its_configuration() -> None:
    checked = run("promtool", "check", "config", OPS / "config" / "prometheus.yaml")

    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.ops
@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_reaches_its_receivers(name: str) -> None:
    labels = [f"{label}={value}" for label, value in ALERTS[name].labels.items()]
    wanted = ",".join(receivers_of(ALERTS[name]))

    routed = run(
        "amtool",
        "config",
        "routes",
        "test",
        f"--config.file={CONFIG}",
        f"--verify.receivers={wanted}",
        f"alertname={name}",
        *labels,
    )

    assert routed.returncode == 0, routed.stdout + routed.stderr


@pytest.mark.ops
def test_a_warning_that_says_it_pages_does_not_page() -> None:
    routed = run(
        "amtool", "config", "routes", "test", f"--config.file={CONFIG}", "alertname=X", "severity=warning", "page=true"
    )

    assert routed.stdout.strip() == "slack"
