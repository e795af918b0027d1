"""The demo's alerts: the committed rules and routes, changed only in their durations."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from rich.console import Console

from tasks.demo.monitoring import OPS, Monitoring, NoMonitoring, faster, write_routes
from tasks.demo.practice import NotBegun, Practice
from tasks.demo.sample import albums
from tests.support import eventually


def test_faster_shortens_only_windows_hold_times_and_timers() -> None:
    text = "expr: sum(rate(x[5m])) * 60 > 30\nfor: 10m\n        for: 10m\n  group_interval: 1m\n  repeat_interval: 4h\n"

    assert faster(text, 10) == (
        "expr: sum(rate(x[30000ms])) * 60 > 30\nfor: 10m\n"
        "        for: 60000ms\n  group_interval: 6000ms\n  repeat_interval: 4h\n"
    )


@pytest.mark.parametrize("rules", sorted((OPS / "alerts").glob("*.yaml")), ids=lambda path: path.stem)
def test_faster_shortens_every_duration_in_the_rules(rules: Path) -> None:
    duration = r"\d+[smhd]"
    durations = rf"(?m)(?<=[\[:]){duration}(?=[\]:])|(?<= offset ){duration}\b|^ +(?:keep_firing_)?for: {duration}$"
    in_ms = durations.replace(duration, r"\d+ms")
    before, after = rules.read_text(), faster(rules.read_text(), 10)

    assert len(re.findall(durations, before)) == len(re.findall(in_ms, after)) > 0
    assert re.sub(durations, "", before) == re.sub(in_ms, "", after)


def test_routes_of_the_demo_wait_for_two_evaluations_per_group(tmp_path: Path) -> None:
    text = write_routes(tmp_path, "http://127.0.0.1:1", 60).read_text()

    assert "group_wait: 2500ms" in text
    assert "pagerduty_url: http://127.0.0.1:1/pagerduty" in text
    assert (tmp_path / "secrets" / "SLACK_WEBHOOK_URL").read_text() == "http://127.0.0.1:1/slack\n"


def test_missing_programs_are_reported_with_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(NoMonitoring, match="apt-get install prometheus prometheus-alertmanager"):
        Monitoring(tmp_path, receivers_url="http://127.0.0.1:1", speed=10)


def test_monitoring_is_refused_outside_a_checkout_of_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.demo.monitoring.OPS", tmp_path / "ops")

    with pytest.raises(NoMonitoring, match="checkout"):
        Monitoring(tmp_path, receivers_url="http://127.0.0.1:1", speed=10)


def test_practice_without_monitoring_leaves_no_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    before = set(threading.enumerate())

    with pytest.raises(NoMonitoring):
        practice_without_redis(tmp_path)

    assert set(threading.enumerate()) == before


def practice_without_redis(directory: Path) -> Practice:
    stack: Any = SimpleNamespace(metrics=(), http="")  # the only attributes that are used
    return Practice(
        stack,
        albums=albums(share=0.05),
        redis_url="redis://127.0.0.1:1/0",
        lease_ms=3_000,
        directory=directory,
        console=Console(),
    )


class NoAlerts:
    """A stand-in for Prometheus and Alertmanager that does nothing."""

    def __init__(self, directory: Path, **_: object) -> None: ...

    def watch(self, metrics: object) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


def test_exercise_is_refused_and_uploads_retry_when_redis_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.demo.practice.Monitoring", NoAlerts)
    monkeypatch.setattr("tasks.demo.practice.UPLOAD_EVERY_S", 0.01)

    with practice_without_redis(tmp_path) as practice:
        for exercise in ("pause", "poison", "hold", "freeze", "refuse", "full", "dead"):
            with pytest.raises(NotBegun, match=r"retry once it is back|not the demo's own"):
                practice.begin(exercise)
        tried = practice.n_sent
        eventually(lambda: practice.n_sent >= tried + 2, within_s=60)
