"""The harness of the pipeline benchmark runs, measures and prints. No test asserts a speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.pipeline import stamps
from benchmarks.pipeline.pets import Album, World
from benchmarks.pipeline.plan import PLAN
from benchmarks.pipeline.report import found_in, targets
from benchmarks.records import Records
from sploot_cluster.event import EmbeddingIngested


@pytest.mark.bench
@pytest.mark.timeout(300)  # several processes start
def test_pipeline_benchmark_reports_markdown_and_json(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.pipeline", "--smoke", "--results", str(tmp_path)]
    command += ["--only", "100 pets of 500, albums, 2 processes, 2000 waiting, one by one"]

    done = subprocess.run(command, capture_output=True, text=True, check=True)

    results = json.loads((tmp_path / "pipeline.json").read_text())
    assert results["failed"] == []
    (measured,) = results["measurements"].values()
    assert measured["n"][0] > 0
    assert {"per_s", "commands", "bytes_in", "worker_cpu_us"} <= set(measured)
    assert (tmp_path / "pipeline.md").read_text() in done.stdout


def test_benchmark_events_are_valid_and_name_existing_pets() -> None:
    album = Album(n_pets=5, n_media=None)

    events = list(World().events(album, 100, traffic="albums"))

    checked = [
        EmbeddingIngested.from_fields({name.encode(): _as_bytes(value) for name, value in event.items()})
        for event in events
    ]
    assert {event.pet_id for event in checked} <= set(range(1, 6))
    assert len({event.media_id for event in checked}) == 100
    assert all(50 <= size <= 2_000 for size in album.sizes())


def test_benchmark_stamps_are_read_in_commit_order(tmp_path: Path) -> None:
    mine = stamps.Stamps(tmp_path)
    mine.note(stamps.media_id(1_000, 1), 9_000)
    mine.note("beach.jpg", 9_500)
    mine.note(stamps.media_id(2_000, 2), 8_000)

    assert stamps.n_noted(tmp_path) == 2
    assert np.array_equal(stamps.read(tmp_path), [[2_000, 8_000], [1_000, 9_000]])


def test_missed_pipeline_target_is_reported(tmp_path: Path) -> None:
    records = Records(tmp_path / "pipeline.jsonl", resume=False)
    few, many = [one for one in PLAN if one.growth == "pets"][:2]
    for one, cost in ((few, 500.0), (many, 900.0)):
        values = {"per_s": 900.0, "worker_cpu_us": cost, "redis_cpu_us": 100.0}
        records.add({"measurement": one.name, "round": 0}, values)

    rows = targets(found_in(records))

    assert (f"{few.name}: events/s", "≥ 1,000", "900", False) in rows
    assert ("cost per event, most to fewest pets: ratio of CPU", "≤ 1.2", "1.67", False) in rows


def test_measurement_names_are_unique() -> None:
    assert len({one.name for one in PLAN}) == len(PLAN)


def _as_bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
