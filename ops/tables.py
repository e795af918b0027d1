"""What people and the console read of ``thresholds.yaml``: the runbook's table, and the levels as JSON."""

from __future__ import annotations

import json
import re
from typing import Final

from ops.thresholds import Thresholds, Told

# whatever the first mark says after its first word stays
_BLOCK: Final = re.compile(r"(<!-- thresholds:[^\n]*-->\n).*?(<!-- /thresholds -->\n)", re.DOTALL)


def with_table(runbook: str, thresholds: Thresholds) -> str:
    """The runbook with the block between its two marks filled anew.

    Raises:
        ValueError: it does not have exactly one such block.
    """
    filled, n_blocks = _BLOCK.subn(lambda block: f"{block[1]}\n{table(thresholds)}\n{block[2]}", runbook)
    if n_blocks != 1:
        raise ValueError("runbook.md needs one line <!-- thresholds: … --> and, below it, one <!-- /thresholds -->")
    return filled


def table(thresholds: Thresholds) -> str:
    """Every alert: what it looks at, what is normal, when it fires, whom it reaches."""
    lines = ["| signal | normal | alert | fires when | reaches |", "|---|---|---|---|---|"]
    for signal in thresholds.signals.values():
        what = f"{signal.what}, {signal.unit}" + (f" ({signal.window})" if signal.window else "")
        if signal.high_above is not None:
            lines.append(f"| {what} | {signal.target} | – | above {signal.high_above:g} it counts as high | – |")
        for name, level in signal.levels.items():
            held = f" for {level.hold}" if level.hold else ""
            lines.append(_row(what, signal.target, name, f"{level.condition}{held}", level))
    slo = thresholds.slo
    for name, burn in slo.burns.items():
        what = f"burn rate of the error budget ({slo.objective:.0%} over {slo.period})"
        lines.append(_row(what, "< 1", name, f"> {burn.burn:g} over {burn.long} and {burn.short}", burn))
    return "\n".join(lines) + "\n"


def _row(what: str, target: str, name: str, condition: str, told: Told) -> str:
    reaches = "Slack" + (", tags @oncall" if told.mention else "") + (", PagerDuty" if told.page else "")
    return f"| {what} | {target} | [{name}](#{name.lower()}) | {condition} | {told.severity}: {reaches} |"


def levels_json(thresholds: Thresholds) -> str:
    """Signal -> unit, target, comparator, and the lowest level of each severity, or null; for the console's colours."""
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
