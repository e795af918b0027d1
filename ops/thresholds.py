"""The values of ``thresholds.yaml``, checked. No other module reads that file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from dataclasses import fields as fields_of
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar

import yaml

from sploot_cluster.errors import InvalidInput

FILE: Final = Path(__file__).with_name("thresholds.yaml")

Made = TypeVar("Made", "Signal", "Level", "Burn")
Comparator = Literal[">", ">=", "<"]
_COMPARATORS: Final[Mapping[str, Comparator]] = {"above": ">", "at_least": ">=", "below": "<"}
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """The text and the receivers of an alert.

    Attributes:
        severity: ``warning`` or ``critical``; both go to Slack.
        page: whether the alert also goes to PagerDuty.
        urgency: ``high`` if PagerDuty's severity is critical.
        mention: ``oncall`` if the Slack message mentions @oncall.
    """

    summary: str
    severity: Literal["warning", "critical"]
    page: bool = False
    urgency: str = ""
    mention: str = ""

    def check(self, alert: str) -> None:
        """Raise ``InvalidInput`` if the fields contradict each other."""
        if self.severity not in ("warning", "critical"):
            raise _invalid(alert, f"severity is {self.severity!r}", "use warning or critical")
        if self.page and self.severity != "critical":
            raise _invalid(alert, "a warning pages", "remove page, or set severity to critical")
        if self.urgency not in ("", "high") or (self.urgency and not self.page):
            raise _invalid(alert, f"urgency is {self.urgency!r}", "use high, on an alert that pages")
        if self.mention not in ("", "oncall"):
            raise _invalid(alert, f"mention is {self.mention!r}", "use oncall")

    @property
    def labels(self) -> dict[str, str]:
        """The labels that Alertmanager routes by."""
        labels: dict[str, str] = {"severity": self.severity}
        if self.page:
            labels["page"] = "true"
        if self.urgency:
            labels["urgency"] = self.urgency
        if self.mention:
            labels["mention"] = self.mention
        return labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Level(Notification):
    """An alert on a signal.

    Attributes:
        hold: how long the condition must hold, in Prometheus's notation; empty if the alert fires at once.
    """

    comparator: Comparator
    value: float
    hold: str = ""

    @property
    def condition(self) -> str:
        """The comparison, such as ``> 5``."""
        return f"{self.comparator} {self.value:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Burn(Notification):
    """An alert on how fast the error budget burns, over two windows."""

    burn: float
    long: str
    short: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One number that alerts watch.

    Attributes:
        what: the number in words.
        window: the time over which it is measured; empty for a current state.
        target: the normal value.
        high_above: the level that the dashboard draws for a signal without alerts.
    """

    name: str
    what: str
    unit: str
    target: str
    levels: Mapping[str, Level]
    window: str = ""
    high_above: float | None = None

    def lines(self) -> list[tuple[Literal["warning", "critical"], float]]:
        """Return the levels that the dashboard draws, lowest first: the lowest level of each severity."""
        if self.high_above is not None:
            return [("warning", self.high_above)]
        of_warnings = {level.value for level in self.levels.values() if level.severity == "warning"}
        of_criticals = {level.value for level in self.levels.values() if level.severity == "critical"} - of_warnings
        lines: list[tuple[Literal["warning", "critical"], float]] = []
        if of_warnings:
            lines.append(("warning", min(of_warnings)))
        if of_criticals:
            lines.append(("critical", min(of_criticals)))
        return sorted(lines, key=lambda line: line[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The share of attempts that should succeed, and the alerts that warn before it is missed."""

    objective: float
    period: str
    least_failures: int
    burns: Mapping[str, Burn]

    @property
    def windows(self) -> list[str]:
        """All windows that burn rates are measured over, shortest first."""
        return sorted({w for burn in self.burns.values() for w in (burn.long, burn.short)}, key=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """The content of ``thresholds.yaml``."""

    dashboard_url: str
    runbook_url: str
    signals: Mapping[str, Signal]
    slo: Objective
    alerts: Mapping[str, Notification] = field(init=False)

    def __post_init__(self) -> None:
        alerts: dict[str, Notification] = {}
        for group in (*(signal.levels for signal in self.signals.values()), self.slo.burns):
            for name, alert in group.items():
                if name in alerts:
                    raise _invalid(name, "is defined twice", "give each alert a unique name")
                alert.check(name)
                alerts[name] = alert
        object.__setattr__(self, "alerts", alerts)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse and check the text.

        Raises:
            InvalidInput: an entry is invalid.
        """
        given = yaml.safe_load(text)
        slo = given["slo"]
        return cls(
            dashboard_url=given["links"]["dashboard"],
            runbook_url=given["links"]["runbook"],
            signals={name: _signal(name, entry) for name, entry in given["signals"].items()},
            slo=Objective(
                objective=slo["objective"],
                period=_duration("slo.period", slo["period"]),
                least_failures=slo["least_failures"],
                burns={name: _burn(name, entry) for name, entry in slo["alerts"].items()},
            ),
        )


@cache
def thresholds() -> Thresholds:
    """Return the thresholds of ``thresholds.yaml``."""
    return Thresholds.from_text(FILE.read_text(encoding="utf-8"))


def seconds(duration: str) -> int:
    """Return the number of seconds in a duration in Prometheus's notation with one unit, such as ``5m``."""
    return int(duration[:-1]) * _SECONDS[duration[-1]]


def _signal(name: str, entry: dict[str, Any]) -> Signal:
    fields = dict(entry)
    levels = {alert: _level(alert, given) for alert, given in fields.pop("alerts").items()}
    if window := fields.get("window"):
        _duration(name, window)
    return _made(Signal, name, {"name": name, "levels": levels, **fields})


def _level(name: str, entry: dict[str, Any]) -> Level:
    fields = dict(entry)
    given = [word for word in _COMPARATORS if word in fields]
    if len(given) != 1:
        raise _invalid(name, f"has {len(given)} levels", f"give one of {', '.join(_COMPARATORS)}")
    comparator, value = _COMPARATORS[given[0]], float(fields.pop(given[0]))
    hold = _duration(name, fields.pop("for")) if "for" in fields else ""
    return _made(Level, name, {"comparator": comparator, "value": value, "hold": hold, **fields})


def _burn(name: str, entry: dict[str, Any]) -> Burn:
    for window in ("long", "short"):
        _duration(name, entry[window])
    return _made(Burn, name, entry)


def _made(kind: type[Made], name: str, fields: dict[str, Any]) -> Made:
    try:
        return kind(**fields)
    except TypeError as unknown:
        known = ", ".join(field.name for field in fields_of(kind))
        raise _invalid(name, str(unknown).partition(" ")[2], f"use one of {known}") from None


def _duration(name: str, text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]*[smhd]", str(text)):
        raise _invalid(name, f"{text!r} is not a duration", "write a number and one of s, m, h, d, such as 5m")
    return text


def _invalid(entry: str, problem: str, hint: str) -> InvalidInput:
    return InvalidInput(f"{FILE.name}: {entry}", problem, hint)
