"""Tests that Alertmanager's configuration routes each alert to its receivers and reads secrets from files."""

from __future__ import annotations

import re

import pytest
import yaml

from ops.rules import Alert, alerts
from tests.ops.tools import OPS, run

CONFIG = OPS / "config" / "alertmanager.yaml"
ALERTS = alerts()


def receivers_of(alert: Alert) -> list[str]:
    """Return the expected receivers of an alert: Slack always, and PagerDuty if it pages."""
    if alert.severity == "none":
        return ["watchdog"]
    slack = "slack-oncall" if alert.labels.get("mention") else "slack"
    return ["pagerduty", slack] if alert.pages else [slack]


def test_secrets_are_files_and_no_variable_is_left_to_expand() -> None:
    text = CONFIG.read_text()
    config = yaml.safe_load(text)

    assert config["global"]["slack_api_url_file"] == "/etc/alertmanager/secrets/SLACK_WEBHOOK_URL"
    pagers = [pager for receiver in config["receivers"] for pager in receiver.get("pagerduty_configs", [])]
    assert [pager["routing_key_file"] for pager in pagers] == ["/etc/alertmanager/secrets/PAGERDUTY_ROUTING_KEY"]
    assert re.findall(r"\$\{|\$[A-Z]", text) == []
    assert re.findall(r"hooks\.slack|routing_key:|api_url:", text) == []


def test_every_receiver_gets_resolved_notifications() -> None:
    receivers = yaml.safe_load(CONFIG.read_text())["receivers"]
    channels = [
        one for receiver in receivers for kind in receiver if kind.endswith("_configs") for one in receiver[kind]
    ]

    assert len(channels) == 3
    assert all(one["send_resolved"] for one in channels)
    slacks = [one for receiver in receivers for one in receiver.get("slack_configs", [])]
    assert {slack["channel"] for slack in slacks} == {"#sploot-media-alerts"}


def test_pagerduty_receives_critical_alerts_only() -> None:
    assert {alert.severity for alert in ALERTS.values() if "pagerduty" in receivers_of(alert)} == {"critical"}


@pytest.mark.ops
def test_alertmanager_accepts_its_configuration() -> None:
    checked = run("amtool", "check-config", CONFIG)

    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.ops
def test_prometheus_accepts_its_configuration() -> None:
    checked = run("promtool", "check", "config", OPS / "config" / "prometheus.yaml")

    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.ops
@pytest.mark.parametrize("name", ALERTS)
def test_alert_is_routed_to_its_receivers(name: str) -> None:
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
def test_warning_with_page_label_does_not_page() -> None:
    routed = run(
        "amtool", "config", "routes", "test", f"--config.file={CONFIG}", "alertname=X", "severity=warning", "page=true"
    )

    assert routed.stdout.strip() == "slack"
