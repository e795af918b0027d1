"""Temporary Prometheus and Alertmanager servers on loopback, each in its own directory, for tests and pictures."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

READY_WITHIN_S: Final = 60.0
ANSWER_WITHIN_S: Final = 30.0


class ServerProblem(Exception):
    """Raised when a server does not start or refuses a query; the message contains its response or log."""


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A client of a running Prometheus."""

    url: str

    def query(self, promql: str, *, at: float | None = None) -> list[dict[str, Any]]:
        """Return the instant vector: samples with ``metric`` and ``value``."""
        return self._ask("query", {"query": promql, **({} if at is None else {"time": f"{at:.3f}"})})

    def query_range(self, promql: str, *, start: float, end: float, step_s: float) -> list[dict[str, Any]]:
        """Return the series of a range, each with ``metric`` and ``values``."""
        window = {"start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step_s:g}"}
        return self._ask("query_range", {"query": promql, **window})

    def alerts(self) -> list[dict[str, Any]]:
        """Return every firing or pending alert, with ``labels``, ``annotations`` and ``state``."""
        alerts: list[dict[str, Any]] = get_json(f"{self.url}/api/v1/alerts")["data"]["alerts"]
        return alerts

    def _ask(self, what: str, parameters: Mapping[str, str]) -> list[dict[str, Any]]:
        answer = get_json(f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}")
        if answer["status"] != "success":
            raise ServerProblem(f"{parameters['query']}: {answer.get('error')}")
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result


def get_json(url: str) -> Any:
    """Return the JSON body of a server's response, even if it is an error response."""
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_WITHIN_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as refused:
        return json.load(refused)


@contextmanager
def prometheus(directory: Path, config: Mapping[str, Any], *, options: Sequence[str] = ()) -> Iterator[Prometheus]:
    """Run a Prometheus until the block ends.

    Args:
        directory: the folder for its configuration, its data (``data``) and its log.

    Raises:
        ServerProblem: it did not become ready.
        FileNotFoundError: ``prometheus`` is not on PATH.
    """
    written = directory / "prometheus.yaml"
    written.write_text(yaml.safe_dump(dict(config)))
    port = free_port()
    command = [
        _path_of("prometheus"),
        f"--config.file={written}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
        *options,
    ]
    with _running(command, directory / "prometheus.log", f"http://127.0.0.1:{port}") as url:
        yield Prometheus(url)


@contextmanager
def alertmanager(directory: Path, config: Path) -> Iterator[str]:
    """Run an Alertmanager with this configuration until the block ends; yield its URL.

    Raises:
        ServerProblem: it did not become ready.
        FileNotFoundError: ``prometheus-alertmanager`` is not on PATH.
    """
    port = free_port()
    command = [
        _path_of("prometheus-alertmanager"),
        f"--config.file={config}",
        f"--storage.path={directory / 'alertmanager'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
        "--log.level=warn",
    ]
    with _running(command, directory / "alertmanager.log", f"http://127.0.0.1:{port}") as url:
        yield url


def free_port() -> int:
    """Return a loopback port that is currently free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _path_of(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not on PATH: apt-get install {name}")
    return found


@contextmanager
def _running(command: list[str], log: Path, url: str) -> Iterator[str]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + READY_WITHIN_S
        while not _is_ready(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ServerProblem(f"{command[0]} did not become ready: {log.read_text()[-2_000:]}")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=2):
            return True
    except OSError:
        return False
