"""The dashboard as Grafana's JSON, written with grafana-foundation-sdk.

Threshold lines come from ``thresholds.yaml``, and positions from the order of the panels in ``panels.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import gauge, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from ops.panels import ROWS, Kind, Panel
from ops.thresholds import Thresholds

UID: Final = "media-cluster-observability"
TITLE: Final = "Media Clustering – Pipeline Health"  # with an en dash (U+2013), as in the specification
WIDTH: Final = 24

COLOURS: Final = {"warning": "orange", "critical": "red"}
METRICS: Final = dashboard.DataSourceRef(type_val="prometheus", uid="${metrics}")

PanelBuilder = timeseries.Panel | stat.Panel | gauge.Panel | heatmap.Panel | table.Panel
_KINDS: Final[dict[Kind, type[PanelBuilder]]] = {
    "series": timeseries.Panel,
    "stat": stat.Panel,
    "gauge": gauge.Panel,
    "heatmap": heatmap.Panel,
    "table": table.Panel,
}
_FORMATS: Final[dict[Kind, PromQueryFormat]] = {"table": PromQueryFormat.TABLE, "heatmap": PromQueryFormat.HEATMAP}


def dashboard_json(thresholds: Thresholds) -> str:
    """Return the JSON of the dashboard, as it is committed and deployed."""
    built = _dashboard(thresholds).build()
    return json.dumps(built, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def panel_url(thresholds: Thresholds, title: str) -> str:
    """Return the address of the panel with a title."""
    (panel,) = (panel for row in ROWS for panel in row.panels if panel.title == title)
    return f"{thresholds.dashboard_url}?viewPanel={panel.id}"


def explore_url(logql: str) -> str:
    """Return the path in Grafana that shows the logs of a LogQL query over the dashboard's time range."""
    left = {
        "datasource": "${logs}",
        "queries": [{"refId": "A", "expr": logql}],
        "range": {"from": "${__from}", "to": "${__to}"},
    }
    # Grafana replaces its variables before the browser decodes the address, so they must not be escaped
    return "/explore?orgId=1&left=" + quote(json.dumps(left, separators=(",", ":")), safe="${}_")


def job_logs(wanted: str = "") -> str:
    """Return LogQL for the last log line of each job, filtered by the variable ``pet_id``."""
    stages = ["json", 'logger="sploot-cluster.queue"', 'pet_id=~"$pet_id"', *([wanted] if wanted else [])]
    return '{service="sploot-cluster"} | ' + " | ".join(stages)


def _dashboard(thresholds: Thresholds) -> builders.Dashboard:
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
        .editable()
    )
    for variable in _variables():
        board = board.with_variable(variable)
    for annotation in _annotations():
        board = board.annotation(annotation)
    for title, url in (
        ("Runbook", thresholds.runbook_url),
        ("Logs of failed jobs", explore_url(job_logs('outcome!="success"'))),
    ):
        link = builders.DashboardLink(title).type(dashboard.DashboardLinkType.LINK).url(url).target_blank(True)
        board = board.link(link.icon("doc" if title == "Runbook" else "external link").keep_time(True))
    y = 0
    for row in ROWS:
        board = board.with_row(
            builders.Row(row.title).id(1000 + ROWS.index(row)).grid_pos(dashboard.GridPos(h=1, w=WIDTH, x=0, y=y))
        )
        y += 1
        for panel, at in _placed(row.panels, y):
            board = board.with_panel(_panel(thresholds, panel, at))
            y = max(y, at.y + at.h)
    return board


def _placed(panels: tuple[Panel, ...], y: int) -> Iterator[tuple[Panel, dashboard.GridPos]]:
    """Place panels from left to right; each line begins below the tallest panel of the line before."""
    x, height = 0, 0
    for panel in panels:
        if x + panel.width > WIDTH:
            x, y, height = 0, y + height, 0
        yield panel, dashboard.GridPos(h=panel.height, w=panel.width, x=x, y=y)
        x, height = x + panel.width, max(height, panel.height)


def _panel(thresholds: Thresholds, panel: Panel, at: dashboard.GridPos) -> PanelBuilder:
    built = _KINDS[panel.kind]().id(panel.id).title(panel.title).description(panel.description)
    built = built.grid_pos(at).datasource(METRICS).unit(panel.unit)
    if panel.decimals is not None:
        built = built.decimals(panel.decimals)
    for letter, (promql, legend) in zip("ABCDEFGH", panel.queries, strict=False):
        built = built.with_target(_query(panel, promql, legend, letter))
    links = _links(thresholds, panel)
    if links:
        built = built.links([*links])
    if panel.logs:
        built = built.data_links([_link("Logs of these jobs", explore_url(job_logs(panel.logs)))])
    for legend, colour in panel.colours.items():
        fixed = dashboard.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})
        built = built.override_by_name(legend, [fixed])
    return _as_kind(built, panel, _lines(thresholds, panel))


