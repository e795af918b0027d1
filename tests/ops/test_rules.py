"""Tests that the rules have the labels and links that Alertmanager, the runbook, the dashboard and the scripts need."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from ops.dashboard import FILE, UID, dashboard_json, rows
from ops.rules import FOLDER, Alert, alerts, levels, lines, rules
from tasks.observe.figures.noise import HIGH_NOISE
from tasks.observe.metrics import DURATION_BUCKETS_S
from tests.ops.tools import OPS, ROOT, tool

ALERTS = alerts()
CONSOLE = ROOT / "sploot_cluster" / "api" / "console" / "static" / "thresholds.json"


def test_committed_dashboard_equals_the_generated_one() -> None:
    assert FILE.read_text(encoding="utf-8") == dashboard_json(), "run make ops-build"


def test_every_alert_has_a_unique_name() -> None:
    assert len(ALERTS) == len([rule for rule in rules() if "alert" in rule])


@pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)
def test_alert_has_its_annotations_and_labels(alert: Alert) -> None:
    texts, labels = alert.annotations, alert.labels

    assert set(texts) == {"summary", "description", "runbook_url", "dashboard_url"}
    assert not texts["summary"].endswith(".")
    assert "{{" not in texts["summary"]
    assert "{{" in texts["description"] or alert.name in ("MediaClusterNoWorkers", "MediaClusterWatchdog")
    assert set(labels) <= {"service", "family", "severity", "page", "urgency", "mention"}
    assert labels["service"] == "sploot-cluster"
    assert labels["severity"] in ("warning", "critical") or alert.name == "MediaClusterWatchdog"
    assert labels.get("page") in (None, "true")
    assert not alert.pages or alert.severity == "critical"
    assert labels.get("urgency") in (None, "high")
    assert "urgency" not in labels or alert.pages
    assert labels.get("mention") in (None, "oncall")


@pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)
def test_links_of_an_alert_lead_to_its_section_and_a_panel(alert: Alert) -> None:
    headings = re.findall(r"^### (.+)$", (OPS / "runbook.md").read_text(), re.MULTILINE)
    panels = {str(panel.id) for _, panels in rows() for panel in panels}

    runbook, dashboard = (urlsplit(alert.annotations[name]) for name in ("runbook_url", "dashboard_url"))

    assert alert.name in headings
    assert runbook.path.endswith("/ops/runbook.md")
    assert runbook.fragment == alert.name.lower()
    assert dashboard.path.startswith(f"/d/{UID}/")
    assert dashboard.query.removeprefix("viewPanel=") in panels


def test_runbook_explains_only_existing_alerts() -> None:
    text = (OPS / "runbook.md").read_text()

    assert set(re.findall(r"\bMediaCluster\w+", text)) - set(ALERTS) == set()


def test_every_recorded_value_is_used_by_an_alert_or_a_panel() -> None:
    names = {rule["record"] for rule in rules() if "record" in rule}
    queries = [promql for _, panels in rows() for panel in panels for promql in panel.queries.values()]
    used = {
        name
        for expr in [*(rule["expr"] for rule in rules()), *queries]
        for name in re.findall(r"media_cluster:[\w:]+", expr)
    }

    assert names == used


def test_rules_keep_the_namespaces_of_releases_apart() -> None:
    exempt = {
        rule["record"] for rule in rules() if "record" in rule and rule["record"].endswith(("watched_since", ":new"))
    }
    aggregations = [
        (rule.get("record") or rule["alert"], group)
        for rule in rules()
        for group in re.findall(r"\b(?:sum|max|min|count) (by \([^)]*\)|\()", rule["expr"])
        if rule.get("record") not in exempt
    ]

    wrong = [name for name, group in aggregations if not group.startswith("by (cluster, namespace")]
    assert set(wrong) <= {"media_cluster:workers_up"}, "only a Prometheus that never saw a pod has no namespace"


def test_all_rules_use_a_value_until_two_minutes_after_its_scrape() -> None:
    windows = {window for rule in rules() for window in re.findall(r"last_over_time\([^\[]*\[(\w+)\]", rule["expr"])}

    assert windows == {"2m"}


def test_alert_levels_equal_those_of_the_specification() -> None:
    found = {name: (f"{alert.comparator} {alert.level:g}", alert.hold) for name, alert in ALERTS.items()}

    assert found["MediaClusterFailuresHigh"] == ("> 1", "")
    assert found["MediaClusterFailuresSustained"] == ("> 1", "5m")
    assert found["MediaClusterFailuresSpiking"] == ("> 3", "")
    assert found["MediaClusterLatencyHigh"] == ("> 5", "")
    assert found["MediaClusterLatencyHighSustained"] == ("> 5", "10m")
    assert found["MediaClusterLatencyCritical"] == ("> 8", "")
    assert found["MediaClusterLatencyCriticalSustained"] == ("> 8", "10m")
    assert found["MediaClusterFeedbackFailed"] == ("> 0", "")
    assert found["MediaClusterFeedbackFailingRepeatedly"] == (">= 2", "")
    assert found["MediaClusterNoiseHigh"] == (">= 3", "")
    assert found["MediaClusterPendingHigh"][0] == ">= 100"
    assert found["MediaClusterPendingCritical"][0] == ">= 250"
    assert found["MediaClusterStreamLagHigh"][0] == ">= 10"
    assert found["MediaClusterStreamLagCritical"] == (">= 30", "5m")


def test_worker_buckets_and_noise_level_match_the_alerts() -> None:
    (noise,) = (panel for _, panels in rows() for panel in panels if panel.title == "Noise count")

    assert {alert.level for alert in levels("latency")} | {3} <= set(DURATION_BUCKETS_S)
    assert noise.look.bad_above == HIGH_NOISE
    assert f"more than {HIGH_NOISE} items" in ALERTS["MediaClusterNoiseHigh"].annotations["description"]


def test_critical_level_is_never_below_a_warning_level() -> None:
    for signal in {alert.signal for alert in ALERTS.values() if alert.comparator != "<"}:
        drawn = dict(lines(signal))
        assert drawn.get("warning", 0) <= drawn.get("critical", float("inf")), signal


def test_console_colours_numbers_at_the_levels_of_their_alerts() -> None:
    given = json.loads(CONSOLE.read_text())
    watched = {signal: levels_of for signal, levels_of in given.items() if levels(signal)}

    assert {"pending", "lag", "oldest_age", "recluster_age"} <= set(watched)
    for signal, levels_of in watched.items():
        assert {levels_of["comparator"]} == {alert.comparator for alert in levels(signal)}
        assert {name: levels_of[name] for name in ("warning", "critical") if levels_of[name] is not None} == dict(
            lines(signal)
        )


INCIDENTS = json.loads(CONSOLE.with_name("incidents.json").read_text())


@pytest.mark.parametrize("incident", INCIDENTS, ids=[one["alert"] for one in INCIDENTS])
def test_incident_of_the_console_has_the_threshold_of_its_alert(incident: dict[str, Any]) -> None:
    alert = ALERTS[incident["alert"]]

    assert alert.severity == incident["level"]
    assert (alert.comparator, alert.level) == (incident["comparator"], incident["value"])


def test_fire_alerts_reads_labels_and_links_of_every_alert(tmp_path: Path) -> None:
    for program in ("bash", "dirname", "cat", "env", "curl", "jq", "awk", "id"):
        (tmp_path / program).symlink_to(tool(program))
    # without amtool, the script does not look up receivers, which would take a process per alert
    script = [str(OPS / "scripts" / "fire-alerts.sh"), "--dry-run", "--all"]
    printed = subprocess.run(script, capture_output=True, text=True, check=True, env={"PATH": str(tmp_path)}).stdout

    sent = json.loads(printed)

    read = {one["labels"]["alertname"]: one for one in sent}
    assert set(read) == set(ALERTS)
    for name, alert in ALERTS.items():
        labels = read[name]["labels"]
        assert {key: labels[key] for key in alert.labels} == alert.labels
        assert {key: read[name]["annotations"][key] for key in ("runbook_url", "dashboard_url")} == {
            key: alert.annotations[key] for key in ("runbook_url", "dashboard_url")
        }
        assert read[name]["annotations"]["summary"].endswith(f"] {alert.annotations['summary']}")


def test_every_file_of_rules_has_a_file_of_tests() -> None:
    files = {path.name for path in FOLDER.glob("*.yaml")}

    assert files <= {path.name for path in (FOLDER / "tests").glob("*.yaml")}
    for name in files:
        assert yaml.safe_load((FOLDER / "tests" / name).read_text())["rule_files"] == [f"../{name}"]
