"""The committed rules are complete and match ``thresholds.yaml``. These tests need no external tool."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from ops.build import generated, rules_of
from ops.panels import ROWS
from ops.rules import QUERIES
from ops.tables import with_table
from ops.thresholds import FILE, Thresholds, thresholds
from sploot_cluster.errors import InvalidInput
from tasks.observe.backlog import HIGH_NOISE
from tasks.observe.metrics import DURATION_BUCKETS_S
from tests.ops.tools import OPS

COMMITTED = {path: yaml.safe_load(path.read_text()) for path in sorted((OPS / "alerts").glob("*.yaml"))}
RULES: list[dict[str, Any]] = [
    rule for file in COMMITTED.values() for group in file["groups"] for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
NAMES = [alert["alert"] for alert in ALERTS]


def test_committed_files_equal_the_generated_ones() -> None:
    stale = [path.name for path, text in generated(thresholds()).items() if path.read_text(encoding="utf-8") != text]

    assert stale == [], "run make ops-build"


def test_no_rule_file_is_left_from_an_older_build() -> None:
    assert {path.name for path in COMMITTED} == set(rules_of(thresholds()))


def test_every_signal_has_a_query_and_every_alert_one_rule() -> None:
    with_alerts = {name for name, signal in thresholds().signals.items() if signal.levels}

    assert set(QUERIES) == with_alerts
    assert sorted(NAMES) == sorted(thresholds().alerts)
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("alert", ALERTS, ids=NAMES)
def test_alert_has_its_annotations_and_labels(alert: dict[str, Any]) -> None:
    texts = alert["annotations"]

    assert set(texts) == {"summary", "description", "runbook_url", "dashboard_url"}
    assert not texts["summary"].endswith(".")
    assert "{{" not in texts["summary"]
    assert (
        "$value" in texts["description"] or "$labels" in texts["description"] or "No worker pod" in texts["description"]
    )
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert alert["labels"].get("page") in (None, "true")
    assert alert["labels"].get("page") is None or alert["labels"]["severity"] == "critical"


@pytest.mark.parametrize("alert", ALERTS, ids=NAMES)
def test_links_of_an_alert_lead_to_a_section_and_a_panel(alert: dict[str, Any]) -> None:
    headings = re.findall(r"^#+ (.+)$", (OPS / "runbook.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
    panels = {str(panel.id) for row in ROWS for panel in row.panels}

    runbook, dashboard = (urlsplit(alert["annotations"][name]) for name in ("runbook_url", "dashboard_url"))

    assert runbook.path.endswith("/ops/runbook.md")
    assert runbook.fragment in anchors
    assert dashboard.path.startswith("/d/media-cluster-observability/")
    assert dashboard.query.removeprefix("viewPanel=") in panels


def test_alert_levels_equal_those_of_the_specification() -> None:
    levels = {
        name: (alert["expr"].partition(" ")[2], alert.get("for", "")) for name, alert in zip(NAMES, ALERTS, strict=True)
    }

    assert levels["MediaClusterFailuresHigh"] == ("> 1", "")
    assert levels["MediaClusterFailuresSustained"] == ("> 1", "5m")
    assert levels["MediaClusterFailuresSpiking"] == ("> 3", "")
    assert levels["MediaClusterLatencyHigh"] == ("> 5", "")
    assert levels["MediaClusterLatencyHighSustained"] == ("> 5", "10m")
    assert levels["MediaClusterLatencyCritical"] == ("> 8", "")
    assert levels["MediaClusterLatencyCriticalSustained"] == ("> 8", "10m")
    assert levels["MediaClusterFeedbackFailed"] == ("> 0", "")
    assert levels["MediaClusterFeedbackFailingRepeatedly"] == (">= 2", "")
    assert levels["MediaClusterNoiseHigh"] == (">= 3", "")
    assert levels["MediaClusterPendingHigh"][0] == ">= 100"
    assert levels["MediaClusterPendingCritical"][0] == ">= 250"
    assert levels["MediaClusterStreamLagHigh"][0] == ">= 10"
    assert levels["MediaClusterStreamLagCritical"] == (">= 30", "5m")


def test_worker_buckets_and_noise_level_match_the_alerts() -> None:
    latency = {level.value for level in thresholds().signals["latency"].levels.values()}

    assert latency | {3} <= set(DURATION_BUCKETS_S)
    assert thresholds().signals["noise_count"].high_above == HIGH_NOISE
    assert f"more than {HIGH_NOISE} items" in thresholds().signals["noise"].what


def test_critical_level_is_never_below_a_warning_level() -> None:
    for signal in thresholds().signals.values():
        warnings = [level.value for level in signal.levels.values() if level.severity == "warning"]
        criticals = [level.value for level in signal.levels.values() if level.severity == "critical"]
        if warnings and criticals:
            assert min(warnings) <= min(criticals), signal.name


@pytest.mark.parametrize(
    ("spoilt", "problem"),
    [
        ("above: 1, severity: warning", "has 0 levels"),
        ("severity: warning, summary: Clustering", "severity is 'wrong'"),
        ("for: 5m, severity: critical", "'5 minutes' is not a duration"),
        ("above: 1, severity: warning, summary", "a warning pages"),
        ("above: 3, severity: critical, page: true", "unexpected keyword argument 'pages'"),
    ],
)
def test_error_for_an_invalid_threshold_names_the_alert(spoilt: str, problem: str) -> None:
    fixed = {
        "has 0 levels": spoilt.replace("above: 1, ", ""),
        "severity is 'wrong'": spoilt.replace("warning", "wrong"),
        "'5 minutes' is not a duration": spoilt.replace("5m", "5 minutes"),
        "a warning pages": spoilt.replace("warning", "warning, page: true"),
        "unexpected keyword argument 'pages'": spoilt.replace("page:", "pages:"),
    }[problem]

    with pytest.raises(InvalidInput, match="MediaCluster.*" + re.escape(problem)):
        Thresholds.from_text(FILE.read_text().replace(spoilt, fixed, 1))


def test_runbook_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="<!-- /thresholds -->"):
        with_table("# Runbook\n", thresholds())
