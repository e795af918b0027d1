"""The local stack without Docker: ``python -m deploy.local_stack [--directory build/local] [--any-ports]``.

It runs the same processes as docker-compose.local.yml from Debian's binaries and this environment: Redis, worker,
scheduler, server, Prometheus, Alertmanager. A process that ends is restarted; Ctrl-C or SIGTERM drains all of them. A
missing binary is reported with its Debian package, and the rest starts. Grafana is always missing, because Debian does
not package it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Self

from tasks.demo.stack import Pod, Pods, Ports, answers
from tasks.observe.periodic import BEAT
from tasks.redis_access.embedded import NoRedisServer, find_redis_server

ROOT: Final = Path(__file__).parent.parent
CONFIG: Final = ROOT / "ops" / "config"
DRAIN_S: Final = 30
POLL_S: Final = 0.2
FRESH_FOR_S: Final = 180  # the scheduler ticks once a minute; docker-compose.local.yml has the same limit

# The same ports as in docker-compose.local.yml and ops/config/prometheus.yaml.
PORTS: Final = {
    "redis": 6379,
    "worker": 9105,
    "server": 8080,
    "prometheus": 9090,
    "alertmanager": 9093,
    "exporter": 9121,
}
PACKAGES: Final = {
    "prometheus": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "prometheus-redis-exporter": "prometheus-redis-exporter",
}


# The files of ops/scripts/render-secrets.sh.
SECRETS: Final = ("SLACK_WEBHOOK_URL", "PAGERDUTY_ROUTING_KEY")


@dataclass(frozen=True, slots=True)
class Service:
    """One process of the stack.

    Attributes:
        command: the command line, or None if the binary is missing.
        health: URL that answers 200 once the process is up; empty if it has none.
        beat: file that the process touches while it is healthy, or None if it has none.
        missing: message to print instead of starting the process.
    """

    name: str
    command: Sequence[str] | None
    health: str = ""
    beat: Path | None = None
    missing: str = ""

    @property
    def is_well(self) -> bool:
        """Whether the health URL answers and the beat file is fresh."""
        if self.health:
            return answers(self.health)
        return self.beat is None or _is_fresh(self.beat)


class LocalStack:
    """The processes and their URLs. A ``with`` block starts the processes, and drains them at its end."""

    def __init__(self, directory: Path, ports: Mapping[str, int]) -> None:
        """
        Args:
            directory: folder for data, logs and configurations with these ports.
            ports: a port for every name in ``PORTS``.
        """
        self._directory, self.ports = directory, ports
        directory.mkdir(parents=True, exist_ok=True)
        self.redis_url = f"redis://127.0.0.1:{ports['redis']}/0"
        self.services = self._services()
        environ = {
            **os.environ,
            "REDIS_URL": self.redis_url,
            "WORKER_METRICS_PORT": str(ports["worker"]),
            "SPLOOT_HTTP_PORT": str(ports["server"]),
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(self._folder("tmp")),  # keeps our beat file separate from other schedulers'
        }
        redis, *others = [
            Pod(service.name, list(service.command), environ=environ, log=directory / f"{service.name}.log")
            for service in self.services
            if service.command is not None
        ]
        # Redis ends last, because the other processes write to it while they drain
        self._pods = Pods(others, [redis], stop_within_s=DRAIN_S + 10)

    def address(self, name: str, path: str = "") -> str:
        return f"http://127.0.0.1:{self.ports[name]}{path}"

    def silent(self) -> list[str]:
        """Return the names of the services that are not healthy yet: no answer at the URL, or no fresh beat file."""
        return [service.name for service in self.services if not service.is_well]

    def __enter__(self) -> Self:
        self._pods.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pods.__exit__(kind, error, trace)

    def _services(self) -> list[Service]:
        cli = [sys.executable, "-m", "tasks.cli"]
        redis = [str(find_redis_server()), str(self._configured("redis/redis.conf"))]
        redis += ["--port", str(self.ports["redis"]), "--dir", str(self._folder("redis"))]
        worker = [*cli, "worker", "--processes", "1", "--shutdown-timeout-ms", str(DRAIN_S * 1000)]
        return [
            Service("redis", redis),
            Service("worker", worker, self.address("worker", "/readyz")),
            Service("scheduler", [*cli, "scheduler"], beat=self._folder("tmp") / BEAT.name),
            Service("server", [*cli, "serve", "--host", "127.0.0.1"], self.address("server", "/readyz")),
            self._prometheus(),
            self._alertmanager(),
            self._exporter(),
            Service("grafana", None, missing="no Debian package contains it; see docker-compose.local.yml"),
        ]

    def _prometheus(self) -> Service:
        options = ["--config.file", str(self._configured("prometheus.yaml")), "--storage.tsdb.retention.time=2d"]
        options += ["--storage.tsdb.path", str(self._folder("prometheus"))]
        options += [f"--web.listen-address=127.0.0.1:{self.ports['prometheus']}"]
        return _service("prometheus", "prometheus", options, self.address("prometheus", "/-/ready"))

    def _alertmanager(self) -> Service:
        if useless := [name for name in SECRETS if not _is_filled(_secrets() / name)]:
            names = " and ".join(useless)
            missing = f"{names} missing, empty or unreadable in {_secrets()}, so no notification would arrive"
            return Service("alertmanager", None, missing=missing)
        options = ["--config.file", str(self._configured("alertmanager.yaml")), "--cluster.listen-address="]
        options += ["--storage.path", str(self._folder("alertmanager"))]
        options += [f"--web.listen-address=127.0.0.1:{self.ports['alertmanager']}"]
        return _service("alertmanager", "prometheus-alertmanager", options, self.address("alertmanager", "/-/ready"))

    def _exporter(self) -> Service:
        options = ["--include-system-metrics", "--redis.addr", self.redis_url]
        options += [f"--web.listen-address=127.0.0.1:{self.ports['exporter']}"]
        return _service("redis-exporter", "prometheus-redis-exporter", options, self.address("exporter", "/metrics"))

    def _configured(self, name: str) -> Path:
        """Return a copy of one of our configuration files, changed to use the ports and folders of this stack."""
        text = (CONFIG / name).read_text()
        for service, port in PORTS.items():
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{self.ports[service]}")
        text = text.replace("../alerts", str(ROOT / "ops" / "alerts")).replace(
            "/etc/alertmanager/secrets", str(_secrets())
        )
        copy = self._directory / Path(name).name
        copy.write_text(text)
        return copy

    def _folder(self, name: str) -> Path:
        folder = self._directory / name
        folder.mkdir(exist_ok=True)
        return folder


def _secrets() -> Path:
    """Return the folder with Alertmanager's secrets."""
    return Path(os.environ.get("SPLOOT_ALERT_SECRETS") or CONFIG / "local-secrets").absolute()


