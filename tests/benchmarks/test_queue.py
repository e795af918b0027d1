"""The harness of the queue benchmark runs, measures and prints. No test asserts a speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.queue.contestants import CONTESTANTS, ENVIRONMENTS
from benchmarks.queue.report import as_markdown, found_in, targets
from benchmarks.records import Key, Records, Spread, number


@pytest.mark.bench
@pytest.mark.timeout(300)  # several processes start
def test_queue_benchmark_reports_markdown_and_json(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.queue", "--smoke", "--this-environment", "--rounds", "1"]
    # every process takes a second to start
    command += ["--only", "ours", "in-memory", "--measures", "drain-1", "latency", "--results", str(tmp_path)]

    done = subprocess.run(command, capture_output=True, text=True, check=True)

    results = json.loads((tmp_path / "queue.json").read_text())
    assert results["failed"] == []
    measured = {(one["contestant"], one["measure"], one["fact"]) for one in results["measurements"]}
    assert ("ours", "drain-1", "per_s") in measured
    assert ("ours", "latency", "p99_ms") in measured
    assert ("ceiling: Worker, in-memory broker", "drain-1", "worker_cpu_us") in measured
    assert (tmp_path / "queue.md").read_text() in done.stdout
    lines = done.stdout.splitlines()
    rows = [line for line in lines if line.startswith("| ours |")]
    assert len(rows) == 3  # one in each table: speed, the rest, costs
    assert all(row.count("|") == lines[lines.index(row) - 2].count("|") for row in rows)


def test_interrupted_benchmark_resumes_where_it_stopped(tmp_path: Path) -> None:
    records = Records(tmp_path / "queue.jsonl", resume=False)
    records.add({"contestant": "ours", "measure": "idle", "round": 0}, {"commands_per_s": 1.0})
    with records.path.open("a") as file:
        file.write('{"key": {"contestant": "ours", "measure": "idle", "rou')

    resumed = Records(records.path, resume=True)

    assert resumed.has({"contestant": "ours", "measure": "idle", "round": 0})
    assert not resumed.has({"contestant": "ours", "measure": "idle", "round": 1})


def test_new_benchmark_run_keeps_the_records_of_the_previous_one(tmp_path: Path) -> None:
    Records(tmp_path / "queue.jsonl", resume=False).add({"contestant": "ours"}, {})

    again = Records(tmp_path / "queue.jsonl", resume=False)

    assert not again.has({"contestant": "ours"})
    assert (tmp_path / "queue.previous.jsonl").exists()


def test_ratios_are_computed_per_round_and_missed_targets_reported(tmp_path: Path) -> None:
    records = Records(tmp_path / "queue.jsonl", resume=False)
    for turn, (ours, theirs) in enumerate([(9_000, 3_000), (5_000, 1_000), (8_000, 4_000)]):
        for name, per_s in (("ours", ours), ("Dramatiq RedisBroker", theirs)):
            key: Key = {"contestant": name, "measure": "drain-1", "round": turn}
            records.add(key, {"per_s": per_s, "left_bytes_per_message": 0})

    assert "| drain, 1 process: × RedisBroker, default prefetch | ≥ 4 | 3 (2 to 5) | no |" in as_markdown(records)
    assert ("bytes left behind per message", "≤ 1", "0", True) in targets(found_in(records))


def test_numbers_are_rounded_to_significant_digits() -> None:
    assert Spread.of([3, 1, 2]).text() == "2 (1 to 3)"
    assert [number(value) for value in (0, 0.01234, 12.34, 999, 1_234.5, 123_456)] == [
        "0",
        "0.0123",
        "12.3",
        "999",
        "1,230",
        "123,500",
    ]


def test_every_benchmark_contestant_is_pinned_to_a_release() -> None:
    assert {one.environment for one in CONTESTANTS} == set(ENVIRONMENTS)
    assert all("==" in pin for pins in ENVIRONMENTS.values() for pin in pins)
