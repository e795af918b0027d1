"""Measure the main job under load: ``python -m benchmarks.pipeline``; see the package's docstring."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.pipeline.measures import Bench, Effort, Failed, Setup
from benchmarks.pipeline.pets import Album
from benchmarks.pipeline.plan import PLAN, Measurement
from benchmarks.pipeline.report import as_json, as_markdown
from benchmarks.records import CACHE, Key, Records, Values
from tasks.redis_access.embedded import EmbeddedRedis

# Options of the Redis server: no rewrites of the append-only file, because they would distort the measurements.
SERVER = {"auto-aof-rewrite-percentage": "0"}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--only", nargs="+", metavar="WORDS", help="only measurements whose name contains one of these")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each measurement")
    parser.add_argument(
        "--threads", type=int, default=8, help="worker threads per process; the default is the stock command's"
    )
    parser.add_argument("--smoke", action="store_true", help="run for seconds only, to check that everything works")
    parser.add_argument("--list", action="store_true", help="print the names of the measurements")
    parser.add_argument("--report", action="store_true", help="print the results of the last run without measuring")
    parser.add_argument("--results", type=Path, default=CACHE / "results")
    asked = parser.parse_args(arguments)

    if asked.list:
        print("\n".join(one.name for one in PLAN))
        return
    records = Records(asked.results / "pipeline.jsonl", resume=asked.resume or asked.report)
    if not asked.report:
        _run(asked, records)
    (asked.results / "pipeline.json").write_text(json.dumps(as_json(records), indent=1, ensure_ascii=False) + "\n")
    markdown = as_markdown(records)
    (asked.results / "pipeline.md").write_text(markdown)
    print(markdown)


def _run(asked: argparse.Namespace, records: Records) -> None:
    plan = [one for one in PLAN if not asked.only or any(words in one.name for words in asked.only)]
    effort = Effort(seconds=0.5, threads=2) if asked.smoke else Effort(seconds=asked.seconds, threads=asked.threads)
    with EmbeddedRedis(options=SERVER) as server:
        bench = Bench(server.url, effort=effort)
        for turn in range(1 if asked.smoke else asked.rounds):
            for one in plan:
                key: Key = {"measurement": one.name, "round": turn}
                if records.has(key):
                    continue
                values = _measure(bench, _tiny(one) if asked.smoke else one)
                records.add(key, values)
                figures = ", ".join(
                    f"{fact} {value:,.4g}" if isinstance(value, float) else f"{fact} {value}"
                    for fact, value in values.items()
                )
                print(f"round {turn + 1} {one.name}: {figures}", file=sys.stderr, flush=True)


def _measure(bench: Bench, one: Measurement) -> Values:
    setup = Setup(one.batch_size, one.n_shards, one.has_reclusters)
    try:
        if one.per_s is not None:
            return bench.latency(
                one.album, n_processes=one.n_processes, per_s=one.per_s, traffic=one.traffic, setup=setup
            )
        return bench.throughput(
            one.album,
            n_processes=one.n_processes,
            backlog=one.backlog,
            traffic=one.traffic,
            is_warm=one.is_warm,
            setup=setup,
        )
    except Failed as error:
        return {"failed": str(error)}


def _tiny(one: Measurement) -> Measurement:
    return replace(one, album=Album(3, 50), n_processes=1, backlog=20, per_s=one.per_s and 20)


if __name__ == "__main__":
    main()
