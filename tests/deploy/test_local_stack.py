"""Tests of the local stack: docker-compose.local.yml is valid, and the same processes run without Docker."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from deploy.local_stack import PORTS, SECRETS, LocalStack
from tasks.contracts import EMBEDDING_INGESTED, stream_of
from tasks.observe.periodic import BEAT
from tests.support import eventually, lacking
from tests.system.events import flat_event

ROOT = Path(__file__).parent.parent.parent
COMPOSE = ROOT / "docker-compose.local.yml"
NAMED_VOLUMES = {"redis", "prometheus"}


def compose() -> Mapping[str, Any]:
    loaded: Mapping[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


def mounts() -> list[tuple[str, str]]:
    found = [mount for service in compose()["services"].values() for mount in service.get("volumes", ())]
    # replace ${VAR:-default} with the default
    parts = [re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", mount).split(":") for mount in found]
    return [(part[0], part[1]) for part in parts]


# -- docker-compose.local.yml ----------------------------------------------------------------------------------------


@pytest.mark.deploy
def test_compose_file_matches_the_compose_schema() -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    if not checker.exists():
        lacking("check-jsonschema", "pip install -e '.[deploy]'")

    checked = subprocess.run(
        [checker, "--builtin-schema", "vendor.compose-spec", COMPOSE], capture_output=True, text=True, check=False
    )

    assert checked.returncode == 0, checked.stdout


def test_compose_mounts_existing_files() -> None:
    paths = [source for source, _ in mounts() if source not in NAMED_VOLUMES]

    assert len(paths) >= 6
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_compose_publishes_ports_on_loopback_only() -> None:
    published = [port for service in compose()["services"].values() for port in service.get("ports", ())]

    assert {"127.0.0.1:9105:9105", "127.0.0.1:8080:8080"} <= set(published)
    assert all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in published)


def test_compose_variables_equal_documented_ones() -> None:
    text = COMPOSE.read_text()
    used = set(re.findall(r"\$\{([A-Z_]+)", text))
    documented = set(re.findall(r"^#   ([A-Z_]+)  ", text, flags=re.MULTILINE))

    assert used
    assert used == documented


def test_compose_redis_persists_and_never_evicts() -> None:
    service = compose()["services"]["redis"]
    configuration = (ROOT / "ops" / "config" / "redis" / "redis.conf").read_text().splitlines()

    assert ("./ops/config/redis/redis.conf", "/etc/redis/redis.conf") in mounts()
    assert service["command"][:2] == ["redis-server", "/etc/redis/redis.conf"]
    assert {"appendonly yes", "maxmemory 1gb", "maxmemory-policy noeviction"} <= set(configuration)
    assert service["command"][-2:] == ["--maxmemory", "${REDIS_MAXMEMORY:-1gb}"]


def test_compose_processes_are_read_only_and_drain_before_kill() -> None:
    for name in ("worker", "scheduler", "server"):
        service = compose()["services"][name]
        assert (service["read_only"], service["cap_drop"], service["tmpfs"]) == (True, ["ALL"], ["/tmp"])
    worker = compose()["services"]["worker"]
    (option,) = [word for word in worker["command"] if word.startswith("--shutdown-timeout-ms=")]
    assert int(worker["stop_grace_period"].rstrip("s")) * 1000 > int(option.partition("=")[2])


@pytest.mark.parametrize(("age_s", "code"), [(None, 1), (60, 0), (600, 1)], ids=["no tick", "fresh", "old"])
def test_compose_scheduler_is_healthy_while_it_ticks(age_s: float | None, code: int, tmp_path: Path) -> None:
    if age_s is not None:
        _touch(tmp_path / BEAT.name, age_s)
    kind, *command = compose()["services"]["scheduler"]["healthcheck"]["test"]

    checked = subprocess.run([word.replace("/tmp", str(tmp_path)) for word in command], check=False)

    assert (kind, checked.returncode) == ("CMD", code)


def test_compose_checks_the_health_of_redis_and_every_process() -> None:
    services = compose()["services"]

    assert [name for name in ("redis", "worker", "scheduler", "server") if "healthcheck" not in services[name]] == []


def test_compose_publishes_the_ports_of_the_local_stack() -> None:
    published = {int(port.rpartition(":")[2]) for port in compose()["services"]["pod"]["ports"]}

    # only Prometheus reads the exporter; Grafana runs only in Docker
    assert set(PORTS.values()) - {PORTS["exporter"]} == published - {3000}


def test_prometheus_targets_match_the_ports_of_the_stack() -> None:
    text = (ROOT / "ops" / "config" / "prometheus.yaml").read_text()

    targets = set(re.findall(r"127\.0\.0\.1:(\d+)", text))
    assert {str(PORTS[name]) for name in ("worker", "server", "alertmanager", "exporter")} <= targets
    assert targets <= {str(port) for port in PORTS.values()}


@pytest.mark.parametrize("broken", ["", "missing", "empty", "a folder"])
def test_compose_alertmanager_names_a_secret_that_it_cannot_read(broken: str, tmp_path: Path) -> None:
    secrets, programs = tmp_path / "secrets", tmp_path / "bin"
    for folder in (secrets, programs):
        folder.mkdir()
    for name in SECRETS:
        (secrets / name).write_text("" if broken == "empty" else "x")
    if broken in {"missing", "a folder"}:
        (secrets / SECRETS[0]).unlink()
    if broken == "a folder":
        (secrets / SECRETS[0]).mkdir()
    (programs / "alertmanager").write_text('#!/bin/sh\necho "$@"\n')
    (programs / "alertmanager").chmod(0o755)
    service = compose()["services"]["alertmanager"]
    command = [word.replace("$$", "$") for word in [*service["entrypoint"], *service["command"]]]
    command[2] = command[2].replace("/etc/alertmanager/secrets", str(secrets))

    started = subprocess.run(
        command, env={"PATH": f"{programs}:{os.environ['PATH']}"}, capture_output=True, text=True, check=False
    )

    if broken:
        assert started.returncode == 78
        assert "the secret SLACK_WEBHOOK_URL is missing, empty or unreadable" in started.stderr
    else:
        assert started.stdout.split() == service["command"]


def test_local_stack_names_a_missing_secret_of_alertmanager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "SLACK_WEBHOOK_URL").write_text("http://127.0.0.1:9/x")
    monkeypatch.setenv("SPLOOT_ALERT_SECRETS", str(tmp_path))

    stack = LocalStack(tmp_path / "local", dict.fromkeys(PORTS, 1))

    (service,) = [service for service in stack.services if service.name == "alertmanager"]
    assert service.command is None
    assert service.missing.startswith("PAGERDUTY_ROUTING_KEY missing, empty or unreadable")


def test_local_stack_reports_a_scheduler_that_does_not_tick(tmp_path: Path) -> None:
    stack = LocalStack(tmp_path, dict.fromkeys(PORTS, 1))
    (beat,) = [service.beat for service in stack.services if service.beat is not None]

    assert "scheduler" in stack.silent()
    _touch(beat, 60)
    assert "scheduler" not in stack.silent()
    _touch(beat, 600)
    assert "scheduler" in stack.silent()


def _touch(file: Path, age_s: float) -> None:
    file.touch()
    os.utime(file, (time.time() - age_s,) * 2)


# -- make up-local ---------------------------------------------------------------------------------------------------


@pytest.mark.deploy
def test_local_stack_starts_runs_a_job_and_is_scraped(tmp_path: Path) -> None:
    for binary, package in {"prometheus": "prometheus", "prometheus-alertmanager": "prometheus-alertmanager"}.items():
        if shutil.which(binary) is None:
            lacking(binary, f"apt-get install {package}")
    log = tmp_path / "stack.log"
    command = [sys.executable, "-m", "deploy.local_stack", "--directory", str(tmp_path / "local"), "--any-ports"]
    with log.open("wb") as output:
        stack = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        addresses = eventually(lambda: _addresses(log, "worker", "server", "prometheus", "alertmanager"), within_s=90)
        assert re.search(r"grafana +MISSING", log.read_text())
        with redis.Redis(port=_redis_port(tmp_path / "local")) as client:
            client.xadd(stream_of(EMBEDDING_INGESTED), dict(flat_event(pet_id=7, number=1)))
            eventually(lambda: client.llen("{pet:7}:media") == 1, within_s=60)
            assert client.config_get("dir")["dir"] == str(tmp_path / "local" / "redis")

        prometheus = addresses["prometheus"].removesuffix("/-/ready")
        eventually(lambda: _query(prometheus, 'cluster_jobs_total{outcome="success"} > 0'), within_s=60)
        eventually(lambda: _query(prometheus, "media_cluster_backlog_sample_timestamp_seconds > 0"), within_s=120)
        up = {sample["metric"]["job"]: sample["value"][1] for sample in _query(prometheus, "up")}
        assert up["sploot-cluster"] == "1"
        rules = _get(f"{prometheus}/api/v1/rules")["data"]["groups"]
        assert [rule for group in rules for rule in group["rules"] if rule["health"] == "err"] == []
        assert _get(f"{prometheus}/api/v1/alertmanagers")["data"]["activeAlertmanagers"]
    finally:
        stack.send_signal(signal.SIGINT)
        try:
            code = stack.wait(timeout=90)
        except subprocess.TimeoutExpired:
            stack.kill()
            raise
    assert code == 0, log.read_text()
    assert log.read_text().endswith("draining\nended\n")


def _addresses(log: Path, *names: str) -> dict[str, str]:
    found = dict(re.findall(r"^([a-z-]+) +(http://\S+)$", log.read_text(), flags=re.MULTILINE))
    return found if set(names) <= set(found) else {}


def _redis_port(directory: Path) -> int:
    return int(re.findall(r"port=(\d+)", (directory / "redis.log").read_text())[0])


def _query(prometheus: str, expression: str) -> list[dict[str, Any]]:
    answer = _get(f"{prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def _get(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=5) as answer:
        return json.load(answer)