def _is_fresh(beat: Path) -> bool:
    try:
        return time.time() - beat.stat().st_mtime < FRESH_FOR_S
    except OSError:
        return False


def _is_filled(file: Path) -> bool:
    try:
        return bool(file.read_text().strip())
    except OSError:
        return False


def _service(name: str, binary: str, options: Sequence[str], health: str) -> Service:
    found = shutil.which(binary)
    if found is None:
        return Service(name, None, missing=f"{binary} not found: apt-get install {PACKAGES[binary]}")
    return Service(name, [found, *options], health)


def main() -> int:
    """Run the stack until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=ROOT / "build" / "local", help="folder for data and logs")
    parser.add_argument("--any-ports", action="store_true", help="use free ports instead of the usual ones")
    given = parser.parse_args()
    stopping = threading.Event()

    def end(signal_number: int, frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    wanted = [0] * len(PORTS) if given.any_ports else list(PORTS.values())
    try:
        ports = Ports(*wanted)
        stack = LocalStack(given.directory.resolve(), dict(zip(PORTS, ports.numbers, strict=True)))
    except NoRedisServer as error:
        print(f"up-local: {error}", file=sys.stderr)
        return 1
    for service in stack.services:
        if service.missing:
            print(f"{service.name:14} MISSING: {service.missing}", flush=True)
    with stack:
        reported: set[str] = set()
        while not stopping.wait(POLL_S):
            silent = set(stack.silent()) if len(reported) < len(stack.services) else set()
            for service in stack.services:
                if service.command is not None and service.name not in silent | reported:
                    reported.add(service.name)
                    print(f"{service.name:14} {service.health or 'started'}", flush=True)
                elif service.command is None:
                    reported.add(service.name)
        print("draining", flush=True)
    ports.close()
    print("ended", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
