"""A reader of the alerts in ``ops/alerts``, from the same files that Prometheus reads.

The usual alert compares a recorded signal with one number, ``media_cluster:<signal>[:<window>] > 5``, which is its
level; the dashboard draws this number as a line. ``media_cluster:<signal>_unpaged`` is the same signal, without values
that another page reports, and ``_unrefused`` without those of attempts that Redis refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import yaml

FOLDER: Final = Path(__file__).with_name("alerts")

Severity = Literal["warning", "critical", "none"]

_LEVEL: Final = re.compile(
    r"media_cluster:(?P<signal>\w+?)(?:_unpaged|_unrefused)?(?::\w+)? (?P<comparator>>=|>|<) (?P<level>[0-9.]+)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """An alerting rule.

    Attributes:
        hold: how long the condition must hold, in Prometheus's notation; empty if the alert fires immediately.
        signal, comparator, level: the recorded signal, the comparison and the number; empty or 0 for other expressions.
    """

    name: str
    expr: str
    hold: str
    labels: dict[str, str]
    annotations: dict[str, str]
    signal: str
    comparator: str
    level: float

    @property
    def severity(self) -> Severity:
        """The severity. ``warning`` and ``critical`` notify Slack; only the alert that always fires has ``none``."""
        return self.labels["severity"]  # type: ignore[return-value]  # a test checks the files

    @property
    def pages(self) -> bool:
        """Whether the alert notifies PagerDuty."""
        return self.labels.get("page") == "true"


@cache
def rules() -> tuple[dict[str, Any], ...]:
    """Return the rules of all files in Prometheus's format."""
    files = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.yaml"))]
    return tuple(rule for file in files for group in file["groups"] for rule in group["rules"])


@cache
def alerts() -> dict[str, Alert]:
    """Return all alerts, by name."""
    return {rule["alert"]: _alert(rule) for rule in rules() if "alert" in rule}


def levels(signal: str) -> list[Alert]:
    """Return the alerts on a signal, lowest level first."""
    found = (alert for alert in alerts().values() if signal and alert.signal == signal)
    return sorted(found, key=lambda alert: alert.level)


def lines(signal: str) -> list[tuple[Severity, float]]:
    """Return the lowest level of each severity, lowest first; skip critical levels that equal the warning level."""
    lowest: dict[float, Severity] = {}
    for severity in ("warning", "critical"):
        found = [alert.level for alert in levels(signal) if alert.severity == severity and alert.level not in lowest]
        if found:
            lowest[found[0]] = severity
    return sorted(((severity, level) for level, severity in lowest.items()), key=lambda line: line[1])


def _alert(rule: dict[str, Any]) -> Alert:
    found = _LEVEL.fullmatch(rule["expr"])
    return Alert(
        name=rule["alert"],
        expr=rule["expr"],
        hold=rule.get("for", ""),
        labels=rule["labels"],
        annotations=rule["annotations"],
        signal=found["signal"] if found else "",
        comparator=found["comparator"] if found else "",
        level=float(found["level"]) if found else 0.0,
    )
