"""Generate Grafana's JSON of the dashboard from ``dashboards/panels.yaml`` and the levels of the alerts.

python -m ops.dashboard           write the JSON
python -m ops.dashboard --check   write nothing, and exit with 1 if the committed JSON differs
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

import yaml
from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import gauge, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from ops.rules import alerts, levels, lines
from tasks.observe.metrics import OPERATIONS

Kind = Literal["stat", "gauge", "series", "heatmap", "table"]

FOLDER: Final = Path(__file__).with_name("dashboards")
FILE: Final = FOLDER / "media-clustering-redis-streams.json"
UID: Final = "media-cluster-observability"
TITLE: Final = "Media Clustering – Pipeline Health"  # with an en dash (U+2013), as in the specification
RUNBOOK: Final = "https://github.com/sploot/sploot-cluster/blob/main/ops/runbook.md"
WIDTH: Final = 24

COLOURS: Final = {"warning": "orange", "critical": "red"}
# macro in panels.yaml -> the label matchers that replace it
PLACE: Final = 'cluster=~"$cluster", namespace=~"$namespace"'
MACROS: Final = {"$scope": f'{PLACE}, job=~"$job", instance=~"$instance"', "$place": PLACE}
METRICS: Final = dashboard.DataSourceRef(type_val="prometheus", uid="${prometheus_datasource}")

PanelBuilder = timeseries.Panel | stat.Panel | gauge.Panel | heatmap.Panel | table.Panel
_KINDS: Final[dict[Kind, type[PanelBuilder]]] = {
    "series": timeseries.Panel,
    "stat": stat.Panel,
    "gauge": gauge.Panel,
    "heatmap": heatmap.Panel,
    "table": table.Panel,
}
_FORMATS: Final[dict[Kind, PromQueryFormat]] = {"table": PromQueryFormat.TABLE, "heatmap": PromQueryFormat.HEATMAP}


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The appearance of a panel; ``panels.yaml`` explains the fields."""

    kind: Kind = "series"
    width: int = 12
    height: int = 8
    unit: str = "short"
    decimals: int | None = None
    is_stacked: bool = False
    is_of_now: bool = False
    good_above: float | None = None
    bad_above: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A panel of the dashboard; ``panels.yaml`` explains the fields."""

    id: int
    title: str
    description: str
    queries: Mapping[str, str]
    look: Look
    signal: str = ""
    levels: Mapping[float, str] = field(default_factory=dict)
    logs: str = ""
    colours: Mapping[str, str] = field(default_factory=dict)


@cache
def rows() -> tuple[tuple[str, tuple[Panel, ...]], ...]:
    """Return the title and the panels of each row of the dashboard."""
    given = yaml.safe_load((FOLDER / "panels.yaml").read_text(encoding="utf-8"))["rows"]
    return tuple((row["title"], tuple(_read(panel) for panel in row["panels"])) for row in given)


def _read(given: dict[str, Any]) -> Panel:
    queries = {}
    for legend, promql in given["queries"].items():
        for macro, matchers in MACROS.items():
            promql = promql.replace(macro, matchers)
        queries[legend] = promql
    logs = given.get("logs", "").replace("$corrections", "|".join(OPERATIONS))
    return Panel(**{**given, "queries": queries, "logs": logs, "look": Look(**given.get("look", {}))})


def dashboard_json() -> str:
    """Return the JSON of the dashboard, as it is committed and deployed."""
    return json.dumps(_dashboard().build(), cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def explore_url(logql: str) -> str:
    """Return the path in Grafana that shows the results of a LogQL query for the dashboard's time range."""
    left = {
        "datasource": "${loki_datasource}",
        "queries": [{"refId": "A", "expr": logql}],
        "range": {"from": "${__from}", "to": "${__to}"},
    }
    # do not escape variables, because Grafana replaces them before the browser decodes the URL
    return "/explore?orgId=1&left=" + quote(json.dumps(left, separators=(",", ":")), safe="${}_")


def job_logs(wanted: str = "") -> str:
    """Return a LogQL query for the last log line of each job, filtered by the variable ``pet_id``."""
    stages = ["json", 'logger="sploot-cluster.queue"', 'pet_id=~"$pet_id"', *([wanted] if wanted else [])]
    return '{service="sploot-cluster"} | ' + " | ".join(stages)


