"""Tests that the committed dashboard has the right name, layout and links, and that every panel draws data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import yaml

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


# -- the rules of Grafana's dashboard-linter, by their names ---------------------------------------------------------

VARIABLES: dict[str, dict[str, Any]] = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
QUERIES = [one for one in VARIABLES.values() if one["type"] == "query"]
TARGETS = [(panel, target) for panel in PANELS for target in panel["targets"]]
SOURCE = {"type": "prometheus", "uid": "${prometheus_datasource}"}
# the units of our panels; each is in the list of the rule
UNITS = {"bytes", "cpm", "d", "percent", "percentunit", "s", "short"}


def selects(name: str) -> Callable[[], list[str]]:
    """Return a check that yields ``name`` if this variable is not as the linter requires it."""

    def found() -> list[str]:
        one = VARIABLES[name]
        wanted = (name.title(), "query", SOURCE, True, ".+")
        seen = tuple(one[key] for key in ("label", "type", "datasource", "multi", "allValue"))
        return [] if seen == wanted else [name]

    return found


def matches(name: str) -> Callable[[], list[str]]:
    """Return a check that finds the panels with a selector that does not filter by this variable."""

    def found() -> list[str]:
        every = [(panel, re.findall(r"\{([^}]*)\}", target["expr"])) for panel, target in TARGETS]
        return [
            panel["title"]
            for panel, selectors in every
            if not selectors or any(f'{name}=~"${name}"' not in selector for selector in selectors)
        ]

    return found


# Rule -> the titles and names that break it. The linter knows more kinds of panels than we use.
RULES: dict[str, Callable[[], list[str]]] = {
    "template-datasource-rule": lambda: [
        name
        for name, one in VARIABLES.items()
        if one["type"] == "datasource"
        and (name, one["label"]) != (f"{one['query']}_datasource", f"{one['query'].title()} data source")
    ],
    "template-job-rule": selects("job"),
    "template-instance-rule": selects("instance"),
    "template-label-promql-rule": lambda: [
        one["name"] for one in QUERIES if not re.fullmatch(r"label_values\(\w+\{.+\}, \w+\)", one["query"])
    ],
    "template-on-time-change-reload-rule": lambda: [one["name"] for one in QUERIES if one["refresh"] != 2],
    "panel-datasource-rule": lambda: [panel["title"] for panel in PANELS if panel["datasource"] != SOURCE],
    "panel-title-description-rule": lambda: [
        str(panel["id"]) for panel in PANELS if not panel["title"] or not panel["description"]
    ],
    "panel-units-rule": lambda: [
        panel["title"] for panel in PANELS if panel["fieldConfig"]["defaults"]["unit"] not in UNITS
    ],
    "panel-no-targets-rule": lambda: [panel["title"] for panel in PANELS if not panel["targets"]],
    # The linter's two rules about LogQL hold, because no panel queries Loki. Prometheus itself parses every query
    # in a test below.
    "target-logql-rule": lambda: [panel["title"] for panel, target in TARGETS if target["datasource"] != SOURCE],
    "target-promql-rule": lambda: [panel["title"] for panel, target in TARGETS if not target["expr"]],
    "target-rate-interval-rule": lambda: [
        panel["title"]
        for panel, target in TARGETS
        if set(re.findall(r"\brate\([^\[]*\[([^\]]+)\]", target["expr"])) - {"$__rate_interval"}
    ],
    "target-job-rule": matches("job"),
    "target-instance-rule": matches("instance"),
    "target-counter-agg-rule": lambda: [
        panel["title"]
        for panel, target in TARGETS
        if re.search(r"(?<!rate\()(?<!increase\()\b\w+_total\{", target["expr"])
    ],
    "uneditable-dashboard": lambda: [BOARD["title"]] if BOARD["editable"] else [],
}


@pytest.mark.parametrize("rule", RULES)
def test_dashboard_passes_the_rule_of_the_linter(rule: str) -> None:
    exceptions = yaml.safe_load(FILE.with_name(".lint").read_text())["exclusions"]

    assert set(RULES[rule]()) == {entry["panel"] for entry in exceptions.get(rule, {"entries": []})["entries"]}


def test_panels_without_a_job_say_so() -> None:
    (exception, _) = yaml.safe_load(FILE.with_name(".lint").read_text())["exclusions"].values()
    panels = {panel["title"]: panel["description"] for panel in PANELS}

    assert all("Job and Instance do not apply" in panels[entry["panel"]] for entry in exception["entries"])


def test_every_query_is_limited_to_cluster_and_namespace() -> None:
    assert matches("cluster")() == matches("namespace")() == []
    # outside Kubernetes, series have neither of the two labels
    assert {(VARIABLES[name]["multi"], VARIABLES[name]["allValue"]) for name in ("cluster", "namespace")} == {
        (True, ".*")
    }


def test_tiles_add_up_the_displayed_time_range_and_graphs_do_not() -> None:
    for panel, target in TARGETS:
        windows = re.findall(r"\b(?:rate|increase)\([^\[]*\[([^\]]+)\]", target["expr"])
        assert set(windows) <= ({"$__range"} if target.get("instant") else {"$__rate_interval"}), panel["title"]


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
