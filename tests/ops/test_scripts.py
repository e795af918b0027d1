"""Tests of the scripts for operators and CI pipelines, with a stand-in for Grafana."""

from __future__ import annotations

import json
import os
import pty
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops.dashboard import FILE as DASHBOARD
from ops.rules import alerts as rules
from tests.ops.grafana import TOKEN, Grafana, grafana
from tests.ops.servers import free_port
from tests.ops.test_routes import receivers_of
from tests.ops.tools import OPS, run, tool

SCRIPTS = OPS / "scripts"
NAMES = sorted({path.name for path in SCRIPTS.glob("*.sh")} - {"grafana.sh"})  # grafana.sh is sourced by the others
UID = "media-cluster-observability"


@pytest.fixture
def server() -> Iterator[Grafana]:
    with grafana() as served:
        yield served


def call(name: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    for program in ("curl", "jq"):
        tool(program)
    environ = {"PATH": os.environ["PATH"], "USER": "tester", **environment}
    command = [str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(command, env=environ, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=90)


def on(server: Grafana, name: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return call(name, *arguments, **{"GRAFANA_URL": server.url, "GRAFANA_API_TOKEN": TOKEN, **environment})


def test_scripts_pass_shellcheck() -> None:
    checked = run("shellcheck", "--external-sources", f"--source-path={SCRIPTS}", *SCRIPTS.glob("*.sh"))

    assert checked.returncode == 0, checked.stdout


@pytest.fixture(scope="module")
def toolbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with only curl, jq and the programs of busybox, as in an Alpine container."""
    folder = tmp_path_factory.mktemp("toolbox")
    for applet in subprocess.run(
        [tool("busybox"), "--list"], capture_output=True, text=True, check=True
    ).stdout.split():
        (folder / applet).symlink_to(tool("busybox"))
    for program in ("curl", "jq"):
        (folder / program).symlink_to(tool(program))
    return folder


def in_toolbox(
    toolbox: Path, name: str, *arguments: str | Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [str(toolbox / "sh"), str(SCRIPTS / name), *map(str, arguments)]
    environ = {"PATH": str(toolbox), "USER": "tester", **environment}
    return subprocess.run(command, env=environ, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=90)


@pytest.mark.slow
def test_scripts_need_only_busybox_curl_and_jq(toolbox: Path, server: Grafana, tmp_path: Path) -> None:
    of_grafana = {"GRAFANA_URL": server.url, "GRAFANA_API_TOKEN": TOKEN}
    text = "INC-7: poisoned uploads"
    annotate = ("--kind", "incident", "--from", "40 minutes ago", "--to", "now", text)

    for said in (f"posted: incident, {text}", f"already posted: {text}"):
        annotated = in_toolbox(toolbox, "annotate.sh", *annotate, **of_grafana)
        assert (annotated.returncode, annotated.stdout) == (0, f"{said}\n"), annotated.stderr
    for said in ("published", "unchanged"):
        published = in_toolbox(toolbox, "deploy-dashboards.sh", **of_grafana)
        assert published.returncode == 0, published.stderr
        assert f"{said}: Media Clustering" in published.stdout
    planned = in_toolbox(toolbox, "fire-alerts.sh", "--dry-run", "--all")
    assert planned.returncode == 0, planned.stderr
    secrets = {"SLACK_WEBHOOK_URL": "https://hooks.example/T0/B0/x", "PAGERDUTY_ROUTING_KEY": "0" * 32}
    written = in_toolbox(toolbox, "render-secrets.sh", tmp_path / "secrets", **secrets)
    assert written.returncode == 0, written.stderr

    # rounded, because the script reads the clock twice
    assert [round((mark["timeEnd"] - mark["time"]) / 60_000) for mark in server.annotations] == [40]
    assert {alert["labels"]["alertname"] for alert in json.loads(planned.stdout)} == set(rules())
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == secrets


@pytest.mark.parametrize(
    ("code", "name", "arguments"),
    [
        *((64, name, ["--no-such-option"]) for name in NAMES),
        (64, "annotate.sh", ["--kind", "deploy", "--from", "yesteryear", "x"]),
        (64, "fire-alerts.sh", ["--dry-run", "--alert", "NoSuchAlert"]),
        (70, "annotate.sh", ["--kind", "deploy", "x"]),
        (70, "deploy-dashboards.sh", []),
        (70, "fire-alerts.sh", ["--verify"]),
        (78, "fire-alerts.sh", ["--environment", "production"]),
        (78, "deploy-dashboards.sh", ["no-such.json"]),
        (78, "render-secrets.sh", ["secrets"]),
    ],
)
def test_exit_codes_hold_with_busybox(toolbox: Path, code: int, name: str, arguments: list[str]) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    environment = {"GRAFANA_URL": nowhere, "GRAFANA_API_TOKEN": TOKEN, "ALERTMANAGER_URL": nowhere}

    called = in_toolbox(toolbox, name, *arguments, **environment)

    assert called.returncode == code, called.stderr
    assert called.stderr


@pytest.mark.parametrize("name", NAMES)
def test_script_help_lists_its_exit_codes(name: str) -> None:
    helped = call(name, "--help")
    wrong = call(name, "--no-such-option")

    assert helped.returncode == 0
    assert name in helped.stdout
    assert "Exit codes: 0 " in helped.stdout
    assert (wrong.returncode, wrong.stdout) == (64, "")
    assert (SCRIPTS / name).stat().st_mode & stat.S_IXUSR
    used = set(re.findall(r"\b(64|69|70|77|78)\b", helped.stdout))
    assert "64" in used


@pytest.mark.parametrize("name", ["deploy-dashboards.sh", "annotate.sh", "fire-alerts.sh"])
def test_script_names_a_missing_program(name: str, tmp_path: Path) -> None:
    for program in ("dirname", "basename", "cat", "curl"):
        (tmp_path / program).symlink_to(tool(program))
    arguments = ["--kind", "deploy", "x"] if name == "annotate.sh" else []

    called = call(name, *arguments, PATH=str(tmp_path))

    assert called.returncode == 69
    assert "jq is not installed" in called.stderr


def test_second_publish_of_a_dashboard_changes_nothing(
    server: Grafana,
) -> None:
    first = on(server, "deploy-dashboards.sh")
    second = on(server, "deploy-dashboards.sh")

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "published: Media Clustering – Pipeline Health, version 1" in first.stdout
    assert second.stdout == "unchanged: Media Clustering – Pipeline Health\n"
    assert server.folders == {"media-clustering": "Media Clustering"}
    published = server.dashboards[UID]["dashboard"]
    assert published["panels"] == json.loads(DASHBOARD.read_text())["panels"]
    assert published["version"] == 1


def test_changed_dashboard_is_published_as_the_next_version(server: Grafana, tmp_path: Path) -> None:
    changed = tmp_path / "board.json"
    changed.write_text(json.dumps({**json.loads(DASHBOARD.read_text()), "refresh": "1m", "id": 5}))
    on(server, "deploy-dashboards.sh")

    published = on(server, "deploy-dashboards.sh", changed)

    assert published.returncode == 0, published.stderr
    assert server.dashboards[UID]["dashboard"]["version"] == 2
    assert server.dashboards[UID]["dashboard"]["refresh"] == "1m"


def test_refused_dashboard_does_not_stop_the_others(server: Grafana, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"uid": "other", "title": "Other", "panels": []}))
    server.refuses = {"other"}

    published = on(server, "deploy-dashboards.sh", other, DASHBOARD)

    assert published.returncode == 1
    assert "refused: Other: uid too long" in published.stderr
    assert UID in server.dashboards


def test_deploy_dry_run_does_not_need_grafana() -> None:
    planned = call("deploy-dashboards.sh", "--dry-run", "--folder", "Mine")

    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.startswith(f"would publish Media Clustering – Pipeline Health (uid {UID}, ")
    assert planned.stdout.endswith("into Mine\n")


def test_grafana_token_is_neither_printed_nor_passed_as_an_argument(server: Grafana, tmp_path: Path) -> None:
    spy = tmp_path / "curl"
    spy.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >> {tmp_path}/arguments\nexec {tool("curl")} "$@"\n')
    spy.chmod(0o755)

    published = on(server, "deploy-dashboards.sh", PATH=f"{tmp_path}:{os.environ['PATH']}")

    assert published.returncode == 0
    assert "--data-binary" in (tmp_path / "arguments").read_text()
    assert TOKEN not in (tmp_path / "arguments").read_text() + published.stdout + published.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "message"),
    [
        ([], {"GRAFANA_API_TOKEN": "wrong"}, 77, "refuses the token"),
        ([], {"GRAFANA_API_TOKEN": ""}, 78, "GRAFANA_API_TOKEN is not set"),
        ([], {"GRAFANA_API_TOKEN": 'x"\nurl = "http://elsewhere'}, 78, "has invalid characters"),
        ([], {"GRAFANA_URL": ""}, 78, "GRAFANA_URL is not set"),
        ([], {"GRAFANA_URL": f"http://127.0.0.1:{free_port()}"}, 70, "check that GRAFANA_URL"),
        (["no-such.json"], {}, 78, "cannot be read"),
        ([OPS / "config" / "alertmanager.yaml"], {}, 78, "is not a dashboard"),
        (["--folder"], {}, 64, "Exit codes"),
    ],
)
def test_failed_deploy_exits_with_its_code_and_a_message(
    server: Grafana, arguments: list[str | Path], environment: dict[str, str], code: int, message: str, tmp_path: Path
) -> None:
    called = on(server, "deploy-dashboards.sh", *arguments, **environment)

    assert called.returncode == code, called.stderr
    assert message in called.stderr
    assert server.dashboards == {}


def test_annotation_with_the_same_text_is_posted_once(server: Grafana) -> None:
    first = on(server, "annotate.sh", "--kind", "deploy", "release 1.4", "is out")
    second = on(server, "annotate.sh", "--kind", "deploy", "release 1.4 is out")
    other = on(
        server,
        "annotate.sh",
        "--kind",
        "incident",
        "--panel",
        "11",
        "--from",
        "2026-11-24 07:30 UTC",
        "--to",
        "2026-11-24 08:00 UTC",
        "slow engine",
    )

    assert (first.returncode, second.returncode, other.returncode) == (0, 0, 0), first.stderr + other.stderr
    assert second.stdout == "already posted: release 1.4 is out\n"
    deploy, incident = server.annotations
    assert (deploy["dashboardUID"], deploy["tags"]) == (UID, ["sploot-cluster", "deploy"])
    assert "panelId" not in deploy
    assert incident["timeEnd"] - incident["time"] == 30 * 60 * 1_000
    assert incident["panelId"] == 11


@pytest.mark.parametrize(
    "arguments",
    [
        ["text"],
        ["--kind", "party", "x"],
        ["--kind", "deploy"],
        ["--kind"],
        ["--kind", "deploy", "--from", "yesteryear", "x"],
        ["--kind", "deploy", "--to", "2026-13-45 10:00", "x"],
    ],
)
def test_annotation_without_kind_time_or_text_is_refused(server: Grafana, arguments: list[str]) -> None:
    assert on(server, "annotate.sh", *arguments).returncode == 64
    assert server.annotations == []


def test_secrets_become_files_readable_by_their_owner_only(tmp_path: Path) -> None:
    secrets = {"SLACK_WEBHOOK_URL": "https://hooks.example/T0/B0/x", "PAGERDUTY_ROUTING_KEY": "0" * 32}

    for _ in range(2):
        written = call("render-secrets.sh", tmp_path / "secrets", **secrets)
        assert written.returncode == 0, written.stderr

    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == secrets
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "secrets").iterdir()} == {0o600}
    assert "hooks.example" not in written.stdout


def test_secrets_belong_to_the_user_of_alertmanager(tmp_path: Path) -> None:
    secrets = {"SLACK_WEBHOOK_URL": "https://hooks.example/T0/B0/x", "PAGERDUTY_ROUTING_KEY": "0" * 32}
    owner = 65534 if os.geteuid() == 0 else os.geteuid()  # only root may change the owner of files

    written = call("render-secrets.sh", "--owner", str(owner), tmp_path / "secrets", **secrets)
    refused = call("render-secrets.sh", "--owner", "no-such-user", tmp_path / "other", **secrets)

    assert written.returncode == 0, written.stderr
    assert {path.stat().st_uid for path in [tmp_path / "secrets", *(tmp_path / "secrets").iterdir()]} == {owner}
    assert refused.returncode == 77
    assert [*(tmp_path / "other").iterdir()] == []


@pytest.mark.parametrize("missing", ["SLACK_WEBHOOK_URL", "PAGERDUTY_ROUTING_KEY"])
def test_missing_or_placeholder_secret_is_refused(missing: str, tmp_path: Path) -> None:
    secrets = {"SLACK_WEBHOOK_URL": "https://hooks.example/T0/B0/x", "PAGERDUTY_ROUTING_KEY": "0" * 32}

    for value in ("", "${" + missing + "}", f"{secrets[missing]}\nno secret"):
        refused = call("render-secrets.sh", tmp_path / "secrets", **{**secrets, missing: value})
        assert refused.returncode == 78
        assert missing in refused.stderr
    assert not (tmp_path / "secrets").exists()


def test_fire_alerts_refuses_production_without_a_terminal() -> None:
    refused = call("fire-alerts.sh", "--environment", "production", ALERTMANAGER_URL="http://127.0.0.1:1")

    assert refused.returncode == 78
    assert "--yes" in refused.stderr


def test_fire_alerts_asks_for_confirmation_in_production_at_a_terminal() -> None:
    assert typed("no\n", "http://127.0.0.1:1") == (78, True)
    assert typed("production\n", f"http://127.0.0.1:{free_port()}") == (70, True)


def typed(answer: str, url: str) -> tuple[int, bool]:
    """Run the script at a terminal; return its exit code and whether it asked for confirmation."""
    for program in ("curl", "jq"):
        tool(program)
    ours, its = pty.openpty()
    command = [str(SCRIPTS / "fire-alerts.sh"), "--environment", "production"]
    process = subprocess.Popen(
        command,
        stdin=its,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "ALERTMANAGER_URL": url},
    )
    os.write(ours, answer.encode())
    _, errors = process.communicate(timeout=60)
    os.close(ours)
    os.close(its)
    return process.returncode, "Type production" in errors


def test_fire_alerts_names_an_unknown_alert() -> None:
    refused = call("fire-alerts.sh", "--dry-run", "--alert", "NoSuchAlert")

    assert refused.returncode == 64
    assert "NoSuchAlert" in refused.stderr


@pytest.mark.ops
def test_fire_alerts_dry_run_prints_payload_and_receivers() -> None:
    tool("amtool")

    planned = call("fire-alerts.sh", "--dry-run", "--all")

    assert planned.returncode == 0, planned.stderr
    payload, _, routes = planned.stdout.partition("\n]\n")
    alerts = json.loads(payload + "\n]")
    assert {alert["labels"]["alertname"] for alert in alerts} == set(rules())
    assert all(alert["annotations"]["summary"].startswith("[TEST by tester]") for alert in alerts)
    receivers = dict(line.split(" would notify ") for line in routes.splitlines())
    assert {name: reached.split(", ") for name, reached in receivers.items()} == {
        name: receivers_of(alert) for name, alert in rules().items()
    }


@pytest.mark.ops
def test_fire_alerts_dry_run_without_amtool_names_no_receivers(tmp_path: Path) -> None:
    for program in ("dirname", "cat", "curl", "jq", "awk"):
        (tmp_path / program).symlink_to(tool(program))

    planned = call("fire-alerts.sh", "--dry-run", PATH=str(tmp_path))

    assert planned.returncode == 0
    assert "amtool is not installed" in planned.stderr
    assert "would notify" not in planned.stdout