def _dashboard() -> builders.Dashboard:
    board = (
        builders.Dashboard(TITLE)
        .uid(UID)
        .description(
            "Redis Streams pipeline of sploot-cluster. Written by `make ops-build`; changes made in Grafana are lost."
        )
        .tags(["sploot-cluster", "redis-streams"])
        .timezone("browser")
        .refresh("30s")
        .time("now-3h", "now")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .readonly()
    )
    for variable in _variables():
        board = board.with_variable(variable)
    for annotation in _annotations():
        board = board.annotation(annotation)
    for title, url in (
        ("Runbook", RUNBOOK),
        ("Logs of failed jobs", explore_url(job_logs('outcome!="success"'))),
    ):
        link = builders.DashboardLink(title).type(dashboard.DashboardLinkType.LINK).url(url).target_blank(True)
        board = board.link(link.icon("doc" if title == "Runbook" else "external link").keep_time(True))
    y = 0
    for number, (title, panels) in enumerate(rows()):
        board = board.with_row(
            builders.Row(title).id(1000 + number).grid_pos(dashboard.GridPos(h=1, w=WIDTH, x=0, y=y))
        )
        y += 1
        for panel, at in _placed(panels, y):
            board = board.with_panel(_panel(panel, at))
            y = max(y, at.y + at.h)
    return board


def _placed(panels: tuple[Panel, ...], y: int) -> Iterator[tuple[Panel, dashboard.GridPos]]:
    """Place panels from left to right; each line begins below the tallest panel of the previous line."""
    x, height = 0, 0
    for panel in panels:
        if x + panel.look.width > WIDTH:
            x, y, height = 0, y + height, 0
        yield panel, dashboard.GridPos(h=panel.look.height, w=panel.look.width, x=x, y=y)
        x, height = x + panel.look.width, max(height, panel.look.height)


def _panel(panel: Panel, at: dashboard.GridPos) -> PanelBuilder:
    built = _KINDS[panel.look.kind]().id(panel.id).title(panel.title).description(panel.description)
    built = built.grid_pos(at).datasource(METRICS).unit(panel.look.unit)
    if panel.look.decimals is not None:
        built = built.decimals(panel.look.decimals)
    for letter, (legend, promql) in zip("ABCDEFGH", panel.queries.items(), strict=False):
        built = built.with_target(_query(panel, promql, legend, letter))
    links = _links(panel)
    if links:
        built = built.links([*links])
    if panel.logs:
        built = built.data_links([_link("Logs of these jobs", explore_url(job_logs(panel.logs)))])
    for legend, colour in panel.colours.items():
        fixed = dashboard.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})
        built = built.override_by_name(legend, [fixed])
    return _as_kind(built, panel, _thresholds(panel))


def _query(panel: Panel, promql: str, legend: str, letter: str) -> prometheus.Dataquery:
    query = prometheus.Dataquery().expr(promql).ref_id(letter).datasource(METRICS)
    if legend:
        query = query.legend_format(legend)
    if panel.look.kind in _FORMATS:
        query = query.format(_FORMATS[panel.look.kind])
    return query.instant() if panel.look.is_of_now else query.range()


def _thresholds(panel: Panel) -> list[dashboard.Threshold]:
    """Return the colours of a panel with the values at which they begin, lowest first; the first has no value."""
    if panel.look.good_above is not None:
        return [_step(None, "red"), _step(panel.look.good_above, "green")]
    if panel.look.bad_above is not None:
        return [_step(None, "green"), _step(panel.look.bad_above + 1e-9, "red")]
    drawn = [*((severity, level) for level, severity in panel.levels.items()), *lines(panel.signal)]
    # a tile has the colour of its value, but a graph only has threshold lines
    if panel.look.kind != "series" and any(alert.comparator == "<" for alert in levels(panel.signal)):
        ((severity, value),) = drawn
        return [_step(None, COLOURS[severity]), _step(value, "green")]
    return [_step(None, "green"), *(_step(value, COLOURS[severity]) for severity, value in drawn)]


def _step(value: float | None, colour: str) -> dashboard.Threshold:
    return dashboard.Threshold(value=value, color=colour)


def _as_kind(built: PanelBuilder, panel: Panel, given: list[dashboard.Threshold]) -> PanelBuilder:
    steps = builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(given)
    last = common_builders.ReduceDataOptions().calcs(["lastNotNull"])
    if isinstance(built, timeseries.Panel):
        return _as_series(built.thresholds(steps), panel, has_lines=len(given) > 1)
    if isinstance(built, stat.Panel):
        graph = common.BigValueGraphMode.NONE if panel.look.is_of_now else common.BigValueGraphMode.AREA
        return built.thresholds(steps).reduce_options(last).graph_mode(graph).color_mode(common.BigValueColorMode.VALUE)
    if isinstance(built, gauge.Panel):
        return built.thresholds(steps).reduce_options(last).min(0).max(2 * (given[-1].value or 50))
    if isinstance(built, heatmap.Panel):
        return built.color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges"))
    hidden = dashboard.DataTransformerConfig(
        id_val="organize", options={"excludeByName": {"Time": True}, "renameByName": {"Value": "count"}}
    )
    return built.thresholds(steps).with_transformation(hidden)


