"""Measure queues side by side: ``python -m benchmarks.queue``; see the package's docstring."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.queue.contestants import CONTESTANTS, MEASURES, ONCE
from benchmarks.queue.environments import python_of
from benchmarks.queue.measures import SMOKE, Bench, Effort
from benchmarks.queue.report import as_json, as_markdown
from benchmarks.records import CACHE, Records
from tasks.redis_access.embedded import EmbeddedRedis

SERVER = {"appendonly": "no", "save": ""}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queue", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only contestants whose name contains one of these")
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--seconds", type=float, help="approximate duration of one drain", default=3.0)
    parser.add_argument("--no-pin", action="store_true", help="let worker processes move between cores")
    parser.add_argument(
        "--this-environment", action="store_true", help="run every contestant in this interpreter's environment"
    )
    parser.add_argument("--smoke", action="store_true", help="run for seconds only, to check that everything works")
    parser.add_argument("--report", action="store_true", help="print the results of the last run without measuring")
    parser.add_argument("--results", type=Path, default=CACHE / "results")
    asked = parser.parse_args(arguments)

    records = Records(asked.results / "queue.jsonl", resume=asked.resume or asked.report)
    if not asked.report:
        _run(asked, records)
    (asked.results / "queue.json").write_text(json.dumps(as_json(records), indent=1, ensure_ascii=False) + "\n")
    markdown = as_markdown(records)
    (asked.results / "queue.md").write_text(markdown)
    print(markdown)


def _run(asked: argparse.Namespace, records: Records) -> None:
    contestants = [
        one for one in CONTESTANTS if not asked.only or any(part.lower() in one.name.lower() for part in asked.only)
    ]
    interpreter = {
        one.environment: Path(sys.executable) if asked.this_environment else python_of(one.environment)
        for one in contestants
    }
    effort = SMOKE if asked.smoke else Effort(drain_s=asked.seconds)
    with EmbeddedRedis(options=SERVER) as server:
        bench = Bench(server.url, effort=effort, pin=not asked.no_pin, python_of=interpreter.__getitem__)
        for turn in range(asked.rounds):
            shift = turn % len(contestants)
            for measure in asked.measures:
                for contestant in contestants[shift:] + contestants[:shift]:
                    key = {"contestant": contestant.name, "measure": measure, "round": turn}
                    if measure not in contestant.measures or (measure in ONCE and turn) or records.has(key):
                        continue
                    values = bench.measure(contestant, measure)
                    records.add(key, values)
                    figures = ", ".join(
                        f"{fact} {value:.4g}" if isinstance(value, float) else f"{fact} {value}"
                        for fact, value in values.items()
                    )
                    print(f"round {turn + 1} {measure:10} {contestant.name}: {figures}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
