"""Draw the committed dashboard as a picture, with data from a real Prometheus that has three hours of history.

    python -m tests.ops.picture [FILE]      demo-output/dashboard.png by default

The picture resembles Grafana, for machines without it. Every number is the result of a panel's query.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt

from ops.dashboard import FILE as DASHBOARD
from tests.ops.history import LENGTH_S, served_history
from tests.ops.servers import Prometheus

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Wedge

VARIABLES: Final = {
    "$__rate_interval": "1m",
    "$__range": f"{LENGTH_S}s",
    "$cluster": ".*",
    "$namespace": ".*",
    "$job": ".+",
    "$instance": ".+",
    "$stream": ".*",
    "$pet_id": ".*",
}
STEP_S: Final = 30.0

COLUMN, LINE, GAP, HEADER = 76, 34, 8, 74  # pixels
DPI: Final = 100
PAGE, CARD, EDGE, INK, DIM, GRID = "#111217", "#181b1f", "#2a2d33", "#d8d9da", "#8e8e93", "#26292f"
COLOURS: Final = {
    "green": "#73bf69",
    "yellow": "#f2cc0c",
    "blue": "#5794f2",
    "orange": "#ff9830",
    "red": "#f2495c",
    "purple": "#b877d9",
}
PALETTE: Final = (
    "#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#b877d9", "#f2495c",
    "#37872d", "#a38a00", "#1f60c4", "#ffb27a", "#e8d4f7", "#6ed0e0",
)  # fmt: skip
# The possible intervals between marks on a time axis, in seconds.
CLOCK_STEPS_S: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600)
MOST_STEPS: Final = 4
WARM: Final = LinearSegmentedColormap.from_list("warm", [CARD, "#5b3413", "#b8651b", "#ff9830", "#ffe0b0"])

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Series:
    """One series of a panel."""

    legend: str
    labels: dict[str, str]
    times: Values
    values: Values

    @property
    def last(self) -> float:
        known = self.values[~np.isnan(self.values)]
        return float(known[-1]) if len(known) else math.nan


def substituted(promql: str) -> str:
    """Return a panel's query with its variables filled in."""
    for variable, value in VARIABLES.items():
        promql = promql.replace(variable, value)
    return promql


def answers(server: Prometheus, panel: dict[str, Any], end_s: float) -> list[Series]:
    """Run a panel's queries and return all series."""
    found = []
    for target in panel.get("targets", []):
        promql = substituted(target["expr"])
        if target.get("instant"):
            results = [{**one, "values": [one["value"]]} for one in server.query(promql)]
        else:
            results = server.query_range(promql, start=end_s - LENGTH_S, end=end_s, step_s=STEP_S)
        for one in results:
            points = np.array([[float(t), float(value)] for t, value in one["values"]])
            legend = _legend(target.get("legendFormat", ""), one["metric"])
            found.append(Series(legend, one["metric"], points[:, 0], points[:, 1]))
    return found


def draw(server: Prometheus, end_s: float, target: Path) -> None:
    """Draw the committed dashboard into a PNG file."""
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = board["panels"]
    lines = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    width, height = 24 * COLUMN + 2 * GAP, lines * LINE + HEADER + 2 * GAP
    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 8, "text.color": INK})
    figure = plt.figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=PAGE)
    _head(figure, board, width, height)
    for panel in panels:
        at = panel["gridPos"]
        x, y = GAP + at["x"] * COLUMN, height - HEADER - GAP - (at["y"] + at["h"]) * LINE
        box = (x + GAP / 2, y + GAP / 2, at["w"] * COLUMN - GAP, at["h"] * LINE - GAP)
        if panel["type"] == "row":
            figure.text(x / width, (y + 11) / height, f"▾  {panel['title']}", size=12, weight="bold")
        else:
            _card(figure, panel, box, (width, height), answers(server, panel, end_s))
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, facecolor=PAGE)
    plt.close(figure)


