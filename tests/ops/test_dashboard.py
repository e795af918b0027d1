"""Tests that the committed dashboard has the right name, layout and links, and that every panel draws data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from ops.dashboard import FILE, MACROS, explore_url, job_logs, rows
from ops.rules import alerts
from tasks.observe.metrics import OPERATIONS
from tests.ops.history import served_history
from tests.ops.picture import answers, draw
from tests.ops.servers import Prometheus
from tests.ops.tools import tool

BOARD: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
IDS = [f"{panel['id']} {panel['title']}" for panel in PANELS]


def test_dashboard_has_the_specified_title_and_uid() -> None:
    assert BOARD["title"] == "Media Clustering \N{EN DASH} Pipeline Health"
    assert BOARD["uid"] == "media-cluster-observability"
    assert len(BOARD["uid"]) <= 40
    assert all(f"/d/{BOARD['uid']}/" in alert.annotations["dashboard_url"] for alert in alerts().values())


def test_rows_of_the_specification_come_first_and_in_order() -> None:
    titles = [panel["title"] for panel in BOARD["panels"] if panel["type"] == "row"]

    assert titles[:4] == ["Outcomes Overview", "Throughput & Latency", "Feedback Activity", "Backlog"]
    assert titles == [title for title, _ in rows()]
    assert all(not panel.get("collapsed") for panel in BOARD["panels"] if panel["type"] == "row")


def test_panels_do_not_overlap_or_exceed_the_width() -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in BOARD["panels"]]

    for title, at in places:
        assert at["x"] + at["w"] <= 24, title
    for (title, one), (other_title, other) in combinations(places, 2):
        are_next_to = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        are_below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert are_next_to or are_below, f"{title} and {other_title}"


def test_every_panel_has_a_unique_id_and_a_description() -> None:
    ids = [panel["id"] for panel in BOARD["panels"]]

    assert len(set(ids)) == len(ids)
    assert [panel["title"] for panel in PANELS if len(panel["description"]) < 20] == []
    assert {panel["datasource"]["uid"] for panel in PANELS} == {"${prometheus_datasource}"}


def test_threshold_lines_equal_the_alert_levels() -> None:
    lines = {
        panel["title"]: [
            (step["color"], step["value"]) for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1:]
        ]
        for panel in PANELS
        if panel["type"] == "timeseries"
    }

    assert lines["Job throughput"] == [("orange", 1), ("red", 3)]
    assert lines["Job duration"] == [("orange", 5), ("red", 8)]
    assert lines["Pending jobs"] == [("orange", 100), ("red", 250)]
    assert lines["Stream lag"] == [("orange", 10), ("red", 30)]
    assert lines["Error budget burn rate"] == [("orange", 1), ("orange", 3), ("red", 6), ("red", 14.4)]
    assert lines["Workers"] == [("red", 1)]
    assert lines["Added and done"] == []


def test_redis_memory_panel_shows_alert_thresholds() -> None:
    (panel,) = [panel for panel in PANELS if panel["title"] == "Redis memory"]

    queries = {target["legendFormat"]: target["expr"] for target in panel["targets"]}

    limit = f"redis_memory_max_bytes{{{MACROS['$scope']}}} > 0 or redis_total_system_memory_bytes{{{MACROS['$scope']}}}"
    assert queries["warning"] == f"0.8 * max({limit})"
    assert queries["critical"] == f"0.95 * max({limit})"


def test_link_to_correction_logs_covers_every_operation() -> None:
    (panel,) = [panel for _, panels in rows() for panel in panels if panel.title == "Feedback operations"]

    assert [actor for actor in OPERATIONS if actor not in panel.logs] == []


def test_legends_name_the_backend_as_the_runbook_does() -> None:
    legends = [target["legendFormat"] for panel in PANELS for target in panel["targets"] if "legendFormat" in target]

    assert {"p50 backend_used={{backend}}", "p95 backend_used={{backend}}"} <= set(legends)
    assert [legend for legend in legends if "{{backend}}" in legend and "backend_used={{backend}}" not in legend] == []


def test_only_links_to_logs_filter_by_pet() -> None:
    assert "pet_id" not in json.dumps([panel["targets"] for panel in PANELS])
    assert "pet_id" in [variable["name"] for variable in BOARD["templating"]["list"]]


def test_links_to_logs_decode_to_valid_queries() -> None:
    links = [
        link["url"]
        for panel in PANELS
        for link in panel["fieldConfig"]["defaults"].get("links", [])
        if link["url"].startswith("/explore")
    ]
    filled = [
        link.replace("${loki_datasource}", "loki").replace("${__from}", "1").replace("${__to}", "2") for link in links
    ]

    assert len(links) >= 8
    for link in filled:
        (left,) = parse_qs(urlsplit(link).query)["left"]
        asked = json.loads(left)
        assert asked["datasource"] == "loki"
        assert asked["range"] == {"from": "1", "to": "2"}
        assert asked["queries"][0]["expr"].startswith(
            '{service="sploot-cluster"} | json | logger="sploot-cluster.queue"'
        )
    assert "${__from}" in explore_url(job_logs())


def test_dashboard_annotates_deploys_incidents_and_alerts() -> None:
    marks = {mark["name"]: mark for mark in BOARD["annotations"]["list"]}

    assert set(marks) == {"Deploys", "Releases", "Incidents", "Alerts"}
    assert "cluster_build_info" in marks["Releases"]["expr"]
    assert marks["Deploys"]["target"]["tags"] == ["sploot-cluster", "deploy"]


# -- the rules of Grafana's dashboard linter that ops/README.md lists -----------------------------------------------

# panels of recorded values and alerts, which have no job and no instance
WITHOUT_JOB = {"Alerts firing", "Firing alerts", "Error budget left", "Days in the budget", "Error budget burn rate"}


def test_dashboard_has_the_variables_of_the_linter() -> None:
    variables = {variable["name"]: variable for variable in BOARD["templating"]["list"]}

    sources = {name: one["label"] for name, one in variables.items() if one["type"] == "datasource"}
    assert sources == {"prometheus_datasource": "Prometheus data source", "loki_datasource": "Loki data source"}
    for name in ("job", "instance"):
        one = variables[name]
        assert (one["multi"], one["includeAll"], one["allValue"], one["label"]) == (True, True, ".+", name)
    for name in ("cluster", "namespace"):
        # outside Kubernetes, series have neither of the two labels
        assert (variables[name]["multi"], variables[name]["allValue"]) == (True, ".*")
    assert {one["refresh"] for one in variables.values() if one["type"] == "query"} == {2}
    assert BOARD["editable"] is False


@pytest.mark.parametrize("panel", PANELS, ids=IDS)
def test_panel_meets_the_rules_of_the_linter(panel: dict[str, Any]) -> None:
    wanted = [f'{name}=~"${name}"' for name in ("cluster", "namespace", "job", "instance")]
    if panel["title"] in WITHOUT_JOB:
        wanted = wanted[:2]
    unit = panel["fieldConfig"]["defaults"]["unit"]

    assert panel["title"]
    assert panel["description"]
    assert panel["targets"]
    assert ":" not in unit
    for target in panel["targets"]:
        selectors = re.findall(r"\{([^}]*)\}", target["expr"])
        assert selectors
        assert [matcher for selector in selectors for matcher in wanted if matcher not in selector] == []
        windows = re.findall(r"\b(?:rate|increase)\([^\[]*\[([^\]]+)\]", target["expr"])
        counters = re.findall(r"\w+_total\{", target["expr"])
        assert len(counters) == len(re.findall(r"\b(?:rate|increase)\(\w+_total\{", target["expr"]))
        # a tile for the displayed time range adds up the whole range at one instant
        assert set(windows) <= ({"$__range"} if target.get("instant") else {"$__rate_interval"})


# the first test also waits until the history is generated and all rules are evaluated on it
SERVED = pytest.mark.timeout(280)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, float]]:
    tool("promtool")
    tool("prometheus")
    with served_history(tmp_path_factory.mktemp("history")) as served:
        yield served


@pytest.mark.ops
@SERVED
@pytest.mark.parametrize("panel", PANELS, ids=IDS)
def test_panel_draws_three_hours_of_history(panel: dict[str, Any], history: tuple[Prometheus, float]) -> None:
    for target in panel["targets"]:
        found = answers(history[0], {**panel, "targets": [target]}, history[1])

        assert found, target["expr"]
        assert any(np.isfinite(series.values).any() for series in found), target["expr"]
        if panel["type"] in ("timeseries", "heatmap"):
            assert max(len(series.values) for series in found) > 100, target["expr"]
        wanted = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
        assert [series.labels for series in found if not wanted <= set(series.labels)] == []


@pytest.mark.ops
@SERVED
def test_history_contains_its_incidents(history: tuple[Prometheus, float]) -> None:
    server, end = history

    def highest(promql: str) -> float:
        series = server.query_range(promql, start=end - 10_800, end=end, step_s=30)
        return max(float(value) for one in series for _, value in one["values"])

    assert highest("media_cluster:failure_ratio:5m") > 0.01
    assert highest("max(media_cluster_undelivered_jobs)") > 100
    assert highest("max(cluster_noise_high_streak)") >= 3
    assert "MediaClusterDeadLettersNew" in {alert["labels"]["alertname"] for alert in server.alerts()}


@pytest.mark.ops
@SERVED
def test_picture_of_the_dashboard_is_drawn(history: tuple[Prometheus, float], tmp_path: Path) -> None:
    draw(*history, tmp_path / "dashboard.png")

    drawn = (tmp_path / "dashboard.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    # an empty picture has a tenth of this size
    assert len(drawn) > 200_000
