"""The report of the pipeline benchmark, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks.pipeline.plan import PLAN, Measurement
from benchmarks.records import Records, Spread, number, table

Found = Mapping[Measurement, Mapping[str, Sequence[float]]]

_RATES: Final = {
    "events/s": "per_s",
    "Redis commands per event": "commands",
    "round trips": "round_trips",
    "bytes to Redis": "bytes_in",
    "bytes from Redis": "bytes_out",
    "worker CPU, µs": "worker_cpu_us",
    "Redis CPU, µs": "redis_cpu_us",
}
_WAYS: Final = {"events/s sent": "sent_per_s", "p50, ms": "p50_ms", "p95, ms": "p95_ms", "p99, ms": "p99_ms"}


def found_in(records: Records) -> dict[Measurement, dict[str, list[float]]]:
    found: dict[Measurement, dict[str, list[float]]] = {}
    by_name = {one.name: one for one in PLAN}
    for key, values in records:
        if (one := by_name.get(str(key["measurement"]))) is None:
            continue
        for fact, value in values.items():
            if isinstance(value, int | float):
                found.setdefault(one, {}).setdefault(fact, []).append(value)
    return found


def as_json(records: Records) -> dict[str, Any]:
    found = found_in(records)
    return {
        "machine": records.machine,
        "measurements": {one.name: facts for one, facts in found.items()},
        "failed": [dict(key) | {"why": values["failed"]} for key, values in records if "failed" in values],
        "targets": [
            {"target": what, "wanted": wanted, "found": found_text, "met": met}
            for what, wanted, found_text, met in targets(found)
        ],
    }


def as_markdown(records: Records) -> str:
    found = found_in(records)
    failures = [
        f"- {key['measurement']}, round {key['round']}: {values['failed']}"
        for key, values in records
        if "failed" in values
    ]
    parts = [
        "## Pipeline",
        ", ".join(f"{name} {value}" for name, value in records.machine.items()),
        "Medians of the rounds, lowest and highest in brackets. Costs are per event, for all workers together; Redis' "
        "CPU includes receiving the events from the producer.",
        _table(found, _RATES, [one for one in PLAN if one.per_s is None]),
        "From before XADD until the commit was answered, without a backlog:",
        _table(found, _WAYS, [one for one in PLAN if one.per_s is not None]),
        "Targets:",
        table(
            ["target", "wanted", "found", "met"], [[*texts, "yes" if met else "no"] for *texts, met in targets(found)]
        ),
    ]
    if failures:
        parts += ["Failed measurements:", "\n".join(failures)]
    return "\n\n".join(parts) + "\n"


def targets(found: Found) -> list[tuple[str, str, str, bool]]:
    """Return (target, expected value, measured value, whether it is met) for each target that was measured."""
    rows = []
    for one in PLAN:
        facts = found.get(one)
        if facts is None or one.bound is None:
            continue
        fact, at_least = ("per_s", True) if one.per_s is None else ("p95_ms", False)
        spread = Spread.of(facts[fact])
        met = spread.median >= one.bound if at_least else spread.median <= one.bound
        sign = "≥" if at_least else "≤"
        what = "events/s" if at_least else "p95, ms"
        rows.append((f"{one.name}: {what}", f"{sign} {number(one.bound)}", spread.text(), met))
    for what, names in (
        ("cost per event, most to fewest pets", [one for one in PLAN if one.growth == "pets"]),
        ("cost per event, longest to shortest backlog", [one for one in PLAN if one.growth == "backlog"]),
    ):
        costs = [_cost(found[one]) for one in names if one in found]
        if len(costs) > 1:
            ratio = costs[-1] / costs[0]
            # a ratio up to 1.2 counts as constant, because runs on a quiet machine differ by as much
            rows.append((f"{what}: ratio of CPU", "≤ 1.2", number(ratio), ratio <= 1.2))
    return rows


def _cost(facts: Mapping[str, Sequence[float]]) -> float:
    return Spread.of(facts["worker_cpu_us"]).median + Spread.of(facts["redis_cpu_us"]).median


def _table(found: Found, columns: Mapping[str, str], rows: Sequence[Measurement]) -> str:
    return table(
        ["", *columns],
        [
            [one.name, *(Spread.of(found[one][fact]).text() for fact in columns.values())]
            for one in rows
            if one in found and all(fact in found[one] for fact in columns.values())
        ],
    )