def _head(figure: Figure, board: dict[str, Any], width: float, height: float) -> None:
    figure.text(2 * GAP / width, (height - 32) / height, board["title"], size=17, weight="bold", va="center")
    variables = "   ".join(
        f"{one.get('label') or one['name']}: {one.get('query') if one['type'] == 'textbox' else 'All'}"
        for one in board["templating"]["list"]
        if one["type"] != "datasource"
    )
    figure.text(2 * GAP / width, (height - 58) / height, variables, size=9, color=DIM, va="center")
    source = "Last 3 hours · every value is a real Prometheus's answer to the panel's query, over a generated history"
    figure.text(1 - 2 * GAP / width, (height - 58) / height, source, size=9, color=DIM, va="center", ha="right")


def _card(
    figure: Figure,
    panel: dict[str, Any],
    box: tuple[float, float, float, float],
    page: tuple[float, float],
    series: Sequence[Series],
) -> None:
    x, y, w, h = box
    figure.add_artist(
        FancyBboxPatch(
            (x / page[0], y / page[1]),
            w / page[0],
            h / page[1],
            boxstyle="round,pad=0,rounding_size=0.0015",
            mutation_aspect=page[0] / page[1],
            facecolor=CARD,
            edgecolor=EDGE,
            linewidth=0.8,
            zorder=-1,  # below the axes
            transform=figure.transFigure,
        )
    )
    figure.text((x + 10) / page[0], (y + h - 15) / page[1], panel["title"], size=9.5, weight="bold", va="center")
    if any(link["title"].startswith("Runbook") for link in panel.get("links", [])):
        figure.text((x + w - 10) / page[0], (y + h - 15) / page[1], "↗", size=9, color=DIM, va="center", ha="right")

    def axes(left: float, bottom: float, right: float, top: float) -> Axes:
        inside = (
            (x + left) / page[0],
            (y + bottom) / page[1],
            (w - left - right) / page[0],
            (h - bottom - top) / page[1],
        )
        made: Axes = figure.add_axes(inside, facecolor="none")
        return made

    match panel["type"]:
        case "stat":
            _stat(axes(8, 6, 8, 28), panel, series)
        case "gauge":
            _gauge(axes(8, 4, 8, 28), panel, series)
        case "table":
            _table(axes(10, 8, 10, 28), series)
        case "heatmap":
            _heatmap(axes(48, 26, 12, 32), panel, series)
        case _:
            shown = _shown(series)
            _lines(axes(58, 44 + 13 * ((len(shown) - 1) // _per_line(w)), 12, 32), panel, shown, _per_line(w))


def _lines(ax: Axes, panel: dict[str, Any], series: Sequence[Series], per_line: int) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    unit = defaults.get("unit", "short")
    is_stacked = defaults.get("custom", {}).get("stacking", {}).get("mode") == "normal"
    below: Values | None = None
    for number, one in enumerate(series):
        colour = _colour(panel, one.legend, number)
        values = one.values if below is None or not is_stacked else below + np.nan_to_num(one.values)
        base: Values | float = 0.0 if below is None or not is_stacked else below
        ax.fill_between(one.times, base, values, color=colour, alpha=0.30 if is_stacked else 0.10, linewidth=0)
        ax.plot(one.times, values, color=colour, linewidth=1.3, solid_joinstyle="round")
        if is_stacked:
            below = np.nan_to_num(values)
    tops = [float(np.nanmax(np.where(np.isinf(one.values), np.nan, one.values))) for one in series if len(one.values)]
    top = max([*(t for t in tops if not math.isnan(t)), 0.0])
    if is_stacked and below is not None:
        top = float(np.max(below))
    steps = [step for step in defaults.get("thresholds", {}).get("steps", []) if step["value"] is not None]
    lines = [step for step in steps if step["color"] != "green" and step["value"] <= max(2.2 * top, 0.0)]
    top = max([top, *(step["value"] for step in lines)]) or 1.0
    if unit == "percentunit":
        top = max(top, 1.0)
    for step in lines:
        ax.axhline(step["value"], color=COLOURS[step["color"]], linewidth=1, linestyle=(0, (5, 4)), alpha=0.9)
    ax.set_ylim(0, top * 1.08)
    _time_axis(ax, series)
    ax.yaxis.set_major_locator(_marks(top, unit))
    ax.yaxis.set_major_formatter(lambda value, _: human(value, unit))
    ax.grid(color=GRID, linewidth=0.7)
    for number, one in enumerate(series):
        column, line = number % per_line, number // per_line
        place = (column * 0.98 / per_line - 0.03, -34 - 13 * line)
        ax.annotate(
            "●", place, xycoords=("axes fraction", "axes pixels"), size=7, color=_colour(panel, one.legend, number)
        )
        text = f"{one.legend}  {human(one.last, unit)}"
        ax.annotate(text, (place[0] + 0.022, place[1]), xycoords=("axes fraction", "axes pixels"), size=7.6, color=INK)


def _stat(ax: Axes, panel: dict[str, Any], series: Sequence[Series]) -> None:
    _bare(ax)
    defaults = panel["fieldConfig"]["defaults"]
    value = series[0].last if series else math.nan
    colour = _threshold_colour(defaults, value)
    if panel["options"]["graphMode"] == "area" and series and len(series[0].values) > 2:
        values = np.nan_to_num(series[0].values, posinf=0.0)
        inner = ax.inset_axes((0, 0, 1, 0.42))
        _bare(inner)
        inner.fill_between(series[0].times, 0, values, color=colour, alpha=0.16, linewidth=0)
        inner.plot(series[0].times, values, color=colour, linewidth=1)
        inner.set_ylim(0, max(float(values.max()), 1e-9) * 1.1)
        inner.set_xlim(series[0].times[0], series[0].times[-1])
    text = human(value, defaults.get("unit", "short"), defaults.get("decimals"))
    ax.text(0.5, 0.58, text, size=25, weight="bold", color=colour, ha="center", va="center", transform=ax.transAxes)


def _gauge(ax: Axes, panel: dict[str, Any], series: Sequence[Series]) -> None:
    _bare(ax)
    defaults = panel["fieldConfig"]["defaults"]
    value, top = series[0].last if series else math.nan, float(defaults["max"])
    colour = _threshold_colour(defaults, value)
    ax.set_xlim(-1.25, 1.25)
    ax.set_ylim(-0.25, 1.12)
    ax.set_aspect("equal")
    ax.add_patch(Wedge((0, 0), 1.0, 0, 180, width=0.25, facecolor="#2a2d33"))
    angle = 180 - 180 * min(1.0, max(0.0, value / top))
    ax.add_patch(Wedge((0, 0), 1.0, angle, 180, width=0.25, facecolor=colour))
    steps = [*defaults["thresholds"]["steps"], {"value": top, "color": ""}]
    for step, after in pairwise(steps):
        begin, end = (step["value"] or 0.0), after["value"]
        ax.add_patch(
            Wedge(
                (0, 0),
                1.09,
                180 - 180 * end / top,
                180 - 180 * begin / top,
                width=0.05,
                facecolor=COLOURS[step["color"]],
            )
        )
    ax.text(0, 0.08, human(value, defaults.get("unit", "short")), size=22, weight="bold", color=colour, ha="center")


def _table(ax: Axes, series: Sequence[Series]) -> None:
    _bare(ax)
    rows = [({name: text for name, text in one.labels.items() if text}, one.last) for one in series][:9]
    columns = list(dict.fromkeys(name for labels, _ in rows for name in labels))
    places = np.linspace(0.0, 0.86, max(2, len(columns) + 1))
    for n, title in enumerate([*columns, "count"]):
        x, ha = (places[n], "left") if n < len(columns) else (1.0, "right")
        ax.text(x, 0.97, title, size=8, color="#6e9fff", weight="bold", va="top", ha=ha, transform=ax.transAxes)
    for line, (labels, value) in enumerate(rows):
        y = 0.86 - 0.098 * line
        ax.axhline(y + 0.028, color=GRID, linewidth=0.7)
        for n, name in enumerate(columns):
            text = labels.get(name, "")
            ink = {"critical": COLOURS["red"], "warning": COLOURS["orange"], "success": COLOURS["green"]}.get(text, INK)
            ax.text(places[n], y, text, size=8.2, color=ink, va="top", transform=ax.transAxes)
        ax.text(1.0, y, human(value, "short", 0), size=8.2, va="top", ha="right", transform=ax.transAxes)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)


def _heatmap(ax: Axes, panel: dict[str, Any], series: Sequence[Series]) -> None:
    ordered = sorted(series, key=lambda one: float(one.labels["le"]))
    counts = np.array([one.values for one in ordered])
    counts = np.diff(np.vstack([np.zeros(counts.shape[1]), counts]), axis=0).clip(min=0)
    used = [n for n in range(len(ordered)) if counts[n].max() > 0]
    low, high = min(used), max(used)
    shade = np.log1p(counts[low : high + 1])
    ax.imshow(
        shade,
        aspect="auto",
        origin="lower",
        cmap=WARM,
        interpolation="nearest",
        extent=(ordered[0].times[0], ordered[0].times[-1], 0, high + 1 - low),
    )
    edges = [float(one.labels["le"]) for one in ordered[low : high + 1]]
    ax.set_yticks(np.arange(len(edges)) + 1, [human(edge, "s") for edge in edges])
    _time_axis(ax, ordered)


def _time_axis(ax: Axes, series: Sequence[Series]) -> None:
    if series:
        begin, end = min(one.times[0] for one in series), max(one.times[-1] for one in series)
        ax.set_xlim(begin, end)
        ticks = np.arange(math.ceil(begin / 1_800) * 1_800, end, 1_800)
        ax.set_xticks(ticks, [time.strftime("%H:%M", time.gmtime(tick)) for tick in ticks])
    ax.tick_params(colors=DIM, length=0, labelsize=7.5)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _bare(ax: Axes) -> None:
    ax.set_axis_off()
    ax.patch.set_alpha(0)


def _shown(series: Sequence[Series]) -> list[Series]:
    """Return the series that are not always zero (or all, if all are zero), at most as many as there are colours."""
    moving = [one for one in series if np.nanmax(np.abs(one.values), initial=0.0) > 0]
    return (moving or list(series))[: len(PALETTE)]


def _marks(top: float, unit: str) -> mpl.ticker.Locator:
    """Return marks at round numbers of the unit, for an axis that ends at ``top``."""
    if unit == "s" and top >= MOST_STEPS * CLOCK_STEPS_S[0]:
        fitting = (step for step in CLOCK_STEPS_S if top / step <= MOST_STEPS)
        return mpl.ticker.MultipleLocator(next(fitting, CLOCK_STEPS_S[-1]))
    return mpl.ticker.MaxNLocator(MOST_STEPS, integer=unit == "short")


def _per_line(width: float) -> int:
    return max(2, int(width // 290))


def _colour(panel: dict[str, Any], legend: str, number: int) -> str:
    for override in panel["fieldConfig"].get("overrides", []):
        if override["matcher"]["options"] == legend:
            return COLOURS[override["properties"][0]["value"]["fixedColor"]]
    return PALETTE[number % len(PALETTE)]


def _threshold_colour(defaults: dict[str, Any], value: float) -> str:
    colour = "green"
    for step in defaults["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            colour = step["color"]
    return COLOURS[colour]


def _legend(pattern: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), pattern)


def human(value: float, unit: str, decimals: int | None = None) -> str:
    """Return a value of this unit as Grafana shows it."""
    if math.isnan(value):
        return "no data"
    if math.isinf(value):
        return "∞"
    if unit == "percentunit":
        return f"{100 * value:.{1 if decimals is None else decimals}f}%"
    if unit == "percent":
        return f"{value:.0f}%"
    if unit == "s":
        for size, name in ((3_600.0, " h"), (60.0, " min"), (1.0, " s")):
            if abs(value) >= size:
                return f"{value / size:.3g}{name}"
        return f"{1_000 * value:.3g} ms"
    suffix = unit.removeprefix("suffix:") if unit.startswith("suffix:") else " B" if unit == "bytes" else ""
    for size, name in ((1e9, " G"), (1e6, " M"), (1e4, " K")):
        if abs(value) >= size:
            return f"{value / (1e3 if size == 1e4 else size):.3g}{name}{suffix.strip() if unit == 'bytes' else suffix}"
    return (f"{value:.0f}" if value == round(value) or decimals == 0 else f"{value:.3g}") + suffix


def main() -> int:
    """Draw the picture and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.ops.picture", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, default=Path("demo-output/dashboard.png"))
    target = parser.parse_args().file
    with (
        tempfile.TemporaryDirectory(prefix="sploot-picture-") as directory,
        served_history(Path(directory)) as (server, end),
    ):
        draw(server, end, target)
    print(f"drawn: {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
