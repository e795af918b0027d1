"""Report of a run of the queue benchmark, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from benchmarks.queue.contestants import CONTESTANTS, ENVIRONMENTS
from benchmarks.records import Records, Spread, number, table

OURS: Final = "ours"
OURS_128: Final = "ours, prefetch 128"

# (contestant, measure, fact) -> value by round.
Found = Mapping[tuple[str, str, str], Mapping[int, float]]


def found_in(records: Records) -> dict[tuple[str, str, str], dict[int, float]]:
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for key, values in records:
        for fact, value in values.items():
            if isinstance(value, int | float):
                place = (str(key["contestant"]), str(key["measure"]), fact)
                found.setdefault(place, {})[int(key["round"])] = value
    return found


def as_json(records: Records) -> dict[str, Any]:
    """Return the machine, pins, settings, every figure by round, and the targets."""
    found = found_in(records)
    return {
        "machine": records.machine,
        "environments": {name: list(pins) for name, pins in ENVIRONMENTS.items()},
        "settings": {one.name: one.settings for one in CONTESTANTS},
        "measurements": [
            {"contestant": name, "measure": measure, "fact": fact, "by_round": by_round}
            for (name, measure, fact), by_round in found.items()
        ],
        "failed": [dict(key) | {"why": values["failed"]} for key, values in records if "failed" in values],
        "targets": [
            {"target": target, "wanted": wanted, "found": found_text, "met": met}
            for target, wanted, found_text, met in targets(found)
        ],
    }


def as_markdown(records: Records) -> str:
    found = found_in(records)
    failures = [
        f"- {key['contestant']}, {key['measure']}, round {key['round']}: {values['failed']}"
        for key, values in records
        if "failed" in values
    ]
    parts = [
        "## Queue",
        ", ".join(f"{name} {value}" for name, value in records.machine.items()),
        "Medians of the rounds, lowest and highest in brackets.",
        _speed(found),
        _rest(found),
        _costs(found),
        "Targets, as ratios within a round:",
        table(
            ["target", "wanted", "found", "met"],
            [[*texts, "yes" if met else "no"] for *texts, met in targets(found)],
        ),
        "Settings: " + "; ".join(f"**{one.name}** {one.settings}" for one in CONTESTANTS) + ".",
        "Releases: " + "; ".join(", ".join(pins) for pins in ENVIRONMENTS.values()) + ".",
    ]
    if failures:
        parts += ["Failed measurements:", "\n".join(failures)]
    return "\n\n".join(parts) + "\n"


def _speed(found: Found) -> str:
    return _table(
        found,
        {
            "enqueue/s, one by one": ("enqueue", "one_by_one_per_s", 1),
            "in batches of 100": ("enqueue", "batches_per_s", 1),
            "drain/s, 1 process": ("drain-1", "per_s", 1),
            "2 processes": ("drain-2", "per_s", 1),
            "idle latency p50, ms": ("latency", "p50_ms", 1),
            "p99, ms": ("latency", "p99_ms", 1),
            "jobs 0.5 s apart p50, ms": ("latency", "apart_p50_ms", 1),
        },
    )


def _rest(found: Found) -> str:
    return _table(
        found,
        {
            "bytes per waiting message": ("memory", "bytes_per_message", 1),
            "bytes left behind per message": ("drain-1", "left_bytes_per_message", 1),
            "keys left": ("drain-1", "left_keys", 1),
            "idle worker, requests/s": ("idle", "commands_per_s", 1),
            "commands/s, those in scripts included": ("idle", "in_scripts_per_s", 1),
            "run again after kill -9, s": ("redelivery", "seconds", 1),
            "after the loss of a host, s": ("host-loss", "seconds", 1),
        },
    )


def _costs(found: Found) -> str:
    return _table(
        found,
        {
            "round trips per message, 1 process": ("drain-1", "round_trips", 1),
            "2 processes": ("drain-2", "round_trips", 1),
            "commands per message, those in scripts included": ("drain-1", "commands", 1),
            "producer CPU per message, one by one, µs": ("enqueue", "one_by_one_cpu_us", 1),
            "in batches": ("enqueue", "batches_cpu_us", 1),
            "worker CPU per message, µs": ("drain-1", "worker_cpu_us", 1),
            "Redis CPU per message, µs": ("drain-1", "redis_cpu_us", 1),
        },
    )


def _table(found: Found, columns: Mapping[str, tuple[str, str, float]]) -> str:
    rows = []
    for contestant in CONTESTANTS:
        cells = []
        for measure, fact, scale in columns.values():
            by_round = found.get((contestant.name, measure, fact))
            cells.append(
                Spread.of(list(by_round.values())).text(scale)
                if by_round
                else _why_not(found, contestant.name, measure)
            )
        if any(cell not in ("", "–") for cell in cells):
            rows.append([contestant.name, *cells])
    return table(["", *columns], rows)


def _why_not(found: Found, name: str, measure: str) -> str:
    limit = found.get((name, measure, "limit_s"))
    return f"not within {number(max(limit.values()))}" if limit else "–"


def targets(found: Found) -> list[tuple[str, str, str, bool]]:
    """Return (name, required value, measured value, whether it was met) for each target that was measured."""

    def ratio(ours: str, other: str, measure: str, fact: str, other_fact: str | None = None) -> Spread | None:
        mine = found.get((ours, measure, fact), {})
        theirs = found.get((other, measure, other_fact or fact), {})
        both = [mine[turn] / theirs[turn] for turn in mine if theirs.get(turn)]
        return Spread.of(both) if both else None

    def figure(measure: str, fact: str, name: str = OURS) -> Spread | None:
        values = list(found.get((name, measure, fact), {}).values())
        return Spread.of(values) if values else None

    redis, redis_128 = "Dramatiq RedisBroker", "Dramatiq RedisBroker, prefetch 128"
    bare, bare_128 = "bare Streams probe", "bare Streams probe, prefetch 128"
    rows: list[tuple[str, Spread | None, Callable[[float], bool], str]] = []

    def at_least(what: str, spread: Spread | None, bound: float) -> None:
        rows.append((what, spread, lambda value: value >= bound, f"≥ {number(bound)}"))

    def at_most(what: str, spread: Spread | None, bound: float) -> None:
        rows.append((what, spread, lambda value: value <= bound, f"≤ {number(bound)}"))

    at_least("drain, 1 process: × RedisBroker, default prefetch", ratio(OURS, redis, "drain-1", "per_s"), 4)
    at_least("drain, 1 process: × RedisBroker, prefetch 128", ratio(OURS_128, redis_128, "drain-1", "per_s"), 4)
    at_least("drain, 2 processes: × RedisBroker, default prefetch", ratio(OURS, redis, "drain-2", "per_s"), 5)
    at_least("drain, 2 processes: × RedisBroker, prefetch 128", ratio(OURS_128, redis_128, "drain-2", "per_s"), 3)
    at_least("drain, 1 process: × bare probe, default prefetch", ratio(OURS, bare, "drain-1", "per_s"), 0.85)
    at_least("drain, 1 process: × bare probe, prefetch 128", ratio(OURS_128, bare_128, "drain-1", "per_s"), 0.85)
    at_least("drain, 2 processes: × bare probe, prefetch 128", ratio(OURS_128, bare_128, "drain-2", "per_s"), 0.85)
    for measure in ("drain-1", "drain-2"):
        for peer in _peers():
            at_least(f"{measure}: × {peer}", ratio(OURS, peer, measure, "per_s"), 1)
    at_least("enqueue one by one: × RedisBroker", ratio(OURS, redis, "enqueue", "one_by_one_per_s"), 1.2)
    at_least(
        "enqueue_many: × RedisBroker one by one",
        ratio(OURS, redis, "enqueue", "batches_per_s", "one_by_one_per_s"),
        8,
    )
    at_most("idle latency p50, ms", figure("latency", "p50_ms"), 0.8)
    at_most("idle latency p99, ms", figure("latency", "p99_ms"), 2)
    at_most("jobs 0.5 s apart p50, ms", figure("latency", "apart_p50_ms"), 1.3)
    at_most("bytes per waiting message", figure("memory", "bytes_per_message"), 200)
    at_most("bytes left behind per message", figure("drain-1", "left_bytes_per_message"), 1)
    at_most("idle requests per second", figure("idle", "commands_per_s"), 1)
    at_most("round trips per message at saturation, default prefetch", figure("drain-1", "round_trips"), 0.1)
    at_most("round trips per message, prefetch 128", figure("drain-1", "round_trips", OURS_128), 0.1)
    at_most("run again after kill -9 of a process, s", figure("redelivery", "seconds"), 2)
    at_most("run again after the loss of a host, s (lease 30)", figure("host-loss", "seconds"), 32)
    return [(what, wanted, spread.text(), is_met(spread.median)) for what, spread, is_met, wanted in rows if spread]


def _peers() -> Iterable[str]:
    return (one.name for one in CONTESTANTS if one.environment != "dramatiq")
