"""Views of ``thresholds.yaml``: the table of the runbook, and the levels as JSON for the console."""

from __future__ import annotations

import json
import re
from typing import Final

from ops.thresholds import Notification, Thresholds

# the first group is the opening mark, so that its text is kept
_BLOCK: Final = re.compile(r"(<!-- thresholds:[^\n]*-->\n).*?(<!-- /thresholds -->\n)", re.DOTALL)


def with_table(runbook: str, thresholds: Thresholds) -> str:
    """Return the runbook with a new table between its two marks.

    Raises:
        ValueError: the runbook does not have exactly one pair of marks.
    """
    filled, n_blocks = _BLOCK.subn(lambda block: f"{block[1]}\n{table(thresholds)}\n{block[2]}", runbook)
    if n_blocks != 1:
        raise ValueError("runbook.md needs one line <!-- thresholds: … --> and, below it, one <!-- /thresholds -->")
    return filled


def table(thresholds: Thresholds) -> str:
    """Return a row per alert: its signal, the normal value, when it fires and its receivers."""
    lines = ["| signal | normal | alert | fires when | severity: receivers |", "|---|---|---|---|---|"]
    for signal in thresholds.signals.values():
        what = f"{signal.what}, {signal.unit}" + (f" ({signal.window})" if signal.window else "")
        if signal.high_above is not None:
            lines.append(f"| {what} | {signal.target} | – | above {signal.high_above:g} counts as high | – |")
        for name, level in signal.levels.items():
            held = f" for {level.hold}" if level.hold else ""
            lines.append(_row(what, signal.target, name, f"{level.condition}{held}", level))
    slo = thresholds.slo
    for name, burn in slo.burns.items():
        what = f"burn rate of the error budget ({slo.objective:.0%} over {slo.period})"
        lines.append(_row(what, "< 1", name, f"> {burn.burn:g} over {burn.long} and {burn.short}", burn))
    return "\n".join(lines) + "\n"


def _row(what: str, target: str, name: str, condition: str, notification: Notification) -> str:
    mention = ", mentions @oncall" if notification.mention else ""
    receivers = f"Slack{mention}" + (", PagerDuty" if notification.page else "")
    return f"| {what} | {target} | [{name}](#{name.lower()}) | {condition} | {notification.severity}: {receivers} |"


def levels_json(thresholds: Thresholds) -> str:
    """Return each signal's unit, target, comparator and lowest level of each severity, as JSON for the console."""
    levels = {}
    for name, signal in thresholds.signals.items():
        lines = dict(signal.lines())
        comparators = {level.comparator for level in signal.levels.values()} or {">"}
        levels[name] = {
            "unit": signal.unit,
            "target": signal.target,
            "comparator": min(comparators, key=len),
            "warning": lines.get("warning"),
            "critical": lines.get("critical"),
        }
    return json.dumps(levels, indent=2, ensure_ascii=False) + "\n"
