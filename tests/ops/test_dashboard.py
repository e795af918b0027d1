"""The dashboard as it is committed: laid out, named as others rely on, and drawn from data by every panel."""

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

from ops.build import DASHBOARD
from ops.dashboard import explore_url, job_logs
from ops.history import served_history
from ops.panels import ROWS
from ops.picture import answers, draw
from ops.servers import Prometheus
from ops.thresholds import thresholds
from tasks.observe.metrics import OPERATIONS
from tests.ops.tools import tool

BOARD: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
IDS = [f"{panel['id']} {panel['title']}" for panel in PANELS]


def test_it_has_the_name_and_the_address_that_others_link_to() -> None:
    assert BOARD["title"] == "Media Clustering \N{EN DASH} Pipeline Health"
    assert BOARD["uid"] == "media-cluster-observability"
    assert len(BOARD["uid"]) <= 40
    assert f"/d/{BOARD['uid']}/" in thresholds().dashboard_url


def test_the_specifications_rows_come_first_and_in_its_order() -> None:
    rows = [panel["title"] for panel in BOARD["panels"] if panel["type"] == "row"]

    assert rows[:4] == ["Outcomes Overview", "Throughput & Latency", "Feedback Activity", "Backlog"]
    assert rows == [row.title for row in ROWS]
    assert all(not panel.get("collapsed") for panel in BOARD["panels"] if panel["type"] == "row")


def test_no_panel_lies_on_another_or_beyond_the_edge() -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in BOARD["panels"]]

    for title, at in places:
        assert at["x"] + at["w"] <= 24, title
    for (title, one), (other_title, other) in combinations(places, 2):
        candidate = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert candidate or above, f"{title} and {other_title}"


def test_ids_are_unique_and_every_panel_says_what_it_shows() -> None:
    ids = [panel["id"] for panel in BOARD["panels"]]

    assert len(set(ids)) == len(ids)
    assert [panel["title"] for panel in PANELS if len(panel["description"]) < 20] == []
    assert {panel["datasource"]["uid"] for panel in PANELS} == {"${metrics}"}


def test_lines_are_where_the_alerts_are() -> None:
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


def test_the_memory_of_redis_has_the_lines_of_its_alerts() -> None:
    (panel,) = [panel for panel in PANELS if panel["title"] == "Redis memory"]

    told = {target["legendFormat"]: target["expr"] for target in panel["targets"]}

    assert told["warning"] == "0.8 * max(redis_memory_max_bytes > 0)"
    assert told["critical"] == "0.95 * max(redis_memory_max_bytes > 0)"


def test_the_logs_of_corrections_are_those_of_every_kind() -> None:
    (panel,) = [panel for row in ROWS for panel in row.panels if panel.title == "Feedback operations"]

    assert [actor for actor in OPERATIONS if actor not in panel.logs] == []


def test_legends_show_the_backend_as_the_runbook_calls_it() -> None:
    legends = [target["legendFormat"] for panel in PANELS for target in panel["targets"] if "legendFormat" in target]

    assert {"p50 backend_used={{backend}}", "p95 backend_used={{backend}}"} <= set(legends)
    assert [legend for legend in legends if "{{backend}}" in legend and "backend_used={{backend}}" not in legend] == []


def test_no_pet_is_asked_for_in_a_query_and_logs_can_be_asked_for_one() -> None:
    assert "pet_id" not in json.dumps([panel["targets"] for panel in PANELS])
    assert "pet_id" in [variable["name"] for variable in BOARD["templating"]["list"]]


def test_links_to_logs_lead_to_a_query_that_grafana_can_read() -> None:
    links = [
        link["url"]
        for panel in PANELS
        for link in panel["fieldConfig"]["defaults"].get("links", [])
        if link["url"].startswith("/explore")
    ]
    filled = [link.replace("${logs}", "loki").replace("${__from}", "1").replace("${__to}", "2") for link in links]

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


def test_deploys_incidents_and_alerts_are_marked() -> None:
    marks = {mark["name"]: mark for mark in BOARD["annotations"]["list"]}

    assert set(marks) == {"Deploys", "Incidents", "Alerts"}
    assert marks["Deploys"]["target"]["tags"] == ["sploot-cluster", "deploy"]


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, float]]:
    tool("promtool")
    tool("prometheus")
    with served_history(tmp_path_factory.mktemp("history")) as served:
        yield served


@pytest.mark.ops
@pytest.mark.parametrize("panel", PANELS, ids=IDS)
def test_a_panel_draws_three_hours_of_history(panel: dict[str, Any], history: tuple[Prometheus, float]) -> None:
    for target in panel["targets"]:
        found = answers(history[0], {**panel, "targets": [target]}, history[1])

        assert found, target["expr"]
        assert any(np.isfinite(series.values).any() for series in found), target["expr"]
        if panel["type"] in ("timeseries", "heatmap"):
            assert max(len(series.values) for series in found) > 100, target["expr"]
        wanted = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
        assert [series.labels for series in found if not wanted <= set(series.labels)] == []


@pytest.mark.ops
def test_the_history_shows_what_went_wrong(history: tuple[Prometheus, float]) -> None:
    server, end = history

    def highest(promql: str) -> float:
        series = server.query_range(promql, start=end - 10_800, end=end, step_s=30)
        return max(float(value) for one in series for _, value in one["values"])

    assert highest("media_cluster:failure_ratio:5m") > 0.01
    assert highest("max(media_cluster_undelivered_jobs)") > 100
    assert highest("max(cluster_noise_high_streak)") >= 3
    assert "MediaClusterDeadLettersNew" in {alert["labels"]["alertname"] for alert in server.alerts()}


@pytest.mark.ops
def test_a_picture_of_it_can_be_drawn(history: tuple[Prometheus, float], tmp_path: Path) -> None:
    draw(*history, tmp_path / "dashboard.png")

    drawn = (tmp_path / "dashboard.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    # an empty page is a tenth of it
    assert len(drawn) > 200_000
