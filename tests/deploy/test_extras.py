"""Tests of each extra alone: the wheel is installed with one extra at a time, and every command runs in it.

A command must work, or fail with one line that gives the reason or names the extra that it needs, never a traceback.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import typer

from deploy.wheels import build_wheel
from tasks.cli import app
from tasks.redis_access.embedded import EmbeddedRedis
from tests.support import eventually, lacking
from tests.system.events import free_port

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]

ROOT: Final = Path(__file__).parents[2]
PROCESSES: Final = ("worker", "scheduler", "serve", "demo")  # run until they are stopped
VALUES: Final = {"queue": "embedding"}  # values of required arguments and options for which 42 is not valid

# Runs each command line of standard input in a forked child, because a new Python process takes half a second each.
RUN: Final = """
import json, os, sys, tempfile
import dramatiq, numpy, redis, tasks.cli.shared, tasks.client  # once, not in every child
ran = []
for line in json.load(sys.stdin):
    with tempfile.TemporaryFile() as output:
        if (child := os.fork()) == 0:
            os.dup2(output.fileno(), 1), os.dup2(output.fileno(), 2)
            sys.argv, code = ["sploot-cluster", *line], 0
            try:
                from tasks.cli import main
                main()
            except SystemExit as ended:
                code = ended.code or 0
            except BaseException:
                import traceback
                traceback.print_exc()
                code = 70
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        ran.append([line, code, output.read().decode()])
json.dump(ran, sys.stdout)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that returns the Python of an environment that has only the wheel with the given extras."""
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        lacking("uv", "pip install -e '.[deploy]'")
    wheel = build_wheel(ROOT, tmp_path_factory.mktemp("wheel"), package="sploot_cluster")

    @cache
    def installed(extras: str) -> Path:
        python = tmp_path_factory.mktemp("environment") / "bin" / "python"
        commands: tuple[list[str | Path], ...] = (
            [uv, "venv", "--quiet", "--python", sys.executable, python.parents[1]],
            [uv, "pip", "install", "--quiet", "--python", python, f"{wheel}[{extras}]" if extras else wheel],
        )
        for command in commands:
            subprocess.run(command, check=True, capture_output=True, text=True)
        return python

    return installed


def lines_of(command: Any, *words: str) -> Iterator[list[str]]:
    """Yield command lines for a command and all its subcommands, with values for their required parameters."""
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from lines_of(inner, *words, name)
        return
    given = list(words)
    for one in [one for one in command.params if one.required]:
        given += ([] if one.param_type_name == "argument" else [one.opts[0]]) + [VALUES.get(one.name, "42")]
    if words[0] not in PROCESSES:
        yield given


def outcomes(python: Path, redis_url: str, directory: Path) -> dict[str, tuple[int, str]]:
    lines = list(lines_of(typer.main.get_command(app)))
    done = subprocess.run(
        [python, "-I", "-c", RUN],
        input=json.dumps(lines), cwd=directory, capture_output=True, text=True, check=True,
        env={"PATH": os.environ["PATH"], "HOME": str(directory), "REDIS_URL": redis_url},
    )  # fmt: skip
    return {" ".join(line): (code, output) for line, code, output in json.loads(done.stdout)}


@pytest.mark.parametrize("extras", ["worker", "server", "all"])
def test_every_command_works_or_names_the_extra_that_it_needs(
    extras: str, environment: Callable[[str], Path], redis_server: EmbeddedRedis, redis_url: str, tmp_path: Path
) -> None:
    ran = outcomes(environment(extras), redis_url, tmp_path)

    assert len(ran) > 40
    assert {line: found for line, found in ran.items() if "Traceback" in found[1] or found[0] not in range(5)} == {}
    needs = {line: output for line, (_, output) in ran.items() if "pip install" in output}
    assert {line: text for line, text in needs.items() if "\n" in text.strip() or len(text) > 200} == {}
    assert extras != "all" or set(needs) <= {"parquet 42"}


def test_command_line_without_extras_names_the_extra_to_install(
    environment: Callable[[str], Path], tmp_path: Path
) -> None:
    python = environment("")

    for command in ("pets", "worker", "serve", "--help"):
        done = subprocess.run(
            [python.with_name("sploot-cluster"), command], cwd=tmp_path, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"sploot-cluster: the command line needs \w+; pip install '.*\n", done.stderr)


def test_thin_client_needs_no_extra(environment: Callable[[str], Path], redis_url: str, tmp_path: Path) -> None:
    program = f"from tasks.client import ClusterTasks; print(ClusterTasks({redis_url!r}).recluster(42).queue)"

    done = subprocess.run([environment(""), "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True)

    assert (done.stdout, done.stderr) == ("cluster.recluster\n", "")


@contextmanager
def running(python: Path, command: str, environ: dict[str, str], directory: Path) -> Iterator[Path]:
    """Run a command until the end of the block, and yield the path of its log."""
    log = directory / f"{command}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python.with_name("sploot-cluster"), command],
            cwd=directory, stdout=output, stderr=output, env={"PATH": os.environ["PATH"], **environ},
        )  # fmt: skip
    try:
        yield log
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)
    return False


@pytest.mark.parametrize(("extra", "command"), [("worker", "worker"), ("server", "serve")])
def test_process_runs_with_its_extra_alone(
    extra: str, command: str, environment: Callable[[str], Path], redis_url: str, tmp_path: Path
) -> None:
    port = str(free_port())
    environ = {"REDIS_URL": redis_url, "WORKER_METRICS_PORT": port, "SPLOOT_HTTP_PORT": port, "HOME": str(tmp_path)}

    with running(environment(extra), command, environ, tmp_path) as log:
        eventually(lambda: answers(f"http://127.0.0.1:{port}/healthz"), within_s=60)
        eventually(lambda: answers(f"http://127.0.0.1:{port}/metrics"), within_s=60)

    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("extra", "command", "needed"),
    [("server", "worker", "worker"), ("server", "scheduler", "worker"), ("worker", "serve", "server"),
     ("server", "demo", "all"), ("worker", "demo", "all")],
)  # fmt: skip
def test_process_in_the_wrong_environment_names_its_extra(
    extra: str, command: str, needed: str, environment: Callable[[str], Path], redis_url: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [environment(extra).with_name("sploot-cluster"), command],
        cwd=tmp_path, capture_output=True, text=True, env={"PATH": os.environ["PATH"], "REDIS_URL": redis_url},
    )  # fmt: skip

    assert done.returncode == 2
    (line,) = (done.stdout + done.stderr).splitlines()
    assert f"pip install 'sploot-cluster[{needed}]'" in line
