"""Mutants of the rules: rules with one change each, which the promtool tests must detect.

A mutant is tested together with the rules that it depends on or that depend on it, and with the expectations in its
test file about these rules. This detects as much as the whole file would, in a tenth of the time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Rule = dict[str, Any]

_NUMBER = re.compile(r"(?<=[<>=] )[0-9.e+-]+")
_COMPARATOR = re.compile(r" (>=|>|<)(?= [0-9])")
_AGGREGATION = re.compile(r"\b(sum|max|min)(?= by|\()")
_WINDOW = re.compile(r"\[(\d+)([smhd])\]")
OBJECTIVES = ("slo.yaml", "freshness.yaml")

_OTHER = {"sum": "max", "max": "min", "min": "max"}
_FLIPPED = {">": (">=", "<"), ">=": (">", "<"), "<": ("<=", ">")}

_LAST = re.compile(r"last_over_time\((?:[^()]|\([^()]*\))*$")
_METRIC = re.compile(r"\b(?:cluster_\w+|media_cluster_\w+|redis_\w+|alertmanager_\w+|up)\b")
_RECORD = re.compile(r"\bmedia_cluster:[\w:]+")
_ALERT = re.compile(r'alertname="(\w+)"')


@dataclass(frozen=True, slots=True)
class Mutant:
    """A change of one rule, with the related rules."""

    name: str
    file: str
    rules: tuple[Rule, ...]

    def write(self, directory: Path, tests: Path) -> list[Path]:
        """Write the rules, and a file for each test, limited to these rules. Tests that expect alerts come first."""
        (directory / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "mutant", "rules": [*self.rules]}]}))
        given = yaml.safe_load(tests.read_text())
        written = []
        for number, test in enumerate(sorted(self._tests(given["tests"]), key=_is_silent)):
            written.append(directory / f"test-{number}.yaml")
            written[-1].write_text(yaml.safe_dump({**given, "rule_files": ["rules.yaml"], "tests": [test]}))
        return written

    def _tests(self, given: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        metrics = {metric for rule in self.rules for metric in _METRIC.findall(rule["expr"])}
        for test in given:
            if any(metrics & set(_METRIC.findall(series["series"])) for series in test["input_series"]):
                yield {**test, "promql_expr_test": [*self._expected(test["promql_expr_test"])]}

    def _expected(self, given: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        alerts = {rule.get("alert") for rule in self.rules}
        records = {rule.get("record") for rule in self.rules}
        for one in given:
            if "ALERTS" not in one["expr"]:
                if set(_RECORD.findall(one["expr"])) <= records:
                    yield one
                continue
            named = [(_ALERT.search(sample["labels"]), sample) for sample in one["exp_samples"]]
            assert all(found for found, _ in named), f"{one['expr']} must select by alertname"
            yield {**one, "exp_samples": [sample for found, sample in named if found and found[1] in alerts]}


def unchanged(file: str, rules: Mapping[str, Any]) -> Iterator[Mutant]:
    """Yield each group that reads a metric, unchanged, with the rules that it reads from other groups.

    The tests must pass on these.
    """
    every = [rule for group in rules["groups"] for rule in group["rules"]]
    for group in rules["groups"]:
        seen = [one for rule in group["rules"] for one in _seen_by(rule, every) if one not in group["rules"]]
        if any(_METRIC.search(rule["expr"]) for rule in group["rules"]):
            yield Mutant(group["name"], file, (*seen, *group["rules"]))


def mutants_of(file: str, rules: Mapping[str, Any]) -> Iterator[Mutant]:
    """Yield all mutants of the rules.

    A mutant multiplies a threshold by 1.2 (0 becomes 1), changes a comparator, doubles or drops a hold time, doubles a
    window, or changes an aggregation. Two things are not mutated: the windows of ``last_over_time``, which are two
    minutes everywhere; and the aggregations of the objectives, because their tests cover days and are slow.
    """
    for group in rules["groups"]:
        for rule in group["rules"]:
            for what, changed in [*_changes(rule), *(_together(rule) if file not in OBJECTIVES else ())]:
                yield Mutant(f"{_name(rule)}: {what}", file, tuple(_concerned(rule, changed, group["rules"])))


def _changes(rule: Rule) -> Iterator[tuple[str, Rule]]:
    expr = rule["expr"]
    for found in _NUMBER.finditer(expr):
        value = float(found[0])
        other = f"{value * 1.2:g}" if value else "1"
        yield f"{found[0]} -> {other} at {found.start()}", {**rule, "expr": _put(expr, found, other)}
    for found in _COMPARATOR.finditer(expr):
        for other in _FLIPPED[found[1]]:
            yield f"{found[1]} -> {other} at {found.start()}", {**rule, "expr": _put(expr, found, f" {other}")}
    for found in _WINDOW.finditer(expr):
        if _LAST.search(expr[: found.start()]):
            continue
        other = f"[{2 * int(found[1])}{found[2]}]"
        yield f"{found[0]} -> {other} at {found.start()}", {**rule, "expr": _put(expr, found, other)}
    if hold := rule.get("for"):
        doubled = f"{2 * int(hold[:-1])}{hold[-1]}"
        yield f"for {hold} -> {doubled}", {**rule, "for": doubled}
        yield f"for {hold} -> at once", {key: value for key, value in rule.items() if key != "for"}


def _together(rule: Rule) -> Iterator[tuple[str, Rule]]:
    for found in _AGGREGATION.finditer(rule["expr"]):
        other = _OTHER[found[1]]
        yield f"{found[0]} -> {other} at {found.start()}", {**rule, "expr": _put(rule["expr"], found, other)}


def _concerned(rule: Rule, changed: Rule, group: list[Rule]) -> Iterator[Rule]:
    """Yield the changed rule, the alerts that use it, and all rules that any of these read, in group order."""
    alerts = [other for other in group if "alert" in other and rule.get("record") in _RECORD.findall(other["expr"])]
    concerned = [rule, *alerts]
    concerned += [seen for one in (rule, *alerts) for seen in _seen_by(one, group)]
    for one in group:
        if one is rule:
            yield changed
        elif one in concerned:
            yield one


def _seen_by(rule: Rule, group: list[Rule]) -> list[Rule]:
    """Return the rules that a rule reads, directly or not: recorded values, and whether alerts fire."""
    seen: list[Rule] = []
    names = {*_RECORD.findall(rule["expr"]), *_ALERT.findall(rule["expr"])}
    for other in group:
        if other is not rule and names & {other.get("record"), other.get("alert")}:
            seen += [other, *_seen_by(other, [one for one in group if one is not rule])]
    return seen


def _is_silent(test: dict[str, Any]) -> bool:
    """Return whether the test expects neither a firing alert nor a recorded value."""
    return not any(one["exp_samples"] for one in test["promql_expr_test"])


def _name(rule: Rule) -> str:
    return str(rule.get("alert") or rule["record"])


def _put(text: str, found: re.Match[str], other: str) -> str:
    return text[: found.start()] + other + text[found.end() :]