def _as_series(built: timeseries.Panel, panel: Panel, *, has_lines: bool) -> timeseries.Panel:
    legend = common_builders.VizLegendOptions().placement(common.LegendPlacement.BOTTOM).show_legend(True)
    legend = legend.display_mode(common.LegendDisplayMode.TABLE).calcs(["lastNotNull", "max"])
    tooltip = (
        common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
    )
    built = built.legend(legend).tooltip(tooltip).line_width(1.5).fill_opacity(30 if panel.look.is_stacked else 8)
    built = built.axis_soft_min(0).show_points(common.VisibilityMode.NEVER)
    if panel.look.unit == "percentunit":
        built = built.axis_soft_max(1)
    if panel.look.is_stacked:
        built = built.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
    if has_lines:
        style = common_builders.GraphThresholdsStyleConfig().mode(common.GraphTresholdsStyleMode.DASHED)
        built = built.thresholds_style(style)
    return built


def _links(panel: Panel) -> list[builders.DashboardLink]:
    """Return a link to the runbook section of each alert that links to the panel."""
    leading = [one for one in alerts().values() if one.annotations["dashboard_url"].endswith(f"viewPanel={panel.id}")]
    return [_link(f"Runbook: {alert.name}", alert.annotations["runbook_url"]) for alert in leading]


def _link(title: str, url: str) -> builders.DashboardLink:
    return builders.DashboardLink(title).type(dashboard.DashboardLinkType.LINK).url(url).target_blank(True)


def _variables() -> list[Any]:
    def of_label(name: str, query: str, *, all_value: str = ".+") -> builders.QueryVariable:
        return (
            builders.QueryVariable(name)
            .label(name.title())
            .datasource(METRICS)
            .query(query)
            .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(all_value)
            .current(dashboard.VariableOption(text="All", value="$__all", selected=True))
        )

    # outside Kubernetes, series have neither a cluster nor a namespace
    is_ours = 'up{job=~"sploot-cluster.*|.*redis.*"'
    return [
        builders.DatasourceVariable("prometheus_datasource").label("Prometheus data source").type("prometheus"),
        builders.DatasourceVariable("loki_datasource").label("Loki data source").type("loki"),
        of_label("cluster", f"label_values({is_ours}}}, cluster)", all_value=".*"),
        of_label("namespace", f'label_values({is_ours}, cluster=~"$cluster"}}, namespace)', all_value=".*"),
        of_label("job", f"label_values({is_ours}, {PLACE}}}, job)"),
        of_label("instance", f'label_values({is_ours}, {PLACE}, job=~"$job"}}, instance)'),
        of_label("stream", f"label_values(media_cluster_undelivered_jobs{{{PLACE}}}, stream)"),
        builders.TextBoxVariable("pet_id")
        .label("Pet id (logs)")
        .description("Links to logs filter by this pet id. Metrics have no label for pets.")
        .default_value(".*"),
    ]


def _annotations() -> list[builders.AnnotationQuery]:
    def tagged(name: str, tag: str, colour: str) -> builders.AnnotationQuery:
        target = builders.AnnotationTarget().limit(100).match_any(False).tags(["sploot-cluster", tag]).type("tags")
        source = dashboard.DataSourceRef(type_val="grafana", uid="-- Grafana --")
        return builders.AnnotationQuery().name(name).datasource(source).enable(True).icon_color(colour).target(target)

    # versions that no process had five minutes earlier
    of_version = f"count by (version) (cluster_build_info{{{MACROS['$scope']}}}"
    releases = builders.AnnotationQuery().name("Releases").datasource(METRICS).enable(True).icon_color("green")
    releases = releases.expr(f"{of_version}) unless {of_version} offset 5m)")
    firing = builders.AnnotationQuery().name("Alerts").datasource(METRICS).enable(True).icon_color("orange")
    firing = firing.expr(f'ALERTS{{{PLACE}, alertstate="firing", service="sploot-cluster"}}')
    return [tagged("Deploys", "deploy", "blue"), releases, tagged("Incidents", "incident", "red"), firing]


def main() -> int:
    """Write or check the JSON; return the exit code."""
    wanted = dashboard_json()
    if FILE.exists() and FILE.read_text(encoding="utf-8") == wanted:
        return 0
    if "--check" in sys.argv[1:]:
        print(f"{FILE} differs from panels.yaml and the rules: make ops-build", file=sys.stderr)
        return 1
    FILE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