def _query(panel: Panel, promql: str, legend: str, letter: str) -> prometheus.Dataquery:
    query = prometheus.Dataquery().expr(promql).ref_id(letter).datasource(METRICS)
    if legend:
        query = query.legend_format(legend)
    if panel.kind in _FORMATS:
        query = query.format(_FORMATS[panel.kind])
    return query.instant() if panel.is_of_now else query.range()


def _lines(thresholds: Thresholds, panel: Panel) -> list[dashboard.Threshold]:
    """Return the values at which colours begin, lowest first; the first one has no value."""
    if panel.good_above is not None:
        return [_step(None, "red"), _step(panel.good_above, "green")]
    if panel.bad_above is not None:
        return [_step(None, "green"), _step(panel.bad_above + 1e-9, "red")]
    if panel.signal == "slo":
        burns = sorted((burn.burn, COLOURS[burn.severity]) for burn in thresholds.slo.burns.values())
        return [_step(None, "green"), *(_step(*line) for line in burns)]
    if not panel.signal:
        return [_step(None, "green")]
    signal = thresholds.signals[panel.signal]
    # a tile is coloured by its value; a graph only has lines
    if panel.kind != "series" and any(level.comparator == "<" for level in signal.levels.values()):
        severity, value = signal.lines()[0]
        return [_step(None, COLOURS[severity]), _step(value, "green")]
    return [_step(None, "green"), *(_step(value, COLOURS[severity]) for severity, value in signal.lines())]


def _step(value: float | None, colour: str) -> dashboard.Threshold:
    return dashboard.Threshold(value=value, color=colour)


def _as_kind(built: PanelBuilder, panel: Panel, lines: list[dashboard.Threshold]) -> PanelBuilder:
    steps = builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(lines)
    last = common_builders.ReduceDataOptions().calcs(["lastNotNull"])
    if isinstance(built, timeseries.Panel):
        return _as_series(built.thresholds(steps), panel, has_lines=len(lines) > 1)
    if isinstance(built, stat.Panel):
        graph = common.BigValueGraphMode.NONE if panel.is_of_now else common.BigValueGraphMode.AREA
        return built.thresholds(steps).reduce_options(last).graph_mode(graph).color_mode(common.BigValueColorMode.VALUE)
    if isinstance(built, gauge.Panel):
        return built.thresholds(steps).reduce_options(last).min(0).max(2 * (lines[-1].value or 50))
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
    built = built.legend(legend).tooltip(tooltip).line_width(1.5).fill_opacity(30 if panel.is_stacked else 8)
    built = built.axis_soft_min(0).show_points(common.VisibilityMode.NEVER)
    if panel.unit == "percentunit":
        built = built.axis_soft_max(1)
    if panel.is_stacked:
        built = built.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
    if has_lines:
        style = common_builders.GraphThresholdsStyleConfig().mode(common.GraphTresholdsStyleMode.DASHED)
        built = built.thresholds_style(style)
    return built


def _links(thresholds: Thresholds, panel: Panel) -> list[builders.DashboardLink]:
    """Return a link to the runbook section of each alert on the panel's signal."""
    if panel.signal == "slo":
        alerts = list(thresholds.slo.burns)
    else:
        alerts = list(thresholds.signals[panel.signal].levels) if panel.signal else []
    return [_link(f"Runbook: {alert}", f"{thresholds.runbook_url}#{alert.lower()}") for alert in alerts]


def _link(title: str, url: str) -> builders.DashboardLink:
    return builders.DashboardLink(title).type(dashboard.DashboardLinkType.LINK).url(url).target_blank(True)


def _variables() -> list[Any]:
    def of_label(name: str, label: str, query: str) -> builders.QueryVariable:
        return (
            builders.QueryVariable(name)
            .label(label)
            .datasource(METRICS)
            .query(query)
            .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .current(dashboard.VariableOption(text="All", value="$__all", selected=True))
        )

    return [
        builders.DatasourceVariable("metrics").label("Metrics").type("prometheus"),
        builders.DatasourceVariable("logs").label("Logs").type("loki"),
        of_label("job", "Job", "label_values(cluster_jobs_total, job)"),
        of_label("stream", "Stream", "label_values(media_cluster_undelivered_jobs, stream)"),
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

    alerts = builders.AnnotationQuery().name("Alerts").datasource(METRICS).enable(True).icon_color("orange")
    alerts = alerts.expr('ALERTS{alertstate="firing", service="sploot-cluster"}')
    return [tagged("Deploys", "deploy", "blue"), tagged("Incidents", "incident", "red"), alerts]
